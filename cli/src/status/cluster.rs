//! Status of a whole cluster, as its API server tells it: what runs where, which kinds are served, which policies are not in force.

use std::{
    io::{Write as _, stdout},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::text::write_table;
use crate::{
    client::Output,
    cluster::{
        Cluster,
        object::{self, list, place, text},
        rollout::{Rollout, trouble},
    },
    install::AGENT,
    table::line,
};

/// Kinds with conditions, and the definition of each.
const POLICIES: [(&str, &str); 3] = [
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
    ("bulkhead.dev/v1alpha1", "SegmentPolicy"),
    ("bulkhead.dev/v1alpha1", "ClusterSegmentPolicy"),
];
/// Policies that are listed for people.
const LISTED_MAX: usize = 50;

/// What was found.
#[derive(Clone, PartialEq, Debug, Default)]
struct View {
    version: String,
    /// Workload, image, pods that are ready, pods wanted.
    workloads: Vec<(String, String, i64, i64)>,
    /// Node, agent's pod, why it is not ready.
    nodes: Vec<(String, String, Option<String>)>,
    policies: usize,
    /// Policies that are not in force, with the reason.
    waiting: Vec<(String, String)>,
    /// What else is wrong.
    wrong: Vec<String>,
}

/// Shows it; the status is 1 when something is not as it should be.
pub(super) async fn run(cluster: &Cluster, namespace: &str, output: Output) -> anyhow::Result<ExitCode> {
    let view = view(cluster, namespace).await?;
    let text = match output {
        Output::Table => view.text(),
        Output::Json => format!("{:#}\n", view.json()),
    };
    stdout().lock().write_all(text.as_bytes())?;
    Ok(if view.is_well() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn view(cluster: &Cluster, namespace: &str) -> anyhow::Result<View> {
    let mut view = View {
        version: cluster.version.clone(),
        ..View::default()
    };
    for (kind, name) in [("Deployment", "bulkhead-controller"), ("DaemonSet", AGENT)] {
        let Some(found) = cluster.find(("apps/v1", kind), namespace, name).await? else {
            view.wrong.push(format!(
                "no {kind} {namespace}/{name}: bulkhead install, or --namespace names another"
            ));
            continue;
        };
        let found = object::json(&found)?;
        let rollout = Rollout::of(&found);
        if !rollout.done() {
            let why = cluster.why_not_ready(namespace, name).await;
            view.wrong.push(format!("{kind} {namespace}/{name} is not ready{why}"));
        }
        let image = text(&found, "/spec/template/spec/containers/0/image").to_owned();
        view.workloads
            .push((format!("{kind}/{name}"), image, rollout.ready, rollout.wanted));
    }
    view.nodes = nodes(cluster, namespace).await?;
    for (version, kind) in POLICIES {
        for policy in cluster.list((version, kind), "", "").await? {
            let policy = object::json(&policy)?;
            view.policies += 1;
            view.waiting.extend(not_in_force(kind, &policy));
        }
    }
    Ok(view)
}

async fn nodes(cluster: &Cluster, namespace: &str) -> anyhow::Result<Vec<(String, String, Option<String>)>> {
    let labels = "app.kubernetes.io/name=bulkhead,app.kubernetes.io/component=agent";
    let mut pods = Vec::new();
    for pod in cluster.list(("v1", "Pod"), namespace, labels).await? {
        pods.push(object::json(&pod)?);
    }
    let mut nodes = Vec::new();
    for node in cluster.list(("v1", "Node"), "", "").await? {
        let node = node.metadata.name.unwrap_or_default();
        let pod = pods.iter().find(|pod| text(pod, "/spec/nodeName") == node);
        nodes.push(match pod {
            Some(pod) => (node, text(pod, "/metadata/name").to_owned(), trouble(pod)),
            None => (node, String::new(), Some("no agent runs there".to_owned())),
        });
    }
    Ok(nodes)
}

/// The policy and the first reason why it is not, or not yet, in force.
fn not_in_force(kind: &str, policy: &Value) -> Option<(String, String)> {
    let conditions = list(policy, "/status/conditions");
    let current = policy.pointer("/metadata/generation");
    let wrong = ["Accepted", "Enforced"].into_iter().find_map(|wanted| {
        let found = conditions.iter().find(|it| text(it, "/type") == wanted);
        match found {
            None => Some(format!("no condition {wanted} yet")),
            Some(found) if found.get("observedGeneration") != current => {
                Some(format!("condition {wanted} is of an older generation"))
            }
            Some(found) if text(found, "/status") != "True" => Some(text(found, "/message").to_owned()),
            Some(_) => None,
        }
    })?;
    let name = place(
        kind,
        text(policy, "/metadata/namespace"),
        text(policy, "/metadata/name"),
    );
    Some((name, wrong))
}

impl View {
    fn is_well(&self) -> bool {
        self.wrong.is_empty() && self.waiting.is_empty() && self.nodes.iter().all(|(_, _, why)| why.is_none())
    }

    fn text(&self) -> String {
        let mut text = format!("Kubernetes {}\n", self.version);
        let rows = self
            .workloads
            .iter()
            .map(|(name, image, ready, wanted)| [name.clone(), format!("{ready} of {wanted}"), image.clone()]);
        write_table(&mut text, ["WORKLOAD", "READY", "IMAGE"], rows);
        let rows = self.nodes.iter().map(|(node, pod, why)| {
            let state = why.clone().unwrap_or_else(|| "enforced".to_owned());
            [node.clone(), state, pod.clone()]
        });
        write_table(&mut text, ["NODE", "STATE", "AGENT"], rows);
        text.push('\n');
        for wrong in &self.wrong {
            line(&mut text, format_args!("{wrong}"));
        }
        line(
            &mut text,
            format_args!(
                "{} of {} policies with conditions are in force",
                self.policies.saturating_sub(self.waiting.len()),
                self.policies
            ),
        );
        for (policy, why) in self.waiting.iter().take(LISTED_MAX) {
            line(&mut text, format_args!("  {policy}: {why}"));
        }
        if self.waiting.len() > LISTED_MAX {
            line(
                &mut text,
                format_args!("  … and {} more", self.waiting.len() - LISTED_MAX),
            );
        }
        text
    }

    fn json(&self) -> Value {
        let workloads = self.workloads.iter().map(
            |(name, image, ready, wanted)| json!({"workload": name, "image": image, "ready": ready, "wanted": wanted}),
        );
        let nodes = self
            .nodes
            .iter()
            .map(|(node, pod, why)| json!({"node": node, "agent": pod, "trouble": why}));
        let waiting = self
            .waiting
            .iter()
            .map(|(policy, why)| json!({"policy": policy, "why": why}));
        json!({"cluster": {
            "kubernetes": self.version, "well": self.is_well(), "workloads": workloads.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(), "policies": self.policies, "not_in_force": waiting.collect::<Vec<_>>(),
            "wrong": self.wrong,
        }})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_in_force_when_its_newest_generation_is() {
        let policy = |accepted: &str, enforced: &str, observed: i64| {
            json!({"metadata": {"name": "a", "generation": 2}, "status": {"conditions": [
                {"type": "Accepted", "status": accepted, "observedGeneration": 2, "message": "bad port"},
                {"type": "Enforced", "status": enforced, "observedGeneration": observed, "message": "waits for n2"}]}})
        };
        let why = |policy: &Value| not_in_force("SegmentPolicy", policy).map(|(_, why)| why);
        assert_eq!(why(&policy("True", "True", 2)), None);
        assert_eq!(why(&policy("True", "False", 2)).unwrap(), "waits for n2");
        assert_eq!(why(&policy("False", "False", 2)).unwrap(), "bad port");
        assert!(why(&policy("True", "True", 1)).unwrap().contains("older generation"));
        assert!(
            why(&json!({"metadata": {"name": "a"}}))
                .unwrap()
                .contains("no condition")
        );
    }

    #[test]
    fn one_node_without_agent_is_not_well_and_is_named() {
        let mut view = View {
            nodes: vec![("n1".into(), "bulkhead-agent-x".into(), None)],
            ..View::default()
        };
        assert!(view.is_well());
        view.nodes
            .push(("n2".into(), String::new(), Some("no agent runs there".into())));
        assert!(!view.is_well());
        let text = view.text();
        assert!(
            text.contains("n1    enforced") && text.contains("n2    no agent runs there"),
            "{text}"
        );
        assert_eq!(view.json()["cluster"]["well"], false);
    }
}
