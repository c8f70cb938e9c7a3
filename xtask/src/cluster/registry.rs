//! The cluster's registry: nodes pull from it by the control plane's address, the machine reaches it over a loopback port. Plain
//! HTTP, on wires of its own.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{Cluster, control, network, process, write};

const PORT: u16 = 5000;

/// As images in it are called: `<here>/<name>:<tag>`.
pub(crate) fn host() -> String {
    format!("{}:{PORT}", network::CONTROL_ADDRESS)
}

/// Starts it, and opens the loopback port.
pub(super) fn start(cluster: &Cluster) -> Result<()> {
    let own = cluster.state.join("registry");
    let hosts = own.join("hosts").join(host());
    for folder in [&hosts, &own.join("data")] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    // What containerd reads of a registry that speaks no TLS.
    write(&hosts.join("hosts.toml"), &format!("server = \"http://{}\"\n", host()))?;
    let config = serde_json::json!({
        "version": "0.1", "log": {"level": "warn"}, "http": {"addr": host()},
        "storage": {"filesystem": {"rootdirectory": own.join("data")}, "delete": {"enabled": true}},
    });
    // JSON is YAML.
    write(&own.join("config.yaml"), &config.to_string())?;
    let mut command = network::enter(network::CONTROL);
    command
        .arg(cluster.binaries.program("registry"))
        .arg("serve")
        .arg(own.join("config.yaml"));
    process::start(&mut command, &own.join("log"), &own.join("pid"))?;
    let address = control::forward(
        &cluster.state,
        "registry/forward",
        &cluster.binaries.program("kube-testbed"),
        &host(),
    )?;
    write(&own.join("address"), &address.to_string())
}

/// Where it is for programs outside of the cluster's namespaces.
pub(super) fn address(state: &Path) -> Option<String> {
    fs::read_to_string(state.join("registry/address")).ok()
}

/// Ends it.
pub(super) fn end(state: &Path) -> Result<()> {
    process::end(&state.join("registry/forward.pid"), "TERM")?;
    process::end(&state.join("registry/pid"), "TERM")
}
