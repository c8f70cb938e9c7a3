//! A cluster as the maps hold it: one endpoint that is measured, and as many rule entries as asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use bulkhead_dataplane::kernel::lab::Lab;
use bulkhead_policy::plan::MapOp;
use bulkhead_verdict::{
    address::Address,
    layout::{
        AddressEntry, AddressKey, Alternative, Config, EndpointWord, PortSet, Range, RuleKey, action, address_flag,
        config_flag, identity, rule,
    },
    port::{Position, protocol},
};

/// Entries of one ruleset, at most: the peers a big cluster's endpoint distinguishes.
const PEERS_MAX: u32 = 1_000;
/// Different port sets; rulesets share equal ones, as the planner makes them.
const SETS_MAX: u32 = 2_048;
/// Ports that each port set allows, which makes 17 ranges.
const PORTS: u32 = 8;
/// The first of them, and the distance to the next.
const FIRST_PORT: u32 = 8_000;
const PORT_STEP: u32 = 10;
/// A port that every set allows.
pub(crate) const ALLOWED_PORT: u16 = 8_040;
/// A port between two that are allowed.
pub(crate) const DENIED_PORT: u16 = 8_041;
/// MAC address of the endpoint.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Slot, configuration and generation of the endpoint.
const SLOT: u32 = 1;
const CONFIG: u32 = 1;
/// The rule that denies what no other rule allows.
const DENY_RULE: u32 = rule::FIRST_INTERNED;
/// Writes handed over at once.
const CHUNK: usize = 4_096;

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        }
    }

    /// The address of the endpoint.
    pub(crate) const fn endpoint(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
        }
    }

    /// The address of a peer.
    fn peer(self, number: u32) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::from_bits(0x0a01_0000 + number)),
            Self::V6 => IpAddr::V6(Ipv6Addr::from_bits((0xfd01 << 112) + u128::from(number))),
        }
    }
}

/// How many rulesets there are, and how many entries each has, its entry for any address included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    entries: u32,
    rulesets: u32,
    each: u32,
}

impl Size {
    /// A size of so many entries: at least two rulesets, of equal size.
    pub(crate) fn new(entries: u32) -> Result<Self> {
        let rulesets = (entries / PEERS_MAX).max(2);
        let each = entries / rulesets;
        ensure!(
            each >= 2 && rulesets * each == entries,
            "{entries} entries do not make rulesets of equal size"
        );
        Ok(Self {
            entries,
            rulesets,
            each,
        })
    }

    /// The peer that is measured: neither the first nor the last.
    pub(crate) fn peer(self, family: Family) -> IpAddr {
        family.peer(self.each / 2)
    }

    /// Writes it all, in the planner's order: what is referred to before what refers to it.
    pub(crate) fn write(self, lab: &mut Lab, ifindex: u32) -> Result<()> {
        let mut ops = self.port_sets();
        ops.extend(self.rules());
        ops.extend(self.addresses());
        ops.extend(endpoint(ifindex));
        for chunk in ops.chunks(CHUNK) {
            lab.write(chunk)
                .with_context(|| format!("writing {} rule entries", self.entries))?;
        }
        let written = u32::try_from(lab.rules()?)?;
        ensure!(
            written == self.entries,
            "RULES holds {written} entries instead of {}",
            self.entries
        );
        Ok(())
    }

    /// Every set allows its ports by a rule of its own, and denies the rest.
    fn port_sets(self) -> Vec<MapOp> {
        let deny = Alternative {
            rule: DENY_RULE,
            action: action::DENY,
            ..Alternative::default()
        };
        let mut ops = vec![MapOp::Alternative(1, deny)];
        for set in 0..self.sets() {
            let allow = Alternative {
                rule: allowing_rule(set),
                action: action::ALLOW,
                ..Alternative::default()
            };
            ops.push(MapOp::Alternative(set + 2, allow));
            let mut low = Position::FIRST.0;
            let mut index = port_set(set).first;
            for port in (0..PORTS).map(|number| FIRST_PORT + number * PORT_STEP) {
                let Position(at) = Position::new(protocol::TCP, u16::try_from(port).unwrap_or(u16::MAX));
                let between = Range {
                    low,
                    high: at - 1,
                    enforce: 1,
                    shadow: 0,
                };
                ops.push(MapOp::Range(index, between));
                ops.push(MapOp::Range(
                    index + 1,
                    Range {
                        low: at,
                        high: at,
                        enforce: set + 2,
                        shadow: 0,
                    },
                ));
                (low, index) = (at + 1, index + 2);
            }
            ops.push(MapOp::Range(
                index,
                Range {
                    low,
                    high: Position::LAST.0,
                    enforce: 1,
                    shadow: 0,
                },
            ));
        }
        ops
    }

    fn rules(self) -> impl Iterator<Item = MapOp> {
        (0..self.rulesets).flat_map(move |ruleset| {
            (0..self.each).map(move |number| {
                let last = number + 1 == self.each;
                let peer = if last {
                    identity::ANY_ADDRESS
                } else {
                    identity::FIRST_INTERNED + number
                };
                let set = (ruleset * self.each + number) % self.sets();
                MapOp::Rule(
                    RuleKey {
                        ruleset: identity::FIRST_INTERNED + ruleset,
                        peer,
                    },
                    port_set(set),
                )
            })
        })
    }

    fn addresses(self) -> impl Iterator<Item = MapOp> {
        let peers = (0..self.each - 1).flat_map(|number| Family::ALL.map(|family| (number, family)));
        peers.map(|(number, family)| {
            let key = AddressKey {
                address: family.peer(number).into(),
                zone: 0,
            };
            let identity = identity::FIRST_INTERNED + number;
            MapOp::Address(
                key,
                AddressEntry {
                    identity,
                    image_class: 1,
                    slot: u32::MAX,
                    flags: address_flag::POD,
                },
            )
        })
    }

    fn sets(self) -> u32 {
        self.entries.min(SETS_MAX)
    }

    /// The rule that allows [`ALLOWED_PORT`] to the peer that is measured.
    pub(crate) fn allowing_rule(self) -> u32 {
        allowing_rule((self.each / 2) % self.sets())
    }

    /// The rule that denies [`DENIED_PORT`].
    pub(crate) const fn denying_rule() -> u32 {
        DENY_RULE
    }
}

fn allowing_rule(set: u32) -> u32 {
    DENY_RULE + 1 + set
}

fn port_set(set: u32) -> PortSet {
    let count = 2 * PORTS + 1;
    PortSet {
        first: set * count,
        count,
    }
}

/// The endpoint: the first ruleset for what it sends, the second for what it is sent.
fn endpoint(ifindex: u32) -> Vec<MapOp> {
    let mut config = Config {
        identity: identity::FIRST_INTERNED,
        image_class: 1,
        egress: identity::FIRST_INTERNED,
        ingress: identity::FIRST_INTERNED + 1,
        ifindex,
        flags: config_flag::ENFORCE,
        address_count: 2,
        mac: MAC,
        ..Config::default()
    };
    for (address, family) in config.addresses.iter_mut().zip(Family::ALL) {
        *address = Address::from(family.endpoint());
    }
    vec![
        MapOp::Config(CONFIG, Box::new(config)),
        MapOp::Endpoint(
            SLOT,
            EndpointWord {
                config: CONFIG,
                generation: 1,
            },
        ),
        MapOp::Device(ifindex, SLOT),
    ]
}
