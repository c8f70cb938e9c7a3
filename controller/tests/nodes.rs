//! Nodes on a real socket: snapshots, differences, reconnects, acknowledgements, and what each node is told.

mod support;

use bulkhead_policy::state::{ResourceName, State};
use bulkhead_proto::v1::{self, controller_message::Message, node_message::Message as NodeMessage};
use support::{Controller, Node, hello, open, pod, policy};
use tonic::Code;

fn shop() -> String {
    [
        pod("web", "n1", "10.0.1.1"),
        pod("db", "n2", "10.0.2.1"),
        policy("db", "web", 1),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_gets_its_own_part() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let (mut first, mut second) = (
        Node::connect(&controller, "n1").await,
        Node::connect(&controller, "n2").await,
    );
    assert!(!first.welcome.instance.is_empty());
    let (one, two) = (first.update().await, second.update().await);
    assert!(one.snapshot && two.snapshot);
    assert_eq!(first.endpoints(), ["shop/web"]);
    assert_eq!(second.endpoints(), ["shop/db"]);
    assert_eq!(
        first.state.bindings, second.state.bindings,
        "all nodes know all addresses"
    );
    assert_eq!(first.state.bindings.len(), 2);
    let ruleset = |node: &Node| {
        let endpoint = node.state.endpoints.values().next().unwrap();
        node.state.rulesets[&endpoint.ingress].policies.clone()
    };
    assert!(ruleset(&first).is_empty());
    assert_eq!(ruleset(&second), ["NetworkPolicy/shop/db"]);
    assert!(one.policies.is_empty(), "no policy selects a pod of n1");
    assert_eq!(two.policies[0].policy.name, "db");
    let mut third = Node::connect(&controller, "n3").await;
    third.update().await;
    assert!(third.state.endpoints.is_empty() && third.state.rulesets.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_a_difference_and_its_acknowledgement_shows() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let mut node = Node::connect(&controller, "n2").await;
    let first = node.receive().await;
    let status = controller.status().await;
    let db = &status.policies[0];
    assert_eq!(
        (db.nodes_needed, db.nodes_enforced, db.enforced_after_ms),
        (1, 0, None),
        "sent is not held"
    );
    assert_eq!(db.nodes_waiting, ["n2"]);
    node.acknowledge(&first).await;
    let status = controller
        .status_when(|status| status.policies[0].nodes_enforced == 1)
        .await;
    assert!(status.policies[0].enforced_after_ms.is_some());
    assert_eq!((status.policies[0].generation, status.policies[0].endpoints), (1, 1));
    assert!(status.policies[0].accepted);

    controller.write(
        "shop.yaml",
        &shop()
            .replace("port: 80", "port: 81")
            .replace("generation: 1", "generation: 2"),
    );
    let second = node.receive().await;
    assert!(!second.snapshot && second.revision > first.revision);
    let unchanged = |name: &ResourceName| matches!(name, ResourceName::Binding(..) | ResourceName::Identity(..));
    assert!(
        second.delta.upserts.iter().all(|resource| !unchanged(&resource.name())),
        "{:?}",
        second.delta
    );
    assert_eq!(second.policies[0].generation, 2);
    let status = controller
        .status_when(|status| status.policies[0].generation == 2)
        .await;
    assert_eq!(
        status.policies[0].nodes_enforced, 0,
        "the old version does not count for the new one"
    );
    node.acknowledge(&second).await;
    let status = controller
        .status_when(|status| status.policies[0].nodes_enforced == 1)
        .await;
    let n2 = status.nodes.iter().find(|node| node.node == "n2").unwrap();
    assert!(n2.connected && n2.last_ack.is_some());
    assert_eq!((n2.updates, n2.snapshots, n2.revision_held), (2, 1, second.revision));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_gets_a_difference() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    controller.write("more.yaml", &pod("job", "n1", "10.0.1.9"));
    controller
        .status_when(|status| status.sizes.is_some_and(|sizes| sizes.workloads == 3))
        .await;
    let mut node = node.reconnect(&controller, "n1").await;
    let update = node.update().await;
    assert!(!update.snapshot, "the state it holds is known");
    assert_eq!(node.endpoints(), ["shop/job", "shop/web"]);

    // A state nobody knows: everything.
    let stranger = v1::Held {
        revision: 7,
        state_digest: vec![9; 32],
    };
    let mut node = Node::connect_with(
        &controller,
        v1::Hello {
            held: Some(stranger),
            ..hello("n1")
        },
        State::default(),
    )
    .await;
    assert!(node.update().await.snapshot);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_missed_costs_a_difference_however_much_it_knows() {
    const PODS: usize = 2_000;
    let many: String = (0..PODS)
        .map(|number| {
            pod(
                &format!("pod-{number}"),
                "n2",
                &format!("10.1.{}.{}", number >> 8, number & 255),
            )
        })
        .collect();
    let controller = Controller::start(&[("shop.yaml", &shop()), ("many.yaml", &many)]).await;
    let mut node = Node::connect(&controller, "n1").await;
    let whole = node.update().await;
    assert!(whole.snapshot && whole.delta.upserts.len() > PODS);
    controller.write("more.yaml", &pod("job", "n2", "10.0.2.9"));
    controller
        .status_when(|status| {
            status
                .sizes
                .is_some_and(|sizes| sizes.workloads == u64::try_from(PODS).unwrap() + 3)
        })
        .await;
    let mut node = node.reconnect(&controller, "n1").await;
    let update = node.update().await;
    let sent = update.delta.upserts.len() + update.delta.removes.len();
    assert!(
        !update.snapshot && (1..=2).contains(&sent),
        "one address, at most a new identity: {:?}",
        update.delta
    );
    assert_eq!(controller.status().await.nodes[0].snapshots, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_numbers_are_of_a_later_clock_is_served() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    // A controller whose clock was an hour ahead gave it this number.
    if let Some(held) = &mut node.held {
        held.revision += 3_600_000;
    }
    let mut node = node.reconnect(&controller, "n1").await;
    controller.write("more.yaml", &pod("job", "n1", "10.0.1.9"));
    let update = node.update().await;
    assert!(!update.snapshot, "what it holds is known by its digest");
    controller
        .status_when(|status| status.nodes[0].revision_held == update.revision)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_controller_recognises_what_a_node_holds() {
    let mut controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    let before = controller.status().await.revision;
    controller.stop().await;
    assert!(!controller.socket().exists(), "it cleans up");
    assert_eq!(node.next().await.unwrap_err().code(), Code::Unavailable);
    controller.run().await;
    let after = controller.status_when(|status| status.revision > 0).await.revision;
    assert!(after > before, "revisions rise over restarts");
    let mut node = node.reconnect(&controller, "n1").await;
    controller
        .status_when(|status| status.nodes.iter().any(|node| node.revision_held > 0))
        .await;
    controller.write("more.yaml", &pod("job", "n1", "10.0.1.9"));
    let update = node.update().await;
    assert!(!update.snapshot, "nothing but the new pod is sent");
    assert_eq!(controller.status().await.nodes[0].updates, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_gets_one_difference_not_a_backlog() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let mut node = Node::connect(&controller, "n1").await;
    let first = node.receive().await;
    let mut newest = first.revision;
    for number in 1..=5 {
        controller.write(
            &format!("job-{number}.yaml"),
            &pod(&format!("job-{number}"), "n1", &format!("10.0.1.1{number}")),
        );
        let compiled = |status: &v1::ControllerStatus| status.sizes.is_some_and(|sizes| sizes.workloads == 2 + number);
        newest = controller.status_when(compiled).await.revision;
    }
    assert!(newest >= first.revision + 5);
    node.acknowledge(&first).await;
    let second = node.update().await;
    assert_eq!((second.revision, second.snapshot), (newest, false));
    assert_eq!(node.state.endpoints.len(), 6, "all that happened meanwhile, at once");
    controller
        .status_when(|status| status.nodes[0].revision_held == newest && status.nodes[0].updates == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_is_sent_again_from_the_same_base() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    let before = node.state.clone();
    controller.write("more.yaml", &pod("job", "n1", "10.0.1.9"));
    let refused = node.receive().await;
    let error = "map RULES is full: 262144 of 262144".to_owned();
    node.send(NodeMessage::Ack(v1::Ack {
        revision: refused.revision,
        error: error.clone(),
        ..v1::Ack::default()
    }))
    .await;
    let status = controller.status_when(|status| status.nodes[0].error == error).await;
    assert!(status.nodes[0].revision_held < refused.revision);
    node.state = before;
    let again = node.update().await;
    assert_eq!((again.snapshot, &again.delta), (false, &refused.delta));
    controller.status_when(|status| status.nodes[0].error.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn news_of_an_old_revision_is_no_answer_to_a_new_one() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let mut node = Node::connect(&controller, "n1").await;
    let first = node.receive().await;
    let endpoints = vec![v1::EndpointGeneration {
        enforced: true,
        ..v1::EndpointGeneration::default()
    }];
    let revision = first.revision - 1;
    node.send(NodeMessage::Ack(v1::Ack {
        revision,
        endpoints,
        ..v1::Ack::default()
    }))
    .await;
    let status = controller
        .status_when(|status| status.nodes[0].endpoints_enforced == 1)
        .await;
    assert_eq!((status.nodes[0].revision_held, status.nodes[0].last_ack), (0, None));
    node.acknowledge(&first).await;
    controller
        .status_when(|status| status.nodes[0].revision_held == first.revision)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_addresses_are_checked_and_shared() {
    let late = pod("late", "n1", "10.0.1.7").replace(", podIP: 10.0.1.7, podIPs: [{ip: 10.0.1.7}]", "");
    let controller = Controller::start(&[("shop.yaml", &shop()), ("late.yaml", &late)]).await;
    let (mut first, mut second) = (
        Node::connect(&controller, "n1").await,
        Node::connect(&controller, "n2").await,
    );
    first.update().await;
    second.update().await;
    let endpoint = |name: &str, address: [u8; 4]| v1::AnnouncedEndpoint {
        workload: Some(v1::WorkloadName {
            namespace: "shop".into(),
            name: name.into(),
        }),
        pod_uid: format!("uid-{name}"),
        addresses: vec![address.to_vec()],
        ..v1::AnnouncedEndpoint::default()
    };
    let endpoints = vec![endpoint("late", [10, 0, 1, 7]), endpoint("db", [10, 0, 2, 1])];
    first
        .send(NodeMessage::Announcement(v1::Announcement {
            endpoints,
            node_addresses: Vec::new(),
        }))
        .await;
    let update = second.update().await;
    assert_eq!(
        update
            .delta
            .upserts
            .iter()
            .filter(|it| matches!(it.name(), ResourceName::Binding(..)))
            .count(),
        1
    );
    assert_eq!(
        second.state.bindings.len(),
        3,
        "n2 knows the address before the API shows it"
    );
    let result = loop {
        if let Message::AnnouncementResult(result) = first.next().await.unwrap() {
            break result;
        }
    };
    assert_eq!(result.rejected.len(), 1);
    assert_eq!(result.rejected[0].reason, "the pod is on n2, not on n1");
    let announced = |status: &v1::ControllerStatus| status.nodes.iter().any(|node| node.endpoints_announced == 1);
    controller.status_when(announced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_its_state_while_the_manifests_are_known_in_part() {
    let mut controller = Controller::start(&[("pods.yaml", &shop()), ("policy.yaml", &policy("web", "db", 1))]).await;
    let mut node = Node::connect(&controller, "n1").await;
    node.update().await;
    controller.stop().await;
    controller.write("policy.yaml", "kind: [");
    controller.run().await;
    let mut node = node.reconnect(&controller, "n1").await;
    let mut fresh = Node::connect(&controller, "n2").await;
    assert!(
        fresh.update().await.snapshot,
        "a node without a state gets what is known"
    );
    let waits = |status: &v1::ControllerStatus| status.nodes.iter().any(|node| node.error.contains("policy.yaml"));
    let status = controller.status_when(waits).await;
    assert_eq!(status.nodes[0].updates, 0, "nothing was taken from n1");
    controller.write("policy.yaml", &policy("web", "db", 2));
    let update = node.update().await;
    assert!(
        node.state
            .rulesets
            .values()
            .any(|ruleset| ruleset.policies == ["NetworkPolicy/shop/web"]),
        "{update:?}"
    );

    // A new broken file was never in force, so it holds nobody back.
    controller.write("new.yaml", "kind: [");
    let said = |status: &v1::ControllerStatus| status.diagnostics.iter().any(|found| found.source.contains("new.yaml"));
    controller.status_when(said).await;
    controller.write("more.yaml", &pod("job", "n1", "10.0.1.9"));
    let mut node = node.reconnect(&controller, "n1").await;
    node.update().await;
    assert_eq!(node.endpoints(), ["shop/job", "shop/web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_is_told_so() {
    let controller = Controller::start(&[("shop.yaml", &shop())]).await;
    let refusal = async |first| open(&controller, first).await.expect_err("refused");
    let status = refusal(NodeMessage::Ack(v1::Ack::default())).await;
    assert!(status.message().contains("Hello"), "{status}");
    let status = refusal(NodeMessage::Hello(v1::Hello {
        protocol: 99,
        ..hello("n1")
    }))
    .await;
    assert!(status.message().contains("protocol 99"), "{status}");
    let status = refusal(NodeMessage::Hello(hello(""))).await;
    assert!(status.message().contains("field node"), "{status}");

    let mut old = Node::connect(&controller, "n1").await;
    old.update().await;
    let mut new = Node::connect(&controller, "n1").await;
    new.update().await;
    assert_eq!(
        old.next().await.unwrap_err().code(),
        Code::Aborted,
        "one stream per node"
    );
    assert!(controller.status().await.nodes[0].connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn findings_and_sizes_are_in_the_status_and_a_second_instance_is_refused() {
    let controller = Controller::start(&[("shop.yaml", &shop()), ("broken.yaml", "kind: [")]).await;
    let status = controller.status_when(|status| status.revision > 0).await;
    let found = status
        .diagnostics
        .iter()
        .find(|found| found.source.contains("broken.yaml"))
        .expect("a finding");
    assert_eq!(found.severity(), v1::Severity::Error);
    let sizes = status.sizes.unwrap();
    assert_eq!(
        (sizes.workloads, sizes.policies, sizes.endpoints, sizes.bindings),
        (2, 1, 2, 2)
    );
    assert!(status.source.ends_with("manifests"));
    let error = Box::pin(bulkhead_controller::run::run(
        controller.config(),
        None,
        std::future::pending(),
    ))
    .await
    .unwrap_err();
    assert!(
        error.to_string().contains("another controller is serving on"),
        "{error}"
    );
    assert!(controller.socket().exists(), "the first one's socket is untouched");
}
