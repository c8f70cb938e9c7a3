//! Builds frames for tests, vectors and the simulator. Checksums are left zero: nobody here looks at them.

use std::net::IpAddr;

use crate::port::protocol;

/// What a frame carries above the IP header.
#[derive(Clone, Debug)]
enum Body {
    Nothing,
    Tcp {
        ports: [u16; 2],
        flags: u8,
        numbers: [u32; 2],
    },
    Udp {
        ports: [u16; 2],
    },
    Sctp {
        ports: [u16; 2],
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: Vec<u8>,
    },
    Raw(Vec<u8>),
}

/// A frame under construction. Start with [`frame`], end with [`Frame::build`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Frame {
    source: IpAddr,
    destination: IpAddr,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    protocol: u8,
    body: Body,
    payload: usize,
    hop_limit: u8,
    options: usize,
    fragment: Option<(u32, u16, bool)>,
    extensions: Vec<(u8, Vec<u8>)>,
    padding: usize,
}

/// A frame between two addresses of one family. Until told otherwise it carries an unknown protocol.
pub fn frame(source: IpAddr, destination: IpAddr) -> Frame {
    Frame {
        source,
        destination,
        source_mac: [2, 0, 0, 0, 0, 2],
        destination_mac: [2, 0, 0, 0, 0, 1],
        protocol: 253,
        body: Body::Nothing,
        payload: 0,
        hop_limit: 64,
        options: 0,
        fragment: None,
        extensions: Vec::new(),
        padding: 0,
    }
}

impl Frame {
    /// Ethernet source.
    pub fn source_mac(mut self, mac: [u8; 6]) -> Self {
        self.source_mac = mac;
        self
    }
    /// A TCP segment.
    pub fn tcp(mut self, source: u16, destination: u16, flags: u8) -> Self {
        (self.protocol, self.body) = (
            protocol::TCP,
            Body::Tcp {
                ports: [source, destination],
                flags,
                numbers: [1, 1],
            },
        );
        self
    }
    /// Sequence number and acknowledgement number of the TCP segment; 1 and 1 otherwise.
    pub fn numbered(mut self, sequence: u32, acknowledgement: u32) -> Self {
        if let Body::Tcp { numbers, .. } = &mut self.body {
            *numbers = [sequence, acknowledgement];
        }
        self
    }
    /// A UDP datagram.
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        (self.protocol, self.body) = (
            protocol::UDP,
            Body::Udp {
                ports: [source, destination],
            },
        );
        self
    }
    /// An SCTP packet with an INIT chunk.
    pub fn sctp(mut self, source: u16, destination: u16) -> Self {
        (self.protocol, self.body) = (
            protocol::SCTP,
            Body::Sctp {
                ports: [source, destination],
            },
        );
        self
    }
    /// An ICMP or ICMPv6 message; `rest` follows the checksum.
    pub fn icmp(mut self, kind: u8, code: u8, rest: &[u8]) -> Self {
        self.protocol = if self.source.is_ipv4() {
            protocol::ICMP
        } else {
            protocol::ICMPV6
        };
        self.body = Body::Icmp {
            kind,
            code,
            rest: rest.to_vec(),
        };
        self
    }
    /// An echo request.
    pub fn echo_request(self, id: u16) -> Self {
        let kind = if self.source.is_ipv4() { 8 } else { 128 };
        let [high, low] = id.to_be_bytes();
        self.icmp(kind, 0, &[high, low, 0, 1])
    }
    /// An echo reply.
    pub fn echo_reply(self, id: u16) -> Self {
        let kind = if self.source.is_ipv4() { 0 } else { 129 };
        let [high, low] = id.to_be_bytes();
        self.icmp(kind, 0, &[high, low, 0, 1])
    }
    /// An ICMP error ("port unreachable") about the packet in another frame.
    pub fn error_about(self, inner: &[u8]) -> Self {
        let (kind, code) = if self.source.is_ipv4() { (3, 3) } else { (1, 4) };
        let mut rest = vec![0; 4];
        rest.extend(inner.iter().skip(14));
        self.icmp(kind, code, &rest)
    }
    /// Neighbour solicitation (135) or advertisement (136) with one link-layer option, or none.
    pub fn neighbour(mut self, kind: u8, target: IpAddr, option: Option<(u8, [u8; 6])>) -> Self {
        let mut rest = vec![0; 4];
        rest.extend(octets(target));
        if let Some((kind, mac)) = option {
            rest.extend([kind, 1]);
            rest.extend(mac);
        }
        self.hop_limit = 255;
        self.icmp(kind, 0, &rest)
    }
    /// Router solicitation (133), advertisement (134) or redirect (137), without options.
    pub fn router(mut self, kind: u8) -> Self {
        self.hop_limit = 255;
        let rest = if kind == 137 {
            vec![0; 36]
        } else {
            vec![0; if kind == 134 { 12 } else { 4 }]
        };
        self.icmp(kind, 0, &rest)
    }
    /// Another protocol, without a header of its own.
    pub fn protocol(mut self, number: u8) -> Self {
        (self.protocol, self.body) = (number, Body::Nothing);
        self
    }
    /// Bytes right behind the IP header (and its extensions), in place of a transport header.
    pub fn raw(mut self, number: u8, bytes: &[u8]) -> Self {
        (self.protocol, self.body) = (number, Body::Raw(bytes.to_vec()));
        self
    }
    /// Bytes of data behind the transport header.
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }
    /// Hop limit.
    pub fn hop_limit(mut self, hops: u8) -> Self {
        self.hop_limit = hops;
        self
    }
    /// IPv4 options, in words of 4 bytes (at most 10).
    pub fn options(mut self, words: usize) -> Self {
        self.options = words.min(10);
        self
    }
    /// Makes it a fragment: identification, offset in units of 8 bytes, whether more follow.
    pub fn fragment(mut self, id: u32, offset: u16, more: bool) -> Self {
        self.fragment = Some((id, offset, more));
        self
    }
    /// Adds an IPv6 extension header: its type and what follows "next header" and "length" (6 bytes modulo 8).
    pub fn extension(mut self, kind: u8, content: &[u8]) -> Self {
        self.extensions.push((kind, content.to_vec()));
        self
    }
    /// Bytes behind the IP packet, as short Ethernet frames have them.
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.destination_mac);
        bytes.extend(self.source_mac);
        let transport = self.transport();
        if self.source.is_ipv4() {
            bytes.extend([0x08, 0x00]);
            bytes.extend(self.ipv4(transport.len()));
        } else {
            bytes.extend([0x86, 0xdd]);
            bytes.extend(self.ipv6(transport.len()));
        }
        bytes.extend(transport);
        bytes.resize(bytes.len().saturating_add(self.padding), 0);
        bytes
    }

    /// The IPv4 header for a packet with so many bytes behind it.
    fn ipv4(&self, behind: usize) -> Vec<u8> {
        let words = self.options.saturating_add(5);
        let mut header = vec![low_byte(words) | 0x40, 0];
        header.extend(length(words.saturating_mul(4).saturating_add(behind)));
        let (id, offset, more) = self.fragment.unwrap_or_default();
        let [_, _, high, low] = id.to_be_bytes();
        header.extend([high, low]);
        header.extend((offset | if more { 0x2000 } else { 0 }).to_be_bytes());
        header.extend([self.hop_limit, self.protocol, 0, 0]);
        header.extend(octets(self.source));
        header.extend(octets(self.destination));
        header.resize(words.saturating_mul(4), 1);
        header
    }

    /// The IPv6 header and its extensions for a packet with so many bytes behind them.
    fn ipv6(&self, behind: usize) -> Vec<u8> {
        let mut chain = self.extensions.clone();
        if let Some((id, offset, more)) = self.fragment {
            let mut content = (offset << 3 | u16::from(more)).to_be_bytes().to_vec();
            content.extend(id.to_be_bytes());
            chain.push((44, content));
        }
        let mut extensions = Vec::new();
        for (number, (kind, content)) in chain.iter().enumerate() {
            let next = chain
                .get(number.saturating_add(1))
                .map_or(self.protocol, |(kind, _)| *kind);
            let units = if *kind == 44 {
                0
            } else {
                content.len().saturating_sub(6) / 8
            };
            extensions.extend([next, low_byte(units)]);
            extensions.extend(content);
        }
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length(extensions.len().saturating_add(behind)));
        header.extend([chain.first().map_or(self.protocol, |(kind, _)| *kind), self.hop_limit]);
        header.extend(octets(self.source));
        header.extend(octets(self.destination));
        header.extend(extensions);
        header
    }

    /// Transport header and payload.
    fn transport(&self) -> Vec<u8> {
        let mut bytes = match &self.body {
            Body::Nothing => Vec::new(),
            Body::Raw(bytes) => bytes.clone(),
            Body::Tcp { ports, flags, numbers } => {
                let mut header = port_bytes(*ports);
                header.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
                header.extend([0x50, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                header
            }
            Body::Udp { ports } => {
                let mut header = port_bytes(*ports);
                header.extend(length(self.payload.saturating_add(8)));
                header.extend([0, 0]);
                header
            }
            Body::Sctp { ports } => {
                let mut header = port_bytes(*ports);
                header.extend([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4]);
                header
            }
            Body::Icmp { kind, code, rest } => {
                let mut header = vec![*kind, *code, 0, 0];
                header.extend(rest);
                header
            }
        };
        bytes.resize(bytes.len().saturating_add(self.payload), 0);
        bytes
    }
}

/// An ARP packet: operation, what it claims for its sender, whom it asks for.
pub fn arp(source_mac: [u8; 6], operation: u16, sender: ([u8; 6], IpAddr), target: IpAddr) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend(source_mac);
    bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    bytes.extend(operation.to_be_bytes());
    bytes.extend(sender.0);
    bytes.extend(octets(sender.1));
    bytes.extend([0; 6]);
    bytes.extend(octets(target));
    bytes
}

/// Two ports in network byte order.
fn port_bytes(ports: [u16; 2]) -> Vec<u8> {
    ports.into_iter().flat_map(u16::to_be_bytes).collect()
}

/// A length as headers have it; what does not fit is zero, as the kernel writes it for big segments.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(0).to_be_bytes()
}

/// The low byte of a small number.
fn low_byte(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// An address in network byte order.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
