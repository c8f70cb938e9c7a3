//! The one-dimensional space a rule's protocols and ports live in, so that a port set is a list of disjoint intervals.

/// IP protocol numbers the verdict knows by name (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// A point of the space: class in the upper 16 bits, value in the lower 16.
///
/// | class | protocol | value |
/// |---|---|---|
/// | 0 | TCP | destination port |
/// | 1 | UDP | destination port |
/// | 2 | SCTP | destination port |
/// | 3 | ICMP | type << 8 \| code |
/// | 4 | ICMPv6 | type << 8 \| code |
/// | 5 | any other | IP protocol number |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position(pub u32);

impl Position {
    /// The first point of the space: TCP port 0.
    pub const FIRST: Self = Self(0);
    /// The last point of the space: "other protocol" 0xffff. A port set covers FIRST..=LAST without a gap.
    pub const LAST: Self = Self(0x0005_ffff);

    /// The point of a protocol and value (destination port; ICMP type << 8 | code; ignored for other protocols).
    #[inline(always)]
    pub const fn new(protocol: u8, value: u16) -> Self {
        let (class, value) = match protocol {
            protocol::TCP => (0, value),
            protocol::UDP => (1, value),
            protocol::SCTP => (2, value),
            protocol::ICMP => (3, value),
            protocol::ICMPV6 => (4, value),
            other => (5, other as u16),
        };
        Self((class << 16) | value as u32)
    }
}
