//! A pod may only say what is its own: source address and MAC, ARP, neighbour discovery; and is told only what is for it.

use crate::{
    address::Address,
    layout::Config,
    maps::{Hook, Packet},
    packet::{Fragment, Headers, Kind},
    reason::Reason,
};

/// Offset of an ICMPv6 message that has no extension header before it.
const MESSAGE: u32 = 54;
/// Offset of the target of a neighbour solicitation or advertisement.
const TARGET: usize = 62;
/// Options of a discovery message that are looked at; Linux sends at most two.
const MAX_OPTIONS: usize = 4;

/// ICMPv6 types of discovery (RFC 4861).
mod discovery {
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
}

/// Which addresses of a packet are the endpoint's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Owned {
    /// The source; of ARP the sender.
    pub source: bool,
    /// The destination; of ARP the target.
    pub destination: bool,
    /// The target of neighbour discovery.
    pub target: bool,
}

/// The verdict on who speaks to whom: a reason when that settles the packet, `None` when something else is to be asked.
/// ARP ends here, passed or not; what a pod sends as neighbour discovery is for [`discover`].
#[inline(always)]
pub fn check(config: &Config, headers: &Headers, owned: Owned, hook: Hook) -> Option<Reason> {
    match hook {
        Hook::FromPod => from_pod(config, headers, owned),
        Hook::ToPod => to_pod(headers, owned),
    }
}

/// What a pod sends.
#[inline(always)]
fn from_pod(config: &Config, headers: &Headers, owned: Owned) -> Option<Reason> {
    if !config.has_mac(headers.source_mac) {
        return Some(Reason::SpoofedMac);
    }
    match headers.kind {
        Kind::Arp => {
            // RFC 5227: a probe for an own address has no sender address yet.
            let probe = headers.icmp_type == 1 && headers.source.same(&Address::from_v4_word(0)) && owned.destination;
            let own = config.has_mac(headers.claimed_mac) && (probe || owned.source);
            Some(if own { Reason::Arp } else { Reason::SpoofedArp })
        }
        Kind::Neighbour => None,
        _ if owned.source => None,
        _ => Some(Reason::SpoofedAddress),
    }
}

/// What is sent to a pod. Whoever sent ARP or discovery was checked at its own device; what is left to see to is that
/// nobody claims this pod's address towards it, and that it is not redirected.
#[inline(always)]
fn to_pod(headers: &Headers, owned: Owned) -> Option<Reason> {
    match headers.kind {
        Kind::Arp => Some(if owned.source { Reason::SpoofedArp } else { Reason::Arp }),
        Kind::Neighbour => {
            let known = headers.icmp_type == discovery::ROUTER_ADVERTISEMENT
                || headers.icmp_type == discovery::NEIGHBOUR_SOLICITATION
                || headers.icmp_type == discovery::NEIGHBOUR_ADVERTISEMENT;
            if !known || !well_formed(headers) || owned.source {
                Some(Reason::SpoofedNeighbour)
            } else if headers.destination.is_multicast_v6() || owned.destination {
                Some(Reason::NeighbourDiscovery)
            } else {
                Some(Reason::WrongDestination)
            }
        }
        _ if owned.destination => None,
        _ => Some(Reason::WrongDestination),
    }
}

/// From this link, of code 0, neither fragmented nor behind extension headers (RFC 4861, RFC 6980).
#[inline(always)]
fn well_formed(headers: &Headers) -> bool {
    headers.hop_limit == 255
        && headers.icmp_code == 0
        && headers.fragment == Fragment::Whole
        && headers.transport == MESSAGE
}

/// The target of a neighbour solicitation or advertisement; `::` when it has none.
#[inline(always)]
pub fn target<P: Packet>(packet: &P, headers: &Headers) -> Address {
    match headers.icmp_type {
        discovery::NEIGHBOUR_SOLICITATION | discovery::NEIGHBOUR_ADVERTISEMENT => {
            packet.reach(TARGET.wrapping_add(16));
            packet.load(TARGET).unwrap_or(Address::UNSPECIFIED)
        }
        _ => Address::UNSPECIFIED,
    }
}

/// Whether a pod may send this discovery message: solicitations, and advertisements of its own address and MAC.
#[inline(always)]
pub fn discover<P: Packet>(packet: &P, config: &Config, headers: &Headers, owned: Owned) -> Reason {
    let nobody = headers.source.same(&Address::UNSPECIFIED);
    // A sender without address asks whether its own address to be is taken; an advertisement is of an own one.
    let (options, own_option, fits) = match headers.icmp_type {
        discovery::ROUTER_SOLICITATION => (8, 1, nobody || owned.source),
        discovery::NEIGHBOUR_SOLICITATION => (24, 1, owned.source || nobody && owned.target),
        discovery::NEIGHBOUR_ADVERTISEMENT => (24, 2, owned.source && owned.target),
        _ => (0, 0, false),
    };
    if fits
        && well_formed(headers)
        && own_options(packet, config, MESSAGE.wrapping_add(options), headers.end, own_option)
    {
        Reason::NeighbourDiscovery
    } else {
        Reason::SpoofedNeighbour
    }
}

/// Walks a discovery message's options: a link-layer address must be the endpoint's own and of the right type; the nonce
/// of duplicate address detection (RFC 7527) may be there; nothing else.
#[inline(always)]
fn own_options<P: Packet>(packet: &P, config: &Config, start: u32, end: u32, own_option: u8) -> bool {
    /// The nonce option.
    const NONCE: u8 = 14;
    let mut at = start;
    for _ in 0..MAX_OPTIONS {
        if at == end {
            return true;
        }
        if at.wrapping_add(8) > end {
            return false;
        }
        packet.reach(at.wrapping_add(8) as usize);
        let Some([kind_length, a, b, c]) = packet.load::<[u16; 4]>(at as usize) else {
            return false;
        };
        let [kind, length] = kind_length.to_ne_bytes();
        if length != 1 || !(kind == NONCE || kind == own_option && config.has_mac([a, b, c])) {
            return false;
        }
        at = at.wrapping_add(8);
    }
    at == end
}
