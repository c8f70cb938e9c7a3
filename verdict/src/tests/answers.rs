//! What is sent back in a refused packet's place, byte by byte.

use std::net::IpAddr;

use super::{from, maps, to};
use crate::{
    address::Address,
    host::{self, Slice},
    layout::RuleKey,
    maps::Hook,
    packet::{
        self, Headers, Kind,
        tcp::{ACK, RST, SYN},
    },
    vectors::{
        self,
        world::{A, EGRESS, Net, World, by_a, mac, nets, reject, who},
    },
};

const CLIENT: u16 = 40_000;

/// The answer to a frame that pod A sends where everything is rejected.
fn answer(frame: &[u8]) -> Vec<u8> {
    let mut world = World::open();
    world.entry(EGRESS + A, who::C, &[reject(1)]);
    let packet = Slice {
        bytes: frame,
        ifindex: A,
        socket: false,
        tagged: false,
        answer: false,
        came_by: 0,
    };
    maps(&world).decide_and_answer(Hook::FromPod, &packet).1
}

/// The answer to a frame of a connection that A had opened to C's port 80.
fn answer_to_live(net: &Net, frame: &[u8]) -> Vec<u8> {
    let mut world = World::open();
    let rejected = world.port_set(&[reject(1)]);
    let mut maps = maps(&world);
    from(&maps, A, &by_a(net, net.c).tcp(CLIENT, 80, SYN).build());
    to(
        &maps,
        A,
        &host::frame::frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build(),
    );
    let key = RuleKey {
        ruleset: EGRESS + A,
        peer: who::C,
    };
    maps.rules.insert(key, rejected);
    maps.endpoints.get_mut(&A).unwrap().generation = 2;
    let packet = Slice {
        bytes: frame,
        ifindex: A,
        socket: false,
        tagged: false,
        answer: false,
        came_by: 0,
    };
    maps.decide_and_answer(Hook::FromPod, &packet).1
}

fn headers(frame: &[u8]) -> Headers {
    let mut headers = Headers::default();
    let packet = Slice {
        bytes: frame,
        ifindex: 0,
        socket: false,
        tagged: false,
        answer: false,
        came_by: 0,
    };
    packet::parse(&packet, &mut headers).unwrap();
    headers
}

/// The ones' complement sum of bytes, as RFC 1071 has it.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for pair in parts.concat().chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Addresses of a frame, its transport protocol, and the bytes from its transport header on.
fn parts(frame: &[u8]) -> (&[u8], u8, &[u8]) {
    if frame[12] == 0x86 {
        (&frame[22..54], frame[20], &frame[54..])
    } else {
        (&frame[26..34], frame[23], &frame[34..])
    }
}

/// Sum of the pseudo header.
fn pseudo(frame: &[u8]) -> [u8; 4] {
    let (_, protocol, transport) = parts(frame);
    let length = u16::try_from(transport.len()).unwrap().to_be_bytes();
    [0, protocol, length[0], length[1]]
}

/// True when the checksums of a frame are right.
fn sound(frame: &[u8]) -> bool {
    let (addresses, protocol, transport) = parts(frame);
    let whole = if protocol == 1 {
        sum(&[transport])
    } else {
        sum(&[addresses, &pseudo(frame), transport])
    };
    let header = if frame[12] == 0x86 {
        0xffff
    } else {
        sum(&[&frame[14..34]])
    };
    whole == 0xffff && header == 0xffff
}

/// Leaves a transport checksum to a device, as the kernel does.
fn unfinished(frame: &mut [u8], at: usize) {
    let (addresses, ..) = parts(frame);
    let sum = sum(&[addresses, &pseudo(frame)]).to_be_bytes();
    let offset = frame.len() - parts(frame).2.len();
    frame[offset + at..offset + at + 2].copy_from_slice(&sum);
}

/// Finishes it, as a device does.
fn finish(frame: &mut [u8], at: usize) {
    let offset = frame.len() - parts(frame).2.len();
    let sum = !sum(&[&frame[offset..]]);
    let sum = if sum == 0 { 0xffff } else { sum };
    frame[offset + at..offset + at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn turned(net: &Net, answer: &[u8]) {
    let headers = headers(answer);
    assert_eq!(IpAddr::from(headers.source), net.c);
    assert_eq!(IpAddr::from(headers.destination), net.a);
    assert_eq!(answer[..6], mac(A));
    assert_ne!(headers.source, Address::UNSPECIFIED);
}

#[test]
fn a_reset_is_what_the_sender_accepts() {
    for net in nets() {
        let mut frame = by_a(&net, net.c).tcp(CLIENT, 80, SYN).payload(5).build();
        let at = frame.len() - 25;
        frame[at + 4..at + 8].copy_from_slice(&0xffff_fffe_u32.to_be_bytes());
        let reply = answer(&frame);
        turned(&net, &reply);
        assert!(sound(&reply), "{}", net.name);
        let seen = headers(&reply);
        assert_eq!(
            (seen.source_port, seen.destination_port),
            (80_u16.to_be(), CLIENT.to_be())
        );
        assert_eq!(seen.tcp_flags, RST | ACK);
        let at = reply.len() - 20;
        assert_eq!(
            reply[at + 4..at + 12],
            [0, 0, 0, 0, 0, 0, 0, 4],
            "the SYN and five bytes"
        );

        let mut frame = by_a(&net, net.c).tcp(CLIENT, 80, ACK).payload(5).build();
        let at = frame.len() - 25;
        frame[at + 8..at + 12].copy_from_slice(&[1, 2, 3, 4]);
        let reply = answer_to_live(&net, &frame);
        assert!(sound(&reply), "{}", net.name);
        assert_eq!(headers(&reply).tcp_flags, RST);
        let at = reply.len() - 20;
        assert_eq!(
            reply[at + 4..at + 12],
            [1, 2, 3, 4, 0, 0, 0, 0],
            "what the sender expects next"
        );
    }
}

#[test]
fn prohibition_repeats_the_packet() {
    for net in nets() {
        for frame in [
            by_a(&net, net.c).udp(CLIENT, 53).payload(900).build(),
            by_a(&net, net.c).echo_request(5).build(),
        ] {
            let reply = answer(&frame);
            turned(&net, &reply);
            assert!(sound(&reply), "{}", net.name);
            let seen = headers(&reply);
            assert_eq!(seen.kind, Kind::IcmpError);
            let expected = if net.a.is_ipv4() { (3, 13) } else { (1, 1) };
            assert_eq!((seen.icmp_type, seen.icmp_code), expected);
            let repeated = reply.len() - if net.a.is_ipv4() { 28 } else { 48 };
            assert_eq!(reply[repeated..], frame[14..14 + reply.len() - repeated]);
        }
    }
}

/// What is unfinished in the packet is finished in the answer by whoever sends it on.
#[test]
fn answers_to_unfinished_checksums_are_right_once_finished() {
    for net in nets() {
        let mut frame = by_a(&net, net.c).tcp(CLIENT, 80, SYN).build();
        unfinished(&mut frame, 16);
        let mut reply = answer(&frame);
        assert!(!sound(&reply));
        finish(&mut reply, 16);
        assert!(sound(&reply), "TCP {}", net.name);

        let mut frame = by_a(&net, net.c).udp(CLIENT, 53).payload(11).build();
        unfinished(&mut frame, 6);
        let mut reply = answer(&frame);
        finish(&mut reply, 6);
        assert!(sound(&reply), "UDP {}", net.name);
    }
}

#[test]
fn a_flood_is_answered_fifty_times_each_way() {
    for vector in vectors::all() {
        if vector.name.starts_with("answers have a budget") {
            let judged = vectors::run(&vector, None);
            let answered = judged.iter().filter(|one| !one.answer.is_empty()).count();
            assert_eq!((judged.len(), answered), (60, 50));
        }
    }
}
