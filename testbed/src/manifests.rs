//! The cluster as `kubectl get -o yaml` would print it: what the controller reads.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::testnet::{Node, Testnet};

/// Annotation that tells the agent where a pod's namespace is.
const NETNS: &str = "bulkhead.dev/netns";

/// Nodes, namespaces and pods of a testnet, one YAML document each.
///
/// # Errors
/// When a value cannot be written as YAML.
pub fn cluster(net: &Testnet) -> Result<String> {
    let mut objects: Vec<Value> = net
        .nodes
        .iter()
        .enumerate()
        .map(|(index, node)| node_object(net, index, node))
        .collect();
    let mut namespaces: Vec<&str> = net.plan.pods.iter().map(|pod| pod.namespace.as_str()).collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    objects.extend(namespaces.iter().map(|name| {
        let mut labels = net.plan.namespaces.get(*name).cloned().unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".to_owned(), (*name).to_owned());
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    }));
    objects.extend(net.pods.iter().map(|pod| pod_object(net, pod)));
    let documents: Result<Vec<String>, _> = objects.iter().map(serde_yaml_ng::to_string).collect();
    Ok(documents.context("writing the cluster as YAML")?.join("---\n"))
}

fn node_object(net: &Testnet, index: usize, node: &Node) -> Value {
    let addresses: Vec<Value> = node
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    let ranges = Node::pod_ranges(&net.plan, index);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
        "status": {"addresses": addresses},
    })
}

fn pod_object(net: &Testnet, pod: &crate::testnet::Pod) -> Value {
    let node = net.nodes.get(pod.plan.node);
    let ports: Vec<Value> = pod
        .plan
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "containerPort": port.number, "protocol": port.protocol}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.plan.name,
            "namespace": pod.plan.namespace,
            "uid": format!("uid-{}-{}", pod.plan.namespace, pod.plan.name),
            "labels": pod.plan.labels,
            "annotations": {NETNS: pod.netns.path()},
        },
        "spec": {
            "nodeName": node.map(|node| node.name.clone()),
            "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "testbed-peer", "ports": ports}],
        },
        "status": {
            "phase": "Running",
            "hostIP": node.map(|node| node.addresses[0].to_string()),
            "podIP": pod.v4.to_string(),
            "podIPs": [{"ip": pod.v4.to_string()}, {"ip": pod.v6.to_string()}],
        },
    })
}

/// Writes a manifest so that a watcher sees the whole of it or nothing: beside it first, then renamed.
///
/// # Errors
/// Names the file.
pub fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let hidden = folder.join(format!(".{name}.new"));
    fs::write(&hidden, text).with_context(|| format!("writing {}", hidden.display()))?;
    fs::rename(&hidden, folder.join(name)).with_context(|| format!("renaming to {name}"))
}
