//! What a rule that rejects sends back: a TCP reset, or an ICMP "administratively prohibited", written in place of the packet.
//!
//! | packet | answer | source |
//! |---|---|---|
//! | TCP with ACK | reset with the sequence number that the sender expects | RFC 9293, 3.10.7.1 |
//! | TCP without | reset that acknowledges everything the packet takes | the same |
//! | UDP, echo request over IPv4 | ICMP type 3, code 13 | RFC 1812, 5.2.7.1 |
//! | the same over IPv6 | ICMPv6 type 1, code 1 | RFC 4443, 3.1 |
//! | reset, ICMP error, fragment, IP options, multicast, other protocols | none | RFC 1122, 3.2.2 |
//!
//! Each endpoint has a budget for each direction, so nobody makes a node answer a flood with a flood.

use crate::{
    Scratch,
    layout::action,
    maps::{Hook, Maps, Packet},
    packet::{ETHERNET, Fragment, Headers, Kind, Role, tcp},
    port::protocol,
    reason::Reason,
};

/// Answers per second, endpoint and direction, in the long run: one every so many nanoseconds.
pub const INTERVAL: u64 = 10_000_000;
/// How far answers may run ahead of that, nanoseconds: fifty at once.
pub const BURST: u64 = 50 * INTERVAL;

/// 16-bit words of an answer. The longest has 55: Ethernet, IPv6, ICMPv6, and of the refused packet its IPv6 header and 8 bytes.
const WORDS: usize = 64;
/// Words of an Ethernet header.
const LINK: usize = 7;
/// Words of an IPv4 header without options.
const V4: usize = 10;
/// Words of an IPv6 header.
const V6: usize = 20;
/// Hop limit of an answer.
const HOPS: u16 = 64;
/// Type and code of ICMP's "communication administratively prohibited".
const PROHIBITED_V4: u16 = u16::from_be_bytes([3, 13]);
/// Those of ICMPv6.
const PROHIBITED_V6: u16 = u16::from_be_bytes([1, 1]);

/// An answer; the words are as in memory, that is in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Answer {
    /// The frame.
    words: [u16; WORDS],
    /// Bytes of the frame; 0 = no answer.
    length: u32,
}

impl Default for Answer {
    fn default() -> Self {
        Self::NONE
    }
}

impl Answer {
    /// No answer.
    pub const NONE: Self = Self {
        words: [0; WORDS],
        length: 0,
    };
    /// Bytes of the shortest answer, a reset over IPv4.
    pub const SHORTEST: u32 = 54;
    /// Bytes of the longest one.
    const LONGEST: u32 = 110;
    /// Lengths are below this power of two less one, as a mask for the kernel's verifier; so many bytes can be read.
    pub const MASK: u32 = 127;

    /// Bytes of the frame; 0 = no answer.
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        self.length
    }

    /// Forgets the one before.
    #[inline(always)]
    pub(crate) const fn clear(&mut self) {
        self.length = 0;
    }

    /// The frame, longer than [`Answer::length`].
    #[inline(always)]
    pub const fn words(&self) -> &[u16; WORDS] {
        &self.words
    }

    #[inline(always)]
    fn put(&mut self, at: usize, word: u16) {
        if let Some(place) = self.words.get_mut(at) {
            *place = word;
        }
    }

    #[inline(always)]
    fn copy<const COUNT: usize>(&mut self, at: usize, words: [u16; COUNT]) {
        for (number, word) in words.into_iter().enumerate() {
            self.put(at.wrapping_add(number), word);
        }
    }

    /// Sum of the words `from..to`.
    #[inline(always)]
    fn sum(&self, from: usize, to: usize) -> u32 {
        let mut sum = 0_u32;
        for word in self.words.get(from..to).unwrap_or_default() {
            sum = sum.wrapping_add(u32::from(*word));
        }
        sum
    }
}

/// Whether the rule that refused the packet wants it answered.
#[inline(always)]
pub(crate) const fn wanted(scratch: &Scratch) -> bool {
    matches!(scratch.reason, Reason::PolicyDenied | Reason::Revoked) && scratch.question.action & action::REJECT != 0
}

/// Writes the answer to a packet that a rule refused, if it may have one and the endpoint's budget is not used up.
#[inline(always)]
pub(crate) fn write<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) {
    let (headers, answer) = (&scratch.headers, &mut scratch.answer);
    answer.clear();
    if !answerable(headers) || !afford(maps, scratch.record.slot, scratch.hook, scratch.moment.now) {
        return;
    }
    let written = match (headers.source.is_v4(), headers.protocol) {
        (true, protocol::TCP) => reset_v4(packet, headers, answer),
        (false, protocol::TCP) => reset_v6(packet, headers, answer),
        (true, _) => prohibited_v4(packet, headers, answer),
        (false, _) => prohibited_v6(packet, headers, answer),
    };
    answer.length = written.unwrap_or(0);
}

/// Whether anybody may be told anything about such a packet.
#[inline(always)]
fn answerable(headers: &Headers) -> bool {
    let plain = if headers.source.is_v4() { 20 } else { 40 };
    let asks = match headers.protocol {
        protocol::TCP => headers.tcp_flags & tcp::RST == 0,
        protocol::UDP => true,
        protocol::ICMP | protocol::ICMPV6 => headers.role == Role::Opens,
        _ => false,
    };
    asks && headers.kind == Kind::Flow
        && headers.fragment == Fragment::Whole
        && headers.transport as usize == ETHERNET.wrapping_add(plain)
        && headers.source.is_unicast()
        && headers.destination.is_unicast()
}

/// Takes an answer from the budget of an endpoint's direction (a generic cell rate algorithm over one word). Two CPUs may both
/// take the last one.
#[inline(always)]
fn afford<M: Maps>(maps: &M, slot: u32, hook: Hook, now: u64) -> bool {
    let Some(budget) = maps.answers(slot.wrapping_mul(2).wrapping_add(hook as u32)) else {
        return false;
    };
    let next = budget.get().max(now);
    if next.wrapping_sub(now) >= BURST {
        return false;
    }
    budget.set(next.wrapping_add(INTERVAL));
    true
}

/// Ethernet, turned around.
#[inline(always)]
fn link<P: Packet>(packet: &P, answer: &mut Answer) -> Option<()> {
    let [to_high, to_middle, to_low, from_high, from_middle, from_low, ethertype] = packet.load::<[u16; LINK]>(0)?;
    answer.copy(
        0,
        [from_high, from_middle, from_low, to_high, to_middle, to_low, ethertype],
    );
    Some(())
}

/// Ethernet and IPv4, turned around, around `payload` bytes; the sum of the addresses, and the refused packet's IPv4 header.
#[inline(always)]
fn network_v4<P: Packet>(packet: &P, answer: &mut Answer, protocol: u8, payload: u16) -> Option<(u32, [u16; V4])> {
    link(packet, answer)?;
    let refused = packet.load::<[u16; V4]>(ETHERNET)?;
    let [.., source_high, source_low, destination_high, destination_low] = refused;
    answer.copy(
        LINK,
        [
            0x4500_u16.to_be(),
            payload.wrapping_add(20).to_be(),
            0,
            0x4000_u16.to_be(),
            (HOPS << 8 | u16::from(protocol)).to_be(),
            0,
            destination_high,
            destination_low,
            source_high,
            source_low,
        ],
    );
    let sum = answer.sum(LINK, LINK.wrapping_add(V4));
    answer.put(LINK.wrapping_add(5), !fold(sum));
    Some((
        sum_of(&[source_high, source_low, destination_high, destination_low]),
        refused,
    ))
}

/// The same for IPv6.
#[inline(always)]
fn network_v6<P: Packet>(packet: &P, answer: &mut Answer, protocol: u8, payload: u16) -> Option<(u32, [u16; V6])> {
    link(packet, answer)?;
    let refused = packet.load::<[u16; V6]>(ETHERNET)?;
    answer.copy(
        LINK,
        [
            0x6000_u16.to_be(),
            0,
            payload.to_be(),
            (u16::from(protocol) << 8 | HOPS).to_be(),
        ],
    );
    let [_, _, _, _, source @ .., _, _, _, _, _, _, _, _] = refused;
    let [_, _, _, _, _, _, _, _, _, _, _, _, destination @ ..] = refused;
    let _: ([u16; 8], [u16; 8]) = (source, destination);
    answer.copy(LINK.wrapping_add(4), destination);
    answer.copy(LINK.wrapping_add(12), source);
    Some((sum_of(&source).wrapping_add(sum_of(&destination)), refused))
}

/// A reset over IPv4.
#[inline(always)]
fn reset_v4<P: Packet>(packet: &P, headers: &Headers, answer: &mut Answer) -> Option<u32> {
    let (addresses, _) = network_v4(packet, answer, protocol::TCP, 20)?;
    reset(packet, headers, answer, LINK.wrapping_add(V4), addresses)?;
    Some(Answer::SHORTEST)
}

/// A reset over IPv6.
#[inline(always)]
fn reset_v6<P: Packet>(packet: &P, headers: &Headers, answer: &mut Answer) -> Option<u32> {
    let (addresses, _) = network_v6(packet, answer, protocol::TCP, 20)?;
    reset(packet, headers, answer, LINK.wrapping_add(V6), addresses)?;
    Some(Answer::SHORTEST.wrapping_add(20))
}

/// The reset itself, at word `at`.
#[inline(always)]
fn reset<P: Packet>(packet: &P, headers: &Headers, answer: &mut Answer, at: usize, addresses: u32) -> Option<()> {
    let [
        source,
        destination,
        seq_high,
        seq_low,
        ack_high,
        ack_low,
        flags,
        _,
        check,
        _,
    ] = packet.load::<[u16; 10]>(headers.transport as usize)?;
    let length = headers.end.wrapping_sub(headers.transport);
    let (sequence, acknowledged, what) = if headers.tcp_flags & tcp::ACK == 0 {
        let taken = length
            .wrapping_sub(u32::from(u16::from_be(flags) >> 12).wrapping_mul(4))
            .wrapping_add(u32::from(headers.tcp_flags & tcp::SYN != 0))
            .wrapping_add(u32::from(headers.tcp_flags & tcp::FIN != 0));
        let sequence = u32::from(u16::from_be(seq_high)) << 16 | u32::from(u16::from_be(seq_low));
        let next = sequence.wrapping_add(taken);
        let next = [((next >> 16) as u16).to_be(), ((next & 0xffff) as u16).to_be()];
        ([0, 0], next, tcp::RST | tcp::ACK)
    } else {
        ([ack_high, ack_low], [0, 0], tcp::RST)
    };
    let ([first, second], [third, fourth]) = (sequence, acknowledged);
    let what = (5 << 12 | u16::from(what)).to_be();
    answer.copy(at, [destination, source, first, second, third, fourth, what, 0, 0, 0]);
    let pseudo = pseudo(addresses, protocol::TCP, 20);
    let check = if unfinished(check, addresses, protocol::TCP, length) {
        fold(pseudo)
    } else {
        !fold(pseudo.wrapping_add(answer.sum(at, at.wrapping_add(10))))
    };
    answer.put(at.wrapping_add(8), check);
    Some(())
}

/// "Administratively prohibited" over IPv4.
#[inline(always)]
fn prohibited_v4<P: Packet>(packet: &P, headers: &Headers, answer: &mut Answer) -> Option<u32> {
    const AT: usize = LINK + V4;
    let (_, refused) = network_v4(packet, answer, protocol::ICMP, 36)?;
    let begin = packet.load::<[u16; 4]>(headers.transport as usize)?;
    answer.copy(AT, [PROHIBITED_V4.to_be(), 0, 0, 0]);
    answer.copy(AT.wrapping_add(4), refused);
    answer.copy(AT.wrapping_add(14), begin);
    // Where the refused packet's checksum is unfinished (see `unfinished`), this is finished with it: its sum is all ones, which
    // adds nothing.
    let sum = answer.sum(AT, AT.wrapping_add(18));
    answer.put(AT.wrapping_add(1), !fold(sum));
    Some(70)
}

/// "Administratively prohibited" over IPv6.
#[inline(always)]
fn prohibited_v6<P: Packet>(packet: &P, headers: &Headers, answer: &mut Answer) -> Option<u32> {
    const AT: usize = LINK + V6;
    let (addresses, refused) = network_v6(packet, answer, protocol::ICMPV6, 56)?;
    let begin = packet.load::<[u16; 4]>(headers.transport as usize)?;
    let [_, _, _, check] = begin;
    let length = headers.end.wrapping_sub(headers.transport);
    let pseudo = pseudo(addresses, protocol::ICMPV6, 56);
    // Where the refused packet's checksum is unfinished, what finishes it writes here the complement of the sum of all that is
    // here. With the pseudo header's sum in this place the whole comes out right.
    let unused = if headers.protocol == protocol::UDP && unfinished(check, addresses, protocol::UDP, length) {
        fold(pseudo)
    } else {
        0
    };
    answer.copy(AT, [PROHIBITED_V6.to_be(), 0, 0, unused]);
    answer.copy(AT.wrapping_add(4), refused);
    answer.copy(AT.wrapping_add(24), begin);
    let sum = pseudo.wrapping_add(answer.sum(AT, AT.wrapping_add(28)));
    answer.put(AT.wrapping_add(1), !fold(sum));
    Some(Answer::LONGEST)
}

/// True when a transport checksum is only the sum of its pseudo header, which the kernel leaves there for a device to finish
/// (`CHECKSUM_PARTIAL`, Documentation/networking/checksum-offloads.rst). Programs are not told, and the kernel will finish what
/// is at that place of the answer, too. One finished checksum in 65,536 looks the same; that answer is then lost.
#[inline(always)]
fn unfinished(check: u16, addresses: u32, protocol: u8, length: u32) -> bool {
    check == fold(pseudo(addresses, protocol, length))
}

/// Sum of a pseudo header.
#[inline(always)]
fn pseudo(addresses: u32, protocol: u8, length: u32) -> u32 {
    let [high, low] = [(length >> 16) as u16, (length & 0xffff) as u16];
    addresses
        .wrapping_add(u32::from(u16::from(protocol).to_be()))
        .wrapping_add(u32::from(high.to_be()))
        .wrapping_add(u32::from(low.to_be()))
}

/// Sum of words.
#[inline(always)]
fn sum_of<const COUNT: usize>(words: &[u16; COUNT]) -> u32 {
    let mut sum = 0_u32;
    for word in words {
        sum = sum.wrapping_add(u32::from(*word));
    }
    sum
}

/// The 16-bit ones' complement sum (RFC 1071).
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    (sum & 0xffff).wrapping_add(sum >> 16) as u16
}
