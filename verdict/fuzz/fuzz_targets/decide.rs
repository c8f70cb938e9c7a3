//! Any conversation: frames at any hook of a small world where A may only reach C's port 80 and nothing may reach A.
//!
//! Input: packets one after the other: a byte for hook and device, two for the length, the frame from the destination MAC.
#![no_main]

use bulkhead_verdict::{
    host::Slice,
    layout::{event_kind, rule},
    maps::Hook,
    port::{Position, protocol},
    reason::Reason,
    vectors::world::{A, EGRESS, World, who},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut world = World::closed();
    world.only(EGRESS + A, who::C, Position::new(protocol::TCP, 80), 501);
    let maps = world.in_memory(|device| device);
    let mut rest = bytes;
    let (mut packets, mut drops) = (0, 0);
    while let [place, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (frame, next) = after.split_at(length);
        rest = next;
        let hook = if place & 1 == 0 { Hook::FromPod } else { Hook::ToPod };
        let slice = Slice {
            bytes: frame,
            ifindex: u32::from(place >> 1 & 3),
            socket: place & 0x40 != 0,
            tagged: place & 0x80 != 0,
            answer: false,
            came_by: 0,
        };
        let verdict = maps.decide(hook, &slice);
        packets += 1;
        drops += u64::from(!verdict.reason.passes());
        match verdict.reason {
            Reason::Allowed => assert_eq!((verdict.rule, slice.ifindex, hook), (501, A, Hook::FromPod)),
            Reason::NodeTraffic => assert!(slice.socket && hook == Hook::ToPod),
            Reason::Established => assert!(matches!(verdict.rule, 501 | rule::NODE)),
            Reason::Adopted | Reason::Unmanaged | Reason::ReplyAllowed => panic!("nothing here can be {verdict:?}"),
            _ => {}
        }
    }
    let counted: u64 = maps.denies.borrow().values().map(|entry| entry.count.get()).sum();
    assert_eq!(counted, drops, "every drop is in a record");
    let judged: u64 = maps.stats.borrow().values().map(|counter| counter.packets).sum();
    assert_eq!(judged, packets, "every packet is counted");
    for event in maps
        .events
        .borrow()
        .iter()
        .filter(|event| event.kind == event_kind::OPEN)
    {
        assert!(matches!(event.rule, 501 | rule::NODE));
    }
});
