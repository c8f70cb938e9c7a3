//! Pods of a scene: made, awaited, asked, removed with their namespace.

use std::{
    io::Write,
    process::{Child, Stdio},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::{Cluster, process};

/// Serves HTTP, echoes, and plays every other role of `testbed-peer`.
const IMAGE: &str = "localhost/testbed-peer:dev";
/// Where servers listen.
pub(super) const PORT: u16 = 8080;

/// A namespace of a scene; everything in it goes with it.
pub(super) struct Bed<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) namespace: String,
}

impl<'a> Bed<'a> {
    /// A new namespace.
    pub(super) fn new(cluster: &'a Cluster, name: &str) -> Result<Self> {
        let namespace = format!("acceptance-{name}");
        cluster.kubectl_ok(&["delete", "namespace", &namespace, "--ignore-not-found"])?;
        cluster.kubectl_ok(&["create", "namespace", &namespace])?;
        Ok(Self { cluster, namespace })
    }

    /// Creates objects.
    pub(super) fn apply(&self, objects: &[Value]) -> Result<()> {
        apply(self.cluster, objects)
    }

    /// A pod with a role of `testbed-peer`; `app` is its label.
    pub(super) fn pod(&self, name: &str, app: &str, node: usize, arguments: &[&str]) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": app}},
            "spec": {
                "nodeName": format!("n{node}"), "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "peer", "image": IMAGE, "imagePullPolicy": "Never", "stdin": true, "args": arguments}],
            },
        })
    }

    /// A server.
    pub(super) fn server(&self, name: &str, app: &str, node: usize) -> Value {
        self.pod(
            name,
            app,
            node,
            &["serve", "--name", name, "--tcp", "8080", "--udp", "8080"],
        )
    }

    /// A NetworkPolicy that lets nobody to the pods of `app` but those of `from`.
    pub(super) fn only(&self, app: &str, from: Option<&str>) -> Value {
        let selects = |app: &str| json!({"matchLabels": {"app": app}});
        let ingress = from.map(|from| json!({"from": [{"podSelector": selects(from)}]}));
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": app, "namespace": self.namespace},
            "spec": {"podSelector": selects(app), "policyTypes": ["Ingress"], "ingress": ingress.into_iter().collect::<Vec<_>>()},
        })
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", self.namespace.as_str()];
        all.extend(arguments);
        self.cluster.kubectl_ok(&all)
    }

    /// Waits until pods are ready.
    pub(super) fn ready(&self, names: &[&str]) -> Result<()> {
        let names: Vec<String> = names.iter().map(|name| format!("pod/{name}")).collect();
        let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=120s"];
        arguments.extend(names.iter().map(String::as_str));
        self.kubectl(&arguments).map(drop)
    }

    /// The pods of a label: name, phase, first address.
    pub(super) fn pods(&self, selector: &str) -> Result<Vec<(String, String, Option<String>)>> {
        let text = self.kubectl(&["get", "pods", "--selector", selector, "--output=json"])?;
        let list: Value = serde_json::from_str(&text).context("reading pods")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|pod| {
                (
                    text(&pod["metadata"]["name"]),
                    text(&pod["status"]["phase"]),
                    pod["status"]["podIP"].as_str().map(str::to_owned),
                )
            })
            .collect())
    }

    /// The address of a pod.
    pub(super) fn address(&self, name: &str) -> Result<String> {
        let address = self.kubectl(&["get", "pod", name, "--output=jsonpath={.status.podIP}"])?;
        Ok(address.trim().to_owned())
    }

    /// What a pod printed.
    pub(super) fn output(&self, name: &str) -> Result<String> {
        self.kubectl(&["logs", name])
    }

    /// Whether a pod reaches an address on [`PORT`] with one new connection.
    pub(super) fn reaches(&self, from: &str, to: &str) -> Result<bool> {
        let mut knocking = self.start(from, &["knock", "--to", &format!("{to}:{PORT}"), "--within-ms", "1"])?;
        drop(knocking.stdin.take());
        let report: Value = report(knocking)?;
        Ok(report["open"] == json!(true))
    }

    /// Starts a role inside a pod; it ends when its input does.
    pub(super) fn start(&self, pod: &str, arguments: &[&str]) -> Result<Child> {
        let mut all = vec![
            "--namespace",
            self.namespace.as_str(),
            "exec",
            "-i",
            pod,
            "--",
            "/usr/bin/testbed-peer",
        ];
        all.extend(arguments);
        self.cluster
            .kubectl(&all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl exec")
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", &self.namespace, "--wait=false"];
        if let Err(error) = self.cluster.kubectl_ok(&arguments) {
            eprintln!("namespace {} stays: {error:#}", self.namespace);
        }
    }
}

/// Ends a role and reads its report, the last line it prints.
pub(super) fn report(mut role: Child) -> Result<Value> {
    drop(role.stdin.take());
    let output = role.wait_with_output().context("waiting for kubectl exec")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next_back().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{line:?} {}", String::from_utf8_lossy(&output.stderr)))
}

/// Applies objects, of whatever namespace.
pub(super) fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let mut child = cluster
        .kubectl(&["apply", "--filename=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting kubectl apply")?;
    let text = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes()).context("writing to kubectl")?;
    }
    let output = child.wait_with_output().context("waiting for kubectl")?;
    anyhow::ensure!(
        output.status.success(),
        "kubectl apply: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Waits for a condition that this scene asks of the cluster.
pub(super) fn wait_until(what: &str, holds: impl FnMut() -> bool) -> Result<()> {
    process::wait_until(what, std::time::Duration::from_mins(2), holds)
}
