//! An address of either family as the kernel maps hold it: 16 bytes in network byte order, IPv4 as `::ffff:a.b.c.d`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 or IPv6 address, as four words in network byte order (each word exactly as loaded from the packet).
///
/// Words and not `u128`: alignment of 4 keeps keys free of padding, and the BPF back end splits `u128` badly. One type
/// for both families keeps one code path, one set of maps and one set of tests (ARCHITECTURE.md, "One address type").
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Address(pub [u32; 4]);

impl Address {
    /// `::`, which is never the address of an endpoint.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// The address of an IPv4 packet, from the word as loaded from the packet (network byte order).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), word])
    }

    /// True for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// Equality without the call to `bcmp` that the compiler makes of `==`.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        ((self.0[0] ^ other.0[0]) | (self.0[1] ^ other.0[1]) | (self.0[2] ^ other.0[2]) | (self.0[3] ^ other.0[3])) == 0
    }

    /// A total order (not the numeric one): which end of a flow is `low`.
    #[inline(always)]
    pub const fn before(&self, other: &Self) -> bool {
        if self.0[3] != other.0[3] {
            self.0[3] < other.0[3]
        } else if self.0[2] != other.0[2] {
            self.0[2] < other.0[2]
        } else if self.0[1] != other.0[1] {
            self.0[1] < other.0[1]
        } else {
            self.0[0] < other.0[0]
        }
    }

    /// True for `ff00::/8`.
    #[inline(always)]
    pub const fn is_multicast_v6(&self) -> bool {
        u32::from_be(self.0[0]) >> 24 == 0xff
    }

    /// True for an address of one host: neither multicast, nor IPv4's broadcast to all, nor unspecified.
    #[inline(always)]
    pub const fn is_unicast(&self) -> bool {
        if self.is_v4() {
            let first = u32::from_be(self.0[3]) >> 24;
            return first != 0 && first < 224;
        }
        !self.is_multicast_v6() && !self.same(&Self::UNSPECIFIED)
    }

    /// Slot of this address in the peer-epoch array; several addresses may share one, which only re-judges more flows.
    #[inline(always)]
    pub const fn epoch_slot(&self) -> u32 {
        let mixed = (self.0[0] ^ self.0[1].rotate_left(9) ^ self.0[2].rotate_left(18) ^ self.0[3].rotate_left(27))
            .wrapping_mul(0x9e37_79b1);
        mixed >> (32 - crate::layout::PEER_EPOCH_BITS)
    }
}

#[cfg(any(test, feature = "host"))]
impl From<std::net::IpAddr> for Address {
    fn from(ip: std::net::IpAddr) -> Self {
        let bytes = match ip {
            std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = chunk.try_into().map_or(0, u32::from_ne_bytes);
        }
        Self(words)
    }
}

#[cfg(any(test, feature = "host"))]
impl From<Address> for std::net::IpAddr {
    fn from(address: Address) -> Self {
        let mut bytes = [0u8; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(address.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        std::net::Ipv6Addr::from(bytes).to_canonical()
    }
}
