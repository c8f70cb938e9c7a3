//! A table of values named by small numbers that are used again after a removal.

use std::collections::BTreeSet;

/// Values by number. A number given out stays the value's until it is removed.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    values: Vec<Option<T>>,
    free: BTreeSet<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            free: BTreeSet::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Stores a value under the smallest free number.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(number) = self.free.pop_first()
            && let Some(place) = self.values.get_mut(index(number))
        {
            *place = Some(value);
            return number;
        }
        // Four thousand million live values do not fit in memory, so the conversion cannot fail.
        let number = u32::try_from(self.values.len()).unwrap_or(u32::MAX);
        self.values.push(Some(value));
        number
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let value = self.values.get_mut(index(number))?.take();
        if value.is_some() {
            self.free.insert(number);
        }
        value
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.values.get(index(number))?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.values.get_mut(index(number))?.as_mut()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter().flatten()
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_used_again_only_after_its_removal() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!((slab.get(a), slab.get(b)), (Some(&"a"), Some(&"b")));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!((slab.remove(a), slab.get(a)), (None, None));
        assert_eq!((slab.insert("c"), slab.insert("d")), (a, 2));
        assert_eq!(slab.values().copied().collect::<Vec<_>>(), ["c", "b", "d"]);
    }
}
