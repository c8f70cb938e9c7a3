//! The last records, in memory, for whoever asks: one bounded ring that readers walk at their own pace. What a reader did
//! not get to in time is counted and told to that reader; nobody is waited for.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bulkhead_proto::v1::LossPlace;
use tokio::sync::watch;

use super::record::Record;

/// Entries kept.
pub(crate) const LIMIT: usize = 65_536;

/// What went missing before it became a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) count: u64,
    pub(crate) place: LossPlace,
    /// Wall nanoseconds.
    pub(crate) first: u64,
    /// Wall nanoseconds.
    pub(crate) last: u64,
}

/// An entry: a record, or the place where some are missing.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Record(Arc<Record>),
    Loss(Loss),
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    /// Position of the first entry: how many were dropped before it.
    first: u64,
}

/// The ring.
#[derive(Debug)]
pub(crate) struct History {
    ring: Mutex<Ring>,
    limit: usize,
    /// Position behind the newest entry.
    end: watch::Sender<u64>,
}

/// Entries from a position on.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) entries: Vec<Entry>,
    /// Entries that were dropped between the position asked for and the first given.
    pub(crate) missed: u64,
    /// Position behind the last one given.
    pub(crate) next: u64,
}

impl History {
    /// An empty one.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            ring: Mutex::default(),
            limit,
            end: watch::Sender::new(0),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A panic while the lock was held left whole entries: nothing in here is half-way at any time.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds entries in order.
    pub(crate) fn push(&self, entries: impl IntoIterator<Item = Entry>) {
        let mut ring = self.ring();
        for entry in entries {
            if ring.entries.len() >= self.limit {
                ring.entries.pop_front();
                ring.first = ring.first.wrapping_add(1);
            }
            ring.entries.push_back(entry);
        }
        let end = ring.end();
        drop(ring);
        self.end.send_if_modified(|old| std::mem::replace(old, end) != end);
    }

    /// The oldest entry's position and the one behind the newest.
    pub(crate) fn range(&self) -> (u64, u64) {
        let ring = self.ring();
        (ring.first, ring.end())
    }

    /// At most `count` entries from `position` on.
    pub(crate) fn read(&self, position: u64, count: usize) -> Batch {
        let ring = self.ring();
        let missed = ring.first.saturating_sub(position);
        let start = usize::try_from(position.saturating_sub(ring.first)).unwrap_or(usize::MAX);
        let entries: Vec<Entry> = ring.entries.iter().skip(start).take(count).cloned().collect();
        let given = u64::try_from(entries.len()).unwrap_or(0);
        Batch {
            missed,
            next: position.max(ring.first).wrapping_add(given),
            entries,
        }
    }

    /// Tells when there is something behind a position.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.end.subscribe()
    }
}

impl Ring {
    fn end(&self) -> u64 {
        self.first.wrapping_add(u64::try_from(self.entries.len()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(counts: std::ops::Range<u64>) -> impl Iterator<Item = Entry> {
        counts.map(|count| {
            Entry::Loss(Loss {
                count,
                place: LossPlace::KernelRing,
                first: 0,
                last: 0,
            })
        })
    }

    #[test]
    fn a_slow_reader_is_told_how_much_it_missed() {
        let history = History::new(10);
        history.push(losses(0..4));
        let batch = history.read(0, 3);
        assert_eq!((batch.entries.len(), batch.missed, batch.next), (3, 0, 3));
        history.push(losses(4..25));
        assert_eq!(history.range(), (15, 25));
        let batch = history.read(batch.next, 100);
        assert_eq!((batch.entries.len(), batch.missed, batch.next), (10, 12, 25));
        assert!(matches!(
            batch.entries.first(),
            Some(Entry::Loss(Loss { count: 15, .. }))
        ));
        assert_eq!(history.read(25, 1).entries.len(), 0);
    }

    #[test]
    fn following_wakes() {
        let history = History::new(10);
        let mut watch = history.watch();
        assert!(!watch.has_changed().unwrap());
        history.push(losses(0..1));
        assert!(watch.has_changed().unwrap());
        assert_eq!(*watch.borrow_and_update(), 1);
    }
}
