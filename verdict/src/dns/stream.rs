//! Answers over TCP that come in pieces: put together in order, so that they are learned before the pod has their last byte.
//!
//! A stream begins with a query: what it acknowledges is where the answer will begin. A segment that comes before one it
//! follows is dropped, and TCP sends it again in order; one that is sent twice passes. An endpoint has [`OF_ENDPOINT`] streams and
//! a connection's port says which is its own, so what a pod pushes out is its own. What is not one message after the other in
//! whole segments, or is longer than is read, is given up: it passes and teaches nothing.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::{
    Outcome,
    message::MESSAGE,
    table::{BucketKey, halves, ticket},
};
use crate::{
    Scratch,
    layout::{ENDPOINTS, Word},
    maps::{Maps, Packet},
    port::protocol,
};

/// Streams an endpoint may have at a time.
pub const OF_ENDPOINT: u32 = 8;
/// Streams.
pub const STREAMS: u32 = ENDPOINTS * OF_ENDPOINT;
/// Bytes a stream has room for: what is there is less than a message, and what a segment adds no more than one.
pub const BYTES: usize = 2 * MESSAGE;
/// Bytes in front of a message that say its length.
const PREFIX: u32 = 2;
/// Segments dropped in a row before a stream is given up: the one they wait for will not come.
pub const EARLY_MAX: u32 = 64;
/// How far ahead a segment can be that its receiver has room for; one beyond that is nobody's.
const WINDOW: u32 = 1 << 20;
/// Bit of [`Stream::word`]: somebody is writing.
const BUSY: u64 = 1 << 63;

/// One connection's answers so far.
#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Stream {
    /// Whose it is: client port and protocol ([`ticket`]); 0 = nobody's.
    pub word: Word<u64>,
    /// The server, as two words.
    pub server: [Word<u64>; 2],
    /// Sequence number of the next byte.
    pub next: Word<u32>,
    /// Bytes that are there: a message's length and its beginning.
    pub have: Word<u32>,
    /// Segments dropped since the last one that fitted.
    pub early: Word<u32>,
    /// Zero.
    pub padding: Word<u32>,
    /// The bytes.
    pub bytes: [Word<u8>; BYTES],
}

impl Stream {
    /// Nobody's.
    #[expect(clippy::declare_interior_mutable_const, reason = "each use is a stream of its own")]
    pub const FREE: Self = Self {
        word: Word::new(0),
        server: [Word::new(0), Word::new(0)],
        next: Word::new(0),
        have: Word::new(0),
        early: Word::new(0),
        padding: Word::new(0),
        bytes: [const { Word::new(0) }; BYTES],
    };

    fn is_from(&self, server: [u64; 2]) -> bool {
        let [high, low] = &self.server;
        (high.get() ^ server[0]) | (low.get() ^ server[1]) == 0
    }
}

/// What a segment was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// The last of a message of so many bytes, which is in the working memory.
    Message(u32),
    /// One of several, or one that was there before.
    Piece,
    /// It comes before one it follows.
    Early,
    /// Of no stream, or of one that was given up for this reason.
    Not(Outcome),
}

fn key_of(scratch: &Scratch, port: u16) -> BucketKey {
    BucketKey {
        ifindex: scratch.moment.ifindex,
        bucket: u32::from(u16::from_be(port)) & OF_ENDPOINT.wrapping_sub(1),
    }
}

/// A connection begins: what its port was used for before is over.
#[inline(always)]
pub(super) fn begin<M: Maps>(maps: &M, scratch: &Scratch) {
    let port = scratch.headers.source_port;
    if let Some(stream) = maps.stream(&key_of(scratch, port)) {
        let mine = ticket(port, 0, protocol::TCP);
        // One that is being written is another connection's, or ends by what is written.
        let _ended = maps.swap(&stream.word, mine, 0);
    }
}

/// A query was noted: its answer begins where it says the server has come to, unless an earlier one is still under way.
#[inline(always)]
pub(super) fn expect<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &Scratch) {
    let headers = &scratch.headers;
    let at = headers.transport.wrapping_add(8) as usize;
    let Some(next) = packet.load::<[u8; 4]>(at).map(u32::from_be_bytes) else {
        return;
    };
    let key = key_of(scratch, headers.source_port);
    if maps.stream(&key).is_none() {
        maps.insert_stream(&key, &scratch.dns.empty_stream);
    }
    let Some(stream) = maps.stream(&key) else { return };
    let mine = ticket(headers.source_port, 0, protocol::TCP);
    let server = halves(&headers.destination);
    let word = stream.word.get();
    if word & BUSY != 0 || !maps.swap(&stream.word, word, mine | BUSY) {
        return;
    }
    let goes_on = word == mine && stream.is_from(server) && next.wrapping_sub(stream.next.get()).cast_signed() <= 0;
    if !goes_on {
        let [high, low] = &stream.server;
        high.set(server[0]);
        low.set(server[1]);
        stream.next.set(next);
        stream.have.set(0);
        stream.early.set(0);
    }
    stream.word.set(mine);
}

/// Takes what a segment of an answer brings, from `payload` on.
#[inline(always)]
pub(super) fn take<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &Scratch, payload: u32) -> Taken {
    let headers = &scratch.headers;
    let Some(stream) = maps.stream(&key_of(scratch, headers.destination_port)) else {
        return Taken::Not(Outcome::Unsolicited);
    };
    let mine = ticket(headers.destination_port, 0, protocol::TCP);
    if !stream.is_from(halves(&headers.source)) || !maps.swap(&stream.word, mine, mine | BUSY) {
        return Taken::Not(Outcome::Unsolicited);
    }
    let taken = append(packet, scratch, &stream, payload);
    stream.word.set(if matches!(taken, Taken::Not(_)) { 0 } else { mine });
    taken
}

#[inline(always)]
fn append<P: Packet>(packet: &P, scratch: &Scratch, stream: &Stream, payload: u32) -> Taken {
    let headers = &scratch.headers;
    let at = headers.transport.wrapping_add(4) as usize;
    let Some(number) = packet.load::<[u8; 4]>(at).map(u32::from_be_bytes) else {
        return Taken::Not(Outcome::Malformed);
    };
    let length = headers.end.wrapping_sub(payload);
    let ahead = number.wrapping_sub(stream.next.get());
    if ahead != 0 && ahead < 1 << 31 {
        if ahead > WINDOW {
            return Taken::Piece;
        }
        let early = stream.early.get().wrapping_add(1);
        stream.early.set(early);
        return if early > EARLY_MAX {
            Taken::Not(Outcome::Segmented)
        } else {
            Taken::Early
        };
    }
    let known = ahead.wrapping_neg();
    if known >= length {
        return Taken::Piece;
    }
    let fresh = length.wrapping_sub(known);
    let have = stream.have.get();
    if have as usize >= MESSAGE || !packet.append(payload.wrapping_add(known), fresh, &stream.bytes, have) {
        return Taken::Not(Outcome::TooLong);
    }
    let have = have.wrapping_add(fresh);
    stream.next.set(stream.next.get().wrapping_add(fresh));
    stream.early.set(0);
    stream.have.set(have);
    if have < PREFIX {
        return Taken::Piece;
    }
    let [high, low, ..] = &stream.bytes;
    let stated = u32::from(high.get()) << 8 | u32::from(low.get());
    let behind = stated.wrapping_add(PREFIX);
    if behind as usize > MESSAGE {
        return Taken::Not(Outcome::TooLong);
    }
    if have < behind {
        return Taken::Piece;
    }
    // Nothing is kept of what comes behind it in the same segment: it would have to be read now.
    if have > behind {
        return Taken::Not(Outcome::Segmented);
    }
    stream.have.set(0);
    if packet.message(&stream.bytes, stated, &scratch.dns.message) {
        Taken::Message(stated)
    } else {
        Taken::Not(Outcome::Malformed)
    }
}
