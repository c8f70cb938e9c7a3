//! Where measurements happen: namespaces of our own, a pair of devices, one CPU. All of it goes with the process.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    net::{AddressFamily, SocketType, netdevice::name_to_index, socket},
    thread::{CpuSet, UnshareFlags, sched_getaffinity, sched_getcpu, sched_setaffinity, unshare_unsafe},
};

/// The host-side device of the endpoint that is measured.
const DEVICE: &str = "bench0";
/// Its other end.
const OTHER_END: &str = "bench1";

/// A place to measure at.
pub(crate) struct Place {
    /// Index of the endpoint's device, which programs see as where a packet came by.
    pub(crate) ifindex: u32,
    /// A folder on a bpffs that only this process sees.
    pub(crate) bpffs: PathBuf,
    /// The CPU everything runs on.
    pub(crate) cpu: usize,
}

/// Why there can be no place here; `None` when there can.
pub(crate) fn obstacle() -> Option<&'static str> {
    (!rustix::process::geteuid().is_root()).then_some("not root, and loading kernel programs needs CAP_BPF")
}

impl Place {
    /// Moves this process, which must have one thread, into namespaces of its own and makes the devices.
    pub(crate) fn new() -> Result<Self> {
        own_namespaces().context("making a network and a mount namespace")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .context("keeping mounts to ourselves")?;
        let bpffs = std::env::temp_dir();
        // In our own mount namespace, so that the folder is covered for us alone and nothing is left behind.
        mount("bench", &bpffs, "bpf", MountFlags::empty(), Some(c"mode=0700"))
            .with_context(|| format!("mounting a bpffs over {}", bpffs.display()))?;
        let status = Command::new("ip")
            .args(["link", "add", DEVICE, "type", "veth", "peer", "name", OTHER_END])
            .status()
            .context("running ip, which iproute2 has")?;
        if !status.success() {
            bail!("`ip link add {DEVICE}`: {status}");
        }
        let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None).context("opening a socket")?;
        let ifindex = name_to_index(&any, DEVICE).with_context(|| format!("asking for the index of {DEVICE}"))?;
        Ok(Self {
            ifindex,
            bpffs,
            cpu: stay_on_one_cpu()?,
        })
    }
}

#[expect(
    unsafe_code,
    reason = "unshare is unsafe for the sake of a flag that is not used here"
)]
fn own_namespaces() -> rustix::io::Result<()> {
    // SAFETY: only unsharing the descriptor table could break others' descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
}

/// Ties this thread to the CPU it is on: what is measured would otherwise move, and find cold caches.
fn stay_on_one_cpu() -> Result<usize> {
    let cpu = sched_getcpu();
    let allowed = sched_getaffinity(None).context("asking for the allowed CPUs")?;
    let mut one = CpuSet::new();
    if allowed.is_set(cpu) {
        one.set(cpu);
        sched_setaffinity(None, &one).with_context(|| format!("staying on CPU {cpu}"))?;
    }
    Ok(cpu)
}
