//! Both answers, one answer, none.

use bulkhead_proto::v1::{
    Diagnostic, LossPlace, LostFlows, MapUsage, NodeStatus, PolicyKind, PolicyName, PolicyStatus, Severity,
    VerdictCount,
};

use super::*;

fn controller() -> ControllerStatus {
    let name = |name: &str| {
        let kind = PolicyKind::NetworkPolicy.into();
        Some(PolicyName {
            kind,
            namespace: "shop".into(),
            name: name.into(),
        })
    };
    let policy = |policy: &str, enforced: u32| PolicyStatus {
        policy: name(policy),
        accepted: true,
        endpoints: 3,
        nodes_needed: 2,
        nodes_enforced: enforced,
        nodes_waiting: if enforced == 2 { vec![] } else { vec!["n2".into()] },
        enforced_after_ms: (enforced == 2).then_some(41),
        ..PolicyStatus::default()
    };
    let mut found = Diagnostic {
        source: "a.yaml document 1".into(),
        message: "is not YAML".into(),
        ..Default::default()
    };
    found.set_severity(Severity::Error);
    ControllerStatus {
        version: "0.1.0".into(),
        revision: 57,
        source: "files /m".into(),
        policies: vec![policy("db", 2), policy("web", 1)],
        diagnostics: vec![found],
        nodes: vec![
            NodeStatus {
                node: "n1".into(),
                connected: true,
                revision_held: 57,
                ..NodeStatus::default()
            },
            NodeStatus {
                node: "n2".into(),
                connected: true,
                error: "map RULES is full".into(),
                ..NodeStatus::default()
            },
        ],
        ..ControllerStatus::default()
    }
}

fn agent() -> AgentStatus {
    let mut lost = LostFlows {
        count: 12,
        ..LostFlows::default()
    };
    lost.set_place(LossPlace::KernelRing);
    let counted = |reason: &str, packets| VerdictCount {
        reason: reason.into(),
        packets,
        ..VerdictCount::default()
    };
    AgentStatus {
        node: "n1".into(),
        revision: 57,
        state_digest: vec![7; 32],
        maps: vec![MapUsage {
            name: "RULES".into(),
            used: 230_000,
            limit: 262_144,
        }],
        verdicts: vec![counted("policy-denied", 5), counted("arp", 0)],
        lost: vec![lost],
        ..AgentStatus::default()
    }
}

#[test]
fn people_see_what_is_wrong() {
    let text = text::status(&Ok(controller()), &Ok(agent()));
    for expected in [
        "revision 57, from files /m",
        "error: a.yaml document 1: is not YAML",
        "2 of 2 nodes  41 ms  enforced",
        "1 of 2 nodes  -      waits for n2",
        "map RULES is full",
        "WITHOUT its controller",
        "lost: 12 flow records in the kernel's event ring",
        "87 % full",
        "policy-denied",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    assert!(!text.contains("arp"), "what did not happen is not listed");
}

#[test]
fn one_that_does_not_answer_does_not_hide_the_other() {
    let text = text::status(&Err("no controller socket".into()), &Ok(agent()));
    assert!(
        text.starts_with("Controller: not reachable: no controller socket\n") && text.contains("of node n1"),
        "{text}"
    );
    let value = json::status(&Ok(controller()), &Err("no agent socket".into()));
    assert_eq!(value["agent"]["error"], "no agent socket");
    assert_eq!(value["controller"]["policies"][0]["policy"], "NetworkPolicy/shop/db");
    assert_eq!(
        value["controller"]["policies"][1]["enforced_after_ms"],
        serde_json::Value::Null
    );
}

#[test]
fn neither_is_an_error_that_names_both() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = Arguments {
        output: Output::Table,
        agent: AgentSocket {
            agent_socket: folder.path().join("a"),
        },
        controller: ControllerSocket {
            controller_socket: folder.path().join("c"),
        },
        access: Access {
            kubeconfig: None,
            context: None,
        },
        namespace: "n".to_owned(),
    };
    // Not `run`, which would ask the cluster of whoever runs this test.
    let (controller, agent) =
        block_on(async { Ok((arguments.ask_controller().await, arguments.ask_agent().await)) }).unwrap();
    let error = [controller.unwrap_err(), agent.unwrap_err()].concat();
    assert!(
        error.contains("bulkhead-agent") && error.contains("bulkhead-controller"),
        "{error}"
    );
}
