//! A sorted map whose copies share what they have in common: a revision of the state costs what changed, not what there is.

use std::{
    borrow::Borrow,
    fmt,
    ops::{Bound, Index, RangeBounds},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Entries of a chunk; a full one is split in two.
const CHUNK: usize = 64;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// A sorted map. A clone is one count; a write to a clone copies a chunk of at most [`CHUNK`] entries and the list of
/// chunks.
pub struct Table<K, V> {
    /// In order; none is empty.
    chunks: Arc<Vec<Chunk<K, V>>>,
    len: usize,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self {
            chunks: Arc::clone(&self.chunks),
            len: self.len,
        }
    }
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            chunks: Arc::default(),
            len: 0,
        }
    }
}

impl<K, V> Table<K, V> {
    /// Entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + Clone {
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.iter().map(|(key, value)| (key, value)))
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// True when both are copies of one table and neither was written to since.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.chunks, &other.chunks)
    }
}

impl<K: Ord, V> Table<K, V> {
    /// The chunk that has the key if any has, and the key's place in it.
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> (usize, Result<usize, usize>)
    where
        K: Borrow<Q>,
    {
        let after = self
            .chunks
            .partition_point(|chunk| chunk.first().is_some_and(|(first, _)| first.borrow() <= key));
        let at = after.saturating_sub(1);
        let place = self
            .chunks
            .get(at)
            .map_or(Err(0), |chunk| chunk.binary_search_by(|(it, _)| it.borrow().cmp(key)));
        (at, place)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (chunk, place) = self.find(key);
        self.chunks.get(chunk)?.get(place.ok()?).map(|(_, value)| value)
    }

    /// True when the key has a value.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).1.is_ok()
    }

    /// Entries whose keys are in a range, in order.
    pub fn range<R: RangeBounds<K>>(&self, range: R) -> impl Iterator<Item = (&K, &V)> {
        let (first, place) = match range.start_bound() {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) => {
                let (chunk, place) = self.find(key);
                (chunk, place.unwrap_or_else(|place| place))
            }
            Bound::Excluded(key) => {
                let (chunk, place) = self.find(key);
                (chunk, place.map_or_else(|place| place, |place| place + 1))
            }
        };
        let chunks = self.chunks.iter().skip(first).enumerate();
        let entries = chunks.flat_map(move |(number, chunk)| chunk.iter().skip(if number == 0 { place } else { 0 }));
        entries
            .map(|(key, value)| (key, value))
            .take_while(move |(key, _)| match range.end_bound() {
                Bound::Unbounded => true,
                Bound::Included(end) => *key <= end,
                Bound::Excluded(end) => *key < end,
            })
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    /// Sets the value of a key; gives the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (at, place) = self.find(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(at).map(Arc::make_mut) else {
            chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        match place {
            Ok(place) => chunk.get_mut(place).map(|(_, old)| std::mem::replace(old, value)),
            Err(place) => {
                chunk.insert(place, (key, value));
                self.len = self.len.saturating_add(1);
                if chunk.len() > CHUNK {
                    // What arrives in order leaves full chunks behind.
                    let half = if place + 1 == chunk.len() { CHUNK } else { CHUNK / 2 };
                    let rest = chunk.split_off(half);
                    chunk.shrink_to_fit();
                    chunks.insert(at + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Removes a key; gives its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let (at, Ok(place)) = self.find(key) else { return None };
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(at)?);
        let (_, value) = chunk.remove(place);
        if chunk.is_empty() {
            chunks.remove(at);
        } else {
            Self::join(chunks, at);
        }
        self.len = self.len.saturating_sub(1);
        Some(value)
    }

    /// Puts a small chunk and the next one together, so that removals leave no trail of tiny ones.
    fn join(chunks: &mut Vec<Chunk<K, V>>, at: usize) {
        let len = |at: usize| chunks.get(at).map(|chunk| chunk.len());
        let (Some(own), Some(next)) = (len(at), len(at + 1)) else {
            return;
        };
        if own + next > CHUNK / 2 {
            return;
        }
        let next = chunks.remove(at + 1);
        if let Some(chunk) = chunks.get_mut(at) {
            Arc::make_mut(chunk).extend(Arc::unwrap_or_clone(next));
        }
    }

    /// The value of a key, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let (at, place) = self.find(key);
        let place = place.ok()?;
        let chunk = Arc::make_mut(&mut self.chunks).get_mut(at)?;
        Arc::make_mut(chunk).get_mut(place).map(|(_, value)| value)
    }
}

impl<K: Ord, V: PartialEq> Table<K, V> {
    /// Calls `changed` with what `new` has for every key whose value differs (`None` when it is gone), in order of the keys.
    /// What the two share is not looked at.
    pub fn compare(&self, new: &Self, mut changed: impl FnMut(&K, Option<&V>)) {
        let (mut left, mut right) = (Cursor::new(self), Cursor::new(new));
        loop {
            while let (Some(old), Some(now)) = (left.chunk_begins(), right.chunk_begins())
                && Arc::ptr_eq(old, now)
            {
                left.next_chunk();
                right.next_chunk();
            }
            match (left.entry(), right.entry()) {
                (None, None) => return,
                (Some((key, _)), None) => {
                    changed(key, None);
                    left.next();
                }
                (None, Some((key, value))) => {
                    changed(key, Some(value));
                    right.next();
                }
                (Some((old_key, old)), Some((new_key, now))) => match old_key.cmp(new_key) {
                    std::cmp::Ordering::Less => {
                        changed(old_key, None);
                        left.next();
                    }
                    std::cmp::Ordering::Greater => {
                        changed(new_key, Some(now));
                        right.next();
                    }
                    std::cmp::Ordering::Equal => {
                        if old != now {
                            changed(new_key, Some(now));
                        }
                        left.next();
                        right.next();
                    }
                },
            }
        }
    }
}

/// A place in a table.
struct Cursor<'a, K, V> {
    chunks: &'a [Chunk<K, V>],
    chunk: usize,
    place: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(table: &'a Table<K, V>) -> Self {
        Self {
            chunks: &table.chunks,
            chunk: 0,
            place: 0,
        }
    }

    /// The chunk, when none of its entries was passed.
    fn chunk_begins(&self) -> Option<&'a Chunk<K, V>> {
        self.chunks.get(self.chunk).filter(|_| self.place == 0)
    }

    fn entry(&self) -> Option<&'a (K, V)> {
        self.chunks.get(self.chunk)?.get(self.place)
    }

    fn next(&mut self) {
        self.place += 1;
        if self
            .chunks
            .get(self.chunk)
            .is_some_and(|chunk| self.place >= chunk.len())
        {
            self.next_chunk();
        }
    }

    fn next_chunk(&mut self) {
        self.chunk += 1;
        self.place = 0;
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Table<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || (self.len == other.len && self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for Table<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for Table<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut table = Self::default();
        table.extend(entries);
        table
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for Table<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for Table<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<'a, K, V> IntoIterator for &'a Table<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Box<dyn Iterator<Item = (&'a K, &'a V)> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<K: Clone, V: Clone> IntoIterator for Table<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        let entries: Vec<(K, V)> = self.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        entries.into_iter()
    }
}

impl<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized> Index<&Q> for Table<K, V> {
    type Output = V;

    #[expect(
        clippy::expect_used,
        reason = "as the standard library's maps: for tests, which know what they put in"
    )]
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry of this key")
    }
}

impl<K: Serialize, V: Serialize> Serialize for Table<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K: Deserialize<'de> + Ord + Clone, V: Deserialize<'de> + Clone> Deserialize<'de> for Table<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = std::collections::BTreeMap::deserialize(deserializer)?;
        Ok(map.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check(table: &Table<u16, u8>, model: &BTreeMap<u16, u8>) {
        assert!(table.iter().eq(model.iter()), "{table:?} {model:?}");
        assert_eq!(table.len(), model.len());
        assert!(
            table
                .chunks
                .iter()
                .all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK)
        );
    }

    proptest! {
        #[test]
        fn is_a_sorted_map(writes in prop::collection::vec((0..400_u16, prop::option::of(0..4_u8)), 0..800), from in 0..400_u16) {
            let (mut table, mut model) = (Table::default(), BTreeMap::new());
            for (key, value) in writes {
                if let Some(value) = value {
                    prop_assert_eq!(table.insert(key, value), model.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(&key), model.remove(&key));
                }
                prop_assert_eq!(table.get(&key), model.get(&key));
            }
            check(&table, &model);
            prop_assert!(table.range(from..).eq(model.range(from..)));
            prop_assert!(table.range(..=from).eq(model.range(..=from)));
            let after = (Bound::Excluded(from), Bound::Unbounded);
            prop_assert!(table.range(after).eq(model.range(after)));
        }

        #[test]
        fn copies_keep_apart_and_differ_by_what_was_written(
            first in prop::collection::btree_map(0..1000_u16, 0..4_u8, 0..600),
            writes in prop::collection::vec((0..1000_u16, prop::option::of(0..4_u8)), 0..40),
        ) {
            let old: Table<u16, u8> = first.clone().into_iter().collect();
            let (mut new, mut model) = (old.clone(), first.clone());
            for (key, value) in writes {
                if let Some(value) = value {
                    new.insert(key, value);
                    model.insert(key, value);
                } else {
                    new.remove(&key);
                    model.remove(&key);
                }
            }
            check(&old, &first);
            check(&new, &model);
            let mut applied = first.clone();
            let mut before = None;
            old.compare(&new, |key, value| {
                assert!(before.is_none_or(|before| before < *key), "in order");
                before = Some(*key);
                assert_ne!(first.get(key), value);
                match value {
                    Some(value) => drop(applied.insert(*key, *value)),
                    None => drop(applied.remove(key)),
                }
            });
            prop_assert_eq!(applied, model);
        }
    }

    #[test]
    fn what_copies_share_is_not_looked_at() {
        /// A value that counts how often it is compared.
        #[derive(Clone, Debug)]
        struct Counted(u32);
        thread_local! { static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) }; }
        impl PartialEq for Counted {
            fn eq(&self, other: &Self) -> bool {
                COMPARED.set(COMPARED.get() + 1);
                self.0 == other.0
            }
        }
        let old: Table<u32, Counted> = (0..10_000).map(|n| (n, Counted(n))).collect();
        let mut new = old.clone();
        new.insert(5_000, Counted(0));
        let mut found = Vec::new();
        old.compare(&new, |key, _| found.push(*key));
        assert_eq!(found, [5_000]);
        assert!(COMPARED.get() <= CHUNK, "{} of 10,000", COMPARED.get());
    }
}
