//! Vectors about rules: who a peer is, which range, which alternative, which guard.

use super::{
    Change, Deadline, Vector,
    world::{A, ALLOW_ALL, B, DEFAULT_DENY, EGRESS, INGRESS, Net, Story, World, allow, by_a, by_b, deny, nets, who},
};
use crate::{
    host::frame::frame,
    layout::{
        AddressEntry, AddressKey, Alternative, LeaseKey, NameKey, PortSet, RuleKey, address_flag, guard, identity,
        rule, side,
    },
    packet::tcp::{ACK, SYN},
    port::{Position, protocol},
    reason::Reason,
};

const NONE: u32 = rule::NONE;
const PROFILE: u32 = 5;

pub(super) fn vectors() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for net in nets() {
        vectors.extend([
            classes(&net),
            frontend(&net),
            unbound(&net),
            ranges(&net),
            both_ends(&net),
            responder_denies(&net),
        ]);
        vectors.extend([broken(&net), node(&net), node_forwarded(&net), other_protocols(&net)]);
        vectors.extend([
            lease(&net),
            lease_subject(&net),
            until(&net),
            name(&net),
            order(&net),
            shadow(&net),
        ]);
    }
    vectors
}

/// From exact to wide: its own identity, its class, any address.
fn classes(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(EGRESS + A, identity::ANY_ADDRESS, &[allow(504)]);
    world.entry(EGRESS + A, identity::ANY_NODE, &[allow(503)]);
    world.entry(EGRESS + A, identity::ANY_POD, &[allow(502)]);
    world.entry(EGRESS + A, who::C, &[allow(501)]);
    world.entry(EGRESS + A, who::OUTSIDE, &[deny(505)]);
    let syn = |to, port| by_a(net, to).tcp(port, 80, SYN).build();
    Story::new(format!("identity from exact to wide, {}", net.name), world)
        .from(A, syn(net.c, 1), Reason::Allowed, 501)
        .from(A, syn(net.b, 1), Reason::Allowed, 502)
        .from(A, syn(net.node, 1), Reason::Allowed, 503)
        .from(A, syn(net.stranger, 1), Reason::Allowed, 504)
        .from(A, syn(net.outside, 1), Reason::PolicyDenied, 505)
        .from(A, syn(net.unbound, 1), Reason::Allowed, 504)
        .end()
}

/// A Service's frontend is itself or any address, never any pod or node.
fn frontend(net: &Net) -> Vector {
    let mut world = World::closed();
    let service = |identity| AddressEntry {
        identity,
        slot: u32::MAX,
        flags: address_flag::SERVICE,
        image_class: 0,
    };
    for (peer, rule) in [
        (identity::ANY_POD, 502),
        (identity::ANY_NODE, 503),
        (identity::ANY_ADDRESS, 504),
        (who::C, 501),
    ] {
        world.entry(EGRESS + A, peer, &[allow(rule)]);
    }
    let own = AddressKey {
        address: net.stranger.into(),
        zone: 0,
    };
    let syn = |port| by_a(net, net.stranger).tcp(port, 80, SYN).build();
    Story::new(format!("a frontend, {}", net.name), world)
        .change(Change::Address(own, Some(service(who::C))))
        .from(A, syn(1), Reason::Allowed, 501)
        .change(Change::Address(own, Some(service(who::B))))
        .from(A, syn(2), Reason::Allowed, 504)
        .end()
}

/// An address of the pod range that is bound to nobody is no "any pod".
fn unbound(net: &Net) -> Vector {
    let mut world = World::closed();
    let unknown = AddressEntry {
        identity: identity::UNKNOWN_POD,
        slot: u32::MAX,
        flags: address_flag::POD,
        image_class: 0,
    };
    world.entry(EGRESS + A, identity::ANY_POD, &[allow(502)]);
    world.entry(EGRESS + A, identity::UNKNOWN_POD, &[deny(503)]);
    world.entry(EGRESS + B, identity::ANY_POD, &[allow(502)]);
    world.entry(EGRESS + B, who::RANGE, &[allow(504)]);
    world.entry(INGRESS + A, identity::ANY_POD, &[allow(502)]);
    let own = AddressKey {
        address: net.c.into(),
        zone: 0,
    };
    Story::new(format!("a pod not known yet, {}", net.name), world)
        .from(A, by_a(net, net.unbound).udp(1, 53).build(), Reason::PolicyDenied, 503)
        .from(B, by_b(net, net.unbound).udp(1, 53).build(), Reason::Allowed, 504)
        .to(
            A,
            frame(net.unbound, net.a).udp(1, 53).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .to(A, frame(net.c, net.a).udp(1, 53).build(), Reason::Allowed, 502)
        .change(Change::Address(own, Some(unknown)))
        .from(A, by_a(net, net.c).udp(2, 53).build(), Reason::PolicyDenied, 503)
        .to(
            A,
            frame(net.c, net.a).udp(2, 53).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .end()
}

/// The search finds each of many ranges, first and last included.
fn ranges(net: &Net) -> Vector {
    let mut world = World::closed();
    let tcp = |port| Position::new(protocol::TCP, port).0;
    let (low, high) = ([allow(601)], [allow(603)]);
    let mut ranges: Vec<(u32, u32, &[Alternative], &[Alternative])> = vec![(0, tcp(10), &low, &[])];
    let closed = [deny(602)];
    for port in 11..60 {
        ranges.push((tcp(port), tcp(port), &closed, &[]));
    }
    ranges.push((tcp(60), Position::LAST.0, &high, &[]));
    let set = world.ranges_of(&ranges);
    world.set(EGRESS + A, who::C, set);
    let mut story = Story::new(format!("ranges, {}", net.name), world);
    for (port, reason, rule) in [
        (0, Reason::Allowed, 601),
        (10, Reason::Allowed, 601),
        (11, Reason::PolicyDenied, 602),
        (35, Reason::PolicyDenied, 602),
        (59, Reason::PolicyDenied, 602),
        (60, Reason::Allowed, 603),
        (65_535, Reason::Allowed, 603),
    ] {
        story = story.from(A, by_a(net, net.c).tcp(1, port, SYN).build(), reason, rule);
    }
    story
        .from(A, by_a(net, net.c).sctp(1, 9).build(), Reason::Allowed, 603)
        .end()
}

/// A connection between two pods of the node is judged at both devices.
fn both_ends(net: &Net) -> Vector {
    let mut world = World::closed();
    world.only(EGRESS + A, who::B, Position::new(protocol::TCP, 80), 501);
    world.only(INGRESS + B, who::A, Position::new(protocol::TCP, 80), 502);
    let syn = by_a(net, net.b).tcp(40_000, 80, SYN).build();
    let accept = by_b(net, net.a).tcp(80, 40_000, SYN | ACK).build();
    let data = by_a(net, net.b).tcp(40_000, 80, ACK).build();
    Story::new(format!("both ends on the node, {}", net.name), world)
        .from(A, syn.clone(), Reason::Allowed, 501)
        .to(B, syn, Reason::Allowed, 502)
        .from(B, accept.clone(), Reason::Established, 502)
        .to(A, accept, Reason::Established, 501)
        .from(A, data.clone(), Reason::Established, 501)
        .to(B, data, Reason::Established, 502)
        .from(
            B,
            by_b(net, net.a).tcp(40_000, 80, SYN).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .from(
            A,
            by_a(net, net.b).tcp(40_000, 81, SYN).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .end()
}

/// What the responder's end denies is of no use to anybody.
fn responder_denies(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(EGRESS + A, who::B, &[allow(501)]);
    let ask = by_a(net, net.b).udp(40_000, 53).build();
    let answer = by_b(net, net.a).udp(53, 40_000).build();
    Story::new(format!("the responder's end denies, {}", net.name), world)
        .from(A, ask.clone(), Reason::Allowed, 501)
        .to(B, ask.clone(), Reason::PolicyDenied, DEFAULT_DENY)
        .from(B, answer, Reason::PolicyDenied, DEFAULT_DENY)
        .from(A, ask, Reason::Established, 501)
        .end()
}

/// Our own state broken in every way: closed.
fn broken(net: &Net) -> Vector {
    let mut world = World::open();
    let set = |first, count| PortSet { first, count };
    let gap = world.ranges_of(&[(0, 5, &[allow(1)], &[]), (90, 99, &[allow(1)], &[])]);
    let late = world.ranges_of(&[(Position::LAST.0, Position::LAST.0, &[allow(1)], &[])]);
    let unguarded = Alternative { guard: 9, ..allow(1) };
    let sideless = Alternative {
        guard: guard::LEASE,
        side: 7,
        ..allow(1)
    };
    let never = Alternative {
        guard: guard::UNTIL,
        argument: 3,
        ..allow(1)
    };
    let sets = [
        (set(1, 0), Reason::BrokenPortSet, NONE),
        (set(u32::MAX - 1, 4), Reason::BrokenPortSet, NONE),
        (set(1, u32::MAX), Reason::BrokenPortSet, NONE),
        (gap, Reason::BrokenPortSet, NONE),
        (late, Reason::BrokenPortSet, NONE),
        (world.port_set(&[]), Reason::BrokenAlternatives, NONE),
        (world.port_set(&[never]), Reason::BrokenAlternatives, NONE),
        (world.port_set(&[never; 17]), Reason::BrokenAlternatives, NONE),
        (world.port_set(&[unguarded, allow(2)]), Reason::BrokenAlternatives, NONE),
        (world.port_set(&[sideless, allow(2)]), Reason::BrokenAlternatives, NONE),
        (
            world.port_set(&[Alternative {
                action: 9,
                ..allow(510)
            }]),
            Reason::UnknownAction,
            510,
        ),
    ];
    let key = RuleKey {
        ruleset: EGRESS + A,
        peer: who::C,
    };
    world.rules.retain(|(key, _)| key.ruleset != EGRESS + B);
    let packet = by_a(net, net.c).tcp(1, 80, SYN).build();
    let mut story = Story::new(format!("broken rules, {}", net.name), world).from(
        B,
        by_b(net, net.c).tcp(1, 80, SYN).build(),
        Reason::MissingRuleset,
        NONE,
    );
    for (set, reason, rule) in sets {
        story = story
            .change(Change::Rule(key, set))
            .from(A, packet.clone(), reason, rule);
    }
    story.end()
}

/// What a local socket of the node says reaches its pods, and is answered; the other way round rules decide.
fn node(net: &Net) -> Vector {
    let probe = frame(net.node, net.a).tcp(50_000, 8080, SYN).build();
    let answer = by_a(net, net.node).tcp(8080, 50_000, SYN | ACK).build();
    Story::new(format!("the node reaches its pods, {}", net.name), World::closed())
        .to(A, probe.clone(), Reason::NodeTraffic, rule::NODE)
        .by_socket()
        .from(A, answer.clone(), Reason::Established, rule::NODE)
        .republish(A, 2)
        .from(A, answer.clone(), Reason::ReplyAllowed, rule::NODE)
        .to(
            A,
            frame(net.node, net.a).tcp(50_000, 8080, ACK).build(),
            Reason::Established,
            rule::NODE,
        )
        .by_socket()
        .from(
            A,
            by_a(net, net.node).tcp(1, 10_250, SYN).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .to(
            A,
            frame(net.node, net.a).tcp(10_250, 1, SYN | ACK).build(),
            Reason::MidStream,
            NONE,
        )
        .by_socket()
        .to(
            A,
            frame(net.c, net.a).tcp(50_000, 8080, SYN).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .by_socket()
        .end()
}

fn node_forwarded(net: &Net) -> Vector {
    let packet = frame(net.node, net.a).tcp(50_000, 8080, SYN).build();
    Story::new(
        format!("what the node forwards under its address is judged, {}", net.name),
        World::closed(),
    )
    .host_only("every test packet in the kernel has a socket")
    .to(A, packet, Reason::PolicyDenied, DEFAULT_DENY)
    .end()
}

fn other_protocols(net: &Net) -> Vector {
    let mut world = World::closed();
    let echo = if net.a.is_ipv4() {
        (protocol::ICMP, 8 << 8)
    } else {
        (protocol::ICMPV6, 128 << 8)
    };
    world.only(EGRESS + A, who::C, Position::new(echo.0, echo.1), 501);
    world.only(EGRESS + A, who::B, Position::new(47, 0), 502);
    world.only(EGRESS + A, who::OUTSIDE, Position::new(protocol::SCTP, 3868), 503);
    // The id that looks like the port of the other end.
    let id = echo.1;
    Story::new(format!("ICMP echo, SCTP and others, {}", net.name), world)
        .from(A, by_a(net, net.c).echo_request(id).build(), Reason::Allowed, 501)
        .to(A, frame(net.c, net.a).echo_reply(id).build(), Reason::Established, 501)
        .from(A, by_a(net, net.c).echo_reply(id).build(), Reason::MidStream, NONE)
        .to(
            A,
            frame(net.c, net.a).echo_request(id).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .to(A, frame(net.c, net.a).echo_reply(9).build(), Reason::MidStream, NONE)
        .from(
            A,
            by_a(net, net.c).icmp(13, 0, &[0; 4]).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .from(A, by_a(net, net.b).protocol(47).build(), Reason::Allowed, 502)
        .from(
            A,
            by_a(net, net.c).protocol(47).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .from(A, by_a(net, net.outside).sctp(1, 3868).build(), Reason::Allowed, 503)
        .to(
            A,
            frame(net.outside, net.a).sctp(3868, 1).build(),
            Reason::Established,
            503,
        )
        .from(
            A,
            by_a(net, net.outside).sctp(1, 3869).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .end()
}

fn leased(rule: u32, side: u8, negated: u8) -> Alternative {
    Alternative {
        guard: guard::LEASE,
        argument: PROFILE,
        side,
        negated,
        ..allow(rule)
    }
}

fn lease(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(
        EGRESS + A,
        identity::ANY_ADDRESS,
        &[leased(501, side::PEER, 0), deny(502)],
    );
    world.entry(
        INGRESS + A,
        identity::ANY_ADDRESS,
        &[leased(503, side::PEER, 1), deny(504)],
    );
    let key = LeaseKey {
        profile: PROFILE,
        image_class: who::CLASS_A + 2,
    };
    let syn = |port| by_a(net, net.c).tcp(port, 80, SYN).build();
    let into = |port| frame(net.c, net.a).tcp(port, 80, SYN).build();
    Story::new(format!("a lease of the peer, {}", net.name), world)
        .from(A, syn(1), Reason::PolicyDenied, 502)
        .to(A, into(1), Reason::Allowed, 503)
        .change(Change::Lease(key, Deadline::Future))
        .from(A, syn(1), Reason::Allowed, 501)
        .to(A, into(2), Reason::PolicyDenied, 504)
        .change(Change::Lease(key, Deadline::Past))
        .change(Change::Epoch(1))
        .from(A, syn(1), Reason::Revoked, 502)
        .from(A, syn(1), Reason::PolicyDenied, 502)
        .change(Change::Lease(key, Deadline::Always))
        .from(A, syn(1), Reason::Allowed, 501)
        .from(A, by_a(net, net.b).tcp(1, 80, SYN).build(), Reason::PolicyDenied, 502)
        .end()
}

fn lease_subject(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(
        EGRESS + A,
        identity::ANY_ADDRESS,
        &[leased(501, side::SUBJECT, 0), deny(502)],
    );
    world.entry(
        EGRESS + B,
        identity::ANY_ADDRESS,
        &[leased(503, side::SUBJECT, 1), deny(504)],
    );
    world.leases.push((
        LeaseKey {
            profile: PROFILE,
            image_class: who::CLASS_A,
        },
        Deadline::Always,
    ));
    Story::new(format!("a lease of the endpoint, {}", net.name), world)
        .from(A, by_a(net, net.c).udp(1, 53).build(), Reason::Allowed, 501)
        .from(B, by_b(net, net.c).udp(1, 53).build(), Reason::Allowed, 503)
        .end()
}

fn until(net: &Net) -> Vector {
    let mut world = World::closed();
    let one = |rule, negated| Alternative {
        guard: guard::UNTIL,
        argument: 3,
        negated,
        ..allow(rule)
    };
    world.entry(EGRESS + A, who::C, &[one(501, 0), deny(502)]);
    world.entry(EGRESS + A, who::B, &[one(503, 1), deny(504)]);
    world.expiries.insert(3, Deadline::Future);
    let to = |to| by_a(net, to).udp(1, 53).build();
    Story::new(format!("an expiry, {}", net.name), world)
        .from(A, to(net.c), Reason::Allowed, 501)
        .from(A, to(net.b), Reason::PolicyDenied, 504)
        .change(Change::Expiry(3, Deadline::Past))
        .change(Change::Epoch(1))
        .from(A, to(net.c), Reason::Revoked, 502)
        .from(A, to(net.b), Reason::Allowed, 503)
        .end()
}

fn name(net: &Net) -> Vector {
    let mut world = World::closed();
    let one = |rule, negated| Alternative {
        guard: guard::NAME,
        argument: 8,
        negated,
        ..allow(rule)
    };
    world.entry(EGRESS + A, who::OUTSIDE, &[one(501, 0), deny(502)]);
    world.entry(EGRESS + B, who::OUTSIDE, &[one(503, 1), deny(504)]);
    let key = NameKey {
        address: net.outside.into(),
        name: 8,
    };
    Story::new(format!("a learned name, {}", net.name), world)
        .from(
            A,
            by_a(net, net.outside).tcp(1, 443, SYN).build(),
            Reason::PolicyDenied,
            502,
        )
        .from(B, by_b(net, net.outside).tcp(1, 443, SYN).build(), Reason::Allowed, 503)
        .change(Change::Name(key, Deadline::Future))
        .from(A, by_a(net, net.outside).tcp(1, 443, SYN).build(), Reason::Allowed, 501)
        .from(
            B,
            by_b(net, net.outside).tcp(2, 443, SYN).build(),
            Reason::PolicyDenied,
            504,
        )
        .end()
}

/// The first alternative whose guard holds decides, even against a later one.
fn order(net: &Net) -> Vector {
    let mut world = World::closed();
    let until = |number, rule| Alternative {
        guard: guard::UNTIL,
        argument: number,
        ..allow(rule)
    };
    let refuse = Alternative {
        guard: guard::UNTIL,
        argument: 2,
        ..deny(502)
    };
    world.entry(EGRESS + A, who::C, &[until(1, 501), refuse, allow(503)]);
    let packet = |port| by_a(net, net.c).udp(port, 53).build();
    Story::new(format!("alternatives in order, {}", net.name), world)
        .from(A, packet(1), Reason::Allowed, 503)
        .change(Change::Expiry(2, Deadline::Future))
        .from(A, packet(2), Reason::PolicyDenied, 502)
        .change(Change::Expiry(1, Deadline::Future))
        .from(A, packet(2), Reason::Allowed, 501)
        .end()
}

/// A shadow verdict changes nothing that happens.
fn shadow(net: &Net) -> Vector {
    let mut world = World::closed();
    let all = Position::LAST.0;
    let drops = world.ranges_of(&[(0, all, &[allow(501)], &[deny(502)])]);
    let passes = world.ranges_of(&[(0, all, &[deny(503)], &[allow(504)])]);
    world.set(EGRESS + A, who::C, drops);
    world.set(EGRESS + A, who::B, passes);
    world.entry(EGRESS + B, identity::ANY_ADDRESS, &[allow(ALLOW_ALL)]);
    Story::new(format!("shadow rules, {}", net.name), world)
        .from(A, by_a(net, net.c).udp(1, 53).build(), Reason::Allowed, 501)
        .from(A, by_a(net, net.b).udp(1, 53).build(), Reason::PolicyDenied, 503)
        .end()
}
