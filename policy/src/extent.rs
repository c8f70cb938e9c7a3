//! Hands out extents (runs of indices) of an array map, and takes them back.
//!
//! The allocator knows no limit: it counts on past the end of the map, so that a plan that does not fit can be told how
//! much it would have needed. The caller compares [`Extents::end`] with the map's size before it writes anything.

use crate::plan::tracked::Tracked;

/// Free and used indices of one array. Best fit; neighbours are joined when they come back.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    /// Free runs below `end`: start → length.
    free: Tracked<u32, u32>,
    /// The same, by (length, start), for the best fit.
    by_length: Tracked<(u32, u32), ()>,
    /// Everything from here on is free; key 0 holds the value, so that it can be taken back too.
    end: Tracked<u8, u32>,
}

impl Extents {
    /// An array of which the indices below `start` are never used, and of which the given extents are in use.
    /// Extents may overlap (a broken dump): what any of them covers is in use.
    pub(crate) fn new(start: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut used: Vec<_> = used.into_iter().filter(|(_, length)| *length != 0).collect();
        used.sort_unstable();
        let mut extents = Self::default();
        let mut end = start;
        for (first, length) in used {
            if first > end {
                extents.add_free(end, first.saturating_sub(end));
            }
            end = end.max(first.saturating_add(length));
        }
        extents.end.set(0, Some(end));
        extents.commit();
        extents
    }

    /// The first index that nothing at or behind it uses: how big the array must be.
    pub(crate) fn end(&self) -> u32 {
        self.end.count(&0)
    }

    /// Indices in use below the end, `start` included.
    #[cfg(test)]
    pub(crate) fn used(&self) -> u32 {
        self.end().saturating_sub(self.free.values().sum())
    }

    /// Takes `length` consecutive indices (at least 1) and gives back the first.
    pub(crate) fn allocate(&mut self, length: u32) -> u32 {
        let length = length.max(1);
        let fit = self
            .by_length
            .range((length, 0)..)
            .next()
            .map(|((length, start), ())| (*start, *length));
        let Some((start, available)) = fit else {
            return self.grow(length);
        };
        self.remove_free(start, available);
        if available > length {
            self.add_free(start.saturating_add(length), available.saturating_sub(length));
        }
        start
    }

    fn grow(&mut self, length: u32) -> u32 {
        // A free run that touches the end is the beginning of what is needed.
        let mut start = self.end();
        if let Some((first, available)) = self.free.last_key_value().map(|(first, length)| (*first, *length))
            && first.saturating_add(available) == start
        {
            self.remove_free(first, available);
            start = first;
        }
        self.end.set(0, Some(start.saturating_add(length)));
        start
    }

    /// Gives indices back that [`Self::allocate`] handed out (or `new` was told of).
    pub(crate) fn release(&mut self, start: u32, length: u32) {
        if length == 0 {
            return;
        }
        let (mut first, mut past) = (start, start.saturating_add(length));
        if let Some((before, available)) = self.free.range(..start).next_back().map(|(at, length)| (*at, *length))
            && before.saturating_add(available) == start
        {
            self.remove_free(before, available);
            first = before;
        }
        if let Some(available) = self.free.get(&past).copied() {
            self.remove_free(past, available);
            past = past.saturating_add(available);
        }
        if past == self.end() {
            self.end.set(0, Some(first));
        } else {
            self.add_free(first, past.saturating_sub(first));
        }
    }

    fn add_free(&mut self, start: u32, length: u32) {
        self.free.set(start, Some(length));
        self.by_length.set((length, start), Some(()));
    }

    fn remove_free(&mut self, start: u32, length: u32) {
        self.free.set(start, None);
        self.by_length.set((length, start), None);
    }

    /// Makes what was done since the last commit final.
    pub(crate) fn commit(&mut self) {
        self.free.commit();
        self.by_length.commit();
        self.end.commit();
    }

    /// Takes back what was done since the last commit.
    pub(crate) fn rollback(&mut self) {
        self.free.rollback();
        self.by_length.rollback();
        self.end.rollback();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn best_fit_and_joining() {
        let mut extents = Extents::new(1, [(3, 2), (8, 1)]);
        assert_eq!(extents.end(), 9);
        assert_eq!(extents.allocate(2), 1, "1..3 fits exactly");
        assert_eq!(extents.allocate(4), 9, "5..8 is too small");
        extents.release(8, 1);
        assert_eq!(extents.allocate(4), 5, "5..9 was joined");
        extents.release(9, 4);
        assert_eq!(extents.end(), 9, "the end shrinks");
    }

    #[test]
    fn a_free_tail_is_used_before_the_end_moves() {
        let mut extents = Extents::new(0, [(0, 2), (2, 2)]);
        extents.release(0, 2);
        assert_eq!(extents.allocate(3), 4);
        extents.release(2, 2);
        assert_eq!(extents.allocate(4), 0);
    }

    #[test]
    fn rollback_forgets_allocations() {
        let mut extents = Extents::new(1, []);
        let kept = extents.allocate(5);
        extents.commit();
        extents.allocate(3);
        extents.release(kept, 5);
        extents.rollback();
        assert_eq!((extents.end(), extents.allocate(1)), (6, 6));
    }

    proptest! {
        #[test]
        fn what_is_handed_out_is_disjoint_and_comes_back(steps in prop::collection::vec((any::<bool>(), 1_u32..9), 1..80)) {
            let mut extents = Extents::new(1, []);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (take, length) in steps {
                if take || held.is_empty() {
                    held.push((extents.allocate(length), length));
                } else {
                    let (start, length) = held.swap_remove(usize::try_from(length).unwrap() % held.len());
                    extents.release(start, length);
                }
                let indices: Vec<u32> = held.iter().flat_map(|(start, length)| *start..start + length).collect();
                let distinct: BTreeSet<_> = indices.iter().copied().collect();
                prop_assert_eq!(distinct.len(), indices.len());
                prop_assert!(!distinct.contains(&0));
                prop_assert_eq!(usize::try_from(extents.used()).unwrap(), indices.len() + 1);
            }
            for (start, length) in held {
                extents.release(start, length);
            }
            prop_assert_eq!(extents.end(), 1);
        }
    }
}
