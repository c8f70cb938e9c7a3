//! Which way of a bucket to use. The ways are looked at once, without a branch, and then compared one by one out of working
//! memory: the verifier would follow every outcome of every comparison of values it knows more about.

use super::{
    message::Working,
    table::{CLAIMED, LEARNED_WAYS, LearnedBucket, MemberKey, PendingBucket, class_of, expiry_of},
};
use crate::maps::Maps;

/// A way as it was seen.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Seen {
    /// Its word.
    pub word: u64,
    /// 0 = it holds what is looked for, and was not written meanwhile.
    pub other: u64,
}

/// The way that was chosen.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub(crate) struct Choice {
    /// What made it the best: smaller is better.
    pub rank: u64,
    /// Its word.
    pub word: u64,
    /// `CLOCK_BOOTTIME` seconds, or the oldest word that counts.
    pub since: u64,
    /// Its number.
    pub at: u32,
    /// Number of the way to be compared next.
    pub next: u32,
    /// What is looked for: a class, or a set of names.
    pub wanted: u32,
    /// 1 = it holds what is looked for.
    pub same: u32,
}

impl Choice {
    /// Nothing chosen.
    pub(crate) const NONE: Self = Self {
        rank: u64::MAX,
        word: 0,
        since: 0,
        at: 0,
        next: 0,
        wanted: 0,
        same: 0,
    };
}

impl Working {
    /// Looks at the ways of a bucket of LEARNED for an address.
    #[inline(always)]
    pub(crate) fn see_learned(&mut self, bucket: &LearnedBucket, address: [u64; 2]) {
        self.choice = Choice::NONE;
        for (way, seen) in bucket.ways.iter().zip(&mut self.seen) {
            let [high, low] = &way.address;
            let word = way.word.get();
            seen.word = word;
            seen.other = (high.get() ^ address[0]) | (low.get() ^ address[1]);
            seen.other |= way.word.get() ^ word;
        }
    }

    /// Looks at the ways of a bucket of PENDING for a query to a server.
    #[inline(always)]
    pub(crate) fn see_pending(&mut self, bucket: &PendingBucket, ticket: u64, server: [u64; 2]) {
        self.choice = Choice::NONE;
        for (way, seen) in bucket.ways.iter().zip(&mut self.seen) {
            let [high, low] = &way.server;
            let word = way.word.get();
            seen.word = word;
            seen.other = (way.ticket.get() ^ ticket) | (high.get() ^ server[0]) | (low.get() ^ server[1]);
            seen.other |= way.word.get() ^ word;
        }
    }

    /// The next way and its number.
    #[inline(always)]
    fn next(&mut self) -> (Seen, u32) {
        let number = self.choice.next;
        self.choice.next = number.wrapping_add(1);
        let at = number as usize & LEARNED_WAYS.wrapping_sub(1);
        (self.seen.get(at).copied().unwrap_or_default(), number)
    }

    #[inline(always)]
    fn choose(&mut self, rank: u64, seen: Seen, number: u32, same: bool) {
        let choice = &mut self.choice;
        if rank < choice.rank {
            choice.rank = rank;
            choice.word = seen.word;
            choice.at = number;
            choice.same = u32::from(same);
        }
    }

    /// A place for an address: its own, else the one that is free longest, or expires first.
    #[inline(always)]
    pub(crate) fn place_step(&mut self) -> bool {
        let (seen, number) = self.next();
        let same =
            seen.other == 0 && seen.word != 0 && seen.word != CLAIMED && class_of(seen.word) == self.choice.wanted;
        let rank = match seen.word {
            CLAIMED => u64::MAX,
            _ if same => 0,
            word => expiry_of(word).wrapping_add(1),
        };
        self.choose(rank, seen, number, same);
        same
    }

    /// A place for a query: that of the same query sent before, else a free one, else the oldest.
    #[inline(always)]
    pub(crate) fn query_step(&mut self) -> bool {
        let (seen, number) = self.next();
        let same = seen.other == 0 && seen.word != CLAIMED;
        let rank = match seen.word {
            CLAIMED => u64::MAX,
            _ if same => 0,
            word => word.wrapping_add(1),
        };
        self.choose(rank, seen, number, same);
        same
    }

    /// The query an answer is for.
    #[inline(always)]
    pub(crate) fn answer_step(&mut self) -> bool {
        let (seen, number) = self.next();
        let same = seen.other == 0 && seen.word != CLAIMED && seen.word > self.choice.since;
        if same {
            self.choose(0, seen, number, same);
        }
        same
    }

    /// The address that is known longest for a set of names.
    #[inline(always)]
    pub(crate) fn known_step<M: Maps>(&mut self, maps: &M) -> bool {
        let (seen, number) = self.next();
        if seen.other == 0 && seen.word != 0 && seen.word != CLAIMED {
            let member = maps.member(&MemberKey {
                class: class_of(seen.word),
                set: self.choice.wanted,
            });
            if member {
                self.choose(
                    u64::MAX.wrapping_sub(expiry_of(seen.word)).wrapping_sub(1),
                    seen,
                    number,
                    true,
                );
            }
        }
        false
    }
}
