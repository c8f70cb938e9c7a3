//! Maps under test: carries writes out one by one and asks, between any two, what a packet would be told.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_policy::{
    model::{Guard, Side, WorkloadKey, Zone},
    plan::{LocalEndpoints, MapDump, MapOp, MapWriter, Names},
    state::{AddressKind, Alternative, Decision, Endpoint, PeerId, State},
};
use bulkhead_verdict::{
    address::Address,
    host::{MemMaps, Probe},
    layout::{
        Alternative as Cell, Config, LeaseKey, NetworkKey, RuleKey, action, address_flag, guard, identity,
        network_flag, side,
    },
    maps::{Hook, Maps},
    reason::Reason,
};

/// The zone of the hooks.
pub(crate) const ZONE: Zone = Zone(0);

/// A place and a tuple: what a packet is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Tuple {
    pub(crate) ifindex: u32,
    pub(crate) egress: bool,
    pub(crate) own: IpAddr,
    pub(crate) peer: IpAddr,
    pub(crate) position: u32,
}

/// What it is told: the rule and whether it passes, enforced and in shadow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Told {
    NoEndpoint,
    Spoofed,
    Rule {
        passes: bool,
        rule: String,
        shadow_drops: bool,
        shadow_rule: String,
    },
    Broken(Reason),
}

/// Every packet between a device's own addresses and some peers, as far as it is the rules' matter.
pub(crate) fn tuples(devices: &BTreeMap<u32, BTreeSet<IpAddr>>, peers: &[IpAddr], positions: &[u32]) -> Vec<Tuple> {
    let mut tuples = Vec::new();
    for (ifindex, owned) in devices {
        for (egress, own) in [true, false]
            .into_iter()
            .flat_map(|egress| owned.iter().map(move |own| (egress, *own)))
        {
            // A pod and itself are not.
            let peers = peers
                .iter()
                .filter(|peer| peer.is_ipv4() == own.is_ipv4() && !owned.contains(peer));
            for peer in peers {
                let tuple = |position: &u32| Tuple {
                    ifindex: *ifindex,
                    egress,
                    own,
                    peer: *peer,
                    position: *position,
                };
                tuples.extend(positions.iter().map(tuple));
            }
        }
    }
    tuples
}

/// Which leases and expiries run: class 1 has the profile; expiry 1 is over, expiry 2 is not.
const NOW: u64 = 1_000;
const LATER: u64 = 1_000_000_000_000;

/// The maps, their names, and everything a program that runs since the last barrier may hold.
pub(crate) struct Bench {
    pub(crate) maps: MemMaps,
    pub(crate) dump: MapDump,
    pub(crate) names: Names,
    held: Reachable,
    highest_generation: u32,
    /// Peer epochs to be raised because a binding changed, and whether a network did.
    unraised: (BTreeSet<u32>, bool),
}

#[derive(Default, Clone)]
struct Reachable {
    configs: BTreeSet<u32>,
    ranges: BTreeSet<u32>,
    alternatives: BTreeSet<u32>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let mut maps = MemMaps::default();
        maps.boot.set(NOW);
        maps.leases.insert(
            LeaseKey {
                profile: crate::world::profile().number(),
                image_class: 1,
            },
            LATER,
        );
        maps.expiries.insert(2, LATER);
        let names = Names::default();
        Self {
            maps,
            dump: MapDump::default(),
            names,
            held: Reachable::default(),
            highest_generation: 0,
            unraised: (BTreeSet::new(), false),
        }
    }

    /// Every change of who somebody is has raised an epoch behind it: live flows were judged again.
    pub(crate) fn assert_flows_are_judged_again(&self) {
        assert_eq!(self.unraised, (BTreeSet::new(), false));
    }

    /// Carries out writes.
    pub(crate) fn write_all(&mut self, ops: &[MapOp]) {
        for op in ops {
            self.write(op);
        }
    }

    /// Carries out one write and checks what must hold of any write.
    pub(crate) fn write(&mut self, op: &MapOp) {
        match op {
            MapOp::Range(index, _) => assert!(!self.held.ranges.contains(index), "{op:?} is in use"),
            MapOp::Alternative(index, _) => assert!(!self.held.alternatives.contains(index), "{op:?} is in use"),
            MapOp::Config(index, _) => assert!(!self.held.configs.contains(index), "{op:?} is in use"),
            MapOp::Endpoint(_, word) => {
                assert!(
                    word.generation > self.highest_generation,
                    "a generation must never come back: {op:?}"
                );
                self.highest_generation = word.generation;
            }
            MapOp::Address(key, _) | MapOp::RemoveAddress(key) => {
                self.unraised.0.insert(key.address.epoch_slot());
            }
            MapOp::Network(..) | MapOp::RemoveNetwork(..) => self.unraised.1 = true,
            MapOp::PeerEpoch(slot) => {
                self.unraised.0.remove(slot);
            }
            MapOp::Epoch => self.unraised = (BTreeSet::new(), false),
            _ => {}
        }
        self.maps.apply(std::slice::from_ref(op)).unwrap();
        self.dump.write(op);
        self.names.observe(op);
        match op {
            MapOp::Barrier => self.held = self.reachable(),
            MapOp::Endpoint(..) | MapOp::Rule(..) | MapOp::Address(..) | MapOp::Network(..) | MapOp::Device(..) => {
                let more = self.reachable();
                self.held.configs.extend(more.configs);
                self.held.ranges.extend(more.ranges);
                self.held.alternatives.extend(more.alternatives);
            }
            _ => {}
        }
    }

    /// Every index a packet can lead to.
    fn reachable(&self) -> Reachable {
        let mut found = Reachable::default();
        let bound = self.dump.addresses.values().map(|entry| entry.identity);
        let bound: BTreeSet<u32> = bound
            .chain(self.dump.networks.values().map(|entry| entry.identity))
            .collect();
        let mut rulesets = BTreeSet::new();
        for word in self.dump.endpoints.iter().filter(|word| word.config != 0) {
            found.configs.insert(word.config);
            let config = &self.dump.configs[usize::try_from(word.config).unwrap()];
            rulesets.extend([config.egress, config.ingress]);
        }
        for (key, set) in &self.dump.rules {
            let asked = key.peer < identity::FIRST_INTERNED || bound.contains(&key.peer);
            if asked && rulesets.contains(&key.ruleset) {
                found.ranges.extend(set.first..set.first + set.count);
            }
        }
        for index in &found.ranges {
            let range = self.dump.ranges[usize::try_from(*index).unwrap()];
            for mut cell in [range.enforce, range.shadow] {
                while cell != 0 {
                    found.alternatives.insert(cell);
                    cell = self.dump.alternatives[usize::try_from(cell).unwrap()].next;
                }
            }
        }
        found
    }

    fn config(&self, tuple: &Tuple) -> Option<&Config> {
        let word = self.maps.endpoint(self.maps.device(tuple.ifindex)?)?;
        self.maps
            .config(word.config)
            .filter(|config| word.config != 0 && config.ifindex == tuple.ifindex)
    }

    /// What the maps tell a packet: the kernel's lookups, done here on the dump so that thousands of packets can be asked
    /// about between two writes. [`Bench::judged`] asks the verdict itself; the two are compared all the time.
    pub(crate) fn told(&self, tuple: &Tuple) -> Told {
        self.told_of(tuple, None)
    }

    /// The image class the maps give a peer.
    pub(crate) fn class(&self, peer: IpAddr) -> u32 {
        self.who(peer).1
    }

    /// The same; `class` overrides the image class of the peer.
    pub(crate) fn told_of(&self, tuple: &Tuple, class_override: Option<u32>) -> Told {
        let Some(config) = self.config(tuple) else {
            return Told::NoEndpoint;
        };
        if !config.owns(&Address::from(tuple.own)) {
            return Told::Spoofed;
        }
        let (peers, class) = self.who(tuple.peer);
        let ruleset = if tuple.egress { config.egress } else { config.ingress };
        let set = peers
            .into_iter()
            .find_map(|peer| self.dump.rules.get(&RuleKey { ruleset, peer }));
        let Some(set) = set else {
            return Told::Broken(Reason::MissingRuleset);
        };
        let ranges = (set.first..set.first + set.count).map(|index| self.dump.ranges[usize::try_from(index).unwrap()]);
        let range = ranges
            .into_iter()
            .find(|range| range.low <= tuple.position && tuple.position <= range.high);
        let Some(range) = range else {
            return Told::Broken(Reason::BrokenPortSet);
        };
        let classes = [config.image_class, class_override.unwrap_or(class)];
        let Some(enforced) = self.walk(range.enforce, classes) else {
            return Told::Broken(Reason::BrokenAlternatives);
        };
        let shadow = if range.shadow == 0 {
            Some(enforced)
        } else {
            self.walk(range.shadow, classes)
        };
        let Some(shadow) = shadow else {
            return Told::Broken(Reason::BrokenAlternatives);
        };
        let name = |cell: &Cell| self.names.rule(cell.rule).into_owned();
        Told::Rule {
            passes: action::verdict(enforced.action) == Some(action::ALLOW),
            rule: name(&enforced),
            shadow_drops: action::verdict(shadow.action) != Some(action::ALLOW),
            shadow_rule: name(&shadow),
        }
    }

    fn who(&self, peer: IpAddr) -> (Vec<u32>, u32) {
        let key = bulkhead_verdict::layout::AddressKey {
            address: peer.into(),
            zone: 0,
        };
        if let Some(entry) = self.dump.addresses.get(&key) {
            let class = match (
                entry.identity,
                entry.flags & (address_flag::POD | address_flag::SERVICE),
            ) {
                (identity::UNKNOWN_POD, _) | (_, address_flag::SERVICE) => identity::ANY_ADDRESS,
                (_, 0) => identity::ANY_NODE,
                _ => identity::ANY_POD,
            };
            return (vec![entry.identity, class, identity::ANY_ADDRESS], entry.image_class);
        }
        let bits = |address: Address| match IpAddr::from(address) {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let covers = |length: u32, key: &NetworkKey| {
            let (shift, base) = (160 - length, key.address);
            key.zone_be == 0 && (shift >= 128 || bits(base) >> shift == bits(peer.into()) >> shift)
        };
        let networks = self
            .dump
            .networks
            .iter()
            .filter(|((length, key), _)| covers(*length, key));
        let network = networks.max_by_key(|((length, _), _)| *length).map(|(_, entry)| entry);
        let identity = network
            .map(|entry| entry.identity)
            .filter(|number| *number != identity::NONE);
        let wider = network
            .filter(|entry| entry.flags & network_flag::POD_RANGE != 0)
            .map(|_| identity::UNKNOWN_POD);
        (
            identity
                .into_iter()
                .chain(wider)
                .chain([identity::ANY_ADDRESS])
                .collect(),
            0,
        )
    }

    fn walk(&self, mut index: u32, [subject, peer]: [u32; 2]) -> Option<Cell> {
        for _ in 0..16 {
            let cell = *self
                .dump
                .alternatives
                .get(usize::try_from(index).unwrap())
                .filter(|_| index != 0)?;
            let holds = match cell.guard {
                guard::NONE => true,
                guard::LEASE => {
                    let image_class = if cell.side == side::SUBJECT { subject } else { peer };
                    self.maps.leases.contains_key(&LeaseKey {
                        profile: cell.argument,
                        image_class,
                    }) != (cell.negated == 1)
                }
                guard::UNTIL => self.maps.expiries.contains_key(&cell.argument),
                _ => false,
            };
            if holds {
                return Some(cell);
            }
            index = cell.next;
        }
        None
    }

    /// What the verdict makes of the first packet of the connection, with nothing remembered of any other.
    pub(crate) fn judged(&self, tuple: &Tuple) -> Told {
        self.maps.denies.borrow_mut().clear();
        self.maps.events.borrow_mut().clear();
        let (hook, [source, destination]) = if tuple.egress {
            (Hook::FromPod, [tuple.own, tuple.peer])
        } else {
            (Hook::ToPod, [tuple.peer, tuple.own])
        };
        let (protocol, port) = match tuple.position >> 16 {
            0 => (6, tuple.position & 0xffff),
            1 => (17, tuple.position & 0xffff),
            2 => (132, tuple.position & 0xffff),
            _ => (u8::try_from(tuple.position & 0xff).unwrap(), 0),
        };
        let probe = Probe {
            source,
            destination,
            protocol,
            port: u16::try_from(port).unwrap(),
            socket: false,
        };
        let verdict = self.maps.probe(hook, tuple.ifindex, &probe);
        match verdict.reason {
            Reason::UnknownEndpoint | Reason::MissingConfig => Told::NoEndpoint,
            Reason::SpoofedAddress | Reason::WrongDestination => Told::Spoofed,
            Reason::Allowed | Reason::PolicyDenied => {
                let event = *self
                    .maps
                    .events
                    .borrow()
                    .last()
                    .expect("a verdict on a new connection is an event");
                Told::Rule {
                    passes: verdict.reason.passes(),
                    rule: self.names.rule(verdict.rule).into_owned(),
                    shadow_drops: event.shadow_drop == 1,
                    shadow_rule: self.names.rule(event.shadow_rule).into_owned(),
                }
            }
            other => Told::Broken(other),
        }
    }
}

/// What a state says, from its own words: an evaluation that knows nothing of maps.
pub(crate) struct Expected {
    state: State,
    devices: BTreeMap<u32, WorkloadKey>,
    peers: RefCell<BTreeMap<IpAddr, (Vec<PeerId>, u32)>>,
}

impl Expected {
    pub(crate) fn new(state: State, local: &LocalEndpoints) -> Self {
        let wanted = local.iter().filter(|(key, local)| {
            let endpoint = state.endpoints.get(key);
            endpoint.is_some_and(|endpoint| local.uid.as_ref().is_none_or(|uid| *uid == endpoint.uid))
        });
        let devices = wanted.map(|(key, local)| (local.ifindex, key.clone())).collect();
        Self {
            state,
            devices,
            peers: RefCell::default(),
        }
    }

    fn endpoint(&self, ifindex: u32) -> Option<&Endpoint> {
        Some(self.state.endpoints.get(self.devices.get(&ifindex)?)?.as_ref())
    }

    fn who(&self, peer: IpAddr) -> (Vec<PeerId>, u32) {
        self.peers
            .borrow_mut()
            .entry(peer)
            .or_insert_with(|| who(&self.state, peer))
            .clone()
    }

    /// What a state tells a packet; `class` overrides the image class of the peer.
    pub(crate) fn told(&self, tuple: &Tuple, class: Option<u32>) -> Told {
        let Some(endpoint) = self.endpoint(tuple.ifindex) else {
            return Told::NoEndpoint;
        };
        if !endpoint.addresses.contains(&tuple.own) {
            return Told::Spoofed;
        }
        let name = if tuple.egress {
            endpoint.egress
        } else {
            endpoint.ingress
        };
        let (chain, bound_class) = self.who(tuple.peer);
        let ruleset = &self.state.rulesets[&name];
        let Some(ports) = chain.iter().find_map(|peer| ruleset.entries.get(peer)) else {
            return Told::Broken(Reason::MissingRuleset);
        };
        let range = ports
            .ranges
            .iter()
            .find(|range| range.low <= tuple.position && tuple.position <= range.high)
            .unwrap();
        let classes = [endpoint.image_class, class.unwrap_or(bound_class)];
        let (passes, rule) = decide(&range.enforce, classes);
        let shadow = if range.shadow.is_empty() {
            &range.enforce
        } else {
            &range.shadow
        };
        let (shadow_passes, shadow_rule) = decide(shadow, classes);
        Told::Rule {
            passes,
            rule,
            shadow_drops: !shadow_passes,
            shadow_rule,
        }
    }

    /// The image class of an address.
    pub(crate) fn class(&self, peer: IpAddr) -> u32 {
        self.who(peer).1
    }

    /// Whose the hook's endpoint is.
    pub(crate) fn owner(&self, ifindex: u32) -> Option<(&WorkloadKey, &str)> {
        Some((self.devices.get(&ifindex)?, self.endpoint(ifindex)?.uid.as_str()))
    }

    /// The devices and what their endpoints own.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (u32, &BTreeSet<IpAddr>)> {
        self.devices
            .keys()
            .filter_map(|ifindex| Some((*ifindex, &self.endpoint(*ifindex)?.addresses)))
    }
}

fn decide(list: &[Alternative], [subject, peer]: [u32; 2]) -> (bool, String) {
    let holds = |guard: &Guard| match guard {
        Guard::Lease { profile, side, negated } => {
            (*profile == crate::world::profile() && 1 == if *side == Side::Subject { subject } else { peer })
                != *negated
        }
        Guard::Until(number) => *number == 2,
        Guard::Name(_) => false,
    };
    let first = list.iter().find(|one| one.guard.as_ref().is_none_or(holds)).unwrap();
    (first.decision == Decision::Allow, first.rule.to_string())
}

/// Who an address is, from exact to wide, and its image class.
fn who(state: &State, address: IpAddr) -> (Vec<PeerId>, u32) {
    if let Some(binding) = state.bindings.get(&(ZONE, address)) {
        let class = match (binding.peer, binding.kind) {
            (PeerId::UnknownPod, _) | (_, AddressKind::Service) => None,
            (_, AddressKind::Pod) => Some(PeerId::AnyPod),
            (_, AddressKind::Node) => Some(PeerId::AnyNode),
        };
        let chain = [Some(binding.peer), class, Some(PeerId::AnyAddress)];
        return (chain.into_iter().flatten().collect(), binding.image_class);
    }
    let covering = state
        .networks
        .iter()
        .filter(|((zone, prefix), _)| *zone == ZONE && prefix.contains(address));
    let network = covering
        .max_by_key(|((_, prefix), _)| prefix.prefix())
        .map(|(_, network)| network);
    let class = network.filter(|network| network.pod_range).map(|_| PeerId::UnknownPod);
    let chain = [network.map(|network| network.peer), class, Some(PeerId::AnyAddress)];
    (chain.into_iter().flatten().collect(), 0)
}
