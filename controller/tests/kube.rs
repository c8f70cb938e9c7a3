//! A controller of a real API server: what is created, changed and deleted there, and what happens while it is away.

mod cluster;
mod support;

use std::collections::BTreeSet;

use bulkhead_policy::state::AddressKind;
use bulkhead_proto::v1::{ControllerStatus, Severity};
use cluster::{Cluster, DEADLINE, admin_policy, pod, policy};
use serde_json::json;
use support::{Controller, Node};

fn names(status: &ControllerStatus) -> Vec<String> {
    let key = |policy: &bulkhead_proto::v1::PolicyStatus| policy.policy.clone().unwrap_or_default().name;
    status.policies.iter().map(key).collect()
}

fn pods(status: &ControllerStatus) -> u64 {
    status.sizes.as_ref().map_or(0, |sizes| sizes.workloads)
}

#[tokio::test(flavor = "multi_thread")]
async fn follows_what_the_api_server_says() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster
        .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"},
                                     {"type": "Hostname", "address": "n1"}]}}))
        .await;
    cluster.create(pod("web", "n1", &["10.0.1.1", "fd00:1::1"])).await;
    let mut host = pod("host", "n1", &["192.0.2.1", "2001:db8::1"]);
    host["spec"]["hostNetwork"] = json!(true);
    host["spec"]["containers"][0]["ports"] = json!([]);
    cluster.create(host).await;
    cluster.create(policy("db", "web")).await;
    let controller = Controller::start_with(cluster.arguments()).await;
    let first = controller
        .status_within(DEADLINE, |status| {
            status.revision != 0 && status.policies.len() == 1 && !status.diagnostics.is_empty()
        })
        .await;
    assert!(first.source.starts_with("kube https://127.0.0.1:"), "{}", first.source);
    assert_eq!(pods(&first), 1, "a pod of the host network is its node: {first:#?}");
    assert_eq!(
        first.diagnostics.len(),
        1,
        "db selects nothing yet: {:#?}",
        first.diagnostics
    );

    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    assert_eq!(node.endpoints(), ["shop/web"]);
    let of_pods_and_nodes = node
        .state
        .bindings
        .values()
        .filter(|binding| matches!(binding.kind, AddressKind::Pod | AddressKind::Node))
        .count();
    assert_eq!(
        of_pods_and_nodes, 4,
        "two addresses of the pod, two of the node: {:#?}",
        node.state.bindings
    );
    assert!(node.state.networks.values().filter(|network| network.pod_range).count() == 2);

    // The definition was installed, and its kind is followed.
    cluster.created_when_possible(admin_policy("web", 7), DEADLINE).await;
    controller
        .status_within(DEADLINE, |status| names(status) == ["db", "web"])
        .await;
    cluster.create(pod("db", "n1", &["10.0.1.2"])).await;
    let status = controller.status_within(DEADLINE, |status| pods(status) == 2).await;
    let db = |status: &ControllerStatus| status.policies[0].clone();
    assert_eq!(db(&status).generation, 1);

    // A generation is one more; an ended pod has no address; a deleted policy is gone.
    let patch = json!({"spec": {"policyTypes": ["Ingress", "Egress"]}});
    cluster.patch("NetworkPolicy", "shop", "db", patch).await.unwrap();
    controller
        .status_within(DEADLINE, |status| db(status).generation == 2)
        .await;
    let ended = json!({"status": {"phase": "Succeeded"}});
    cluster.patch("Pod", "shop", "web/status", ended).await.unwrap();
    controller.status_within(DEADLINE, |status| pods(status) == 1).await;
    cluster.delete("NetworkPolicy", "shop", "db").await;
    controller
        .status_within(DEADLINE, |status| names(status) == ["web"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_is_away_everything_stays() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    cluster.namespace("shop").await;
    for (name, address) in [("web", "10.0.1.1"), ("db", "10.0.1.2"), ("old", "10.0.1.3")] {
        cluster.create(pod(name, "n1", &[address])).await;
    }
    cluster.create(policy("db", "web")).await;
    cluster.create(policy("old", "web")).await;
    let controller = Controller::start_with(cluster.arguments()).await;
    let before = controller
        .status_within(DEADLINE, |status| names(status) == ["db", "old"] && pods(status) == 3)
        .await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;

    // While the way is cut, objects go and come, and the API server dies and forgets its history: a watch cannot be continued.
    cluster.cut(true);
    cluster.delete("Pod", "shop", "old").await;
    cluster.delete("NetworkPolicy", "shop", "old").await;
    cluster.create(pod("new", "n1", &["10.0.1.4"])).await;
    cluster.kill();
    cluster.restart().await;
    cluster.create(policy("new", "web")).await;
    let during = controller.status().await;
    assert_eq!((during.revision, names(&during)), (before.revision, names(&before)));
    assert_eq!(during.diagnostics, before.diagnostics, "nothing looks deleted");
    cluster.cut(false);
    let after = controller
        .status_within(DEADLINE, |status| names(status) == ["db", "new"] && pods(status) == 3)
        .await;
    assert!(after.revision > before.revision);
    let policies = |node: &Node, name: &str| {
        let key = node.state.endpoints.keys().find(|key| key.name == name)?;
        Some(node.state.rulesets[&node.state.endpoints[key].ingress].policies.clone())
    };
    let new = Some(vec!["NetworkPolicy/shop/new".to_owned()]);
    node.update_until(|node| policies(node, "new") == new && policies(node, "old").is_none())
        .await;
    assert_eq!(node.endpoints(), ["shop/db", "shop/new", "shop/web"]);
    let stayed = Some(vec!["NetworkPolicy/shop/db".to_owned()]);
    assert_eq!(policies(&node, "db"), stayed, "what stayed is as it was");
}

/// A definition that lets everything through, as an older or newer one might.
fn open_definition() -> serde_json::Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "clusternetworkpolicies.policy.networking.k8s.io",
                     "annotations": {"api-approved.kubernetes.io": "unapproved, of a test"}},
        "spec": {"group": "policy.networking.k8s.io", "scope": "Cluster",
            "names": {"kind": "ClusterNetworkPolicy", "listKind": "ClusterNetworkPolicyList",
                      "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy"},
            "versions": [{"name": "v1alpha2", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}})
}

/// Waits until the ClusterNetworkPolicy `web` and an Event say that it cannot be accepted.
async fn said_on_the_object(cluster: &Cluster) {
    let said = async {
        loop {
            let object = cluster.get("ClusterNetworkPolicy", "", "web").await.unwrap_or_default();
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let events = cluster.list("Event", "default").await;
            let refused = conditions
                .iter()
                .any(|it| it["type"] == "Accepted" && it["status"] == "False");
            let told = |event: &serde_json::Value| {
                event["reason"] == "Invalid" && event["regarding"]["uid"] == object["metadata"]["uid"]
            };
            if refused && events.iter().any(told) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, said).await.is_ok();
    assert!(found, "neither status nor Event");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_denies_or_keeps_what_it_said() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("web", "n1", &["10.0.1.1"])).await;
    let mut arguments = cluster.arguments();
    arguments.extend(["--install-crds", "false", "--namespace", "shop"].map(Into::into));
    let controller = Controller::start_with(arguments).await;
    // Without the definition the rest is served; with it, its objects come.
    controller.status_within(DEADLINE, |status| pods(status) == 1).await;
    let missing = cluster.get(
        "CustomResourceDefinition",
        "",
        "clusternetworkpolicies.policy.networking.k8s.io",
    );
    assert!(missing.await.is_err(), "nobody may install it");
    cluster.create(open_definition()).await;

    let mut unreadable = admin_policy("web", 7);
    unreadable["spec"]["ingress"] = json!("everything");
    cluster.created_when_possible(unreadable, DEADLINE).await;
    let errors = |status: &ControllerStatus| {
        let errors = status
            .diagnostics
            .iter()
            .filter(|found| found.severity() == Severity::Error);
        let objects: BTreeSet<String> = errors.map(|found| found.object.clone()).collect();
        objects
    };
    let status = controller
        .status_within(DEADLINE, |status| names(status) == ["web"])
        .await;
    assert_eq!(errors(&status), ["ClusterNetworkPolicy web".to_owned()].into());
    assert!(!status.policies[0].accepted);
    assert_eq!(status.policies[0].endpoints, 1, "it denies what it selects");
    said_on_the_object(&cluster).await;

    // What is wrong from the beginning is only said; what was good stays.
    cluster
        .create(
            json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "nonsense"}, "spec": 7}),
        )
        .await;
    let status = controller
        .status_within(DEADLINE, |status| errors(status).len() == 2)
        .await;
    assert_eq!(names(&status), ["web"]);
    let good = json!({"spec": admin_policy("web", 7)["spec"]});
    cluster.patch("ClusterNetworkPolicy", "", "web", good).await.unwrap();
    controller
        .status_within(DEADLINE, |status| {
            errors(status).len() == 1 && status.policies[0].accepted
        })
        .await;
    cluster
        .patch("ClusterNetworkPolicy", "", "web", json!({"spec": "gone wrong"}))
        .await
        .unwrap();
    let status = controller
        .status_within(DEADLINE, |status| errors(status).len() == 2)
        .await;
    assert_eq!(names(&status), ["web"]);
    let kept = status
        .diagnostics
        .iter()
        .any(|found| found.message.contains("stays in force") && found.object == "ClusterNetworkPolicy web");
    assert!(kept, "{:#?}", status.diagnostics);
    assert_eq!(status.policies[0].endpoints, 1);
    cluster.delete("ClusterNetworkPolicy", "", "web").await;
    cluster.delete("ClusterNetworkPolicy", "", "nonsense").await;
    controller
        .status_within(DEADLINE, |status| names(status).is_empty() && errors(status).is_empty())
        .await;
}
