//! The cluster's wires: a namespace for the control plane with a bridge in it, one for each node, both address families.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::process::output_of;

/// The control plane's namespace; it holds the bridge.
pub(super) const CONTROL: &str = "bk-cp";
/// Where the API server is for nodes and pods.
pub(super) const CONTROL_ADDRESS: &str = "10.200.0.1";
/// All pods' networks.
pub(super) const POD_NETWORKS: &str = "10.244.0.0/16,fd00:244::/32";
/// All Services' networks.
pub(super) const SERVICE_NETWORKS: &str = "10.96.0.0/16,fd00:96::/112";

/// The namespace of a node.
pub(super) fn namespace(number: usize) -> String {
    format!("bk-n{number}")
}

/// Addresses of a node, IPv4 first.
pub(super) fn addresses(number: usize) -> [String; 2] {
    [format!("10.200.0.1{number}"), format!("fd00:200::1{number}")]
}

/// Networks of a node's pods, IPv4 first.
pub(super) fn pod_networks(number: usize) -> [String; 2] {
    [format!("10.244.{number}.0/24"), format!("fd00:244:{number}::/64")]
}

/// The file of a namespace.
pub(super) fn path(namespace: &str) -> String {
    format!("/run/netns/{namespace}")
}

/// True when there is something to remove.
pub(super) fn exists() -> bool {
    Path::new(&path(CONTROL)).exists()
}

/// Makes namespaces, wires and routes.
pub(super) fn make(nodes: usize) -> Result<()> {
    add(CONTROL)?;
    ip(CONTROL, "link add br0 type bridge")?;
    ip(CONTROL, &format!("addr add {CONTROL_ADDRESS}/24 dev br0"))?;
    ip(CONTROL, "addr add fd00:200::1/64 dev br0 nodad")?;
    ip(CONTROL, "link set br0 up")?;
    for number in 1..=nodes {
        make_node(number)?;
    }
    for from in (1..=nodes).map(namespace).chain([CONTROL.to_owned()]) {
        make_routes(&from, nodes)?;
    }
    Ok(())
}

/// A node's namespace and its wire to the bridge.
fn make_node(number: usize) -> Result<()> {
    let node = namespace(number);
    add(&node)?;
    ip(
        CONTROL,
        &format!("link add v{number} type veth peer name eth0 netns {node}"),
    )?;
    ip(CONTROL, &format!("link set v{number} master br0 up"))?;
    let [ipv4, ipv6] = addresses(number);
    ip(&node, &format!("addr add {ipv4}/24 dev eth0"))?;
    ip(&node, &format!("addr add {ipv6}/64 dev eth0 nodad"))?;
    ip(&node, "link set eth0 up")?;
    ip(&node, &format!("route add default via {CONTROL_ADDRESS}"))?;
    ip(&node, "-6 route add default via fd00:200::1")?;
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        inside(&node, &["sysctl", "-qw", setting])?;
    }
    Ok(())
}

/// Routes from a namespace to the pods of all other nodes.
fn make_routes(from: &str, nodes: usize) -> Result<()> {
    for to in (1..=nodes).filter(|to| namespace(*to) != from) {
        for (network, address) in pod_networks(to).iter().zip(addresses(to)) {
            ip(from, &format!("route add {network} via {address}"))?;
        }
    }
    Ok(())
}

/// A node's namespace afresh, as a machine has it that was switched off and on: no device, rule or route of before is left.
pub(super) fn renew(number: usize, nodes: usize) -> Result<()> {
    output_of(Command::new("ip").args(["netns", "del", &namespace(number)]))?;
    // The bridge's end of the wire goes with the other one, but not at once.
    let device = format!("v{number}");
    let gone = || output_of(Command::new("ip").args(["-n", CONTROL, "link", "show", &device])).is_err();
    super::process::wait_until("the node's wire to go", super::READY_WITHIN, gone)?;
    make_node(number)?;
    make_routes(&namespace(number), nodes)
}

/// Removes the namespaces, and with them all that is in them.
pub(super) fn remove(nodes_max: usize) -> Result<()> {
    for name in (1..=nodes_max).map(namespace).chain([CONTROL.to_owned()]) {
        if Path::new(&path(&name)).exists() {
            output_of(Command::new("ip").args(["netns", "del", &name]))?;
        }
    }
    Ok(())
}

fn add(name: &str) -> Result<()> {
    output_of(Command::new("ip").args(["netns", "add", name]))?;
    ip(name, "link set lo up")
}

fn ip(namespace: &str, arguments: &str) -> Result<()> {
    output_of(Command::new("ip").args(["-n", namespace]).args(arguments.split(' '))).map(drop)
}

/// Runs a program inside. Not by `ip netns exec`: that mounts a new /sys, which has no cgroups.
fn inside(namespace: &str, arguments: &[&str]) -> Result<()> {
    let mut command = enter(namespace);
    output_of(command.args(arguments)).map(drop)
}

/// `nsenter` into a network namespace; the program is still to be added.
pub(super) fn enter(namespace: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", path(namespace)));
    command
}
