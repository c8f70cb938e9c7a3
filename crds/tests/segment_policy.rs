//! SegmentPolicy, ClusterSegmentPolicy and AddressGroup: what they are lowered to, and what of them that cannot be read means.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use bulkhead_policy::model::{Action, Direction, Match, Mode, Object, PolicyKind, Rule, Tier};
use common::{lower, messages, pod_match, policy, show};

fn namespaced(spec: &str) -> String {
    format!(
        "apiVersion: bulkhead.dev/v1alpha1\nkind: SegmentPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn cluster(spec: &str) -> String {
    format!("apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterSegmentPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

/// Every rule in few words, and what was said.
fn rules(text: &str) -> (Vec<String>, Vec<String>) {
    let lowered = lower(text);
    let policy = policy(&lowered);
    let all = policy.ingress.iter().chain(&policy.egress).map(show).collect();
    (all, messages(&lowered))
}

#[test]
fn every_peer_and_port() {
    let (rules, said) = rules(&namespaced(
        "{ingress: [{from: [{podSelector: {matchLabels: {app: a}}}, {namespaceSelector: {}}, {serviceAccounts: [x, y]}, \
         {service: {name: s}}, {service: {namespace: n, name: s}}, {network: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, \
         {addressGroup: g}, {entity: Node}, {entity: KubeApiserver}, {entity: World}]}], \
         egress: [{action: Deny, ports: [{}, {protocol: UDP, port: 53}, {port: 8000, endPort: 8100}, {port: http}, {protocol: ICMP}, \
         {protocol: ICMPv6, icmpType: 128}, {protocol: ICMP, icmpType: 3, icmpCode: 4}]}]}",
    ));
    assert_eq!(said, Vec::<String>::new());
    assert_eq!(
        rules,
        [
            "[0] Allow pods =shop/()@x,y, pods =shop/(app in {\"a\"}), pods ()/(), 10.0.0.0/8 without 10.1.0.0/16, nodes (), the world, \
             service default/kubernetes, service n/s, service shop/s, group g: any port",
            "[0] Deny anyone: Tcp 0-65535, Tcp 8000-8100, Udp 53, Tcp http, ICMP V4 Any, ICMP V4 Code(3, 4), ICMP V6 Type(128)",
        ]
    );
}

/// Names are a condition, so they become a rule beside the one of the peers.
#[test]
fn names_become_a_rule_of_their_own() {
    let (rules, said) = rules(&namespaced(
        "{egress: [{to: [{fqdns: [api.example.com, '*.Shop.test']}, {entity: Node}, {fqdns: ['**.deep.test']}], ports: [{port: 443}]}]}",
    ));
    assert_eq!(said, Vec::<String>::new());
    assert_eq!(
        rules,
        [
            "[0] Allow nodes (): Tcp 443",
            "[0] Allow the world: Tcp 443 if api.example.com, **.deep.test, *.shop.test",
        ]
    );
}

#[test]
fn heads() {
    let lowered = lower(&namespaced(
        "{mode: Shadow, subject: {podSelector: {matchLabels: {app: db}}, serviceAccounts: [db]}, ingress: []}",
    ));
    assert_eq!(messages(&lowered), Vec::<String>::new());
    let shadow = policy(&lowered);
    assert_eq!(
        (shadow.key.kind, shadow.tier, shadow.mode),
        (PolicyKind::SegmentPolicy, Tier::NetworkPolicy, Mode::Shadow)
    );
    assert_eq!(pod_match(&shadow.subject[0]), "=shop/(app in {\"db\"})@db");
    assert_eq!(shadow.isolates.iter().collect::<Vec<_>>(), [&Direction::Ingress]);

    let lowered = lower(&cluster(
        "{tier: Admin, priority: 7, subject: {}, egress: [{action: Pass}, {action: Deny, mode: Shadow}]}",
    ));
    assert_eq!(messages(&lowered), Vec::<String>::new());
    let admin = policy(&lowered);
    assert_eq!(
        (admin.key.kind, admin.tier, admin.priority),
        (PolicyKind::ClusterSegmentPolicy, Tier::Admin, 7)
    );
    assert!(admin.isolates.is_empty());
    assert_eq!(admin.egress[1].mode, Mode::Shadow);
    assert_eq!(pod_match(&admin.subject[0]), "()/()");

    let lowered = lower(&cluster("{subject: {}, egress: []}"));
    assert_eq!(
        policy(&lowered).isolates.iter().collect::<Vec<_>>(),
        [&Direction::Egress]
    );
}

/// Policies of nodes: what they select, and what is no part of them.
#[test]
fn nodes() {
    let lowered = lower(&cluster(
        "{subject: {nodeSelector: {matchLabels: {role: edge}}}, ingress: []}",
    ));
    assert_eq!(messages(&lowered), Vec::<String>::new());
    let edge = policy(&lowered);
    assert!(edge.subject.is_empty());
    assert_eq!(edge.nodes.len(), 1);
    assert_eq!(edge.isolates.iter().collect::<Vec<_>>(), [&Direction::Ingress]);
    for (subject, egress, wanted) in [
        (
            "{nodeSelector: {}, podSelector: {}}",
            "[{}]",
            "stands beside a selector of pods",
        ),
        ("{nodeSelector: 5}", "[{}]", "spec.subject.nodeSelector"),
        (
            "{nodeSelector: {matchLabels: {role: -x}}}",
            "[{}]",
            "spec.subject.nodeSelector.matchLabels[role]",
        ),
        (
            "{nodeSelector: {}}",
            "[{to: [{fqdns: [a.test]}]}]",
            "egress[0].to[0].fqdns: is not for policies of nodes",
        ),
    ] {
        let lowered = lower(&cluster(&format!("{{subject: {subject}, egress: {egress}}}")));
        let said = messages(&lowered);
        assert!(said.iter().any(|line| line.contains(wanted)), "{subject}: {said:#?}");
        let policy = policy(&lowered);
        // Nodes are meant, and nothing is allowed that was not read whole.
        assert!(policy.subject.is_empty() && policy.nodes.len() == 1, "{subject}");
        let allows = |rule: &Rule| rule.action == Action::Allow && rule.peers == Match::Any;
        assert!(!policy.egress.iter().any(allows), "{subject}: {:?}", policy.egress);
    }
    let said = messages(&lower(&namespaced("{subject: {nodeSelector: {}}, ingress: []}")));
    assert!(
        said.iter().any(|line| line.contains("make it a ClusterSegmentPolicy")),
        "{said:#?}"
    );
}

/// What cannot be read, what the rules become, and what is said of it.
#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_cannot_be_read_never_opens_anything() {
    let none: &[&str] = &[];
    let table: &[(&str, &[&str], &str)] = &[
        // A peer or port of an Allow matches nothing; the others stay.
        (
            "ingress: [{from: [{entity: Moon}, {entity: Node}]}]",
            &["[0] Allow nodes (): any port"],
            "spec.ingress[0].from[0].entity",
        ),
        (
            "ingress: [{from: [{network: {cidr: ten}}]}]",
            none,
            "spec.ingress[0].from[0].network.cidr: \"ten\" is not a block",
        ),
        (
            "ingress: [{from: [{podSelector: {matchLabels: {app: -x}}}]}]",
            none,
            "from[0].podSelector.matchLabels[app]: \"-x\"",
        ),
        (
            "ingress: [{from: [{fqdn: a.example}]}]",
            none,
            "spec.ingress[0].from[0].fqdn: is no field",
        ),
        // Names are for Allow rules of egress.
        (
            "ingress: [{from: [{fqdns: [a.example]}]}]",
            none,
            "spec.ingress[0]: names fqdns, which only egress rules may",
        ),
        (
            "egress: [{to: [{fqdns: [a.b.c, 'x*.example', 'a..b']}]}]",
            &["[0] Allow the world: any port if a.b.c"],
            "spec.egress[0].to[0].fqdns[1]: \"x*.example\" has the label",
        ),
        (
            "egress: [{to: [{fqdns: ['*']}]}]",
            none,
            "spec.egress[0].to[0].fqdns[0]: \"*\" names no domain",
        ),
        (
            "egress: [{to: [{fqdns: [a.example], entity: Node}]}]",
            none,
            "has fields of several peers",
        ),
        (
            "egress: [{action: Deny, to: [{fqdns: [a.example]}, {entity: Node}]}]",
            &["[0] Deny anyone: any port"],
            "spec.egress[0]: names fqdns, which only Allow rules may",
        ),
        (
            "ingress: [{from: [{entity: Node, addressGroup: g}]}]",
            none,
            "has fields of several peers",
        ),
        ("ingress: [{from: []}]", none, "spec.ingress[0].from: is empty"),
        (
            "ingress: [{ports: [{port: 80}, {port: 0}]}]",
            &["[0] Allow anyone: Tcp 80"],
            "spec.ingress[0].ports[1].port: is 0",
        ),
        (
            "ingress: [{ports: [{protocol: ICMP, port: 8}]}]",
            none,
            "ports[0].port: is for protocol TCP, UDP and SCTP only",
        ),
        (
            "ingress: [{ports: [{icmpType: 8}]}]",
            none,
            "ports[0].icmpType: is for protocol ICMP",
        ),
        (
            "ingress: [{ports: [{protocol: ICMP, icmpType: 256}]}]",
            none,
            "ports[0].icmpType: is 256",
        ),
        // Of a Deny, it is everything it could have meant.
        (
            "egress: [{action: Deny, to: [{entity: Moon}, {entity: Node}], ports: [{port: 80}]}]",
            &["[0] Deny anyone: Tcp 80"],
            "denies whatever",
        ),
        (
            "egress: [{action: Deny, to: [{entity: Node}], ports: [{port: x_y}]}]",
            &["[0] Deny nodes (): any port"],
            "ports[0].port",
        ),
        // A rule that is not known whole.
        ("ingress: [{when: tuesday}]", none, "spec.ingress[0].when: is no field"),
        (
            "ingress: [{action: Deny, when: tuesday, ports: [{port: 80}]}]",
            &["[0] Deny anyone: Tcp 80"],
            "spec.ingress[0].when",
        ),
        ("ingress: [{mode: Dream}]", none, "spec.ingress[0].mode"),
        (
            "ingress: [{action: Reject, ports: [{port: 80}]}]",
            &["[0] Deny anyone: Tcp 80"],
            "spec.ingress[0]: has an action that cannot be read",
        ),
        (
            "ingress: [{action: Pass}]",
            &["[0] Deny anyone: any port"],
            "is Pass, which only rules of tier Admin may",
        ),
        (
            "ingress: [7]",
            &["[0] Deny anyone: any port"],
            "spec.ingress[0]: is no object",
        ),
        (
            "ingress: all",
            &["[0] Deny anyone: any port"],
            "spec.ingress: is not a list",
        ),
        (
            "ingress: [{trust: {profile: Bad_1}}, {from: [{podSelector: {}}], trust: {profile: ok, of: Subject}}]",
            &["[1] Allow pods =shop/(): any port while subject is ok"],
            "spec.ingress[0].trust.profile: is \"Bad_1\", which is not the name of a profile",
        ),
        (
            "ingress: [{action: Deny, trust: {profile: ok}}]",
            &["[0] Deny anyone: any port"],
            "spec.ingress[0].trust: is for Allow rules only",
        ),
        (
            "ingress: [{trust: {profile: ok, until: never}}]",
            none,
            "spec.ingress[0].trust.until: is no field",
        ),
        (
            "egress: [{to: [{fqdns: [a.test]}], trust: {profile: ok}}]",
            none,
            "spec.egress[0].trust: stands beside fqdns",
        ),
        // A head that is not known whole leaves only what denies.
        (
            "expires: never, ingress: [{}, {action: Deny, ports: [{port: 80}]}]",
            &["[1] Deny anyone: Tcp 80"],
            "spec.expires: is no field",
        ),
        (
            "tier: Admin, ingress: [{}]",
            none,
            "spec.tier: is no field this version knows",
        ),
        ("mode: Dream, ingress: [{}]", none, "spec.mode"),
        (
            "subject: {podSelector: {matchLabels: {app: -x}}}, ingress: [{}]",
            none,
            "spec.subject.podSelector.matchLabels[app]",
        ),
        (
            "subject: {namespaceSelector: {}}, ingress: [{}]",
            none,
            "make it a ClusterSegmentPolicy",
        ),
        (
            "subject: {serviceAccounts: []}, ingress: [{}]",
            none,
            "spec.subject.serviceAccounts: is empty",
        ),
        ("{}", none, "spec: has neither ingress nor egress"),
    ];
    for (spec, expected, wanted) in table {
        let spec = if *spec == "{}" {
            "{}".to_owned()
        } else {
            format!("{{{spec}}}")
        };
        let (rules, said) = rules(&namespaced(&spec));
        assert_eq!(rules, *expected, "{spec}: {said:#?}");
        assert!(said.iter().any(|line| line.contains(wanted)), "{spec}: {said:#?}");
        assert!(
            said.iter().all(|line| line.contains("SegmentPolicy shop/p: ")),
            "{said:#?}"
        );
    }
    for (spec, wanted) in [
        ("{tier: Top, priority: 1, subject: {}, ingress: [{}]}", "spec.tier"),
        (
            "{tier: Admin, subject: {}, ingress: [{action: Pass}]}",
            "spec.priority: is missing",
        ),
        (
            "{priority: 5, subject: {}, ingress: [{}]}",
            "spec.priority: is set without a tier",
        ),
        (
            "{tier: Admin, priority: 1001, subject: {}, ingress: [{}]}",
            "spec.priority: is 1001",
        ),
        (
            "{tier: Baseline, priority: 1, ingress: [{}]}",
            "spec.subject: is missing",
        ),
        (
            "{tier: Admin, priority: 1, subject: {}, ingress: [{from: [{service: {name: s}}]}]}",
            "service.namespace: is missing",
        ),
    ] {
        let (rules, said) = rules(&cluster(spec));
        let opens = rules.iter().any(|rule| rule.contains("Allow") || rule.contains("Pass"));
        assert!(
            !opens && said.iter().any(|line| line.contains(wanted)),
            "{spec}: {rules:?} {said:#?}"
        );
    }
}

#[test]
fn address_groups() {
    let text = |networks: &str| {
        format!(
            "apiVersion: bulkhead.dev/v1alpha1\nkind: AddressGroup\nmetadata: {{name: g}}\nspec: {{networks: {networks}}}\n"
        )
    };
    let group = |networks: &str| {
        let lowered = lower(&text(networks));
        let [Object::AddressGroup(group)] = lowered.objects.as_slice() else {
            panic!("no group: {lowered:?}")
        };
        (group.blocks.len(), group.complete, messages(&lowered))
    };
    assert_eq!(group("[10.0.0.0/8, 'fd00::/8']"), (2, true, vec![]));
    assert_eq!(group("[]"), (0, true, vec![]));
    let (blocks, complete, said) = group("[10.0.0.0/8, ten]");
    assert_eq!((blocks, complete), (1, false));
    assert!(
        said[0].starts_with("error: f.yaml document 1: AddressGroup g: spec.networks[1]: \"ten\""),
        "{said:?}"
    );
    let (_, complete, _) = group("10.0.0.0/8");
    assert!(!complete);
}
