//! Named vectors: maps, packets, and what becomes of each. The host runs them here, the kernel through
//! `BPF_PROG_TEST_RUN`; together they reach every reason, action and guard.
//!
//! Devices are small numbers, which the runner replaces by real ones; deadlines are [`Deadline`]s, which it replaces by
//! values of its clock.

mod answers;
mod flows;
pub mod generated;
mod hosts;
pub mod names;
mod packets;
mod policies;
pub mod world;

use std::collections::{BTreeMap, HashMap};

use crate::{
    Verdict,
    address::Address,
    host::{MemMaps, Slice},
    layout::{
        AddressEntry, AddressKey, Alternative, Config, EndpointWord, LeaseKey, NameKey, PortSet, RuleKey, guard, side,
    },
    maps::{Hook, Maps},
    reason::Reason,
    vectors::world::World,
};

/// A point in time, for the runner's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deadline {
    /// Long gone.
    Past,
    /// In an hour.
    Future,
    /// Never reached.
    Always,
}

impl Deadline {
    /// The deadline's value when the clock says `now`, nanoseconds.
    pub const fn at(self, now: u64) -> u64 {
        match self {
            Self::Past => 0,
            Self::Future => now.saturating_add(3_600_000_000_000),
            Self::Always => u64::MAX,
        }
    }
}

/// A packet and what is to become of it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// At which hook.
    pub hook: Hook,
    /// Of which device.
    pub device: u32,
    /// The frame.
    pub frame: Vec<u8>,
    /// A local socket sent it.
    pub socket: bool,
    /// The other hook wrote it as an answer.
    pub answer: bool,
    /// What is to become of it.
    pub expected: Verdict,
}

impl Sent {
    /// Judged by the programs of uplinks, not by those of pods' devices.
    #[must_use]
    pub const fn at_uplink(&self) -> bool {
        matches!(self.device, world::UPLINK | world::SECOND_UPLINK)
    }
}

/// A write between packets.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// ENDPOINT.
    Endpoint(u32, EndpointWord),
    /// CONFIG.
    Config(u32, Config),
    /// ADDRESSES; `None` removes.
    Address(AddressKey, Option<AddressEntry>),
    /// RULES.
    Rule(RuleKey, PortSet),
    /// LEASES.
    Lease(LeaseKey, Deadline),
    /// EXPIRIES.
    Expiry(u32, Deadline),
    /// NAMES.
    Name(NameKey, Deadline),
    /// QUOTAS: an endpoint's openings are used up until then.
    Openings(u32, Deadline),
    /// EPOCH.
    Epoch(u32),
    /// `PEER_EPOCH` of an address.
    PeerEpoch(Address, u32),
    /// Time passes, nanoseconds; host only.
    Wait(u64),
    /// TENTATIVE takes no more flows; host only.
    FullFlows,
}

/// A step of a vector.
#[derive(Clone, Debug)]
pub enum Step {
    /// Judge a packet.
    Packet(Sent),
    /// Write to a map.
    Change(Change),
}

/// A story about packets.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Unique name.
    pub name: String,
    /// What the maps hold at first.
    pub world: World,
    /// What happens.
    pub steps: Vec<Step>,
    /// Why it cannot run in the kernel.
    pub host_only: Option<&'static str>,
}

/// Every vector.
pub fn all() -> Vec<Vector> {
    let mut vectors = Vec::new();
    vectors.extend(packets::vectors());
    vectors.extend(policies::vectors());
    vectors.extend(flows::vectors());
    vectors.extend(answers::vectors());
    vectors.extend(names::vectors());
    vectors.extend(hosts::vectors());
    vectors
}

/// Reasons that `BPF_PROG_TEST_RUN` cannot bring about, and why.
pub const HOST_ONLY_REASONS: &[(Reason, &str)] = &[
    (
        Reason::MalformedEthernet,
        "the kernel refuses test packets shorter than an Ethernet header",
    ),
    (
        Reason::FlowTableFull,
        "the kernel's TENTATIVE makes room by itself; only want of memory makes it refuse",
    ),
];

/// What a set of vectors reached, by name; a zero is a hole.
#[derive(Clone, Debug)]
pub struct Coverage(pub BTreeMap<String, u64>);

impl Default for Coverage {
    /// Everything that is to be reached, not reached yet.
    fn default() -> Self {
        // The uplink's reasons have vectors of their own.
        let mut names: Vec<String> = Reason::ALL
            .iter()
            .filter(|reason| !reason.is_uplink())
            .map(|reason| format!("reason {}", reason.name()))
            .collect();
        names.extend(
            [
                "action allow",
                "action deny",
                "action unknown",
                "family v4",
                "family v6",
                "guard none",
            ]
            .map(String::from),
        );
        for kind in ["lease-subject", "lease-peer", "until", "name"] {
            names.extend(["", " negated"].map(|negated| format!("guard {kind}{negated}")));
        }
        Self(names.into_iter().map(|name| (name, 0)).collect())
    }
}

impl Coverage {
    /// Notes what a verdict reached in a world.
    pub fn note(&mut self, world: &World, sent: &Sent, verdict: Verdict) {
        self.add(format!("reason {}", verdict.reason.name()));
        self.add(if sent.frame.get(12) == Some(&0x86) {
            "family v6".into()
        } else {
            "family v4".into()
        });
        let judged = !matches!(verdict.reason, Reason::Established | Reason::RelatedError);
        if judged && let Some(alternative) = world.alternatives.values().find(|one| one.rule == verdict.rule) {
            self.alternative(alternative);
        }
    }

    /// Notes the alternative that decided.
    fn alternative(&mut self, alternative: &Alternative) {
        self.add(match crate::layout::action::verdict(alternative.action) {
            Some(crate::layout::action::ALLOW) => "action allow".into(),
            Some(crate::layout::action::DENY) => "action deny".into(),
            _ => "action unknown".into(),
        });
        let kind = match (alternative.guard, alternative.side) {
            (guard::NONE, _) => "none",
            (guard::LEASE, side::SUBJECT) => "lease-subject",
            (guard::LEASE, _) => "lease-peer",
            (guard::UNTIL, _) => "until",
            _ => "name",
        };
        self.add(format!(
            "guard {kind}{}",
            if alternative.negated == 1 { " negated" } else { "" }
        ));
    }

    fn add(&mut self, name: String) {
        let count = self.0.entry(name).or_insert(0);
        *count = count.saturating_add(1);
    }

    /// What was not reached, except the named reasons.
    pub fn holes(&self, except: &[(Reason, &str)]) -> Vec<String> {
        let excepted: Vec<String> = except
            .iter()
            .map(|(reason, _)| format!("reason {}", reason.name()))
            .collect();
        self.0
            .iter()
            .filter(|(name, count)| **count == 0 && !excepted.contains(name))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

/// Applies a change to maps in memory.
pub fn apply(maps: &mut MemMaps, change: &Change, ifindex: impl Fn(u32) -> u32) {
    let boot = maps.boot.get();
    match *change {
        Change::Endpoint(slot, word) => put(&mut maps.endpoints, slot, word),
        Change::Config(index, config) => {
            put(
                &mut maps.configs,
                index,
                Config {
                    ifindex: ifindex(config.ifindex),
                    ..config
                },
            );
        }
        Change::Address(key, Some(entry)) => put(&mut maps.addresses, key, entry),
        Change::Address(key, None) => maps.addresses.retain(|other, _| *other != key),
        Change::Rule(key, set) => put(&mut maps.rules, key, set),
        Change::Lease(key, deadline) => put(&mut maps.leases, key, deadline.at(boot)),
        Change::Expiry(number, deadline) => put(&mut maps.expiries, number, deadline.at(boot)),
        Change::Name(key, deadline) => put(&mut maps.names, key, deadline.at(boot)),
        Change::Openings(slot, until) => {
            if let Some(quota) = maps.quota(slot) {
                quota.openings.set(until.at(maps.now.get()));
            }
        }
        Change::Epoch(epoch) => maps.epoch = epoch,
        Change::PeerEpoch(address, epoch) => put(&mut maps.peer_epochs, address.epoch_slot(), epoch),
        Change::Wait(time) => {
            maps.now.set(maps.now.get().saturating_add(time));
            maps.boot.set(boot.saturating_add(time));
        }
        Change::FullFlows => maps.limits.tentative = maps.tentative.borrow().len(),
    }
}

/// Writes an entry, whatever was there.
fn put<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, key: K, value: V) {
    map.insert(key, value);
}

/// What became of a packet.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The packet.
    pub sent: Sent,
    /// The verdict.
    pub verdict: Verdict,
    /// The frame that is sent back in its place; empty = none.
    pub answer: Vec<u8>,
}

/// Runs a vector on maps in memory: what became of each packet, in order.
pub fn run(vector: &Vector, sockets: Option<bool>) -> Vec<Judged> {
    /// Host devices are numbered from here.
    const FIRST_DEVICE: u32 = 10;
    let ifindex = |device: u32| device.saturating_add(FIRST_DEVICE);
    let mut maps = vector.world.in_memory(ifindex);
    let mut judged = Vec::new();
    for step in &vector.steps {
        match step {
            Step::Change(change) => apply(&mut maps, change, ifindex),
            Step::Packet(sent) => {
                let packet = Slice {
                    bytes: &sent.frame,
                    ifindex: ifindex(sent.device),
                    socket: sockets.unwrap_or(sent.socket),
                    tagged: false,
                    answer: sent.answer,
                    came_by: 0,
                };
                let (verdict, answer) = if sent.at_uplink() {
                    maps.decide_host_and_answer(sent.hook, &packet)
                } else {
                    maps.decide_and_answer(sent.hook, &packet)
                };
                judged.push(Judged {
                    sent: sent.clone(),
                    verdict,
                    answer,
                });
            }
        }
    }
    judged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_of_every_vector_is_judged_as_told() {
        for vector in all() {
            for (number, Judged { sent, verdict, .. }) in run(&vector, None).into_iter().enumerate() {
                assert_eq!(verdict, sent.expected, "{}, packet {number}", vector.name);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = all().into_iter().map(|vector| vector.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn together_they_reach_everything() {
        let (mut host, mut kernel) = (Coverage::default(), Coverage::default());
        for vector in all() {
            for Judged { sent, verdict, .. } in run(&vector, None) {
                host.note(&vector.world, &sent, verdict);
                if vector.host_only.is_none() {
                    kernel.note(&vector.world, &sent, verdict);
                }
            }
        }
        assert_eq!(host.holes(&[]), Vec::<String>::new());
        assert_eq!(
            kernel.holes(HOST_ONLY_REASONS),
            Vec::<String>::new(),
            "in vectors that the kernel runs"
        );
    }

    #[test]
    fn kernel_vectors_do_not_depend_on_sockets() {
        for vector in all().iter().filter(|vector| vector.host_only.is_none()) {
            for Judged { sent, verdict, .. } in run(vector, Some(true)) {
                assert_eq!(
                    verdict, sent.expected,
                    "{}: every test packet in the kernel has a socket",
                    vector.name
                );
            }
        }
    }
}
