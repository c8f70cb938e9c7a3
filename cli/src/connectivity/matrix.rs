//! The policies that are walked through, and what each makes of every connection. Pure: knows no cluster.

use serde_json::{Value, json};

/// Ports of the servers; policies allow the first only where they name one.
pub(super) const PORTS: [u16; 2] = [8080, 8081];
/// Names of the ClusterNetworkPolicies, which belong to no namespace.
pub(super) const CLUSTER_POLICIES: [&str; 2] = ["bulkhead-connectivity-accept", "bulkhead-connectivity-deny"];

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Client {
    /// In the servers' namespace, with the label that policies allow.
    Friend,
    /// In the servers' namespace, without it.
    Stranger,
    /// In the other namespace.
    Far,
}

impl Client {
    pub(super) const ALL: [Self; 3] = [Self::Friend, Self::Stranger, Self::Far];

    /// Name of the pod.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Friend => "friend",
            Self::Stranger => "stranger",
            Self::Far => "far",
        }
    }
}

/// What is connected to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Goal {
    /// A server's port, at its own or its Service's address.
    Port(u16),
    /// The cluster's DNS.
    Dns,
}

/// A policy set and its meaning.
pub(super) struct Step {
    /// What is tried, for people.
    pub(super) title: &'static str,
    /// Policies that are there during this step; those of the step before that are not named are deleted.
    pub(super) policies: Vec<Value>,
    /// Whether a connection should be made.
    pub(super) allows: fn(Client, Goal) -> bool,
}

impl Step {
    /// True when it needs the kind ClusterNetworkPolicy.
    pub(super) fn is_clusters(&self) -> bool {
        self.policies
            .iter()
            .any(|policy| policy["kind"] == "ClusterNetworkPolicy")
    }
}

/// All steps in order, for a namespace; its other one is `<namespace>-far`.
pub(super) fn steps(namespace: &str) -> Vec<Step> {
    let mut steps = vec![step("no policy", vec![], |_, _| true)];
    steps.extend(ingress_steps(namespace));
    steps.push(step("deleted again", vec![], |_, _| true));
    steps.extend(egress_steps(namespace));
    steps.extend(tier_steps(namespace));
    steps.push(step("everything deleted again", vec![], |_, _| true));
    steps
}

fn step(title: &'static str, policies: Vec<Value>, allows: fn(Client, Goal) -> bool) -> Step {
    Step {
        title,
        policies,
        allows,
    }
}

fn ingress_steps(namespace: &str) -> [Step; 3] {
    let deny = default_deny(namespace);
    let by_label = ingress(
        namespace,
        "allow-friend",
        &json!([{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}]),
    );
    let by_namespace = ingress(
        namespace,
        "allow-far",
        &json!([{"from": [{"namespaceSelector": named(&far(namespace))}],
        "ports": [{"protocol": "TCP", "port": PORTS[0]}]}]),
    );
    [
        step("default deny of ingress", vec![deny.clone()], |_, goal| {
            goal == Goal::Dns
        }),
        step(
            "allowed by pod label",
            vec![deny.clone(), by_label.clone()],
            |client, goal| client == Client::Friend || goal == Goal::Dns,
        ),
        step(
            "and by namespace, on one port",
            vec![deny, by_label, by_namespace],
            |client, goal| match client {
                Client::Friend => true,
                Client::Stranger => goal == Goal::Dns,
                Client::Far => goal != Goal::Port(PORTS[1]),
            },
        ),
    ]
}

fn egress_steps(namespace: &str) -> [Step; 2] {
    let egress = |rules: Value| {
        policy(
            namespace,
            "friend-egress",
            &json!({"podSelector": {"matchLabels": {"app": "friend"}},
            "policyTypes": ["Egress"], "egress": rules}),
        )
    };
    let first_port = json!({"to": [{"podSelector": {"matchLabels": {"app": "server"}}}],
        "ports": [{"protocol": "TCP", "port": PORTS[0]}]});
    [
        step("default deny of egress", vec![egress(json!([]))], |client, _| {
            client != Client::Friend
        }),
        step(
            "egress allowed to DNS and one port",
            vec![egress(json!([{"ports": [{"protocol": "UDP"}]}, first_port]))],
            |client, goal| client != Client::Friend || goal != Goal::Port(PORTS[1]),
        ),
    ]
}

fn tier_steps(namespace: &str) -> [Step; 2] {
    let admin = |name: &str, priority: u16, action: &str| {
        json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
            "spec": {"tier": "Admin", "priority": priority,
                "subject": {"pods": {"namespaceSelector": named(namespace), "podSelector": {"matchLabels": {"app": "server"}}}},
                "ingress": [{"action": action, "from": [{"pods": {"namespaceSelector": named(namespace),
                    "podSelector": {"matchLabels": {"app": "stranger"}}}}]}]}})
    };
    let [accept_name, deny_name] = CLUSTER_POLICIES;
    [
        step(
            "Admin tier denies one client",
            vec![admin(deny_name, 901, "Deny")],
            |client, goal| client != Client::Stranger || goal == Goal::Dns,
        ),
        step(
            "Admin tier accepts what a NetworkPolicy denies",
            vec![default_deny(namespace), admin(accept_name, 900, "Accept")],
            |client, goal| client == Client::Stranger || goal == Goal::Dns,
        ),
    ]
}

/// Nobody may connect to the servers.
fn default_deny(namespace: &str) -> Value {
    ingress(namespace, "default-deny", &json!([]))
}

/// A policy of the servers.
fn ingress(namespace: &str, name: &str, rules: &Value) -> Value {
    policy(
        namespace,
        name,
        &json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": rules}),
    )
}

/// The other namespace.
pub(super) fn far(namespace: &str) -> String {
    format!("{namespace}-far")
}

fn named(namespace: &str) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": namespace}})
}

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_step_changes_what_connects() {
        let steps = steps("t");
        let verdicts = |step: &Step| {
            let goals = [Goal::Port(PORTS[0]), Goal::Port(PORTS[1]), Goal::Dns];
            let all = Client::ALL
                .into_iter()
                .flat_map(|client| goals.map(|goal| (step.allows)(client, goal)));
            all.collect::<Vec<bool>>()
        };
        for pair in steps.windows(2) {
            let [before, after] = pair else { unreachable!() };
            assert_ne!(
                verdicts(before),
                verdicts(after),
                "{} would pass by what was there before",
                after.title
            );
        }
        let titles: BTreeSet<&str> = steps.iter().map(|step| step.title).collect();
        assert_eq!(titles.len(), steps.len());
    }

    #[test]
    fn without_cluster_policies_a_step_still_changes_something() {
        let first_after = steps("t").into_iter().rfind(|step| !step.is_clusters()).unwrap();
        assert!(first_after.policies.is_empty(), "the end is an empty cluster");
    }
}
