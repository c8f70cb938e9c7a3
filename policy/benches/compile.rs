//! How long the compiler takes: 10,000 pods and 1,000 policies from scratch, then single events. Prints; asserts nothing
//! about time. `cargo bench -p bulkhead-policy -- [PODS] [POLICIES]`.

#![allow(clippy::expect_used, reason = "a benchmark's own words are known to be right")]

use std::sync::Arc;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use bulkhead_policy::{
    compiler::Compiler,
    model::{
        Action, Attachment, Direction, Event, LabelSelector, Labels, Manner, Match, Mode, NamedPort, NamespaceMatch,
        Object, Operator, Peer, PodMatch, Policy, PolicyKey, PolicyKind, PortMatch, Protocol, Requirement, Rule, Tier,
        Workload, WorkloadKey, Zone,
    },
};

/// Every namespace has 20 workloads of 10 replicas; a policy lets one of them be reached by another and by a namespace.
const REPLICAS: u32 = 10;
const APPS: u32 = 20;
const ROUNDS: u32 = 1_000;

fn shared(number: u32, namespaces: u32) -> Arc<Workload> {
    Arc::new(workload(number, namespaces))
}

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse().ok());
    let (pods, policies) = (numbers.next().unwrap_or(10_000), numbers.next().unwrap_or(1_000));
    let pods_of = pods;
    let namespaces = (pods / (REPLICAS * APPS)).max(1);
    let objects: Vec<Object> = (0..pods)
        .map(|number| Object::Workload(shared(number, namespaces)))
        .chain((0..policies).map(|number| Object::Policy(policy(number, namespaces))))
        .collect();
    let start = Instant::now();
    let mut compiler = Compiler::from_scratch(objects);
    let state = compiler.state();
    let entries: usize = state.rulesets.values().map(|ruleset| ruleset.entries.len()).sum();
    println!(
        "{pods} pods, {policies} policies from scratch: {:?}; {} identities, {} rulesets, {entries} entries",
        start.elapsed(),
        state.identities.len(),
        state.rulesets.len(),
    );
    let mut relabelled = workload(7, namespaces);
    relabelled.labels.insert("app".to_owned(), "app-3".to_owned());
    time(
        "a pod is relabelled",
        &mut compiler,
        Event::Upsert(Object::Workload(Arc::new(relabelled))),
    );
    time(
        "and back",
        &mut compiler,
        Event::Upsert(Object::Workload(shared(7, namespaces))),
    );
    let start = Instant::now();
    for round in 0..ROUNDS {
        let mut pod = workload(round, namespaces);
        pod.labels.insert("app".to_owned(), format!("app-{}", round % APPS));
        compiler.apply(&[Event::Upsert(Object::Workload(Arc::new(pod)))]);
    }
    println!(
        "{ROUNDS} pods relabelled one by one: {:?} each",
        start.elapsed() / ROUNDS
    );
    time(
        "a pod comes",
        &mut compiler,
        Event::Upsert(Object::Workload(shared(pods_of, namespaces))),
    );
    time(
        "a policy comes",
        &mut compiler,
        Event::Upsert(Object::Policy(policy(policies, namespaces))),
    );
    let mut changed = policy(policies, namespaces);
    changed.generation = 2;
    time(
        "a policy changes",
        &mut compiler,
        Event::Upsert(Object::Policy(changed)),
    );
}

fn time(what: &str, compiler: &mut Compiler, event: Event) {
    let start = Instant::now();
    let changes = compiler.apply(&[event]);
    let (upserts, removes) = (changes.delta.upserts.len(), changes.delta.removes.len());
    println!(
        "{what}: {:?}; {upserts} resources written, {removes} removed",
        start.elapsed()
    );
}

fn namespace(number: u32) -> String {
    format!("ns-{number}")
}

fn workload(number: u32, namespaces: u32) -> Workload {
    let app = number / namespaces % APPS;
    let labels = [
        ("app", format!("app-{app}")),
        ("pod-template-hash", format!("{}", number % 977)),
        ("tier", format!("t{}", app % 3)),
    ];
    Workload {
        key: WorkloadKey {
            namespace: namespace(number % namespaces),
            name: format!("pod-{number}"),
        },
        uid: format!("uid-{number}"),
        labels: labels
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<Labels>(),
        service_account: "default".to_owned(),
        node: Some(format!("node-{}", number % 100)),
        addresses: BTreeSet::from([IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0001 + number))]),
        zone: Zone(0),
        named_ports: vec![NamedPort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            number: 8080,
        }],
        attachment: Attachment::default(),
        image_class: 0,
        claims: std::collections::BTreeMap::default(),
    }
}

fn label(key: &str, value: String) -> LabelSelector {
    let operator = Operator::In(BTreeSet::from([value]));
    LabelSelector(BTreeSet::from([Requirement {
        key: key.to_owned(),
        operator,
    }]))
}

fn policy(number: u32, namespaces: u32) -> Policy {
    let own = namespace(number % namespaces);
    let app = number / namespaces % APPS;
    let pods = |namespaces, pods| PodMatch {
        namespaces,
        pods,
        service_accounts: Match::Any,
    };
    let rule = |index, peers: Vec<Peer>| Rule {
        name: None,
        index,
        action: Action::Allow,
        peers: Match::OneOf(peers),
        ports: Match::OneOf(vec![
            PortMatch::Range {
                protocol: Protocol::Tcp,
                first: 5432,
                last: 5432,
            },
            PortMatch::Named {
                protocol: None,
                name: "http".to_owned(),
            },
        ]),
        guard: None,
        mode: Mode::Enforce,
    };
    let caller = pods(
        NamespaceMatch::Name(own.clone()),
        label("app", format!("app-{}", (app + 1) % APPS)),
    );
    let other = namespace((number * 7 + 1) % namespaces);
    let elsewhere = pods(
        NamespaceMatch::Labels(label("kubernetes.io/metadata.name", other)),
        LabelSelector::default(),
    );
    let block = "192.168.0.0/16".parse().expect("a block");
    Policy {
        key: PolicyKey {
            kind: PolicyKind::NetworkPolicy,
            namespace: own.clone(),
            name: format!("policy-{number}"),
        },
        uid: format!("policy-uid-{number}"),
        generation: 1,
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: vec![pods(NamespaceMatch::Name(own), label("app", format!("app-{app}")))],
        nodes: Vec::new(),
        isolates: BTreeSet::from([Direction::Ingress, Direction::Egress]),
        mode: Mode::Enforce,
        manner: Manner::default(),
        ingress: vec![rule(0, vec![Peer::Pods(caller.clone()), Peer::Pods(elsewhere)])],
        egress: vec![rule(
            0,
            vec![
                Peer::Pods(caller),
                Peer::Network {
                    cidr: block,
                    except: BTreeSet::new(),
                },
            ],
        )],
    }
}
