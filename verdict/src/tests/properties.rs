//! What holds for every packet and every history.

use proptest::{collection::vec, prelude::*};

use super::{maps, to};
use crate::{
    host::{MemMaps, Probe, Slice, frame::Frame, frame::frame},
    layout::{Alternative, EndpointWord, FlowKey, identity},
    maps::{Hook, Maps},
    packet::{self, Headers, tcp},
    port::{Position, protocol},
    reason::Reason,
    vectors::world::{A, B, EGRESS, INGRESS, Net, World, allow, deny, mac, nets, who},
};

fn net() -> impl Strategy<Value = Net> {
    prop_oneof![Just(nets()[0]), Just(nets()[1])]
}

/// One of the world's addresses.
fn address(net: &Net, number: u8) -> std::net::IpAddr {
    [net.a, net.b, net.c, net.node, net.outside, net.stranger, net.unbound][usize::from(number % 7)]
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    source: u8,
    destination: u8,
    protocol: u8,
    source_port: u16,
    port: u16,
    flags: u8,
    fragment: Option<(u16, bool)>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let flags = prop_oneof![
        4 => Just(tcp::SYN),
        4 => Just(tcp::ACK),
        2 => Just(tcp::SYN | tcp::ACK),
        1 => Just(tcp::FIN | tcp::ACK),
        1 => Just(tcp::RST),
        1 => any::<u8>()
    ];
    let fragment = prop_oneof![9 => Just(None), 1 => (0..8_u16, any::<bool>()).prop_map(Some)];
    (any::<u8>(), any::<u8>(), 0..5_u8, 1..4_u16, 1..4_u16, flags, fragment).prop_map(
        |(source, destination, protocol, source_port, port, flags, fragment)| Shape {
            source,
            destination,
            protocol,
            source_port,
            port,
            flags,
            fragment,
        },
    )
}

fn build(net: &Net, shape: Shape) -> Frame {
    let source_mac = if shape.source % 7 == 1 { mac(B) } else { mac(A) };
    let frame = frame(address(net, shape.source), address(net, shape.destination)).source_mac(source_mac);
    let frame = match shape.protocol {
        0 => frame.tcp(shape.source_port, shape.port, shape.flags),
        1 => frame.udp(shape.source_port, shape.port),
        2 => frame.sctp(shape.source_port, shape.port),
        3 if shape.flags & 1 == 0 => frame.echo_request(shape.source_port),
        3 => frame.echo_reply(shape.port),
        _ => frame.protocol(47),
    };
    match shape.fragment {
        Some((offset, more)) => frame.payload(64).fragment(7, offset, more),
        None => frame,
    }
}

/// Random rules for both pods: each peer gets some ports.
fn rules() -> impl Strategy<Value = Vec<(u32, u32, u16, bool)>> {
    let ruleset = prop_oneof![Just(EGRESS + A), Just(EGRESS + B), Just(INGRESS + A), Just(INGRESS + B)];
    let peer = prop_oneof![
        Just(who::A),
        Just(who::B),
        Just(who::C),
        Just(who::NODE),
        Just(who::OUTSIDE),
        Just(identity::ANY_POD),
        Just(identity::UNKNOWN_POD),
        Just(identity::ANY_ADDRESS)
    ];
    vec((ruleset, peer, 0..5_u16, any::<bool>()), 0..10)
}

fn world(rules: &[(u32, u32, u16, bool)]) -> World {
    let mut world = World::closed();
    for (ruleset, peer, port, all) in rules {
        if *all {
            world.entry(*ruleset, *peer, &[allow(500)]);
        } else {
            let (no, yes): ([Alternative; 1], [Alternative; 1]) = ([deny(501)], [allow(502)]);
            let udp = Position::new(protocol::UDP, *port).0;
            let tcp = Position::new(protocol::TCP, *port).0;
            let set = world.ranges_of(&[
                (0, tcp, &yes, &[]),
                (tcp + 1, udp, &no, &[]),
                (udp + 1, Position::LAST.0, &yes, &[]),
            ]);
            world.set(*ruleset, *peer, set);
        }
    }
    world
}

/// Whether the rules would let the connection of a flow begin, at one of its sides.
fn would_open(maps: &MemMaps, flow: (&FlowKey, bool), hook: Hook, device: u32) -> bool {
    let (key, low_first) = flow;
    let (source, destination) = if low_first {
        (key.low, key.high)
    } else {
        (key.high, key.low)
    };
    let responder_port = u16::from_be(if low_first { key.high_port } else { key.low_port });
    let fresh = maps.as_written();
    let probe = Probe {
        source: source.into(),
        destination: destination.into(),
        protocol: key.protocol,
        port: responder_port,
        socket: false,
    };
    fresh.probe(hook, device, &probe).reason.passes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_judged(bytes in vec(any::<u8>(), 0..300), pod in 0..4_u32, socket in any::<bool>()) {
        let maps = maps(&World::open());
        for hook in [Hook::FromPod, Hook::ToPod] {
            let verdict = maps.decide(hook, &Slice { bytes: &bytes, ifindex: pod, socket, tagged: false, answer: false, came_by: 0 });
            prop_assert!(!verdict.reason.passes(), "noise passed: {verdict:?}");
        }
    }

    #[test]
    fn a_damaged_packet_is_judged(net in net(), shape in shape(), cut in 0..120_usize, at in 12..100_usize, value: u8) {
        let mut bytes = build(&net, shape).build();
        if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        bytes.truncate(bytes.len().max(cut) - cut.min(bytes.len()));
        let maps = maps(&World::open());
        for hook in [Hook::FromPod, Hook::ToPod] {
            maps.decide(hook, &Slice { bytes: &bytes, ifindex: A, socket: false, tagged: false, answer: false, came_by: 0 });
        }
    }

    #[test]
    fn both_directions_have_one_key(net in net(), shape in shape()) {
        let read = |shape| {
            let bytes = build(&net, Shape { fragment: None, ..shape }).build();
            let mut headers = Headers::default();
            packet::parse(&Slice { bytes: &bytes, ifindex: 0, socket: false, tagged: false, answer: false, came_by: 0 }, &mut headers).unwrap();
            let mut key = FlowKey::default();
            let low = crate::flow::key_of(&headers, 0, &mut key);
            (key, low)
        };
        prop_assume!(address(&net, shape.source) != address(&net, shape.destination));
        let back = Shape {
            source: shape.destination,
            destination: shape.source,
            source_port: shape.port,
            port: shape.source_port,
            flags: shape.flags ^ u8::from(shape.protocol == 3),
            ..shape
        };
        let ((key, low), (back_key, back_low)) = (read(shape), read(back));
        prop_assert_eq!(key, back_key);
        prop_assert_ne!(low, back_low);
    }

    #[test]
    fn what_is_established_is_what_the_rules_allow(
        net in net(),
        first in rules(),
        second in rules(),
        packets in vec((shape(), any::<bool>(), any::<bool>()), 1..60),
        change_at in 0..60_usize,
    ) {
        let mut maps = maps(&world(&first));
        for (number, (shape, towards, at_b)) in packets.into_iter().enumerate() {
            if number == change_at {
                let after = super::maps(&world(&second));
                (maps.rules, maps.ranges, maps.alternatives) = (after.rules, after.ranges, after.alternatives);
                for pod in [A, B] {
                    maps.endpoints.insert(pod, EndpointWord { config: pod, generation: 2 });
                }
            }
            let bytes = build(&net, shape).build();
            let (hook, device) = (if towards { Hook::ToPod } else { Hook::FromPod }, if at_b { B } else { A });
            let verdict = maps.decide(hook, &Slice { bytes: &bytes, ifindex: device, socket: false, tagged: false, answer: false, came_by: 0 });
            if !matches!(verdict.reason, Reason::Established | Reason::Allowed | Reason::ReplyAllowed) {
                continue;
            }
            let mut headers = Headers::default();
            let slice = Slice { bytes: &bytes, ifindex: device, socket: false, tagged: false, answer: false, came_by: 0 };
            packet::parse(&slice, &mut headers).unwrap();
            let mut key = FlowKey::default();
            let source_is_low = crate::flow::key_of(&headers, 0, &mut key);
            let flow = maps.confirmed(&key).or_else(|| maps.tentative(&key)).expect("it passed, so it has a flow");
            let low_first = flow.initiator_is_low.get() == 1;
            // At the initiator's device the connection was opened outwards, at the responder's inwards.
            let forward = low_first == source_is_low;
            let opened = if (hook == Hook::FromPod) == forward { Hook::FromPod } else { Hook::ToPod };
            prop_assert!(would_open(&maps, (&key, low_first), opened, device), "{verdict:?} {shape:?}");
        }
    }

    #[test]
    fn nothing_spoofed_passes(net in net(), shape in shape(), own_flow in any::<bool>()) {
        let maps = maps(&World::open());
        let bytes = build(&net, shape).build();
        if own_flow {
            // The owner of the address talks first, both ways.
            maps.decide(Hook::FromPod, &Slice { bytes: &bytes, ifindex: B, socket: false, tagged: false, answer: false, came_by: 0 });
            to(&maps, B, &bytes);
        }
        let forged = build(&net, shape).source_mac(mac(A)).build();
        let verdict = maps.decide(Hook::FromPod, &Slice { bytes: &forged, ifindex: A, socket: false, tagged: false, answer: false, came_by: 0 });
        prop_assert!(!verdict.reason.passes() || shape.source % 7 == 0, "{verdict:?}");
    }

    #[test]
    fn what_is_unknown_is_dropped(net in net(), shape in shape(), missing in 0..4_u8) {
        let mut maps = maps(&World::open());
        match missing {
            0 => maps.devices.clear(),
            1 => maps.endpoints.clear(),
            2 => maps.configs.clear(),
            _ => maps.rules.clear(),
        }
        for hook in [Hook::FromPod, Hook::ToPod] {
            let bytes = build(&net, shape).build();
            let verdict = maps.decide(hook, &Slice { bytes: &bytes, ifindex: A, socket: false, tagged: false, answer: false, came_by: 0 });
            prop_assert!(!verdict.reason.passes() || verdict.reason == Reason::SelfTraffic, "{verdict:?}");
        }
    }
}
