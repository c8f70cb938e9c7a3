//! Vectors from a seed: packets of every kind, most of them broken, in an order nobody thought of. What the host says of them is what
//! the kernel is to say.

use std::net::IpAddr;

use super::{
    Change, Deadline, Judged, Sent, Step, Vector, run,
    world::{A, B, EGRESS, INGRESS, Net, World, allow, deny, link_local, mac, nets, reject, who},
};
use crate::{
    Verdict,
    host::frame::{Frame, arp, frame},
    layout::{EndpointWord, PortSet, RuleKey, action, identity, rule},
    maps::Hook,
    packet::tcp::{ACK, FIN, RST, SYN},
    reason::Reason,
};

/// Packets of a vector.
pub const PACKETS: usize = 64;
/// Bytes of the longest packet.
const LONGEST: usize = 1_500;

/// Numbers that a seed stands for (`SplitMix64`; Steele, Lea and Flood 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    /// Below a bound that is not 0.
    fn below(&mut self, bound: usize) -> usize {
        let number = usize::try_from(self.next() >> 8).unwrap_or(0);
        number.checked_rem(bound).unwrap_or(0)
    }
    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
    #[expect(
        clippy::indexing_slicing,
        reason = "there is something to choose from, and the index is below its length"
    )]
    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len())]
    }
    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
    fn mac(&mut self) -> [u8; 6] {
        let mut mac = [0; 6];
        mac.fill_with(|| self.byte() & 0xfe);
        mac
    }
}

/// The vector of a seed; every third is of a world in which nobody may do anything.
pub fn vector(seed: u64) -> Vector {
    let mut numbers = Numbers(seed);
    let closed = is_closed(seed);
    let world = if closed { World::closed() } else { world(&mut numbers) };
    let mut steps = Vec::new();
    for _ in 0..PACKETS {
        if !closed && numbers.one_in(8) {
            steps.extend(changes(&mut numbers, &world).map(Step::Change));
        }
        steps.push(Step::Packet(Sent {
            hook: numbers.of(&[Hook::FromPod, Hook::ToPod]),
            device: numbers.of(&[A, B]),
            frame: Vec::new(),
            socket: false,
            answer: numbers.one_in(64),
            expected: Verdict {
                reason: Reason::MissingConfig,
                rule: rule::NONE,
            },
        }));
    }
    for step in &mut steps {
        if let Step::Packet(sent) = step {
            sent.frame = any_frame(&mut numbers, sent.hook, sent.device);
        }
    }
    let mut vector = Vector {
        name: format!("seed {seed}"),
        world,
        steps,
        host_only: None,
    };
    let mut judged = run(&vector, Some(true)).into_iter();
    for step in &mut vector.steps {
        let Step::Packet(sent) = step else { continue };
        if let Some(judged) = judged.next() {
            sent.expected = judged.verdict;
        }
    }
    vector
}

/// Whether nobody may do anything in the world of a seed.
pub const fn is_closed(seed: u64) -> bool {
    seed.is_multiple_of(3)
}

/// The first packet that passes though no rule allows anything. A pod may get itself an address, and talk to itself and with its node.
pub fn passes_by_accident(judged: &[Judged]) -> Option<&Judged> {
    let mut own = false;
    judged.iter().find(|one| match one.verdict.reason {
        Reason::Arp | Reason::NeighbourDiscovery | Reason::Answer => false,
        Reason::SelfTraffic | Reason::NodeTraffic => {
            own = true;
            false
        }
        Reason::Established | Reason::ReplyAllowed | Reason::Fragment => !own,
        other => other.passes(),
    })
}

/// A world of some rules.
fn world(numbers: &mut Numbers) -> World {
    let mut world = World::open();
    for pod in [A, B] {
        for ruleset in [EGRESS, INGRESS].map(|first| first.saturating_add(pod)) {
            let peer = numbers.of(&[who::A, who::B, who::C, identity::ANY_POD, identity::ANY_ADDRESS]);
            let number = 1_000 + u32::from(numbers.byte());
            let mut alternative = numbers.of(&[allow(number), deny(number), reject(number)]);
            alternative.action |= numbers.of(&[0, 0, action::DRAIN, action::KEEP]);
            world.entry(ruleset, peer, &[alternative]);
        }
    }
    world
}

/// Writes between packets; changed rules come with a new generation, as a plan brings them.
fn changes(numbers: &mut Numbers, world: &World) -> impl Iterator<Item = Change> {
    let rules: &[(RuleKey, PortSet)] = &world.rules;
    let ((key, _), (_, set)) = (numbers.of(rules), numbers.of(rules));
    let rule = numbers.one_in(2).then_some(Change::Rule(key, set));
    rule.into_iter().chain([change(numbers)])
}

fn change(numbers: &mut Numbers) -> Change {
    let pod = numbers.of(&[A, B]);
    let net = numbers.of(&nets());
    match numbers.below(4) {
        0 => Change::Endpoint(
            pod,
            EndpointWord {
                config: pod,
                generation: numbers.of(&[1, 2, 3]),
            },
        ),
        1 => Change::Epoch(u32::from(numbers.byte())),
        2 => Change::PeerEpoch(numbers.of(&[net.a, net.b, net.c]).into(), u32::from(numbers.byte())),
        _ => Change::Openings(pod, numbers.of(&[Deadline::Past, Deadline::Future])),
    }
}

/// A frame at a hook: one that makes sense, in half of all cases then broken.
fn any_frame(numbers: &mut Numbers, hook: Hook, device: u32) -> Vec<u8> {
    let net = numbers.of(&nets());
    let own = if device == A { net.a } else { net.b };
    let other = numbers.of(&[net.a, net.b, net.c, net.c, net.c, own]);
    let (source, destination) = match hook {
        Hook::FromPod => (own, other),
        Hook::ToPod => (other, own),
    };
    let mut bytes = sensible(numbers, &net, source, destination, device);
    if numbers.one_in(2) {
        for _ in 0..=numbers.below(4) {
            break_it(numbers, &mut bytes);
        }
    }
    bytes.resize(bytes.len().max(14), 0);
    // What the kernel takes as a test packet.
    let least = match bytes.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 14,
    };
    bytes.resize(bytes.len().clamp(least, LONGEST), 0);
    bytes
}

/// A frame of a kind a network sees.
fn sensible(numbers: &mut Numbers, net: &Net, source: IpAddr, destination: IpAddr, device: u32) -> Vec<u8> {
    let ports = [53, 80, 40_000];
    let (from, to) = (numbers.of(&ports), numbers.of(&ports));
    let mac = if numbers.one_in(16) { numbers.mac() } else { mac(device) };
    let plain = frame(source, destination).source_mac(mac);
    let flags = numbers.of(&[SYN, SYN | ACK, ACK, ACK, ACK | FIN, RST, RST | ACK, 0, SYN | FIN, 0xff]);
    let carried = match numbers.below(12) {
        0..4 => plain.tcp(from, to, flags),
        4..6 => plain.udp(from, to),
        6 => plain.sctp(from, to),
        7 => plain.echo_request(numbers.of(&[1, 2])),
        8 => plain.echo_reply(numbers.of(&[1, 2])),
        9 => {
            let inner = frame(destination, source).tcp(to, from, SYN).build();
            plain.error_about(&inner)
        }
        10 if !net.a.is_ipv4() => {
            let target = numbers.of(&[net.a, net.b, net.c, link_local(device)]);
            let kind = numbers.of(&[133, 134, 135, 136, 137]);
            let option = Some((numbers.of(&[1, 2]), mac));
            if kind == 135 || kind == 136 {
                plain.neighbour(kind, target, option).hop_limit(255)
            } else {
                plain.router(kind).hop_limit(255)
            }
        }
        10 => {
            let operation = u16::from(numbers.of(&[1_u8, 2, 3]));
            return arp(mac, operation, (mac, source), destination);
        }
        _ => plain.protocol(numbers.byte()),
    };
    let data = numbers.of(&[0, 1, 8, 64, 1_200]);
    wrapped(numbers, carried.payload(data), source.is_ipv4())
}

/// Around it, now and then: a fragment's header, options, extensions.
fn wrapped(numbers: &mut Numbers, frame: Frame, is_v4: bool) -> Vec<u8> {
    let frame = if numbers.one_in(6) {
        let (id, offset) = (7, numbers.of(&[0_u16, 0, 1, 2, 100, 8_191]));
        frame.fragment(id, offset, numbers.one_in(2))
    } else {
        frame
    };
    let frame = match (is_v4, numbers.below(6)) {
        (true, 0) => frame.options(numbers.below(11)),
        (false, 0) => {
            let mut frame = frame;
            for _ in 0..=numbers.below(9) {
                let kind = numbers.of(&[0, 43, 51, 60, 135, 139]);
                let content: Vec<u8> = (0..numbers.of(&[6, 14])).map(|_| numbers.byte()).collect();
                frame = frame.extension(kind, &content);
            }
            frame
        }
        _ => frame,
    };
    frame.padding(numbers.of(&[0, 0, 1, 40])).build()
}

/// One fault: a bit, a byte that headers are made of, a cut, something behind the end, a VLAN tag, another frame's beginning.
fn break_it(numbers: &mut Numbers, bytes: &mut Vec<u8>) {
    let length = bytes.len();
    match numbers.below(8) {
        0..3 => {
            let at = numbers.below(length.min(128));
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << numbers.below(8);
            }
        }
        3 => {
            let at = numbers.below(length.min(80));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = numbers.of(&[
                    0, 1, 4, 5, 6, 17, 43, 44, 58, 59, 0x45, 0x46, 0x4f, 0x60, 0x7f, 0x80, 0xff,
                ]);
            }
        }
        4 => bytes.truncate(numbers.below(length.saturating_add(1))),
        5 => bytes.extend((0..numbers.below(64)).map(|at| u8::try_from(at).unwrap_or(0))),
        6 if length > 12 => {
            let tag = [0x81, numbers.of(&[0x00, 0xa8]), numbers.byte(), numbers.byte()];
            drop(bytes.splice(12..12, tag));
        }
        _ if length > 20 => {
            let at = numbers.below(length.saturating_sub(4));
            let (word, places) = (numbers.next().to_le_bytes(), bytes.iter_mut().skip(at));
            for (place, byte) in places.zip(word).take(4) {
                *place = byte;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_nothing_allows_does_not_pass_however_it_looks() {
        for seed in (0..3_000).step_by(3) {
            let judged = run(&vector(seed), Some(true));
            let passed = passes_by_accident(&judged);
            assert!(passed.is_none(), "seed {seed}: {passed:02x?}");
        }
    }

    #[test]
    fn a_seed_means_the_same_each_time_and_seeds_differ() {
        let frames = |seed| {
            packets(&vector(seed))
                .into_iter()
                .map(|sent| sent.frame)
                .collect::<Vec<_>>()
        };
        assert_eq!(frames(1), frames(1));
        assert_ne!(frames(1), frames(2));
    }

    #[test]
    fn seeds_reach_most_reasons() {
        let reached: BTreeSet<Reason> = (0..600)
            .flat_map(|seed| packets(&vector(seed)))
            .map(|sent| sent.expected.reason)
            .collect();
        let missing: Vec<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| !reason.is_uplink() && !reached.contains(reason))
            .collect();
        let elsewhere = [
            Reason::NodeTraffic,
            Reason::Adopted,
            Reason::Unmanaged,
            Reason::Transit,
            Reason::UnknownEndpoint,
            Reason::MissingConfig,
            Reason::MissingRuleset,
            Reason::BrokenPortSet,
            Reason::BrokenAlternatives,
            Reason::FlowTableFull,
            Reason::UnknownAction,
            Reason::MalformedEthernet,
            // Takes a query first.
            Reason::NameEarly,
        ];
        assert!(missing.iter().all(|reason| elsewhere.contains(reason)), "{missing:?}");
    }

    fn packets(vector: &Vector) -> Vec<Sent> {
        let packets = vector.steps.iter().filter_map(|step| match step {
            Step::Packet(sent) => Some(sent.clone()),
            Step::Change(_) => None,
        });
        packets.collect()
    }
}
