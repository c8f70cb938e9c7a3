//! The rows: what is run, and what must have come of it. A row that did something else than it says measured nothing.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use bulkhead_dataplane::kernel::lab::{Lab, Program};
use bulkhead_verdict::{
    host::frame::frame,
    layout::{Counter, DenyEntry, DenyKey, Event, Flow, FlowKey, STATS, Word, event_kind},
    maps::Hook,
    packet::tcp,
    reason::Reason,
};

use crate::world::{ALLOWED_PORT, DENIED_PORT, Family, MAC, Size};

/// What programs return.
const NEXT: i32 = -1;
const DROP: i32 = 2;
/// Source port of the first packet.
const SOURCE_PORT: u16 = 20_000;
/// Length every packet has at least, as on a wire.
const SHORTEST: usize = 60;
/// Packets per run.
const REPEAT: u32 = 100_000;
/// New flows per run: each has another source port and leaves an event in the ring, so there cannot be more of them.
pub(crate) const REPEAT_NEW: u32 = 8_000;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Row {
    /// A program that does nothing.
    Empty,
    /// The source port is changed, and nothing else: what `NewAllowed` does beside judging.
    MutateOnly,
    /// The initiator's packet of a confirmed flow, at its own device.
    EstablishedForward,
    /// The responder's packet of that flow, at the same device.
    EstablishedReply,
    /// The first packet of a connection that a rule allows.
    NewAllowed,
    /// A packet that a rule denies, as the one before it.
    Denied,
}

impl Row {
    pub(crate) const ALL: [Self; 6] = [
        Self::Empty,
        Self::EstablishedForward,
        Self::EstablishedReply,
        Self::NewAllowed,
        Self::MutateOnly,
        Self::Denied,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::MutateOnly => "mutate_only",
            Self::EstablishedForward => "established_forward",
            Self::EstablishedReply => "established_reply",
            Self::NewAllowed => "new_allowed",
            Self::Denied => "denied",
        }
    }

    const fn program(self) -> Program {
        match self {
            Self::Empty => Program::Empty,
            Self::MutateOnly => Program::Mutate,
            Self::EstablishedForward | Self::Denied => Program::Hook(Hook::FromPod),
            Self::EstablishedReply => Program::Hook(Hook::ToPod),
            Self::NewAllowed => Program::NewFlow,
        }
    }

    const fn repeat(self) -> u32 {
        match self {
            Self::NewAllowed | Self::MutateOnly => REPEAT_NEW,
            _ => REPEAT,
        }
    }

    /// Where and as what each packet is counted; `None` for programs that judge nothing.
    const fn counted(self) -> Option<(Hook, Reason)> {
        match self {
            Self::Empty | Self::MutateOnly => None,
            Self::EstablishedForward => Some((Hook::FromPod, Reason::Established)),
            Self::EstablishedReply => Some((Hook::ToPod, Reason::Established)),
            Self::NewAllowed => Some((Hook::FromPod, Reason::Allowed)),
            Self::Denied => Some((Hook::FromPod, Reason::PolicyDenied)),
        }
    }

    fn packet(self, peer: &Peer) -> Vec<u8> {
        match self {
            Self::EstablishedForward => peer.sends(ALLOWED_PORT, tcp::ACK),
            Self::EstablishedReply => peer.answers(tcp::ACK),
            Self::Denied => peer.sends(DENIED_PORT, tcp::SYN),
            Self::Empty | Self::MutateOnly | Self::NewAllowed => peer.sends(ALLOWED_PORT, tcp::SYN),
        }
    }
}

/// The endpoint, and the peer it talks to.
pub(crate) struct Peer {
    pub(crate) family: Family,
    pub(crate) size: Size,
    pub(crate) ifindex: u32,
}

impl Peer {
    /// A packet of the endpoint.
    fn sends(&self, port: u16, flags: u8) -> Vec<u8> {
        let frame = frame(self.family.endpoint(), self.size.peer(self.family));
        padded(frame.source_mac(MAC).tcp(SOURCE_PORT, port, flags).build())
    }

    /// A packet of the peer.
    fn answers(&self, flags: u8) -> Vec<u8> {
        let frame = frame(self.size.peer(self.family), self.family.endpoint());
        padded(frame.tcp(ALLOWED_PORT, SOURCE_PORT, flags).build())
    }
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(SHORTEST), 0);
    frame
}

/// Everything the programs write, as of one moment.
struct Seen {
    stats: Vec<Counter>,
    confirmed: Vec<(FlowKey, Flow)>,
    tentative: Vec<(FlowKey, Flow)>,
    denials: Vec<(DenyKey, DenyEntry)>,
    events: Vec<Event>,
}

impl Seen {
    fn now(lab: &mut Lab) -> Result<Self> {
        Ok(Self {
            stats: lab.stats()?,
            confirmed: lab.confirmed()?,
            tentative: lab.tentative()?,
            denials: lab.denials()?,
            events: lab.events(),
        })
    }
}

/// Runs a row once: mean nanoseconds per packet, or what was wrong.
fn measure(lab: &mut Lab, row: Row, peer: &Peer) -> Result<u64> {
    lab.forget()?;
    prepare(lab, row, peer)?;
    let packet = row.packet(peer);
    let before = Seen::now(lab)?;
    let run = lab.run(row.program(), peer.ifindex, &packet, row.repeat())?;
    let after = Seen::now(lab)?;
    let wanted = if row == Row::Denied { DROP } else { NEXT };
    ensure!(
        run.returned == wanted,
        "the program returned {} instead of {wanted}",
        run.returned
    );
    let length = u64::try_from(packet.len())?;
    counters(row, &before, &after, length)?;
    match row {
        Row::Empty | Row::MutateOnly => untouched(&after)?,
        Row::EstablishedForward => established(row, [1, 0], &before, &after, length)?,
        Row::EstablishedReply => established(row, [0, 1], &before, &after, length)?,
        Row::NewAllowed => opened(row, peer, &after, length)?,
        Row::Denied => denied(row, &before, &after, length)?,
    }
    Ok(u64::try_from(run.each.as_nanos())?)
}

/// What has to be there before.
fn prepare(lab: &mut Lab, row: Row, peer: &Peer) -> Result<()> {
    let once = |program, packet: Vec<u8>, wanted| -> Result<()> {
        let returned = lab.run(program, peer.ifindex, &packet, 1)?.returned;
        ensure!(
            returned == wanted,
            "a packet that prepares the row: the program returned {returned} instead of {wanted}"
        );
        Ok(())
    };
    match row {
        Row::EstablishedForward | Row::EstablishedReply => {
            once(Program::Hook(Hook::FromPod), peer.sends(ALLOWED_PORT, tcp::SYN), NEXT)?;
            once(Program::Hook(Hook::ToPod), peer.answers(tcp::SYN | tcp::ACK), NEXT)?;
            once(Program::Hook(Hook::FromPod), peer.sends(ALLOWED_PORT, tcp::ACK), NEXT)
        }
        Row::Denied => once(Program::Hook(Hook::FromPod), peer.sends(DENIED_PORT, tcp::SYN), DROP),
        Row::Empty | Row::MutateOnly | Row::NewAllowed => Ok(()),
    }
}

/// The row's counter moved by every packet, and no other did.
fn counters(row: Row, before: &Seen, after: &Seen, length: u64) -> Result<()> {
    let counted = row
        .counted()
        .map(|(hook, reason)| u32::from(hook as u8) << 8 | u32::from(reason as u8));
    for (index, (before, after)) in (0..STATS).zip(before.stats.iter().zip(&after.stats)) {
        let moved = (
            after.packets.wrapping_sub(before.packets),
            after.bytes.wrapping_sub(before.bytes),
        );
        let packets = if Some(index) == counted {
            u64::from(row.repeat())
        } else {
            0
        };
        let wanted = (packets, packets * length);
        ensure!(
            moved == wanted,
            "counter {} of hook {} moved by {moved:?} (packets, bytes) instead of {wanted:?}",
            index & 0xff,
            index >> 8
        );
    }
    ensure!(
        after.stats.len() == usize::try_from(STATS)?,
        "STATS has {} counters",
        after.stats.len()
    );
    Ok(())
}

/// Nothing was written at all.
fn untouched(after: &Seen) -> Result<()> {
    let written = after.confirmed.len() + after.tentative.len() + after.denials.len() + after.events.len();
    ensure!(written == 0, "{written} records of a program that judges nothing");
    Ok(())
}

/// The one confirmed flow counted every packet in its direction, and nothing else was written.
fn established(row: Row, share: [u64; 2], before: &Seen, after: &Seen, length: u64) -> Result<()> {
    let ([(_, old)], [(_, new)]) = (before.confirmed.as_slice(), after.confirmed.as_slice()) else {
        bail!(
            "{} confirmed flows before, {} after, instead of one",
            before.confirmed.len(),
            after.confirmed.len()
        );
    };
    for ((number, share), name) in share.into_iter().enumerate().zip(["initiator", "responder"]) {
        let moved = |words: fn(&Flow) -> [u64; 2]| -> Option<u64> {
            Some(words(new).get(number)?.wrapping_sub(*words(old).get(number)?))
        };
        let moved = (moved(packets), moved(bytes));
        let count = share * u64::from(row.repeat());
        let wanted = (Some(count), Some(count * length));
        ensure!(
            moved == wanted,
            "the flow's counters of the {name} moved by {moved:?} instead of {wanted:?}"
        );
    }
    ensure!(
        after.tentative.is_empty(),
        "{} tentative flows beside the confirmed one",
        after.tentative.len()
    );
    ensure!(
        after.denials.is_empty() && after.events.is_empty(),
        "denials or events of an established flow"
    );
    Ok(())
}

fn packets(flow: &Flow) -> [u64; 2] {
    flow.packets.each_ref().map(Word::get)
}

fn bytes(flow: &Flow) -> [u64; 2] {
    flow.bytes.each_ref().map(Word::get)
}

/// Every packet opened a flow of its own, by the right rule, and told so.
fn opened(row: Row, peer: &Peer, after: &Seen, length: u64) -> Result<()> {
    let repeat = usize::try_from(row.repeat())?;
    let flows = &after.tentative;
    ensure!(
        flows.len() == repeat,
        "{} tentative flows instead of {repeat}: the kernel evicted the others",
        flows.len()
    );
    let rule = peer.size.allowing_rule();
    for (_, flow) in flows {
        let [initiator, _] = &flow.sides;
        let found = (packets(flow), bytes(flow), initiator.rule.get());
        let wanted = ([1, 0], [length, 0], rule);
        ensure!(
            found == wanted,
            "a flow has {found:?} (packets, bytes, rule) instead of {wanted:?}"
        );
    }
    ensure!(
        after.confirmed.is_empty() && after.denials.is_empty(),
        "confirmed flows or denials of new flows"
    );
    let told: BTreeSet<(u64, u16)> = after
        .events
        .iter()
        .filter(|event| (event.kind, event.reason) == (event_kind::OPEN, Reason::Allowed as u8) && event.rule == rule)
        .map(|event| (event.flow, event.source_port))
        .collect();
    ensure!(
        told.len() == repeat && after.events.len() == repeat,
        "{} events, {} of them openings by rule {rule}, instead of {repeat}",
        after.events.len(),
        told.len()
    );
    Ok(())
}

/// The one aggregated denial counted every packet, and only its first one was told.
fn denied(row: Row, before: &Seen, after: &Seen, length: u64) -> Result<()> {
    let ([(_, old)], [(key, new)]) = (before.denials.as_slice(), after.denials.as_slice()) else {
        bail!(
            "{} denials before, {} after, instead of one",
            before.denials.len(),
            after.denials.len()
        );
    };
    let moved = (
        new.count.get().wrapping_sub(old.count.get()),
        new.bytes.get().wrapping_sub(old.bytes.get()),
    );
    let count = u64::from(row.repeat());
    let wanted = (count, count * length);
    ensure!(
        moved == wanted,
        "the denial's counters moved by {moved:?} (packets, bytes) instead of {wanted:?}"
    );
    let found = (key.rule, key.reason, key.destination_port);
    let wanted = (Size::denying_rule(), Reason::PolicyDenied as u8, DENIED_PORT);
    ensure!(
        found == wanted,
        "the denial is {found:?} (rule, reason, port) instead of {wanted:?}"
    );
    let [first] = before.events.as_slice() else {
        bail!("{} events of the first denial", before.events.len())
    };
    ensure!(
        first.kind == event_kind::DENY,
        "the first denial was told as event kind {}",
        first.kind
    );
    ensure!(
        after.events.is_empty(),
        "{} events of denials that were told before",
        after.events.len()
    );
    ensure!(
        after.confirmed.is_empty() && after.tentative.is_empty(),
        "flows of denied packets"
    );
    Ok(())
}

/// As [`measure`], with the row's name in the error.
pub(crate) fn measure_named(lab: &mut Lab, row: Row, peer: &Peer, entries: u32) -> Result<u64> {
    measure(lab, row, peer).with_context(|| format!("{}, {}, {entries} entries", row.name(), peer.family.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(counters: &[(Hook, Reason, u64)]) -> Seen {
        let mut stats = vec![Counter::default(); usize::try_from(STATS).unwrap()];
        for (hook, reason, packets) in counters {
            let index = usize::from(*hook as u8) << 8 | usize::from(*reason as u8);
            stats[index] = Counter {
                packets: *packets,
                bytes: packets * 60,
            };
        }
        Seen {
            stats,
            confirmed: Vec::new(),
            tentative: Vec::new(),
            denials: Vec::new(),
            events: Vec::new(),
        }
    }

    #[test]
    fn a_row_counts_by_its_own_reason_and_no_other() {
        let repeat = u64::from(REPEAT);
        let before = seen(&[(Hook::FromPod, Reason::PolicyDenied, 1)]);
        let denied = (Hook::FromPod, Reason::PolicyDenied, repeat + 1);
        assert!(counters(Row::Denied, &before, &seen(&[denied]), 60).is_ok());
        assert!(
            counters(Row::Denied, &before, &seen(&[denied]), 61).is_err(),
            "other packets"
        );
        assert!(counters(Row::Denied, &before, &before, 60).is_err(), "not counted");
        assert!(
            counters(Row::Empty, &before, &seen(&[denied]), 60).is_err(),
            "judges nothing"
        );
        let lost = seen(&[denied, (Hook::ToPod, Reason::Allowed, 1)]);
        assert!(
            counters(Row::Denied, &before, &lost, 60).is_err(),
            "another counter moved"
        );
    }

    #[test]
    fn records_that_are_missing_are_noticed() {
        let size = Size::new(10).unwrap();
        let peer = Peer {
            family: Family::V4,
            size,
            ifindex: 1,
        };
        assert!(untouched(&seen(&[])).is_ok());
        assert!(established(Row::EstablishedForward, [1, 0], &seen(&[]), &seen(&[]), 60).is_err());
        assert!(opened(Row::NewAllowed, &peer, &seen(&[]), 60).is_err());
        assert!(denied(Row::Denied, &seen(&[]), &seen(&[]), 60).is_err());
        let told = Seen {
            events: vec![Event::default()],
            ..seen(&[])
        };
        assert!(untouched(&told).is_err());
    }

    #[test]
    fn every_size_has_the_entries_it_says() {
        for entries in [10, 1_000, 100_000] {
            assert!(Size::new(entries).is_ok());
        }
        assert!(Size::new(3).is_err() && Size::new(1_999).is_err());
    }
}
