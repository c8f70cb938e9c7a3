//! Keeps the kernel in step with what is wanted: one thread that owns planner, writer and devices, and takes one thing after
//! the other.
//!
//! For each revision: plan (nothing is written if it does not fit) → keep on disk → write in order → attach devices →
//! answer. A device is attached after its endpoint is in the maps: before that it would drop everything.

mod apply;
mod mirror;
mod report;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Instant,
};

use bulkhead_policy::{
    digest::Digest,
    plan::{Limits, PlanError, Planner, Usage},
    state::Delta,
};
use bulkhead_proto::{
    state_digest::StateDigest,
    update::Revision,
    v1::{AnnouncedEndpoint, EndpointGeneration, EndpointStatus},
};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use self::mirror::Mirror;
use crate::{
    endpoints::Endpoints,
    kernel::{Kernel, KernelError, Writer},
    names::{DeviceNames, Names},
    store::{Store, Stored},
};

/// Why a revision is not in force. What was in force before stays.
#[derive(Debug, Error)]
pub(crate) enum SyncError {
    #[error(
        "the update does not lead to the state the controller says (digest {wanted} wanted, {found} found); a snapshot is asked for"
    )]
    Digest { wanted: String, found: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{}", crate::chain(.0))]
    Kernel(#[from] KernelError),
    #[error("asking the kernel about devices: {0}")]
    Devices(#[from] std::io::Error),
}

impl SyncError {
    /// True when only a snapshot helps.
    pub(crate) fn needs_snapshot(&self) -> bool {
        matches!(
            self,
            Self::Digest { .. } | Self::Plan(PlanError::Delta(_) | PlanError::MissingRuleset { .. })
        )
    }
}

/// What the thread is asked.
#[derive(Debug)]
pub(crate) enum Input {
    /// A revision has arrived.
    Revision {
        revision: Box<Revision>,
        reply: oneshot::Sender<Result<(), SyncError>>,
    },
    /// Devices have changed.
    Links,
    /// What the endpoints are like.
    Describe(oneshot::Sender<Vec<EndpointStatus>>),
    /// End; enforcement goes on without us.
    Stop,
}

/// What the node holds, for the controller and for status.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Holding {
    pub(crate) revision: u64,
    pub(crate) digest: Option<Digest>,
    /// Wall nanoseconds of the last map write of the revision.
    pub(crate) held_at: u64,
    pub(crate) apply_micros: u64,
    pub(crate) error: String,
    pub(crate) generations: Vec<EndpointGeneration>,
    pub(crate) announced: Vec<AnnouncedEndpoint>,
}

/// What the thread shares.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) names: Arc<Names>,
    pub(crate) devices: Arc<DeviceNames>,
    pub(crate) holding: watch::Sender<Holding>,
    pub(crate) usage: Arc<Mutex<Usage>>,
}

/// The thread's state.
pub(crate) struct Sync {
    node: String,
    kernel: Kernel,
    writer: Writer,
    planner: Planner,
    endpoints: Endpoints,
    store: Store,
    mirror: Mirror,
    digest: StateDigest,
    /// Number and digest of the state that was planned last.
    wanted: Option<(u64, Digest)>,
    shared: Shared,
    holding: Holding,
    /// Devices that carry our programs.
    attached: BTreeSet<u32>,
    /// A plan of this process was carried out.
    planned: bool,
    /// The maps may be between two plans: the next look makes them whole.
    broken: Option<Instant>,
}

impl Sync {
    /// Adopts what the kernel holds: all flows are judged again, devices get this build's programs in place, and the last
    /// state on disk, which is never older than the kernel's, is made true.
    pub(crate) fn start(
        node: &str,
        kernel: Kernel,
        mut writer: Writer,
        store: Store,
        shared: Shared,
    ) -> Result<Self, SyncError> {
        if kernel.found_pins() {
            writer.raise_epoch()?;
        }
        let attached: BTreeSet<u32> = kernel.attached()?.into_iter().collect();
        for ifindex in &attached {
            if let Err(error) = kernel.attach(*ifindex) {
                tracing::warn!("keeping the former programs on a device: {}", crate::chain(&error));
            }
        }
        let (planner, mirror) = adopt(node, &kernel, &shared.names)?;
        let endpoints = Endpoints::new()?;
        let mut sync = Self {
            node: node.to_owned(),
            kernel,
            writer,
            planner,
            endpoints,
            store,
            mirror,
            digest: StateDigest::default(),
            wanted: None,
            shared,
            holding: Holding::default(),
            attached,
            planned: false,
            broken: None,
        };
        match sync.store.load() {
            Ok(Some(stored)) => sync.resume(&stored),
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
        sync.publish();
        Ok(sync)
    }

    /// Goes on with the state on disk. If that is not possible, what the kernel holds stays in force as it is.
    fn resume(&mut self, stored: &Stored) {
        self.shared.names.load(&stored.state);
        self.endpoints.replace(&stored.state, Instant::now());
        match self.make(&stored.state) {
            Ok(()) => {
                self.digest = StateDigest::of(&stored.state);
                self.wanted = Some((stored.revision, self.digest.digest()));
                self.hold();
                tracing::info!(
                    revision = stored.revision,
                    endpoints = stored.state.endpoints.len(),
                    "the last state is in force"
                );
            }
            Err(error) => {
                self.holding.error = error.to_string();
                tracing::warn!("the last state on disk is not in force, what the kernel holds is: {error}");
            }
        }
    }

    /// The thread's whole life.
    pub(crate) fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            let now = Instant::now();
            let next = self.broken.map_or(self.endpoints.next_look(), |broken| {
                broken.min(self.endpoints.next_look())
            });
            match inputs.recv_timeout(next.saturating_duration_since(now)) {
                Ok(Input::Revision { revision, reply }) => {
                    let result = self.revision(&revision);
                    self.publish();
                    // Whoever asked may have gone: the stream broke. The kernel holds it all the same.
                    drop(reply.send(result));
                }
                Ok(Input::Links) => self.look(true),
                Ok(Input::Describe(reply)) => drop(reply.send(self.describe())),
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.look(false),
            }
        }
    }

    /// Looks at devices, and repairs what a failed write left.
    fn look(&mut self, links_changed: bool) {
        let now = Instant::now();
        if self.broken.is_some_and(|broken| broken <= now) {
            self.broken = Some(now + apply::RETRY);
            match self.repair() {
                Ok(()) => self.hold(),
                Err(error) => tracing::warn!("still not in force: {error}"),
            }
        }
        match self.refresh(links_changed, now) {
            Ok(()) => {}
            Err(error) => tracing::warn!("looking at devices: {error}"),
        }
        self.publish();
    }

    fn refresh(&mut self, links_changed: bool, now: Instant) -> Result<(), SyncError> {
        let changed = self.endpoints.refresh(links_changed, now)?;
        if links_changed {
            self.attached = self.kernel.attached()?.into_iter().collect();
        }
        // Without a state there is nothing to plan: what the kernel holds is an earlier agent's and stays.
        if !changed || !self.planned || self.broken.is_some() {
            return Ok(());
        }
        let ops = self.planner.plan_delta(&Delta::default(), &self.endpoints.local())?;
        self.carry_out(ops)?;
        self.attach_devices()
    }
}

/// A planner for what the kernel holds.
fn adopt(node: &str, kernel: &Kernel, names: &Names) -> Result<(Planner, Mirror), KernelError> {
    let dump = kernel.dump()?;
    names.adopt(&dump);
    let (planner, problems) = Planner::adopt(node, Limits::default(), &dump);
    for problem in problems {
        tracing::warn!("adopting the maps: {problem}");
    }
    Ok((planner, Mirror::of(&dump)))
}
