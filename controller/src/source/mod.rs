//! Where objects come from. A source gives batches of events; what it cannot read does not change what it gave before.

pub mod files;
mod folder;
pub(crate) mod kube;
mod merge;

use std::time::Instant;

use bulkhead_policy::{
    diagnostic::Diagnostic,
    model::{Event, ObjectKey},
};

/// What a source found at one moment.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What changed since the batch before.
    pub events: Vec<Event>,
    /// All findings about what is there now.
    pub diagnostics: Vec<Diagnostic>,
    /// Texts that could not be read and never could since this source began: what they say is not known, so a node that
    /// has a state already is better off with it.
    pub unknown: Vec<String>,
    /// When the change was seen.
    pub seen: Instant,
}

/// An object as diagnostics name it: `Kind namespace/name`.
pub(crate) fn object_text(key: &ObjectKey) -> String {
    match key {
        ObjectKey::Namespace(name) => format!("Namespace {name}"),
        ObjectKey::Workload(key) => format!("Pod {key}"),
        ObjectKey::Node(name) => format!("Node {name}"),
        ObjectKey::Policy(key) if key.namespace.is_empty() => format!("{} {}", key.kind, key.name),
        ObjectKey::Policy(key) => format!("{} {}/{}", key.kind, key.namespace, key.name),
        ObjectKey::Service(key) => format!("Service {key}"),
        ObjectKey::EndpointSlice(key) => format!("EndpointSlice {key}"),
        ObjectKey::AddressGroup(name) => format!("AddressGroup {name}"),
    }
}
