//! Reads as much of a frame as an uplink needs, and writes the challenge. What is cut, fragmented, tagged, or has header
//! extensions is not refused here: it goes on to TCX, which reads everything.

use super::Frame;
use crate::{address::Address, packet::tcp, port::protocol};

/// Bytes of an Ethernet header.
const LINK: u32 = 14;
const ETHERNET: usize = LINK as usize;
/// Longest challenge: Ethernet, IPv6, TCP.
pub const CHALLENGE_MAX: usize = ETHERNET + 40 + 20;
const TTL: u8 = 64;

/// What an uplink reads of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Headers {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Ethernet destination, then source, as in the frame.
    pub macs: [u16; 6],
    /// Offset of the transport header; 0 when the packet is a fragment, or the transport header does not follow at once.
    pub transport: u32,
    /// TCP sequence number.
    pub sequence: u32,
    /// TCP source port, network byte order.
    pub source_port: u16,
    /// TCP destination port.
    pub destination_port: u16,
    /// TCP flags.
    pub flags: u8,
    /// Zero.
    pub padding: [u8; 3],
}

impl Headers {
    /// True for a SYN that opens a connection.
    #[inline(always)]
    pub(super) const fn opens(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN
    }

    /// True for a reset that acknowledges nothing.
    #[inline(always)]
    pub(super) const fn resets(&self) -> bool {
        self.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::RST
    }
}

/// Reads the addresses; `None` for what is neither IPv4 nor IPv6, or cut.
#[inline(always)]
pub(super) fn network<F: Frame>(frame: &F, headers: &mut Headers) -> Option<()> {
    *headers = Headers::default();
    let [macs @ .., ethertype] = frame.load::<[u16; 7]>(0)?;
    headers.macs = macs;
    match u16::from_be(ethertype) {
        0x0800 => v4(frame, headers),
        0x86dd => v6(frame, headers),
        _ => None,
    }
}

#[inline(always)]
fn v4<F: Frame>(frame: &F, headers: &mut Headers) -> Option<()> {
    let [first, second, third, source, destination] = frame.load::<[u32; 5]>(ETHERNET)?;
    let first = u32::from_be(first);
    if first >> 28 != 4 {
        return None;
    }
    headers.source = Address::from_v4_word(source);
    headers.destination = Address::from_v4_word(destination);
    let header = ((first >> 24) & 0xf).wrapping_mul(4);
    let fragment = u32::from_be(second) & 0x3fff != 0;
    if header >= 20 && !fragment && (u32::from_be(third) >> 16) & 0xff == u32::from(protocol::TCP) {
        headers.transport = header.wrapping_add(LINK);
    }
    Some(())
}

#[inline(always)]
fn v6<F: Frame>(frame: &F, headers: &mut Headers) -> Option<()> {
    let [first, second] = frame.load::<[u32; 2]>(ETHERNET)?;
    if u32::from_be(first) >> 28 != 6 {
        return None;
    }
    headers.source = frame.load(ETHERNET.wrapping_add(8))?;
    headers.destination = frame.load(ETHERNET.wrapping_add(24))?;
    // Never on a wire, and TCX drops it; here it would pass for the IPv4 address in it.
    if headers.source.is_v4() {
        return None;
    }
    if (u32::from_be(second) >> 8) & 0xff == u32::from(protocol::TCP) {
        headers.transport = LINK.wrapping_add(40);
    }
    Some(())
}

/// Reads the TCP header; `None` when there is none, or not here.
#[inline(always)]
pub(super) fn tcp<F: Frame>(frame: &F, headers: &mut Headers) -> Option<()> {
    if headers.transport == 0 {
        return None;
    }
    let [ports, sequence, _, flags, _] = frame.load::<[u32; 5]>(headers.transport as usize)?;
    let ports = u32::from_be(ports);
    headers.source_port = ((ports >> 16) as u16).to_be();
    headers.destination_port = ((ports & 0xffff) as u16).to_be();
    headers.sequence = u32::from_be(sequence);
    headers.flags = ((u32::from_be(flags) >> 16) & 0xff) as u8;
    Some(())
}

/// Writes the challenge that answers a SYN with these headers: an acknowledgement of `number`, back to where it came
/// from. Gives its length; bytes behind it are not touched.
#[inline(always)]
pub fn challenge(headers: &Headers, number: u32, bytes: &mut [u8; CHALLENGE_MAX]) -> usize {
    let [to_high, to_middle, to_low, from_high, from_middle, from_low] = headers.macs;
    let v4 = headers.source.is_v4();
    let mut packet = Writer { bytes, at: 0, sum: 0 };
    for half in [from_high, from_middle, from_low, to_high, to_middle, to_low] {
        packet.raw(half);
    }
    let (from, to) = (headers.destination, headers.source);
    if v4 {
        packet.put(0x0800);
        let (from, to) = (from.0[3], to.0[3]);
        packet.sum = 0;
        packet.put(0x4500);
        packet.put(40);
        packet.put(0);
        packet.put(0x4000);
        packet.put(u16::from(TTL) << 8 | u16::from(protocol::TCP));
        packet.add(from);
        packet.add(to);
        packet.check();
        packet.word(from);
        packet.word(to);
        packet.sum = 0;
        packet.add(from);
        packet.add(to);
    } else {
        packet.put(0x86dd);
        packet.put(0x6000);
        packet.put(0);
        packet.put(20);
        packet.put(u16::from(protocol::TCP) << 8 | u16::from(TTL));
        for word in from.0 {
            packet.word(word);
        }
        for word in to.0 {
            packet.word(word);
        }
        packet.sum = 0;
        for word in from.0 {
            packet.add(word);
        }
        for word in to.0 {
            packet.add(word);
        }
    }
    // The rest of the pseudo header: protocol and length.
    packet.sum = packet.sum.wrapping_add(u32::from(protocol::TCP)).wrapping_add(20);
    let (source_port, destination_port) = (headers.destination_port, headers.source_port);
    // Five words of header and the flag ACK; a window, which nobody uses.
    let (offset, window) = (0x5000 | u16::from(tcp::ACK), 0xffff);
    packet.sum = packet
        .sum
        .wrapping_add(u32::from(offset))
        .wrapping_add(u32::from(window));
    packet.add(u32::from(source_port) | u32::from(destination_port) << 16);
    packet.add(number.to_be());
    packet.raw(source_port);
    packet.raw(destination_port);
    // Our sequence number: nobody looks at it before the acknowledgement.
    packet.word(0);
    packet.word(number.to_be());
    let sum = packet.sum;
    packet.put(offset);
    packet.put(window);
    packet.sum = sum;
    packet.check();
    packet.put(0);
    packet.at
}

/// Writes a packet from its beginning, and sums what checksums are made of.
struct Writer<'a> {
    bytes: &'a mut [u8; CHALLENGE_MAX],
    at: usize,
    sum: u32,
}

impl Writer<'_> {
    /// Two bytes as they are in memory.
    #[inline(always)]
    fn raw(&mut self, half: u16) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at.wrapping_add(2)) {
            place.copy_from_slice(&half.to_ne_bytes());
        }
        self.at = self.at.wrapping_add(2);
    }

    /// A number, summed.
    #[inline(always)]
    fn put(&mut self, half: u16) {
        self.sum = self.sum.wrapping_add(u32::from(half));
        self.raw(half.to_be());
    }

    /// A word as loaded from a packet, not summed.
    #[inline(always)]
    fn word(&mut self, word: u32) {
        let [a, b, c, d] = word.to_ne_bytes();
        self.raw(u16::from_ne_bytes([a, b]));
        self.raw(u16::from_ne_bytes([c, d]));
    }

    /// Adds a word as loaded from a packet to the sum.
    #[inline(always)]
    fn add(&mut self, word: u32) {
        let word = u32::from_be(word);
        self.sum = self.sum.wrapping_add(word >> 16).wrapping_add(word & 0xffff);
    }

    /// The checksum of what was summed.
    #[inline(always)]
    fn check(&mut self) {
        let folded = (self.sum & 0xffff).wrapping_add(self.sum >> 16);
        let folded = (folded & 0xffff).wrapping_add(folded >> 16);
        self.raw((!((folded & 0xffff) as u16)).to_be());
    }
}
