//! Aggregated denials: the kernel counts, we report by differences.
//!
//! Each denied packet is in exactly one record. The first packet of a key is reported by its event, the others by scans of
//! the table. `reported` says how much of a key's count is already in records; an event that comes after a scan has
//! seen its entry is not reported again, and an event that was lost is made up for by the next scan.

use std::collections::HashMap;

use bulkhead_verdict::{
    layout::{DenyEntry, DenyKey},
    reason::Reason,
};

use crate::kernel::{KernelError, Maps};

/// An entry that saw no packet for this long goes, nanoseconds.
const IDLE: u64 = 30_000_000_000;

#[derive(Clone, Copy, Debug)]
struct Reported {
    count: u64,
    /// The scan that saw it last.
    scan: u64,
}

/// Denied packets to be put into one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) key: DenyKey,
    /// Packets since the last record.
    pub(crate) count: u64,
    /// `CLOCK_BOOTTIME` of the first packet ever of this entry.
    pub(crate) first: u64,
    /// `CLOCK_MONOTONIC` of the last packet.
    pub(crate) last: u64,
    pub(crate) source_identity: u32,
    pub(crate) destination_identity: u32,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// What of the table is in records.
#[derive(Debug, Default)]
pub(crate) struct Denies {
    reported: HashMap<DenyKey, Reported>,
    scan: u64,
    /// Entries of the table at the last scan.
    pub(crate) used: u64,
}

impl Denies {
    /// Takes the event of a key's first packet; false when a scan has reported that packet already.
    pub(crate) fn event(&mut self, key: DenyKey) -> bool {
        let scan = self.scan;
        let mut is_new = false;
        self.reported.entry(key).or_insert_with(|| {
            is_new = true;
            Reported { count: 1, scan }
        });
        is_new
    }

    /// An entry's count as a scan finds it: the part that no record has yet.
    fn unreported(&mut self, key: DenyKey, count: u64) -> u64 {
        let scan = self.scan;
        let reported = self.reported.entry(key).or_insert(Reported { count: 0, scan });
        reported.scan = scan;
        // Less than reported: the entry was removed and made anew since.
        let new = if count < reported.count {
            count
        } else {
            count.saturating_sub(reported.count)
        };
        reported.count = count;
        new
    }

    /// Reads the table and removes idle entries.
    pub(crate) fn scan(&mut self, maps: &Maps, now: u64) -> Result<Vec<Denied>, KernelError> {
        self.scan = self.scan.wrapping_add(1);
        let mut records = Vec::new();
        let mut idle = Vec::new();
        let mut used = 0_u64;
        maps.denies.for_each(|key, entry| {
            used += 1;
            let count = self.unreported(key, entry.count.get());
            records.extend((count > 0).then(|| Denied::new(key, &entry, count)));
            if now.saturating_sub(entry.last.get()) > IDLE {
                idle.push(key);
            }
        })?;
        self.used = used;
        for key in idle {
            // Read and removed in one step, so packets counted since the scan are not lost with it.
            let Some(entry) = maps.denies.take(&key)? else { continue };
            let count = self.unreported(key, entry.value.count.get());
            records.extend((count > 0).then(|| Denied::new(key, &entry.value, count)));
            self.reported.remove(&key);
        }
        // Keys the scan did not meet are gone from the table, or their event came during the scan: those stay once more.
        let scan = self.scan;
        self.reported
            .retain(|_, reported| scan.saturating_sub(reported.scan) <= 1);
        Ok(records)
    }
}

impl Denied {
    fn new(key: DenyKey, entry: &DenyEntry, count: u64) -> Self {
        Self {
            key,
            count,
            first: entry.first.get(),
            last: entry.last.get(),
            source_identity: entry.source_identity.get(),
            destination_identity: entry.destination_identity.get(),
            slot: entry.slot.get(),
            generation: entry.generation.get(),
        }
    }

    /// Its reason; unknown numbers are a later build's.
    pub(crate) fn reason(&self) -> Option<Reason> {
        Reason::from_number(self.key.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_packet_is_reported_once() {
        let key = DenyKey {
            rule: 9,
            ..DenyKey::default()
        };
        // Event first, then the scan: 1 + 4 of 5.
        let mut denies = Denies::default();
        assert!(denies.event(key));
        assert_eq!(denies.unreported(key, 5), 4);
        assert_eq!(denies.unreported(key, 5), 0);
        assert_eq!(denies.unreported(key, 8), 3);
        // Scan first: its event adds nothing.
        let mut denies = Denies::default();
        assert_eq!(denies.unreported(key, 2), 2);
        assert!(!denies.event(key));
        // Removed and made anew between two scans.
        assert_eq!(denies.unreported(key, 1), 1);
    }
}
