//! What an uplink takes away before anything else sees the packet: sources of threat feeds, connections above a limit,
//! floods of SYNs. Whatever is not taken away goes on to the stack and to TCX, which judge it as if we were not here.

mod cookie;
mod feed;
mod frame;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod layout;
mod limit;
#[cfg(any(test, feature = "host"))]
pub mod vectors;

use core::ops::Deref;

use zerocopy::FromBytes;

use self::layout::{DropKey, Prefix, PrefixKey, Settings, flag};
pub use self::{
    cookie::Cookie,
    feed::find,
    frame::{CHALLENGE_MAX, Headers, challenge},
};
use crate::{
    address::Address,
    layout::{AddressEntry, NetworkEntry, Word},
    reason::Reason,
};

/// A frame as the driver hands it over.
pub trait Frame {
    /// Reads a value at an offset from the Ethernet header; `None` past the end.
    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T>;
    /// Bytes that are readable.
    fn length(&self) -> u32;
}

/// The maps of [`layout`], and the clock.
pub trait Tables {
    /// A reference to a time that other CPUs write as well.
    type Time: Deref<Target = Word<u64>>;

    /// `CLOCK_BOOTTIME`, nanoseconds.
    fn now(&self) -> u64;
    /// What is to be done; `None` = nothing.
    fn settings(&self) -> Option<&Settings>;
    /// True when anything in an IPv4 /16 is listed: a table that fits the fastest cache.
    fn wide(&self, high: u32) -> bool;
    /// True when anything in an IPv4 /24 is listed: an eighth of the table of bytes.
    fn mark(&self, high: u32, low: u32) -> bool;
    /// Byte of an IPv4 /24: the /16 it is in, then its number there. See [`layout::cell`].
    fn cell(&self, high: u32, low: u32) -> u8;
    /// Of the hosts of an IPv4 /24 (address >> 8) the 32 that begin at `32 * word`, and the feed they are of.
    fn hosts(&self, network: u32, word: u32) -> Option<(u32, u32)>;
    /// What is known of an IPv6 /16.
    fn root(&self, index: u32) -> Prefix;
    /// What is known of a longer IPv6 prefix.
    fn prefix(&self, key: &PrefixKey) -> Option<Prefix>;
    /// The feed an address is of, or 0. The kernel makes it a function of its own, which its verifier checks once and not
    /// again for every way that leads on from there.
    #[inline(always)]
    fn find(&self, address: &Address) -> u8
    where
        Self: Sized,
    {
        find(self, address)
    }
    /// True for an address that no feed may name.
    fn excepted(&self, address: &Address) -> bool;
    /// Who an address is: ADDRESSES.
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// Who an address without a binding is: NETWORKS.
    fn network(&self, address: &Address) -> Option<NetworkEntry>;
    /// When a source's bucket is full again.
    fn source(&self, source: &Address) -> Option<Self::Time>;
    /// Begins a source's bucket; the source used longest ago makes room.
    fn add_source(&self, source: &Address, time: u64);
    /// When an identity's bucket is full again.
    fn identity(&self, identity: u32) -> Option<Self::Time>;
    /// Begins an identity's bucket.
    fn add_identity(&self, identity: u32, time: u64);
    /// When the bucket of a group of destinations is full again.
    fn target(&self, index: u32) -> Option<Self::Time>;
    /// Until when a source is known to be who it says.
    fn known(&self, source: &Address) -> Option<u64>;
    /// Remembers that a source is who it says.
    fn add_known(&self, source: &Address, until: u64);
    /// Counts a packet under a reason, or under [`layout::HANDED_ON`].
    fn count(&self, number: u8, bytes: u32);
    /// Counts a packet that a feed took away.
    fn count_feed(&self, feed: u8, bytes: u32);
    /// Counts a packet that was taken away under its source; false when that has no entry.
    fn note(&self, key: &DropKey, bytes: u32, now: u64) -> bool;
    /// Makes the entry, with this packet; the source that was dropped longest ago makes room.
    fn add_note(&self, key: &DropKey, bytes: u32, now: u64);
    /// When the bucket of new entries is full again, for this CPU.
    fn pace(&self) -> Option<Self::Time>;
}

/// What becomes of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It goes on.
    Next,
    /// It is taken away.
    Drop(Reason),
    /// It is a SYN, and a challenge with this number goes back in its place ([`challenge`]).
    Challenge(u32),
}

/// Decides about one frame. `headers` is working memory, and afterwards what [`challenge`] needs.
#[inline(always)]
pub fn judge<F: Frame, T: Tables>(frame: &F, tables: &T, headers: &mut Headers) -> Answer {
    let Some(settings) = tables.settings() else {
        return Answer::Next;
    };
    let answer = decide(frame, tables, settings, headers);
    let bytes = frame.length();
    match answer {
        Answer::Next => tables.count(layout::HANDED_ON, bytes),
        Answer::Drop(reason) => tables.count(reason as u8, bytes),
        Answer::Challenge(_) => tables.count(Reason::SynChallenged as u8, bytes),
    }
    answer
}

/// The decision without its counting.
#[inline(always)]
fn decide<F: Frame, T: Tables>(frame: &F, tables: &T, settings: &Settings, headers: &mut Headers) -> Answer {
    // What has no source address, or cannot be read, is TCX's to judge.
    if frame::network(frame, headers).is_none() {
        return Answer::Next;
    }
    if settings.flags & flag::FEEDS != 0 {
        let feed = tables.find(&headers.source);
        if feed != 0 && !spared(tables, &headers.source) {
            tables.count_feed(feed, frame.length());
            return taken(frame, tables, headers, Reason::ThreatFeed, feed);
        }
    }
    if settings.flags & flag::CONNECTIONS == 0 || frame::tcp(frame, headers).is_none() {
        return Answer::Next;
    }
    if headers.opens() {
        return opens(frame, tables, settings, headers);
    }
    if settings.flags & flag::GUARD != 0 && limit::proves(tables, settings, headers) {
        return taken(frame, tables, headers, Reason::ChallengeAnswered, 0);
    }
    Answer::Next
}

/// A SYN. The guard comes first: what is not known to be from its source must not empty that source's bucket.
#[inline(always)]
fn opens<F: Frame, T: Tables>(frame: &F, tables: &T, settings: &Settings, headers: &Headers) -> Answer {
    let now = tables.now();
    if settings.flags & flag::GUARD != 0
        && let Some(number) = limit::challenged(tables, settings, headers, now)
    {
        return Answer::Challenge(number);
    }
    if settings.flags & flag::SOURCES != 0 && !limit::source(tables, settings, headers, now) {
        return taken(frame, tables, headers, Reason::SourceLimit, 0);
    }
    if settings.flags & flag::IDENTITIES != 0 && !limit::identity(tables, settings, headers, now) {
        return taken(frame, tables, headers, Reason::IdentityLimit, 0);
    }
    Answer::Next
}

/// No feed takes away pods and nodes of the cluster, nor what the person excepted: lists of "bogus" addresses name
/// private ranges, and a node that loses the others is an outage, not safety.
#[inline(always)]
fn spared<T: Tables>(tables: &T, source: &Address) -> bool {
    tables.address(source).is_some() || tables.excepted(source)
}

#[inline(always)]
fn taken<F: Frame, T: Tables>(frame: &F, tables: &T, headers: &Headers, reason: Reason, feed: u8) -> Answer {
    let key = DropKey {
        source: headers.source,
        reason: reason as u32,
        feed: feed.into(),
    };
    let (now, bytes) = (tables.now(), frame.length());
    // An entry in the place of another costs several times the decision: a flood from a million sources has to do without.
    if !tables.note(&key, bytes, now) && limit::paced(tables, now) {
        tables.add_note(&key, bytes, now);
    }
    Answer::Drop(reason)
}
