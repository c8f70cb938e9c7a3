//! Names: deadlines, live flows, whose place is whose, and any bytes as a message.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::{from, maps, to};
use crate::{
    dns::{LIVE_HOLD, Outcome, place, table},
    host::{
        MemMaps, Slice,
        dns::{self, Message, Record},
        frame::frame,
    },
    maps::Hook,
    packet::tcp::{ACK, SYN},
    reason::Reason,
    vectors::{
        names::named,
        world::{A, B, EGRESS, Net, allow, by_a, by_b, nets, who},
    },
};

const SECOND: u64 = 1_000_000_000;
const NAME: &str = "api.example.com";

fn wait(maps: &MemMaps, seconds: u64) {
    maps.now.set(maps.now.get() + seconds * SECOND);
    maps.boot.set(maps.boot.get() + seconds * SECOND);
}

fn ask(maps: &MemMaps, net: &Net, id: u16, name: &str) -> Message {
    let query = Message::query(id, name, dns::A);
    let sent = from(maps, A, &query.in_frame(by_a(net, net.c).udp(40_001, 53)));
    assert!(sent.reason.passes());
    query
}

fn tell(maps: &MemMaps, net: &Net, answer: &Message) {
    let told = to(maps, A, &answer.in_frame(frame(net.c, net.a).udp(53, 40_001)));
    assert!(told.reason.passes());
}

fn learn(maps: &MemMaps, net: &Net, address: IpAddr, ttl: u32) {
    let query = ask(maps, net, 7, NAME);
    tell(maps, net, &query.answer(vec![Record::address(address, ttl)]));
}

fn connects(maps: &MemMaps, net: &Net, to: IpAddr, port: u16) -> bool {
    from(maps, A, &by_a(net, to).tcp(port, 443, SYN).build())
        .reason
        .passes()
}

fn counted(maps: &MemMaps, outcome: Outcome) -> u64 {
    let hook = |hook| maps.counted(hook, outcome as u8).packets;
    hook(Hook::FromPod) + hook(Hook::ToPod)
}

#[test]
fn an_address_is_known_as_long_as_the_answer_says() {
    let [net, _] = nets();
    for (ttl, least, expected) in [(30, 0, 30), (5, 60, 60), (1_000_000, 0, 86_400), (u32::MAX, 10, 10)] {
        let mut maps = maps(&named());
        maps.naming.min_ttl = least;
        learn(&maps, &net, net.outside, ttl);
        wait(&maps, expected - 1);
        assert!(connects(&maps, &net, net.outside, 1), "TTL {ttl}, at least {least}");
        wait(&maps, 3);
        assert!(!connects(&maps, &net, net.outside, 2), "TTL {ttl}, at least {least}");
    }
}

#[test]
fn an_alias_that_ends_sooner_ends_its_address() {
    let [net, _] = nets();
    let maps = maps(&named());
    let query = ask(&maps, &net, 7, NAME);
    let answers = vec![Record::alias("", "e.cdn.test", 5), Record::address(net.outside, 600)];
    tell(&maps, &net, &query.answer(answers));
    assert!(connects(&maps, &net, net.outside, 1));
    wait(&maps, 8);
    assert!(!connects(&maps, &net, net.outside, 2));
}

#[test]
fn a_live_flow_keeps_its_address_and_an_ended_one_does_not() {
    let [net, _] = nets();
    let maps = maps(&named());
    learn(&maps, &net, net.outside, 20);
    let packet = |flags| by_a(&net, net.outside).tcp(1, 443, flags).build();
    assert_eq!(from(&maps, A, &packet(SYN)).reason, Reason::Allowed);
    let reply = frame(net.outside, net.a).tcp(443, 1, SYN | ACK).build();
    assert!(to(&maps, A, &reply).reason.passes());
    for _ in 0..30 {
        wait(&maps, 45);
        assert!(from(&maps, A, &packet(ACK)).reason.passes());
        assert!(connects(&maps, &net, net.outside, 2), "while it lives, new ones open");
    }
    // Idle for longer than an address is held: the flow lives, new ones do not open.
    wait(&maps, LIVE_HOLD + 5);
    assert!(!connects(&maps, &net, net.outside, 3));
    assert!(from(&maps, A, &packet(ACK)).reason.passes());
    assert!(connects(&maps, &net, net.outside, 4));
}

#[test]
fn a_rule_that_names_another_name_ends_the_flow() {
    let [net, _] = nets();
    let mut maps = maps(&named());
    learn(&maps, &net, net.outside, 600);
    let packet = |flags| by_a(&net, net.outside).tcp(1, 443, flags).build();
    assert_eq!(from(&maps, A, &packet(SYN)).reason, Reason::Allowed);
    maps.members.clear();
    maps.epoch += 1;
    assert_eq!(from(&maps, A, &packet(SYN)).reason, Reason::Revoked);
}

#[test]
fn a_pod_that_floods_pushes_out_nobody_elses() {
    let [net, _] = nets();
    let maps = maps(&named());
    learn(&maps, &net, net.outside, 600);
    let waits = ask(&maps, &net, 9, "www.shop.test");
    let query = |number: u16, name: &str| Message::query(number, name, dns::A);
    for number in 0..20_000_u16 {
        let query = query(number, &format!("n{number}.shop.test"));
        let port = 1024 + number % 40_000;
        from(&maps, B, &query.in_frame(by_b(&net, net.c).udp(port, 53)));
        if number % 2 == 0 {
            let [_, _, high, low] = u32::from(number).to_be_bytes();
            let answer = query.answer(vec![Record::address(Ipv4Addr::new(192, 0, high, low).into(), 600)]);
            to(&maps, B, &answer.in_frame(frame(net.c, net.b).udp(53, port)));
        }
    }
    assert!(counted(&maps, Outcome::Displaced) > 1000, "the flood was none");
    assert!(connects(&maps, &net, net.outside, 1));
    tell(
        &maps,
        &net,
        &waits.answer(vec![Record::address(Ipv4Addr::new(192, 0, 2, 77).into(), 60)]),
    );
    assert!(connects(&maps, &net, Ipv4Addr::new(192, 0, 2, 77).into(), 2));
    let buckets = |ifindex: u32| {
        let learned = maps
            .learned
            .borrow()
            .keys()
            .filter(|key| key.ifindex == ifindex)
            .count();
        let pending = maps
            .pending
            .borrow()
            .keys()
            .filter(|key| key.ifindex == ifindex)
            .count();
        (learned, pending)
    };
    assert!(buckets(B).0 <= table::LEARNED_BUCKETS as usize && buckets(B).1 <= table::PENDING_BUCKETS as usize);
    let (key, address) = place(A, &net.outside.into());
    let held = maps.learned.borrow()[&key]
        .ways
        .iter()
        .filter(|way| [way.address[0].get(), way.address[1].get()] == address)
        .count();
    assert_eq!(held, 1);
}

#[test]
fn a_thousand_addresses_of_one_pod_fit() {
    let [net, _] = nets();
    let maps = maps(&named());
    for number in 0..1000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let query = ask(&maps, &net, 7, &format!("n{number}.shop.test"));
        tell(
            &maps,
            &net,
            &query.answer(vec![Record::address(Ipv4Addr::new(192, 0, 2 + high, low).into(), 600)]),
        );
    }
    assert_eq!(
        (counted(&maps, Outcome::Learned), counted(&maps, Outcome::Displaced)),
        (1000, 0)
    );
}

#[test]
fn a_late_answer_teaches_nothing() {
    let [net, _] = nets();
    for (seconds, learned) in [(29, true), (31, false)] {
        let maps = maps(&named());
        let query = ask(&maps, &net, 7, NAME);
        wait(&maps, seconds);
        // Something passes, so that the flow itself has not ended.
        from(&maps, A, &by_a(&net, net.c).udp(40_001, 53).payload(20).build());
        tell(&maps, &net, &query.answer(vec![Record::address(net.outside, 60)]));
        assert_eq!(connects(&maps, &net, net.outside, 1), learned, "after {seconds} s");
        assert_eq!(counted(&maps, Outcome::Unsolicited), u64::from(!learned));
    }
}

proptest! {
    /// Whatever a message says, it is judged without a panic, and what is not the right answer opens nothing.
    #[test]
    fn any_bytes_are_a_message(bytes in prop::collection::vec(any::<u8>(), 0..200), id: u16, tcp: bool) {
        let [net, _] = nets();
        let maps = maps(&named());
        ask(&maps, &net, id, NAME);
        let answer = frame(net.c, net.a);
        let answer = if tcp { answer.tcp(53, 40_001, ACK) } else { answer.udp(53, 40_001) };
        to(&maps, A, &dns::payload(answer, &bytes));
        prop_assert!(!connects(&maps, &net, net.outside, 1));
    }

    /// The right answer with some bytes changed is learned whole, or not at all, and never for another address family's sake.
    #[test]
    fn a_damaged_answer_teaches_all_or_nothing(changes in prop::collection::vec((0_usize..120, any::<u8>()), 0..3)) {
        let [net, _] = nets();
        let maps = maps(&named());
        let query = ask(&maps, &net, 7, NAME);
        let addresses = (0..4).map(|last| Record::address(Ipv4Addr::new(192, 0, 2, last).into(), 60));
        let mut bytes = query.answer(addresses.collect()).bytes();
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        to(&maps, A, &dns::payload(frame(net.c, net.a).udp(53, 40_001), &bytes));
        let learned = counted(&maps, Outcome::Learned);
        let ways: usize = maps.learned.borrow().values().flat_map(|bucket| &bucket.ways).filter(|way| way.word.get() != 0).count();
        prop_assert_eq!(learned == 1, ways > 0);
    }
}

#[test]
fn a_server_of_this_node_answers_by_its_own_device() {
    let [net, _] = nets();
    // The other pod is a server: its device is the only way its answers come. One of another node comes by any.
    for (server, came_by, learned) in [
        (net.b, B, true),
        (net.b, 0, false),
        (net.b, 77, false),
        (net.c, 77, true),
    ] {
        let mut world = named();
        world.entry(EGRESS + A, who::B, &[allow(600)]);
        let maps = maps(&world);
        let query = Message::query(7, NAME, dns::A);
        let sent = from(&maps, A, &query.in_frame(by_a(&net, server).udp(40_001, 53)));
        assert!(sent.reason.passes());
        let answer = query.answer(vec![Record::address(net.outside, 60)]);
        let frame = answer.in_frame(frame(server, net.a).udp(53, 40_001));
        let slice = Slice {
            bytes: &frame,
            ifindex: A,
            socket: false,
            tagged: false,
            answer: false,
            came_by,
        };
        assert!(maps.decide(Hook::ToPod, &slice).reason.passes());
        assert_eq!(connects(&maps, &net, net.outside, 1), learned, "{server} by {came_by}");
        assert_eq!(counted(&maps, Outcome::WrongDevice), u64::from(!learned));
    }
}
