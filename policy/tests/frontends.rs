//! Connections to a Service's frontend: judged by what is behind it, whatever the cluster.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_policy::{
    compiler::Compiler,
    model::{
        Action, Attachment, Builtin, Direction, EndpointSlice, Event, LabelSelector, Labels, Manner, Match, Mode,
        NamedPort, NamespaceMatch, Object, Operator, Peer, PodMatch, Policy, PolicyKey, PolicyKind, PortMatch,
        Protocol, Requirement, Rule, RuleName, Service, ServicePort, TargetPort, Tier, Workload, WorkloadKey, Zone,
    },
    probe::{End, Probe},
    state::{AddressKind, Decision, State},
    state_lookup::evaluate,
    testing::{cluster, times},
};
use proptest::prelude::*;

/// A port of a frontend, and the backends of its family.
struct Frontend {
    address: IpAddr,
    protocol: u8,
    number: u16,
    backends: Vec<(IpAddr, u16)>,
}

/// The frontends nobody else claims, straight from the objects.
fn frontends(objects: &[Object], state: &State) -> Vec<Frontend> {
    let mut ports = BTreeMap::new();
    for object in objects {
        let Object::Service(service) = object else { continue };
        for (address, port) in service
            .addresses
            .iter()
            .flat_map(|address| service.ports.iter().map(move |port| (*address, port)))
        {
            let binding = state.bindings.get(&(Zone::default(), address));
            if binding.is_none_or(|binding| binding.kind != AddressKind::Service) {
                continue;
            }
            let slices = objects.iter().filter_map(|object| match object {
                Object::EndpointSlice(slice) if slice.service == service.key.name => Some(slice),
                _ => None,
            });
            let slices = slices.filter(|slice| slice.key.namespace == service.key.namespace);
            let backends = slices.flat_map(|slice| {
                let target = slice
                    .ports
                    .iter()
                    .find(|it| it.name == port.name && it.protocol == port.protocol);
                let of_family = slice
                    .addresses
                    .iter()
                    .filter(move |it| it.is_ipv4() == address.is_ipv4());
                of_family.filter_map(move |backend| Some((*backend, target?.number)))
            });
            let protocol = match port.protocol {
                bulkhead_policy::model::Protocol::Tcp => 6,
                bulkhead_policy::model::Protocol::Udp => 17,
                bulkhead_policy::model::Protocol::Sctp => 132,
            };
            let all: &mut Vec<(IpAddr, u16)> = ports.entry((address, protocol, port.port)).or_default();
            all.extend(backends);
        }
    }
    let port = |((address, protocol, port), backends)| Frontend {
        address,
        protocol,
        number: port,
        backends,
    };
    ports.into_iter().map(port).collect()
}

fn verdict(
    state: &State,
    from: &End,
    to: IpAddr,
    (protocol, port): (u8, u16),
    mode: Mode,
) -> Option<(Decision, RuleName)> {
    let probe = Probe {
        zone: Zone::default(),
        from: from.clone(),
        to: End::address(to),
        protocol,
        port,
        mode,
    };
    evaluate(state, &probe, &|_, _| true).egress
}

proptest! {
    #![proptest_config(times(2))]

    #[test]
    fn a_frontend_is_judged_by_all_that_is_behind_it(objects in cluster()) {
        let compiler = Compiler::from_scratch(objects.clone());
        let state = compiler.state();
        for (key, endpoint) in state.endpoints.iter().filter(|(_, endpoint)| endpoint.zone == Zone::default()) {
            let Some(own) = endpoint.addresses.first() else { continue };
            let from = End::workload(key.clone(), *own);
            for Frontend { address, protocol, number: port, backends } in frontends(&objects, state) {
                for mode in [Mode::Enforce, Mode::Shadow] {
                    let (decision, rule) = verdict(state, &from, address, (protocol, port), mode).expect("a decision");
                    // A pod that is its own backend needs no rule to reach itself, which the frontend's hook cannot know.
                    let others = backends.iter().filter(|(backend, _)| !endpoint.addresses.contains(backend));
                    let frontend = |it: &IpAddr| state.bindings.get(&(Zone::default(), *it)).is_some_and(|it| it.kind == AddressKind::Service);
                    let others: Vec<_> = others.filter(|(backend, _)| !frontend(backend)).collect();
                    let each: Vec<Decision> = others
                        .iter()
                        .filter_map(|(backend, target)| verdict(state, &from, *backend, (protocol, *target), mode))
                        .map(|(decision, _)| decision)
                        .collect();
                    if decision == Decision::Allow && !backends.is_empty() {
                        prop_assert!(each.iter().all(|it| *it == Decision::Allow), "{from:?} to {address}:{port} by {rule}, behind it {each:?}");
                    }
                    if rule == RuleName::Builtin(Builtin::MixedBackends) {
                        prop_assert!(backends.len() > 1, "one backend is never mixed");
                    }
                }
            }
        }
    }
}

fn named(name: &str) -> WorkloadKey {
    WorkloadKey {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn pod(name: &str, app: &str, address: &str) -> Object {
    Object::Workload(Arc::new(Workload {
        key: named(name),
        uid: String::new(),
        labels: Labels::from([("app".into(), app.into())]),
        service_account: "default".into(),
        node: None,
        addresses: BTreeSet::from([address.parse().unwrap()]),
        zone: Zone::default(),
        named_ports: Vec::new(),
        attachment: Attachment::default(),
        image_class: 0,
        claims: BTreeMap::default(),
    }))
}

fn pods(app: &str) -> PodMatch {
    PodMatch {
        namespaces: NamespaceMatch::Name("shop".into()),
        pods: LabelSelector(BTreeSet::from([Requirement {
            key: "app".into(),
            operator: Operator::In(BTreeSet::from([app.into()])),
        }])),
        service_accounts: Match::Any,
    }
}

/// The client may open connections to web, at port 8080.
fn client_to_web() -> Object {
    Object::Policy(Policy {
        key: PolicyKey {
            kind: PolicyKind::NetworkPolicy,
            namespace: "shop".into(),
            name: "client".into(),
        },
        uid: String::new(),
        generation: 0,
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: vec![pods("client")],
        nodes: Vec::new(),
        isolates: BTreeSet::from([Direction::Egress]),
        mode: Mode::Enforce,
        manner: Manner::default(),
        ingress: Vec::new(),
        egress: vec![Rule {
            name: None,
            index: 0,
            action: Action::Allow,
            peers: Match::OneOf(vec![Peer::Pods(pods("web"))]),
            ports: Match::OneOf(vec![PortMatch::Range {
                protocol: Protocol::Tcp,
                first: 8080,
                last: 8080,
            }]),
            guard: None,
            mode: Mode::Enforce,
        }],
    })
}

fn service() -> Object {
    let port = |name: &str, port| ServicePort {
        node_port: None,
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
        target: TargetPort::Number(8080),
    };
    Object::Service(Service {
        health_check_port: None,
        key: named("web"),
        addresses: BTreeSet::from(["10.96.0.1".parse().unwrap()]),
        ports: vec![port("http", 80), port("metrics", 9100)],
        selector: None,
    })
}

fn slice(addresses: &[&str]) -> Object {
    let port = |name: &str, number| NamedPort {
        name: name.into(),
        protocol: Protocol::Tcp,
        number,
    };
    Object::EndpointSlice(EndpointSlice {
        key: named("web-1"),
        service: "web".into(),
        addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        ports: vec![port("http", 8080), port("metrics", 9100)],
    })
}

#[test]
fn the_port_behind_decides_and_a_mixture_is_denied() {
    let mut compiler = Compiler::from_scratch([
        pod("client", "client", "10.0.0.1"),
        pod("web-0", "web", "10.0.0.2"),
        pod("web-1", "web", "10.0.0.3"),
        pod("old", "old", "10.0.0.4"),
        client_to_web(),
        service(),
        slice(&["10.0.0.2", "10.0.0.3"]),
    ]);
    let from = End::workload(named("client"), "10.0.0.1".parse().unwrap());
    let said = |compiler: &Compiler, port| {
        let (decision, rule) = verdict(
            compiler.state(),
            &from,
            "10.96.0.1".parse().unwrap(),
            (6, port),
            Mode::Enforce,
        )
        .unwrap();
        format!("{decision:?} {rule}")
    };
    assert_eq!(said(&compiler, 80), "Allow NetworkPolicy/shop/client egress[0]");
    let denied = "Deny NetworkPolicy/shop/client egress default-deny";
    assert_eq!(said(&compiler, 9100), denied, "behind it is 9100, which no rule allows");
    assert_eq!(said(&compiler, 8080), denied, "no port of the Service");

    compiler.apply(&[Event::Upsert(slice(&["10.0.0.2", "10.0.0.4"]))]);
    assert_eq!(said(&compiler, 80), "Deny builtin/mixed-backends");
    compiler.apply(&[Event::Upsert(pod("old", "web", "10.0.0.4"))]);
    assert_eq!(said(&compiler, 80), "Allow NetworkPolicy/shop/client egress[0]");
    compiler.apply(&[Event::Upsert(pod("claimant", "old", "10.96.0.1"))]);
    assert_eq!(said(&compiler, 80), denied, "a pod has that address");
}
