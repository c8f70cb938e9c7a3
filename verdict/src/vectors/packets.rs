//! Vectors about packets: what cannot be read, what is spoofed, ARP, discovery, fragments, ICMP errors.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Vector,
    world::{A, ALLOW_ALL, B, DEFAULT_DENY, NOBODY, Net, Story, World, by_a, by_b, config, link_local, mac, nets},
};
use crate::{
    host::frame::{arp, frame},
    layout::{EndpointWord, rule},
    packet::tcp::{ACK, SYN},
    port::protocol,
    reason::Reason,
};

const NONE: u32 = rule::NONE;
/// The gateway's link-local address.
const ROUTER: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
/// All nodes of the link.
const ALL_NODES: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
const NOWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const NOWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

pub(super) fn vectors() -> Vec<Vector> {
    let [v4, v6] = nets();
    let mut vectors = vec![
        malformed(&v4, &v6),
        short(&v4, &v6),
        extensions(&v6),
        address_resolution(&v4),
        own_state(&v4),
    ];
    vectors.extend([
        discovery(&v6),
        false_discovery(&v6),
        discovery_to_pod(&v6),
        later_before_first(&v4),
    ]);
    for net in nets() {
        vectors.extend([
            spoofing(&net),
            a_live_flow_spoofed(&net),
            selfish(&net),
            errors(&net),
            fragments(&net),
        ]);
    }
    vectors
}

fn malformed(v4: &Net, v6: &Net) -> Vector {
    let edit = |mut bytes: Vec<u8>, at: usize, value: u8| {
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes
    };
    let tcp4 = by_a(v4, v4.c).tcp(1, 80, SYN).build();
    let tcp6 = by_a(v6, v6.c).tcp(1, 80, SYN).build();
    let mapped = IpAddr::V6(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped());
    let (bad4, bad6, bad) = (Reason::MalformedIpv4, Reason::MalformedIpv6, Reason::MalformedTransport);
    Story::new("malformed headers", World::open())
        .from(A, edit(tcp4.clone(), 14, 0x65), bad4, NONE)
        .from(A, edit(tcp4.clone(), 14, 0x44), bad4, NONE)
        .from(A, edit(tcp4.clone(), 16, 0x7f), bad4, NONE)
        .from(A, edit(tcp4.clone(), 17, 19), bad4, NONE)
        .from(A, edit(tcp6.clone(), 14, 0x45), bad6, NONE)
        .from(A, edit(tcp6.clone(), 18, 0x7f), bad6, NONE)
        .from(
            A,
            frame(mapped, v6.c).source_mac(mac(A)).tcp(1, 80, SYN).build(),
            bad6,
            NONE,
        )
        .from(A, edit(tcp4.clone(), 46, 0x40), bad, NONE)
        .from(A, edit(tcp4.clone(), 46, 0xf0), bad, NONE)
        .from(
            A,
            by_a(v4, v4.c).raw(protocol::TCP, &[0; 12]).padding(20).build(),
            bad,
            NONE,
        )
        .from(A, by_a(v6, v6.c).raw(protocol::UDP, &[0; 7]).build(), bad, NONE)
        .from(A, by_a(v4, v4.c).raw(protocol::SCTP, &[0; 11]).build(), bad, NONE)
        .from(A, by_a(v4, v4.c).raw(protocol::ICMP, &[8; 4]).build(), bad, NONE)
        .from(A, by_a(v4, v4.c).raw(protocol::ICMPV6, &[128; 8]).build(), bad, NONE)
        .from(A, by_a(v6, v6.c).raw(protocol::ICMP, &[8; 8]).build(), bad, NONE)
        .from(
            A,
            edit(edit(tcp4.clone(), 12, 0x81), 13, 0),
            Reason::UnknownEthertype,
            NONE,
        )
        .to(A, edit(tcp4.clone(), 12, 0x99), Reason::UnknownEthertype, NONE)
        .from(
            A,
            by_a(v4, v4.c).options(10).tcp(1, 80, SYN).build(),
            Reason::Allowed,
            ALLOW_ALL,
        )
        .from(
            A,
            by_a(v4, v4.c).udp(1, 80).padding(9).build(),
            Reason::Allowed,
            ALLOW_ALL,
        )
        .end()
}

fn short(v4: &Net, v6: &Net) -> Vector {
    let cut = |mut bytes: Vec<u8>, length: usize| {
        bytes.truncate(length);
        bytes
    };
    let tcp4 = by_a(v4, v4.c).tcp(1, 80, SYN).build();
    let tcp6 = by_a(v6, v6.c).tcp(1, 80, SYN).build();
    Story::new("shorter than their headers", World::open())
        .host_only(
            "the kernel refuses test packets shorter than an Ethernet header, or than the IP header they announce",
        )
        .from(A, vec![0; 13], Reason::MalformedEthernet, NONE)
        .to(A, vec![], Reason::MalformedEthernet, NONE)
        .from(A, cut(tcp4, 30), Reason::MalformedIpv4, NONE)
        .from(A, cut(tcp6, 50), Reason::MalformedIpv6, NONE)
        .end()
}

fn extensions(v6: &Net) -> Vector {
    let packet = || by_a(v6, v6.c).tcp(1, 80, SYN);
    let mut many = packet();
    for _ in 0..7 {
        many = many.extension(60, &[0; 6]);
    }
    let mut bound = by_a(v6, v6.c).tcp(2, 80, SYN);
    for _ in 0..6 {
        bound = bound.extension(60, &[0; 14]);
    }
    Story::new("IPv6 extension headers", World::open())
        .from(
            A,
            packet().extension(0, &[0; 6]).extension(60, &[0; 22]).build(),
            Reason::Allowed,
            ALLOW_ALL,
        )
        .from(
            A,
            packet().extension(0, &[0; 6]).build(),
            Reason::Established,
            ALLOW_ALL,
        )
        .from(
            A,
            packet().extension(43, &[0, 0, 0, 0, 0, 0]).build(),
            Reason::Established,
            ALLOW_ALL,
        )
        .from(
            A,
            packet().extension(43, &[0, 1, 0, 0, 0, 0]).build(),
            Reason::MalformedIpv6,
            NONE,
        )
        .from(A, bound.build(), Reason::Allowed, ALLOW_ALL)
        .from(A, many.build(), Reason::ExtensionHeaders, NONE)
        .from(
            A,
            packet().fragment(1, 0, true).extension(44, &[0; 6]).build(),
            Reason::MalformedIpv6,
            NONE,
        )
        .from(
            A,
            by_a(v6, v6.c).raw(60, &[6, 9, 0, 0]).build(),
            Reason::MalformedIpv6,
            NONE,
        )
        .from(A, by_a(v6, v6.c).protocol(51).build(), Reason::Allowed, ALLOW_ALL)
        .end()
}

fn address_resolution(v4: &Net) -> Vector {
    let (own, other) = (mac(A), mac(B));
    let malformed = {
        let mut bytes = arp(own, 1, (own, v4.a), v4.c);
        bytes.truncate(40);
        bytes
    };
    Story::new("ARP", World::closed())
        .from(A, arp(own, 1, (own, v4.a), v4.node), Reason::Arp, NONE)
        .from(A, arp(own, 2, (own, v4.a), v4.node), Reason::Arp, NONE)
        .from(A, arp(own, 1, (own, NOWHERE_V4), v4.a), Reason::Arp, NONE)
        .from(A, arp(own, 1, (own, NOWHERE_V4), v4.b), Reason::SpoofedArp, NONE)
        .from(A, arp(own, 2, (own, NOWHERE_V4), v4.a), Reason::SpoofedArp, NONE)
        .from(A, arp(own, 2, (own, v4.b), v4.node), Reason::SpoofedArp, NONE)
        .from(A, arp(own, 2, (other, v4.a), v4.node), Reason::SpoofedArp, NONE)
        .from(A, arp(other, 2, (own, v4.a), v4.node), Reason::SpoofedMac, NONE)
        .from(A, arp(own, 3, (own, v4.a), v4.node), Reason::MalformedArp, NONE)
        .from(A, malformed, Reason::MalformedArp, NONE)
        .to(A, arp(other, 1, (other, v4.node), v4.a), Reason::Arp, NONE)
        .to(A, arp(other, 2, (other, v4.a), v4.a), Reason::SpoofedArp, NONE)
        .end()
}

fn discovery(v6: &Net) -> Vector {
    let own = mac(A);
    let from = |source: IpAddr, to: IpAddr| frame(source, to).source_mac(own);
    let ok = Reason::NeighbourDiscovery;
    let nonce = from(NOWHERE_V6, ALL_NODES).neighbour(135, v6.a, Some((14, [1; 6])));
    Story::new("neighbour discovery a pod sends", World::closed())
        .from(
            A,
            from(v6.a, ALL_NODES).neighbour(135, v6.c, Some((1, own))).build(),
            ok,
            NONE,
        )
        .from(
            A,
            from(link_local(A), ROUTER).neighbour(135, ROUTER, None).build(),
            ok,
            NONE,
        )
        .from(
            A,
            from(v6.a, ROUTER).neighbour(136, v6.a, Some((2, own))).build(),
            ok,
            NONE,
        )
        .from(A, from(link_local(A), ALL_NODES).router(133).build(), ok, NONE)
        .from(A, from(NOWHERE_V6, ALL_NODES).router(133).build(), ok, NONE)
        .from(A, nonce.build(), ok, NONE)
        .end()
}

/// Claims of what is another's, and what only routers may say.
fn false_discovery(v6: &Net) -> Vector {
    let (own, other) = (mac(A), mac(B));
    let from = |source: IpAddr, to: IpAddr| frame(source, to).source_mac(own);
    let advertise = |target: IpAddr, option| from(v6.a, ROUTER).neighbour(136, target, option);
    let false_ones = [
        from(NOWHERE_V6, ALL_NODES).neighbour(135, v6.b, None),
        from(v6.b, ALL_NODES).neighbour(135, v6.c, None),
        from(v6.a, ALL_NODES).neighbour(135, v6.c, Some((1, other))),
        advertise(v6.b, Some((2, own))),
        advertise(v6.a, Some((2, other))),
        advertise(v6.a, Some((1, own))),
        advertise(v6.a, Some((2, own))).hop_limit(64),
        advertise(v6.a, Some((2, own))).fragment(1, 0, true),
        advertise(v6.a, None).extension(0, &[0; 6]),
        from(v6.a, ALL_NODES).router(134),
        from(v6.a, v6.b).router(137),
    ];
    let of_another = frame(v6.a, ALL_NODES).source_mac(other).neighbour(135, v6.c, None);
    let mut story = Story::new("false neighbour discovery a pod sends", World::closed());
    for packet in false_ones {
        story = story.from(A, packet.build(), Reason::SpoofedNeighbour, NONE);
    }
    story.from(A, of_another.build(), Reason::SpoofedMac, NONE).end()
}

fn discovery_to_pod(v6: &Net) -> Vector {
    let to = |to: IpAddr| frame(ROUTER, to);
    let (ok, bad) = (Reason::NeighbourDiscovery, Reason::SpoofedNeighbour);
    Story::new("neighbour discovery sent to a pod", World::closed())
        .to(A, to(v6.a).neighbour(135, v6.a, None).build(), ok, NONE)
        .to(A, to(v6.a).neighbour(136, ROUTER, None).build(), ok, NONE)
        .to(A, to(ALL_NODES).router(134).build(), ok, NONE)
        .to(
            A,
            to(v6.b).neighbour(136, ROUTER, None).build(),
            Reason::WrongDestination,
            NONE,
        )
        .to(A, to(v6.a).router(137).build(), bad, NONE)
        .to(A, to(ALL_NODES).router(133).build(), bad, NONE)
        .to(A, to(v6.a).router(134).hop_limit(254).build(), bad, NONE)
        .to(A, frame(v6.a, ALL_NODES).neighbour(136, v6.a, None).build(), bad, NONE)
        .end()
}

fn spoofing(net: &Net) -> Vector {
    let own = mac(A);
    Story::new(format!("spoofed source, {}", net.name), World::open())
        .from(
            A,
            frame(net.b, net.c).source_mac(own).tcp(1, 80, SYN).build(),
            Reason::SpoofedAddress,
            NONE,
        )
        .from(
            A,
            frame(net.c, net.a).source_mac(own).tcp(80, 1, SYN | ACK).build(),
            Reason::SpoofedAddress,
            NONE,
        )
        .from(
            A,
            frame(net.a, net.c).source_mac(mac(B)).udp(1, 53).build(),
            Reason::SpoofedMac,
            NONE,
        )
        .from(
            A,
            frame(net.b, net.c)
                .source_mac(own)
                .udp(1, 53)
                .fragment(9, 40, false)
                .build(),
            Reason::SpoofedAddress,
            NONE,
        )
        .to(
            A,
            frame(net.c, net.b).tcp(1, 80, SYN).build(),
            Reason::WrongDestination,
            NONE,
        )
        .end()
}

/// Neither another device nor another MAC gets anything out of a live flow, whatever it says.
fn a_live_flow_spoofed(net: &Net) -> Vector {
    let syn = by_a(net, net.c).tcp(40_000, 80, SYN);
    let data = by_a(net, net.c).tcp(40_000, 80, ACK);
    let answer = frame(net.c, net.a).tcp(80, 40_000, SYN | ACK);
    Story::new(
        format!("a live flow spoofed by a neighbour, {}", net.name),
        World::open(),
    )
    .from(A, syn.build(), Reason::Allowed, ALLOW_ALL)
    .to(A, answer.build(), Reason::Established, ALLOW_ALL)
    .from(A, data.build(), Reason::Established, ALLOW_ALL)
    .from(B, data.clone().source_mac(mac(B)).build(), Reason::SpoofedAddress, NONE)
    .from(B, data.build(), Reason::SpoofedMac, NONE)
    .from(A, data.clone().source_mac(mac(B)).build(), Reason::SpoofedMac, NONE)
    .from(
        A,
        answer.clone().source_mac(mac(A)).build(),
        Reason::SpoofedAddress,
        NONE,
    )
    .to(B, answer.build(), Reason::WrongDestination, NONE)
    .from(A, data.build(), Reason::Established, ALLOW_ALL)
    .end()
}

fn selfish(net: &Net) -> Vector {
    let packet = by_a(net, net.a).tcp(1, 80, SYN).build();
    Story::new(format!("a pod to itself, {}", net.name), World::closed())
        .from(A, packet.clone(), Reason::SelfTraffic, rule::SELF)
        .to(A, packet, Reason::SelfTraffic, rule::SELF)
        .end()
}

fn errors(net: &Net) -> Vector {
    let router = net.stranger;
    let out = by_a(net, net.c).udp(5000, 53).payload(30).build();
    let unknown = by_a(net, net.c).udp(5001, 53).build();
    let other = frame(net.b, net.c).udp(5000, 53).build();
    let into = frame(net.c, net.a).udp(6000, 161).build();
    let ping = by_a(net, net.c).echo_request(77).build();
    let (related, unrelated) = (Reason::RelatedError, Reason::UnrelatedError);
    Story::new(format!("ICMP errors, {}", net.name), World::open())
        .to(A, frame(router, net.a).error_about(&out).build(), unrelated, NONE)
        .from(A, out.clone(), Reason::Allowed, ALLOW_ALL)
        .to(A, frame(router, net.a).error_about(&out).build(), related, ALLOW_ALL)
        .to(
            A,
            frame(router, net.a).error_about(out.get(..42).unwrap_or(&[])).build(),
            if net.a.is_ipv4() { related } else { unrelated },
            if net.a.is_ipv4() { ALLOW_ALL } else { NONE },
        )
        .to(A, frame(router, net.a).error_about(&unknown).build(), unrelated, NONE)
        .to(A, frame(router, net.a).error_about(&other).build(), unrelated, NONE)
        .to(B, frame(router, net.b).error_about(&other).build(), unrelated, NONE)
        .to(A, frame(router, net.a).error_about(&into).build(), unrelated, NONE)
        .from(A, by_a(net, net.c).error_about(&into).build(), unrelated, NONE)
        .to(A, into.clone(), Reason::Allowed, ALLOW_ALL)
        .from(A, by_a(net, net.c).error_about(&into).build(), related, ALLOW_ALL)
        .from(A, by_a(net, net.outside).error_about(&into).build(), unrelated, NONE)
        .from(A, ping.clone(), Reason::Allowed, ALLOW_ALL)
        .to(A, frame(router, net.a).error_about(&ping).build(), related, ALLOW_ALL)
        .republish(A, 2)
        .to(A, frame(router, net.a).error_about(&ping).build(), unrelated, NONE)
        .end()
}

fn fragments(net: &Net) -> Vector {
    let packet = |id: u32| by_a(net, net.c).udp(5000, 53).payload(64).fragment(id, 0, true);
    let later = |id: u32, offset: u16, more: bool| {
        by_a(net, net.c)
            .raw(protocol::UDP, &[0; 16])
            .fragment(id, offset, more)
            .build()
    };
    let denied = by_a(net, net.outside)
        .udp(5000, 53)
        .payload(64)
        .fragment(9, 0, true)
        .build();
    let denied_later = by_a(net, net.outside)
        .raw(protocol::UDP, &[0; 16])
        .fragment(9, 9, false)
        .build();
    let mut world = World::open();
    world.entry(
        super::world::EGRESS + A,
        super::world::who::OUTSIDE,
        &[super::world::deny(DEFAULT_DENY)],
    );
    Story::new(format!("fragments, {}", net.name), world)
        .from(A, later(7, 9, true), Reason::FragmentOrphan, NONE)
        .from(A, packet(7).build(), Reason::Allowed, ALLOW_ALL)
        .from(A, later(7, 9, true), Reason::Fragment, NONE)
        .from(A, later(7, 11, false), Reason::Fragment, NONE)
        .from(A, later(7, 1, false), Reason::FragmentOrphan, NONE)
        .from(A, later(8, 9, false), Reason::FragmentOrphan, NONE)
        .from(A, denied, Reason::PolicyDenied, DEFAULT_DENY)
        .from(A, denied_later, Reason::FragmentOrphan, NONE)
        .to(
            B,
            frame(net.a, net.b)
                .raw(protocol::UDP, &[0; 16])
                .fragment(7, 9, true)
                .build(),
            Reason::FragmentOrphan,
            NONE,
        )
        .end()
}

/// The identification used again: what a denied first fragment begins does not live off the one before.
fn later_before_first(v4: &Net) -> Vector {
    let first = |port: u16| by_a(v4, v4.c).udp(5000, port).payload(64).fragment(7, 0, true).build();
    let later = by_a(v4, v4.c)
        .raw(protocol::UDP, &[0; 16])
        .fragment(7, 9, false)
        .build();
    let mut world = World::closed();
    world.only(
        super::world::EGRESS + A,
        super::world::who::C,
        crate::port::Position::new(protocol::UDP, 53),
        500,
    );
    Story::new("a fragment identification used again", world)
        .from(A, first(53), Reason::Allowed, 500)
        .from(A, first(54), Reason::PolicyDenied, DEFAULT_DENY)
        .from(A, later, Reason::FragmentOrphan, NONE)
        .end()
}

fn own_state(v4: &Net) -> Vector {
    let packet = by_a(v4, v4.c).tcp(1, 80, SYN).build();
    let mut world = World::open();
    world.endpoints.insert(
        B,
        EndpointWord {
            config: 0,
            generation: 4,
        },
    );
    world.devices.insert(4, A);
    world.devices.insert(5, 6);
    world.endpoints.insert(
        6,
        EndpointWord {
            config: 6,
            generation: 1,
        },
    );
    world.configs.insert(
        6,
        crate::layout::Config {
            flags: 0,
            ifindex: 5,
            ..config(A)
        },
    );
    Story::new("endpoints that are not there", world)
        .from(NOBODY, packet.clone(), Reason::UnknownEndpoint, NONE)
        .from(4, packet.clone(), Reason::UnknownEndpoint, NONE)
        .from(B, by_b(v4, v4.c).tcp(1, 80, SYN).build(), Reason::MissingConfig, NONE)
        .from(5, packet, Reason::Unmanaged, rule::UNMANAGED)
        .from(5, vec![0xff; 20], Reason::Unmanaged, rule::UNMANAGED)
        .end()
}
