//! What the controller says on the objects of a real API server, which replica says it, and what it serves over HTTP.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

mod cluster;
mod support;

use std::{ffi::OsString, net::TcpListener, time::Duration};

use bulkhead_proto::v1::{self, node_message};
use cluster::{Cluster, DEADLINE, admin_policy, pod, policy};
use serde_json::{Value, json};
use support::{Controller, Node};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .into_iter()
        .find(|condition| condition["type"] == kind)
        .unwrap_or_default()
}

/// Reads an object until it is as wanted.
async fn when(cluster: &Cluster, kind: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let reading = async {
        loop {
            last = cluster.get(kind, "", name).await.unwrap();
            if wanted(&last) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, reading).await.is_ok();
    assert!(found, "never as wanted: {last:#}");
    last
}

/// The node was told of the policy named all.
fn knows(node: &Node) -> bool {
    let mut rulesets = node.state.rulesets.values();
    rulesets.any(|ruleset| {
        ruleset
            .policies
            .iter()
            .any(|policy| policy == "ClusterNetworkPolicy/all")
    })
}

fn arguments(cluster: &Cluster) -> Vec<OsString> {
    let mut arguments = cluster.arguments();
    arguments.extend(["--namespace", "shop"].map(Into::into));
    arguments
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_say_where_a_policy_is_enforced() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("web", "n1", &["10.0.1.1"])).await;
    cluster.create(pod("db", "n2", &["10.0.2.1"])).await;
    let controller = Controller::start_with(arguments(&cluster)).await;
    let mut policy = admin_policy("all", 7);
    policy["spec"]["subject"] = json!({"namespaces": {}});
    cluster.created_when_possible(policy, DEADLINE).await;
    let mut first = Node::connect(&controller, "n1").await;
    first.update_until(knows).await;
    let object = when(&cluster, "ClusterNetworkPolicy", "all", |object| {
        condition(object, "Enforced")["message"] == "enforced on 1 of 2 nodes; waiting for n2"
    })
    .await;
    assert_eq!(condition(&object, "Accepted")["status"], "True", "{object:#}");
    assert_eq!(condition(&object, "Enforced")["status"], "False");
    assert_eq!(condition(&object, "Degraded")["status"], "True", "n2 has not connected");

    let mut second = Node::connect(&controller, "n2").await;
    second.update_until(knows).await;
    let object = when(&cluster, "ClusterNetworkPolicy", "all", |object| {
        condition(object, "Enforced")["status"] == "True"
    })
    .await;
    let message = condition(&object, "Enforced")["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("enforced on 2 of 2 nodes, p99 ") && message.ends_with(" ms"),
        "{message}"
    );
    assert_eq!(condition(&object, "Enforced")["observedGeneration"], 1);
    assert_eq!(condition(&object, "Degraded")["status"], "False", "{object:#}");
    let managers = object["metadata"]["managedFields"].as_array().unwrap();
    let ours = managers
        .iter()
        .find(|entry| entry["manager"] == "bulkhead-controller")
        .unwrap();
    assert_eq!(
        (&ours["operation"], &ours["subresource"]),
        (&json!("Apply"), &json!("status"))
    );

    // A new generation is not enforced before the nodes say so, and what did not change keeps its time.
    let accepted_at = condition(&object, "Accepted")["lastTransitionTime"].clone();
    let patch = json!({"spec": {"ingress": [
        {"action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "shop"}}}]}]}});
    cluster.patch("ClusterNetworkPolicy", "", "all", patch).await.unwrap();
    let object = when(&cluster, "ClusterNetworkPolicy", "all", |object| {
        condition(object, "Enforced")["observedGeneration"] == 2
    })
    .await;
    assert_eq!(condition(&object, "Enforced")["status"], "False", "{object:#}");
    assert_eq!(condition(&object, "Accepted")["lastTransitionTime"], accepted_at);
    let written = object["metadata"]["resourceVersion"].clone();
    first.update().await;
    second.update().await;
    let object = when(&cluster, "ClusterNetworkPolicy", "all", |object| {
        condition(object, "Enforced")["status"] == "True"
    })
    .await;
    assert_ne!(object["metadata"]["resourceVersion"], written);
}

/// A controller that others reach.
async fn replica(cluster: &Cluster) -> Controller {
    let mut arguments = arguments(cluster);
    arguments.extend(["--listen-tls", &free(), "--advertise-address", "127.0.0.1"].map(Into::into));
    Controller::start_with(arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_announces_is_known_to_nodes_of_both_replicas_before_the_api_says_it() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("web", "n1", &[])).await;
    cluster.create(pod("db", "n2", &[])).await;
    let (mut one, mut two) = (replica(&cluster).await, replica(&cluster).await);
    let (mut first, mut second) = (Node::connect(&one, "n1").await, Node::connect(&two, "n2").await);
    // One of them writes status and one does not: both ways.
    for (node, name, address) in [(&first, "web", [10, 0, 1, 7]), (&second, "db", [10, 0, 2, 7])] {
        let uid = cluster.get("Pod", "shop", name).await.unwrap()["metadata"]["uid"].clone();
        let endpoint = v1::AnnouncedEndpoint {
            workload: Some(v1::WorkloadName {
                namespace: "shop".into(),
                name: name.into(),
            }),
            pod_uid: uid.as_str().unwrap().to_owned(),
            addresses: vec![address.to_vec()],
            assigned: true,
            ..v1::AnnouncedEndpoint::default()
        };
        node.send(node_message::Message::Announcement(v1::Announcement {
            endpoints: vec![endpoint],
            node_addresses: Vec::new(),
        }))
        .await;
    }
    let both = |node: &Node| {
        let bound = |name: &str| node.state.bindings.values().any(|binding| binding.name.name == name);
        bound("web") && bound("db")
    };
    let (first_knows, second_knows) = (first.update_until(both), second.update_until(both));
    tokio::join!(first_knows, second_knows);
    for name in ["web", "db"] {
        let pod = cluster.get("Pod", "shop", name).await.unwrap();
        assert_eq!(pod["status"]["podIP"], Value::Null);
    }
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_of_the_other_replica_hold_is_in_the_status() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("web", "n1", &["10.0.1.1"])).await;
    cluster.create(pod("db", "n2", &["10.0.2.1"])).await;
    let (mut one, mut two) = (replica(&cluster).await, replica(&cluster).await);
    let mut policy = admin_policy("all", 7);
    policy["spec"]["subject"] = json!({"namespaces": {}});
    cluster.created_when_possible(policy, DEADLINE).await;
    // One of them writes, so one node is always the other one's.
    let mut first = Node::connect(&one, "n1").await;
    let mut second = Node::connect(&two, "n2").await;
    first.update_until(knows).await;
    let partly = |waiting: &str| format!("enforced on 1 of 2 nodes; waiting for {waiting}");
    when(&cluster, "ClusterNetworkPolicy", "all", |object| {
        condition(object, "Enforced")["message"] == partly("n2")
    })
    .await;
    second.update_until(knows).await;
    let enforced = |generation: i64| {
        move |object: &Value| {
            let enforced = condition(object, "Enforced");
            enforced["status"] == "True" && enforced["observedGeneration"] == generation
        }
    };
    when(&cluster, "ClusterNetworkPolicy", "all", enforced(1)).await;

    // A new version: what was told of the old one does not count.
    let patch = json!({"spec": {"ingress": [
        {"action": "Deny", "from": [{"namespaces": {"matchLabels": {"team": "shop"}}}]}]}});
    cluster.patch("ClusterNetworkPolicy", "", "all", patch).await.unwrap();
    second.update().await;
    when(&cluster, "ClusterNetworkPolicy", "all", |object| {
        let enforced = condition(object, "Enforced");
        enforced["message"] == partly("n1") && enforced["observedGeneration"] == 2
    })
    .await;
    first.update().await;
    when(&cluster, "ClusterNetworkPolicy", "all", enforced(2)).await;

    // The first replica goes, whichever it was; the other one writes on, and its node comes to it.
    one.stop().await;
    let patch = json!({"spec": {"priority": 8}});
    cluster.patch("ClusterNetworkPolicy", "", "all", patch).await.unwrap();
    let mut first = Node::connect(&two, "n1").await;
    // Its first update may be of before the change or after it.
    tokio::select! {
        () = first.update_until(|_| false) => {}
        () = second.update_until(|_| false) => {}
        _ = when(&cluster, "ClusterNetworkPolicy", "all", enforced(3)) => {}
    }
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_writes_and_findings_are_said_once() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(policy("nobody", "web")).await;
    let (mut one, two) = (
        Controller::start_with(arguments(&cluster)).await,
        Controller::start_with(arguments(&cluster)).await,
    );
    let (first, second) = (one.status().await.instance, two.status().await.instance);
    let events = async |wanted: usize| {
        let reading = async {
            loop {
                let events = cluster.list("Event", "shop").await;
                if events.len() >= wanted {
                    return events;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(DEADLINE, reading).await.unwrap()
    };
    let said = events(1).await;
    assert_eq!(said[0]["regarding"]["name"], "nobody", "{:#}", said[0]);
    assert_eq!(
        said[0]["regarding"]["uid"],
        cluster.get("NetworkPolicy", "shop", "nobody").await.unwrap()["metadata"]["uid"]
    );
    assert_eq!(said[0]["reason"], "Suspicious");
    let lease = cluster.get("Lease", "shop", "bulkhead-controller").await.unwrap();
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap().to_owned();
    assert!(holder == first || holder == second, "{lease:#}");

    // The holder goes; the other one takes over and says nothing twice.
    let (mut gone, stays, other) = if holder == first {
        (one, two, second)
    } else {
        (two, one, first)
    };
    gone.stop().await;
    cluster.create(policy("noone", "web")).await;
    let said = events(2).await;
    let regarding: Vec<_> = said.iter().map(|event| event["regarding"]["name"].clone()).collect();
    assert_eq!(said.len(), 2, "each finding once: {regarding:?}");
    let lease = cluster.get("Lease", "shop", "bulkhead-controller").await.unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], other.as_str());
    one = stays;
    one.stop().await;
}

/// A request in the clear; the answer's status and body.
async fn http(address: &str, request: &str) -> (u16, String) {
    let connected = async {
        loop {
            // Its port opens after its socket, by which `Controller::start_with` tells that it runs.
            if let Ok(stream) = TcpStream::connect(address).await {
                return stream;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let mut stream = tokio::time::timeout(DEADLINE, connected).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn get(address: &str, path: &str) -> (u16, String) {
    http(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: c\r\nconnection: close\r\n\r\n"),
    )
    .await
}

fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_read_and_compiled() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.namespace("shop").await;
    cluster.create(pod("web", "n1", &["10.0.1.1"])).await;
    cluster.cut(true);
    let (metrics, debug) = (free(), free());
    let mut arguments = arguments(&cluster);
    arguments.extend(["--metrics-listen", &metrics, "--debug-listen", &debug].map(Into::into));
    let controller = Controller::start_with(arguments).await;
    let (status, said) = get(&metrics, "/readyz").await;
    assert_eq!(status, 503, "{said}");
    assert!(said.contains("has not been read"), "{said}");
    assert_eq!(get(&metrics, "/livez").await.0, 200);
    let failed = "bulkhead_controller_watch_errors_total{kind=\"Pod\"}";
    let noticed = async {
        while !get(&metrics, "/metrics").await.1.contains(failed) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, noticed).await.expect("the way is cut");
    cluster.cut(false);
    controller.status_within(DEADLINE, |status| status.revision != 0).await;
    assert_eq!(get(&metrics, "/readyz").await.0, 200);

    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    controller
        .status_when(|status| status.nodes.first().is_some_and(|node| node.revision_held != 0))
        .await;
    let (status, text) = get(&metrics, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "bulkhead_controller_ready 1",
        "bulkhead_controller_nodes_connected 1",
        "bulkhead_controller_node_revision_lag{node=\"n1\"} 0",
        "bulkhead_controller_index_objects{kind=\"workload\"} 1",
        "bulkhead_controller_map_entries{map=\"ENDPOINT\"} 1",
        "bulkhead_controller_announcement_rejections_total 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains(failed), "the way was cut: {text}");
    assert!(text.contains("bulkhead_controller_compile_seconds_count"), "{text}");

    assert_eq!(get(&metrics, "/debug/state").await.0, 404, "only on the loopback port");
    let (status, dump) = get(&debug, "/debug/state").await;
    assert_eq!(status, 200);
    let dump: Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["nodes"][0]["node"], "n1");
    assert!(dump["perNode"]["n1"].to_string().contains("web"), "{dump:#}");
}
