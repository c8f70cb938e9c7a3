//! From files to the objects of a cluster: duplicates resolved, what is left out said once.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::{Object, ObjectKey, WorkloadKey},
};

use crate::{
    document::{Meaning, lower_document, name_of},
    documents::{self, Document},
    facts::HostPod,
    report::Report,
};

/// Files, one after the other.
#[derive(Debug, Default)]
pub struct Manifests {
    kept: BTreeMap<ObjectKey, Kept>,
    diagnostics: Vec<Diagnostic>,
    /// Kinds left out: how many objects, and where the first was.
    left_out: BTreeMap<(String, String), (usize, String)>,
}

#[derive(Debug)]
struct Kept {
    source: String,
    meaning: Meaning,
}

/// What the files say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lowered {
    /// Facts and policies, in order of their names.
    pub objects: Vec<Object>,
    /// Pods on the host network: not workloads, but people name them.
    pub host_pods: BTreeMap<WorkloadKey, HostPod>,
    /// Pods that have ended: they have no address any more.
    pub ended_pods: BTreeSet<WorkloadKey>,
    /// Where each object was (`file.yaml document 2`).
    pub sources: BTreeMap<ObjectKey, String>,
    /// What is wrong or suspicious, in the order it was found.
    pub diagnostics: Vec<Diagnostic>,
}

/// Lowers one text of manifests (YAML or JSON, several documents and lists included). `source` is its name in diagnostics.
pub fn lower(text: &str, source: &str) -> (Vec<Object>, Vec<Diagnostic>) {
    let mut manifests = Manifests::default();
    manifests.add(text, source);
    let lowered = manifests.finish();
    (lowered.objects, lowered.diagnostics)
}

impl Manifests {
    /// Adds a file's text. An object that is there already is replaced, with a warning.
    pub fn add(&mut self, text: &str, source: &str) {
        documents::read(text, source, |document| match document {
            Ok(document) => self.add_document(&document),
            Err(diagnostic) => self.diagnostics.push(diagnostic),
        });
    }

    /// Notes a file that could not be read at all.
    pub fn add_unreadable(&mut self, source: &str, problem: &str) {
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            source: source.to_owned(),
            object: "file".to_owned(),
            field: String::new(),
            message: format!("cannot be read: {problem}; it is left out"),
        });
    }

    /// All that was added.
    pub fn finish(mut self) -> Lowered {
        for ((kind, api_version), (count, source)) in std::mem::take(&mut self.left_out) {
            let (objects, first) = if count == 1 {
                ("object", "")
            } else {
                ("objects", ", this is the first")
            };
            self.diagnostics.push(Diagnostic {
                severity: Severity::Warning,
                source,
                object: kind.clone(),
                field: String::new(),
                message: format!(
                    "{kind} ({api_version}) is no kind this version reads: {count} {objects} left out{first}"
                ),
            });
        }
        let mut lowered = Lowered {
            diagnostics: self.diagnostics,
            ..Lowered::default()
        };
        for (key, kept) in self.kept {
            match kept.meaning {
                Meaning::Object(object) => lowered.objects.push(*object),
                Meaning::HostPod(pod) => {
                    lowered.host_pods.insert(pod.key.clone(), pod);
                }
                Meaning::EndedPod(pod) => {
                    lowered.ended_pods.insert(pod);
                }
                Meaning::Nothing | Meaning::Unreadable | Meaning::UnknownKind => {}
            }
            lowered.sources.insert(key, kept.source);
        }
        lowered
    }

    fn add_document(&mut self, document: &Document) {
        let Document {
            source,
            api_version,
            kind,
            value,
        } = document;
        let meaning = lower_document(api_version, kind, value, source, &mut self.diagnostics);
        let key = match &meaning {
            Meaning::Object(object) => object.key(),
            Meaning::HostPod(pod) => ObjectKey::Workload(pod.key.clone()),
            Meaning::EndedPod(pod) => ObjectKey::Workload(pod.clone()),
            Meaning::Nothing | Meaning::Unreadable => return,
            Meaning::UnknownKind => return self.leave_out(document),
        };
        let kept = Kept {
            source: source.clone(),
            meaning,
        };
        if let Some(before) = self.kept.insert(key, kept) {
            let mut report = Report::new(source, name_of(kind, value), &mut self.diagnostics);
            report.warning(
                "metadata.name",
                format!(
                    "is there already, in {}; this one replaces it; remove one of them",
                    before.source
                ),
            );
        }
    }

    fn leave_out(&mut self, document: &Document) {
        let key = (document.kind.clone(), document.api_version.clone());
        self.left_out
            .entry(key)
            .or_insert_with(|| (0, document.source.clone()))
            .0 += 1;
    }
}
