//! Flows: one key for both directions, what makes an approval valid, idle time-outs, counting, promotion.
//!
//! A flow has two sides: the initiator's device and the responder's. Each side that is on this node is approved on its
//! own, at its own device, by its own endpoint's rules; a packet passes a device only if that device's side approves.
//! New flows live in TENTATIVE, where the least recently used one goes first, and move to CONFIRMED, which the kernel
//! never evicts from, at the first reply. Protocols that may never answer move after [`ONE_WAY_CONFIRM`] packets too;
//! TCP does not, so nobody can fill CONFIRMED with connections that nobody accepted. Where CONFIRMED is full, or the
//! endpoint has its share of it ([`crate::quota`]), a flow stays tentative, and lives as long as it is used more recently
//! than 65,535 others.

use crate::{
    layout::{Flow, FlowKey, ONE_WAY_CONFIRM, Side},
    maps::{Hook, Maps},
    packet::{Headers, Role, tcp},
    port::{Position, protocol},
};

/// Time a flow may be idle before its next packet is a stranger's, nanoseconds.
///
/// | protocol | tentative | confirmed | why |
/// |---|---|---|---|
/// | TCP | 60 s | 7,440 s | RFC 5382 REQ-5; more than Linux's first keepalive, 7,200 s |
/// | TCP, both ends FIN or one RST | 60 s | 60 s | TIME-WAIT |
/// | UDP | 60 s | 300 s | RFC 4787 REQ-5 |
/// | SCTP | 60 s | 300 s | ten heartbeats |
/// | ICMP, ICMPv6 | 60 s | 60 s | |
/// | others | 60 s | 600 s | what Linux gives them |
///
/// Those of confirmed TCP, of UDP and SCTP, and of others can be configured: [`Maps::idle`].
pub mod idle {
    /// What a time-out is for.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Class {
        /// Confirmed TCP that is open.
        Tcp,
        /// Confirmed UDP and SCTP.
        Datagram,
        /// Confirmed flows of other protocols.
        Other,
    }

    impl Class {
        /// The time-out unless configured, nanoseconds.
        #[must_use]
        pub const fn default_time(self) -> u64 {
            match self {
                Self::Tcp => TCP,
                Self::Datagram => DATAGRAM,
                Self::Other => OTHER,
            }
        }
    }

    /// Nanoseconds per second.
    const SECOND: u64 = 1_000_000_000;
    /// Any tentative flow; a closed TCP connection; ICMP.
    pub const SHORT: u64 = 60 * SECOND;
    /// TCP.
    pub const TCP: u64 = 7_440 * SECOND;
    /// UDP and SCTP.
    pub const DATAGRAM: u64 = 300 * SECOND;
    /// Protocols without a line of their own.
    pub const OTHER: u64 = 600 * SECOND;
}

/// The idle time-out of a flow (see [`idle`]), where `configured` knows those that can be configured.
#[inline(always)]
pub fn idle_timeout(protocol: u8, confirmed: bool, closed: bool, configured: impl Fn(idle::Class) -> u64) -> u64 {
    if !confirmed || closed {
        return idle::SHORT;
    }
    match protocol {
        protocol::TCP => configured(idle::Class::Tcp),
        protocol::UDP | protocol::SCTP => configured(idle::Class::Datagram),
        protocol::ICMP | protocol::ICMPV6 => idle::SHORT,
        _ => configured(idle::Class::Other),
    }
}

/// True when both ends of a TCP connection have said FIN, or one RST.
#[inline(always)]
pub fn closed(flow: &Flow) -> bool {
    let (initiator, responder) = (flow.initiator_flags.get(), flow.responder_flags.get());
    (initiator & responder & tcp::FIN) | ((initiator | responder) & tcp::RST) != 0
}

/// True when the flow was idle for longer than it may be; `configured` as for [`idle_timeout`].
#[inline(always)]
pub fn expired(flow: &Flow, protocol: u8, confirmed: bool, now: u64, configured: impl Fn(idle::Class) -> u64) -> bool {
    now.saturating_sub(flow.last_seen.get()) > idle_timeout(protocol, confirmed, closed(flow), configured)
}

/// Writes the key of a packet's flow; true when the packet's source is the key's low end.
#[inline(always)]
pub fn key_of(headers: &Headers, zone: u32, key: &mut FlowKey) -> bool {
    let source_is_low = if headers.source.same(&headers.destination) {
        u16::from_be(headers.source_port) <= u16::from_be(headers.destination_port)
    } else {
        headers.source.before(&headers.destination)
    };
    if source_is_low {
        key.low = headers.source;
        key.high = headers.destination;
        key.low_port = headers.source_port;
        key.high_port = headers.destination_port;
    } else {
        key.low = headers.destination;
        key.high = headers.source;
        key.low_port = headers.destination_port;
        key.high_port = headers.source_port;
    }
    key.protocol = headers.protocol;
    key.zone = (zone & 0xff) as u8;
    key.padding = 0;
    source_is_low
}

/// The position rules are asked for when the end with `responder_port` (network byte order) was connected to.
#[inline(always)]
pub const fn position(protocol: u8, responder_port: u16) -> Position {
    Position::new(protocol, u16::from_be(responder_port))
}

/// Which side of a flow a hook belongs to: 0 = the initiator's device, 1 = the responder's.
#[inline(always)]
pub const fn side_index(hook: Hook, forward: bool) -> u8 {
    match (hook, forward) {
        (Hook::FromPod, true) | (Hook::ToPod, false) => 0,
        (Hook::FromPod, false) | (Hook::ToPod, true) => 1,
    }
}

/// A side of a flow by its index.
#[inline(always)]
pub const fn side(flow: &Flow, index: u8) -> &Side {
    let [initiator, responder] = &flow.sides;
    if index == 0 { initiator } else { responder }
}

/// Odd factors, so that a change of one epoch alone always changes the tag.
const EPOCH_FACTOR: u32 = 0x9e37_79b1;
const PEER_EPOCH_FACTOR: u32 = 0x85eb_ca6b;

/// What an approval is bound to, besides the endpoint's generation.
#[derive(Clone, Copy)]
pub struct Binding {
    /// Device.
    pub ifindex: u32,
    /// Endpoint slot.
    pub slot: u32,
    /// Deadline.
    pub deadline: u64,
    /// Global epoch.
    pub epoch: u32,
    /// Epoch of the peer's address.
    pub peer_epoch: u32,
}

/// The approval word of a side (see [`Side::approval`]).
#[inline(always)]
pub const fn approval(key: &FlowKey, binding: Binding, generation: u32) -> u64 {
    // A multilinear hash: unlike a chain, its products do not wait for one another (8 ns less per packet).
    let sum = term(1, key.low.0[0])
        .wrapping_add(term(2, key.low.0[1]))
        .wrapping_add(term(3, key.low.0[2]))
        .wrapping_add(term(4, key.low.0[3]))
        .wrapping_add(term(5, key.high.0[0]))
        .wrapping_add(term(6, key.high.0[1]))
        .wrapping_add(term(7, key.high.0[2]))
        .wrapping_add(term(8, key.high.0[3]))
        .wrapping_add(term(9, (key.low_port as u32) << 16 | key.high_port as u32))
        .wrapping_add(term(10, (key.protocol as u32) << 8 | key.zone as u32))
        .wrapping_add(term(11, binding.ifindex))
        .wrapping_add(term(12, binding.slot))
        .wrapping_add(binding.deadline.wrapping_mul(factor(13)))
        .wrapping_add(factor(0));
    let tag = ((sum >> 32) as u32)
        .wrapping_add(binding.epoch.wrapping_mul(EPOCH_FACTOR))
        .wrapping_add(binding.peer_epoch.wrapping_mul(PEER_EPOCH_FACTOR));
    (tag as u64) << 32 | generation as u64
}

/// One term of the checksum.
#[inline(always)]
const fn term(number: u64, word: u32) -> u64 {
    (word as u64).wrapping_mul(factor(number))
}

/// The odd factor of a term: an output of the generator `SplitMix64`, known to the compiler.
#[inline(always)]
const fn factor(number: u64) -> u64 {
    let mut factor = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    factor = (factor ^ (factor >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    factor = (factor ^ (factor >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (factor ^ (factor >> 31)) | 1
}

/// The endpoint word's configuration index when the side's approval still holds at this device and time.
#[inline(always)]
pub fn approved<M: Maps>(maps: &M, key: &FlowKey, side: &Side, moment: &Moment) -> Option<u32> {
    let slot = side.slot.get();
    let word = maps.endpoint(slot)?;
    let (deadline, given) = (side.deadline.get(), side.approval.get());
    let ifindex = side.ifindex.get();
    let binding = Binding {
        ifindex,
        slot,
        deadline,
        epoch: moment.epoch,
        peer_epoch: moment.peer_epoch,
    };
    let holds = given != 0
        && ifindex == moment.ifindex
        && given == approval(key, binding, word.generation)
        && moment.now < deadline;
    if holds { Some(word.config) } else { None }
}

/// What is read once, before anything that depends on it, and stored with what was concluded from it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Moment {
    /// Coarse `CLOCK_MONOTONIC`, nanoseconds.
    pub now: u64,
    /// Device of the hook.
    pub ifindex: u32,
    /// Global epoch.
    pub epoch: u32,
    /// Epoch of the peer's address (the end that is not this hook's endpoint).
    pub peer_epoch: u32,
    /// Bytes of the packet.
    pub length: u32,
}

/// Counts a packet that passes: flags, counters (at the initiator's device when it is on this node), time.
#[inline(always)]
pub fn touch<M: Maps>(maps: &M, flow: &Flow, headers: &Headers, index: u8, forward: bool, moment: &Moment) {
    if headers.protocol == protocol::TCP {
        let seen = if forward {
            &flow.initiator_flags
        } else {
            &flow.responder_flags
        };
        let flags = seen.get();
        if flags | headers.tcp_flags != flags {
            seen.set(flags | headers.tcp_flags);
        }
    }
    let [initiator, _] = &flow.sides;
    if index == 0 || initiator.ifindex.get() == 0 {
        let ([sent, received], [sent_bytes, received_bytes]) = (&flow.packets, &flow.bytes);
        let (packets, bytes) = if forward {
            (sent, sent_bytes)
        } else {
            (received, received_bytes)
        };
        maps.add(packets, 1);
        maps.add(bytes, u64::from(moment.length));
    }
    flow.last_seen.set(moment.now);
}

/// True when a tentative flow that lets this packet pass has earned its place in CONFIRMED: a reply (a TCP RST is none),
/// or enough packets of a protocol that may never be answered.
#[inline(always)]
pub fn earns_confirmation(flow: &Flow, headers: &Headers, forward: bool) -> bool {
    let [sent, _] = &flow.packets;
    if headers.protocol == protocol::TCP {
        !forward && headers.tcp_flags & tcp::RST == 0
    } else {
        !forward || sent.get() >= ONE_WAY_CONFIRM
    }
}

/// True when the packet can belong to a flow in this direction: what only opens is never a reply, and an echo reply never
/// comes from the one who asked (the echo id may equal the request's type and code, then both have one key).
#[inline(always)]
pub fn fits(headers: &Headers, forward: bool) -> bool {
    match headers.role {
        Role::Either => true,
        Role::Opens => forward,
        Role::Follows => headers.protocol == protocol::TCP || !forward,
    }
}
