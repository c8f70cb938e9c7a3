//! The control plane: one process that looks after etcd, API server, controllers and scheduler, and a loopback port to it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Cluster, network, process, write};

const READY_WITHIN: Duration = Duration::from_mins(3);

/// Starts the control plane, waits until the API server is ready, and opens the loopback port.
pub(super) fn start(cluster: &Cluster) -> Result<()> {
    let state = &cluster.state;
    let program = cluster.binaries.program("kube-testbed");
    let certificates: Vec<String> = (1..=cluster.nodes)
        .map(|number| format!("n{number}={}", network::addresses(number).join("+")))
        .collect();
    let mut command = network::enter(network::CONTROL);
    command
        .arg(&program)
        .arg("up")
        .arg("-dir")
        .arg(state)
        .args(["-bind", "0.0.0.0", "-advertise", network::CONTROL_ADDRESS])
        .args(["-with", "kcm,sched", "-nodes", &certificates.join(",")])
        // Nodes' networks follow from their numbers; the controllers would give them out in the order of arrival.
        .args(["-service-cidr", network::SERVICE_NETWORKS, "-pod-cidr", ""]);
    let log = state.join("control-plane.log");
    let file = state.join("control-plane.pid");
    process::start(&mut command, &log, &file)?;
    let mut died = false;
    process::wait_until("the API server", READY_WITHIN, || {
        died = process::alive(&file).is_none();
        died || fs::read_to_string(&log).is_ok_and(|text| text.contains("ready in"))
    })?;
    if died {
        anyhow::bail!(
            "the control plane ended: {}",
            fs::read_to_string(&log).unwrap_or_default().trim()
        );
    }
    // kubectl and tests run outside of the namespace: a kubeconfig that names a loopback port.
    let api = format!("{}:6443", network::CONTROL_ADDRESS);
    let listen = forward(state, "forward", &program, &api)?;
    let inside = fs::read_to_string(state.join("pki/admin.kubeconfig")).context("reading the admin's kubeconfig")?;
    write(&state.join("kubeconfig"), &inside.replace(&api, &listen.to_string()))
}

/// Opens a loopback port to an address in the control plane's namespace; `name` is that of its log and its process file.
pub(super) fn forward(state: &Path, name: &str, program: &Path, to: &str) -> Result<SocketAddr> {
    // Free now; nothing else on this machine picks ports so fast that it would not be a moment later.
    let listen = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .context("finding a free port")?;
    let mut command = Command::new(program);
    command
        .args(["forward", "-listen", &listen.to_string(), "-to", to])
        .args(["-netns", &network::path(network::CONTROL)]);
    let file = |kind: &str| state.join(format!("{name}.{kind}"));
    process::start(&mut command, &file("log"), &file("pid"))?;
    process::wait_until("the loopback port", READY_WITHIN, || {
        std::net::TcpStream::connect(listen).is_ok()
    })?;
    Ok(listen)
}

/// True while the control plane runs.
pub(super) fn is_alive(state: &Path) -> bool {
    process::alive(&state.join("control-plane.pid")).is_some()
}

/// Ends the control plane; etcd and the others go with it.
pub(super) fn end(state: &Path) -> Result<()> {
    process::end(&state.join("forward.pid"), "TERM")?;
    process::end(&state.join("control-plane.pid"), "TERM")
}
