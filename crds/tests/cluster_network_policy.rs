//! ClusterNetworkPolicy: every field, and failing closed as the type's comments say.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::too_many_lines, reason = "tables of cases")]

mod common;

use bulkhead_policy::model::Tier;
use common::{lower, messages, pod_match, policy, show};

fn text(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
    )
}

/// The rules of a policy with these egress rules, and its messages.
fn egress(rules: &str) -> (Vec<String>, Vec<String>) {
    let lowered = lower(&text(&format!(
        "{{tier: Admin, priority: 5, subject: {{namespaces: {{}}}}, egress: {rules}}}"
    )));
    (policy(&lowered).egress.iter().map(show).collect(), messages(&lowered))
}

#[test]
fn tier_priority_subject() {
    for (head, tier, priority, subject) in [
        (
            "tier: Admin, priority: 0, subject: {namespaces: {}}",
            Tier::Admin,
            0,
            "()/()",
        ),
        (
            "tier: Baseline, priority: 1000, subject: {namespaces: {matchLabels: {a: b}}}",
            Tier::Baseline,
            1000,
            "(a in {\"b\"})/()",
        ),
        (
            "tier: Admin, priority: 7, subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}}",
            Tier::Admin,
            7,
            "(a in {\"b\"})/(c in {\"d\"})",
        ),
        (
            "tier: Admin, priority: 7, subject: {pods: {podSelector: {}}}",
            Tier::Admin,
            7,
            "()/()",
        ),
    ] {
        let lowered = lower(&text(&format!("{{{head}}}")));
        let found = policy(&lowered);
        assert_eq!(
            (found.tier, found.priority, pod_match(&found.subject[0]).as_str()),
            (tier, priority, subject)
        );
        assert!(messages(&lowered).is_empty(), "{:?}", messages(&lowered));
        assert!(found.isolates.is_empty());
    }
}

#[test]
fn every_peer_and_protocol() {
    let (rules, messages) = egress(
        "[{action: Accept, name: one, to: [{namespaces: {}}, {pods: {podSelector: {matchLabels: {a: b}}}}, {nodes: {}}, {networks: [10.0.0.0/8, 'fd00::/8']}]},
          {action: Deny, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 1, end: 9}}}},
             {sctp: {destinationPort: {number: 5}}}, {destinationNamedPort: http}]},
          {action: Pass, to: [{nodes: {matchLabels: {a: b}}}]}]",
    );
    assert!(messages.is_empty(), "{messages:?}");
    assert_eq!(
        rules,
        [
            "[0] Allow pods ()/(), pods ()/(a in {\"b\"}), 10.0.0.0/8, fd00::/8, nodes (): any port",
            "[1] Deny pods ()/(): Tcp 80, Udp 1-9, Sctp 5, named http",
            "[2] Pass nodes (a in {\"b\"}): any port",
        ]
    );
}

/// Rules with a part that cannot be read: Accept matches no traffic, Deny and Pass deny everything.
#[test]
fn a_rule_with_an_unknown_part_fails_closed() {
    let peers = [
        ("{}", "to[0]: has no field this version knows"),
        (
            "{serviceAccounts: {}}",
            "to[0].serviceAccounts: is no field this version knows",
        ),
        (
            "{namespaces: {}, serviceAccounts: {}}",
            "to[0].serviceAccounts: is no field this version knows",
        ),
        ("{namespaces: {}, nodes: {}}", "to[0]: has more than one field"),
        ("{networks: []}", "to[0]: has no field this version knows"),
        (
            "{networks: [10.0.0.0]}",
            "to[0].networks[0]: \"10.0.0.0\" is not a block",
        ),
        (
            "{domainNames: [example.com]}",
            "to[0].domainNames: is not enforced by this version",
        ),
        (
            "{namespaces: {matchExpressions: [{key: a, operator: Like}]}}",
            "to[0].namespaces.matchExpressions[0].operator",
        ),
        ("{pods: {namespaceSelector: {}}}", "to[0].pods.podSelector: is missing"),
        (
            "{pods: {podSelector: {}, podSelecter: {}}}",
            "to[0].pods.podSelecter: is no field",
        ),
        ("{pods: []}", "to[0].pods"),
    ];
    // A good peer beside it makes no difference: upstream says "the rule", not "the peer".
    for (peer, message) in peers {
        for action in ["Accept", "Deny", "Pass"] {
            expect_closed(
                &format!("{{action: {action}, to: [{peer}, {{namespaces: {{}}}}]}}"),
                action,
                message,
            );
        }
    }
    let protocols = [
        ("{}", "protocols[0]: has no field this version knows"),
        ("{icmp: {type: 7}}", "protocols[0].icmp: is no field this version knows"),
        ("{tcp: {}}", "protocols[0].tcp.destinationPort: is missing"),
        (
            "{tcp: {flags: [syn]}}",
            "protocols[0].tcp.flags: is no field this version knows",
        ),
        (
            "{tcp: {destinationPort: {}}}",
            "protocols[0].tcp.destinationPort: has no field this version knows",
        ),
        (
            "{tcp: {destinationPort: {number: 0}}}",
            "protocols[0].tcp.destinationPort.number: is 0",
        ),
        (
            "{tcp: {destinationPort: {number: '80'}}}",
            "protocols[0].tcp.destinationPort.number: invalid type: string \"80\"",
        ),
        (
            "{udp: {destinationPort: {range: {start: 9, end: 1}}}}",
            "protocols[0].udp.destinationPort.range.end: 1 is smaller than start 9",
        ),
        (
            "{udp: {destinationPort: {number: 1, range: {start: 1, end: 9}}}}",
            "has both number and range",
        ),
        (
            "{destinationNamedPort: '80'}",
            "protocols[0].destinationNamedPort: is the text \"80\"",
        ),
        (
            "{tcp: {destinationPort: {number: 1}}, udp: {destinationPort: {number: 1}}}",
            "protocols[0]: has more than one field",
        ),
    ];
    for (protocol, message) in protocols {
        for action in ["Accept", "Deny", "Pass"] {
            let good = "{tcp: {destinationPort: {number: 1}}}";
            expect_closed(
                &format!("{{action: {action}, to: [{{namespaces: {{}}}}], protocols: [{protocol}, {good}]}}"),
                action,
                message,
            );
        }
    }
    for (rule, message) in [
        ("to: []", "to: is missing or empty"),
        ("from: [{namespaces: {}}]", "from: is no field"),
        ("to: [{namespaces: {}}], protocols: []", "protocols: is empty"),
    ] {
        for action in ["Accept", "Deny", "Pass"] {
            expect_closed(&format!("{{action: {action}, {rule}}}"), action, message);
        }
    }
}

fn expect_closed(rule: &str, action: &str, message: &str) {
    let (rules, messages) = egress(&format!("[{rule}, {{action: Accept, to: [{{nodes: {{}}}}]}}]"));
    let after = "[1] Allow nodes (): any port";
    let expected: &[&str] = if action == "Accept" {
        &[after]
    } else {
        &["[0] Deny anyone: any port", after]
    };
    assert_eq!(rules, expected, "{rule}");
    let prefix = "error: f.yaml document 1: ClusterNetworkPolicy p: spec.egress[0].";
    assert!(
        messages.iter().any(|it| it.starts_with(prefix) && it.contains(message)),
        "{rule}: {messages:#?}"
    );
    let meaning = if action == "Accept" {
        "so the rule matches no traffic"
    } else {
        "so the rule denies everything"
    };
    assert!(
        messages
            .iter()
            .any(|it| it.contains("spec.egress[0]: has a part") && it.contains(meaning)),
        "{messages:#?}"
    );
}

#[test]
fn an_ingress_rule_knows_no_networks() {
    let lowered = lower(&text(
        "{tier: Admin, priority: 5, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{networks: [10.0.0.0/8]}]}]}",
    ));
    assert_eq!(
        policy(&lowered).ingress.iter().map(show).collect::<Vec<_>>(),
        ["[0] Deny anyone: any port"]
    );
    assert!(messages(&lowered)[0].contains("spec.ingress[0].from[0].networks: is no field this version knows"));
}

#[test]
fn an_unknown_action_denies_what_the_rule_matches() {
    let (rules, messages) = egress("[{action: Log, to: [{nodes: {}}]}, {to: [{namespaces: {}}]}]");
    assert_eq!(rules, ["[0] Deny nodes (): any port", "[1] Deny pods ()/(): any port"]);
    assert!(
        messages[0]
            .contains("spec.egress[0].action: is none of Accept, Deny and Pass, so the rule denies what it matches"),
        "{messages:?}"
    );
}

/// Accept matches nothing, Pass denies, Deny stays.
#[test]
fn a_policy_whose_head_cannot_be_read_only_denies() {
    let rules = "egress: [{action: Accept, to: [{nodes: {}}]}, {action: Pass, to: [{nodes: {}}]}, {action: Deny, to: [{namespaces: {}}]}]";
    for (head, subject, message) in [
        (
            "tier: Platform, priority: 5, subject: {namespaces: {}}",
            "()/()",
            "spec.tier: is neither Admin nor Baseline",
        ),
        (
            "priority: 5, subject: {namespaces: {}}",
            "()/()",
            "spec.tier: is neither",
        ),
        ("tier: 7, priority: 5, subject: {namespaces: {}}", "()/()", "spec.tier"),
        (
            "tier: Admin, priority: 1001, subject: {namespaces: {}}",
            "()/()",
            "spec.priority: is 1001; write a number from 0 to 1000",
        ),
        (
            "tier: Admin, priority: -1, subject: {namespaces: {}}",
            "()/()",
            "spec.priority: is -1",
        ),
        (
            "tier: Admin, priority: high, subject: {namespaces: {}}",
            "()/()",
            "spec.priority: invalid type: string \"high\"",
        ),
        (
            "tier: Admin, subject: {namespaces: {}}",
            "()/()",
            "spec.priority: is missing",
        ),
        (
            "tier: Admin, priority: 5",
            "()/()",
            "spec.subject: must have exactly one of namespaces and pods; until then it stands for every pod",
        ),
        (
            "tier: Admin, priority: 5, subject: {}",
            "()/()",
            "spec.subject: must have exactly one",
        ),
        (
            "tier: Admin, priority: 5, subject: {workloads: {}}",
            "()/()",
            "spec.subject.workloads: is no subject this version knows",
        ),
        (
            "tier: Admin, priority: 5, subject: {namespaces: {}, pods: {podSelector: {}}}",
            "()/()",
            "spec.subject: must have exactly one",
        ),
        (
            "tier: Admin, priority: 5, subject: {namespaces: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: In}]}}",
            "(a in {\"b\"})/()",
            "spec.subject.namespaces.matchExpressions[0].values: is empty",
        ),
        (
            "tier: Admin, priority: 5, subject: all",
            "()/()",
            "spec.subject: invalid type: string \"all\"",
        ),
    ] {
        let lowered = lower(&text(&format!("{{{head}, {rules}}}")));
        let found = policy(&lowered);
        assert_eq!(found.tier, Tier::Admin, "{head}");
        assert_eq!(pod_match(&found.subject[0]), subject, "{head}");
        let shown: Vec<_> = found.egress.iter().map(show).collect();
        assert_eq!(
            shown,
            ["[1] Deny nodes (): any port", "[2] Deny pods ()/(): any port"],
            "{head}"
        );
        let messages = messages(&lowered);
        assert!(
            messages
                .iter()
                .any(|it| it.starts_with("error: f.yaml document 1: ClusterNetworkPolicy p: ") && it.contains(message)),
            "{head}: {messages:#?}"
        );
        assert!(
            messages.iter().any(|it| it.contains("the policy only denies")),
            "{messages:#?}"
        );
    }
}

#[test]
fn suspicious_but_legal() {
    let (rules, messages) = egress(
        "[{action: Accept, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}, {tcp: {destinationPort: {range: {start: 5, end: 5}}}}]}]",
    );
    assert_eq!(rules, ["[0] Allow 10.0.0.0/8: named http, Tcp 5"]);
    assert_eq!(messages.len(), 2, "{messages:?}");
    assert!(messages.iter().all(|it| it.starts_with("warning: ")), "{messages:?}");
    let many = vec!["{action: Deny, to: [{nodes: {}}]}"; 26].join(", ");
    let (rules, messages) = egress(&format!("[{many}]"));
    assert_eq!(rules.len(), 26);
    assert!(
        messages[0].contains("spec.egress: has 26 rules and the API server allows 25"),
        "{messages:?}"
    );
}

#[test]
fn status_is_nothing_to_a_policy() {
    let with_status = format!(
        "{}status: {{conditions: [{{type: 7}}]}}\n",
        text("{tier: Admin, priority: 5, subject: {namespaces: {}}}")
    );
    let lowered = lower(&with_status);
    assert_eq!(policy(&lowered).priority, 5);
}
