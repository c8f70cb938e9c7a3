//! Deadlines, idle time-outs, the checksum of an approval, the search for a range.

use super::{from, maps, only_flow, to};
use crate::{
    address::Address,
    flow::{
        Binding, approval,
        idle::{self, Class},
        idle_timeout,
    },
    host::{MemMaps, Prefix, frame::frame},
    layout::{Alternative, FlowKey, LeaseKey, MAX_ALTERNATIVES, NetworkEntry, guard, identity, side},
    maps::Maps,
    packet::tcp::{ACK, FIN, RST, SYN},
    policy::{COARSE_TICK, GUARD_CACHE},
    port::{Position, protocol},
    reason::Reason,
    vectors::world::{A, EGRESS, World, allow, by_a, deny, nets, who},
};

const SECOND: u64 = 1_000_000_000;

/// A world where A may go out while a lease of its image runs, and the maps with that lease ending in `seconds`.
fn leased(seconds: u64, negated: u8) -> MemMaps {
    let mut world = World::closed();
    let lease = Alternative {
        guard: guard::LEASE,
        argument: 5,
        side: side::SUBJECT,
        negated,
        ..allow(501)
    };
    world.entry(EGRESS + A, identity::ANY_ADDRESS, &[lease, deny(502)]);
    let mut maps = maps(&world);
    let end = maps.boot.get() + seconds * SECOND;
    maps.leases.insert(
        LeaseKey {
            profile: 5,
            image_class: who::CLASS_A,
        },
        end,
    );
    maps
}

fn wait(maps: &MemMaps, time: u64) {
    maps.now.set(maps.now.get() + time);
    maps.boot.set(maps.boot.get() + time);
}

#[test]
fn a_lease_ends_by_itself_and_never_late() {
    let [net, _] = nets();
    let maps = leased(10, 0);
    let packet = by_a(&net, net.c).udp(9, 53).build();
    assert_eq!(from(&maps, A, &packet).reason, Reason::Allowed);
    assert_eq!(
        only_flow(&maps).0.sides[0].deadline.get(),
        maps.now.get() + 10 * SECOND - COARSE_TICK
    );
    wait(&maps, 10 * SECOND - COARSE_TICK - 1);
    assert_eq!(from(&maps, A, &packet).reason, Reason::Established);
    // The coarse clock may be a tick behind by now: every packet is judged.
    wait(&maps, 1);
    assert_eq!(from(&maps, A, &packet).reason, Reason::Allowed);
    maps.boot.set(maps.boot.get() + COARSE_TICK);
    let verdict = from(&maps, A, &packet);
    assert_eq!((verdict.reason, verdict.rule), (Reason::Revoked, 502));
}

#[test]
fn a_guard_that_was_looked_at_is_looked_at_again_within_a_minute() {
    let [net, _] = nets();
    for (negated, argument_runs) in [(0, 3600), (1, 0)] {
        let mut maps = leased(argument_runs, negated);
        let packet = by_a(&net, net.c).tcp(40_000, 80, SYN).build();
        assert_eq!(from(&maps, A, &packet).reason, Reason::Allowed);
        to(&maps, A, &frame(net.c, net.a).tcp(80, 40_000, SYN | ACK).build());
        // Taken away (or, negated, given) by a write that no epoch tells of.
        let value = if negated == 1 { u64::MAX } else { 0 };
        maps.leases.insert(
            LeaseKey {
                profile: 5,
                image_class: who::CLASS_A,
            },
            value,
        );
        let data = by_a(&net, net.c).tcp(40_000, 80, ACK).build();
        wait(&maps, GUARD_CACHE - 1);
        assert_eq!(from(&maps, A, &data).reason, Reason::Established);
        wait(&maps, 1);
        assert_eq!(from(&maps, A, &data).reason, Reason::Revoked);
    }
}

#[test]
fn what_no_guard_binds_has_no_deadline() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    from(&maps, A, &by_a(&net, net.c).udp(9, 53).build());
    assert_eq!(only_flow(&maps).0.sides[0].deadline.get(), u64::MAX);
}

#[test]
fn a_closed_connection_is_forgotten_soon() {
    let [net, _] = nets();
    for (out, into) in [(FIN | ACK, FIN | ACK), (ACK, RST), (RST, ACK)] {
        let maps = maps(&World::open());
        from(&maps, A, &by_a(&net, net.c).tcp(40_000, 80, SYN).build());
        to(&maps, A, &frame(net.c, net.a).tcp(80, 40_000, SYN | ACK).build());
        from(&maps, A, &by_a(&net, net.c).tcp(40_000, 80, out).build());
        to(&maps, A, &frame(net.c, net.a).tcp(80, 40_000, into).build());
        wait(&maps, idle::SHORT + 1);
        assert_eq!(
            from(&maps, A, &by_a(&net, net.c).tcp(40_000, 80, ACK).build()).reason,
            Reason::MidStream
        );
    }
    let maps = maps(&World::open());
    from(&maps, A, &by_a(&net, net.c).tcp(40_000, 80, SYN).build());
    to(&maps, A, &frame(net.c, net.a).tcp(80, 40_000, SYN | ACK | FIN).build());
    wait(&maps, idle::SHORT + 1);
    let half = from(&maps, A, &by_a(&net, net.c).tcp(40_000, 80, ACK).build());
    assert_eq!(half.reason, Reason::Established, "half closed is open");
}

#[test]
fn fragments_come_soon_or_not_at_all() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    let later = by_a(&net, net.c)
        .raw(protocol::UDP, &[0; 16])
        .fragment(7, 9, false)
        .build();
    from(
        &maps,
        A,
        &by_a(&net, net.c).udp(9, 53).payload(64).fragment(7, 0, true).build(),
    );
    wait(&maps, 30 * SECOND);
    assert_eq!(from(&maps, A, &later).reason, Reason::Fragment);
    wait(&maps, 1);
    assert_eq!(from(&maps, A, &later).reason, Reason::FragmentOrphan);
}

#[test]
fn time_outs_are_as_documented() {
    let minutes = |protocol| idle_timeout(protocol, true, false, Class::default_time) / (60 * SECOND);
    assert_eq!([6, 17, 132, 1, 58, 47].map(minutes), [124, 5, 5, 1, 1, 10]);
    assert_eq!(
        idle_timeout(protocol::TCP, false, false, Class::default_time),
        idle::SHORT
    );
    assert_eq!(
        idle_timeout(protocol::TCP, true, true, Class::default_time),
        idle::SHORT
    );
}

#[test]
fn an_approval_holds_for_nothing_else() {
    let key = FlowKey {
        low: Address([1, 2, 3, 4]),
        high: Address([5, 6, 7, 8]),
        low_port: 9,
        high_port: 10,
        protocol: 6,
        ..FlowKey::default()
    };
    let binding = Binding {
        ifindex: 3,
        slot: 4,
        deadline: 5,
        epoch: 6,
        peer_epoch: 7,
    };
    let given = approval(&key, binding, 8);
    let mut others = vec![
        approval(
            &FlowKey {
                low_port: 10,
                high_port: 9,
                ..key
            },
            binding,
            8,
        ),
        approval(&FlowKey { protocol: 17, ..key }, binding, 8),
        approval(&FlowKey { zone: 1, ..key }, binding, 8),
        approval(
            &key,
            Binding {
                ifindex: 4,
                slot: 3,
                ..binding
            },
            8,
        ),
        approval(&key, Binding { ifindex: 4, ..binding }, 8),
        approval(&key, Binding { slot: 5, ..binding }, 8),
        approval(
            &key,
            Binding {
                deadline: u64::MAX,
                ..binding
            },
            8,
        ),
        approval(&key, binding, 9),
    ];
    for word in 0..4 {
        let (mut low, mut high) = (key, key);
        low.low.0[word] ^= 0x100;
        high.high.0[word] ^= 0x100;
        others.extend([approval(&low, binding, 8), approval(&high, binding, 8)]);
    }
    for epoch in (0..70_000).filter(|epoch| *epoch != 6) {
        others.push(approval(&key, Binding { epoch, ..binding }, 8));
    }
    for peer_epoch in (0..70_000).filter(|epoch| *epoch != 7) {
        others.push(approval(&key, Binding { peer_epoch, ..binding }, 8));
    }
    assert!(!others.contains(&given));
}

#[test]
fn the_search_finds_every_range_of_sets_of_every_size() {
    let [net, _] = nets();
    for size in 1..40_u32 {
        let mut world = World::closed();
        let lists: Vec<[Alternative; 1]> = (0..size).map(|number| [allow(1000 + number)]).collect();
        let mut ranges: Vec<(u32, u32, &[Alternative], &[Alternative])> = Vec::new();
        for (number, list) in (0..size).zip(&lists) {
            let low = if number == 0 { 0 } else { number * 10 };
            let high = if number + 1 == size {
                Position::LAST.0
            } else {
                number * 10 + 9
            };
            ranges.push((low, high, list, &[]));
        }
        let set = world.ranges_of(&ranges);
        world.set(EGRESS + A, who::C, set);
        let maps = maps(&world);
        for port in (0..size * 10).chain([65_535]) {
            let port = u16::try_from(port).unwrap();
            let verdict = from(&maps, A, &by_a(&net, net.c).tcp(1, port, SYN).build());
            assert_eq!(
                verdict.rule,
                1000 + (u32::from(port) / 10).min(size - 1),
                "size {size}, port {port}"
            );
        }
    }
}

#[test]
fn as_many_alternatives_as_documented() {
    let [net, _] = nets();
    let never = Alternative {
        guard: guard::UNTIL,
        argument: 3,
        ..allow(1)
    };
    for (count, reason) in [
        (MAX_ALTERNATIVES - 1, Reason::Allowed),
        (MAX_ALTERNATIVES, Reason::BrokenAlternatives),
    ] {
        let mut world = World::closed();
        let mut list = vec![never; count as usize];
        list.push(allow(2));
        world.entry(EGRESS + A, who::C, &list);
        assert_eq!(
            from(&maps(&world), A, &by_a(&net, net.c).udp(1, 2).build()).reason,
            reason
        );
    }
}

#[test]
fn the_longest_prefix_wins_in_its_zone() {
    let [net, _] = nets();
    let mut maps = MemMaps::default();
    let entry = |identity| NetworkEntry { identity, flags: 0 };
    maps.networks.insert(Prefix::new(0, net.a, 8), entry(8));
    maps.networks.insert(Prefix::new(0, net.a, 24), entry(24));
    maps.networks.insert(Prefix::new(0, net.a, 0), entry(99));
    maps.networks.insert(Prefix::new(1, net.a, 32), entry(1));
    let of = |zone, address: std::net::IpAddr| maps.network(zone, &address.into()).map(|entry| entry.identity);
    assert_eq!(of(0, net.b), Some(24));
    assert_eq!(of(0, net.c), Some(8));
    assert_eq!(of(0, net.outside), Some(99));
    assert_eq!((of(1, net.a), of(1, net.b), of(0, nets()[1].a)), (Some(1), None, None));
}
