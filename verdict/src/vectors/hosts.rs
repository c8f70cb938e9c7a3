//! Vectors about the node itself, at the devices that lead out of it: what is its own and what only passes, what it sends on for
//! others, answers, ICMP errors, two uplinks, and what happens while it is no endpoint.

use super::{
    Change, Vector,
    world::{A, DEFAULT_DENY, EGRESS, INGRESS, Net, SECOND_UPLINK, Story, UPLINK, World, allow, nets, reject, who},
};
use crate::{
    host::frame::{arp, frame},
    layout::{Config, EndpointWord, RuleKey, config_flag, identity, rule},
    packet::tcp::{ACK, RST, SYN},
    port::{Position, protocol},
    reason::Reason,
};

const NONE: u32 = rule::NONE;
/// A port clients use.
const CLIENT: u16 = 40_000;
/// A port of the node that others may come to, and the rule that says so.
const OPEN: u16 = 7_000;
const IN: u32 = 701;
/// A port of others that the node may go to, and the rule that says so.
const OUT: u32 = 702;

pub(super) fn vectors() -> Vec<Vector> {
    let mut vectors = vec![no_endpoint(&nets()[0]), resolution(&nets()[0])];
    for net in nets() {
        vectors.extend([
            inbound(&net),
            outbound(&net),
            transit(&net),
            forwarded(&net),
            forwarded_midway(&net),
            two_uplinks(&net),
            errors(&net),
            fragments(&net),
            rejected(&net),
            pods_rules(&net),
        ]);
    }
    vectors
}

/// The configuration of the node.
fn host() -> Config {
    Config {
        identity: who::NODE,
        egress: EGRESS.saturating_add(UPLINK),
        ingress: INGRESS.saturating_add(UPLINK),
        ifindex: UPLINK,
        flags: config_flag::ENFORCE | config_flag::HOST,
        ..Config::default()
    }
}

/// The node may be reached at one port and may go out to one; both pods are closed.
fn guarded() -> World {
    let mut world = World::closed();
    for device in [UPLINK, SECOND_UPLINK] {
        world.devices.insert(device, UPLINK);
    }
    let word = EndpointWord {
        config: UPLINK,
        generation: 1,
    };
    world.endpoints.insert(UPLINK, word);
    world.configs.insert(UPLINK, host());
    world.own = nets().map(|net| net.node.into()).to_vec();
    let any = identity::ANY_ADDRESS;
    world.only(INGRESS + UPLINK, any, Position::new(protocol::TCP, OPEN), IN);
    world.only(EGRESS + UPLINK, any, Position::new(protocol::TCP, 443), OUT);
    world
}

/// What comes to the node is asked of its rules; a change cuts.
fn inbound(net: &Net) -> Vector {
    let to = |port, flags| frame(net.outside, net.node).tcp(CLIENT, port, flags).build();
    let reply = frame(net.node, net.outside).tcp(OPEN, CLIENT, SYN | ACK).build();
    let mut world = guarded();
    let denied = world.port_set(&[super::world::deny(DEFAULT_DENY)]);
    let key = RuleKey {
        ruleset: INGRESS + UPLINK,
        peer: identity::ANY_ADDRESS,
    };
    let next = EndpointWord {
        config: UPLINK,
        generation: 2,
    };
    Story::new(format!("to the node, {}", net.name), world)
        .to(UPLINK, to(22, SYN), Reason::PolicyDenied, DEFAULT_DENY)
        .to(UPLINK, to(OPEN, ACK), Reason::MidStream, NONE)
        .to(UPLINK, to(OPEN, SYN), Reason::Allowed, IN)
        .from(UPLINK, reply.clone(), Reason::Established, IN)
        .to(UPLINK, to(OPEN, ACK), Reason::Established, IN)
        .from(UPLINK, reply, Reason::Established, IN)
        .change(Change::Rule(key, denied))
        .change(Change::Endpoint(UPLINK, next))
        .to(UPLINK, to(OPEN, ACK), Reason::Revoked, DEFAULT_DENY)
        .to(UPLINK, to(OPEN, ACK), Reason::PolicyDenied, DEFAULT_DENY)
        // From outside, in the node's own name.
        .to(
            UPLINK,
            frame(net.node, net.node).tcp(CLIENT, OPEN, SYN).build(),
            Reason::SpoofedAddress,
            NONE,
        )
        .end()
}

/// What the node's own sockets send.
fn outbound(net: &Net) -> Vector {
    let by = |port, flags| frame(net.node, net.outside).tcp(CLIENT, port, flags).build();
    let reply = frame(net.outside, net.node).tcp(443, CLIENT, SYN | ACK).build();
    Story::new(format!("by the node, {}", net.name), guarded())
        .from(UPLINK, by(80, SYN), Reason::PolicyDenied, DEFAULT_DENY)
        .by_socket()
        .from(UPLINK, by(443, SYN), Reason::Allowed, OUT)
        .by_socket()
        .to(UPLINK, reply.clone(), Reason::Established, OUT)
        .from(UPLINK, by(443, ACK), Reason::Established, OUT)
        .by_socket()
        .to(UPLINK, reply, Reason::Established, OUT)
        .from(UPLINK, by(80, ACK), Reason::MidStream, NONE)
        .by_socket()
        .end()
}

/// What is neither from nor to the node passes without a flow, whatever its rules say.
fn transit(net: &Net) -> Vector {
    let out = frame(net.a, net.outside).tcp(CLIENT, 80, SYN).build();
    let back = frame(net.outside, net.a).tcp(80, CLIENT, SYN | ACK).build();
    let later = frame(net.outside, net.a).fragment(9, 64, false).build();
    Story::new(format!("past the node, {}", net.name), guarded())
        .from(UPLINK, out.clone(), Reason::Transit, NONE)
        .to(UPLINK, back.clone(), Reason::Transit, NONE)
        .from(UPLINK, out, Reason::Transit, NONE)
        .to(UPLINK, later, Reason::Transit, NONE)
        // At the pod's own device it is a stranger's all the same.
        .to(A, back, Reason::MidStream, NONE)
        .end()
}

/// What the node sends on under its own address was judged at a pod's device: it opens a flow, so that replies come back.
fn forwarded(net: &Net) -> Vector {
    let by = |flags| frame(net.node, net.outside).tcp(CLIENT, 80, flags).build();
    let reply = frame(net.outside, net.node).tcp(80, CLIENT, SYN | ACK).build();
    let next = |generation| {
        let word = EndpointWord {
            config: UPLINK,
            generation,
        };
        Change::Endpoint(UPLINK, word)
    };
    Story::new(format!("masqueraded by the node, {}", net.name), guarded())
        .to(UPLINK, reply.clone(), Reason::MidStream, NONE)
        .from(UPLINK, by(SYN), Reason::Allowed, rule::FORWARDED)
        .to(UPLINK, reply.clone(), Reason::Established, rule::FORWARDED)
        .from(UPLINK, by(ACK), Reason::Established, rule::FORWARDED)
        .change(next(2))
        // Answers alone know what the flow was opened by.
        .to(UPLINK, reply.clone(), Reason::ReplyAllowed, rule::FORWARDED)
        .change(next(3))
        // Once a socket of the node takes part, the rules count.
        .from(UPLINK, by(ACK), Reason::Revoked, DEFAULT_DENY)
        .by_socket()
        .to(UPLINK, reply, Reason::PolicyDenied, DEFAULT_DENY)
        .host_only("every test packet in the kernel has a socket")
        .end()
}

/// A masqueraded connection that is older than the node's rules goes on.
fn forwarded_midway(net: &Net) -> Vector {
    let by = frame(net.node, net.outside).tcp(CLIENT, 80, ACK).build();
    let reply = frame(net.outside, net.node).tcp(80, CLIENT, ACK).build();
    Story::new(format!("masqueraded before the rules, {}", net.name), guarded())
        .to(UPLINK, reply.clone(), Reason::MidStream, NONE)
        .from(UPLINK, by, Reason::Adopted, rule::FORWARDED)
        .to(UPLINK, reply, Reason::Established, rule::FORWARDED)
        .host_only("every test packet in the kernel has a socket")
        .end()
}

/// Replies may leave by another uplink than requests come in by.
fn two_uplinks(net: &Net) -> Vector {
    let request = |flags| frame(net.outside, net.node).tcp(CLIENT, OPEN, flags).build();
    let reply = frame(net.node, net.outside).tcp(OPEN, CLIENT, SYN | ACK).build();
    Story::new(format!("two uplinks, {}", net.name), guarded())
        .to(UPLINK, request(SYN), Reason::Allowed, IN)
        .from(SECOND_UPLINK, reply.clone(), Reason::ReplyAllowed, IN)
        .to(UPLINK, request(ACK), Reason::Allowed, IN)
        .to(UPLINK, request(ACK), Reason::Established, IN)
        .from(SECOND_UPLINK, reply, Reason::ReplyAllowed, IN)
        .end()
}

/// ICMP errors follow the node's flows; those about what it only passes on are not its own.
fn errors(net: &Net) -> Vector {
    let request = frame(net.node, net.outside).tcp(CLIENT, 443, SYN).build();
    let stranger = frame(net.node, net.outside).tcp(CLIENT, 444, SYN).build();
    let passing = frame(net.outside, net.a).tcp(CLIENT, 80, SYN).build();
    let arrived = frame(net.outside, net.node).tcp(CLIENT, 9, SYN).build();
    let about = |from, to, inner: &Vec<u8>| frame(from, to).error_about(inner).build();
    Story::new(format!("errors and the node, {}", net.name), guarded())
        .from(UPLINK, request.clone(), Reason::Allowed, OUT)
        .by_socket()
        .to(
            UPLINK,
            about(net.stranger, net.node, &request),
            Reason::RelatedError,
            OUT,
        )
        .to(
            UPLINK,
            about(net.stranger, net.node, &stranger),
            Reason::UnrelatedError,
            NONE,
        )
        .from(UPLINK, about(net.node, net.outside, &passing), Reason::Transit, NONE)
        .from(
            UPLINK,
            about(net.node, net.outside, &arrived),
            Reason::UnrelatedError,
            NONE,
        )
        .end()
}

/// Later fragments to the node follow their first.
fn fragments(net: &Net) -> Vector {
    let first = |port| {
        let first = frame(net.outside, net.node).udp(CLIENT, port).payload(64);
        first.fragment(u32::from(port), 0, true).build()
    };
    let later = |port| {
        frame(net.outside, net.node)
            .udp(0, 0)
            .fragment(u32::from(port), 64, false)
            .build()
    };
    let mut world = guarded();
    let any = identity::ANY_ADDRESS;
    world.only(INGRESS + UPLINK, any, Position::new(protocol::UDP, OPEN), IN);
    Story::new(format!("fragments to the node, {}", net.name), world)
        .to(UPLINK, later(OPEN), Reason::FragmentOrphan, NONE)
        .to(UPLINK, first(OPEN), Reason::Allowed, IN)
        .to(UPLINK, later(OPEN), Reason::Fragment, NONE)
        .to(UPLINK, first(9), Reason::PolicyDenied, DEFAULT_DENY)
        .to(UPLINK, later(9), Reason::FragmentOrphan, NONE)
        .end()
}

/// A rule of the node that rejects is answered.
fn rejected(net: &Net) -> Vector {
    let mut world = guarded();
    world.entry(INGRESS + UPLINK, identity::ANY_ADDRESS, &[reject(DEFAULT_DENY)]);
    let request = frame(net.outside, net.node).tcp(CLIENT, OPEN, SYN).build();
    let answer = frame(net.node, net.outside).tcp(OPEN, CLIENT, RST | ACK).build();
    Story::new(format!("rejected by the node, {}", net.name), world)
        .to(UPLINK, request, Reason::PolicyDenied, DEFAULT_DENY)
        .from(UPLINK, answer, Reason::Answer, NONE)
        .as_answer()
        .end()
}

/// Rules are asked of the identity of who is at the other end: a pod elsewhere is one.
fn pods_rules(net: &Net) -> Vector {
    let mut world = guarded();
    world.entry(INGRESS + UPLINK, who::C, &[allow(705)]);
    Story::new(format!("a pod elsewhere to the node, {}", net.name), world)
        .to(
            UPLINK,
            frame(net.c, net.node).tcp(CLIENT, 22, SYN).build(),
            Reason::Allowed,
            705,
        )
        .to(
            UPLINK,
            frame(net.outside, net.node).tcp(CLIENT, 22, SYN).build(),
            Reason::PolicyDenied,
            DEFAULT_DENY,
        )
        .end()
}

/// The link's own messages pass, whoever they are about.
fn resolution(net: &Net) -> Vector {
    let mac = [2, 0, 0, 0, 9, 9];
    Story::new("the link's own messages", guarded())
        .to(UPLINK, arp(mac, 1, (mac, net.outside), net.node), Reason::Arp, NONE)
        .from(UPLINK, arp(mac, 2, (mac, net.node), net.outside), Reason::Arp, NONE)
        .end()
}

/// A node that no policy is about is not judged; nor is it by the rules of a pod that has its slot now.
fn no_endpoint(net: &Net) -> Vector {
    let request = frame(net.outside, net.node).tcp(CLIENT, 22, SYN).build();
    let gone = EndpointWord::default();
    let pods = Config {
        flags: config_flag::ENFORCE,
        ..host()
    };
    let again = EndpointWord {
        config: UPLINK,
        generation: 3,
    };
    Story::new("a node that is no endpoint", guarded())
        .to(UPLINK, request.clone(), Reason::PolicyDenied, DEFAULT_DENY)
        .change(Change::Endpoint(UPLINK, gone))
        .to(UPLINK, request.clone(), Reason::Unmanaged, rule::UNMANAGED)
        .change(Change::Config(UPLINK, pods))
        .change(Change::Endpoint(UPLINK, again))
        .to(UPLINK, request, Reason::Unmanaged, rule::UNMANAGED)
        .end()
}
