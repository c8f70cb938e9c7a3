//! What a decision leaves behind: events, aggregated denials, counters, promotion.

use super::{from, maps, only_flow, to};
use crate::{
    address::Address,
    host::{MemMaps, Slice, frame::frame},
    layout::{EndpointWord, Event, ONE_WAY_CONFIRM, event_kind, identity, stat},
    maps::Hook,
    packet::tcp::{ACK, FIN, RST, SYN},
    port::{Position, protocol},
    reason::Reason,
    vectors::world::{A, ALLOW_ALL, B, DEFAULT_DENY, EGRESS, INGRESS, World, allow, by_a, by_b, deny, mac, nets, who},
};

fn events(maps: &MemMaps) -> Vec<Event> {
    maps.events.take()
}

#[test]
fn an_opened_flow_says_who_what_and_which_rule() {
    let [net, _] = nets();
    let mut world = World::closed();
    world.only(EGRESS + A, who::C, Position::new(protocol::TCP, 80), 501);
    let maps = maps(&world);
    let syn = by_a(&net, net.c).tcp(40_000, 80, SYN).build();
    from(&maps, A, &syn);
    let [event] = events(&maps)[..] else {
        panic!("one event")
    };
    assert_eq!(
        (event.kind, event.reason, event.hook),
        (event_kind::OPEN, Reason::Allowed as u8, 0)
    );
    assert_eq!(
        (event.source, event.destination),
        (Address::from(net.a), Address::from(net.c))
    );
    assert_eq!(
        (event.source_port, event.destination_port, event.protocol),
        (40_000, 80, protocol::TCP)
    );
    assert_eq!((event.source_identity, event.destination_identity), (who::A, who::C));
    assert_eq!(
        (event.rule, event.generation, event.slot, event.ifindex),
        (501, 1, A, A)
    );
    assert_eq!(
        (event.length as usize, event.tcp_flags, event.sequence, event.flow),
        (syn.len(), SYN, 1, 1)
    );
    assert_eq!(event.time, maps.boot.get());
    from(&maps, A, &syn);
    to(&maps, A, &frame(net.c, net.a).tcp(80, 40_000, SYN | ACK).build());
    assert_eq!(events(&maps), []);
}

#[test]
fn each_side_opens_once_under_one_flow_id() {
    let [_, net] = nets();
    let maps = maps(&World::open());
    let syn = by_a(&net, net.b).tcp(40_000, 80, SYN).build();
    from(&maps, A, &syn);
    to(&maps, B, &syn);
    to(&maps, B, &syn);
    let [first, second] = events(&maps)[..] else {
        panic!("two events")
    };
    assert_eq!(
        (first.kind, second.kind, first.flow),
        (event_kind::OPEN, event_kind::OPEN, second.flow)
    );
    assert_eq!((first.hook, second.hook, second.ifindex, second.slot), (0, 1, B, B));
    assert_eq!((first.source, second.source), (net.a.into(), net.a.into()));
    assert_eq!((second.source_identity, second.destination_identity), (who::A, who::B));
}

#[test]
fn a_denial_is_told_once_and_counted_ever_after() {
    let [net, _] = nets();
    let maps = maps(&World::closed());
    let packet = |port| by_a(&net, net.c).udp(port, 53).build();
    for port in 0..10 {
        from(&maps, A, &packet(port));
    }
    maps.now.set(maps.now.get() + 5);
    from(&maps, A, &packet(1));
    let [event] = events(&maps)[..] else {
        panic!("one event")
    };
    assert_eq!(
        (event.kind, event.rule, event.reason),
        (event_kind::DENY, DEFAULT_DENY, Reason::PolicyDenied as u8)
    );
    let denies = maps.denies.borrow();
    let [(key, entry)] = denies.iter().collect::<Vec<_>>()[..] else {
        panic!("one record")
    };
    assert_eq!(
        (key.destination_port, key.protocol, key.rule, key.ifindex),
        (53, protocol::UDP, DEFAULT_DENY, A)
    );
    assert_eq!(
        (entry.count.get(), entry.bytes.get()),
        (11, 11 * packet(0).len() as u64)
    );
    assert_eq!(
        (entry.source_identity.get(), entry.destination_identity.get()),
        (who::A, who::C)
    );
    assert_eq!((entry.first.get(), entry.last.get()), (maps.boot.get(), maps.now.get()));
    assert_eq!(maps.counted(Hook::FromPod, Reason::PolicyDenied as u8).packets, 11);
}

#[test]
fn a_denied_reply_is_recorded_under_its_flow() {
    let [net, _] = nets();
    let mut world = World::closed();
    world.entry(EGRESS + A, who::B, &[allow(501)]);
    let maps = maps(&world);
    from(&maps, A, &by_a(&net, net.b).tcp(40_000, 80, SYN).build());
    events(&maps);
    let reply = from(&maps, B, &by_b(&net, net.a).tcp(80, 40_000, SYN | ACK).build());
    assert_eq!(reply.reason, Reason::PolicyDenied);
    let [event] = events(&maps)[..] else {
        panic!("one event")
    };
    assert_eq!(
        (event.source, event.destination, event.reply),
        (net.a.into(), net.b.into(), 1)
    );
    assert_eq!((event.source_port, event.destination_port), (40_000, 80));
    assert_eq!(
        (event.source_identity, event.destination_identity, event.slot),
        (who::A, who::B, B)
    );
}

#[test]
fn full_tables_and_rings_are_counted() {
    let [net, _] = nets();
    let mut maps = maps(&World::closed());
    maps.limits.denies = 1;
    maps.limits.events = 1;
    for port in [1, 2, 3, 2] {
        from(&maps, A, &by_a(&net, net.c).udp(9, port).build());
    }
    assert_eq!(maps.counted(Hook::FromPod, stat::LOST_DENIAL).packets, 3);
    assert_eq!(events(&maps).len(), 1);
    to(&maps, A, &[0; 20]);
    maps.limits.denies = 9;
    maps.limits.events = 0;
    to(&maps, A, &[1; 20]);
    assert_eq!(
        (maps.counted(Hook::ToPod, stat::LOST_EVENT).packets, maps.sequence.get()),
        (1, 2)
    );
}

#[test]
fn a_cut_flow_is_told_in_place_of_a_denial() {
    let [net, _] = nets();
    let mut maps = maps(&World::open());
    let syn = by_a(&net, net.c).tcp(40_000, 80, SYN).build();
    from(&maps, A, &syn);
    let opened = events(&maps)[0];
    let mut closed = World::open();
    closed.entry(EGRESS + A, identity::ANY_ADDRESS, &[deny(777)]);
    let after = super::maps(&closed);
    (maps.rules, maps.ranges, maps.alternatives) = (after.rules, after.ranges, after.alternatives);
    maps.endpoints.insert(
        A,
        EndpointWord {
            config: A,
            generation: 2,
        },
    );
    from(&maps, A, &syn);
    from(&maps, A, &syn);
    let told = events(&maps);
    let kinds: Vec<_> = told
        .iter()
        .map(|event| (event.kind, event.reason, event.rule, event.flow))
        .collect();
    let (revoked, denied) = (Reason::Revoked as u8, Reason::PolicyDenied as u8);
    assert_eq!(
        kinds,
        [
            (event_kind::CUT, revoked, 777, opened.flow),
            (event_kind::DENY, denied, 777, opened.flow)
        ]
    );
    assert_eq!(
        maps.denies
            .borrow()
            .values()
            .map(|entry| entry.count.get())
            .sum::<u64>(),
        2
    );
}

#[test]
fn a_used_tuple_closes_with_its_last_counters() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    let out = |flags| by_a(&net, net.c).tcp(40_000, 80, flags).build();
    let into = |flags| frame(net.c, net.a).tcp(80, 40_000, flags).build();
    from(&maps, A, &out(SYN));
    to(&maps, A, &into(SYN | ACK));
    from(&maps, A, &out(ACK));
    from(&maps, A, &out(FIN | ACK));
    to(&maps, A, &into(FIN | ACK));
    let opened = events(&maps)[0];
    from(&maps, A, &out(SYN));
    let [close, open] = events(&maps)[..] else {
        panic!("two events")
    };
    assert_eq!((close.kind, open.kind), (event_kind::CLOSE, event_kind::OPEN));
    assert_eq!((close.flow, open.flow), (opened.flow, opened.flow + 1));
    let (sent, received) = (3 * out(0).len() as u64, 2 * into(0).len() as u64);
    assert_eq!(close.counters, [3, 2, sent, received]);
    assert_eq!(
        (close.source, close.source_port, close.destination_port),
        (net.a.into(), 40_000, 80)
    );
    assert_eq!(
        (close.rule, close.generation, close.tcp_flags),
        (ALLOW_ALL, 1, SYN | ACK | FIN)
    );
    let (flow, confirmed) = only_flow(&maps);
    assert!(!confirmed && flow.packets[0].get() == 1 && flow.initiator_flags.get() == SYN);
}

#[test]
fn only_the_initiators_device_counts() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    let (out, back) = (
        by_a(&net, net.b).udp(9, 53).build(),
        by_b(&net, net.a).udp(53, 9).build(),
    );
    for _ in 0..3 {
        from(&maps, A, &out);
        to(&maps, B, &out);
    }
    from(&maps, B, &back);
    to(&maps, A, &back);
    let (flow, _) = only_flow(&maps);
    assert_eq!([flow.packets[0].get(), flow.packets[1].get()], [3, 1]);
    assert_eq!(flow.bytes[0].get(), 3 * out.len() as u64);
}

#[test]
fn where_only_the_responder_is_here_its_device_counts() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    to(&maps, A, &frame(net.c, net.a).udp(9, 53).build());
    from(&maps, A, &by_a(&net, net.c).udp(53, 9).build());
    let (flow, confirmed) = only_flow(&maps);
    assert_eq!(
        [flow.packets[0].get(), flow.packets[1].get(), u64::from(confirmed)],
        [1, 1, 1]
    );
    assert_eq!((flow.sides[0].ifindex.get(), flow.sides[1].ifindex.get()), (0, A));
}

#[test]
fn a_reply_confirms_and_a_refusal_does_not() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    for _ in 0..2 * ONE_WAY_CONFIRM {
        from(&maps, A, &by_a(&net, net.c).tcp(40_000, 80, SYN).build());
    }
    to(&maps, A, &frame(net.c, net.a).tcp(80, 40_000, RST | ACK).build());
    assert!(!only_flow(&maps).1, "neither retransmission nor RST confirms TCP");
    to(&maps, A, &frame(net.c, net.a).tcp(80, 40_000, SYN | ACK).build());
    assert!(only_flow(&maps).1);
}

#[test]
fn datagrams_without_answer_are_confirmed_after_a_while() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    for number in 1..=ONE_WAY_CONFIRM {
        from(&maps, A, &by_a(&net, net.c).udp(514, 514).build());
        assert_eq!(only_flow(&maps).1, number == ONE_WAY_CONFIRM, "packet {number}");
    }
    assert_eq!(only_flow(&maps).0.packets[0].get(), ONE_WAY_CONFIRM);
}

#[test]
fn a_flow_that_finds_confirmed_full_lives_on_tentatively() {
    let [net, _] = nets();
    let mut maps = maps(&World::open());
    maps.limits.confirmed = 0;
    from(&maps, A, &by_a(&net, net.c).udp(9, 53).build());
    let reply = frame(net.c, net.a).udp(53, 9).build();
    assert_eq!(to(&maps, A, &reply).reason, Reason::Established);
    assert_eq!(to(&maps, A, &reply).reason, Reason::Established);
    assert!(!only_flow(&maps).1);
    maps.limits.confirmed = 1;
    assert_eq!(to(&maps, A, &reply).reason, Reason::Established);
    assert!(only_flow(&maps).1);
}

#[test]
fn shadow_verdicts_are_recorded_per_side() {
    let [net, _] = nets();
    let mut world = World::open();
    let set = world.ranges_of(&[(0, Position::LAST.0, &[allow(501)], &[deny(502)])]);
    world.set(INGRESS + B, who::A, set);
    let maps = maps(&world);
    let out = by_a(&net, net.b).udp(9, 53).build();
    from(&maps, A, &out);
    assert_eq!(only_flow(&maps).0.shadow_drop.get(), 0);
    to(&maps, B, &out);
    let (flow, _) = only_flow(&maps);
    assert_eq!((flow.shadow_drop.get(), flow.sides[1].shadow_rule.get()), (0b10, 502));
    let [open, at_b] = events(&maps)[..] else {
        panic!("two events")
    };
    assert_eq!((open.shadow_rule, open.shadow_drop), (ALLOW_ALL, 0));
    assert_eq!((at_b.rule, at_b.shadow_rule, at_b.shadow_drop), (501, 502, 1));
}

#[test]
fn a_tag_beside_the_bytes_is_no_way_around() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    let bytes = by_a(&net, net.c).tcp(40_000, 80, SYN).build();
    from(&maps, A, &bytes);
    let tagged = Slice {
        bytes: &bytes,
        ifindex: A,
        socket: false,
        tagged: true,
        answer: false,
        came_by: 0,
    };
    assert_eq!(maps.decide(Hook::FromPod, &tagged).reason, Reason::UnknownEthertype);
}

#[test]
fn every_packet_is_counted_once_at_its_hook() {
    let [net, _] = nets();
    let maps = maps(&World::open());
    let frames = [
        by_a(&net, net.c).udp(9, 53).build(),
        vec![],
        frame(net.b, net.c).source_mac(mac(A)).udp(1, 2).build(),
    ];
    for frame in &frames {
        from(&maps, A, frame);
        to(&maps, A, frame);
    }
    for hook in [0, 1] {
        let stats = maps.stats.borrow();
        let (packets, bytes) = stats
            .iter()
            .filter(|((at, number), _)| *at == hook && *number < stat::LOST_EVENT)
            .fold((0, 0), |sum, (_, counter)| {
                (sum.0 + counter.packets, sum.1 + counter.bytes)
            });
        assert_eq!(
            (packets, bytes),
            (3, frames.iter().map(|frame| frame.len() as u64).sum())
        );
    }
}
