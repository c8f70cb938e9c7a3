//! From files to the objects of a cluster: every kind to its lowering, duplicates resolved, what is left out said once.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::{Object, ObjectKey, WorkloadKey},
};
use serde_json::Value;

use crate::{
    cluster_network_policy,
    documents::{self, Document},
    facts::{self, HostPod, Pod},
    network_policy,
    report::Report,
};

/// Kinds of policy that this version does not read: leaving one of them out leaves something open, so it is an error.
const POLICIES_NOT_READ: &[&str] = &[
    "NetworkPolicy",
    "ClusterNetworkPolicy",
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
];

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
    what: What,
}

#[derive(Debug)]
enum What {
    Object(Object),
    Host(HostPod),
    Ended,
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
            match (kept.what, &key) {
                (What::Object(object), _) => lowered.objects.push(object),
                (What::Host(pod), _) => {
                    lowered.host_pods.insert(pod.key.clone(), pod);
                }
                (What::Ended, ObjectKey::Workload(workload)) => {
                    lowered.ended_pods.insert(workload.clone());
                }
                (What::Ended, _) => {}
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
        let mut report = Report::new(source, name_of(kind, value), &mut self.diagnostics);
        let lowered = match (api_version.as_str(), kind.as_str()) {
            ("v1", "Namespace") => facts::lower_namespace(value, &mut report).map(Object::Namespace),
            ("v1", "Node") => facts::lower_node(value, &mut report).map(Object::Node),
            ("v1", "Service") => facts::lower_service(value, &mut report).map(Object::Service),
            ("v1", "Pod") => {
                let pod = facts::lower_pod(value, &mut report);
                return self.add_pod(pod, source, kind, value);
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                facts::lower_endpoint_slice(value, &mut report).map(Object::EndpointSlice)
            }
            ("networking.k8s.io/v1", "NetworkPolicy") => {
                network_policy::lower_value(value, &mut report).map(Object::Policy)
            }
            ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
                cluster_network_policy::lower_value(value, &mut report).map(Object::Policy)
            }
            _ if POLICIES_NOT_READ.contains(&kind.as_str()) => {
                let message = format!(
                    "{api_version} of {kind} is not read, so the policy is not applied; convert it to NetworkPolicy networking.k8s.io/v1 or ClusterNetworkPolicy policy.networking.k8s.io/v1alpha2"
                );
                return report.error("apiVersion", message);
            }
            _ => return self.leave_out(document),
        };
        if let Some(object) = lowered {
            let key = object.key();
            self.keep(key, What::Object(object), source, kind, value);
        }
    }

    fn add_pod(&mut self, pod: Option<Pod>, source: &str, kind: &str, value: &Value) {
        let (key, what) = match pod {
            None => return,
            Some(Pod::Workload(workload)) => (workload.key.clone(), What::Object(Object::Workload(workload))),
            Some(Pod::Host(pod)) => (pod.key.clone(), What::Host(pod)),
            Some(Pod::Ended(key)) => (key, What::Ended),
        };
        self.keep(ObjectKey::Workload(key), what, source, kind, value);
    }

    fn keep(&mut self, key: ObjectKey, what: What, source: &str, kind: &str, value: &Value) {
        if let Some(before) = self.kept.insert(
            key,
            Kept {
                source: source.to_owned(),
                what,
            },
        ) {
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

/// `Kind namespace/name`, as far as the object says it.
fn name_of(kind: &str, value: &Value) -> String {
    let word = |path| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let cluster_scoped = matches!(
        kind,
        "Namespace" | "Node" | "ClusterNetworkPolicy" | "AdminNetworkPolicy" | "BaselineAdminNetworkPolicy"
    );
    match (word("/metadata/namespace"), word("/metadata/name")) {
        (_, "") => format!("{kind} without a name"),
        (_, name) if cluster_scoped => format!("{kind} {name}"),
        ("", name) => format!("{kind} default/{name}"),
        (namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}
