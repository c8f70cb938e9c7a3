//! From kernel memory to flow records: one thread reads the event ring every few milliseconds, the table of denials each
//! second and the flow tables every few, and writes to a bounded history. Nothing here holds up a packet.

mod denies;
pub(crate) mod history;
mod loss;
mod record;
mod share;
mod table;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bulkhead_proto::v1::{CloseReason, FlowEvent, LossPlace};
use bulkhead_verdict::{
    address::Address,
    layout::{DenyKey, Event, event_kind, guard, rule, stat},
    maps::Hook,
    reason::Reason,
};

use self::{
    denies::{Denied, Denies},
    history::{Entry, History, Loss},
    loss::{Gaps, Rising},
    record::{End, Record},
    share::Shares,
    table::{Ends, Moments, Seen},
};
use crate::{
    clock::{self, Wall},
    kernel::{EventRing, KernelError, Maps, Tuning},
    names::{DeviceNames, Names},
};

/// Time between looks at an empty ring; the ring holds 8 MiB, some 50,000 events.
const POLL: Duration = Duration::from_millis(2);
/// Time between scans of the denials.
const DENIES_EVERY: Duration = Duration::from_secs(1);
/// Time between scans of the flow tables.
const FLOWS_EVERY: Duration = Duration::from_secs(5);
/// Events taken before other work gets its turn.
const BURST: usize = 4_096;

/// What the reader tells others.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Events that were read.
    pub(crate) events: AtomicU64,
    /// Events that the full ring did not take.
    pub(crate) lost_events: AtomicU64,
    /// Denied packets no record counts.
    pub(crate) lost_denials: AtomicU64,
    /// Wall time of the last loss of each, 0 = never.
    pub(crate) lost_events_at: AtomicU64,
    pub(crate) lost_denials_at: AtomicU64,
    /// Entries of the flow tables and of the denials, at the last scan.
    pub(crate) confirmed: AtomicU64,
    pub(crate) tentative: AtomicU64,
    pub(crate) denies: AtomicU64,
}

/// What the reader shares with the rest of the agent.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) names: Arc<Names>,
    pub(crate) devices: Arc<DeviceNames>,
    pub(crate) history: Arc<History>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: Arc<AtomicBool>,
}

/// Reads until told to stop.
pub(crate) struct Reader {
    ring: EventRing,
    maps: Maps,
    tuning: Tuning,
    shared: Shared,
    shares: Shares,
    denies: Denies,
    gaps: Gaps,
    lost_denials: Rising,
    flows_scanned: u64,
}

impl Reader {
    pub(crate) fn new(ring: EventRing, maps: Maps, tuning: Tuning, shared: Shared) -> Self {
        Self {
            ring,
            maps,
            tuning,
            shared,
            shares: Shares::default(),
            denies: Denies::default(),
            gaps: Gaps::default(),
            lost_denials: Rising::default(),
            flows_scanned: clock::boot(),
        }
    }

    /// The thread's whole life.
    pub(crate) fn run(mut self) {
        let (mut denies_at, mut flows_at) = (Instant::now(), Instant::now());
        while !self.shared.stop.load(Ordering::Relaxed) {
            let busy = self.drain();
            let now = Instant::now();
            if now >= denies_at {
                denies_at = now + DENIES_EVERY;
                self.report("reading the aggregated denials", Self::scan_denies);
            }
            if now >= flows_at {
                flows_at = now + FLOWS_EVERY;
                self.report("reading the flow tables", Self::scan_flows);
                self.shared.names.sweep(clock::boot());
            }
            if !busy {
                thread::sleep(POLL);
            }
        }
    }

    fn report(&mut self, doing: &str, work: impl FnOnce(&mut Self) -> Result<(), KernelError>) {
        if let Err(error) = work(self) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "{doing}; records are late until the next try"
            );
        }
    }

    /// Takes what is in the ring; true if there may be more.
    fn drain(&mut self) -> bool {
        let mut entries = Vec::new();
        let wall = Wall::now();
        let mut taken = 0_usize;
        while taken < BURST
            && let Some(event) = self.ring.next()
        {
            taken += 1;
            let missing = self.gaps.take(event.cpu, event.sequence);
            if missing > 0 {
                entries.push(self.lost(missing, LossPlace::KernelRing, wall.of_boot(event.time)));
            }
            entries.extend(
                self.record_of_event(&event, wall)
                    .map(|record| Entry::Record(Arc::new(record))),
            );
        }
        if taken > 0 {
            let taken = u64::try_from(taken).unwrap_or(0);
            self.shared.counters.events.fetch_add(taken, Ordering::Relaxed);
            self.shared.history.push(entries);
        }
        taken >= BURST
    }

    fn lost(&self, count: u64, place: LossPlace, time: u64) -> Entry {
        let counters = &self.shared.counters;
        let (total, at) = match place {
            LossPlace::DenyTable => (&counters.lost_denials, &counters.lost_denials_at),
            _ => (&counters.lost_events, &counters.lost_events_at),
        };
        total.fetch_add(count, Ordering::Relaxed);
        at.store(time, Ordering::Relaxed);
        Entry::Loss(Loss {
            count,
            place,
            first: time,
            last: time,
        })
    }

    fn end(&self, zone: u32, address: Address, port: u16, identity: u32, time: u64) -> End {
        let names = &self.shared.names;
        let meaning = names.identity(identity);
        End {
            party: names.party(zone, &address, time),
            address,
            port,
            identity,
            labels: meaning
                .as_ref()
                .map_or_else(|| [].into(), |meaning| meaning.labels.clone()),
            identity_name: meaning.map_or_else(|| "".into(), |meaning| meaning.name),
        }
    }

    /// Text of the shadow rule and whether it drops; `None` when it is the enforced verdict.
    fn shadow(&self, rule_number: u32, shadow_rule: u32, drops: bool, shadow_drops: bool) -> Option<(Arc<str>, bool)> {
        let differs = shadow_rule != rule::NONE && (shadow_rule != rule_number || drops != shadow_drops);
        differs.then(|| (self.shared.names.rule(shadow_rule), shadow_drops))
    }

    /// Under which names the destination was learned, where that decided.
    fn names_of(&self, event: &Event) -> Vec<Arc<str>> {
        if event.guard != guard::NAME {
            return Vec::new();
        }
        // What cannot be read is not known: the record says everything else.
        let classes = self
            .maps
            .names
            .classes(event.ifindex, &event.destination)
            .unwrap_or_default();
        classes
            .into_iter()
            .filter_map(|class| self.shared.names.pattern(class))
            .collect()
    }

    fn record_of_event(&mut self, event: &Event, wall: Wall) -> Option<Record> {
        let drops = event.reason >= Reason::FIRST_DROP;
        let (kind, close) = match event.kind {
            event_kind::OPEN => (FlowEvent::Open, CloseReason::Unspecified),
            event_kind::DENY => (FlowEvent::Deny, CloseReason::Unspecified),
            event_kind::CUT => (FlowEvent::Cut, CloseReason::Revoked),
            event_kind::CLOSE => (FlowEvent::Close, CloseReason::Replaced),
            _ => return None,
        };
        if kind == FlowEvent::Deny && !self.denies.event(deny_key(event)) {
            return None;
        }
        let zone = u32::from(event.zone);
        let time = wall.of_boot(event.time);
        let is_deny = kind == FlowEvent::Deny;
        Some(Record {
            event: kind,
            time,
            source: self.end(zone, event.source, event.source_port, event.source_identity, event.time),
            destination: self.end(
                zone,
                event.destination,
                event.destination_port,
                event.destination_identity,
                event.time,
            ),
            protocol: event.protocol,
            reason: event.reason,
            hook: event.hook,
            guard: event.guard,
            zone: event.zone,
            tcp_flags: event.tcp_flags,
            reply: event.reply == 1,
            rule: self.shared.names.rule(event.rule),
            shadow: self.shadow(event.rule, event.shadow_rule, drops, event.shadow_drop == 1),
            device: self.shared.devices.get(event.ifindex),
            ifindex: event.ifindex,
            slot: event.slot,
            generation: event.generation,
            cpu: event.cpu,
            sequence: event.sequence,
            flow: event.flow,
            count: 1,
            first: if is_deny { time } else { 0 },
            last: if is_deny { time } else { 0 },
            counters: (kind == FlowEvent::Close).then_some(event.counters),
            close,
            names: self.names_of(event),
        })
    }

    fn scan_denies(&mut self) -> Result<(), KernelError> {
        let wall = Wall::now();
        let denied = self.denies.scan(&self.maps, clock::monotonic())?;
        let mut entries: Vec<Entry> = denied
            .iter()
            .map(|denied| Entry::Record(Arc::new(self.record_of_denied(denied, wall))))
            .collect();
        let sums = self.maps.stats.sums()?;
        let lost = |hook: Hook| {
            let index = usize::from(hook as u8) << 8 | usize::from(stat::LOST_DENIAL);
            sums.get(index).map_or(0, |counter| counter.packets)
        };
        let lost = self
            .lost_denials
            .take(lost(Hook::FromPod).wrapping_add(lost(Hook::ToPod)));
        if lost > 0 {
            entries.push(self.lost(lost, LossPlace::DenyTable, clock::wall()));
        }
        self.shared.counters.denies.store(self.denies.used, Ordering::Relaxed);
        if !entries.is_empty() {
            self.shared.history.push(entries);
        }
        Ok(())
    }

    fn record_of_denied(&self, denied: &Denied, wall: Wall) -> Record {
        let key = &denied.key;
        let zone = key.hook_zone >> 8 & 0xff;
        let last = wall.of_monotonic(denied.last);
        let at = clock::boot();
        Record {
            event: FlowEvent::Deny,
            time: last,
            source: self.end(zone, key.source, 0, denied.source_identity, at),
            destination: self.end(
                zone,
                key.destination,
                key.destination_port,
                denied.destination_identity,
                at,
            ),
            protocol: key.protocol,
            reason: denied.reason().map_or(key.reason, |reason| reason as u8),
            hook: u8::try_from(key.hook_zone & 0xff).unwrap_or(0),
            guard: guard::NONE,
            zone: u8::try_from(zone).unwrap_or(0),
            tcp_flags: 0,
            reply: false,
            rule: self.shared.names.rule(key.rule),
            shadow: None,
            device: self.shared.devices.get(key.ifindex),
            ifindex: key.ifindex,
            slot: denied.slot,
            generation: denied.generation,
            cpu: 0,
            sequence: 0,
            flow: 0,
            count: denied.count,
            first: wall.of_boot(denied.first),
            last,
            counters: None,
            close: CloseReason::Unspecified,
            names: Vec::new(),
        }
    }

    fn scan_flows(&mut self) -> Result<(), KernelError> {
        let wall = Wall::now();
        let boot = clock::boot();
        let moments = Moments {
            now: clock::monotonic(),
            boot,
            boot_before: self.flows_scanned,
        };
        self.flows_scanned = boot;
        let mut devices = BTreeSet::new();
        self.maps.devices.for_each(|ifindex, _| {
            devices.insert(ifindex);
        })?;
        let ends = Ends {
            tuning: self.tuning,
            has_device: &|ifindex| devices.contains(&ifindex),
        };
        let scan = table::scan(&self.maps, moments, ends)?;
        self.shares.publish(&self.maps, &self.shared.names, &scan)?;
        let counters = &self.shared.counters;
        counters.confirmed.store(u64::from(scan.confirmed), Ordering::Relaxed);
        counters.tentative.store(u64::from(scan.tentative), Ordering::Relaxed);
        if !scan.records.is_empty() {
            let records = scan
                .records
                .iter()
                .map(|seen| Entry::Record(Arc::new(self.record_of_flow(seen, wall))));
            self.shared.history.push(records.collect::<Vec<_>>());
        }
        Ok(())
    }

    fn record_of_flow(&self, seen: &Seen, wall: Wall) -> Record {
        let key = &seen.key;
        let zone = u32::from(key.zone);
        let (low, high) = ((key.low, key.low_port), (key.high, key.high_port));
        let (initiator, responder) = if seen.initiator_is_low {
            (low, high)
        } else {
            (high, low)
        };
        let [source_identity, destination_identity] = seen.identities;
        let last = wall.of_monotonic(seen.last);
        // Names as of the flow's last packet, on the clock bindings are remembered by.
        let at = clock::boot().saturating_sub(clock::wall().saturating_sub(last));
        Record {
            event: seen.event,
            time: if seen.event == FlowEvent::Close {
                last
            } else {
                clock::wall()
            },
            source: self.end(zone, initiator.0, u16::from_be(initiator.1), source_identity, at),
            destination: self.end(zone, responder.0, u16::from_be(responder.1), destination_identity, at),
            protocol: key.protocol,
            reason: Reason::Established as u8,
            hook: seen.hook as u8,
            guard: guard::NONE,
            zone: key.zone,
            tcp_flags: seen.tcp_flags,
            reply: false,
            rule: self.shared.names.rule(seen.rule),
            shadow: self.shadow(seen.rule, seen.shadow_rule, false, seen.shadow_drop),
            device: self.shared.devices.get(seen.ifindex),
            ifindex: seen.ifindex,
            slot: seen.slot,
            generation: seen.generation,
            cpu: 0,
            sequence: 0,
            flow: seen.id,
            count: 1,
            first: wall.of_boot(seen.first),
            last,
            counters: Some(seen.counters),
            close: seen.close,
            names: Vec::new(),
        }
    }
}

/// The key of the table of denials that an event is the first packet of.
fn deny_key(event: &Event) -> DenyKey {
    DenyKey {
        source: event.source,
        destination: event.destination,
        destination_port: event.destination_port,
        protocol: event.protocol,
        reason: event.reason,
        hook_zone: u32::from(event.hook) | u32::from(event.zone) << 8,
        rule: event.rule,
        ifindex: event.ifindex,
    }
}
