//! Any bytes as DNS messages: answers and queries of a pod, damaged as the input says. Never a panic; an answer teaches nothing that
//! the right query did not ask for, and no pod another.
//!
//! Input: messages one after the other: a byte for direction and transport, two for the length, the message.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use bulkhead_verdict::{
    host::{
        Slice,
        dns::{self, Message, Record},
        frame::frame,
    },
    maps::Hook,
    packet::tcp::{ACK, SYN},
    vectors::{
        names::named,
        world::{A, B, by_a, by_b, nets},
    },
};
use libfuzzer_sys::fuzz_target;

/// A frame at a pod's device.
fn slice(bytes: &[u8], ifindex: u32) -> Slice<'_> {
    Slice {
        bytes,
        ifindex,
        socket: false,
        tagged: false,
        answer: false,
        came_by: 0,
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [net, _] = nets();
    let maps = named().in_memory(|device| device);
    let query = Message::query(7, "api.example.com", dns::A);
    let first = query.in_frame(by_a(&net, net.c).udp(40_001, 53));
    assert!(maps.decide(Hook::FromPod, &slice(&first, A)).reason.passes());
    let mut rest = bytes;
    while let [place, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (message, next) = after.split_at(length);
        rest = next;
        let asks = place & 1 == 0;
        let (from, to) = if asks { (net.a, net.c) } else { (net.c, net.a) };
        let [source, destination] = if asks { [40_001, 53] } else { [53, 40_001] };
        let packet = if asks { by_a(&net, net.c) } else { frame(from, to) };
        let packet = if place & 2 == 0 {
            packet.udp(source, destination)
        } else {
            packet.tcp(source, destination, ACK)
        };
        // Half of the messages begin as a right answer, so that damage is found deep inside.
        let right = query
            .answer(vec![Record::address(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 60); 3])
            .bytes();
        let mut content = if place & 4 == 0 { Vec::new() } else { right };
        for (at, byte) in message.iter().enumerate() {
            match content.get_mut(at) {
                Some(place) => *place ^= byte,
                None => content.push(*byte),
            }
        }
        let packet = dns::payload(packet, &content);
        let hook = if asks { Hook::FromPod } else { Hook::ToPod };
        maps.decide(hook, &slice(&packet, A));
    }
    for bucket in maps.learned.borrow().iter() {
        assert_eq!(bucket.0.ifindex, A);
    }
    let other = by_b(&net, net.outside).tcp(1, 443, SYN).build();
    assert!(!maps.decide(Hook::FromPod, &slice(&other, B)).reason.passes());
});
