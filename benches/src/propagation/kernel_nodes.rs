//! Nodes whose agent is the shipped program with maps in this kernel, in a network namespace with a device for each of their pods.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use bulkhead_testbed::{
    namespace::{Namespace, name_of},
    sys,
    testnet::binary,
};
use rustix::process::{Pid, Signal, kill_process};

/// A node's agent, and the place it runs in. All of it goes away when dropped.
pub(crate) struct KernelNode {
    agent: Child,
    _bpffs: Mounted,
    _namespace: Namespace,
    /// Where the other ends of the devices are: one for all pods, nothing runs in it.
    _pods: Namespace,
}

impl KernelNode {
    /// Starts the agent of `node`, which has pods behind `devices`, in a folder of its own.
    pub(crate) fn start(node: &str, devices: &[String], controller: &Path, folder: &Path) -> Result<Self> {
        let run = std::process::id().to_string();
        let namespace = Namespace::create(&name_of(&run, node))?;
        let pods = Namespace::create(&name_of(&run, &format!("{node}-pods")))?;
        let there = pods.name();
        let links = devices.iter().map(|device| {
            format!("link add {device} type veth peer name {device} netns {there}\nlink set {device} up\n")
        });
        namespace.ip(&links.collect::<String>())?;
        let bpffs = folder.join("bpf");
        fs::create_dir_all(&bpffs).with_context(|| format!("making {}", bpffs.display()))?;
        sys::mount_bpffs(&bpffs).with_context(|| format!("mounting a bpf file system on {}", bpffs.display()))?;
        let mounted = Mounted(bpffs.clone());
        let log = fs::File::create(folder.join("agent.log")).context("the agent's log")?;
        let mut command: Command = namespace.command(binary("bulkhead-agent")?)?;
        let agent = command
            .env("NO_COLOR", "1")
            .args(["--node", node])
            .arg("--controller")
            .arg(format!("unix:{}", controller.display()))
            .arg("--socket")
            .arg(folder.join("agent.sock"))
            .arg("--bpffs")
            .arg(&bpffs)
            .arg("--state-dir")
            .arg(folder.join("state"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the agent")?;
        Ok(Self {
            agent,
            _bpffs: mounted,
            _namespace: namespace,
            _pods: pods,
        })
    }

    /// The agent's process.
    pub(crate) fn pid(&self) -> u32 {
        self.agent.id()
    }
}

/// A mounted file system, unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(sys::unmount(&self.0));
    }
}

impl Drop for KernelNode {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.agent.id()).ok().and_then(Pid::from_raw)
            && kill_process(pid, Signal::KILL).is_ok()
        {
            drop(self.agent.wait());
        }
    }
}
