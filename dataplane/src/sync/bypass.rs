//! The emergency exit: for a limited time, nothing on this node is judged.
//!
//! Programs are taken off the devices, and put on again when the time is over. That it was begun is on disk before the first
//! device is let go, so an agent that starts ends it, whatever became of the one that began it.

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::Sync;
use crate::{clock, kernel::KernelError};

const FILE: &str = "bypass.json";

/// Why there is no bypass.
#[derive(Debug, Error)]
pub(crate) enum BypassError {
    #[error("{}: {source}; without that file a restart would not end the bypass, so there is none", path.display())]
    Keep { path: PathBuf, source: io::Error },
    #[error("taking programs off devices: {}", crate::chain(.0))]
    Kernel(#[from] KernelError),
}

/// While nothing is judged.
#[derive(Debug)]
pub(super) struct Bypass {
    /// When it is over.
    pub(super) ends: Instant,
}

impl Sync {
    fn bypass_path(&self) -> PathBuf {
        self.store.pods_path().with_file_name(FILE)
    }

    /// Begins a bypass that ends at a time (wall nanoseconds), moves its end, or ends it when that time is not to come.
    /// Gives how many devices are not judged.
    pub(super) fn set_bypass(&mut self, until: u64, reason: String) -> Result<u32, BypassError> {
        let left = Duration::from_nanos(until.saturating_sub(clock::wall()));
        if left.is_zero() {
            self.end_bypass(&reason);
            return Ok(0);
        }
        let path = self.bypass_path();
        let text = serde_json::json!({"until": until, "reason": reason}).to_string();
        fs::write(&path, text).map_err(|source| BypassError::Keep { path, source })?;
        tracing::warn!(
            seconds = left.as_secs(),
            reason,
            devices = self.attached.len(),
            "BYPASS: nothing on this node is judged until its time is over"
        );
        self.shared.metrics.bypasses.inc();
        self.bypass = Some(Bypass {
            ends: Instant::now() + left,
        });
        self.holding.bypass = Some((until, reason));
        let mut devices = 0;
        for ifindex in std::mem::take(&mut self.attached_out) {
            self.ground.detach_out(ifindex)?;
            devices += 1;
        }
        for ifindex in self.attached.clone() {
            self.ground.detach(ifindex)?;
            self.attached.remove(&ifindex);
            devices += 1;
        }
        Ok(devices)
    }

    /// Judges again.
    pub(super) fn end_bypass(&mut self, why: &str) {
        if self.bypass.take().is_none() {
            return;
        }
        tracing::warn!(why, "the bypass is over: devices are judged again");
        self.holding.bypass = None;
        self.forget_bypass();
        // What began meanwhile is judged as of now, not dropped for having begun unseen.
        self.endpoints
            .open_adoption(super::apply::adoption_end(), &self.attached, true);
        if let Err(error) = self.replan() {
            tracing::error!("after a bypass: {error}; tried again with the next look");
        }
    }

    /// An agent that starts ends what another one began: its devices lack programs and get them with the first plan.
    pub(super) fn end_former_bypass(&mut self) {
        let path = self.bypass_path();
        if let Ok(text) = fs::read_to_string(&path) {
            tracing::warn!(
                bypass = text,
                "the bypass of an earlier agent is over: devices are judged again"
            );
            self.forget_bypass();
        }
    }

    fn forget_bypass(&self) {
        let path = self.bypass_path();
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}
