//! Reads DNS messages: the question's name, and the records of an answer. Bounded, step by step, because the kernel's
//! verifier wants loops as callbacks; no pointer of a compressed name is ever followed, so a loop of them costs nothing.

use super::{
    choice::{Choice, Seen},
    stream::Stream,
    table::{LEARNED_WAYS, LearnedBucket, LearnedWay, NAME_MAX, PENDING_WAYS, PendingBucket, PendingWay},
};
use crate::{address::Address, layout::Word};

/// Longest message that is read.
pub const MESSAGE: usize = 4096;
/// Shortest message: header, the root's name, type and class.
pub const SHORTEST: u32 = 17;
/// Bytes of the buffer for the reversed name.
pub const REVERSED: usize = 1024;
/// Behind the reversed name's last byte; the name is written towards the front.
pub const REVERSED_END: u32 = 512;
/// Steps a name can take.
pub const NAME_STEPS: u32 = 256;
/// Steps the records of an answer can take: one for each label of an owner's name, one for each record.
pub const RECORD_STEPS: u32 = 2048;

/// Class IN.
const INTERNET: u32 = 1;
/// Types of records.
mod kind {
    pub(super) const A: u32 = 1;
    pub(super) const CNAME: u32 = 5;
    pub(super) const AAAA: u32 = 28;
    pub(super) const DNAME: u32 = 39;
}

/// Working memory: the message, its name and where reading stands.
#[repr(C)]
pub struct Working {
    /// The message.
    pub message: [Word<u8>; MESSAGE],
    /// The question's name, lower case, reversed, up to [`REVERSED_END`].
    pub reversed: [Word<u8>; REVERSED],
    /// What a bucket of LEARNED is at first. Never written.
    pub empty_learned: LearnedBucket,
    /// What a bucket of PENDING is at first. Never written.
    pub empty_pending: PendingBucket,
    /// What a stream is at first. Never written.
    pub empty_stream: Stream,
    pub(crate) walk: Walk,
    pub(crate) choice: Choice,
    pub(crate) seen: [Seen; LEARNED_WAYS],
}

/// Where reading stands. In memory and not on the stack: the verifier would follow each value of a counter there.
#[derive(Clone, Copy, Default, Debug)]
#[repr(C)]
pub struct Walk {
    /// Digest of the question so far.
    pub question: u64,
    /// Seconds of `CLOCK_BOOTTIME`.
    pub boot: u64,
    /// Next byte.
    pub position: u32,
    /// Behind the last byte.
    pub end: u32,
    /// Bytes left of the label in hand.
    pub label: u32,
    /// Bytes of the name.
    pub name: u32,
    /// Records left.
    pub left: u32,
    /// Smallest TTL of the aliases so far, seconds.
    pub alias_ttl: u32,
    /// TTL of the address in hand.
    pub ttl: u32,
    /// Addresses seen.
    pub addresses: u32,
    /// Class they are learned with.
    pub class: u32,
    /// The device.
    pub ifindex: u32,
    /// The address in hand.
    pub address: Address,
    /// The name or the records came to their end.
    pub done: u8,
    /// Addresses are learned; otherwise the message is only looked at.
    pub learn: u8,
    /// An address did not fit.
    pub lost: u8,
    /// Zero.
    pub padding: [u8; 5],
}

impl Working {
    /// Memory for one message after the other.
    pub const fn new() -> Self {
        Self {
            message: [const { Word::new(0) }; MESSAGE],
            reversed: [const { Word::new(0) }; REVERSED],
            empty_learned: LearnedBucket {
                ways: [const { LearnedWay::FREE }; LEARNED_WAYS],
            },
            empty_pending: PendingBucket {
                ways: [const { PendingWay::FREE }; PENDING_WAYS],
            },
            empty_stream: Stream::FREE,
            walk: Walk {
                question: 0,
                boot: 0,
                position: 0,
                end: 0,
                label: 0,
                name: 0,
                left: 0,
                alias_ttl: 0,
                ttl: 0,
                addresses: 0,
                class: 0,
                ifindex: 0,
                address: Address::UNSPECIFIED,
                done: 0,
                learn: 0,
                lost: 0,
                padding: [0; 5],
            },
            choice: Choice::NONE,
            seen: [Seen { word: 0, other: 0 }; LEARNED_WAYS],
        }
    }

    /// A byte of the message. The position is wrapped, so that the verifier sees its bound; callers have compared it.
    #[inline(always)]
    pub(crate) fn byte(&self, at: u32) -> u32 {
        let at = at as usize & MESSAGE.wrapping_sub(1);
        self.message.get(at).map_or(0, |byte| u32::from(byte.get()))
    }

    /// Two bytes.
    #[inline(always)]
    pub(crate) fn half(&self, at: u32) -> u32 {
        self.byte(at) << 8 | self.byte(at.wrapping_add(1))
    }

    /// Four bytes.
    #[inline(always)]
    fn word(&self, at: u32) -> u32 {
        self.half(at) << 16 | self.half(at.wrapping_add(2))
    }

    /// Begins with the question's name.
    #[inline(always)]
    pub(crate) fn begin_name(&mut self, length: u32) {
        let walk = &mut self.walk;
        walk.question = 0xcbf2_9ce4_8422_2325;
        walk.position = 12;
        walk.end = length;
        walk.label = 0;
        walk.name = 0;
        walk.done = 0;
    }

    /// Takes a byte of the name; true at its end, or when it is none. A compressed name is none: a question has nothing in
    /// front of it to point to.
    #[inline(always)]
    pub(crate) fn name_step(&mut self) -> bool {
        let position = self.walk.position;
        if position >= self.walk.end {
            return true;
        }
        let mut byte = self.byte(position);
        let walk = &mut self.walk;
        walk.position = position.wrapping_add(1);
        if walk.label == 0 {
            if byte == 0 {
                walk.done = 1;
                return true;
            }
            if byte > 63 {
                return true;
            }
            walk.label = byte;
        } else {
            walk.label = walk.label.wrapping_sub(1);
            if byte.wrapping_sub(65) < 26 {
                byte = byte.wrapping_add(32);
            }
        }
        let mixed = (walk.question ^ u64::from(byte)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        walk.question = mixed ^ (mixed >> 29);
        walk.name = walk.name.wrapping_add(1);
        let at = REVERSED_END.wrapping_sub(walk.name) & (REVERSED_END - 1);
        if let Some(cell) = self.reversed.get(at as usize) {
            cell.set((byte & 0xff) as u8);
        }
        false
    }

    /// After the name: type and class go into the digest. False when the question cannot be used.
    #[inline(always)]
    pub(crate) fn end_name(&mut self) -> bool {
        let position = self.walk.position;
        let behind = position.wrapping_add(4);
        if self.walk.done == 0 || behind > self.walk.end || self.walk.name as usize > NAME_MAX {
            return false;
        }
        let (kind, class) = (self.half(position), self.half(position.wrapping_add(2)));
        let walk = &mut self.walk;
        let mixed = (walk.question ^ u64::from(kind)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        walk.question = mixed ^ (mixed >> 32);
        walk.position = behind;
        class == INTERNET
    }

    /// Begins with the records behind `position`.
    #[inline(always)]
    pub(crate) fn begin_records(&mut self, position: u32, records: u32, learn: bool) {
        let walk = &mut self.walk;
        walk.position = position;
        walk.left = records;
        walk.alias_ttl = u32::MAX;
        walk.addresses = 0;
        walk.done = 0;
        walk.lost = 0;
        walk.learn = u8::from(learn);
    }

    /// Skips a label of an owner's name, or takes the record behind it; true at the end, or when it cannot be read
    /// (`done` tells which). [`Walk::ttl`] and [`Walk::address`] are set when `found` is.
    #[inline(always)]
    pub(crate) fn record_step(&mut self, found: &mut bool) -> bool {
        let (position, end) = (self.walk.position, self.walk.end);
        if position >= end {
            return true;
        }
        let label = self.byte(position);
        if label != 0 && label < 64 {
            self.walk.position = position.wrapping_add(label).wrapping_add(1);
            return false;
        }
        let fixed = match label {
            0 => position.wrapping_add(1),
            192.. => position.wrapping_add(2),
            _ => return true,
        };
        let data = fixed.wrapping_add(10);
        if data > end {
            return true;
        }
        let length = self.half(fixed.wrapping_add(8));
        let behind = data.wrapping_add(length);
        if behind > end {
            return true;
        }
        if self.half(fixed.wrapping_add(2)) == INTERNET {
            *found = self.record(self.half(fixed), self.word(fixed.wrapping_add(4)), data, length);
        }
        let walk = &mut self.walk;
        walk.position = behind;
        walk.left = walk.left.wrapping_sub(1);
        walk.done = u8::from(walk.left == 0);
        walk.left == 0
    }

    /// Takes over what a record says; true for an address.
    #[inline(always)]
    fn record(&mut self, kind: u32, ttl: u32, data: u32, length: u32) -> bool {
        // A TTL with the highest bit set is none (RFC 2181, section 8).
        let ttl = if ttl >> 31 == 1 { 0 } else { ttl };
        if kind == kind::CNAME || kind == kind::DNAME {
            if ttl < self.walk.alias_ttl {
                self.walk.alias_ttl = ttl;
            }
            return false;
        }
        let v4 = kind == kind::A && length == 4;
        let v6 = kind == kind::AAAA && length == 16;
        if !v4 && !v6 {
            return false;
        }
        let first = self.word(data).to_be();
        let address = if v4 {
            Address::from_v4_word(first)
        } else {
            Address([
                first,
                self.word(data.wrapping_add(4)).to_be(),
                self.word(data.wrapping_add(8)).to_be(),
                self.word(data.wrapping_add(12)).to_be(),
            ])
        };
        // `::ffff:a.b.c.d` as an AAAA record would pass for the IPv4 address in it.
        if !v4 && address.is_v4() {
            return false;
        }
        let walk = &mut self.walk;
        walk.ttl = if ttl < walk.alias_ttl { ttl } else { walk.alias_ttl };
        walk.address = address;
        walk.addresses = walk.addresses.wrapping_add(1);
        true
    }
}

impl Default for Working {
    fn default() -> Self {
        Self::new()
    }
}
