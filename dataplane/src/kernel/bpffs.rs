//! The folder that keeps maps and links alive without us: a mounted bpffs, a folder per layout version, and the lock
//! that makes one agent its only owner.

use std::{
    fs::{self, DirBuilder, File},
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use bulkhead_verdict::layout::LAYOUT;
use rustix::mount::{MountFlags, UnmountFlags};

use super::{KernelError, programs, programs::Leads, uplink};

/// `BPF_FS_MAGIC` of the kernel's uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Folder of pinned links inside a layout's folder.
const LINKS: &str = "links";

/// The pins of this build's layout, held by us alone.
#[derive(Debug)]
pub(crate) struct Pins {
    /// Maps.
    pub(crate) folder: PathBuf,
    /// Links, `<ifindex>-from` and `<ifindex>-to`.
    pub(crate) links: PathBuf,
    /// Released by the kernel when we end, however we end.
    _lock: File,
}

impl Pins {
    /// Mounts a bpffs at `bpffs` unless there is one, makes the folders and takes the lock.
    pub(crate) fn open(bpffs: &Path) -> Result<Self, KernelError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| KernelError::Pin { path, source }
        };
        let private = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed(path))
        };
        private(bpffs)?;
        mount(bpffs)?;
        // A bpffs refuses dots in names.
        let folder = bpffs.join(format!("v{}", LAYOUT.replace('.', "-")));
        let links = folder.join(LINKS);
        private(&links)?;
        // The lock is on the folder itself: it goes where the pins go and leaves no file behind.
        let lock = File::open(&folder).map_err(failed(&folder))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                folder,
                links,
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(KernelError::Locked { folder }),
            Err(fs::TryLockError::Error(source)) => Err(KernelError::Pin { path: folder, source }),
        }
    }
}

impl Pins {
    /// Takes the programs of agents with another layout off a device that carries ours: until then both judged its packets, so none
    /// was ever unjudged. What judges no device any more is removed whole.
    pub(crate) fn succeed(&self, ifindex: u32) -> Result<(), KernelError> {
        let Some(bpffs) = self.folder.parent() else {
            return Ok(());
        };
        for entry in fs::read_dir(bpffs).map_err(failed(bpffs))? {
            let folder = entry.map_err(failed(bpffs))?.path();
            if folder == self.folder || !is_layout(&folder) {
                continue;
            }
            let lock = File::open(&folder).map_err(failed(&folder))?;
            if lock.try_lock().is_err() {
                tracing::warn!(
                    pins = %folder.display(),
                    "an agent of another version is running and judges this node's packets as well; end one of the two"
                );
                continue;
            }
            let links = folder.join(LINKS);
            programs::detach(&links, ifindex, Leads::In)?;
            if programs::attached(&links, Leads::In)?.is_empty() && programs::attached(&links, Leads::Out)?.is_empty() {
                remove_all(&folder)?;
                tracing::info!(pins = %folder.display(), "the last device was taken over from an agent of another layout");
            }
        }
        Ok(())
    }
}

/// Only what has our shape: `v<layout>` with links inside.
fn is_layout(folder: &Path) -> bool {
    let name = folder.file_name().map(|name| name.to_string_lossy().starts_with('v'));
    name == Some(true) && folder.join(LINKS).is_dir()
}

/// What agents of any layout left pinned in a bpffs folder, locked against every agent.
#[derive(Debug)]
pub(crate) struct Leftovers {
    bpffs: PathBuf,
    /// Folders and their locks.
    folders: Vec<(PathBuf, File)>,
}

impl Leftovers {
    /// Finds and locks them; nothing is made or mounted.
    pub(crate) fn lock(bpffs: &Path) -> Result<Self, KernelError> {
        let mut folders = Vec::new();
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| KernelError::Pin { path, source }
        };
        let entries = match fs::read_dir(bpffs) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            entries => Some(entries.map_err(failed(bpffs))?),
        };
        for entry in entries.into_iter().flatten() {
            let folder = entry.map_err(failed(bpffs))?.path();
            if !is_layout(&folder) {
                continue;
            }
            let lock = File::open(&folder).map_err(failed(&folder))?;
            match lock.try_lock() {
                Ok(()) => folders.push((folder, lock)),
                Err(fs::TryLockError::WouldBlock) => return Err(KernelError::Locked { folder }),
                Err(fs::TryLockError::Error(source)) => return Err(KernelError::Pin { path: folder, source }),
            }
        }
        Ok(Self {
            bpffs: bpffs.to_path_buf(),
            folders,
        })
    }

    /// Removes every pin: a link without one lets go of its device, and a map that no program holds is gone. Gives the
    /// number of devices that were judged, and of pins.
    pub(crate) fn remove(self) -> Result<(usize, usize), KernelError> {
        let (mut devices, mut pins) = (0, 0);
        for (folder, _) in &self.folders {
            let (their_devices, their_pins) = remove_all(folder)?;
            devices += their_devices;
            pins += their_pins;
        }
        match fs::remove_dir(&self.bpffs) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => unmount(&self.bpffs)?,
            // Others keep theirs there, or it was never made.
            _ => {}
        }
        Ok((devices, pins))
    }
}

/// Removes every pin in a layout's folder, and the folder; the number of devices that were judged, and of pins.
fn remove_all(folder: &Path) -> Result<(usize, usize), KernelError> {
    let links = folder.join(LINKS);
    let devices = programs::attached(&links, Leads::In)?.len() + programs::attached(&links, Leads::Out)?.len();
    let (uplinks, mut pins) = uplink::remove(folder)?;
    // Links first: a program never runs without the maps' names being there for who looks.
    for place in [links.as_path(), folder] {
        for entry in fs::read_dir(place).map_err(failed(place))? {
            let path = entry.map_err(failed(place))?.path();
            if !path.is_dir() {
                fs::remove_file(&path).map_err(failed(&path))?;
                pins += 1;
            }
        }
        fs::remove_dir(place).map_err(failed(place))?;
    }
    Ok((devices + uplinks, pins))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> KernelError + use<> {
    let path = path.to_path_buf();
    move |source| KernelError::Pin { path, source }
}

/// Takes a bpffs of our own away, with its folder.
fn unmount(bpffs: &Path) -> Result<(), KernelError> {
    let failed = |source| KernelError::Pin {
        path: bpffs.to_path_buf(),
        source,
    };
    // Detached: we hold the locks of folders in it open ourselves.
    rustix::mount::unmount(bpffs, UnmountFlags::DETACH).map_err(|error| failed(error.into()))?;
    fs::remove_dir(bpffs).map_err(failed)
}

fn mount(bpffs: &Path) -> Result<(), KernelError> {
    let failed = |error: rustix::io::Errno| KernelError::Mount {
        path: bpffs.to_path_buf(),
        source: error.into(),
    };
    let found = rustix::fs::statfs(bpffs).map_err(failed)?;
    if u64::try_from(found.f_type).is_ok_and(|magic| magic & 0xffff_ffff == BPF_FS_MAGIC) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bulkhead", bpffs, "bpf", flags, Some(c"mode=0700")).map_err(failed)
}
