//! NetworkPolicy: what the API server's defaults make of it, and the closed meaning of what it would refuse.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::too_many_lines, reason = "tables of cases")]

mod common;

use bulkhead_policy::{diagnostic::Severity, model::Direction};
use common::{lower, messages, pod_match, policy, show};

const HEAD: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n";

fn with_spec(spec: &str) -> String {
    format!("{HEAD}spec: {spec}\n")
}

/// Directions that are isolated, and the rules.
fn lowered(spec: &str) -> (String, Vec<String>, Vec<String>) {
    let lowered = lower(&with_spec(spec));
    let policy = policy(&lowered);
    let isolates: Vec<_> = policy.isolates.iter().map(ToString::to_string).collect();
    let rules = policy
        .egress
        .iter()
        .map(|rule| ("egress", rule))
        .chain(policy.ingress.iter().map(|rule| ("ingress", rule)));
    let rules = rules
        .map(|(direction, rule)| format!("{direction}{}", show(rule)))
        .collect();
    (isolates.join("+"), rules, messages(&lowered))
}

#[test]
fn policy_types_default_as_the_api_server_does_it() {
    for (spec, isolates, warnings) in [
        ("{podSelector: {}}", "ingress", 0),
        ("{}", "ingress", 0),
        ("{podSelector: {}, ingress: []}", "ingress", 0),
        ("{podSelector: {}, egress: [{}]}", "egress+ingress", 0),
        ("{podSelector: {}, policyTypes: [], egress: [{}]}", "egress+ingress", 0),
        // The API server looks at the number of egress rules, not at whether the field is there.
        ("{podSelector: {}, egress: []}", "ingress", 1),
        ("{podSelector: {}, policyTypes: [Egress]}", "egress", 0),
        ("{podSelector: {}, policyTypes: [Ingress, Egress]}", "egress+ingress", 0),
        ("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", "ingress", 1),
    ] {
        let (found, _, messages) = lowered(spec);
        assert_eq!(
            (found.as_str(), messages.len()),
            (isolates, warnings),
            "{spec}: {messages:?}"
        );
    }
    let absent = lower(HEAD);
    assert_eq!(
        policy(&absent).isolates.iter().copied().collect::<Vec<_>>(),
        [Direction::Ingress]
    );
    assert_eq!(pod_match(&policy(&absent).subject[0]), "=shop/()");
}

#[test]
fn rules_of_a_direction_that_is_not_isolated_do_nothing() {
    let (_, rules, messages) = lowered("{podSelector: {}, policyTypes: [Ingress], egress: [{}], ingress: [{}]}");
    assert_eq!(rules, ["ingress[0] Allow anyone: any port"]);
    assert!(
        messages[0].contains("spec.egress: has no effect, because policyTypes does not name this direction"),
        "{messages:?}"
    );
}

#[test]
fn absent_and_empty_lists_match_anything() {
    for rule in [
        "{}",
        "{from: []}",
        "{ports: []}",
        "{from: [], ports: []}",
        "{from: null, ports: null}",
    ] {
        let (_, rules, messages) = lowered(&format!("{{podSelector: {{}}, ingress: [{rule}]}}"));
        assert_eq!(rules, ["ingress[0] Allow anyone: any port"], "{rule}");
        assert!(messages.is_empty(), "{messages:?}");
    }
    assert_eq!(lowered("{podSelector: {}, ingress: []}").1, Vec::<String>::new());
}

#[test]
fn peers() {
    for (peer, expected) in [
        ("{podSelector: {}}", "pods =shop/()"),
        ("{podSelector: {matchLabels: {a: b}}}", "pods =shop/(a in {\"b\"})"),
        ("{namespaceSelector: {}}", "pods ()/()"),
        (
            "{namespaceSelector: {matchLabels: {n: m}}, podSelector: {matchExpressions: [{key: a, operator: DoesNotExist}]}}",
            "pods (n in {\"m\"})/(!a)",
        ),
        ("{ipBlock: {cidr: 10.0.0.0/8}}", "10.0.0.0/8"),
        (
            "{ipBlock: {cidr: 'fd00::/8', except: ['fd00:1::/32', 'fd00:2::/32']}}",
            "fd00::/8 without fd00:1::/32 fd00:2::/32",
        ),
    ] {
        let (_, rules, messages) = lowered(&format!("{{ingress: [{{from: [{peer}]}}]}}"));
        assert_eq!(rules, [format!("ingress[0] Allow {expected}: any port")], "{peer}");
        assert!(messages.is_empty(), "{messages:?}");
    }
}

#[test]
fn ports() {
    for (port, expected) in [
        ("{}", "Tcp 0-65535"),
        ("{protocol: SCTP}", "Sctp 0-65535"),
        ("{port: 80}", "Tcp 80"),
        ("{port: 80, endPort: 80}", "Tcp 80"),
        ("{port: 1, endPort: 65535, protocol: UDP}", "Udp 1-65535"),
        ("{port: http}", "Tcp http"),
        ("{port: dns, protocol: UDP}", "Udp dns"),
    ] {
        let (_, rules, messages) = lowered(&format!("{{ingress: [{{ports: [{port}]}}]}}"));
        assert_eq!(rules, [format!("ingress[0] Allow anyone: {expected}")], "{port}");
        assert!(messages.is_empty(), "{messages:?}");
    }
}

/// Each of these is refused by the API server. Beside it there is a good peer, port and rule, which stay.
#[test]
fn a_piece_that_cannot_be_read_matches_nothing_and_is_named() {
    let peers = [
        (
            "{}",
            "spec.ingress[0].from[0]: has none of podSelector, namespaceSelector and ipBlock, so it matches nothing; set one",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}",
            "spec.ingress[0].from[0]: has an ipBlock and a selector, so it matches nothing; make two peers",
        ),
        (
            "{ipBlock: {cidr: 10.0.0/8}}",
            "spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0/8\" is not a block of addresses; write it like",
        ),
        (
            "{ipBlock: {except: [10.0.0.0/8]}}",
            "spec.ingress[0].from[0].ipBlock.cidr: \"\" is not a block",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}",
            "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/9 is not a smaller block inside 10.0.0.0/8, so the peer matches nothing; correct",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}",
            "is not a smaller block inside",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}",
            "is not a smaller block inside",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.1]}}",
            "spec.ingress[0].from[0].ipBlock.except[0]: \"10.0.0.1\" is not a block",
        ),
        (
            "{ipBlock: {cidr: 10.0.0.0/8, excep: []}}",
            "spec.ingress[0].from[0].ipBlock.excep: is no field of an ipBlock",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}",
            "spec.ingress[0].from[0].podSelector.matchExpressions[0].operator: is \"Is\"; write In, NotIn, Exists or DoesNotExist",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: In, values: []}]}}",
            "matchExpressions[0].values: is empty",
        ),
        (
            "{podSelector: {matchLabel: {a: b}}}",
            "podSelector.matchLabel: is no field of a label selector",
        ),
        (
            "{podSelector: {}, namespaceSelecter: {}}",
            "spec.ingress[0].from[0].namespaceSelecter: is no field of a peer",
        ),
    ];
    for (peer, message) in peers {
        let spec =
            format!("{{ingress: [{{from: [{peer}, {{ipBlock: {{cidr: 192.0.2.0/24}}}}]}}, {{ports: [{{port: 1}}]}}]}}");
        expect_closed(
            &spec,
            message,
            &[
                "ingress[0] Allow 192.0.2.0/24: any port",
                "ingress[1] Allow anyone: Tcp 1",
            ],
        );
        let alone = format!("{{ingress: [{{from: [{peer}]}}, {{ports: [{{port: 1}}]}}]}}");
        expect_closed(&alone, message, &["ingress[1] Allow anyone: Tcp 1"]);
    }
    let ports = [
        (
            "{port: 0}",
            "spec.ingress[0].ports[0].port: is 0; write a port from 1 to 65535; the port matches nothing",
        ),
        (
            "{port: 65536}",
            "spec.ingress[0].ports[0].port: is 65536; write a port from 1 to 65535",
        ),
        ("{port: -1}", "spec.ingress[0].ports[0].port: is -1; write a port"),
        (
            "{port: 90, endPort: 80}",
            "spec.ingress[0].ports[0].endPort: 80 is smaller than port 90; swap them",
        ),
        ("{endPort: 80}", "spec.ingress[0].ports[0].endPort: is set without port"),
        (
            "{port: http, endPort: 80}",
            "spec.ingress[0].ports[0].endPort: is set with a named port",
        ),
        (
            "{port: 80, endPort: 70000}",
            "spec.ingress[0].ports[0].endPort: is 70000; write a port",
        ),
        (
            "{port: '80'}",
            "spec.ingress[0].ports[0].port: is the text \"80\"; write the number without quotes",
        ),
        (
            "{port: HTTP}",
            "spec.ingress[0].ports[0].port: is \"HTTP\", which is not a port name",
        ),
        (
            "{port: 80, protocol: ICMP}",
            "spec.ingress[0].ports[0].protocol: is \"ICMP\"; write TCP, UDP or SCTP",
        ),
        (
            "{port: 80, protocl: UDP}",
            "spec.ingress[0].ports[0].protocl: is no field of a port",
        ),
    ];
    for (port, message) in ports {
        let spec = format!("{{ingress: [{{ports: [{port}, {{port: 7}}]}}, {{ports: [{{port: 1}}]}}]}}");
        expect_closed(
            &spec,
            message,
            &["ingress[0] Allow anyone: Tcp 7", "ingress[1] Allow anyone: Tcp 1"],
        );
        let alone = format!("{{ingress: [{{ports: [{port}]}}, {{ports: [{{port: 1}}]}}]}}");
        expect_closed(&alone, message, &["ingress[1] Allow anyone: Tcp 1"]);
    }
    let rules = [
        (
            "{form: [{podSelector: {}}]}",
            "spec.ingress[0].form: is no field of a rule, so the rule allows nothing; check its spelling",
        ),
        (
            "{from: {podSelector: {}}}",
            "spec.ingress[0].from: invalid type: map, expected a sequence, so the rule allows nothing",
        ),
        ("7", "spec.ingress[0]: invalid type: integer `7`"),
        ("{ports: [{port: 99999999999}]}", "spec.ingress[0].ports[0].port"),
    ];
    for (rule, message) in rules {
        expect_closed(
            &format!("{{ingress: [{rule}, {{ports: [{{port: 1}}]}}]}}"),
            message,
            &["ingress[1] Allow anyone: Tcp 1"],
        );
    }
}

fn expect_closed(spec: &str, message: &str, expected: &[&str]) {
    let (isolates, rules, messages) = lowered(spec);
    assert_eq!(isolates, "ingress", "{spec}");
    assert_eq!(rules, expected, "{spec}");
    assert!(
        messages
            .iter()
            .any(|it| it.starts_with("error: f.yaml document 1: NetworkPolicy shop/p: spec.") && it.contains(message)),
        "{spec}: {messages:#?}"
    );
}

/// Isolates at least whom it means, and allows them nothing.
#[test]
fn a_subject_that_cannot_be_read_isolates_more_and_allows_nothing() {
    for (selector, subject, message) in [
        (
            "{matchLabels: {a: b}, matchExpressions: [{key: c, operator: Like, values: [d]}]}",
            "=shop/(a in {\"b\"})",
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (
            "{matchLabel: {a: b}}",
            "=shop/()",
            "spec.podSelector.matchLabel: is no field of a label selector",
        ),
        (
            "a=b",
            "=shop/()",
            "spec.podSelector: invalid type: string \"a=b\", expected LabelSelector",
        ),
        (
            "{matchLabels: {a: 1}}",
            "=shop/()",
            "spec.podSelector.matchLabels.a: invalid type: integer `1`, expected a string",
        ),
    ] {
        let lowered = lower(&with_spec(&format!(
            "{{podSelector: {selector}, ingress: [{{}}], egress: [{{}}]}}"
        )));
        let found = policy(&lowered);
        assert_eq!(pod_match(&found.subject[0]), subject);
        assert_eq!(found.isolates.len(), 2);
        assert!(found.ingress.is_empty() && found.egress.is_empty());
        let messages = messages(&lowered);
        assert!(messages.iter().any(|it| it.contains(message)), "{messages:#?}");
        assert!(lowered.diagnostics.iter().any(|it| it.severity == Severity::Error));
    }
}

#[test]
fn directions_that_cannot_be_read_are_both_isolated() {
    for types in ["[ingress]", "Ingress", "[Ingress, 7]"] {
        let (isolates, _, messages) = lowered(&format!("{{podSelector: {{}}, policyTypes: {types}}}"));
        assert_eq!(isolates, "egress+ingress", "{types}");
        assert!(
            messages
                .iter()
                .any(|it| it.contains("spec.policyTypes") && it.contains("both directions")),
            "{messages:?}"
        );
    }
    let (isolates, rules, messages) = lowered("{egress: {to: []}}");
    assert_eq!((isolates.as_str(), rules.len()), ("egress+ingress", 0));
    assert!(
        messages[0].contains("spec.egress: is not a list, so nothing is allowed"),
        "{messages:?}"
    );
}

#[test]
fn what_is_no_policy_at_all_is_said_to_be_not_applied() {
    for (text, message) in [
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nspec: {}\n",
            "NetworkPolicy without a name: metadata.name: is missing, so the policy is not applied; give it a name",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: text\n",
            "NetworkPolicy default/p: spec: invalid type: string \"text\"",
        ),
        (
            "apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec: {}\n",
            "NetworkPolicy default/p: apiVersion: extensions/v1beta1 of NetworkPolicy is not read, so the policy is not applied",
        ),
        (
            "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: p}\n",
            "AdminNetworkPolicy p: apiVersion: ",
        ),
    ] {
        let lowered = lower(text);
        assert!(lowered.objects.is_empty());
        let messages = messages(&lowered);
        assert!(
            messages[0].starts_with("error: f.yaml document 1: ") && messages[0].contains(message),
            "{messages:?}"
        );
    }
}

#[test]
fn suspicious_but_legal() {
    let (_, rules, messages) = lowered(
        "{ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16, 10.1.2.0/24, 10.1.0.0/16]}}]}]}",
    );
    assert_eq!(
        rules,
        ["ingress[0] Allow 10.0.0.0/8 without 10.1.0.0/16 10.1.2.0/24: any port"]
    );
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert!(messages.iter().all(|it| it.starts_with("warning: ")));
    assert!(
        messages[1]
            .contains("except[1]: 10.1.2.0/24 lies inside 10.1.0.0/16, so it changes nothing; remove one of them"),
        "{messages:?}"
    );
    let (_, _, messages) = lowered("{podSelector: {}, ingres: [{}]}");
    assert!(
        messages[0].contains("spec.ingres: is no field of a NetworkPolicy and is left out; check its spelling"),
        "{messages:?}"
    );
}
