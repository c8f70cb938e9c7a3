//! What goes wrong around a controller and its real API server: enforced state stays, nothing opens, and all is caught up with.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

mod cluster;
mod support;

use std::{ffi::OsString, time::Duration};

use bulkhead_policy::state::Decision;
use bulkhead_proto::v1::{ControllerStatus, Severity};
use cluster::{Cluster, DEADLINE, admin_policy, pod, policy};
use serde_json::{Value, json};
use support::{Controller, Node};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn pods(status: &ControllerStatus) -> u64 {
    status.sizes.as_ref().map_or(0, |sizes| sizes.workloads)
}

fn policies(status: &ControllerStatus) -> usize {
    status.policies.len()
}

/// A port nobody listens on now.
fn free() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

async fn http(address: &str, request: String) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The sum of a metric over its labels.
async fn metric(address: &str, name: &str) -> f64 {
    let text = http(
        address,
        "GET /metrics HTTP/1.1\r\nhost: c\r\nconnection: close\r\n\r\n".to_owned(),
    )
    .await;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

fn arguments(cluster: &Cluster, metrics: &str) -> Vec<OsString> {
    let mut arguments = cluster.arguments();
    arguments.extend(["--metrics-listen", metrics].map(Into::into));
    arguments
}

/// Asks etcd over its HTTP gateway.
async fn etcd(cluster: &Cluster, call: &str, body: &Value) -> Value {
    let (address, body) = (format!("127.0.0.1:{}", cluster.etcd()), body.to_string());
    let head = format!(
        "POST /v3/kv/{call} HTTP/1.0\r\nhost: e\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    serde_json::from_str(&http(&address, head + &body).await).unwrap()
}

/// Pods of the node's state that nothing may reach but what a policy allows.
fn isolated(node: &Node) -> Vec<String> {
    let closed = node.state.endpoints.iter().filter(|(_, endpoint)| {
        let ruleset = &node.state.rulesets[&endpoint.ingress];
        let any = &ruleset.entries[&bulkhead_policy::state::PeerId::AnyAddress];
        any.ranges
            .iter()
            .all(|range| range.enforce.iter().all(|it| it.decision == Decision::Deny))
    });
    closed.map(|(key, _)| key.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_dies_and_its_history_is_compacted_while_pods_churn() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    cluster.namespace("shop").await;
    for number in 0..10 {
        cluster
            .create(pod(
                &format!("old-{number}"),
                "n1",
                &[&format!("10.0.1.{}", number + 1)],
            ))
            .await;
    }
    cluster.create(pod("db", "n1", &["10.0.1.100"])).await;
    cluster.create(policy("db", "web")).await;
    let metrics = free();
    let controller = Controller::start_with(arguments(&cluster, &metrics)).await;
    let before = controller
        .status_within(DEADLINE, |status| policies(status) == 1 && pods(status) == 11)
        .await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    assert_eq!(isolated(&node), ["db"]);

    cluster.cut(true);
    for number in 0..10 {
        cluster.delete("Pod", "shop", &format!("old-{number}")).await;
        cluster
            .create(pod(
                &format!("new-{number}"),
                "n1",
                &[&format!("10.0.1.{}", number + 1)],
            ))
            .await;
    }
    // What a watch would go on from is forgotten: it gets 410 and must list again.
    let now = etcd(&cluster, "range", &json!({"key": "AA=="})).await["header"]["revision"].clone();
    etcd(&cluster, "compaction", &json!({"revision": now, "physical": true})).await;
    cluster.kill_etcd();
    let during = controller.status().await;
    assert_eq!(
        (during.revision, pods(&during)),
        (before.revision, 11),
        "nothing looks deleted"
    );
    // A node that comes just now gets what is in force.
    let mut late = Node::connect(&controller, "n2").await;
    late.update().await;
    let of_pods = late.state.bindings.values().filter(|it| it.name.namespace == "shop");
    assert_eq!(of_pods.count(), 11, "{:?}", late.state.bindings);
    cluster.restart().await;
    cluster.cut(false);
    node.update_until(|node| {
        assert!(
            !node.endpoints().contains(&"shop/db".to_owned()) || isolated(node) == ["db"],
            "never open"
        );
        node.endpoints()
            .iter()
            .filter(|name| name.starts_with("shop/new-"))
            .count()
            == 10
            && !node.endpoints().iter().any(|name| name.starts_with("shop/old-"))
    })
    .await;
    assert_eq!(isolated(&node), ["db"]);
    assert!(
        metric(&metrics, "bulkhead_controller_watch_errors_total").await > 0.0,
        "it is counted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_does_not_answer_holds_up_no_node() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("db", "n1", &["10.0.1.1"])).await;
    cluster.create(policy("db", "web")).await;
    let controller = Controller::start_with(cluster.arguments()).await;
    controller
        .status_within(DEADLINE, |status| policies(status) == 1 && pods(status) == 1)
        .await;
    cluster.pause("kube-apiserver", true);
    let mut node = Node::connect(&controller, "n1").await;
    let first = node.update().await;
    assert_eq!(isolated(&node), ["db"]);
    controller
        .status_within(DEADLINE, |status| {
            status.nodes.iter().any(|node| node.revision_held == first.revision)
        })
        .await;
    cluster.pause("kube-apiserver", false);
    cluster.create(pod("web", "n1", &["10.0.1.2"])).await;
    node.update_until(|node| node.endpoints() == ["shop/db", "shop/web"])
        .await;
    assert_eq!(isolated(&node), ["db"]);
}

/// Makes many policies as fast as the API server takes them; a node keeps up by larger differences, not by a backlog.
async fn many_policies(count: usize) {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("db", "n1", &["10.0.1.1"])).await;
    let controller = Controller::start_with(cluster.arguments()).await;
    controller.status_within(DEADLINE, |status| pods(status) == 1).await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    assert_eq!(isolated(&node), Vec::<String>::new());
    let creating = async {
        let all = futures::stream::iter(0..count).map(|number| {
            let mut one = policy("db", &format!("peer-{number}"));
            one["metadata"]["name"] = json!(format!("policy-{number}"));
            cluster.create(one)
        });
        all.buffer_unordered(16).collect::<Vec<()>>().await;
    };
    let mut closed = false;
    let taking = node.update_until(|node| {
        let now = isolated(node) == ["db"];
        assert!(now || !closed, "once isolated it stays so");
        closed |= now;
        let ruleset = node.state.endpoints.values().next().map(|it| it.ingress);
        ruleset.is_some_and(|name| node.state.rulesets[&name].policies.len() == count)
    });
    tokio::join!(creating, taking);
    let status = controller
        .status_within(DEADLINE, |status| policies(status) == count)
        .await;
    assert!(
        status.nodes[0].updates <= u64::try_from(count).unwrap(),
        "{} updates",
        status.nodes[0].updates
    );
    assert_eq!(status.nodes[0].snapshots, 1);
}

use futures::StreamExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_policies_at_once() {
    many_policies(200).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "slow: minutes; cargo xtask test --tier slow"]
async fn ten_thousand_policies_at_once() {
    many_policies(10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_storm_ends_with_the_last_label() {
    const FLIPS: usize = 60;
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.namespace("guest").await;
    cluster.create(pod("db", "n1", &["10.0.1.1"])).await;
    let mut guest = pod("web", "n2", &["10.0.2.1"]);
    guest["metadata"]["namespace"] = json!("guest");
    cluster.create(guest).await;
    let mut from_blue = policy("db", "web");
    from_blue["spec"]["ingress"] = json!([{"from": [{"namespaceSelector": {"matchLabels": {"stage": "blue"}}}]}]);
    cluster.create(from_blue).await;
    let controller = Controller::start_with(cluster.arguments()).await;
    controller
        .status_within(DEADLINE, |status| policies(status) == 1 && pods(status) == 2)
        .await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    // An identity with an entry is one that is allowed; without one it is any pod, which is denied.
    let admitted = |node: &Node| {
        let ruleset = &node.state.rulesets[&node.state.endpoints.values().next().unwrap().ingress];
        ruleset.entries.contains_key(
            &node
                .state
                .bindings
                .values()
                .find(|it| it.name.namespace == "guest")
                .unwrap()
                .peer,
        )
    };
    assert!(!admitted(&node));
    let storm = async {
        for flip in 0..=FLIPS {
            let stage = if flip.is_multiple_of(2) { "blue" } else { "green" };
            cluster
                .patch(
                    "Namespace",
                    "",
                    "guest",
                    json!({"metadata": {"labels": {"stage": stage}}}),
                )
                .await
                .unwrap();
        }
        // Something that can be seen to come after it.
        cluster.create(pod("last", "n1", &["10.0.1.9"])).await;
    };
    let taking = node.update_until(|node| {
        assert_eq!(
            isolated(node).first().map(String::as_str),
            Some("db"),
            "whatever the label"
        );
        node.endpoints().contains(&"shop/last".to_owned())
    });
    tokio::join!(storm, taking);
    assert!(admitted(&node), "the last label was blue");
    let updates = controller.status().await.nodes[0].updates;
    assert!(updates <= u64::try_from(FLIPS + 4).unwrap(), "{updates} updates");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_of_one_priority_are_ordered_by_name_and_said_to_be() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("web", "n1", &["10.0.1.1"])).await;
    let controller = Controller::start_with(cluster.arguments()).await;
    let mut first = admin_policy("web", 7);
    first["metadata"]["name"] = json!("b-denies");
    cluster.created_when_possible(first, DEADLINE).await;
    let mut second = admin_policy("web", 7);
    second["metadata"]["name"] = json!("a-accepts");
    second["spec"]["ingress"][0]["action"] = json!("Accept");
    cluster.created_when_possible(second, DEADLINE).await;
    let status = controller
        .status_within(DEADLINE, |status| {
            policies(status) == 2 && status.diagnostics.iter().any(|found| found.field == "spec.priority")
        })
        .await;
    assert!(
        status
            .diagnostics
            .iter()
            .all(|found| found.severity() == Severity::Warning),
        "{:#?}",
        status.diagnostics
    );
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    let ruleset = &node.state.rulesets[&node.state.endpoints.values().next().unwrap().ingress];
    assert_eq!(
        ruleset.policies,
        ["ClusterNetworkPolicy/a-accepts", "ClusterNetworkPolicy/b-denies"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_replicas_serve_and_a_node_changes_over_for_nothing() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("db", "n1", &["10.0.1.1"])).await;
    cluster.create(policy("db", "web")).await;
    let (mut one, two) = (
        Controller::start_with(cluster.arguments()).await,
        Controller::start_with(cluster.arguments()).await,
    );
    let known = |status: &ControllerStatus| policies(status) == 1 && pods(status) == 1;
    one.status_within(DEADLINE, known).await;
    two.status_within(DEADLINE, known).await;
    let mut node = Node::connect(&one, "n1").await;
    let mut other = Node::connect(&two, "n2").await;
    node.update().await;
    other.update().await;
    assert_eq!(node.state.bindings, other.state.bindings, "both compile the same");
    one.stop().await;
    let mut node = node.reconnect(&two, "n1").await;
    two.status_within(DEADLINE, |status| {
        status
            .nodes
            .iter()
            .any(|node| node.node == "n1" && node.revision_held > 0 && node.updates == 0)
    })
    .await;
    cluster.create(pod("web", "n1", &["10.0.1.2"])).await;
    let update = node.update().await;
    assert!(
        !update.snapshot && update.delta.upserts.len() < 12,
        "{:#?}",
        update.delta
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_another_ones_clock_is_taken_over() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster
        .create(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "bulkhead-controller", "namespace": "shop"},
            "spec": {"holderIdentity": "ghost", "leaseDurationSeconds": 15, "renewTime": "2099-01-01T00:00:00.000000Z"}}))
        .await;
    let mut arguments = cluster.arguments();
    arguments.extend(["--namespace", "shop"].map(Into::into));
    let controller = Controller::start_with(arguments).await;
    let instance = controller.status().await.instance;
    let taken = async {
        loop {
            let lease = cluster.get("Lease", "shop", "bulkhead-controller").await.unwrap();
            if lease["spec"]["holderIdentity"] == instance.as_str() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, taken).await.unwrap();
}
