//! What the API server was last understood to say: turns the news of all watches into events, and into nothing when an object
//! says what it said before.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::Discriminant,
};

use bulkhead_crds::Meaning;
use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    digest::Digest,
    model::{Event, Object, ObjectKey, PolicyKey},
};

use super::raw::Item;
use crate::source::object_text;

/// Objects whose findings are kept; of more only the number is said.
const FINDINGS_MAX: usize = 10_000;

/// One thing a watch says.
#[derive(Debug)]
pub(super) enum News {
    /// A list begins; `watch` is the number of the watch.
    Listing { watch: usize },
    /// An object of the list.
    Listed { watch: usize, item: Box<Item> },
    /// The list is complete: what was there and is not in it is gone.
    ListDone { watch: usize, kind: KindOf },
    /// An object is new or changed.
    Applied { item: Box<Item> },
    /// An object is gone.
    Deleted { key: ObjectKey },
}

/// Names of the objects of one watch.
#[derive(Debug, Default)]
struct Watched {
    /// Set while a list runs.
    listing: Option<BTreeSet<ObjectKey>>,
    /// One list was complete.
    complete: bool,
}

/// All watches.
#[derive(Debug)]
pub(super) struct Known {
    watches: Vec<Watched>,
    /// What was given to the engine, as a digest: a heartbeat of a node says nothing new.
    given: BTreeMap<ObjectKey, Digest>,
    findings: BTreeMap<ObjectKey, Vec<Diagnostic>>,
    left_out: u64,
}

impl Known {
    pub(super) fn new(watches: usize) -> Self {
        Self {
            watches: std::iter::repeat_with(Watched::default).take(watches).collect(),
            given: BTreeMap::new(),
            findings: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Every watch has listed once.
    pub(super) fn complete(&self) -> bool {
        self.watches.iter().all(|watched| watched.complete)
    }

    /// All findings about what is there now.
    pub(super) fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> = self.findings.values().flatten().cloned().collect();
        if self.left_out > 0 {
            all.push(Diagnostic {
                severity: Severity::Warning,
                source: String::new(),
                object: "objects".to_owned(),
                field: String::new(),
                message: format!(
                    "more than {FINDINGS_MAX} objects have findings; {} findings were left out; correct those that are shown",
                    self.left_out
                ),
            });
        }
        all
    }

    /// Takes news; what follows from it is added to `events`. True when findings changed.
    pub(super) fn take(&mut self, news: News, events: &mut Vec<Event>) -> bool {
        match news {
            News::Listing { watch } => {
                if let Some(watched) = self.watches.get_mut(watch) {
                    watched.listing = Some(BTreeSet::new());
                }
                false
            }
            News::Listed { watch, item } => {
                if let Some(listing) = self.watches.get_mut(watch).and_then(|watched| watched.listing.as_mut()) {
                    listing.insert(item.key.clone());
                }
                self.apply(*item, events)
            }
            News::ListDone { watch, kind } => self.list_done(watch, kind, events),
            News::Applied { item } => self.apply(*item, events),
            News::Deleted { key } => self.delete(key, events),
        }
    }

    fn list_done(&mut self, watch: usize, kind: KindOf, events: &mut Vec<Event>) -> bool {
        let Some(watched) = self.watches.get_mut(watch) else {
            return false;
        };
        let listed = watched.listing.take().unwrap_or_default();
        watched.complete = true;
        let of_this_watch = |key: &&ObjectKey| kind_of(key) == kind && !listed.contains(*key);
        let gone: BTreeSet<ObjectKey> = self
            .given
            .keys()
            .chain(self.findings.keys())
            .filter(of_this_watch)
            .cloned()
            .collect();
        let mut changed = false;
        for key in gone {
            changed |= self.delete(key, events);
        }
        changed
    }

    fn apply(&mut self, item: Item, events: &mut Vec<Event>) -> bool {
        let Item {
            key,
            meaning,
            mut diagnostics,
        } = item;
        match meaning {
            Meaning::Object(object) => {
                let digest = digest(&object);
                if self.given.insert(key.clone(), digest) != Some(digest) {
                    events.push(Event::Upsert(*object));
                }
            }
            Meaning::Unreadable if self.given.contains_key(&key) => diagnostics.push(Diagnostic {
                severity: Severity::Warning,
                source: String::new(),
                object: object_text(&key),
                field: String::new(),
                message: "cannot be read any more; what it said before stays in force; correct or delete it".to_owned(),
            }),
            Meaning::Unreadable => {}
            Meaning::HostPod(_) | Meaning::EndedPod(_) | Meaning::Nothing | Meaning::UnknownKind => {
                if self.given.remove(&key).is_some() {
                    events.push(Event::Delete(key.clone()));
                }
            }
        }
        self.find(key, diagnostics)
    }

    fn delete(&mut self, key: ObjectKey, events: &mut Vec<Event>) -> bool {
        let changed = self.findings.remove(&key).is_some();
        if self.given.remove(&key).is_some() {
            events.push(Event::Delete(key));
        }
        changed
    }

    fn find(&mut self, key: ObjectKey, diagnostics: Vec<Diagnostic>) -> bool {
        if diagnostics.is_empty() {
            return self.findings.remove(&key).is_some();
        }
        if self.findings.len() >= FINDINGS_MAX && !self.findings.contains_key(&key) {
            self.left_out = self.left_out.saturating_add(1);
            return true;
        }
        let changed = self.findings.get(&key) != Some(&diagnostics);
        self.findings.insert(key, diagnostics);
        changed
    }
}

/// Tells the kinds of keys apart; policies also by their kind.
pub(super) type KindOf = (Discriminant<ObjectKey>, Option<bulkhead_policy::model::PolicyKind>);

/// The kind of a key.
pub(super) fn kind_of(key: &ObjectKey) -> KindOf {
    let policy = match key {
        ObjectKey::Policy(PolicyKey { kind, .. }) => Some(*kind),
        _ => None,
    };
    (std::mem::discriminant(key), policy)
}

/// Names what an object says. The debug form has every field in a fixed order, and digests live no longer than the process.
fn digest(object: &Object) -> Digest {
    Digest::of("bulkhead.dev/object/v1", [format!("{object:?}").as_bytes()])
}

#[cfg(test)]
mod tests;
