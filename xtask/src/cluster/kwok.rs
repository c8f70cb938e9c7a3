//! Nodes that exist in the API only: kwok says of them, and of every pod that is bound to one, what a kubelet would say.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, process};
use crate::{
    paths,
    run::{self, paint},
};

/// What kwok knows its nodes by.
const ANNOTATION: &str = "kwok.x-k8s.io/node";

/// Starts kwok and makes so many nodes. Pods come to them by `nodeName` or by tolerating the taint.
pub(super) fn start(cluster: &Cluster, count: usize) -> Result<()> {
    let mut command = Command::new(cluster.binaries.program("kwok"));
    command
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .arg("--config")
        .arg(paths::root().join("testbed/kube/kwok.yaml"))
        // A node that says nothing for so long is not ready any more, for kube-controller-manager.
        .args(["--manage-all-nodes=false", "--node-lease-duration-seconds=40"])
        .args(["--manage-nodes-with-annotation-selector", &format!("{ANNOTATION}=fake")]);
    process::start(
        &mut command,
        &cluster.state.join("kwok.log"),
        &cluster.state.join("kwok.pid"),
    )?;
    let nodes: Vec<Value> = (1..=count).map(node).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": nodes}).to_string();
    let mut kubectl = cluster
        .kubectl(&["create", "--filename=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting kubectl")?;
    if let Some(mut input) = kubectl.stdin.take() {
        input.write_all(list.as_bytes()).context("writing to kubectl")?;
    }
    ensure!(
        kubectl.wait().context("waiting for kubectl")?.success(),
        "kubectl did not make the nodes"
    );
    cluster.wait_until("kwok to make its nodes ready", |cluster| {
        let arguments = [
            "get",
            "nodes",
            "--selector=type=kwok",
            "--output=jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}",
        ];
        let said = cluster.kubectl_ok(&arguments).unwrap_or_default();
        said.split_whitespace().filter(|status| *status == "True").count() == count
    })?;
    println!("{} {count} nodes of kwok", paint(run::GREEN, "✓"));
    Ok(())
}

/// Ends kwok.
pub(super) fn end(state: &Path) -> Result<()> {
    process::end(&state.join("kwok.pid"), "TERM")
}

fn node(number: usize) -> Value {
    let name = format!("kwok-{number}");
    let networks = [
        format!("10.{}.{}.0/24", 128 + (number >> 8), number & 255),
        format!("fd00:128:{number:x}::/64"),
    ];
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "annotations": {ANNOTATION: "fake"},
            "labels": {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        // Nothing is bound to them that does not ask for it. The real nodes' pods are in 10.244.0.0/16.
        "spec": {"podCIDR": networks[0], "podCIDRs": networks, "taints": [{"key": ANNOTATION, "value": "fake", "effect": "NoSchedule"}]},
    })
}
