//! Names in rules: queries of a pod are noted, answers to them taught to LEARNED before the pod sees them, and a name guard
//! asks LEARNED. There is no proxy, and nothing in user space is needed.
//!
//! Only the name that was asked counts. All addresses of an answer are its addresses, whatever aliases lead to them: who
//! answers for the name decides that. An answer is believed when it passes the rules as part of the flow the query opened,
//! comes from the server and port it was sent to, and has its id, question, type and protocol; and once.

mod choice;
pub mod message;
pub mod stream;
pub mod table;

use crate::{
    Scratch, Stage,
    layout::{NameKey, address_flag},
    maps::{Half, Hook, Maps, Packet},
    packet::{Fragment, Headers, Kind, tcp},
    port::protocol,
    reason::Reason,
};
use message::{MESSAGE, NAME_STEPS, RECORD_STEPS, REVERSED_END, SHORTEST};
use stream::Taken;
use table::{
    BucketKey, CLAIMED, LEARNED_STEPS, LEARNED_WAYS, PENDING_STEPS, PENDING_WAYS, class_of, expiry_of, halves, ticket,
    word_of,
};

/// Largest answer over UDP that queries for names of rules may allow: it needs no fragments on any path (RFC 9715).
pub const UDP_SIZE: u32 = 1232;
/// Type of the record that says what a query allows.
const OPT: u32 = 41;
/// The port servers of names have, network byte order.
const PORT: u16 = 53_u16.to_be();
/// How long an answer may take, nanoseconds.
const PATIENCE: u64 = 30_000_000_000;
/// How long an address is kept after a live flow was judged by it, seconds. More than [`crate::policy::GUARD_CACHE`], so that it
/// does not expire under a flow in which packets pass.
pub const LIVE_HOLD: u64 = 180;
/// How often another CPU may take the place that was chosen.
const ATTEMPTS: u32 = 3;

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// What became of a query or an answer. Counted in STATS under its number, which is no reason's.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Outcome { $($(#[$doc])* $name = $number,)* }

        impl Outcome {
            /// Every outcome in order of its number.
            pub const ALL: &'static [Outcome] = &[$(Outcome::$name,)*];

            /// The word used in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Outcome::$name => $text,)* }
            }
        }
    };
}

outcomes! {
    /// A query was noted.
    Noted = 192, "query-noted";
    /// A query that cannot be read, or is of another kind; its answer will be unsolicited.
    QueryUnread = 193, "query-unread";
    /// Every address of an answer was learned.
    Learned = 194, "learned";
    /// An address was learned in place of one of the same pod that had not expired.
    Displaced = 195, "displaced";
    /// No rule mentions the name.
    NotNamed = 196, "not-named";
    /// An answer without an address, or that says there is none.
    NoAddress = 197, "no-address";
    /// No query of the pod waits for it: wrong server, port, id or protocol, a second answer, or too late.
    Unsolicited = 198, "unsolicited";
    /// It answers another question than was asked.
    WrongQuestion = 199, "wrong-question";
    /// It cannot be read.
    Malformed = 200, "malformed";
    /// The server cut it; the pod asks again over TCP.
    Truncated = 201, "truncated";
    /// It came in fragments.
    Fragmented = 202, "fragmented";
    /// It is longer than is read.
    TooLong = 203, "too-long";
    /// Over TCP: a query that is not one message in one segment, several answers in one segment, or one of which a piece did
    /// not come.
    Segmented = 204, "segmented";
    /// The tables took it not, or not all of it.
    Lost = 205, "lost";
    /// A segment of an answer that came before one it follows; it is dropped, so that it comes again.
    Early = 206, "early-segment";
    /// It came by another device than its server's.
    WrongDevice = 207, "wrong-device";
    /// A query that allowed larger answers over UDP than arrive whole; it allows smaller ones now.
    Clamped = 208, "clamped";
}

/// A piece of work that is done again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A byte of a name.
    Name,
    /// A label or a record.
    Record,
    /// A way that may take an address.
    Place,
    /// A way that may take a query.
    Query,
    /// A way that may hold the query of an answer.
    Answer,
    /// A way that may hold an address a rule asks for.
    Known,
}

impl Step {
    /// Does it once; true when it is not to be done again.
    #[inline(always)]
    pub fn run<P: Packet, M: Maps>(self, packet: &P, maps: &M, scratch: &mut Scratch) -> bool {
        match self {
            Self::Name => scratch.dns.name_step(),
            Self::Place => scratch.dns.place_step(),
            Self::Query => scratch.dns.query_step(),
            Self::Answer => scratch.dns.answer_step(),
            Self::Known => scratch.dns.known_step(maps),
            Self::Record => {
                let mut found = false;
                let last = scratch.dns.record_step(&mut found);
                if found && scratch.dns.walk.learn == 1 {
                    packet.stage(maps, scratch, Stage::Learn);
                }
                last
            }
        }
    }
}

/// True for what may be a query or an answer.
#[inline(always)]
pub(crate) fn concerns(headers: &Headers, hook: Hook) -> bool {
    let port = match hook {
        Hook::FromPod => headers.destination_port,
        Hook::ToPod => headers.source_port,
    };
    port == PORT && matches!(headers.protocol, protocol::UDP | protocol::TCP)
}

/// Notes a query, or learns from an answer. The packet passes whatever this concludes, unless it is a segment that must wait
/// for another one ([`Reason::NameEarly`]).
#[inline(always)]
pub(crate) fn run<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) {
    let Some(naming) = maps.naming() else { return };
    if naming.enabled == 0 || scratch.headers.kind != Kind::Flow {
        return;
    }
    let Some(outcome) = follow(packet, maps, scratch) else {
        return;
    };
    maps.count(scratch.hook, outcome as u8, scratch.moment.length);
}

/// `None` for what has no message, or not yet.
#[inline(always)]
fn follow<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Option<Outcome> {
    let headers = &scratch.headers;
    if headers.fragment != Fragment::Whole {
        return Some(Outcome::Fragmented);
    }
    if headers.protocol == protocol::TCP {
        return segment(packet, maps, scratch);
    }
    let at = headers.transport.wrapping_add(8);
    let length = headers.end.wrapping_sub(at);
    if headers.end < at || length < SHORTEST {
        return Some(Outcome::Malformed);
    }
    if length as usize > MESSAGE {
        return Some(Outcome::TooLong);
    }
    if !packet.copy(at, length, &scratch.dns.message) {
        return Some(Outcome::Malformed);
    }
    scratch.dns.begin_name(length);
    Some(match scratch.hook {
        Hook::FromPod => {
            let outcome = query(packet, maps, scratch);
            if outcome == Outcome::Noted && clamp(packet, maps, scratch, at) {
                maps.count(scratch.hook, Outcome::Clamped as u8, scratch.moment.length);
            }
            outcome
        }
        Hook::ToPod => answer(packet, maps, scratch),
    })
}

/// The same for a segment of TCP. A query is one message in one segment; an answer may come in several.
#[inline(always)]
fn segment<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Option<Outcome> {
    let headers = &scratch.headers;
    let [offset] = packet.load::<[u8; 1]>(headers.transport.wrapping_add(12) as usize)?;
    let payload = headers.transport.wrapping_add(u32::from(offset >> 4).wrapping_mul(4));
    if headers.tcp_flags & (tcp::SYN | tcp::RST) != 0 {
        if scratch.hook == Hook::FromPod {
            stream::begin(maps, scratch);
        }
        return None;
    }
    if payload >= headers.end {
        return None;
    }
    if scratch.hook == Hook::ToPod {
        let length = match stream::take(packet, maps, scratch, payload) {
            Taken::Message(length) => length,
            Taken::Piece => return None,
            Taken::Early => {
                scratch.reason = Reason::NameEarly;
                return Some(Outcome::Early);
            }
            Taken::Not(outcome) => return Some(outcome),
        };
        if length < SHORTEST {
            return Some(Outcome::Malformed);
        }
        scratch.dns.begin_name(length);
        return Some(answer(packet, maps, scratch));
    }
    let at = payload.wrapping_add(2);
    let length = headers.end.wrapping_sub(at);
    packet.reach(at as usize);
    let stated = packet.load::<[u8; 2]>(payload as usize).map(u16::from_be_bytes);
    if headers.end < at || stated.map(u32::from) != Some(length) {
        return Some(Outcome::Segmented);
    }
    if length < SHORTEST {
        return Some(Outcome::Malformed);
    }
    if length as usize > MESSAGE {
        return Some(Outcome::TooLong);
    }
    if !packet.copy(at, length, &scratch.dns.message) {
        return Some(Outcome::Malformed);
    }
    scratch.dns.begin_name(length);
    let outcome = query(packet, maps, scratch);
    if outcome == Outcome::Noted {
        stream::expect(packet, maps, scratch);
    }
    Some(outcome)
}

/// Lowers the size of answers that a query for a name of a rule allows (EDNS, RFC 6891) to what comes in one piece; `at` is where
/// the message begins. Only where that is all the query has behind its question: a signed one must stay as it is.
#[inline(always)]
fn clamp<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &Scratch, at: u32) -> bool {
    let dns = &scratch.dns;
    let option = dns.walk.position;
    let size_at = option.wrapping_add(3);
    if dns.half(6) | dns.half(8) != 0
        || dns.half(10) != 1
        || size_at.wrapping_add(2) > dns.walk.end
        || dns.byte(option) != 0
        || dns.half(option.wrapping_add(1)) != OPT
        || dns.half(size_at) <= UDP_SIZE
        || class(maps, scratch) == 0
    {
        return false;
    }
    let half = Half {
        at: at.wrapping_add(size_at),
        old: dns.half(size_at),
        new: UDP_SIZE,
        checksum: scratch.headers.transport.wrapping_add(6),
        odd: size_at & 1 == 1,
    };
    packet.rewrite(half)
}

/// Reads the question; false when it cannot be used.
#[inline(always)]
fn question<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> bool {
    packet.repeat(maps, scratch, Step::Name, NAME_STEPS);
    scratch.dns.end_name()
}

/// Notes a query: kind QUERY, one question.
#[inline(always)]
fn query<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Outcome {
    let dns = &scratch.dns;
    if dns.byte(2) & 0xf8 != 0 || dns.half(4) != 1 || !question(packet, maps, scratch) {
        return Outcome::QueryUnread;
    }
    let headers = &scratch.headers;
    let ticket = ticket(headers.source_port, scratch.dns.half(0), headers.protocol);
    let key = BucketKey {
        ifindex: scratch.moment.ifindex,
        bucket: table::pending_bucket(ticket),
    };
    if maps.pending(&key).is_none() {
        maps.insert_pending(&key, &scratch.dns.empty_pending);
    }
    let Some(bucket) = maps.pending(&key) else {
        return Outcome::Lost;
    };
    let server = halves(&headers.destination);
    for _ in 0..ATTEMPTS {
        scratch.dns.see_pending(&bucket, ticket, server);
        packet.repeat(maps, scratch, Step::Query, PENDING_STEPS);
        let choice = &scratch.dns.choice;
        let Some(way) = bucket.ways.get(choice.at as usize & PENDING_WAYS.wrapping_sub(1)) else {
            return Outcome::Lost;
        };
        if choice.rank != u64::MAX && maps.swap(&way.word, choice.word, CLAIMED) {
            let [high, low] = &way.server;
            way.ticket.set(ticket);
            way.question.set(scratch.dns.walk.question);
            high.set(server[0]);
            low.set(server[1]);
            way.word.set(scratch.moment.now);
            return Outcome::Noted;
        }
    }
    Outcome::Lost
}

/// False when an answer claims to be from a server of this node, a pod's or the node's own, and came by another way: whoever
/// is outside could say so.
#[inline(always)]
fn comes_from_its_server<P: Packet, M: Maps>(packet: &P, maps: &M, headers: &Headers) -> bool {
    let Some(server) = maps.address(maps.zone(), &headers.source) else {
        return true;
    };
    if server.flags & address_flag::POD != 0 {
        return server.slot == u32::MAX || maps.device(packet.came_by()) == Some(server.slot);
    }
    server.flags & (address_flag::LOCAL_NODE | address_flag::SERVICE) != address_flag::LOCAL_NODE
        || packet.came_by() == 0
        || packet.has_socket()
}

/// Takes the query an answer is for out of PENDING, so that it is answered once.
#[inline(always)]
fn claim<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Result<(), Outcome> {
    let headers = &scratch.headers;
    let ticket = ticket(headers.destination_port, scratch.dns.half(0), headers.protocol);
    let key = BucketKey {
        ifindex: scratch.moment.ifindex,
        bucket: table::pending_bucket(ticket),
    };
    let Some(bucket) = maps.pending(&key) else {
        return Err(Outcome::Unsolicited);
    };
    if !comes_from_its_server(packet, maps, headers) {
        return Err(Outcome::WrongDevice);
    }
    let server = halves(&headers.source);
    scratch.dns.see_pending(&bucket, ticket, server);
    scratch.dns.choice.since = scratch.moment.now.saturating_sub(PATIENCE);
    packet.repeat(maps, scratch, Step::Answer, PENDING_STEPS);
    let choice = &scratch.dns.choice;
    let Some(way) = bucket.ways.get(choice.at as usize & PENDING_WAYS.wrapping_sub(1)) else {
        return Err(Outcome::Unsolicited);
    };
    if choice.same == 0 {
        return Err(Outcome::Unsolicited);
    }
    if way.question.get() != scratch.dns.walk.question {
        return Err(Outcome::WrongQuestion);
    }
    if maps.swap(&way.word, choice.word, 0) {
        Ok(())
    } else {
        Err(Outcome::Unsolicited)
    }
}

/// Learns from an answer. It is read twice: nothing is learned of one that cannot be read to its end.
#[inline(always)]
fn answer<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Outcome {
    let dns = &scratch.dns;
    if dns.byte(2) & 0xf8 != 0x80 || dns.half(4) != 1 || !question(packet, maps, scratch) {
        return Outcome::Malformed;
    }
    if let Err(outcome) = claim(packet, maps, scratch) {
        return outcome;
    }
    let dns = &scratch.dns;
    if dns.byte(2) & 2 != 0 {
        return Outcome::Truncated;
    }
    let (records, behind) = (dns.half(6), dns.walk.position);
    if dns.byte(3) & 15 != 0 || records == 0 {
        return Outcome::NoAddress;
    }
    let class = class(maps, scratch);
    if class == 0 {
        return Outcome::NotNamed;
    }
    scratch.dns.begin_records(behind, records, false);
    packet.repeat(maps, scratch, Step::Record, RECORD_STEPS);
    if scratch.dns.walk.done == 0 {
        return Outcome::Malformed;
    }
    if scratch.dns.walk.addresses == 0 {
        return Outcome::NoAddress;
    }
    scratch.dns.begin_records(behind, records, true);
    let walk = &mut scratch.dns.walk;
    walk.class = class;
    walk.ifindex = scratch.moment.ifindex;
    walk.boot = seconds(maps.boot_time());
    packet.repeat(maps, scratch, Step::Record, RECORD_STEPS);
    if scratch.dns.walk.lost == 1 {
        return Outcome::Lost;
    }
    Outcome::Learned
}

/// The class of the question's name; 0 = no rule mentions it.
#[inline(always)]
fn class<M: Maps>(maps: &M, scratch: &Scratch) -> u32 {
    let length = scratch.dns.walk.name;
    let Some(entry) = maps.pattern(&scratch.dns.reversed, length) else {
        return 0;
    };
    if length == entry.length {
        return entry.exact;
    }
    // The name's first label is the last one here, its length byte behind it.
    let first = scratch.dns.byte(12);
    if length.wrapping_sub(entry.length) == first.wrapping_add(1) {
        entry.child
    } else {
        entry.deeper
    }
}

/// Learns the address in hand.
#[inline(always)]
pub(crate) fn learn<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) {
    let (shortest, longest) = maps.naming().map_or((0, 0), |naming| (naming.min_ttl, naming.max_ttl));
    let walk = &scratch.dns.walk;
    let ttl = u64::from(walk.ttl.min(longest).max(shortest));
    let (now, class, address) = (walk.boot, walk.class, walk.address);
    // The second in hand is not over.
    let fresh = word_of(class, now.saturating_add(ttl).saturating_add(1));
    let key = BucketKey {
        ifindex: walk.ifindex,
        bucket: table::learned_bucket(&address),
    };
    let lost = scratch.dns.walk.lost;
    scratch.dns.walk.lost = 1;
    if maps.learned(&key).is_none() {
        maps.insert_learned(&key, &scratch.dns.empty_learned);
    }
    let Some(bucket) = maps.learned(&key) else { return };
    let address = halves(&address);
    for _ in 0..ATTEMPTS {
        scratch.dns.see_learned(&bucket, address);
        scratch.dns.choice.wanted = class;
        packet.repeat(maps, scratch, Step::Place, LEARNED_STEPS);
        let choice = &scratch.dns.choice;
        let Some(way) = bucket.ways.get(choice.at as usize & LEARNED_WAYS.wrapping_sub(1)) else {
            return;
        };
        let (word, same) = (choice.word, choice.same == 1);
        if choice.rank == u64::MAX {
            continue;
        }
        if same {
            if word >= fresh || maps.swap(&way.word, word, fresh) {
                scratch.dns.walk.lost = lost;
                return;
            }
        } else if maps.swap(&way.word, word, CLAIMED) {
            let [high, low] = &way.address;
            high.set(address[0]);
            low.set(address[1]);
            way.word.set(fresh);
            if expiry_of(word) > now {
                maps.count(scratch.hook, Outcome::Displaced as u8, 0);
            }
            scratch.dns.walk.lost = lost;
            return;
        }
    }
}

/// Until when the peer's address is known for a set of names: `CLOCK_BOOTTIME` nanoseconds. A flow that lives on it keeps it.
#[inline(always)]
pub(crate) fn known_until<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, set: u32) -> u64 {
    let question = &scratch.question;
    let fixed = maps.name(&NameKey {
        address: question.peer,
        name: set,
    });
    let fixed = fixed.unwrap_or(0);
    let (now, live) = (seconds(question.boot), question.live == 1);
    let key = BucketKey {
        ifindex: scratch.moment.ifindex,
        bucket: table::learned_bucket(&question.peer),
    };
    let address = halves(&question.peer);
    let Some(bucket) = maps.learned(&key) else {
        return fixed;
    };
    scratch.dns.see_learned(&bucket, address);
    scratch.dns.choice.wanted = set;
    packet.repeat(maps, scratch, Step::Known, LEARNED_STEPS);
    let choice = &scratch.dns.choice;
    if choice.same == 0 {
        return fixed;
    }
    let mut expiry = expiry_of(choice.word);
    let hold = now.saturating_add(LIVE_HOLD);
    if live && expiry < hold {
        if let Some(way) = bucket.ways.get(choice.at as usize & LEARNED_WAYS.wrapping_sub(1)) {
            // If another CPU wrote it meanwhile: later still, or another address. Then the flow is asked again.
            let _kept = maps.swap(&way.word, choice.word, word_of(class_of(choice.word), hold));
        }
        expiry = hold;
    }
    // Seconds are 32 bits wide, so this cannot overflow.
    let learned = expiry.wrapping_mul(1_000_000_000);
    if fixed > learned { fixed } else { learned }
}

/// Whole seconds of nanoseconds.
#[inline(always)]
const fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

/// Where the reversed name begins in its buffer.
#[inline(always)]
pub const fn reversed_start(length: u32) -> u32 {
    REVERSED_END.wrapping_sub(length) & (REVERSED_END - 1)
}

/// A name or domain as keys of PATTERNS have it; `None` when it is no name. Labels are what is between dots.
#[cfg(any(test, feature = "host"))]
pub fn reversed_name(name: &str) -> Option<std::vec::Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut wire = std::vec::Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..=63).contains(length))?;
        wire.push(length);
        wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    wire.reverse();
    (wire.len() <= table::NAME_MAX).then_some(wire)
}

/// Where LEARNED has an address, and the address as it has it.
#[cfg(any(test, feature = "host"))]
pub fn place(ifindex: u32, address: &crate::address::Address) -> (BucketKey, [u64; 2]) {
    let bucket = table::learned_bucket(address);
    (BucketKey { ifindex, bucket }, halves(address))
}

#[cfg(any(test, feature = "host"))]
impl table::PatternEntry {
    /// An entry for a domain of so many bytes, without classes.
    pub fn of_length(length: usize) -> Self {
        Self {
            length: u32::try_from(length).unwrap_or(u32::MAX),
            ..Self::default()
        }
    }
}
