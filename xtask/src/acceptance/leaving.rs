//! The scenes of a person who tries the installation and takes it off again: `bulkhead connectivity test`, `helm uninstall`.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Options,
    pods::{Bed, wait_until},
};
use crate::{
    cluster::{Cluster, nodes},
    conformance::NAMESPACE,
    paths,
    run::{self, step},
};

/// Kernel programs of ours, by the name the kernel keeps.
const PROGRAMS: [&str; 2] = ["from_pod", "to_pod"];

/// The command a person would run; what it says last.
pub(super) fn connectivity(cluster: &Cluster, _: &Options) -> Result<String> {
    step(
        "build bulkhead",
        &mut run::cargo(&["build", "--package", "bulkhead-cli", "--bin", "bulkhead"]),
    )?;
    let output = Command::new(paths::target().join("debug/bulkhead"))
        .args(["connectivity", "test", "--output", "json"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .output()
        .context("starting bulkhead")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_str(&text).with_context(|| format!("reading {text:?}"))?;
    let steps = report["steps"].as_array().context("no steps")?;
    let checked: u64 = steps.iter().filter_map(|step| step["connections"].as_u64()).sum();
    ensure!(checked > 0, "nothing was checked: {text}");
    Ok(format!("{} steps, {checked} connections as expected", steps.len()))
}

/// After `helm uninstall` nothing of ours is on the nodes or in the API, and who was denied is let in: no program is left.
pub(super) fn uninstall(cluster: &Cluster, _: &Options) -> Result<String> {
    let bed = Bed::new(cluster, "leaving")?;
    bed.apply(&[
        bed.server("server", "server", 1),
        bed.server("stranger", "stranger", 2),
        bed.only("server", None),
    ])?;
    bed.ready(&["server", "stranger"])?;
    let server = bed.address("server")?;
    wait_until("the policy", || {
        bed.reaches("stranger", &server).is_ok_and(|reached| !reached)
    })?;
    let before = traces(cluster)?;
    ensure!(
        before.len() >= 4 * cluster.nodes,
        "expected more of ours on the nodes than {before:?}"
    );

    let mut helm = Command::new(cluster.binaries.program("helm"));
    helm.args(["uninstall", "bulkhead", "--wait", "--namespace", NAMESPACE])
        .env("KUBECONFIG", cluster.kubeconfig());
    step("uninstall the chart", &mut helm)?;
    ensure!(
        bed.reaches("stranger", &server)?,
        "the stranger is denied still: a program is left"
    );
    let left = traces(cluster)?;
    ensure!(left.is_empty(), "left behind: {}", left.join("; "));
    // The plugin is out of the chain: a new pod starts.
    bed.apply(&[bed.server("late", "late", 2)])?;
    bed.ready(&["late"])?;
    Ok(format!("{} traces before, none after; a new pod starts", before.len()))
}

/// Everything of ours on the nodes, in the kernel and in the API, one a line.
fn traces(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in 1..=cluster.nodes {
        // The two folders of the node stay, as mounts of the cleaner; what is in them does not.
        let script = "find /sys/fs/bpf /run/bulkhead /var/lib/bulkhead /opt/cni/bin -mindepth 1 -path '*bulkhead/*' -o -name 'bulkhead*' -mindepth 1 \
                      | grep -v -e '^/run/bulkhead$' -e '^/var/lib/bulkhead$'; grep -ls bulkhead /etc/cni/net.d/*; \
                      ip -json route show table all | grep -o bulkhead; pgrep -a bulkhead; true";
        let mut command = nodes::inside(cluster, node, Path::new("sh"))?;
        let output = command.args(["-c", script]).output().context("looking at a node")?;
        let text = String::from_utf8_lossy(&output.stdout);
        found.extend(text.lines().map(|line| format!("n{node}: {line}")));
    }
    for program in PROGRAMS {
        let output = Command::new("bpftool").args(["prog", "show", "name", program]).output();
        let output = output.context("starting bpftool (Debian package bpftool)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        found.extend(text.lines().filter(|line| line.contains(" name ")).map(str::to_owned));
    }
    for kind in [
        "customresourcedefinitions",
        "validatingwebhookconfigurations",
        "clusterroles",
        "clusterrolebindings",
    ] {
        let names = cluster.kubectl_ok(&["get", kind, "--output=name"])?;
        let ours = |name: &&str| name.contains("bulkhead") || name.contains("clusternetworkpolicies");
        found.extend(names.lines().filter(ours).map(str::to_owned));
    }
    for kind in ["all", "secrets", "configmaps", "serviceaccounts", "leases", "roles"] {
        let names = cluster.kubectl_ok(&["--namespace", NAMESPACE, "get", kind, "--output=name"])?;
        found.extend(
            names
                .lines()
                .filter(|name| name.contains("bulkhead"))
                .map(str::to_owned),
        );
    }
    Ok(found)
}
