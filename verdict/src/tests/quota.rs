//! What one endpoint may take of the flow tables, and what is left to others.

use super::{from, maps, to};
use crate::{
    host::{MemMaps, frame::frame},
    layout::CONFIRMED,
    maps::Maps,
    packet::tcp::{ACK, RST, SYN},
    quota::{ALL, BURST, INTERVAL},
    reason::Reason,
    vectors::world::{A, B, Net, World, by_a, by_b, nets},
};

/// A sends the `number`th of its SYNs to C.
fn open(maps: &MemMaps, net: &Net, number: u64) -> Reason {
    let (source, destination) = ports(number);
    from(maps, A, &by_a(net, net.c).tcp(source, destination, SYN).build()).reason
}

/// C's answer to it.
fn answered(maps: &MemMaps, net: &Net, number: u64, flags: u8) -> Reason {
    let (source, destination) = ports(number);
    to(maps, A, &frame(net.c, net.a).tcp(destination, source, flags).build()).reason
}

fn ports(number: u64) -> (u16, u16) {
    let port = |number: u64| u16::try_from(number).unwrap();
    (port(1 + number % 60_000), port(100 + number / 60_000))
}

fn wait(maps: &MemMaps, time: u64) {
    maps.now.set(maps.now.get() + time);
    maps.boot.set(maps.boot.get() + time);
}

fn share(maps: &MemMaps, slot: u32) -> u64 {
    maps.quota(slot).unwrap().confirmed.get()
}

#[test]
fn a_flood_of_openings_ends_at_its_own_endpoint() {
    for net in nets() {
        let mut maps = maps(&World::open());
        assert_eq!(open(&maps, &net, 0), Reason::Allowed);
        assert!(answered(&maps, &net, 0, SYN | ACK).passes());
        for number in 1..=BURST {
            assert_eq!(open(&maps, &net, number), Reason::Allowed, "{number}");
        }
        assert_eq!(open(&maps, &net, BURST + 1), Reason::FlowQuota);
        assert_eq!(
            answered(&maps, &net, 0, ACK),
            Reason::Established,
            "a live flow goes on"
        );
        let other = by_b(&net, net.c).tcp(9, 80, SYN).build();
        assert_eq!(
            from(&maps, B, &other).reason,
            Reason::Allowed,
            "another pod opens as before"
        );

        wait(&maps, 3 * INTERVAL);
        let opened = (0..10).filter(|number| open(&maps, &net, 20_000 + number) == Reason::Allowed);
        assert_eq!(opened.count(), 3);
        assert_eq!(answered(&maps, &net, 1, RST | ACK), Reason::Established);
        assert_eq!(open(&maps, &net, 30_000), Reason::FlowQuota, "a reset is no answer");
        assert!(answered(&maps, &net, 2, SYN | ACK).passes());
        assert_eq!(open(&maps, &net, 30_001), Reason::Allowed, "an answer gives one back");

        maps.limits.opening_interval = 0;
        assert_eq!(open(&maps, &net, 30_002), Reason::Allowed, "no limit");
    }
}

#[test]
fn whoever_is_answered_has_no_limit_but_its_share() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    let half = u64::from(CONFIRMED / 2);
    for number in 0..half + 100 {
        assert_eq!(open(&maps, &net, number), Reason::Allowed, "{number}");
        assert!(answered(&maps, &net, number, SYN | ACK).passes(), "{number}");
    }
    assert_eq!((share(&maps, A), share(&maps, ALL)), (half, half));
    assert_eq!(maps.confirmed.borrow().len() as u64, half);
    assert_eq!(
        maps.tentative.borrow().len(),
        100,
        "the others live on where the least used goes first"
    );

    for port in 1..=1_000 {
        let opening = by_b(&net, net.c).tcp(port, 80, SYN).build();
        assert_eq!(from(&maps, B, &opening).reason, Reason::Allowed);
        assert!(
            to(&maps, B, &frame(net.c, net.b).tcp(80, port, SYN | ACK).build())
                .reason
                .passes()
        );
    }
    assert_eq!(
        (share(&maps, B), share(&maps, ALL)),
        (1_000, half + 1_000),
        "there is room for the next one"
    );
}

#[test]
fn a_connection_that_is_opened_anew_counts_once() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    for _ in 0..5 {
        assert_eq!(open(&maps, &net, 7), Reason::Allowed);
        assert!(answered(&maps, &net, 7, SYN | ACK).passes());
        assert_eq!((share(&maps, A), share(&maps, ALL)), (1, 1));
        assert!(answered(&maps, &net, 7, RST).passes());
    }
    maps.quota(A).unwrap().confirmed.set(0);
    maps.quota(ALL).unwrap().confirmed.set(0);
    assert_eq!(open(&maps, &net, 7), Reason::Allowed);
    assert!(
        answered(&maps, &net, 7, SYN | ACK).passes(),
        "a count below nothing is nothing"
    );
}
