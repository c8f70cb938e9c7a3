//! Reads a packet's headers, bounds-checked: who sends what to whom, and what kind of message it is.

use crate::{address::Address, layout::put, maps::Packet, port::protocol, reason::Reason};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = LINK as usize;
/// The same as a 32-bit number, as offsets are stored.
const LINK: u32 = 14;
/// IPv6 extension headers that are walked; a packet with more is dropped.
pub const MAX_EXTENSIONS: usize = 6;
/// Smallest offset of a later fragment, in units of 8 bytes. Every link carries at least 48 bytes in a first fragment,
/// so what begins before byte 24 can only be meant to overwrite the transport header.
const MIN_FRAGMENT_OFFSET: u16 = 3;
/// Longest packet whose length fits its own header; longer ones (the kernel's big segments) say 0 there.
const MAX_STATED: u32 = 65_535;

/// TCP flags.
pub mod tcp {
    /// No more data from this end.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Ends a connection.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// What the rest of the verdict does with a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// Belongs to a flow, or opens one.
    #[default]
    Flow = 0,
    /// A fragment without transport header.
    LaterFragment = 1,
    /// ARP; addresses are the sender's and the target's.
    Arp = 2,
    /// Router or neighbour discovery.
    Neighbour = 3,
    /// An ICMP error about another packet.
    IcmpError = 4,
}

/// What a packet can be to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Role {
    /// May open a flow or follow it: UDP, SCTP, ICMP other than echo, other protocols.
    #[default]
    Either = 0,
    /// Only opens: TCP SYN without ACK, RST or FIN; echo request. Never a reply.
    Opens = 1,
    /// Only follows: any other TCP; echo reply.
    Follows = 2,
}

/// Fragmentation of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Fragment {
    /// Not fragmented.
    #[default]
    Whole = 0,
    /// The first fragment, with the transport header.
    First = 1,
    /// Any other.
    Later = 2,
}

/// What the verdict needs of a packet's headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Headers {
    /// Source; of ARP the sender.
    pub source: Address,
    /// Destination; of ARP the target.
    pub destination: Address,
    /// Ethernet source.
    pub source_mac: [u16; 3],
    /// The MAC an ARP packet claims for its sender.
    pub claimed_mac: [u16; 3],
    /// Offset of the transport header.
    pub transport: u32,
    /// Offset behind the packet's last byte, as its IP header says (padding of the frame is beyond).
    pub end: u32,
    /// Identification of the datagram a fragment belongs to.
    pub fragment_id: u32,
    /// As in the flow key: network byte order; ICMP: echo id or `type << 8 | code`.
    pub source_port: u16,
    /// As `source_port`.
    pub destination_port: u16,
    /// Transport protocol.
    pub protocol: u8,
    /// Protocol as the header that fragments says it; the same in every fragment.
    pub fragment_protocol: u8,
    /// TCP flags.
    pub tcp_flags: u8,
    /// Hop limit (IPv6) or time to live.
    pub hop_limit: u8,
    /// ICMP type; of ARP the operation.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// What to do with it.
    pub kind: Kind,
    /// What it can be to a flow.
    pub role: Role,
    /// Fragmentation.
    pub fragment: Fragment,
    /// What is wrong with the extension headers.
    pub refused: Option<Reason>,
    /// An IPv6 fragment header was seen.
    pub fragment_header: bool,
    /// Zero.
    pub padding: u8,
}

/// Reads the headers of a frame. On an error `headers` holds what was read before it.
pub fn parse<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    network(packet, headers)?;
    if headers.has_extensions() {
        extensions(packet, headers);
    }
    transport(packet, headers)
}

impl Headers {
    /// Nothing read yet. The MACs stay: who reads them has written them.
    #[inline(always)]
    fn clear(&mut self) {
        for address in [&mut self.source, &mut self.destination] {
            let [first, second, third, fourth] = &mut address.0;
            put(first, 0);
            put(second, 0);
            put(third, 0);
            put(fourth, 0);
        }
        put(&mut self.transport, 0);
        put(&mut self.end, 0);
        put(&mut self.fragment_id, 0);
        put(&mut self.source_port, 0);
        put(&mut self.destination_port, 0);
        for byte in [
            &mut self.protocol,
            &mut self.fragment_protocol,
            &mut self.tcp_flags,
            &mut self.hop_limit,
            &mut self.icmp_type,
            &mut self.icmp_code,
        ] {
            put(byte, 0);
        }
        put(&mut self.kind, Kind::Flow);
        put(&mut self.role, Role::Either);
        put(&mut self.fragment, Fragment::Whole);
        put(&mut self.refused, None);
        put(&mut self.fragment_header, false);
    }

    /// True when [`extensions`] has something to walk.
    #[inline(always)]
    pub const fn has_extensions(&self) -> bool {
        matches!(self.kind, Kind::Flow) && is_extension(self.protocol) && !self.source.is_v4()
    }
}

/// First part: Ethernet and ARP, IPv4 or the fixed part of IPv6.
#[inline(always)]
pub fn network<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    headers.clear();
    packet.reach(ETHERNET);
    let [_, _, _, a, b, c, ethertype] = packet.load::<[u16; 7]>(0).ok_or(Reason::MalformedEthernet)?;
    headers.source_mac = [a, b, c];
    if packet.tagged() {
        return Err(Reason::UnknownEthertype);
    }
    match u16::from_be(ethertype) {
        0x0800 => ipv4(packet, headers),
        0x86dd => ipv6(packet, headers),
        0x0806 => arp(packet, headers),
        _ => Err(Reason::UnknownEthertype),
    }
}

/// The fixed IPv4 header and the length of its options.
#[inline(always)]
fn ipv4<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    packet.reach(ETHERNET.wrapping_add(20));
    let [first, second, third, source, destination] = packet.load::<[u32; 5]>(ETHERNET).ok_or(Reason::MalformedIpv4)?;
    let (first, second, third) = (u32::from_be(first), u32::from_be(second), u32::from_be(third));
    headers.source = Address::from_v4_word(source);
    headers.destination = Address::from_v4_word(destination);
    let header = ((first >> 24) & 0xf).wrapping_mul(4);
    let stated = first & 0xffff;
    if first >> 28 != 4 || header < 20 {
        return Err(Reason::MalformedIpv4);
    }
    let present = packet.length().wrapping_sub(LINK);
    let total = if stated == 0 && present > MAX_STATED {
        present
    } else {
        stated
    };
    if total < header || total > present {
        return Err(Reason::MalformedIpv4);
    }
    headers.end = total.wrapping_add(LINK);
    headers.transport = header.wrapping_add(LINK);
    headers.protocol = ((third >> 16) & 0xff) as u8;
    headers.hop_limit = ((third >> 24) & 0xff) as u8;
    headers.fragment_protocol = headers.protocol;
    headers.fragment_id = second >> 16;
    let offset = (second & 0x1fff) as u16;
    headers.fragment = fragmentation(offset, second & 0x2000 != 0)?;
    Ok(())
}

/// The fixed IPv6 header and its extension headers.
#[inline(always)]
fn ipv6<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    packet.reach(ETHERNET.wrapping_add(40));
    let [first, second] = packet.load::<[u32; 2]>(ETHERNET).ok_or(Reason::MalformedIpv6)?;
    let second = u32::from_be(second);
    if u32::from_be(first) >> 28 != 6 {
        return Err(Reason::MalformedIpv6);
    }
    headers.source = address_v6(packet, ETHERNET.wrapping_add(8)).ok_or(Reason::MalformedIpv6)?;
    headers.destination = address_v6(packet, ETHERNET.wrapping_add(24)).ok_or(Reason::MalformedIpv6)?;
    // No such address is ever on a wire, and here it would pass for the IPv4 address in it.
    if headers.source.is_v4() || headers.destination.is_v4() {
        return Err(Reason::MalformedIpv6);
    }
    let stated = second >> 16;
    let present = packet.length().wrapping_sub(LINK).wrapping_sub(40);
    let payload = if stated == 0 && present > MAX_STATED {
        present
    } else {
        stated
    };
    if payload > present {
        return Err(Reason::MalformedIpv6);
    }
    headers.end = payload.wrapping_add(LINK).wrapping_add(40);
    headers.hop_limit = (second & 0xff) as u8;
    headers.protocol = ((second >> 8) & 0xff) as u8;
    headers.transport = LINK.wrapping_add(40);
    Ok(())
}

/// An IPv6 address, word by word: copied whole it would be a call of `memmove`, a loop over bytes in the kernel.
#[inline(always)]
fn address_v6<P: Packet>(packet: &P, offset: usize) -> Option<Address> {
    let [first, second, third, fourth] = packet.load::<[u32; 4]>(offset)?;
    Some(Address([first, second, third, fourth]))
}

/// Hop-by-hop options, routing, fragment, destination options. Anything else (AH and ESP too) is the transport protocol
/// that rules ask for.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 60)
}

/// Second part, IPv6 only: walks extension headers from `headers.transport`, where one of type `headers.protocol` is, to the transport
/// header; an error is left in `headers.refused`.
#[inline(always)]
pub fn extensions<P: Packet>(packet: &P, headers: &mut Headers) {
    headers.refused = walk(packet, headers).err();
}

/// The walk itself.
#[inline(always)]
fn walk<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    for _ in 0..MAX_EXTENSIONS {
        let (next, at) = (headers.protocol, headers.transport as usize);
        packet.reach(at.wrapping_add(8));
        let [word, id] = packet.load::<[u32; 2]>(at).ok_or(Reason::MalformedIpv6)?;
        let word = u32::from_be(word);
        let mut bytes = 8;
        if next == 44 {
            if headers.fragment_header {
                return Err(Reason::MalformedIpv6);
            }
            headers.fragment_header = true;
            headers.fragment_protocol = (word >> 24) as u8;
            headers.fragment_id = id;
            headers.fragment = fragmentation(((word >> 3) & 0x1fff) as u16, word & 1 != 0)?;
        } else {
            // A routing header with segments left sends the packet on to an address no rule has seen.
            if next == 43 && word & 0xff != 0 {
                return Err(Reason::MalformedIpv6);
            }
            bytes = ((word >> 16) & 0xff).wrapping_add(1).wrapping_mul(8);
        }
        headers.protocol = (word >> 24) as u8;
        headers.transport = headers.transport.wrapping_add(bytes);
        if headers.fragment == Fragment::Later || !is_extension(headers.protocol) {
            return Ok(());
        }
    }
    Err(Reason::ExtensionHeaders)
}

/// Tells first and later fragments apart; refuses those that reach into the transport header.
#[inline(always)]
fn fragmentation(offset: u16, more: bool) -> Result<Fragment, Reason> {
    match (offset, more) {
        (0, false) => Ok(Fragment::Whole),
        (0, true) => Ok(Fragment::First),
        (1..MIN_FRAGMENT_OFFSET, _) => Err(Reason::FragmentOrphan),
        _ => Ok(Fragment::Later),
    }
}

/// ARP for IPv4 over Ethernet.
#[inline(always)]
fn arp<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    headers.kind = Kind::Arp;
    packet.reach(ETHERNET.wrapping_add(28));
    let [
        hardware,
        network,
        lengths,
        operation,
        a,
        b,
        c,
        sender_high,
        sender_low,
        _,
        _,
        _,
        target_high,
        target_low,
    ] = packet.load::<[u16; 14]>(ETHERNET).ok_or(Reason::MalformedArp)?;
    let operation = u16::from_be(operation);
    if u16::from_be(hardware) != 1
        || u16::from_be(network) != 0x0800
        || u16::from_be(lengths) != 0x0604
        || !(operation == 1 || operation == 2)
    {
        return Err(Reason::MalformedArp);
    }
    headers.icmp_type = (operation & 3) as u8;
    headers.claimed_mac = [a, b, c];
    headers.source = Address::from_v4_word(join(sender_high, sender_low));
    headers.destination = Address::from_v4_word(join(target_high, target_low));
    Ok(())
}

/// Two halves as loaded from the packet to the word as loaded from the packet.
#[inline(always)]
const fn join(first: u16, second: u16) -> u32 {
    ((u16::from_be(first) as u32) << 16 | u16::from_be(second) as u32).to_be()
}

/// Last part: the transport header's ports, flags, ICMP type. ARP and later fragments have none.
#[inline(always)]
pub fn transport<P: Packet>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    if let Some(reason) = headers.refused {
        return Err(reason);
    }
    if headers.kind == Kind::Arp {
        return Ok(());
    }
    if headers.fragment == Fragment::Later {
        headers.kind = Kind::LaterFragment;
        return Ok(());
    }
    let bytes: u32 = match headers.protocol {
        protocol::TCP => 20,
        protocol::SCTP => 12,
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => 8,
        _ => {
            return if headers.transport > headers.end {
                Err(Reason::MalformedTransport)
            } else {
                Ok(())
            };
        }
    };
    let at = headers.transport as usize;
    let behind = headers.transport.wrapping_add(bytes);
    if behind > headers.end {
        return Err(Reason::MalformedTransport);
    }
    packet.reach(behind as usize);
    let [source, destination, id, _] = packet.load::<[u16; 4]>(at).ok_or(Reason::MalformedTransport)?;
    match headers.protocol {
        protocol::ICMP | protocol::ICMPV6 => return icmp(headers, u16::from_be(source), id),
        protocol::TCP => {
            let [offset, flags, _, _] = packet
                .load::<[u8; 4]>(at.wrapping_add(12))
                .ok_or(Reason::MalformedTransport)?;
            let header = u32::from(offset >> 4).wrapping_mul(4);
            if header < 20 || headers.transport.wrapping_add(header) > headers.end {
                return Err(Reason::MalformedTransport);
            }
            headers.tcp_flags = flags;
            let opens = flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN;
            headers.role = if opens { Role::Opens } else { Role::Follows };
        }
        _ => {}
    }
    headers.source_port = source;
    headers.destination_port = destination;
    Ok(())
}

/// Sorts ICMP messages into echo, errors, discovery and the rest.
#[inline(always)]
fn icmp(headers: &mut Headers, message: u16, id: u16) -> Result<(), Reason> {
    let v6 = headers.protocol == protocol::ICMPV6;
    if v6 == headers.source.is_v4() {
        return Err(Reason::MalformedTransport);
    }
    let kind = (message >> 8) as u8;
    headers.icmp_type = kind;
    headers.icmp_code = (message & 0xff) as u8;
    headers.destination_port = message.to_be();
    match (v6, kind) {
        (false, 3 | 4 | 11 | 12) | (true, 1..=4) => headers.kind = Kind::IcmpError,
        (true, 133..=137) => headers.kind = Kind::Neighbour,
        (false, 8) | (true, 128) => {
            headers.source_port = id;
            headers.role = Role::Opens;
        }
        (false, 0) | (true, 129) => {
            headers.source_port = if v6 { 128_u16 << 8 } else { 8 << 8 }.to_be();
            headers.destination_port = id;
            headers.role = Role::Follows;
        }
        _ => {}
    }
    Ok(())
}

/// Begins to read the packet inside an ICMP error: addresses and protocol. Extension headers are for [`extensions`],
/// then [`embedded_transport`]. `None` when that is not all there, or is a later fragment.
#[inline(always)]
pub fn embedded<P: Packet>(packet: &P, outer: &Headers, inner: &mut Headers) -> Option<()> {
    inner.clear();
    let at = outer.transport.wrapping_add(8) as usize;
    if outer.protocol == protocol::ICMPV6 {
        packet.reach(at.wrapping_add(40));
        let [first, second] = packet.load::<[u32; 2]>(at)?;
        if u32::from_be(first) >> 28 != 6 {
            return None;
        }
        inner.source = address_v6(packet, at.wrapping_add(8))?;
        inner.destination = address_v6(packet, at.wrapping_add(24))?;
        inner.protocol = ((u32::from_be(second) >> 8) & 0xff) as u8;
        inner.transport = outer.transport.wrapping_add(48);
        return if inner.source.is_v4() { None } else { Some(()) };
    }
    packet.reach(at.wrapping_add(20));
    let [first, second, third, source, destination] = packet.load::<[u32; 5]>(at)?;
    let first = u32::from_be(first);
    if first >> 28 != 4 || u32::from_be(second) & 0x1fff != 0 {
        return None;
    }
    inner.source = Address::from_v4_word(source);
    inner.destination = Address::from_v4_word(destination);
    inner.protocol = ((u32::from_be(third) >> 16) & 0xff) as u8;
    inner.transport = outer
        .transport
        .wrapping_add(8)
        .wrapping_add(((first >> 24) & 0xf).wrapping_mul(4));
    Some(())
}

/// Reads of the embedded packet's transport header what errors carry of it: the first 8 bytes.
#[inline(always)]
pub fn embedded_transport<P: Packet>(packet: &P, outer: &Headers, inner: &mut Headers) -> Option<()> {
    let behind = inner.transport.wrapping_add(8);
    if inner.refused.is_some() || inner.fragment == Fragment::Later || behind > outer.end {
        return None;
    }
    packet.reach(behind as usize);
    let [source, destination, id, _] = packet.load::<[u16; 4]>(inner.transport as usize)?;
    match inner.protocol {
        protocol::ICMP | protocol::ICMPV6 => icmp(inner, u16::from_be(source), id).ok()?,
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            inner.source_port = source;
            inner.destination_port = destination;
        }
        _ => {}
    }
    Some(())
}
