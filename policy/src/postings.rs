//! An inverted index of labels: who carries a label, who carries it with a value.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    atom::LabelTest,
    model::{LabelSelector, Labels, Operator},
};

/// Who carries which label. `T` names the objects.
#[derive(Debug)]
pub(crate) struct Postings<T>(HashMap<String, BTreeMap<String, BTreeSet<T>>>);

impl<T> Default for Postings<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Ord + Clone> Postings<T> {
    pub(crate) fn insert(&mut self, labels: &Labels, who: &T) {
        for (key, value) in labels {
            let values = self.0.entry(key.clone()).or_default();
            values.entry(value.clone()).or_default().insert(who.clone());
        }
    }

    pub(crate) fn remove(&mut self, labels: &Labels, who: &T) {
        for (key, value) in labels {
            let Some(values) = self.0.get_mut(key) else { continue };
            let Some(set) = values.get_mut(value) else { continue };
            set.remove(who);
            if set.is_empty() {
                values.remove(value);
                if values.is_empty() {
                    self.0.remove(key);
                }
            }
        }
    }

    /// Those of whom the question about the label holds, each once.
    pub(crate) fn holding<'a>(&'a self, key: &str, test: &'a LabelTest) -> Box<dyn Iterator<Item = &'a T> + 'a> {
        let Some(values) = self.0.get(key) else {
            return Box::new(std::iter::empty());
        };
        match test {
            LabelTest::Exists => Box::new(values.values().flatten()),
            LabelTest::In(wanted) => Box::new(wanted.iter().filter_map(|value| values.get(value)).flatten()),
        }
    }

    /// Candidates for a selector: all that match are among them, by its most selective positive requirement. `None` when
    /// it has none, so that everybody is a candidate.
    pub(crate) fn candidates(&self, selector: &LabelSelector) -> Option<BTreeSet<&T>> {
        let tests = selector.0.iter().filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&requirement.key, LabelTest::In(values.clone()))),
            Operator::Exists => Some((&requirement.key, LabelTest::Exists)),
            Operator::NotIn(_) | Operator::DoesNotExist => None,
        });
        let (key, test) = tests.min_by_key(|(key, test)| self.count(key, test))?;
        let values = self.0.get(key);
        let wanted = |value: &String| match &test {
            LabelTest::Exists => true,
            LabelTest::In(wanted) => wanted.contains(value),
        };
        Some(
            values
                .into_iter()
                .flatten()
                .filter(|(value, _)| wanted(value))
                .flat_map(|(_, set)| set)
                .collect(),
        )
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn count(&self, key: &str, test: &LabelTest) -> usize {
        let Some(values) = self.0.get(key) else { return 0 };
        match test {
            LabelTest::Exists => values.values().map(BTreeSet::len).sum(),
            LabelTest::In(wanted) => wanted
                .iter()
                .filter_map(|value| values.get(value))
                .map(BTreeSet::len)
                .sum(),
        }
    }
}
