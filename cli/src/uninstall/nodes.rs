//! The nodes' part: agents away, then a short-lived DaemonSet that cleans each node, made from the agents' own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    cluster::{
        Cluster,
        object::{self, Manifest, list, text},
        rollout::trouble,
    },
    install::AGENT,
};

/// Name of the DaemonSet that cleans.
const CLEANUP: &str = "bulkhead-cleanup";
/// A node's label that no node has: with it the cleaner waits for the agents to end.
const HELD: &str = "bulkhead.dev/cleanup-waits-for-agents";
/// Longest time agents may take to end.
const AGENTS_END_WITHIN: Duration = Duration::from_mins(1);
const DAEMON_SET: (&str, &str) = ("apps/v1", "DaemonSet");
/// Arguments of the agent that say where things are on the node, and so are those of its `cleanup` too.
const PLACES: [&str; 5] = [
    "--bpffs=",
    "--state-dir=",
    "--socket=",
    "--cni-bin-dir=",
    "--cni-conf-dir=",
];
/// Volumes that cleaning needs.
const VOLUMES: [&str; 5] = ["bpf", "run", "state", "cni-bin", "cni-conf"];

/// Cleans every node; names those that did not become clean, with the reason.
pub(super) async fn clean(cluster: &Cluster, namespace: &str, within: Duration) -> anyhow::Result<Vec<String>> {
    let agents = cluster.find(DAEMON_SET, namespace, AGENT).await?;
    if let Some(agents) = &agents {
        // Known to the API before the agents go, so that what it is made from is not lost when this is interrupted.
        if let Some(cleaner) = cleaner(&object::json(agents)?)? {
            cluster.apply(&cleaner, true).await?;
        }
        cluster.remove(DAEMON_SET, namespace, AGENT).await?;
        println!("  deleted  DaemonSet {namespace}/{AGENT}");
    } else if cluster.find(DAEMON_SET, namespace, CLEANUP).await?.is_none() {
        println!("no agents in namespace {namespace}: the nodes have nothing to be cleaned of");
        return Ok(Vec::new());
    }
    // A node that is gone keeps its agent's pod in the API for ever; on a node where one still runs, the cleaner is refused.
    if let Err(error) = agents_ended(cluster, namespace, within.min(AGENTS_END_WITHIN)).await {
        println!("  going on: {error:#}");
    }
    let free = json!({"spec": {"template": {"spec": {"nodeSelector": {HELD: null}}}}});
    cluster.merge(DAEMON_SET, namespace, CLEANUP, &free).await?;
    let left = wait(cluster, namespace, within).await?;
    if left.is_empty() {
        cluster.remove(DAEMON_SET, namespace, CLEANUP).await?;
        cluster.gone(DAEMON_SET, namespace, CLEANUP, within).await?;
    }
    Ok(left)
}

async fn agents_ended(cluster: &Cluster, namespace: &str, within: Duration) -> anyhow::Result<()> {
    cluster
        .wait(within, async || {
            let pods = cluster
                .list(("v1", "Pod"), namespace, "app.kubernetes.io/component=agent")
                .await?;
            let names: Vec<String> = pods.into_iter().filter_map(|pod| pod.metadata.name).collect();
            Ok(if names.is_empty() {
                Ok(())
            } else {
                Err(format!("agents have not ended: {}", names.join(", ")))
            })
        })
        .await
}

/// The agents' DaemonSet turned into one that cleans: the same image, folders and tolerations.
fn cleaner(agents: &Value) -> anyhow::Result<Option<Manifest>> {
    let namespace = text(agents, "/metadata/namespace");
    let pod = agents.pointer("/spec/template/spec").cloned().unwrap_or_default();
    let Some(agent) = list(&pod, "/containers").first() else {
        return Ok(None);
    };
    let places = list(agent, "/args").iter().filter_map(Value::as_str);
    let places: Vec<&str> = places
        .filter(|argument| PLACES.iter().any(|place| argument.starts_with(place)))
        .collect();
    let named = |item: &Value| VOLUMES.contains(&text(item, "/name"));
    let keep = |from: &[Value]| from.iter().filter(|item| named(item)).cloned().collect::<Vec<_>>();
    let container = |name: &str, then: &[&str]| {
        let arguments: Vec<&str> = std::iter::once("cleanup")
            .chain(places.iter().copied())
            .chain(then.iter().copied())
            .collect();
        json!({
            "name": name, "image": agent["image"], "imagePullPolicy": agent["imagePullPolicy"], "args": arguments,
            "securityContext": agent["securityContext"], "volumeMounts": keep(list(agent, "/volumeMounts")),
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        })
    };
    let labels = json!({"app.kubernetes.io/name": "bulkhead", "app.kubernetes.io/component": "cleanup"});
    let mut spec = json!({
        "hostNetwork": true, "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 5,
        // A pod is ready when its node is clean: `cleanup` has ended well by then, and once more by the one that waits.
        "initContainers": [container("cleanup", &[])],
        "containers": [container("clean", &["--then-wait"])],
        "volumes": keep(list(&pod, "/volumes")),
        "tolerations": [{"operator": "Exists"}],
        "nodeSelector": pod.get("nodeSelector").cloned().unwrap_or_else(|| json!({})),
    });
    spec["nodeSelector"][HELD] = "true".into();
    for field in ["priorityClassName", "imagePullSecrets", "affinity"] {
        if let Some(value) = pod.get(field) {
            spec[field] = value.clone();
        }
    }
    Manifest::new(json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": CLEANUP, "namespace": namespace, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }))
    .map(Some)
}

/// Waits until every node is clean, with a line for each; gives those that are not when the time is over.
async fn wait(cluster: &Cluster, namespace: &str, within: Duration) -> anyhow::Result<Vec<String>> {
    let mut said = BTreeSet::new();
    let mut left = BTreeMap::new();
    let waited = cluster
        .wait(within, async || {
            left = unclean(cluster, namespace, &mut said).await?;
            let done = left.is_empty() && !said.is_empty();
            Ok(if done {
                Ok(())
            } else {
                Err("nodes are not clean".to_owned())
            })
        })
        .await;
    if waited.is_err() && said.is_empty() && left.is_empty() {
        anyhow::bail!(
            "DaemonSet {namespace}/{CLEANUP} started no pod on any node: kubectl -n {namespace} describe ds {CLEANUP}"
        );
    }
    Ok(left.into_iter().map(|(node, why)| format!("{node} ({why})")).collect())
}

/// The nodes that are not clean yet, with the reason; those that became so since the last look are told of.
async fn unclean(
    cluster: &Cluster,
    namespace: &str,
    said: &mut BTreeSet<String>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let mut left = BTreeMap::new();
    for node in cluster.list(("v1", "Node"), "", "").await? {
        left.insert(
            node.metadata.name.unwrap_or_default(),
            "no cleanup pod ran there".to_owned(),
        );
    }
    let all = left.len();
    for pod in cluster
        .list(("v1", "Pod"), namespace, "app.kubernetes.io/component=cleanup")
        .await?
    {
        let pod = object::json(&pod)?;
        let node = text(&pod, "/spec/nodeName").to_owned();
        match trouble(&pod) {
            None => {
                left.remove(&node);
                if said.insert(node.clone()) {
                    println!("  clean    node {node} ({} of {all})", said.len());
                }
            }
            Some(why) => {
                left.insert(node, why);
            }
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::template::{Values, manifests};

    #[test]
    fn the_cleaner_has_the_agents_places_and_no_more() {
        let mut values = Values::default_ones().unwrap();
        values.set("agent.stateDir", "/elsewhere").unwrap();
        let agents = manifests(&values, "ns")
            .unwrap()
            .into_iter()
            .find(|it| it.kind == "DaemonSet")
            .unwrap();
        let cleaner = cleaner(&agents.body).unwrap().unwrap();
        let pod = &cleaner.body["spec"]["template"]["spec"];
        let first = &pod["initContainers"][0];
        let arguments: Vec<&str> = first["args"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(arguments[0], "cleanup");
        assert_eq!(arguments.len(), 1 + PLACES.len(), "{arguments:?}");
        assert!(arguments.contains(&"--state-dir=/elsewhere"));
        assert_eq!(
            first["securityContext"],
            agents.body["spec"]["template"]["spec"]["containers"][0]["securityContext"]
        );
        assert_eq!(pod["volumes"].as_array().unwrap().len(), VOLUMES.len());
        assert_eq!(
            pod["containers"][0]["args"].as_array().unwrap().last().unwrap(),
            "--then-wait"
        );
        assert!(!pod.to_string().contains("token\""), "it gets no token: {pod}");
    }
}
