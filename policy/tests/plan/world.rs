//! Random small states: what the planner is fed with.
//!
//! A ruleset's digest stands for a function from identities to port sets, as the compiler promises; `salt` breaks the
//! promise, as a compiler of another version could.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_policy::{
    digest::Digest,
    model::{Attachment, Builtin, Direction, Guard, Manner, PolicyKey, PolicyKind, RuleName, Side, WorkloadKey},
    plan::{LocalEndpoint, LocalEndpoints},
    state::{
        AddressKind, Alternative, Binding, Decision, Endpoint, Identity, Network, PeerId, PortSet, Range, Ruleset,
        State,
    },
};
use proptest::prelude::*;

pub(crate) const NODE: &str = "here";
use crate::bench::{Expected, Tuple, ZONE, tuples};

pub(crate) const WORKLOADS: usize = 4;
/// Identities `0..4` are pods', `4..6` nodes', `6..10` networks'.
pub(crate) const IDENTITIES: usize = 10;
/// Rulesets `0..4` are egress, `4..8` ingress.
pub(crate) const RULESETS: usize = 8;
/// Positions that port sets tell apart.
pub(crate) const POSITIONS: [u32; 4] = [80, 443, 0x1_0035, 0x5_002f];

/// Every packet of the world.
pub(crate) fn packets() -> Vec<Tuple> {
    let devices = (0..WORKLOADS).flat_map(|at| [0, 1].map(|variant| (ifindex(at, variant), BTreeSet::from(own(at)))));
    tuples(&devices.collect(), &addresses(), &POSITIONS)
}

/// Addresses of the world; the first two of each workload are its own.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let own = (0..WORKLOADS).flat_map(own);
    let others = [
        "10.0.0.9",
        "10.0.1.9",
        "10.9.9.9",
        "192.0.2.1",
        "fd00::9",
        "fd00:1::9",
        "2001:db8::1",
        "10.0.0.200",
    ];
    own.chain(others.map(ip)).collect()
}

/// The addresses a workload may have.
pub(crate) fn own(workload: usize) -> [IpAddr; 2] {
    [
        ip(&format!("10.0.0.{}", workload + 1)),
        ip(&format!("fd00::{}", workload + 1)),
    ]
}

fn networks() -> Vec<&'static str> {
    vec![
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/24",
        "10.0.0.9/32",
        "fd00::/16",
        "fd00::/64",
        "2000::/3",
    ]
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn key(workload: usize) -> WorkloadKey {
    WorkloadKey {
        namespace: "ns".into(),
        name: format!("w{workload}"),
    }
}

pub(crate) fn ifindex(workload: usize, variant: u8) -> u32 {
    u32::try_from(10 + workload).unwrap() + 100 * u32::from(variant)
}

pub(crate) fn identity(number: usize) -> Digest {
    Digest::of("test identity", [number.to_le_bytes().as_slice()])
}

pub(crate) fn ruleset(number: usize) -> Digest {
    Digest::of("test ruleset", [number.to_le_bytes().as_slice()])
}

/// An endpoint of a description.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Pod {
    pub(crate) uid: u8,
    pub(crate) egress: usize,
    pub(crate) ingress: usize,
    pub(crate) image_class: u32,
    /// Which of its addresses it has.
    pub(crate) has: [bool; 2],
    /// Its device: none, or one of two.
    pub(crate) device: Option<u8>,
}

/// A state in few numbers.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct World {
    pub(crate) pods: Vec<Option<Pod>>,
    /// Identity and image class of every address of [`addresses`].
    pub(crate) bindings: Vec<Option<(usize, u32)>>,
    /// Identity and "pod range" of every prefix of [`networks`].
    pub(crate) networks: Vec<Option<(usize, bool)>>,
    pub(crate) salt: [u8; RULESETS],
    /// A ruleset that is loaded though nobody uses it.
    pub(crate) extra: usize,
}

fn pod() -> impl Strategy<Value = Pod> {
    let classes = prop_oneof![5 => Just(0_u32), 1 => Just(1_u32)];
    let device = prop_oneof![1 => Just(None), 8 => Just(Some(0)), 1 => Just(Some(1))];
    (
        prop_oneof![6 => Just(0_u8), 1 => Just(1_u8)],
        0..4_usize,
        4..8_usize,
        classes,
        any::<[bool; 2]>(),
        device,
    )
        .prop_map(|(uid, egress, ingress, image_class, has, device)| Pod {
            uid,
            egress,
            ingress,
            image_class,
            has,
            device,
        })
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let count = addresses().len();
    let class = prop_oneof![7 => Just(0_u32), 1 => Just(1_u32)];
    let salt = prop_oneof![20 => Just(0_u8), 1 => Just(1_u8)];
    (
        prop::collection::vec(prop::option::weighted(0.8, pod()), WORKLOADS),
        prop::collection::vec(prop::option::weighted(0.6, (0..6_usize, class)), count),
        all_networks(),
        prop::array::uniform8(salt),
        0..RULESETS,
    )
        .prop_map(|(pods, bindings, networks, salt, extra)| World {
            pods,
            bindings,
            networks,
            salt,
            extra,
        })
}

fn all_networks() -> impl Strategy<Value = Vec<Option<(usize, bool)>>> {
    prop::collection::vec(
        prop::option::weighted(0.4, (6..IDENTITIES, any::<bool>())),
        networks().len(),
    )
}

/// A change of a world: most are small, as deltas are.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Pod(usize, Option<Pod>),
    Bind(usize, Option<(usize, u32)>),
    Network(usize, Option<(usize, bool)>),
    /// Every network may change, and nothing else.
    Networks(Vec<Option<(usize, bool)>>),
    /// Every address of an identity goes to another: labels or atoms change.
    Rename(usize, usize),
    /// Every endpoint of a ruleset goes to another: a policy changes.
    Policy(usize, usize),
    /// Labels and a policy about them change at once.
    Split {
        from: usize,
        to: usize,
        left: usize,
        entered: usize,
    },
    Whole(World),
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let count = addresses().len();
    prop_oneof![
        3 => (0..WORKLOADS, prop::option::weighted(0.8, pod())).prop_map(|(at, pod)| Step::Pod(at, pod)),
        3 => (0..count, prop::option::weighted(0.8, (0..6_usize, 0..2_u32))).prop_map(|(at, to)| Step::Bind(at, to)),
        2 => (0..networks().len(), prop::option::of((6..IDENTITIES, any::<bool>()))).prop_map(|(at, to)| Step::Network(at, to)),
        2 => (0..6_usize, 0..6_usize).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (0..4_usize, 0..4_usize).prop_map(|(from, to)| Step::Policy(from, to)),
        2 => all_networks().prop_map(Step::Networks),
        3 => (0..3_usize, any::<bool>(), 0..4_usize, 0..4_usize).prop_map(|(pair, up, from, to)| {
            Step::Split { from: 2 * pair + usize::from(!up), to: 2 * pair + usize::from(up), left: from, entered: to }
        }),
        1 => world().prop_map(Step::Whole),
    ]
}

/// A batch of changes.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..6)
}

impl World {
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Pod(at, pod) => self.pods[*at] = pod.clone(),
            Step::Bind(at, to) => self.bindings[*at] = *to,
            Step::Network(at, to) => self.networks[*at] = *to,
            Step::Networks(to) => self.networks.clone_from(to),
            Step::Rename(from, to) => {
                for binding in self.bindings.iter_mut().flatten().filter(|binding| binding.0 == *from) {
                    binding.0 = *to;
                }
            }
            Step::Policy(from, to) => {
                for pod in self.pods.iter_mut().flatten() {
                    if pod.egress == *from {
                        pod.egress = *to;
                    } else if pod.egress == *to {
                        pod.egress = *from;
                    }
                    if pod.ingress == 4 + *from {
                        pod.ingress = 4 + *to;
                    }
                }
            }
            Step::Split {
                from,
                to,
                left,
                entered,
            } => {
                self.step(&Step::Rename(*from, *to));
                self.step(&Step::Policy(*left, *entered));
            }
            Step::Whole(world) => *self = world.clone(),
        }
    }

    pub(crate) fn expected(&self) -> Expected {
        Expected::new(self.state(), &self.local())
    }

    pub(crate) fn local(&self) -> LocalEndpoints {
        let pods = self
            .pods
            .iter()
            .enumerate()
            .filter_map(|(at, pod)| Some((at, pod.as_ref()?)));
        pods.filter_map(|(at, pod)| {
            let local = LocalEndpoint {
                uid: Some(uid(pod)),
                ifindex: ifindex(at, pod.device?),
                mac: [2, 0, 0, 0, 1, u8::try_from(at).unwrap()],
                addresses: BTreeSet::from([ip(&format!("fe80::{at}")), ip("192.0.2.77")]),
                adopt_until: 0,
                more: BTreeSet::new(),
            };
            Some((key(at), local))
        })
        .collect()
    }

    pub(crate) fn state(&self) -> State {
        let mut state = State::default();
        let mut used = BTreeSet::from([self.extra]);
        for (at, pod) in self.pods.iter().enumerate() {
            let Some(pod) = pod else { continue };
            used.extend([pod.egress, pod.ingress]);
            state.endpoints.insert(key(at), Arc::new(endpoint(at, pod)));
        }
        for (address, binding) in addresses().into_iter().zip(&self.bindings) {
            if let Some((number, image_class)) = binding {
                state
                    .bindings
                    .insert((ZONE, address), binding_of(address, *number, *image_class));
            }
        }
        for (network, bound) in networks().into_iter().zip(&self.networks) {
            if let Some((number, pod_range)) = bound {
                let peer = PeerId::Identity(identity(*number));
                state.networks.insert(
                    (ZONE, network.parse().unwrap()),
                    Network {
                        peer,
                        pod_range: *pod_range,
                    },
                );
            }
        }
        let exist = self.bindings.iter().flatten().map(|(number, _)| *number);
        let exist: BTreeSet<usize> = exist
            .chain(self.networks.iter().flatten().map(|(number, _)| *number))
            .collect();
        for number in &exist {
            state.identities.insert(
                identity(*number),
                Arc::new(Identity {
                    atoms: vec![format!("atom {number}")],
                }),
            );
        }
        for number in used {
            state
                .rulesets
                .insert(ruleset(number), Arc::new(ruleset_of(number, self.salt[number], &exist)));
        }
        state
    }
}

pub(crate) fn uid(pod: &Pod) -> String {
    format!("uid-{}", pod.uid)
}

fn endpoint(at: usize, pod: &Pod) -> Endpoint {
    let addresses = own(at)
        .into_iter()
        .zip(pod.has)
        .filter_map(|(address, has)| has.then_some(address));
    Endpoint {
        uid: uid(pod),
        node: Some(NODE.into()),
        identity: PeerId::Identity(identity(at)),
        image_class: pod.image_class,
        addresses: addresses.collect(),
        zone: ZONE,
        egress: ruleset(pod.egress),
        ingress: ruleset(pod.ingress),
        attachment: Attachment::default(),
    }
}

fn binding_of(address: IpAddr, number: usize, image_class: u32) -> Binding {
    let workload = (0..WORKLOADS).find(|at| own(*at).contains(&address));
    let (kind, name) = match (number < 4, workload) {
        (true, Some(workload)) => (AddressKind::Pod, key(workload)),
        (true, None) => (
            AddressKind::Pod,
            WorkloadKey {
                namespace: "far".into(),
                name: address.to_string(),
            },
        ),
        (false, None) if number % 2 == 1 => (
            AddressKind::Service,
            WorkloadKey {
                namespace: "far".into(),
                name: format!("service-{address}"),
            },
        ),
        (false, _) => (
            AddressKind::Node,
            WorkloadKey {
                namespace: String::new(),
                name: "node".into(),
            },
        ),
    };
    // Two workloads claim it: identity 3 stands for that.
    let peer = if number == 3 {
        PeerId::UnknownPod
    } else {
        PeerId::Identity(identity(number))
    };
    Binding {
        peer,
        kind,
        image_class,
        name: Arc::new(name),
        node: Some("there".into()),
    }
}

fn ruleset_of(number: usize, salt: u8, exist: &BTreeSet<usize>) -> Ruleset {
    // Half of the rulesets do not tell an identity from its neighbour: a policy about what makes the difference is new.
    let tells = |what: usize| {
        if number.is_multiple_of(2) && what < 100 {
            what & !1
        } else {
            what
        }
    };
    let says = |what: usize| pool((number * 31 + tells(what) * 17 + usize::from(salt) * 7) % POOL, number);
    let mut entries = BTreeMap::new();
    for (at, peer) in [PeerId::UnknownPod, PeerId::AnyPod, PeerId::AnyNode, PeerId::AnyAddress]
        .into_iter()
        .enumerate()
    {
        entries.insert(peer, says(100 + at));
    }
    for identity_number in exist {
        // Some entries are left out, as if they said what the class says.
        if !(number + tells(*identity_number)).is_multiple_of(4) {
            entries.insert(PeerId::Identity(identity(*identity_number)), says(*identity_number));
        }
    }
    let direction = if number < 4 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    Ruleset {
        direction,
        policies: vec![format!("NetworkPolicy/ns/p{number}")],
        entries,
    }
}

/// How many different port sets there are.
const POOL: usize = 13;

fn rule(number: usize, index: u32) -> RuleName {
    if index == 9 {
        return RuleName::Builtin(Builtin::DefaultAllow);
    }
    let policy = PolicyKey {
        kind: PolicyKind::NetworkPolicy,
        namespace: "ns".into(),
        name: format!("p{number}"),
    };
    RuleName::Rule {
        policy,
        generation: 1,
        direction: Direction::Ingress,
        index,
        name: None,
    }
}

/// A port set of the pool. Rules come from two policies, so that sets are shared between rulesets.
fn pool(which: usize, number: usize) -> Arc<PortSet> {
    let index = u32::try_from(which).unwrap();
    let decision = |allow: bool| if allow { Decision::Allow } else { Decision::Deny };
    let last = |allow: bool, index: u32| Alternative {
        guard: None,
        decision: decision(allow),
        manner: Manner::default(),
        rule: rule(number % 2, index),
    };
    let guarded = |guard: Guard| Alternative {
        guard: Some(guard),
        decision: Decision::Allow,
        manner: Manner::default(),
        rule: rule(number % 2, 7),
    };
    let lease = |side, negated| Guard::Lease {
        profile: profile(),
        side,
        negated,
    };
    let list = |which: usize| match which {
        0 => vec![last(true, 9)],
        1 => vec![last(false, 1)],
        2 => vec![guarded(lease(Side::Peer, false)), last(false, 1)],
        3 => vec![
            guarded(lease(Side::Subject, true)),
            guarded(Guard::Until(1)),
            last(true, index),
        ],
        4 => vec![guarded(Guard::Until(2)), last(false, 2)],
        _ => vec![last(which.is_multiple_of(2), index)],
    };
    let shadow = |which: usize| {
        if which.is_multiple_of(3) {
            list(which % 5)
        } else {
            Vec::new()
        }
    };
    let middle = 100 + index;
    let ranges = vec![
        Range {
            low: 0,
            high: middle,
            enforce: list(which % 6),
            shadow: shadow(which),
        },
        Range {
            low: middle + 1,
            high: 0xffff,
            enforce: list((which + 1) % 6),
            shadow: shadow(which + 1),
        },
        Range {
            low: 0x1_0000,
            high: 0x5_ffff,
            enforce: list((which + 3) % 6),
            shadow: Vec::new(),
        },
    ];
    Arc::new(PortSet { ranges })
}

/// The profile that class 1 satisfies.
pub(crate) fn profile() -> bulkhead_policy::lease::Profile {
    "production".parse().unwrap()
}
