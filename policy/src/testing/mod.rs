//! Random clusters, histories and connections for property tests, here and in the crates above. The vocabulary is small,
//! so that selectors match, blocks overlap and addresses collide often.

mod policies;

use std::sync::Arc;
use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use proptest::{
    collection::{btree_map, btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

use crate::{
    lease::{Claims, Deadline, image_class},
    model::{
        AddressGroup, Attachment, EndpointSlice, Event, Guard, Labels, Mode, NamedPort, Namespace, Node, Object,
        Protocol, Service, ServicePort, TargetPort, Workload, WorkloadKey, Zone,
    },
    oracle,
    probe::{End, Probe},
};

pub use policies::policy;

/// Leases end before this moment.
const TIMES: u64 = 8;
const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "metrics"];
const ACCOUNTS: [&str; 2] = ["default", "robot"];
const GROUPS: [&str; 3] = ["offices", "partners", "nobody"];
const PORTS: [u16; 5] = [53, 80, 81, 443, 8080];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const POD_ADDRESSES: [&str; 12] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.1.1",
    "10.0.1.2",
    "10.0.2.1",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00::1:1",
    "192.168.0.9",
];
const NODE_ADDRESSES: [&str; 5] = ["192.168.0.1", "192.168.0.2", "192.168.0.3", "fd01::1", "10.0.0.4"];
const OTHER_ADDRESSES: [&str; 8] = [
    "10.0.0.77",
    "10.0.1.77",
    "10.0.3.1",
    "192.168.0.77",
    "8.8.8.8",
    "fd00::77",
    "fd00::1:77",
    "2001:db8::1",
];
/// Frontends; the last is sometimes a node's as well, as a load balancer that uses node addresses has it.
const FRONTENDS: [&str; 4] = ["10.96.0.1", "10.96.0.2", "fd96::1", "192.168.0.2"];
/// What may be behind a frontend: pods, a node, outside, nobody, and another frontend.
const BACKENDS: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "fd00::1",
    "fd00::1:1",
    "192.168.0.1",
    "8.8.8.8",
    "10.0.0.77",
    "10.96.0.2",
];
const POD_RANGES: [&str; 5] = [
    "10.0.0.0/24",
    "10.0.1.0/24",
    "10.0.0.0/23",
    "fd00::/112",
    "fd00::1:0/112",
];

/// The blocks policies name: over pods, nodes and the outside, inside each other, of both families.
const BLOCKS: [&str; 16] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/23",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.0.2/32",
    "10.0.1.0/25",
    "192.168.0.0/24",
    "192.168.0.2/32",
    "8.8.0.0/16",
    "::/0",
    "fd00::/8",
    "fd00::/126",
    "fd00::1:0/112",
    "fd01::1/128",
    "2001:db8::/32",
];

fn parse<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn text(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(words).prop_map(str::to_owned)
}

fn address(words: &'static [&'static str]) -> impl Strategy<Value = IpAddr> {
    select(words).prop_filter_map("an address", parse)
}

fn block(words: &'static [&'static str]) -> impl Strategy<Value = IpNetwork> {
    select(words).prop_filter_map("a block", parse)
}

/// Labels of a namespace (`team`, `env`), a pod (`app`, `tier`) or a node (`zone`, `role`).
fn labels(keys: [&'static str; 2]) -> impl Strategy<Value = Labels> {
    let value = || option::weighted(0.8, text(&["x", "y", "z"]));
    (value(), value()).prop_map(move |(first, second)| {
        let labels = keys.into_iter().zip([first, second]);
        labels
            .filter_map(|(key, value)| Some((key.to_owned(), value?)))
            .collect()
    })
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (text(&NAMESPACES), labels(["team", "env"])).prop_map(|(name, mut labels)| {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.clone());
        Namespace { name, labels }
    })
}

fn named_port() -> impl Strategy<Value = NamedPort> {
    (text(&PORT_NAMES), select(&PROTOCOLS[..]), select(&PORTS[..])).prop_map(|(name, protocol, number)| NamedPort {
        name,
        protocol,
        number,
    })
}

/// A pod; its addresses are often another's.
pub fn workload() -> impl Strategy<Value = Workload> {
    let key = (text(&NAMESPACES), text(&["p", "q", "r", "s", "t"]))
        .prop_map(|(namespace, name)| WorkloadKey { namespace, name });
    let place = (
        btree_set(address(&POD_ADDRESSES), 0..3),
        prop_oneof![9 => Just(Zone(0)), 1 => Just(Zone(1))],
    );
    (
        key,
        labels(["app", "tier"]),
        place,
        vec(named_port(), 0..4),
        (option::of(text(&["n", "m"])), text(&ACCOUNTS)),
        images(),
    )
        .prop_map(
            |(key, labels, (addresses, zone), named_ports, (node, service_account), (image_class, claims))| Workload {
                key,
                uid: String::new(),
                labels,
                service_account,
                node,
                addresses,
                zone,
                named_ports,
                attachment: Attachment::default(),
                image_class,
                claims,
            },
        )
}

/// A class and what is claimed of it; some classes have one number.
fn images() -> impl Strategy<Value = (u32, Claims)> {
    let deadline = prop_oneof![3 => (0..TIMES).prop_map(Deadline), 1 => Just(Deadline::ALWAYS)];
    let claims = btree_map(policies::profile(), deadline, 0..3);
    (claims, prop::bool::weighted(0.9)).prop_map(|(claims, own)| {
        let class = if own { image_class(&BTreeSet::new(), &claims) } else { 1 };
        (class, claims)
    })
}

fn node() -> impl Strategy<Value = Node> {
    (
        text(&["n", "m"]),
        labels(["zone", "role"]),
        btree_set(address(&NODE_ADDRESSES), 0..3),
        btree_set(block(&POD_RANGES), 0..3),
    )
        .prop_map(|(name, labels, addresses, pod_ranges)| Node {
            name,
            labels,
            addresses,
            pod_ranges,
        })
}

fn service_key() -> impl Strategy<Value = WorkloadKey> {
    (select(&NAMESPACES[..2]), text(&["s", "t"])).prop_map(|(namespace, name)| WorkloadKey {
        namespace: namespace.to_owned(),
        name,
    })
}

fn address_group() -> impl Strategy<Value = AddressGroup> {
    let blocks = btree_set(block(&BLOCKS), 0..4);
    (text(&GROUPS), blocks, prop::bool::weighted(0.9)).prop_map(|(name, blocks, complete)| AddressGroup {
        name,
        blocks,
        complete,
    })
}

fn service() -> impl Strategy<Value = Service> {
    let node_port = option::weighted(0.5, select(&[30080u16, 8080][..]));
    let port = (select(&PORTS[..3]), select(&PROTOCOLS[..2]), node_port);
    (
        service_key(),
        btree_set(address(&FRONTENDS), 0..3),
        vec(port, 1..3),
        option::of(labels(["app", "tier"])),
    )
        .prop_map(|(key, addresses, ports, selector)| Service {
            key,
            addresses,
            ports: ports
                .into_iter()
                .enumerate()
                .map(|(at, (port, protocol, node_port))| ServicePort {
                    name: format!("port-{at}"),
                    protocol,
                    port,
                    target: TargetPort::Number(port),
                    node_port,
                })
                .collect(),
            selector,
            health_check_port: None,
        })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (0usize..3, select(&PROTOCOLS[..2]), select(&PORTS[..]));
    (
        select(&NAMESPACES[..2]),
        text(&["s", "t"]),
        text(&["1", "2"]),
        btree_set(address(&BACKENDS), 0..4),
        vec(port, 1..4),
    )
        .prop_map(|(namespace, service, suffix, addresses, ports)| EndpointSlice {
            key: WorkloadKey {
                namespace: namespace.to_owned(),
                name: format!("{service}-{suffix}"),
            },
            service,
            addresses,
            ports: ports
                .into_iter()
                .map(|(at, protocol, number)| NamedPort {
                    name: format!("port-{at}"),
                    protocol,
                    number,
                })
                .collect(),
        })
}

/// Any object.
pub fn object() -> impl Strategy<Value = Object> {
    prop_oneof![
        2 => namespace().prop_map(Object::Namespace),
        6 => workload().prop_map(|workload| Object::Workload(Arc::new(workload))),
        2 => node().prop_map(Object::Node),
        6 => policy().prop_map(Object::Policy),
        2 => service().prop_map(Object::Service),
        2 => slice().prop_map(Object::EndpointSlice),
        2 => address_group().prop_map(Object::AddressGroup),
    ]
}

/// A cluster: objects with names of their own.
pub fn cluster() -> impl Strategy<Value = Vec<Object>> {
    let parts = (
        vec(namespace(), 0..3),
        vec(workload(), 2..12),
        vec(node(), 0..3),
        vec(policy(), 0..12),
        vec(service(), 0..4),
        vec(slice(), 0..5),
        vec(address_group(), 0..4),
    );
    parts.prop_map(|(namespaces, workloads, nodes, policies, services, slices, groups)| {
        let namespaces = namespaces.into_iter().map(Object::Namespace);
        let workloads = workloads.into_iter().map(Arc::new).map(Object::Workload);
        let nodes = nodes.into_iter().map(Object::Node);
        let policies = policies.into_iter().map(Object::Policy);
        let services = services.into_iter().map(Object::Service);
        let slices = slices.into_iter().map(Object::EndpointSlice);
        let groups = groups.into_iter().map(Object::AddressGroup);
        distinct(
            namespaces
                .chain(workloads)
                .chain(nodes)
                .chain(policies)
                .chain(services)
                .chain(slices)
                .chain(groups),
        )
    })
}

/// The first object of each name.
fn distinct(objects: impl Iterator<Item = Object>) -> Vec<Object> {
    let mut seen = BTreeSet::new();
    objects.filter(|object| seen.insert(object.key())).collect()
}

/// One step of a history: several events at once.
pub fn step() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        20 => object().prop_map(Event::Upsert),
        10 => object().prop_map(|object| Event::Delete(object.key())),
        1 => cluster().prop_map(Event::Resync),
    ];
    vec(event, 1..4)
}

/// A cluster and what happens to it.
pub fn history() -> impl Strategy<Value = (Vec<Object>, Vec<Vec<Event>>)> {
    (cluster(), vec(step(), 1..12))
}

/// The objects that are there after an event.
pub fn after(objects: &mut Vec<Object>, event: &Event) {
    match event {
        Event::Upsert(object) => {
            objects.retain(|other| other.key() != object.key());
            objects.push(object.clone());
        }
        Event::Delete(key) => objects.retain(|object| object.key() != *key),
        Event::Resync(all) => objects.clone_from(all),
    }
}

/// As many cases as `PROPTEST_CASES` says (256 by default), times a factor for properties that are cheap to check. Failing
/// seeds are not kept in files: what a failure taught becomes a test with a name.
pub fn times(factor: u32) -> ProptestConfig {
    let usual = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    ProptestConfig {
        cases: usual.cases.saturating_mul(factor),
        ..usual
    }
}

/// A connection, drawn before the cluster is known: [`Draw::probe`] makes it one of that cluster.
#[derive(Clone, Debug)]
pub struct Draw {
    ends: [proptest::sample::Index; 2],
    traffic: (u8, u16),
    shadow: bool,
    /// Which guards hold, by their place in [`oracle::guards`].
    guards: u64,
    /// In the second zone, where some pods are and no node is.
    elsewhere: bool,
}

/// Draws a connection.
pub fn draw() -> impl Strategy<Value = Draw> {
    let protocol = prop_oneof![4 => Just(6u8), 2 => Just(17u8), 1 => Just(132u8), 1 => select(&[1u8, 58, 47][..])];
    let port = prop_oneof![4 => select(&PORTS[..]), 1 => select(&[22u16, 6443, 30080][..]), 1 => select(&[0u16, 1, 52, 54, 79, 82, 442, 444, 8081, 65535][..])];
    (
        any::<[proptest::sample::Index; 2]>(),
        (protocol, port),
        any::<bool>(),
        any::<u64>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(ends, traffic, shadow, guards, elsewhere)| Draw {
            ends,
            traffic,
            shadow,
            guards,
            elsewhere,
        })
}

impl Draw {
    /// The connection in this cluster. Never to a frontend: who opens one, connects to a backend.
    pub fn probe(&self, objects: &[Object]) -> Probe {
        let zone = Zone(u8::from(self.elsewhere));
        let pods = objects.iter().flat_map(|object| match object {
            Object::Workload(it) if it.zone == zone => it
                .addresses
                .iter()
                .map(|address| End::workload(it.key.clone(), *address))
                .collect(),
            _ => Vec::new(),
        });
        let addresses = POD_ADDRESSES.iter().chain(&NODE_ADDRESSES).chain(&OTHER_ADDRESSES);
        let frontend = |address: &IpAddr| {
            let has = |object: &Object| matches!(object, Object::Service(it) if it.addresses.contains(address));
            objects.iter().any(has)
        };
        let addresses = addresses
            .filter_map(|text| parse(text))
            .filter(|it| !frontend(it))
            .map(End::address);
        let nodes = objects.iter().flat_map(|object| match object {
            Object::Node(node) if !self.elsewhere => node.addresses.iter().copied().collect(),
            _ => Vec::new(),
        });
        // Nodes that there are some times more, because few of them have a policy.
        let nodes: Vec<End> = nodes.filter(|it| !frontend(it)).map(End::address).collect();
        let nodes = nodes.iter().cycle().take(nodes.len() * 3).cloned();
        // Pods three times, so that half of the connections have one at each end.
        let pods: Vec<End> = pods.collect();
        let ends: Vec<End> = pods
            .iter()
            .cycle()
            .take(pods.len() * 3)
            .cloned()
            .chain(addresses)
            .chain(nodes)
            .collect();
        let [from, to] = self.ends.map(|index| index.get(&ends).clone());
        let (protocol, port) = self.traffic;
        let mode = if self.shadow { Mode::Shadow } else { Mode::Enforce };
        Probe {
            zone,
            from,
            to,
            protocol,
            port,
            mode,
        }
    }

    /// A moment before, at or after the ends of this cluster's leases, wall nanoseconds.
    pub fn now(&self) -> u64 {
        self.guards % (TIMES + 1)
    }

    /// Which guards of this cluster hold.
    pub fn holding(&self, objects: &[Object]) -> BTreeSet<Guard> {
        let guards = oracle::guards(objects).into_iter().enumerate();
        guards
            .filter(|(at, _)| self.guards >> (at % 64) & 1 == 1)
            .map(|(_, guard)| guard)
            .collect()
    }
}
