//! The folder that keeps maps and links alive without us: a mounted bpffs, a folder per layout version, and the lock
//! that makes one agent its only owner.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use bulkhead_verdict::layout::LAYOUT;
use rustix::mount::MountFlags;

use super::KernelError;

/// `BPF_FS_MAGIC` of the kernel's uapi/linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

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
        let links = folder.join("links");
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
