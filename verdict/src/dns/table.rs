//! What the kernel remembers for names: queries that wait for their answer, and addresses that answers taught.
//!
//! Both are hashes of *buckets*, keyed by device and bucket number. A device has a fixed number of buckets, and a map has
//! room for those of every endpoint, so no pod can take another's place: what a pod pushes out is its own. Within a bucket
//! the oldest query, and the address that expires first, goes first. Memory is taken when a bucket is first used. The key is
//! the device and not the slot, because a slot is used again and a device's number is not: a new pod starts empty.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    address::Address,
    layout::{ENDPOINTS, Word},
};

/// Ways of a bucket of LEARNED.
pub const LEARNED_WAYS: usize = 32;
/// The same, as a number of steps.
pub const LEARNED_STEPS: u32 = 32;
const _: () = assert!(LEARNED_WAYS == 32);
/// Buckets of LEARNED an endpoint has.
pub const LEARNED_BUCKETS: u32 = 64;
/// Buckets of LEARNED.
pub const LEARNED: u32 = ENDPOINTS * LEARNED_BUCKETS;
/// Ways of a bucket of PENDING.
pub const PENDING_WAYS: usize = 16;
/// The same, as a number of steps.
pub const PENDING_STEPS: u32 = 16;
const _: () = assert!(PENDING_WAYS == 16);
/// Buckets of PENDING an endpoint has.
pub const PENDING_BUCKETS: u32 = 16;
/// Buckets of PENDING.
pub const PENDING: u32 = ENDPOINTS * PENDING_BUCKETS;
/// Names and wildcards that rules of this node mention.
pub const PATTERNS: u32 = 65_536;
/// Pairs of a pattern and a set of names it belongs to.
pub const MEMBERS: u32 = 262_144;
/// Longest name as PATTERNS has it: without the root's zero byte.
pub const NAME_MAX: usize = 254;
/// Bytes of a key of PATTERNS, which a trie of the kernel limits to this.
pub const KEY_BYTES: usize = 256;
/// The word of a way that somebody is about to write.
pub const CLAIMED: u64 = u64::MAX;

macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
        impl Default for $name {
            #[inline(always)]
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }
    };
}

plain! {
    /// Key of LEARNED and PENDING.
    BucketKey, 8 {
        /// The endpoint's device.
        ifindex: u32,
        /// Number of the bucket.
        bucket: u32,
    }
}

plain! {
    /// PATTERNS, a longest-prefix trie over names in wire form, reversed byte by byte (`www.a.de` is `ed\x02a\x01www\x03`): a
    /// name's domains are its prefixes, and the length bytes keep `xa.de` from being inside `a.de`. One lookup finds the longest
    /// domain that rules mention; user space has filled in what wider wildcards say of it.
    PatternEntry, 16 {
        /// Bytes of the domain.
        length: u32,
        /// Class of the domain itself; 0 = no rule mentions it.
        exact: u32,
        /// Class of names with one label more.
        child: u32,
        /// Class of names with more labels than that.
        deeper: u32,
    }
}

plain! {
    /// Key of MEMBERS; the value is 1. A class is the number of a pattern: what the name of an answer matched most closely. Rules
    /// ask for a set of patterns; whether the class lies in it is asked when a flow is judged, so a changed rule needs no new answer.
    MemberKey, 8 {
        /// The class an address was learned with.
        class: u32,
        /// The set a rule asks for: the argument of a name guard.
        set: u32,
    }
}

plain! {
    /// NAMING, one element: how answers are used.
    Naming, 16 {
        /// 1 = queries are noted and answers learned.
        enabled: u32,
        /// An address is kept for at least so many seconds.
        min_ttl: u32,
        /// And at most for so many.
        max_ttl: u32,
        /// Zero.
        padding: u32,
    }
}

/// An address and the class it was learned with.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct LearnedWay {
    /// `class << 32 | expiry`, `CLOCK_BOOTTIME` seconds; 0 = free, [`CLAIMED`] = being written. The address is only written
    /// while it is claimed, and a reader looks at the word before and after it.
    pub word: Word<u64>,
    /// The address, as two words.
    pub address: [Word<u64>; 2],
}

/// LEARNED: addresses of one endpoint.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct LearnedBucket {
    /// The ways.
    pub ways: [LearnedWay; LEARNED_WAYS],
}
const _: () = assert!(size_of::<LearnedBucket>() == 768);

/// A query that was sent.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct PendingWay {
    /// When it was sent, coarse `CLOCK_MONOTONIC` nanoseconds; 0 = free, [`CLAIMED`] = being written.
    pub word: Word<u64>,
    /// Client port, query id, protocol: see [`ticket`].
    pub ticket: Word<u64>,
    /// Digest of name, type and class.
    pub question: Word<u64>,
    /// The server it was sent to, as two words.
    pub server: [Word<u64>; 2],
}

/// PENDING: queries of one endpoint.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct PendingBucket {
    /// The ways.
    pub ways: [PendingWay; PENDING_WAYS],
}
const _: () = assert!(size_of::<PendingBucket>() == 640);

impl LearnedWay {
    /// A way that holds nothing.
    #[expect(clippy::declare_interior_mutable_const, reason = "each use is a way of its own")]
    pub const FREE: Self = Self {
        word: Word::new(0),
        address: [Word::new(0), Word::new(0)],
    };
}

impl PendingWay {
    /// A way that holds nothing.
    #[expect(clippy::declare_interior_mutable_const, reason = "each use is a way of its own")]
    pub const FREE: Self = Self {
        word: Word::new(0),
        ticket: Word::new(0),
        question: Word::new(0),
        server: [Word::new(0), Word::new(0)],
    };
}

/// Client port, query id and protocol in one word.
#[inline(always)]
pub const fn ticket(port: u16, id: u32, protocol: u8) -> u64 {
    (protocol as u64) << 32 | (port as u64) << 16 | (id & 0xffff) as u64
}

/// An address as two words.
#[inline(always)]
pub const fn halves(address: &Address) -> [u64; 2] {
    let [a, b, c, d] = address.0;
    [(a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64]
}

/// Bucket of LEARNED an address belongs to.
#[inline(always)]
pub const fn learned_bucket(address: &Address) -> u32 {
    let [a, b, c, d] = address.0;
    mix((a ^ b.rotate_left(9) ^ c.rotate_left(18)) as u64, d as u64) & (LEARNED_BUCKETS - 1)
}

/// Bucket of PENDING a query belongs to.
#[inline(always)]
pub const fn pending_bucket(ticket: u64) -> u32 {
    mix(ticket >> 32, ticket & 0xffff_ffff) & (PENDING_BUCKETS - 1)
}

#[inline(always)]
const fn mix(one: u64, other: u64) -> u32 {
    let mixed = (one.rotate_left(32) ^ other).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as u32
}

/// Class of a way's word.
#[inline(always)]
pub const fn class_of(word: u64) -> u32 {
    (word >> 32) as u32
}

/// Expiry of a way's word, seconds.
#[inline(always)]
pub const fn expiry_of(word: u64) -> u64 {
    word & 0xffff_ffff
}

/// A way's word.
#[inline(always)]
pub const fn word_of(class: u32, expiry: u64) -> u64 {
    (class as u64) << 32 | if expiry > 0xffff_fffe { 0xffff_fffe } else { expiry }
}
