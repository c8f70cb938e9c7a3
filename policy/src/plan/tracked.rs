//! An ordered map that can take back what was done to it since the last commit: a plan that does not fit leaves no trace,
//! at a cost proportional to the plan and not to the map.

use std::{collections::BTreeMap, ops::Deref};

/// Entries of the log that keep their memory from plan to plan.
const LOG_ROOM: usize = 256;

/// A `BTreeMap` with an undo log. Reads go through `Deref`; every change goes through [`Tracked::set`].
#[derive(Debug)]
pub(crate) struct Tracked<K, V> {
    map: BTreeMap<K, V>,
    log: Vec<(K, Option<V>)>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self {
            map: BTreeMap::new(),
            log: Vec::new(),
        }
    }
}

impl<K, V> Deref for Tracked<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<K: Ord + Clone, V: Clone> Tracked<K, V> {
    /// Sets or removes (`None`) a value and gives back what was there.
    pub(crate) fn set(&mut self, key: K, value: Option<V>) -> Option<V> {
        let old = match value {
            Some(value) => self.map.insert(key.clone(), value),
            None => self.map.remove(&key),
        };
        self.log.push((key, old.clone()));
        old
    }

    /// Makes every change since the last commit final.
    pub(crate) fn commit(&mut self) {
        self.log.clear();
        // A first plan logs the whole map; the room for that is not needed again.
        self.log.shrink_to(LOG_ROOM);
    }

    /// Takes back every change since the last commit.
    pub(crate) fn rollback(&mut self) {
        while let Some((key, old)) = self.log.pop() {
            match old {
                Some(value) => drop(self.map.insert(key, value)),
                None => drop(self.map.remove(&key)),
            }
        }
    }
}

impl<K: Ord + Clone> Tracked<K, u32> {
    /// Counts up and gives back the new count.
    pub(crate) fn up(&mut self, key: K) -> u32 {
        let count = self.count(&key).saturating_add(1);
        self.set(key, Some(count));
        count
    }

    /// Counts down and gives back the new count; 0 is not kept.
    pub(crate) fn down(&mut self, key: K) -> u32 {
        let count = self.count(&key).saturating_sub(1);
        self.set(key, (count != 0).then_some(count));
        count
    }

    /// The count; 0 when there is none.
    pub(crate) fn count(&self, key: &K) -> u32 {
        self.map.get(key).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rollback_restores_and_commit_keeps() {
        let mut map = Tracked::default();
        map.set(1, Some("a"));
        map.set(2, Some("b"));
        map.commit();
        map.set(1, Some("c"));
        map.set(1, None);
        map.set(3, Some("d"));
        map.rollback();
        assert_eq!(map.iter().collect::<Vec<_>>(), [(&1, &"a"), (&2, &"b")]);
        map.rollback();
        assert_eq!(map.len(), 2, "nothing is taken back twice");
    }

    #[test]
    fn counts() {
        let mut map = Tracked::default();
        assert_eq!((map.up(7), map.up(7), map.down(7), map.down(7)), (1, 2, 1, 0));
        assert!(map.is_empty());
    }
}
