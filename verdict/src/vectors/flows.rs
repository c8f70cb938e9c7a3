//! Vectors about flows: replies, revocation, tuple reuse, closing, idle time-outs, mid-stream TCP, adoption.

use super::{
    Change, Deadline, Vector,
    world::{
        A, ALLOW_ALL, B, DEFAULT_DENY, EGRESS, INGRESS, Net, Story, World, allow, by_a, by_b, config, deny, nets, who,
    },
};
use crate::{
    flow::idle,
    host::frame::frame,
    layout::{AddressEntry, AddressKey, Config, ONE_WAY_CONFIRM, RuleKey, address_flag, config_flag, identity, rule},
    packet::tcp::{ACK, FIN, RST, SYN},
    port::{Position, protocol},
    reason::Reason,
};

const NONE: u32 = rule::NONE;
/// A port clients use.
const CLIENT: u16 = 40_000;

pub(super) fn vectors() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for net in nets() {
        vectors.extend([
            revoked(&net),
            revoked_reply(&net),
            revoked_at_responder(&net),
            peer_changes(&net),
        ]);
        vectors.extend([
            generation(&net),
            mid_stream(&net),
            reuse(&net),
            reverse(&net),
            crossing(&net),
            one_way(&net),
        ]);
        vectors.extend([
            adoption(&net),
            adoption_window(&net),
            idle_timeouts(&net),
            full(&net),
            quota(&net),
        ]);
    }
    vectors
}

/// Out to C's port 80 by rule 501; nothing else.
fn out_only() -> World {
    let mut world = World::closed();
    world.only(EGRESS + A, who::C, Position::new(protocol::TCP, 80), 501);
    world
}

/// A changed policy cuts at the next packet, and says so once.
fn revoked(net: &Net) -> Vector {
    let mut world = out_only();
    let denied = world.port_set(&[deny(502)]);
    let allowed = world.port_set(&[allow(503)]);
    let key = RuleKey {
        ruleset: EGRESS + A,
        peer: who::C,
    };
    let data = by_a(net, net.c).tcp(CLIENT, 80, ACK).build();
    let answer = frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build();
    Story::new(format!("a live flow loses its permission, {}", net.name), world)
        .from(A, by_a(net, net.c).tcp(CLIENT, 80, SYN).build(), Reason::Allowed, 501)
        .to(A, answer.clone(), Reason::Established, 501)
        .from(A, data.clone(), Reason::Established, 501)
        .change(Change::Rule(key, denied))
        .from(A, data.clone(), Reason::Established, 501)
        .republish(A, 2)
        .from(A, data.clone(), Reason::Revoked, 502)
        .from(A, data.clone(), Reason::PolicyDenied, 502)
        .to(A, answer.clone(), Reason::PolicyDenied, 502)
        .change(Change::Rule(key, allowed))
        .to(A, answer, Reason::ReplyAllowed, 503)
        .from(A, data, Reason::Established, 503)
        .end()
}

/// The reply may be the first packet after the change; it is judged as its flow.
fn revoked_reply(net: &Net) -> Vector {
    let mut world = out_only();
    let denied = world.port_set(&[deny(502)]);
    let data = frame(net.c, net.a).tcp(80, CLIENT, ACK).build();
    Story::new(format!("a reply after the permission went, {}", net.name), world)
        .from(A, by_a(net, net.c).tcp(CLIENT, 80, SYN).build(), Reason::Allowed, 501)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build(),
            Reason::Established,
            501,
        )
        .republish(A, 2)
        .to(A, data.clone(), Reason::ReplyAllowed, 501)
        .to(A, data.clone(), Reason::Established, 501)
        .change(Change::Rule(
            RuleKey {
                ruleset: EGRESS + A,
                peer: who::C,
            },
            denied,
        ))
        .republish(A, 3)
        .to(A, data, Reason::Revoked, 502)
        .end()
}

/// Each side is its own: what the responder's end revokes stays revoked there.
fn revoked_at_responder(net: &Net) -> Vector {
    let mut world = World::open();
    let denied = world.port_set(&[deny(502)]);
    let ask = by_a(net, net.b).udp(CLIENT, 53).build();
    let answer = by_b(net, net.a).udp(53, CLIENT).build();
    Story::new(format!("the responder's end revokes, {}", net.name), world)
        .from(A, ask.clone(), Reason::Allowed, ALLOW_ALL)
        .to(B, ask.clone(), Reason::Allowed, ALLOW_ALL)
        .from(B, answer.clone(), Reason::Established, ALLOW_ALL)
        .to(A, answer.clone(), Reason::Established, ALLOW_ALL)
        .change(Change::Rule(
            RuleKey {
                ruleset: INGRESS + B,
                peer: who::A,
            },
            denied,
        ))
        .republish(B, 2)
        .from(B, answer.clone(), Reason::Revoked, 502)
        .from(B, answer, Reason::PolicyDenied, 502)
        .from(A, ask.clone(), Reason::Established, ALLOW_ALL)
        .to(B, ask, Reason::PolicyDenied, 502)
        .end()
}

/// An address that is somebody else's now.
fn peer_changes(net: &Net) -> Vector {
    let key = AddressKey {
        address: net.c.into(),
        zone: 0,
    };
    let entry = AddressEntry {
        identity: 399,
        image_class: 0,
        slot: u32::MAX,
        flags: address_flag::POD,
    };
    let data = by_a(net, net.c).tcp(CLIENT, 80, ACK).build();
    Story::new(format!("the peer's address changes hands, {}", net.name), out_only())
        .from(A, by_a(net, net.c).tcp(CLIENT, 80, SYN).build(), Reason::Allowed, 501)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build(),
            Reason::Established,
            501,
        )
        .change(Change::PeerEpoch(net.b.into(), 9))
        .from(A, data.clone(), Reason::Established, 501)
        .change(Change::PeerEpoch(net.c.into(), 1))
        .from(A, data.clone(), Reason::Allowed, 501)
        .change(Change::Address(key, Some(entry)))
        .change(Change::PeerEpoch(net.c.into(), 2))
        .from(A, data.clone(), Reason::Revoked, DEFAULT_DENY)
        .change(Change::Address(key, None))
        .from(A, data, Reason::PolicyDenied, DEFAULT_DENY)
        .end()
}

/// A new generation and a new epoch re-judge; a known reply takes no notice of the closed way in.
fn generation(net: &Net) -> Vector {
    let data = by_a(net, net.c).tcp(CLIENT, 80, ACK).build();
    Story::new(format!("generations and epochs, {}", net.name), out_only())
        .from(A, by_a(net, net.c).tcp(CLIENT, 80, SYN).build(), Reason::Allowed, 501)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build(),
            Reason::Established,
            501,
        )
        .republish(A, 2)
        .from(A, data.clone(), Reason::Allowed, 501)
        .from(A, data.clone(), Reason::Established, 501)
        .change(Change::Epoch(5))
        .from(A, data.clone(), Reason::Allowed, 501)
        .from(A, data.clone(), Reason::Established, 501)
        .republish(A, 1)
        .from(A, data, Reason::Allowed, 501)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT + 1, SYN).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .end()
}

fn mid_stream(net: &Net) -> Vector {
    Story::new(format!("mid-stream TCP, {}", net.name), World::open())
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, ACK).build(),
            Reason::MidStream,
            NONE,
        )
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, SYN | ACK).build(),
            Reason::MidStream,
            NONE,
        )
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, SYN | FIN).build(),
            Reason::MidStream,
            NONE,
        )
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, RST).build(),
            Reason::MidStream,
            NONE,
        )
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, 0).build(),
            Reason::MidStream,
            NONE,
        )
        .end()
}

/// A closed connection's tuple may begin anew, and is judged anew.
fn reuse(net: &Net) -> Vector {
    let mut world = out_only();
    let allowed = world.port_set(&[allow(503)]);
    let syn = by_a(net, net.c).tcp(CLIENT, 80, SYN).build();
    Story::new(format!("a tuple used again, {}", net.name), world)
        .from(A, syn.clone(), Reason::Allowed, 501)
        .from(A, syn.clone(), Reason::Established, 501)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build(),
            Reason::Established,
            501,
        )
        .from(A, syn.clone(), Reason::Established, 501)
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, FIN | ACK).build(),
            Reason::Established,
            501,
        )
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, FIN | ACK).build(),
            Reason::Established,
            501,
        )
        .change(Change::Rule(
            RuleKey {
                ruleset: EGRESS + A,
                peer: who::C,
            },
            allowed,
        ))
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, ACK).build(),
            Reason::Established,
            501,
        )
        .from(A, syn.clone(), Reason::Allowed, 503)
        .from(A, syn, Reason::Established, 503)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, RST | ACK).build(),
            Reason::Established,
            503,
        )
        .end()
}

/// A flow lends itself to no connection the other way round.
fn reverse(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(EGRESS + A, who::B, &[allow(501)]);
    world.entry(INGRESS + B, who::A, &[allow(502)]);
    let (ask, answer) = (
        by_a(net, net.b).udp(123, 123).build(),
        by_b(net, net.a).udp(123, 123).build(),
    );
    let syn = by_a(net, net.b).tcp(CLIENT, 80, SYN).build();
    let back = by_b(net, net.a).tcp(80, CLIENT, SYN).build();
    Story::new(format!("the other way round, {}", net.name), world)
        .from(A, syn.clone(), Reason::Allowed, 501)
        .to(B, syn, Reason::Allowed, 502)
        .from(B, back.clone(), Reason::PolicyDenied, DEFAULT_DENY)
        .to(A, back, Reason::PolicyDenied, DEFAULT_DENY)
        .from(A, ask.clone(), Reason::Allowed, 501)
        .to(B, ask, Reason::Allowed, 502)
        .from(B, answer.clone(), Reason::Established, 502)
        .change(Change::Epoch(1))
        .to(A, answer, Reason::ReplyAllowed, 501)
        .end()
}

/// Where B's end denies what A sends but lets B speak first, B's datagram opens a flow of its own.
fn crossing(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(EGRESS + A, who::B, &[allow(501)]);
    world.entry(EGRESS + B, who::A, &[allow(503)]);
    world.entry(INGRESS + A, who::B, &[allow(504)]);
    let (to_b, to_a) = (
        by_a(net, net.b).udp(123, 123).build(),
        by_b(net, net.a).udp(123, 123).build(),
    );
    Story::new(format!("datagrams that cross, {}", net.name), world)
        .from(A, to_b.clone(), Reason::Allowed, 501)
        .to(B, to_b.clone(), Reason::PolicyDenied, DEFAULT_DENY)
        .from(B, to_a.clone(), Reason::Allowed, 503)
        .to(A, to_a, Reason::Allowed, 504)
        .from(A, to_b.clone(), Reason::Established, 504)
        .to(B, to_b, Reason::Established, 503)
        .end()
}

/// UDP that nobody answers is confirmed after a while, and stays what it is.
fn one_way(net: &Net) -> Vector {
    let packet = by_a(net, net.c).udp(514, 514).build();
    let mut story = Story::new(format!("one-way datagrams, {}", net.name), World::open()).from(
        A,
        packet.clone(),
        Reason::Allowed,
        ALLOW_ALL,
    );
    for _ in 0..ONE_WAY_CONFIRM + 2 {
        story = story.from(A, packet.clone(), Reason::Established, ALLOW_ALL);
    }
    story
        .to(
            A,
            frame(net.c, net.a).udp(514, 514).build(),
            Reason::Established,
            ALLOW_ALL,
        )
        .end()
}

/// A world in which A is inside its adoption window.
fn adopting(mut world: World) -> World {
    let flags = config_flag::ENFORCE | config_flag::ADOPT;
    world.configs.insert(
        A,
        Config {
            flags,
            adopt_until: u64::MAX,
            ..config(A)
        },
    );
    world
}

/// Connections older than we are: judged as whichever end may have opened them.
fn adoption(net: &Net) -> Vector {
    let mut world = adopting(out_only());
    world.only(INGRESS + A, who::B, Position::new(protocol::TCP, 8080), 502);
    Story::new(format!("adoption, {}", net.name), world)
        .from(A, by_a(net, net.c).tcp(CLIENT, 80, ACK).build(), Reason::Adopted, 501)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, ACK).build(),
            Reason::Established,
            501,
        )
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT + 1, ACK).build(),
            Reason::Adopted,
            501,
        )
        .from(A, by_a(net, net.b).tcp(8080, CLIENT, ACK).build(), Reason::Adopted, 502)
        .to(
            A,
            frame(net.b, net.a).tcp(CLIENT, 8080, ACK).build(),
            Reason::Established,
            502,
        )
        .to(A, frame(net.b, net.a).tcp(90, 8080, ACK).build(), Reason::Adopted, 502)
        .from(
            A,
            by_a(net, net.b).tcp(CLIENT, 80, ACK).build(),
            Reason::MidStream,
            DEFAULT_DENY,
        )
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT + 2, 80, RST).build(),
            Reason::MidStream,
            NONE,
        )
        .from(A, by_a(net, net.c).echo_reply(1).build(), Reason::MidStream, NONE)
        .end()
}

fn adoption_window(net: &Net) -> Vector {
    let mut closed = adopting(World::open());
    closed.configs.insert(
        A,
        Config {
            adopt_until: 1,
            ..closed.configs.get(&A).copied().unwrap_or_default()
        },
    );
    closed.configs.insert(
        B,
        Config {
            adopt_until: u64::MAX,
            ..config(B)
        },
    );
    Story::new(format!("no adoption after the window, {}", net.name), closed)
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, ACK).build(),
            Reason::MidStream,
            NONE,
        )
        .from(
            B,
            by_b(net, net.c).tcp(CLIENT, 80, ACK).build(),
            Reason::MidStream,
            NONE,
        )
        .end()
}

fn idle_timeouts(net: &Net) -> Vector {
    let data = by_a(net, net.c).tcp(CLIENT, 80, ACK).build();
    let ask = by_a(net, net.c).udp(CLIENT, 53).build();
    Story::new(format!("idle time-outs, {}", net.name), World::open())
        .host_only("the kernel's clock does not jump")
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, SYN).build(),
            Reason::Allowed,
            ALLOW_ALL,
        )
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build(),
            Reason::Established,
            ALLOW_ALL,
        )
        .change(Change::Wait(idle::TCP))
        .from(A, data.clone(), Reason::Established, ALLOW_ALL)
        .change(Change::Wait(idle::TCP + 1))
        .from(A, data, Reason::MidStream, NONE)
        .from(A, ask.clone(), Reason::Allowed, ALLOW_ALL)
        .change(Change::Wait(idle::SHORT + 1))
        .from(A, ask.clone(), Reason::Allowed, ALLOW_ALL)
        .to(
            A,
            frame(net.c, net.a).udp(53, CLIENT).build(),
            Reason::Established,
            ALLOW_ALL,
        )
        .change(Change::Wait(idle::DATAGRAM))
        .from(A, ask, Reason::Established, ALLOW_ALL)
        .change(Change::Wait(idle::DATAGRAM + 1))
        .to(
            A,
            frame(net.c, net.a).udp(53, CLIENT).build(),
            Reason::Allowed,
            ALLOW_ALL,
        )
        .end()
}

fn full(net: &Net) -> Vector {
    let mut world = World::open();
    world.entry(EGRESS + A, identity::ANY_POD, &[allow(ALLOW_ALL)]);
    Story::new(format!("no room for a flow, {}", net.name), world)
        .host_only("the kernel's TENTATIVE makes room by itself; only want of memory makes it refuse")
        .from(A, by_a(net, net.c).udp(1, 53).build(), Reason::Allowed, ALLOW_ALL)
        .change(Change::FullFlows)
        .from(A, by_a(net, net.c).udp(2, 53).build(), Reason::FlowTableFull, ALLOW_ALL)
        .from(A, by_a(net, net.c).udp(1, 53).build(), Reason::Established, ALLOW_ALL)
        .end()
}

fn quota(net: &Net) -> Vector {
    let live = by_a(net, net.c).udp(1, 53).build();
    Story::new(
        format!("an endpoint's openings are used up, {}", net.name),
        World::open(),
    )
    .from(A, live.clone(), Reason::Allowed, ALLOW_ALL)
    .change(Change::Openings(A, Deadline::Future))
    .from(A, by_a(net, net.c).udp(2, 53).build(), Reason::FlowQuota, ALLOW_ALL)
    .from(A, live, Reason::Established, ALLOW_ALL)
    .from(B, by_b(net, net.c).udp(2, 53).build(), Reason::Allowed, ALLOW_ALL)
    .change(Change::Openings(A, Deadline::Past))
    .from(A, by_a(net, net.c).udp(2, 53).build(), Reason::Allowed, ALLOW_ALL)
    .end()
}
