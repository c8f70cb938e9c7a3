//! Watches a folder of manifests: looks again when the kernel says that something changed, and every now and then anyway,
//! because some changes (behind a symbolic link, on a network file system) are told by nobody.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;

use super::{Batch, folder::Folder};

/// A burst of changes (an editor's rename, kubelet's swap, `kubectl get > file`) is one batch when it pauses so long …
const QUIET: Duration = Duration::from_millis(20);
/// … or has lasted so long.
const BURST_MAX: Duration = Duration::from_millis(500);
/// Between looks that nothing asked for.
const RESCAN: Duration = Duration::from_secs(2);

/// Something may have changed.
#[derive(Debug)]
struct Changed;

/// Watches one folder.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    wake: SyncSender<Changed>,
    woken: Receiver<Changed>,
}

impl Files {
    /// A watch of a folder, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        let (wake, woken) = sync_channel(1);
        Self {
            path: path.to_owned(),
            wake,
            woken,
        }
    }

    /// Watches until nobody takes batches any more, which it notices at its next look. The first batch is everything there
    /// is. Blocks.
    pub fn run(self, batches: &mpsc::Sender<Batch>) {
        let mut folder = Folder::new(&self.path);
        let mut watch = Watch::default();
        while !batches.is_closed() {
            // The watch comes before the look, so that no change falls between.
            watch.renew(&self.path, &self.wake);
            if let Some(batch) = folder.scan()
                && batches.blocking_send(batch).is_err()
            {
                return;
            }
            if let Ok(Changed) = self.woken.recv_timeout(RESCAN) {
                self.until_quiet();
            }
        }
    }

    fn until_quiet(&self) {
        let begin = Instant::now();
        while begin.elapsed() < BURST_MAX && self.woken.recv_timeout(QUIET).is_ok() {}
    }
}

/// The kernel's watch, of the folder that had the path when it was made.
#[derive(Default)]
struct Watch {
    watcher: Option<RecommendedWatcher>,
    folder: Option<(u64, u64)>,
    complained: bool,
}

impl Watch {
    /// Makes the watch anew when the path leads to another folder than before.
    fn renew(&mut self, path: &Path, wake: &SyncSender<Changed>) {
        let folder = fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        if folder.is_some() && folder == self.folder {
            return;
        }
        self.watcher = None;
        self.folder = folder;
        if folder.is_none() {
            return;
        }
        match watcher(path, wake.clone()) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => {
                // Tried again at the next look.
                self.folder = None;
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(
                        folder = %path.display(), %error,
                        "no change notification for the folder of manifests; looking every {} s instead", RESCAN.as_secs()
                    );
                }
            }
        }
    }
}

fn watcher(path: &Path, wake: SyncSender<Changed>) -> io::Result<RecommendedWatcher> {
    let told = move |event: notify::Result<notify::Event>| {
        // Our own reading must not wake us; a lost or failed notification must.
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let reading = event
            .as_ref()
            .is_ok_and(|event| event.kind.is_access() && event.kind != written);
        if !reading {
            // Full: a look is due already.
            drop(wake.try_send(Changed));
        }
    };
    let mut watcher = notify::recommended_watcher(told).map_err(io::Error::other)?;
    watcher
        .watch(path, RecursiveMode::Recursive)
        .map_err(io::Error::other)?;
    Ok(watcher)
}
