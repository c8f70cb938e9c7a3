//! Keys and values of the uplink's maps; as for `crate::layout`, the only file that says what their bytes mean.
//!
//! A feed is not looked up in a longest-prefix trie: a trie of a million prefixes costs every packet a microsecond.
//! IPv4: one byte for each /24 says "nothing", "all of it", or "look at its hosts" (a hash of 256-bit sets); in front of
//! these 16 MiB are two tables of bits that caches hold, which say whether there is anything in a /16, and in a /24. IPv6:
//! prefixes are widened down to multiples of four bits, a table of /16s says which of those lengths occur below each, and
//! the entry of a /32 says which occur below that. So a packet of no feed costs a few array accesses, whatever the number
//! of prefixes, and a packet of a /32 that is in one costs a probe for each length in use there.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    address::Address,
    layout::{Word, layout_type},
};

/// Bytes of the table of IPv4 /24s that make one element: a /16.
pub const CELLS: usize = 256;
/// Bytes of the table of marks, a bit for each /24, that make one element: a /16.
pub const MARKS: usize = CELLS / 8;
/// Bytes of the one element that has a bit for each IPv4 /16.
pub const WIDE_MARKS: usize = 8_192;
/// Elements of the table of IPv4 /24s, and of the one of IPv6 /16s.
pub const WIDE: u32 = 65_536;
/// Entries the hashes of a feed have room for, each, unless the agent says otherwise.
pub const ENTRIES: u32 = 262_144;
/// Prefixes no feed may name.
pub const EXCEPTIONS: u32 = 1_024;
/// Sources whose connections are counted; the one used longest ago goes first.
pub const SOURCES: u32 = 65_536;
/// Identities whose connections are counted.
pub const IDENTITIES: u32 = 16_384;
/// Groups of destinations the guard counts SYNs for; a power of two. Destinations share a group by a keyed hash.
pub const TARGETS: u32 = 16_384;
/// Sources known to be who they say.
pub const KNOWN: u32 = 65_536;
/// Sources whose dropped packets are counted one by one.
pub const DROPS: u32 = 16_384;
/// New entries of the counts by source, for each CPU.
pub const NOTES: Limit = Limit::of(10_000, 1, 1_000);
/// Counters, by reason.
pub const COUNTERS: u32 = 256;
/// Under this number packets are counted that went on.
pub const HANDED_ON: u8 = 0;
/// Feeds there can be; their numbers start at 1.
pub const FEEDS: u8 = 253;
/// Number of drops that hosts of several feeds in one /24 share.
pub const SEVERAL: u8 = 254;
/// Shortest prefix of an IPv4 feed.
pub const SHORTEST_V4: u8 = 8;
/// Shortest prefix of an IPv6 feed: one element of the table of /16s.
pub const SHORTEST_V6: u8 = 16;

/// Bits of [`Settings::flags`].
pub mod flag {
    /// Feeds are looked into.
    pub const FEEDS: u32 = 1;
    /// New connections of a source are limited.
    pub const SOURCES: u32 = 2;
    /// New connections of an identity are limited.
    pub const IDENTITIES: u32 = 4;
    /// Destinations are guarded against floods of SYNs.
    pub const GUARD: u32 = 8;
    /// Any of these looks at TCP.
    pub const CONNECTIONS: u32 = SOURCES | IDENTITIES | GUARD;
}

/// Values of a cell; every other one is the feed that holds the whole /24.
pub mod cell {
    /// Nothing of any feed.
    pub const NOTHING: u8 = 0;
    /// Some hosts: look at them.
    pub const HOSTS: u8 = 255;
}

layout_type! {
    /// A token bucket as the time it needs: a connection takes `interval` of it, and it never owes more than `tolerance`.
    Limit, 16 {
        /// Nanoseconds between connections at the limit.
        interval: u64,
        /// Nanoseconds that connections may be ahead: `(burst - 1) * interval`.
        tolerance: u64,
    }
}

layout_type! {
    /// What is to be done; one element, zero before the agent writes it.
    Settings, 80 {
        /// See [`flag`].
        flags: u32,
        /// Seconds a source stays known.
        known_for: u32,
        /// New connections of one source.
        source: Limit,
        /// New connections of one identity.
        identity: Limit,
        /// SYNs to one destination.
        guard: Limit,
        /// Secret of the challenges, made anew by each agent that finds none.
        secret: [u64; 2],
        /// Zero.
        padding: u64,
    }
}

layout_type! {
    /// The hosts of an IPv4 /24 that feeds name: bit `n % 32` of word `n / 32` is host `n`.
    Hosts, 36 {
        /// The set.
        bits: [u32; 8],
        /// The feed, or [`SEVERAL`].
        feed: u32,
    }
}

layout_type! {
    /// Key of the IPv6 prefixes.
    PrefixKey, 20 {
        /// Address, zero behind the prefix.
        address: Address,
        /// A fourth of the prefix's length, 5 to 32.
        class: u32,
    }
}

layout_type! {
    /// An IPv6 prefix.
    Prefix, 8 {
        /// The feed that holds all of it; 0 = none.
        feed: u32,
        /// Classes of longer prefixes that occur below it: bit `class - 1`. Said by /16s for the classes to 8 (a /32), and
        /// by /32s for the others.
        below: u32,
    }
}

layout_type! {
    /// Key of the counts of dropped packets.
    DropKey, 24 {
        /// Source.
        source: Address,
        /// Reason.
        reason: u32,
        /// Feed, where a feed is the reason.
        feed: u32,
    }
}

/// Dropped packets of one source, reason and feed.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct DropEntry {
    /// Packets.
    pub count: Word<u64>,
    /// Their bytes.
    pub bytes: Word<u64>,
    /// The last one, `CLOCK_BOOTTIME` nanoseconds.
    pub last: Word<u64>,
}
const _: () = assert!(size_of::<DropEntry>() == 24);

impl fmt::Debug for DropEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DropEntry")
            .field("count", &self.count.get())
            .field("bytes", &self.bytes.get())
            .finish_non_exhaustive()
    }
}

impl Limit {
    /// So many connections in so many seconds, with so many at once; all at least 1.
    pub const fn of(count: u32, seconds: u32, burst: u32) -> Self {
        let count = if count == 0 { 1 } else { count };
        let interval = match (seconds as u64).saturating_mul(1_000_000_000).checked_div(count as u64) {
            Some(0) | None => 1,
            Some(interval) => interval,
        };
        Self {
            interval,
            tolerance: interval.saturating_mul(burst.saturating_sub(1) as u64),
        }
    }
}

impl PrefixKey {
    /// The prefix of a class that an address is in.
    #[inline(always)]
    pub const fn of(address: &Address, class: u32) -> Self {
        let [a, b, c, d] = address.0;
        let bits = class.wrapping_mul(4);
        Self {
            address: Address([
                kept(a, bits),
                kept(b, bits.saturating_sub(32)),
                kept(c, bits.saturating_sub(64)),
                kept(d, bits.saturating_sub(96)),
            ]),
            class,
        }
    }
}

/// The first bits of a word in network byte order, the others zero.
#[inline(always)]
const fn kept(word: u32, bits: u32) -> u32 {
    let bits = if bits > 32 { 32 } else { bits };
    let others = ((0xffff_ffff_u64 >> bits) & 0xffff_ffff) as u32;
    word & (!others).to_be()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_keeps_its_bits_and_no_others() {
        let address = Address([u32::MAX; 4]);
        assert_eq!(PrefixKey::of(&address, 32).address, address);
        assert_eq!(PrefixKey::of(&address, 8).address.0, [u32::MAX, 0, 0, 0]);
        assert_eq!(
            PrefixKey::of(&address, 9).address.0,
            [u32::MAX, 0xf000_0000_u32.to_be(), 0, 0]
        );
        assert_eq!(PrefixKey::of(&address, 5).address.0, [0xffff_f000_u32.to_be(), 0, 0, 0]);
        assert_eq!(PrefixKey::of(&address, 31).address.0[3], 0xffff_fff0_u32.to_be());
    }

    #[test]
    fn a_limit_is_never_zero_time() {
        assert_eq!(
            Limit::of(100, 1, 200),
            Limit {
                interval: 10_000_000,
                tolerance: 1_990_000_000
            }
        );
        assert_eq!(Limit::of(u32::MAX, 1, 1).interval, 1);
        assert_eq!(
            Limit::of(0, 1, 0),
            Limit {
                interval: 1_000_000_000,
                tolerance: 0
            }
        );
    }
}
