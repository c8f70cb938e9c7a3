//! Stories about frames at an uplink: tables, frames, and what becomes of each. The host runs them here, the kernel
//! through `BPF_PROG_TEST_RUN`. Limits are of one connection an hour, so that no clock matters.

use std::net::IpAddr;

use super::{
    host::MemTables,
    layout::{Hosts, Limit, Prefix, PrefixKey, SEVERAL, Settings, cell, flag},
};
use crate::{
    address::Address,
    host::frame::{arp, frame},
    layout::{AddressEntry, NetworkEntry},
    packet::tcp::{ACK, FIN, RST, SYN},
    reason::Reason,
};

/// What is to become of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// It goes on.
    Next,
    /// It is taken away.
    Drop(Reason),
    /// A challenge goes back.
    Challenge,
}

/// A step of a story.
#[derive(Clone, Debug)]
pub enum Step {
    /// A frame comes.
    Frame(Vec<u8>, Expected),
    /// A frame comes that has the number of the last challenge for its sequence number.
    Proof(Vec<u8>, Expected),
}

/// What the tables hold at first.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// What is to be done.
    pub settings: Settings,
    /// IPv4 /24s, by address >> 8.
    pub cells: Vec<(u32, u8)>,
    /// Hosts of IPv4 /24s.
    pub hosts: Vec<(u32, Hosts)>,
    /// IPv6 /16s.
    pub roots: Vec<(u32, Prefix)>,
    /// Longer IPv6 prefixes.
    pub prefixes: Vec<(PrefixKey, Prefix)>,
    /// Prefixes no feed may name.
    pub exceptions: Vec<(IpAddr, u8)>,
    /// ADDRESSES: address and identity.
    pub addresses: Vec<(IpAddr, u32)>,
    /// NETWORKS: address, length and identity.
    pub networks: Vec<(IpAddr, u8, u32)>,
}

impl World {
    /// The same in memory.
    pub fn tables(&self) -> MemTables {
        MemTables {
            now: 1_000_000_000_000_000,
            settings: Some(self.settings),
            cells: self.cells.iter().copied().collect(),
            hosts: self.hosts.iter().copied().collect(),
            roots: self.roots.iter().copied().collect(),
            prefixes: self.prefixes.iter().copied().collect(),
            exceptions: self.exceptions.clone(),
            addresses: self
                .addresses
                .iter()
                .map(|(ip, identity)| (Address::from(*ip), bound(*identity)))
                .collect(),
            networks: self
                .networks
                .iter()
                .map(|(ip, length, identity)| {
                    (
                        *ip,
                        *length,
                        NetworkEntry {
                            identity: *identity,
                            flags: 0,
                        },
                    )
                })
                .collect(),
            ..MemTables::default()
        }
    }
}

/// An entry of ADDRESSES.
pub fn bound(identity: u32) -> AddressEntry {
    AddressEntry {
        identity,
        slot: u32::MAX,
        ..AddressEntry::default()
    }
}

/// A story.
#[derive(Clone, Debug)]
pub struct Vector {
    /// Unique name.
    pub name: &'static str,
    /// What the tables hold at first.
    pub world: World,
    /// What happens.
    pub steps: Vec<Step>,
}

/// Offset of the TCP sequence number of a frame without options.
pub fn sequence_at(frame: &[u8]) -> usize {
    if frame.get(12) == Some(&0x86) {
        14 + 40 + 4
    } else {
        14 + 20 + 4
    }
}

/// Every story.
pub fn all() -> Vec<Vector> {
    vec![
        feed_v4(),
        feed_v6(),
        spared(),
        feeds_off(),
        not_ours(),
        by_source(),
        by_source_v6(),
        by_identity(),
        guard(),
        guard_v6(),
        guard_before_source(),
        nothing_to_do(),
    ]
}

const HOUR: u64 = 3_600_000_000_000;
const LISTED: Expected = Expected::Drop(Reason::ThreatFeed);
const NEXT: Expected = Expected::Next;
const HERE: &str = "203.0.113.5";
const HERE6: &str = "2001:db8::5";

/// So many connections, and no more for an hour.
const fn burst(count: u64) -> Limit {
    Limit {
        interval: HOUR,
        tolerance: HOUR.saturating_mul(count.saturating_sub(1)),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::from([0; 4]))
}

fn number(text: &str) -> u32 {
    match ip(text) {
        IpAddr::V4(v4) => v4.to_bits() >> 8,
        IpAddr::V6(v6) => u32::from(v6.segments()[0]),
    }
}

fn settings(flags: u32, source: u64, identity: u64, guard: u64) -> Settings {
    Settings {
        flags,
        known_for: 600,
        source: burst(source),
        identity: burst(identity),
        guard: burst(guard),
        secret: [0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00],
        padding: 0,
    }
}

fn here(source: &str) -> IpAddr {
    ip(if source.contains(':') { HERE6 } else { HERE })
}

fn segment(source: &str, port: u16, flags: u8) -> Vec<u8> {
    frame(ip(source), here(source)).tcp(port, 80, flags).build()
}

fn udp(source: &str, expected: Expected) -> Step {
    Step::Frame(frame(ip(source), here(source)).udp(7, 8).build(), expected)
}

fn syn(source: &str, port: u16, expected: Expected) -> Step {
    Step::Frame(segment(source, port, SYN), expected)
}

fn other(source: &str, flags: u8, expected: Expected) -> Step {
    Step::Frame(segment(source, 1000, flags), expected)
}

fn hosts(list: &[u32], feed: u32) -> Hosts {
    let mut hosts = Hosts {
        feed,
        ..Hosts::default()
    };
    for host in list {
        if let Some(word) = usize::try_from(host / 32)
            .ok()
            .and_then(|index| hosts.bits.get_mut(index))
        {
            *word |= 1 << (host % 32);
        }
    }
    hosts
}

fn feed_v4() -> Vector {
    Vector {
        name: "an IPv4 source of a feed",
        world: World {
            settings: settings(flag::FEEDS, 1, 1, 1),
            cells: vec![
                (number("198.51.100.0"), 1),
                (number("192.0.2.0"), cell::HOSTS),
                (number("192.0.3.0"), cell::HOSTS),
                (number("255.255.255.0"), 2),
            ],
            hosts: vec![(number("192.0.2.0"), hosts(&[0, 31, 32, 255], u32::from(SEVERAL)))],
            ..World::default()
        },
        steps: vec![
            udp("198.51.100.0", LISTED),
            udp("198.51.100.255", LISTED),
            udp("198.51.101.0", NEXT),
            udp("198.51.99.255", NEXT),
            udp("192.0.2.0", LISTED),
            udp("192.0.2.31", LISTED),
            udp("192.0.2.32", LISTED),
            udp("192.0.2.33", NEXT),
            udp("192.0.2.255", LISTED),
            // Its hosts are not written yet, or are gone already.
            udp("192.0.3.1", NEXT),
            udp("255.255.255.255", LISTED),
            udp("0.0.0.0", NEXT),
            other("198.51.100.9", ACK, LISTED),
            Step::Frame(frame(ip("198.51.100.9"), ip(HERE)).echo_request(1).build(), LISTED),
            Step::Frame(
                frame(ip("198.51.100.9"), ip(HERE))
                    .udp(7, 8)
                    .fragment(9, 100, true)
                    .build(),
                LISTED,
            ),
            Step::Frame(frame(ip("198.51.100.9"), ip(HERE)).options(3).udp(7, 8).build(), LISTED),
            // What goes to a listed address is not an uplink's to judge.
            Step::Frame(frame(ip(HERE), ip("198.51.100.9")).udp(7, 8).build(), NEXT),
        ],
    }
}

fn feed_v6() -> Vector {
    let prefix = |text: &str, class: u32| PrefixKey::of(&Address::from(ip(text)), class);
    let all_of = |feed| Prefix { feed, below: 0 };
    let below = |classes: &[u32]| Prefix {
        feed: 0,
        below: classes
            .iter()
            .fold(0, |mask, class| mask | 1 << class.saturating_sub(1)),
    };
    Vector {
        name: "an IPv6 source of a feed",
        world: World {
            settings: settings(flag::FEEDS, 1, 1, 1),
            roots: vec![
                (number("3ffe::"), all_of(3)),
                (number("2a00::"), below(&[5, 8])),
                (number("ffff::"), below(&[8])),
            ],
            prefixes: vec![
                (prefix("2a00:1000::", 5), all_of(1)),
                (prefix("2a00:2000::", 8), all_of(2)),
                (prefix("2a00:3000::", 8), below(&[9, 12, 32])),
                (prefix("2a00:3000:8000::", 9), all_of(1)),
                (prefix("2a00:3000:1::", 12), all_of(1)),
                (prefix("2a00:3000:2::1", 32), all_of(1)),
                // No /32 says that there is anything of this length.
                (prefix("2a00:4000:2::1", 32), all_of(1)),
                (prefix("ffff:ffff::", 8), below(&[32])),
                (prefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 32), all_of(253)),
            ],
            ..World::default()
        },
        steps: vec![
            udp("3ffe:1::1", LISTED),
            udp("3fff:1::1", NEXT),
            udp("2a00:1fff:ffff::1", LISTED),
            udp("2a00:0fff:ffff::1", NEXT),
            udp("2a00:2000:9::1", LISTED),
            udp("2a00:2001:9::1", NEXT),
            udp("2a00:3000:8fff::1", LISTED),
            udp("2a00:3000:9000::1", NEXT),
            udp("2a00:3000:1:ffff::1", LISTED),
            udp("2a00:3000:2::1", LISTED),
            udp("2a00:3000:2::2", NEXT),
            udp("2a00:4000:2::1", NEXT),
            udp("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", LISTED),
            udp("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", NEXT),
            udp("::", NEXT),
            Step::Frame(
                frame(ip("3ffe::1"), ip(HERE6)).extension(0, &[0; 6]).udp(7, 8).build(),
                LISTED,
            ),
        ],
    }
}

fn spared() -> Vector {
    Vector {
        name: "pods, nodes and exceptions are no feed's to take away",
        world: World {
            settings: settings(flag::FEEDS, 1, 1, 1),
            cells: vec![(number("10.0.1.0"), 1), (number("10.0.2.0"), 1)],
            roots: vec![(number("fd00::"), Prefix { feed: 1, below: 0 })],
            exceptions: vec![(ip("10.0.2.128"), 25), (ip("fd00:1::"), 32)],
            addresses: vec![(ip("10.0.1.7"), 300), (ip("fd00:2::7"), 3)],
            ..World::default()
        },
        steps: vec![
            udp("10.0.1.7", NEXT),
            udp("10.0.1.8", LISTED),
            udp("10.0.2.128", NEXT),
            udp("10.0.2.127", LISTED),
            udp("fd00:1::9", NEXT),
            udp("fd00:2::7", NEXT),
            udp("fd00:2::8", LISTED),
        ],
    }
}

fn feeds_off() -> Vector {
    Vector {
        name: "without its flag no feed is looked into",
        world: World {
            settings: settings(flag::GUARD, 1, 1, 1),
            cells: vec![(number("198.51.100.0"), 1)],
            ..World::default()
        },
        steps: vec![udp("198.51.100.1", NEXT)],
    }
}

fn not_ours() -> Vector {
    let listed = frame(ip("198.51.100.1"), ip(HERE)).tcp(1, 80, SYN).build();
    let cut = |bytes: usize| Step::Frame(listed.get(..bytes).unwrap_or_default().to_vec(), NEXT);
    let patched = |at: usize, byte: u8| {
        let mut bytes = listed.clone();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        Step::Frame(bytes, NEXT)
    };
    let mut tagged = listed.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    let mapped = {
        let mut bytes = frame(ip("2001:db8::1"), ip(HERE6)).udp(7, 8).build();
        let source = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 1];
        bytes.splice(22..38, source);
        bytes
    };
    Vector {
        name: "what an uplink cannot read goes on",
        world: World {
            settings: settings(flag::FEEDS | flag::CONNECTIONS, 1, 1, 1),
            cells: vec![(number("198.51.100.0"), 1)],
            ..World::default()
        },
        steps: vec![
            Step::Frame(listed.clone(), LISTED),
            cut(14),
            cut(20),
            cut(33),
            // Another version, another ethertype.
            patched(14, 0x65),
            patched(12, 0x88),
            Step::Frame(tagged, NEXT),
            Step::Frame(mapped, NEXT),
            Step::Frame(arp([2; 6], 1, ([2; 6], ip("198.51.100.1")), ip(HERE)), NEXT),
        ],
    }
}

fn by_source() -> Vector {
    let limited = Expected::Drop(Reason::SourceLimit);
    let source = |frame: crate::host::frame::Frame, expected| Step::Frame(frame.build(), expected);
    let from = || frame(ip("192.0.2.1"), ip(HERE));
    Vector {
        name: "connections of one source",
        world: World {
            settings: settings(flag::SOURCES, 2, 9, 9),
            ..World::default()
        },
        steps: vec![
            syn("192.0.2.1", 1, NEXT),
            syn("192.0.2.1", 2, NEXT),
            syn("192.0.2.1", 3, limited),
            syn("192.0.2.1", 1, limited),
            syn("192.0.2.2", 1, NEXT),
            // What is no new connection is not counted.
            other("192.0.2.1", ACK, NEXT),
            other("192.0.2.1", SYN | ACK, NEXT),
            other("192.0.2.1", FIN | ACK, NEXT),
            other("192.0.2.1", RST, NEXT),
            udp("192.0.2.1", NEXT),
            // TCX judges these: a first fragment, a cut header.
            source(from().tcp(4, 80, SYN).fragment(1, 0, true), NEXT),
            Step::Frame(
                segment("192.0.2.1", 5, SYN).get(..50).unwrap_or_default().to_vec(),
                NEXT,
            ),
            source(from().options(2).tcp(4, 80, SYN), limited),
        ],
    }
}

fn by_source_v6() -> Vector {
    let limited = Expected::Drop(Reason::SourceLimit);
    Vector {
        name: "connections of one IPv6 host, which has a /64",
        world: World {
            settings: settings(flag::SOURCES, 1, 9, 9),
            ..World::default()
        },
        steps: vec![
            syn("2001:db8:1::1", 1, NEXT),
            syn("2001:db8:1::2", 1, limited),
            syn("2001:db8:1:1::1", 1, NEXT),
            Step::Frame(
                frame(ip("2001:db8:1::3"), ip(HERE6))
                    .extension(0, &[0; 6])
                    .tcp(1, 80, SYN)
                    .build(),
                NEXT,
            ),
        ],
    }
}

fn by_identity() -> Vector {
    let limited = Expected::Drop(Reason::IdentityLimit);
    Vector {
        name: "connections of one identity",
        world: World {
            settings: settings(flag::IDENTITIES, 9, 2, 9),
            addresses: vec![
                (ip("10.0.0.1"), 300),
                (ip("10.0.0.2"), 300),
                (ip("10.0.0.3"), 301),
                (ip("10.0.0.4"), 3),
            ],
            networks: vec![
                (ip("172.16.0.0"), 12, 400),
                (ip("172.16.5.0"), 24, 300),
                (ip("192.168.0.0"), 16, 1),
            ],
            ..World::default()
        },
        steps: vec![
            syn("10.0.0.1", 1, NEXT),
            syn("10.0.0.2", 1, NEXT),
            syn("10.0.0.1", 2, limited),
            syn("10.0.0.2", 2, limited),
            syn("172.16.5.9", 2, limited),
            syn("10.0.0.3", 1, NEXT),
            syn("172.16.0.1", 1, NEXT),
            syn("172.17.0.1", 1, NEXT),
            syn("172.18.0.1", 1, limited),
            // Reserved identities, and none, are nobody's.
            syn("10.0.0.4", 1, NEXT),
            syn("10.0.0.4", 2, NEXT),
            syn("10.0.0.4", 3, NEXT),
            syn("192.168.0.1", 1, NEXT),
            syn("192.168.0.1", 2, NEXT),
            syn("192.168.0.1", 3, NEXT),
            syn("198.51.100.1", 1, NEXT),
            syn("198.51.100.1", 2, NEXT),
            syn("198.51.100.1", 3, NEXT),
        ],
    }
}

/// A flood to one destination: `known` can answer, the other sources cannot.
fn flood(name: &'static str, known: &str, forged: &str, another: &str) -> Vector {
    let destination = here(known);
    let to = |port: u16, expected| Step::Frame(frame(ip(forged), destination).tcp(9, port, SYN).build(), expected);
    Vector {
        name,
        world: World {
            settings: settings(flag::GUARD, 9, 9, 2),
            ..World::default()
        },
        steps: vec![
            syn(forged, 1, NEXT),
            syn(another, 1, NEXT),
            syn(forged, 2, Expected::Challenge),
            syn(known, 1000, Expected::Challenge),
            // Somebody guesses, somebody else answers, the answer is for another port: all go on, nobody is known.
            other(known, RST, NEXT),
            Step::Proof(segment(another, 1000, RST), NEXT),
            Step::Proof(segment(known, 1001, RST), NEXT),
            Step::Proof(segment(known, 1000, RST | ACK), NEXT),
            syn(known, 1000, Expected::Challenge),
            Step::Proof(segment(known, 1000, RST), Expected::Drop(Reason::ChallengeAnswered)),
            syn(known, 1000, NEXT),
            syn(known, 1002, NEXT),
            syn(forged, 3, Expected::Challenge),
            // Connections that are there are not touched, other destinations have their own bucket.
            other(forged, ACK, NEXT),
            other(forged, SYN | ACK, NEXT),
            to(81, NEXT),
            to(81, NEXT),
            to(81, Expected::Challenge),
        ],
    }
}

fn guard() -> Vector {
    flood("a flood of SYNs", "192.0.2.1", "198.51.100.1", "198.51.100.2")
}

fn guard_v6() -> Vector {
    flood(
        "a flood of SYNs, IPv6",
        "2001:db8:1::1",
        "2001:db8:2::1",
        "2001:db8:3::1",
    )
}

fn guard_before_source() -> Vector {
    Vector {
        name: "a forged flood does not spend what its supposed source may open",
        world: World {
            settings: settings(flag::GUARD | flag::SOURCES, 2, 9, 1),
            ..World::default()
        },
        steps: vec![
            syn("192.0.2.1", 1, NEXT),
            syn("192.0.2.1", 2, Expected::Challenge),
            syn("192.0.2.1", 3, Expected::Challenge),
            Step::Proof(segment("192.0.2.1", 3, RST), Expected::Drop(Reason::ChallengeAnswered)),
            syn("192.0.2.1", 3, NEXT),
            syn("192.0.2.1", 4, Expected::Drop(Reason::SourceLimit)),
        ],
    }
}

fn nothing_to_do() -> Vector {
    Vector {
        name: "settings not written yet",
        world: World {
            cells: vec![(number("198.51.100.0"), 1)],
            ..World::default()
        },
        steps: vec![udp("198.51.100.1", NEXT), syn("192.0.2.1", 1, NEXT)],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::uplink::{Answer, CHALLENGE_MAX, Headers, challenge, layout::HANDED_ON};

    /// The sum of a checksummed range is all ones.
    fn sum(bytes: &[u8], start: u32) -> u16 {
        let mut sum = start;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn every_story_ends_as_told_and_every_reason_is_met() {
        let mut reasons = BTreeSet::new();
        for vector in all() {
            let tables = vector.world.tables();
            let mut number = 0_u32;
            for (index, step) in vector.steps.iter().enumerate() {
                let (frame, expected) = match step {
                    Step::Frame(frame, expected) => (frame.clone(), *expected),
                    Step::Proof(frame, expected) => {
                        let mut frame = frame.clone();
                        let at = sequence_at(&frame);
                        frame[at..at + 4].copy_from_slice(&number.to_be_bytes());
                        (frame, *expected)
                    }
                };
                let answer = tables.judge(&frame, &mut Headers::default());
                let found = match answer {
                    Answer::Next => Expected::Next,
                    Answer::Drop(reason) => {
                        reasons.insert(reason);
                        Expected::Drop(reason)
                    }
                    Answer::Challenge(given) => {
                        reasons.insert(Reason::SynChallenged);
                        number = given;
                        Expected::Challenge
                    }
                };
                assert_eq!(found, expected, "{}, step {index}", vector.name);
            }
            let counted: u64 = (0..=255).map(|reason| tables.counted(reason).packets).sum();
            assert_eq!(
                counted,
                vector.steps.len() as u64,
                "{}: every frame is counted once",
                vector.name
            );
            let drops: u64 = tables.drops().values().map(|counter| counter.packets).sum();
            let challenged = tables.counted(Reason::SynChallenged as u8).packets;
            assert_eq!(
                drops + challenged + tables.counted(HANDED_ON).packets,
                counted,
                "{}",
                vector.name
            );
            let of_feeds: u64 = (0..=255).map(|feed| tables.of_feed(feed).packets).sum();
            assert_eq!(of_feeds, tables.counted(Reason::ThreatFeed as u8).packets);
        }
        let all: BTreeSet<_> = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| reason.is_uplink())
            .collect();
        assert_eq!(reasons, all);
    }

    #[test]
    fn a_challenge_is_a_whole_packet_back_to_the_source() {
        for source in ["192.0.2.1", "2001:db8:1::1"] {
            let syn = segment(source, 4242, SYN);
            let tables = World {
                settings: settings(flag::GUARD, 1, 1, 1),
                ..World::default()
            }
            .tables();
            let mut headers = Headers::default();
            assert_eq!(tables.judge(&syn, &mut headers), Answer::Next);
            let Answer::Challenge(number) = tables.judge(&syn, &mut headers) else {
                panic!("no challenge")
            };
            let mut bytes = [0; CHALLENGE_MAX];
            let length = challenge(&headers, number, &mut bytes);
            let reply = &bytes[..length];
            assert_eq!(
                (&reply[..6], &reply[6..12], &reply[12..14]),
                (&syn[6..12], &syn[..6], &syn[12..14])
            );
            let at = if source.contains(':') { 54 } else { 34 };
            assert_eq!(length, at + 20);
            let addresses = if at == 54 {
                assert_eq!(reply[14..22], [0x60, 0, 0, 0, 0, 20, 6, 64]);
                assert_eq!((&reply[22..38], &reply[38..54]), (&syn[38..54], &syn[22..38]));
                &reply[22..54]
            } else {
                assert_eq!(sum(&reply[14..34], 0), 0xffff, "IPv4 checksum");
                assert_eq!((&reply[26..30], &reply[30..34]), (&syn[30..34], &syn[26..30]));
                &reply[26..34]
            };
            let pseudo = addresses
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum::<u32>();
            assert_eq!(sum(&reply[at..], pseudo + 6 + 20), 0xffff, "TCP checksum");
            assert_eq!(reply[at..at + 4], [0, 80, 0x10, 0x92], "ports change places");
            assert_eq!(reply[at + 8..at + 12], number.to_be_bytes());
            assert_eq!(reply[at + 12..at + 14], [0x50, ACK]);
        }
    }
}
