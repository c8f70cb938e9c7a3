//! The control plane's own pods: whatever policies say, they reach and are reached, or nobody could take the policy back.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::sync::Arc;

use bulkhead_policy::{
    compiler::{Compiler, ControlPlane},
    model::{
        Action, Attachment, Direction, Event, LabelSelector, Labels, Manner, Match, Mode, NamespaceMatch, Object, Peer,
        PodMatch, Policy, PolicyKey, PolicyKind, Rule, Tier, Workload, WorkloadKey, Zone,
    },
    probe::{End, Probe},
    state::Decision,
    state_lookup::evaluate,
};

fn pod(namespace: &str, name: &str, service_account: &str, address: &str) -> Workload {
    Workload {
        key: WorkloadKey {
            namespace: namespace.into(),
            name: name.into(),
        },
        uid: String::new(),
        labels: Labels::new(),
        service_account: service_account.into(),
        node: None,
        addresses: BTreeSet::from([address.parse().unwrap()]),
        zone: Zone::default(),
        named_ports: Vec::new(),
        attachment: Attachment::default(),
        image_class: 0,
        claims: std::collections::BTreeMap::default(),
    }
}

/// Admin tier: nobody reaches anybody.
fn deny_all() -> Policy {
    let everybody = PodMatch {
        namespaces: NamespaceMatch::Labels(LabelSelector::default()),
        pods: LabelSelector::default(),
        service_accounts: Match::Any,
    };
    let rule = Rule {
        name: None,
        index: 0,
        action: Action::Deny,
        peers: Match::OneOf(vec![Peer::Pods(everybody.clone())]),
        ports: Match::Any,
        guard: None,
        mode: Mode::Enforce,
    };
    Policy {
        key: PolicyKey {
            kind: PolicyKind::ClusterNetworkPolicy,
            namespace: String::new(),
            name: "deny-all".into(),
        },
        uid: String::new(),
        generation: 0,
        tier: Tier::Admin,
        priority: 0,
        subject: vec![everybody],
        nodes: Vec::new(),
        isolates: BTreeSet::new(),
        mode: Mode::Enforce,
        manner: Manner::default(),
        ingress: vec![rule.clone()],
        egress: vec![rule],
    }
}

#[test]
fn no_policy_cuts_the_control_plane_off_and_the_linter_says_so() {
    let mut compiler = Compiler::with_control(ControlPlane {
        namespace: "bulkhead-system".into(),
        service_account: "bulkhead-controller".into(),
    });
    let controller = pod("bulkhead-system", "controller-0", "bulkhead-controller", "10.0.0.1");
    let neighbour = pod("bulkhead-system", "other", "default", "10.0.0.2");
    let impostor = pod("shop", "controller-0", "bulkhead-controller", "10.0.0.3");
    let pods = [&controller, &neighbour, &impostor];
    let events: Vec<Event> = pods
        .iter()
        .map(|pod| Event::Upsert(Object::Workload(Arc::new((*pod).clone()))))
        .collect();
    compiler.apply(&events);
    let changes = compiler.apply(&[Event::Upsert(Object::Policy(deny_all()))]);
    let warned = changes
        .diagnostics
        .iter()
        .find(|it| it.message.contains("builtin/control"));
    assert!(
        warned.is_some_and(|it| it.message.contains("bulkhead-system/controller-0")),
        "{:?}",
        changes.diagnostics
    );

    let said = |from: &Workload, to: &Workload, direction| {
        let end = |pod: &Workload| End::workload(pod.key.clone(), *pod.addresses.first().unwrap());
        let probe = Probe {
            zone: Zone::default(),
            from: end(from),
            to: end(to),
            protocol: 6,
            port: 4433,
            mode: Mode::Enforce,
        };
        let outcome = evaluate(compiler.state(), &probe, &|_, _| true);
        let (decision, rule) = match direction {
            Direction::Egress => outcome.egress,
            Direction::Ingress => outcome.ingress,
        }
        .unwrap();
        (decision, rule.to_string())
    };
    let control = (Decision::Allow, "builtin/control".to_owned());
    for direction in [Direction::Egress, Direction::Ingress] {
        let of_controller = match direction {
            Direction::Egress => said(&controller, &neighbour, direction),
            Direction::Ingress => said(&neighbour, &controller, direction),
        };
        assert_eq!(of_controller, control);
        for other in [&neighbour, &impostor] {
            let (decision, rule) = match direction {
                Direction::Egress => said(other, &controller, direction),
                Direction::Ingress => said(&controller, other, direction),
            };
            assert_eq!(decision, Decision::Deny, "{}: {rule}", other.key);
        }
    }
}
