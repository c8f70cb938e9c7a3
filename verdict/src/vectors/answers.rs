//! Vectors about rules that reject, and about live flows that may end by themselves or go on.

use super::{
    Change, Vector,
    world::{A, ALLOW_ALL, EGRESS, INGRESS, Net, Story, World, allow, by_a, deny, nets, reject, who},
};
use crate::{
    connection::DRAIN_TIME,
    host::frame::frame,
    layout::{Alternative, RuleKey, action, rule},
    packet::tcp::{ACK, FIN, RST, SYN},
    reason::Reason,
};

/// A port clients use.
const CLIENT: u16 = 40_000;

pub(super) fn vectors() -> Vec<Vector> {
    let mut vectors = Vec::new();
    for net in nets() {
        vectors.extend([sent(&net), received(&net), unanswerable(&net), cut(&net), budget(&net)]);
        vectors.extend([
            keep(&net),
            keep_what_was_allowed(&net),
            drain(&net),
            explicit_denial(&net),
        ]);
    }
    vectors
}

/// A world that rejects everything by rule 510.
fn rejecting() -> World {
    let mut world = World::open();
    world.entry(EGRESS + A, who::C, &[reject(510)]);
    world.entry(INGRESS + A, who::C, &[reject(511)]);
    world
}

/// What the pod sends is answered to the pod, and the answer passes the other hook.
fn sent(net: &Net) -> Vector {
    let answer = || frame(net.c, net.a).tcp(80, CLIENT, RST | ACK).build();
    Story::new(format!("a rule rejects what the pod sends, {}", net.name), rejecting())
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, SYN).build(),
            Reason::PolicyDenied,
            510,
        )
        .from(
            A,
            by_a(net, net.c).tcp(CLIENT, 80, SYN).payload(33).build(),
            Reason::PolicyDenied,
            510,
        )
        .from(
            A,
            by_a(net, net.c).udp(CLIENT, 53).payload(1200).build(),
            Reason::PolicyDenied,
            510,
        )
        .from(A, by_a(net, net.c).echo_request(7).build(), Reason::PolicyDenied, 510)
        .to(A, answer(), Reason::MidStream, rule::NONE)
        .to(A, answer(), Reason::Answer, rule::NONE)
        .as_answer()
        .end()
}

/// What is sent to the pod is answered as if by the pod.
fn received(net: &Net) -> Vector {
    let answer = by_a(net, net.c).tcp(80, CLIENT, RST | ACK).build();
    Story::new(
        format!("a rule rejects what is sent to the pod, {}", net.name),
        rejecting(),
    )
    .to(
        A,
        frame(net.c, net.a).tcp(CLIENT, 80, SYN).build(),
        Reason::PolicyDenied,
        511,
    )
    .to(
        A,
        frame(net.c, net.a).udp(CLIENT, 53).build(),
        Reason::PolicyDenied,
        511,
    )
    .to(
        A,
        frame(net.c, net.a).echo_request(7).build(),
        Reason::PolicyDenied,
        511,
    )
    .from(A, answer, Reason::Answer, rule::NONE)
    .as_answer()
    .end()
}

/// Nobody is told anything about other protocols, and of what has IP options no header is repeated.
fn unanswerable(net: &Net) -> Vector {
    let story = Story::new(format!("a rule rejects what has no answer, {}", net.name), rejecting())
        .from(A, by_a(net, net.c).sctp(CLIENT, 80).build(), Reason::PolicyDenied, 510)
        .from(A, by_a(net, net.c).protocol(47).build(), Reason::PolicyDenied, 510);
    if net.a.is_ipv4() {
        story
            .from(
                A,
                by_a(net, net.c).options(2).udp(CLIENT, 53).build(),
                Reason::PolicyDenied,
                510,
            )
            .from(
                A,
                by_a(net, net.c).udp(CLIENT, 53).fragment(9, 0, true).build(),
                Reason::PolicyDenied,
                510,
            )
            .end()
    } else {
        story
            .from(
                A,
                by_a(net, net.c).extension(60, &[0; 6]).udp(CLIENT, 53).build(),
                Reason::PolicyDenied,
                510,
            )
            .end()
    }
}

/// A live connection that is cut is told so, whoever speaks first.
fn cut(net: &Net) -> Vector {
    let mut world = World::open();
    let rejected = world.port_set(&[reject(512)]);
    let data = by_a(net, net.c).tcp(CLIENT, 80, ACK).payload(100).build();
    let theirs = frame(net.c, net.a).tcp(80, CLIENT, ACK).payload(100).build();
    Story::new(
        format!("a live flow is cut by a rule that rejects, {}", net.name),
        world,
    )
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
    .change(Change::Rule(
        RuleKey {
            ruleset: EGRESS + A,
            peer: who::C,
        },
        rejected,
    ))
    .republish(A, 2)
    .to(A, theirs, Reason::Revoked, 512)
    .from(A, data, Reason::PolicyDenied, 512)
    .from(
        A,
        by_a(net, net.c).tcp(CLIENT, 80, FIN | ACK).build(),
        Reason::PolicyDenied,
        512,
    )
    .from(
        A,
        by_a(net, net.c).tcp(CLIENT, 80, RST).build(),
        Reason::PolicyDenied,
        512,
    )
    .end()
}

/// A flood is answered fifty times.
fn budget(net: &Net) -> Vector {
    let mut story = Story::new(format!("answers have a budget, {}", net.name), rejecting())
        .host_only("the budget fills again while the kernel's test runs");
    for port in 1000..1060 {
        let packet = by_a(net, net.c).udp(CLIENT, port).build();
        story = story.from(A, packet, Reason::PolicyDenied, 510);
    }
    story.end()
}

/// What the rules say of C from now on.
fn from_now_on(world: &mut World, alternative: Alternative) -> Change {
    let set = world.port_set(&[alternative]);
    let key = RuleKey {
        ruleset: EGRESS + A,
        peer: who::C,
    };
    Change::Rule(key, set)
}

fn with(action: u8, one: Alternative) -> Alternative {
    Alternative {
        action: one.action | action,
        ..one
    }
}

/// A flow that was opened to C's port 80, and its next packet.
fn opened(net: &Net, name: &str, world: World, rule: u32) -> (Story, Vec<u8>) {
    let story = Story::new(format!("{name}, {}", net.name), world)
        .from(A, by_a(net, net.c).tcp(CLIENT, 80, SYN).build(), Reason::Allowed, rule)
        .to(
            A,
            frame(net.c, net.a).tcp(80, CLIENT, SYN | ACK).build(),
            Reason::Established,
            rule,
        );
    (story, by_a(net, net.c).tcp(CLIENT, 80, ACK).build())
}

/// A policy that keeps live flows denies new ones only; another that denies later cuts them.
fn keep(net: &Net) -> Vector {
    let mut world = World::open();
    let kept = from_now_on(&mut world, with(action::KEEP, deny(520)));
    let denied = from_now_on(&mut world, deny(521));
    let (story, data) = opened(net, "a policy keeps live flows", world, ALLOW_ALL);
    story
        .change(kept)
        .republish(A, 2)
        .from(A, data.clone(), Reason::Kept, 520)
        .from(A, data.clone(), Reason::Established, ALLOW_ALL)
        .from(
            A,
            by_a(net, net.c).tcp(50_000, 80, SYN).build(),
            Reason::PolicyDenied,
            520,
        )
        .republish(A, 3)
        .to(A, frame(net.c, net.a).tcp(80, CLIENT, ACK).build(), Reason::Kept, 520)
        .change(denied)
        .republish(A, 4)
        .from(A, data.clone(), Reason::Revoked, 521)
        .change(kept)
        .republish(A, 5)
        .from(A, data, Reason::PolicyDenied, 520)
        .end()
}

/// What a policy that keeps had allowed is not cut for want of a rule.
fn keep_what_was_allowed(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(EGRESS + A, who::C, &[with(action::KEEP, allow(522))]);
    let gone = from_now_on(&mut world, with(action::DEFAULT, deny(523)));
    let (story, data) = opened(net, "a policy keeps what it allowed", world, 522);
    story
        .change(gone)
        .republish(A, 2)
        .from(A, data.clone(), Reason::Kept, 523)
        .from(A, data, Reason::Established, 522)
        .end()
}

/// A rule that denies on purpose cuts what another policy would keep.
fn explicit_denial(net: &Net) -> Vector {
    let mut world = World::closed();
    world.entry(EGRESS + A, who::C, &[with(action::KEEP, allow(524))]);
    let denied = from_now_on(&mut world, deny(525));
    let (story, data) = opened(net, "a rule denies what another policy keeps", world, 524);
    story
        .change(denied)
        .republish(A, 2)
        .from(A, data, Reason::Revoked, 525)
        .end()
}

/// Five minutes to end, however often it is judged again meanwhile.
fn drain(net: &Net) -> Vector {
    let mut world = World::open();
    let drained = from_now_on(&mut world, with(action::DRAIN, deny(526)));
    let (story, data) = opened(net, "a policy drains live flows", world, ALLOW_ALL);
    let half = DRAIN_TIME / 2;
    story
        .host_only("time passes")
        .change(drained)
        .republish(A, 2)
        .from(A, data.clone(), Reason::Kept, 526)
        .change(Change::Wait(half))
        .from(A, data.clone(), Reason::Established, ALLOW_ALL)
        .republish(A, 3)
        .from(A, data.clone(), Reason::Kept, 526)
        .change(Change::Wait(half.saturating_sub(1)))
        .from(A, data.clone(), Reason::Established, ALLOW_ALL)
        .change(Change::Wait(1))
        .from(A, data.clone(), Reason::Revoked, 526)
        .from(A, data, Reason::PolicyDenied, 526)
        .end()
}
