//! A small world to tell stories in: two pods of this node, one elsewhere, the node, an outsider, an unbound pod.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{Change, Deadline, Sent, Step, Vector};
use crate::{
    Verdict,
    address::Address,
    dns::table::{MemberKey, Naming, PatternEntry},
    host::{MemMaps, Prefix, frame::Frame, frame::frame},
    layout::{
        AddressEntry, AddressKey, Alternative, Config, EndpointWord, LeaseKey, NameKey, NetworkEntry, PortSet, Range,
        RuleKey, action, address_flag, config_flag, guard, identity, network_flag,
    },
    maps::Hook,
    port::Position,
    reason::Reason,
};

/// The pod whose rules most vectors are about; its device and slot.
pub const A: u32 = 1;
/// Another pod of the node.
pub const B: u32 = 2;
/// A device without endpoint.
pub const NOBODY: u32 = 3;
/// A device that leads out of the node, and the node's slot.
pub const UPLINK: u32 = 6;
/// Another such device.
pub const SECOND_UPLINK: u32 = 7;
/// Rulesets are `EGRESS + slot` and `INGRESS + slot`.
pub const EGRESS: u32 = 1000;
/// See [`EGRESS`].
pub const INGRESS: u32 = 2000;
/// Rule of what is denied for want of a rule.
pub const DEFAULT_DENY: u32 = 900;
/// Rule of what is allowed to all.
pub const ALLOW_ALL: u32 = 901;

/// Identities of the world's inhabitants.
pub mod who {
    /// Pod [`super::A`].
    pub const A: u32 = 301;
    /// Pod [`super::B`].
    pub const B: u32 = 302;
    /// The pod elsewhere.
    pub const C: u32 = 303;
    /// This node.
    pub const NODE: u32 = 304;
    /// The outsider's network.
    pub const OUTSIDE: u32 = 305;
    /// The pod range.
    pub const RANGE: u32 = 306;
    /// Image class of A; B's and C's are the next ones.
    pub const CLASS_A: u32 = 71;
}

/// The addresses of one family.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// "v4" or "v6".
    pub name: &'static str,
    /// Pod A.
    pub a: IpAddr,
    /// Pod B.
    pub b: IpAddr,
    /// A pod of another node.
    pub c: IpAddr,
    /// This node.
    pub node: IpAddr,
    /// Outside the cluster, in a policy's CIDR.
    pub outside: IpAddr,
    /// Outside, in no CIDR.
    pub stranger: IpAddr,
    /// In the pod range, not bound.
    pub unbound: IpAddr,
}

/// Both families.
pub fn nets() -> [Net; 2] {
    let v4 = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    let v6 = |a: u16, b, c, d| IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, c, d));
    [
        Net {
            name: "v4",
            a: v4(10, 0, 0, 1),
            b: v4(10, 0, 0, 2),
            c: v4(10, 0, 1, 3),
            node: v4(172, 16, 0, 1),
            outside: v4(192, 0, 2, 9),
            stranger: v4(198, 51, 100, 7),
            unbound: v4(10, 0, 9, 9),
        },
        Net {
            name: "v6",
            a: v6(0xfd00, 0, 0, 1),
            b: v6(0xfd00, 0, 0, 2),
            c: v6(0xfd00, 0, 1, 3),
            node: v6(0xfd01, 0, 0, 1),
            outside: v6(0x2001, 0xdb8, 0, 9),
            stranger: v6(0x2001, 0xdb9, 0, 7),
            unbound: v6(0xfd00, 0, 9, 9),
        },
    ]
}

/// The link-local address of a pod.
pub const fn link_local(pod: u32) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        0,
        0,
        0,
        if pod == A { 0xa } else { 0xb },
    ))
}

/// The MAC of a pod.
pub const fn mac(pod: u32) -> [u8; 6] {
    [2, 0, 0, 0, 1, if pod == A { 0xa } else { 0xb }]
}

/// What the maps hold, with devices and deadlines as symbols.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Device → slot.
    pub devices: BTreeMap<u32, u32>,
    /// ENDPOINT.
    pub endpoints: BTreeMap<u32, EndpointWord>,
    /// CONFIG; `ifindex` is a device number.
    pub configs: BTreeMap<u32, Config>,
    /// ADDRESSES.
    pub addresses: Vec<(AddressKey, AddressEntry)>,
    /// OWN.
    pub own: Vec<Address>,
    /// NETWORKS.
    pub networks: Vec<(Prefix, NetworkEntry)>,
    /// RULES.
    pub rules: Vec<(RuleKey, PortSet)>,
    /// RANGES.
    pub ranges: BTreeMap<u32, Range>,
    /// ALTERNATIVES.
    pub alternatives: BTreeMap<u32, Alternative>,
    /// LEASES.
    pub leases: Vec<(LeaseKey, Deadline)>,
    /// EXPIRIES.
    pub expiries: BTreeMap<u32, Deadline>,
    /// NAMES.
    pub names: Vec<(NameKey, Deadline)>,
    /// NAMING.
    pub naming: Naming,
    /// PATTERNS by reversed domain.
    pub patterns: Vec<(Vec<u8>, PatternEntry)>,
    /// MEMBERS.
    pub members: Vec<MemberKey>,
}

/// An unguarded alternative that allows.
pub fn allow(rule: u32) -> Alternative {
    Alternative {
        rule,
        action: action::ALLOW,
        guard: guard::NONE,
        ..Alternative::default()
    }
}

/// An unguarded alternative that denies and says so.
pub fn reject(rule: u32) -> Alternative {
    Alternative {
        action: action::DENY | action::REJECT,
        ..deny(rule)
    }
}

/// An unguarded alternative that denies.
pub fn deny(rule: u32) -> Alternative {
    Alternative {
        rule,
        action: action::DENY,
        ..allow(rule)
    }
}

impl World {
    /// Both pods enforced and deaf and dumb: each direction's ruleset denies every address everything.
    pub fn closed() -> Self {
        let mut world = Self::default();
        for pod in [A, B] {
            world.devices.insert(pod, pod);
            world.endpoints.insert(
                pod,
                EndpointWord {
                    config: pod,
                    generation: 1,
                },
            );
            world.configs.insert(pod, config(pod));
            for ruleset in [EGRESS, INGRESS] {
                world.entry(
                    ruleset.saturating_add(pod),
                    identity::ANY_ADDRESS,
                    &[deny(DEFAULT_DENY)],
                );
            }
        }
        world.inhabit();
        world
    }

    /// Binds who is known, and writes the prefixes.
    fn inhabit(&mut self) {
        for net in nets() {
            let pod = address_flag::POD;
            self.bind(
                net.a,
                AddressEntry {
                    identity: who::A,
                    image_class: who::CLASS_A,
                    slot: A,
                    flags: pod,
                },
            );
            self.bind(
                net.b,
                AddressEntry {
                    identity: who::B,
                    image_class: who::CLASS_A + 1,
                    slot: B,
                    flags: pod,
                },
            );
            self.bind(
                net.c,
                AddressEntry {
                    identity: who::C,
                    image_class: who::CLASS_A + 2,
                    slot: u32::MAX,
                    flags: pod,
                },
            );
            let node = AddressEntry {
                identity: who::NODE,
                slot: u32::MAX,
                flags: address_flag::LOCAL_NODE,
                image_class: 0,
            };
            self.bind(net.node, node);
            let (cidr, range) = if net.a.is_ipv4() { (24, 16) } else { (32, 32) };
            let flags = network_flag::POD_RANGE;
            self.networks.push((
                Prefix::new(0, net.outside, cidr),
                NetworkEntry {
                    identity: who::OUTSIDE,
                    flags: 0,
                },
            ));
            self.networks.push((
                Prefix::new(0, net.a, range),
                NetworkEntry {
                    identity: who::RANGE,
                    flags,
                },
            ));
        }
    }

    /// As [`World::closed`], but all is allowed to all.
    pub fn open() -> Self {
        let mut world = Self::closed();
        for pod in [A, B] {
            for ruleset in [EGRESS, INGRESS] {
                world.entry(ruleset.saturating_add(pod), identity::ANY_ADDRESS, &[allow(ALLOW_ALL)]);
            }
        }
        world
    }

    /// Binds an address.
    pub fn bind(&mut self, address: IpAddr, entry: AddressEntry) {
        self.addresses.push((
            AddressKey {
                address: address.into(),
                zone: 0,
            },
            entry,
        ));
    }

    /// A port set of one range with these alternatives, not in force yet.
    pub fn port_set(&mut self, alternatives: &[Alternative]) -> PortSet {
        self.ranges_of(&[(Position::FIRST.0, Position::LAST.0, alternatives, &[])])
    }

    /// A port set of ranges, each with the alternatives that are enforced and those in shadow.
    pub fn ranges_of(&mut self, ranges: &[(u32, u32, &[Alternative], &[Alternative])]) -> PortSet {
        let first = next_index(&self.ranges);
        for (low, high, enforce, shadow) in ranges {
            let (enforce, shadow) = (self.list(enforce), self.list(shadow));
            self.ranges.insert(
                next_index(&self.ranges),
                Range {
                    low: *low,
                    high: *high,
                    enforce,
                    shadow,
                },
            );
        }
        PortSet {
            first,
            count: u32::try_from(ranges.len()).unwrap_or(0),
        }
    }

    /// Puts one range with these alternatives in force for a peer.
    pub fn entry(&mut self, ruleset: u32, peer: u32, alternatives: &[Alternative]) {
        let set = self.port_set(alternatives);
        self.set(ruleset, peer, set);
    }

    /// Puts a port set in force for a peer.
    pub fn set(&mut self, ruleset: u32, peer: u32, set: PortSet) {
        let key = RuleKey { ruleset, peer };
        self.rules.retain(|(other, _)| *other != key);
        self.rules.push((key, set));
    }

    /// Allows a peer one position by a rule; the rest is denied.
    pub fn only(&mut self, ruleset: u32, peer: u32, position: Position, rule: u32) {
        let at = position.0;
        let set = self.ranges_of(&[
            (0, at.saturating_sub(1), &[deny(DEFAULT_DENY)], &[]),
            (at, at, &[allow(rule)], &[]),
            (at.saturating_add(1), Position::LAST.0, &[deny(DEFAULT_DENY)], &[]),
        ]);
        self.set(ruleset, peer, set);
    }

    /// Writes a linked list; the index of its first alternative, 0 for an empty one.
    fn list(&mut self, alternatives: &[Alternative]) -> u32 {
        let first = next_index(&self.alternatives);
        for (number, alternative) in (1_u32..).zip(alternatives) {
            let next = if number as usize == alternatives.len() {
                0
            } else {
                first.saturating_add(number)
            };
            self.alternatives
                .insert(next_index(&self.alternatives), Alternative { next, ..*alternative });
        }
        if alternatives.is_empty() { 0 } else { first }
    }

    /// The same on maps in memory.
    pub fn in_memory(&self, ifindex: impl Fn(u32) -> u32) -> MemMaps {
        /// Clocks begin well after zero, so that a time before "now" exists.
        const START: u64 = 1_000_000_000_000;
        let mut maps = MemMaps::default();
        maps.now.set(START);
        maps.boot.set(START.saturating_mul(2));
        let boot = maps.boot.get();
        maps.devices = self
            .devices
            .iter()
            .map(|(device, slot)| (ifindex(*device), *slot))
            .collect();
        maps.endpoints = self.endpoints.iter().map(|(slot, word)| (*slot, *word)).collect();
        let resolve = |config: &Config| Config {
            ifindex: ifindex(config.ifindex),
            ..*config
        };
        maps.configs = self
            .configs
            .iter()
            .map(|(index, config)| (*index, resolve(config)))
            .collect();
        maps.addresses = self.addresses.iter().copied().collect();
        maps.own = RefCell::new(self.own.iter().copied().collect());
        maps.networks = self.networks.iter().copied().collect();
        maps.rules = self.rules.iter().copied().collect();
        maps.ranges = self.ranges.iter().map(|(index, range)| (*index, *range)).collect();
        maps.alternatives = self.alternatives.iter().map(|(index, one)| (*index, *one)).collect();
        maps.leases = self
            .leases
            .iter()
            .map(|(key, deadline)| (*key, deadline.at(boot)))
            .collect();
        maps.expiries = self
            .expiries
            .iter()
            .map(|(number, deadline)| (*number, deadline.at(boot)))
            .collect();
        maps.naming = self.naming;
        maps.patterns = self.patterns.iter().cloned().collect();
        maps.members = self.members.iter().copied().collect();
        maps.names = self
            .names
            .iter()
            .map(|(key, deadline)| (*key, deadline.at(boot)))
            .collect();
        maps
    }
}

/// The first index that is free; 0 never is.
fn next_index<T>(map: &BTreeMap<u32, T>) -> u32 {
    map.last_key_value().map_or(1, |(index, _)| index.saturating_add(1))
}

/// The configuration of a pod.
pub fn config(pod: u32) -> Config {
    let mut addresses = [Address::UNSPECIFIED; 5];
    let own = nets()
        .into_iter()
        .map(|net| if pod == A { net.a } else { net.b })
        .chain([link_local(pod)]);
    for (address, own) in addresses.iter_mut().zip(own) {
        *address = own.into();
    }
    Config {
        identity: if pod == A { who::A } else { who::B },
        image_class: if pod == A { who::CLASS_A } else { who::CLASS_A + 1 },
        egress: EGRESS.saturating_add(pod),
        ingress: INGRESS.saturating_add(pod),
        ifindex: pod,
        flags: config_flag::ENFORCE,
        address_count: 3,
        addresses,
        mac: mac(pod),
        ..Config::default()
    }
}

/// A story under construction.
#[must_use]
pub struct Story(Vector);

impl Story {
    /// Begins a story.
    pub fn new(name: impl Into<String>, world: World) -> Self {
        Self(Vector {
            name: name.into(),
            world,
            steps: Vec::new(),
            host_only: None,
        })
    }
    /// It cannot be told in the kernel.
    pub fn host_only(mut self, why: &'static str) -> Self {
        self.0.host_only = Some(why);
        self
    }
    /// A pod sends a frame.
    pub fn from(self, pod: u32, frame: Vec<u8>, reason: Reason, rule: u32) -> Self {
        self.sent(Hook::FromPod, pod, frame, Verdict { reason, rule })
    }
    /// A frame is sent to a pod.
    pub fn to(self, pod: u32, frame: Vec<u8>, reason: Reason, rule: u32) -> Self {
        self.sent(Hook::ToPod, pod, frame, Verdict { reason, rule })
    }
    /// A local socket of the node sends the frame of the last step (and did not forward it).
    pub fn by_socket(mut self) -> Self {
        if let Some(Step::Packet(sent)) = self.0.steps.last_mut() {
            sent.socket = true;
        }
        self
    }
    /// The other hook wrote the frame of the last step as an answer.
    pub fn as_answer(mut self) -> Self {
        if let Some(Step::Packet(sent)) = self.0.steps.last_mut() {
            sent.answer = true;
        }
        self
    }
    fn sent(mut self, hook: Hook, device: u32, frame: Vec<u8>, expected: Verdict) -> Self {
        self.0.steps.push(Step::Packet(Sent {
            hook,
            device,
            frame,
            socket: false,
            answer: false,
            expected,
        }));
        self
    }
    /// A map is written.
    pub fn change(mut self, change: Change) -> Self {
        self.0.steps.push(Step::Change(change));
        self
    }
    /// The pod's configuration is published again under the next generation.
    pub fn republish(self, pod: u32, generation: u32) -> Self {
        self.change(Change::Endpoint(
            pod,
            EndpointWord {
                config: pod,
                generation,
            },
        ))
    }
    /// The story.
    pub fn end(self) -> Vector {
        self.0
    }
}

/// A frame that pod A sends.
pub fn by_a(net: &Net, to: IpAddr) -> Frame {
    frame(net.a, to).source_mac(mac(A))
}

/// A frame that pod B sends.
pub fn by_b(net: &Net, to: IpAddr) -> Frame {
    frame(net.b, to).source_mac(mac(B))
}
