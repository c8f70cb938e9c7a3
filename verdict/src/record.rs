//! What the one exit writes down: counters, events, aggregated denials.

use crate::{
    address::Address,
    layout::{DenyEntry, DenyKey, Flow, FlowKey, FragmentEntry, FragmentKey, Word, event_kind, guard, put, rule, stat},
    maps::{Hook, Maps, Packet},
    packet::{Fragment, Headers, Kind},
    reason::Reason,
};

/// No event.
pub const NO_EVENT: u8 = 0;

/// What a verdict leaves behind, besides the packet's own headers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Record {
    /// Flow id.
    pub flow: u64,
    /// Rule that decided.
    pub rule: u32,
    /// Rule that would have decided in shadow.
    pub shadow_rule: u32,
    /// Identity of the initiator (or sender).
    pub source_identity: u32,
    /// Identity of the responder (or destination).
    pub destination_identity: u32,
    /// Endpoint generation.
    pub generation: u32,
    /// Endpoint slot.
    pub slot: u32,
    /// [`event_kind`], or [`NO_EVENT`].
    pub event: u8,
    /// Guard of the deciding alternative.
    pub guard: u8,
    /// 1 = the packet goes against the flow's direction.
    pub reply: u8,
    /// 1 = the shadow verdict is to drop.
    pub shadow_drop: u8,
    /// Zero.
    pub padding: [u8; 4],
}

impl Record {
    /// Nothing known yet.
    pub const EMPTY: Self = Self {
        flow: 0,
        rule: rule::NONE,
        shadow_rule: rule::NONE,
        source_identity: 0,
        destination_identity: 0,
        generation: 0,
        slot: u32::MAX,
        event: NO_EVENT,
        guard: guard::NONE,
        reply: 0,
        shadow_drop: 0,
        padding: [0; 4],
    };
}

/// The ends of a packet as records have them: initiator first, ports in host byte order.
struct Ends<'a> {
    source: &'a Address,
    destination: &'a Address,
    source_port: u16,
    destination_port: u16,
}

/// Turns a reply's headers around.
#[inline(always)]
const fn ends<'a>(headers: &'a Headers, record: &Record) -> Ends<'a> {
    if record.reply == 1 {
        Ends {
            source: &headers.destination,
            destination: &headers.source,
            source_port: u16::from_be(headers.destination_port),
            destination_port: u16::from_be(headers.source_port),
        }
    } else {
        Ends {
            source: &headers.source,
            destination: &headers.destination,
            source_port: u16::from_be(headers.source_port),
            destination_port: u16::from_be(headers.destination_port),
        }
    }
}

/// Writes the event a verdict asks for.
#[inline(always)]
pub fn event<P: Packet, M: Maps>(packet: &P, maps: &M, headers: &Headers, record: &Record, outcome: Outcome) {
    let length = packet.length();
    let ifindex = packet.ifindex();
    let zone = (maps.zone() & 0xff) as u8;
    let time = maps.boot_time();
    maps.emit(outcome.hook, |event| {
        let ends = ends(headers, record);
        event.time = time;
        event.source = *ends.source;
        event.destination = *ends.destination;
        event.flow = record.flow;
        event.rule = record.rule;
        event.shadow_rule = record.shadow_rule;
        event.source_identity = record.source_identity;
        event.destination_identity = record.destination_identity;
        event.generation = record.generation;
        event.ifindex = ifindex;
        event.slot = record.slot;
        event.length = length;
        event.source_port = ends.source_port;
        event.destination_port = ends.destination_port;
        event.protocol = headers.protocol;
        event.kind = record.event;
        event.hook = outcome.hook as u8;
        event.reason = outcome.reason as u8;
        event.shadow_drop = record.shadow_drop;
        event.zone = zone;
        event.tcp_flags = headers.tcp_flags;
        event.reply = record.reply;
        event.guard = record.guard;
        blank(&mut event.padding);
        blank(&mut event.counters);
    });
}

/// Zeros, one by one (see [`put`]).
#[inline(always)]
fn blank<T: Copy + Default, const COUNT: usize>(places: &mut [T; COUNT]) {
    for place in places {
        put(place, T::default());
    }
}

/// A verdict and where it was given.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// Where.
    pub hook: Hook,
    /// Why.
    pub reason: Reason,
}

/// Tells that a flow ended because its tuple is used again. The flow is not the packet's, so this event alone does not
/// wait for the exit: the old counters are gone by then.
#[inline(always)]
pub fn close<P: Packet, M: Maps>(packet: &P, maps: &M, key: &FlowKey, flow: &Flow, hook: Hook) {
    let (length, ifindex, time) = (packet.length(), packet.ifindex(), maps.boot_time());
    maps.emit(hook, |event| {
        let low_first = flow.initiator_is_low.get() == 1;
        let [initiator, responder] = &flow.sides;
        let side = if initiator.ifindex.get() == ifindex {
            initiator
        } else {
            responder
        };
        event.time = time;
        event.source = if low_first { key.low } else { key.high };
        event.destination = if low_first { key.high } else { key.low };
        event.source_port = u16::from_be(if low_first { key.low_port } else { key.high_port });
        event.destination_port = u16::from_be(if low_first { key.high_port } else { key.low_port });
        event.flow = flow.id.get();
        event.rule = side.rule.get();
        event.shadow_rule = side.shadow_rule.get();
        event.source_identity = flow.source_identity.get();
        event.destination_identity = flow.destination_identity.get();
        event.generation = (side.approval.get() & 0xffff_ffff) as u32;
        event.ifindex = ifindex;
        event.slot = side.slot.get();
        event.length = length;
        event.protocol = key.protocol;
        event.kind = event_kind::CLOSE;
        event.hook = hook as u8;
        event.reason = Reason::Established as u8;
        event.shadow_drop = u8::from(flow.shadow_drop.get() != 0);
        event.zone = key.zone;
        event.tcp_flags = flow.initiator_flags.get() | flow.responder_flags.get();
        event.reply = 0;
        event.guard = guard::NONE;
        blank(&mut event.padding);
        let ([sent, received], [sent_bytes, received_bytes]) = (&flow.packets, &flow.bytes);
        event.counters = [sent.get(), received.get(), sent_bytes.get(), received_bytes.get()];
    });
}

/// Counts a denial in its record, or begins one; true when it began one. `now` is the coarse clock as the decision read it.
#[inline(always)]
pub fn deny<P: Packet, M: Maps>(
    packet: &P,
    maps: &M,
    headers: &Headers,
    record: &Record,
    outcome: Outcome,
    now: u64,
) -> bool {
    let ends = ends(headers, record);
    let key = DenyKey {
        source: *ends.source,
        destination: *ends.destination,
        destination_port: ends.destination_port,
        protocol: headers.protocol,
        reason: outcome.reason as u8,
        hook_zone: u32::from(outcome.hook as u8) | (maps.zone() & 0xff) << 8,
        rule: record.rule,
        ifindex: packet.ifindex(),
    };
    let length = packet.length();
    if let Some(entry) = maps.denied(&key) {
        maps.add(&entry.count, 1);
        maps.add(&entry.bytes, u64::from(length));
        entry.last.set(now);
        entry.source_identity.set(record.source_identity);
        entry.destination_identity.set(record.destination_identity);
        entry.slot.set(record.slot);
        entry.generation.set(record.generation);
        return false;
    }
    let entry = DenyEntry {
        count: Word::new(1),
        bytes: Word::new(u64::from(length)),
        first: Word::new(maps.boot_time()),
        last: Word::new(now),
        source_identity: Word::new(record.source_identity),
        destination_identity: Word::new(record.destination_identity),
        slot: Word::new(record.slot),
        generation: Word::new(record.generation),
    };
    let added = maps.insert_denied(&key, &entry);
    if !added {
        maps.count(outcome.hook, stat::LOST_DENIAL, length);
    }
    added
}

/// The key under which all fragments of a packet's datagram are known.
#[inline(always)]
pub fn fragment_key<P: Packet, M: Maps>(packet: &P, maps: &M, headers: &Headers, hook: Hook) -> FragmentKey {
    FragmentKey {
        source: headers.source,
        destination: headers.destination,
        ifindex: packet.ifindex(),
        id: headers.fragment_id,
        protocol: u32::from(headers.fragment_protocol),
        zone_hook: maps.zone() << 8 | u32::from(hook as u8),
    }
}

/// Remembers what became of a first fragment, dropped ones too: the identification may have been used before.
#[inline(always)]
pub fn first_fragment<P: Packet, M: Maps>(packet: &P, maps: &M, headers: &Headers, outcome: Outcome) {
    let entry = FragmentEntry {
        source_port: headers.source_port,
        destination_port: headers.destination_port,
        passed: u32::from(outcome.reason.passes()),
        seen: maps.now(),
    };
    maps.insert_fragment(&fragment_key(packet, maps, headers, outcome.hook), &entry);
}

/// True for headers whose verdict later fragments follow.
#[inline(always)]
pub fn is_first_fragment(headers: &Headers) -> bool {
    headers.fragment == Fragment::First && matches!(headers.kind, Kind::Flow | Kind::IcmpError)
}
