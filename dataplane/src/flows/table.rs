//! The flow tables: which flows are over, and which are long enough for an interval record.

use std::collections::BTreeMap;

use bulkhead_proto::v1::{CloseReason, FlowEvent};
use bulkhead_verdict::{
    flow::{closed, expired},
    layout::{Flow, FlowKey, Side},
    maps::Hook,
    packet::tcp,
    quota,
};

use crate::{
    kernel::{KernelError, Maps, Table, Tuning},
    sync::NO_CPU,
};

/// A closed TCP connection stays this long after its last packet, so that a repeated FIN is not a stranger's, nanoseconds.
const LINGER: u64 = 10_000_000_000;
/// Time between interval records of a flow, nanoseconds.
pub(crate) const INTERVAL: u64 = 60_000_000_000;

/// What a record says of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) event: FlowEvent,
    pub(crate) close: CloseReason,
    pub(crate) key: FlowKey,
    pub(crate) initiator_is_low: bool,
    pub(crate) hook: Hook,
    pub(crate) ifindex: u32,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) rule: u32,
    pub(crate) shadow_rule: u32,
    pub(crate) shadow_drop: bool,
    pub(crate) identities: [u32; 2],
    pub(crate) tcp_flags: u8,
    /// `CLOCK_BOOTTIME`.
    pub(crate) first: u64,
    /// `CLOCK_MONOTONIC`.
    pub(crate) last: u64,
    pub(crate) counters: [u64; 4],
    pub(crate) id: u64,
}

/// One look at both tables.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) records: Vec<Seen>,
    pub(crate) confirmed: u32,
    pub(crate) tentative: u32,
    /// Flows in CONFIRMED by the slot they count for.
    pub(crate) shares: BTreeMap<u32, u32>,
}

/// Moments of a scan and of the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    /// `CLOCK_MONOTONIC`.
    pub(crate) now: u64,
    /// `CLOCK_BOOTTIME`.
    pub(crate) boot: u64,
    /// `CLOCK_BOOTTIME` of the scan before.
    pub(crate) boot_before: u64,
}

/// What decides that a flow is over.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) tuning: Tuning,
    /// Whether a device is still an endpoint's.
    pub(crate) has_device: &'a dyn Fn(u32) -> bool,
}

/// Reads both tables, takes out flows that are over and reports them, and long flows once per interval; counts what each endpoint has.
pub(crate) fn scan(maps: &Maps, moments: Moments, ends: Ends<'_>) -> Result<Scan, KernelError> {
    let mut scan = Scan::default();
    scan.confirmed = scan_one(&maps.confirmed, true, moments, ends, &mut scan)?;
    scan.tentative = scan_one(&maps.tentative, false, moments, ends, &mut scan)?;
    Ok(scan)
}

fn scan_one(
    table: &Table<FlowKey, Flow>,
    confirmed: bool,
    moments: Moments,
    ends: Ends<'_>,
    scan: &mut Scan,
) -> Result<u32, KernelError> {
    let mut used = 0_u32;
    let mut over = Vec::new();
    table.for_each(|key, flow| {
        used = used.saturating_add(1);
        if let Some(close) = ended(&key, &flow, confirmed, moments.now, ends) {
            over.push((key, flow.id.get(), close));
            return;
        }
        if confirmed {
            *scan.shares.entry(quota::charged(&flow)).or_default() += 1;
        }
        if !silent(&flow) && interval_passed(flow.first_seen.get(), moments) {
            scan.records
                .push(Seen::new(FlowEvent::Interval, CloseReason::Unspecified, key, &flow));
        }
    })?;
    for (key, id, close) in over {
        // Taken out and read in one step: the counters are the last ones.
        let Some(taken) = table.take(&key)? else { continue };
        let flow = &taken.value;
        if flow.id.get() != id || ended(&key, flow, confirmed, moments.now, ends).is_none() {
            // The tuple was used again since we looked. Its approval is in the element and valid as before.
            table.put_back(&key, &taken)?;
            continue;
        }
        if !silent(flow) {
            scan.records.push(Seen::new(FlowEvent::Close, close, key, flow));
        }
        used = used.saturating_sub(1);
    }
    Ok(used)
}

/// True of a connection that was open before its judge came and has not said anything since: nobody was told that it opened.
fn silent(flow: &Flow) -> bool {
    flow.cpu.get() == NO_CPU && flow.packets.iter().all(|packets| packets.get() == 0)
}

/// Why a flow is over; `None` while it lives.
fn ended(key: &FlowKey, flow: &Flow, confirmed: bool, now: u64, ends: Ends<'_>) -> Option<CloseReason> {
    let idle = now.saturating_sub(flow.last_seen.get());
    let was_closed = closed(flow);
    if was_closed && idle > LINGER || expired(flow, key.protocol, confirmed, now, |class| ends.tuning.idle(class)) {
        let reset = (flow.initiator_flags.get() | flow.responder_flags.get()) & tcp::RST != 0;
        return Some(match (was_closed, reset) {
            (false, _) => CloseReason::Idle,
            (true, true) => CloseReason::Reset,
            (true, false) => CloseReason::Fin,
        });
    }
    let gone = |side: &Side| side.ifindex.get() == 0 || !(ends.has_device)(side.ifindex.get());
    flow.sides.iter().all(gone).then_some(CloseReason::EndpointGone)
}

/// True once per interval of a flow's life: when an interval's end lies between the last scan and this one.
fn interval_passed(first_seen: u64, moments: Moments) -> bool {
    let intervals = |time: u64| time.saturating_sub(first_seen) / INTERVAL;
    intervals(moments.boot) > intervals(moments.boot_before.max(first_seen))
}

impl Seen {
    fn new(event: FlowEvent, close: CloseReason, key: FlowKey, flow: &Flow) -> Self {
        let [initiator, responder] = &flow.sides;
        let local_initiator = initiator.ifindex.get() != 0;
        let side = if local_initiator { initiator } else { responder };
        let ([sent, received], [sent_bytes, received_bytes]) = (&flow.packets, &flow.bytes);
        Self {
            event,
            close,
            key,
            initiator_is_low: flow.initiator_is_low.get() == 1,
            hook: if local_initiator { Hook::FromPod } else { Hook::ToPod },
            ifindex: side.ifindex.get(),
            slot: side.slot.get(),
            generation: u32::try_from(side.approval.get() & 0xffff_ffff).unwrap_or(0),
            rule: side.rule.get(),
            shadow_rule: side.shadow_rule.get(),
            shadow_drop: flow.shadow_drop.get() & if local_initiator { 1 } else { 2 } != 0,
            identities: [flow.source_identity.get(), flow.destination_identity.get()],
            tcp_flags: flow.initiator_flags.get() | flow.responder_flags.get(),
            first: flow.first_seen.get(),
            last: flow.last_seen.get(),
            counters: [sent.get(), received.get(), sent_bytes.get(), received_bytes.get()],
            id: flow.id.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn flow(flags: [u8; 2], last_seen: u64) -> Flow {
        let flow = Flow::default();
        flow.initiator_flags.set(flags[0]);
        flow.responder_flags.set(flags[1]);
        flow.last_seen.set(last_seen);
        flow.sides[0].ifindex.set(7);
        flow
    }

    #[test]
    fn flows_end_by_fin_reset_idleness_or_with_their_endpoint() {
        let key = FlowKey {
            protocol: 6,
            ..FlowKey::default()
        };
        let check = |flow: Flow, now: u64, device: u32| {
            let ends = Ends {
                tuning: Tuning::default(),
                has_device: &|found| found == device,
            };
            ended(&key, &flow, true, now * SECOND, ends)
        };
        assert_eq!(check(flow([tcp::FIN, 0], 0), 11, 7), None, "half-closed lives on");
        assert_eq!(check(flow([tcp::FIN, tcp::FIN], 0), 9, 7), None, "lingers");
        assert_eq!(check(flow([tcp::FIN, tcp::FIN], 0), 11, 7), Some(CloseReason::Fin));
        assert_eq!(check(flow([tcp::RST, 0], 0), 11, 7), Some(CloseReason::Reset));
        assert_eq!(check(flow([0, 0], 0), 7_439, 7), None);
        assert_eq!(check(flow([0, 0], 0), 7_441, 7), Some(CloseReason::Idle));
        assert_eq!(check(flow([0, 0], 0), 1, 8), Some(CloseReason::EndpointGone));
    }

    #[test]
    fn one_interval_record_per_interval() {
        let at = |boot_before, boot| {
            interval_passed(
                10 * SECOND,
                Moments {
                    now: 0,
                    boot: boot * SECOND,
                    boot_before: boot_before * SECOND,
                },
            )
        };
        assert!(!at(0, 69));
        assert!(at(69, 70));
        assert!(!at(70, 75));
        assert!(at(125, 131));
    }
}
