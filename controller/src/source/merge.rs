//! One set of objects from many files: who wins when two say the same object, and what changed since the last time.

use std::collections::BTreeMap;

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::{Event, Object, ObjectKey},
};

use super::{folder::FileState, object_text};

/// The objects as they were given last.
#[derive(Debug, Default)]
pub(super) struct Merged {
    objects: BTreeMap<ObjectKey, Object>,
}

impl Merged {
    /// Takes the files as they are now: the first file in order of names wins.
    pub(super) fn take(
        &mut self,
        files: &BTreeMap<String, FileState>,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Vec<Event> {
        let mut wanted: BTreeMap<&ObjectKey, (&String, &Object)> = BTreeMap::new();
        for (name, file) in files {
            for (key, object) in &file.objects {
                match wanted.get(key) {
                    None => drop(wanted.insert(key, (name, object))),
                    Some((winner, _)) => diagnostics.push(Diagnostic {
                        severity: Severity::Warning,
                        source: name.clone(),
                        object: object_text(key),
                        field: String::new(),
                        message: format!("is in {winner} too, which counts; this one is ignored; remove one of them"),
                    }),
                }
            }
        }
        let mut events = Vec::new();
        let gone: Vec<ObjectKey> = self
            .objects
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .cloned()
            .collect();
        for key in gone {
            self.objects.remove(&key);
            events.push(Event::Delete(key));
        }
        for (key, (_, object)) in wanted {
            if self.objects.get(key) != Some(object) {
                self.objects.insert(key.clone(), object.clone());
                events.push(Event::Upsert(object.clone()));
            }
        }
        events
    }
}
