//! Nodes: each is a process tree in namespaces of its own, with its own cgroups, which dies as a whole.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{Cluster, network, process, template, write};
use crate::paths;

const START_WITHIN: Duration = Duration::from_mins(2);
const END_WITHIN: Duration = Duration::from_secs(30);
const CGROUPS: &str = "/sys/fs/cgroup";
/// Debian's containernetworking-plugins.
const CNI_BIN: &str = "/usr/lib/cni";

/// Starts a node and waits until its kubelet has been started.
pub(super) fn start(cluster: &Cluster, number: usize, proxy: &str) -> Result<()> {
    let node = format!("n{number}");
    let own = cluster.state.join(&node);
    fs::create_dir_all(own.join("cni")).with_context(|| format!("creating {}", own.display()))?;
    let [pod4, pod6] = network::pod_networks(number);
    let state = cluster.state.to_string_lossy();
    let values = [
        ("NODE", node.as_str()),
        ("STATE", state.as_ref()),
        ("POD4", pod4.as_str()),
        ("POD6", pod6.as_str()),
    ];
    write(&own.join("kubelet.yaml"), &template("kubelet.yaml", &values)?)?;
    write(&own.join("containerd.toml"), &template("containerd.toml", &values)?)?;
    // On the node's disk: an agent that enters itself here finds its entry again after a reboot.
    let conflist = own.join("cni/10-bridge.conflist");
    if !conflist.exists() {
        write(&conflist, &template("10-bridge.conflist", &values)?)?;
    }
    write(&own.join("resolv.conf"), "")?;
    make_cgroups(&node)?;
    let mut command = network::enter(&network::namespace(number));
    command
        .args([
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ])
        .arg(paths::root().join("testbed/kube/node/start.sh"))
        .env("NODE", &node)
        .env("STATE", &cluster.state)
        .env("BIN", cluster.binaries.bin())
        .env("CNI_BIN", CNI_BIN)
        .env("NODE_IPS", network::addresses(number).join(","))
        .env("CLUSTER_CIDR", network::POD_NETWORKS)
        .env("PROXY_MODE", proxy);
    let log = own.join("start.log");
    let file = cluster.state.join(format!("{node}.pid"));
    process::start(&mut command, &log, &file)?;
    let mut died = false;
    process::wait_until(&format!("node {node} to start"), START_WITHIN, || {
        died = process::alive(&file).is_none();
        died || fs::read_to_string(&log).is_ok_and(|text| text.contains("node is up"))
    })?;
    if died {
        bail!(
            "node {node} ended: {}",
            fs::read_to_string(&log).unwrap_or_default().trim()
        );
    }
    Ok(())
}

/// Waits until all nodes have registered, and gives each the pod networks that its CNI configuration has.
pub(super) fn wait_registered(cluster: &Cluster) -> Result<()> {
    for number in 1..=cluster.nodes {
        let node = format!("n{number}");
        cluster.wait_until(&format!("node {node} to register"), |cluster| {
            cluster.kubectl_ok(&["get", "node", &node, "--output=name"]).is_ok()
        })?;
        let networks = network::pod_networks(number);
        let patch = serde_json::json!({"spec": {"podCIDR": networks[0], "podCIDRs": networks}}).to_string();
        cluster.kubectl_ok(&["patch", "node", &node, "--patch", &patch])?;
    }
    Ok(())
}

/// Process 1 of a node, as the machine numbers it.
pub(crate) fn process_of(state: &Path, number: usize) -> Option<u32> {
    process::child_of(process::alive(&state.join(format!("n{number}.pid")))?)
}

/// A command that prints the process id for `nsenter`.
pub(super) fn pid_hint(state: &Path) -> String {
    format!("pgrep -P $(cut -d' ' -f1 {}/n1.pid)", state.display())
}

/// A program inside a node: its files, its network, its processes.
pub(crate) fn inside(cluster: &Cluster, number: usize, program: &Path) -> Result<Command> {
    let id = process_of(&cluster.state, number).with_context(|| format!("node n{number} does not run"))?;
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &id.to_string(), "--mount", "--net", "--pid", "--uts"])
        .arg(program);
    Ok(command)
}

/// Kills all nodes at once, then waits for them and removes their cgroups.
pub(super) fn end_all(state: &Path, nodes_max: usize) -> Result<()> {
    for number in 1..=nodes_max {
        kill(state, number)?;
    }
    (1..=nodes_max).try_for_each(|number| ended(state, number))
}

/// Takes a node's power away and starts it again: its processes, pods, devices and kernel programs are gone, its disk is not.
pub(crate) fn reboot(cluster: &Cluster, number: usize) -> Result<()> {
    kill(&cluster.state, number)?;
    ended(&cluster.state, number)?;
    network::renew(number, cluster.nodes)?;
    start(cluster, number, &cluster.proxy)
}

/// Kills a node's first process, not the one that waits for it: the kernel then ends the whole namespace.
fn kill(state: &Path, number: usize) -> Result<()> {
    process_of(state, number).map_or(Ok(()), |id| process::kill(id, "KILL"))
}

/// Waits until nothing of a killed node runs, and removes its cgroups.
fn ended(state: &Path, number: usize) -> Result<()> {
    let node = format!("n{number}");
    let file = state.join(format!("{node}.pid"));
    process::wait_until(&format!("the end of node {node}"), END_WITHIN, || {
        process::alive(&file).is_none()
    })?;
    process::wait_until(&format!("the cgroups of node {node} to empty"), END_WITHIN, || {
        cgroups_of(&node)
            .iter()
            .filter(|path| path.exists())
            .all(|path| remove_cgroup(path))
    })
}

/// A node's cgroup in each hierarchy: one each with version 1, a single one with version 2.
fn cgroups_of(node: &str) -> Vec<PathBuf> {
    let name = format!("bk-{node}");
    let mut roots: Vec<PathBuf> = fs::read_dir(CGROUPS)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.join("cgroup.procs").exists() && path.join("cgroup.clone_children").exists()
                || path.ends_with("unified")
        })
        .collect();
    if Path::new(CGROUPS).join("cgroup.procs").exists() {
        roots = vec![CGROUPS.into()];
    }
    roots.into_iter().map(|root| root.join(&name)).collect()
}

/// Makes a node's cgroups afresh: a node that was rebooted has no old ones, and kubelet stumbles over them.
fn make_cgroups(node: &str) -> Result<()> {
    for path in cgroups_of(node) {
        if path.exists() && !remove_cgroup(&path) {
            bail!("{} is left of an earlier node and still in use", path.display());
        }
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        // Version 1 gives a new cpuset nothing, and no process can enter it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let above = path.with_file_name(file);
            if above.exists() {
                let text = fs::read_to_string(&above).with_context(|| format!("reading {}", above.display()))?;
                write(&path.join(file), &text)?;
            }
        }
    }
    Ok(())
}

/// Removes a cgroup with all below it; false while a process is in one.
fn remove_cgroup(path: &Path) -> bool {
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if !remove_cgroup(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(path).is_ok()
}
