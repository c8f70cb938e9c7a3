//! What people are told: policies and where they are enforced, findings, nodes, sizes.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::{ObjectKey, PolicyKey},
};
use bulkhead_proto::v1;

use crate::{
    part::Part,
    progress::Enforcement,
    registry::NodeRecord,
    source::object_text,
    world::{PolicyEntry, World},
};

/// Findings one answer has.
const DIAGNOSTICS_MAX: usize = 1_000;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// Names this process.
    pub(crate) instance: String,
    pub(crate) started: SystemTime,
    /// Where objects come from.
    pub(crate) source: String,
}

/// The answer to `GetStatus`.
pub(crate) fn status(about: &About, world: &World, nodes: &BTreeMap<String, NodeRecord>) -> v1::ControllerStatus {
    let of_nodes = world.policies_of_nodes();
    let nodes_of = world.nodes_of_policies();
    let policies = world.policies.iter().map(|(key, entry)| {
        let needed = nodes_of.get(key.to_string().as_str());
        policy(
            key,
            entry,
            (needed, of_nodes.contains(key.to_string().as_str())),
            world,
            nodes,
        )
    });
    let left_out = world.diagnostics.len().saturating_sub(DIAGNOSTICS_MAX);
    v1::ControllerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: about.instance.clone(),
        started: Some(about.started.into()),
        revision: world.revision,
        source: about.source.clone(),
        policies: policies.collect(),
        diagnostics: world.diagnostics.iter().take(DIAGNOSTICS_MAX).map(diagnostic).collect(),
        diagnostics_left_out: u64::try_from(left_out).unwrap_or(u64::MAX),
        nodes: nodes.iter().map(|(name, record)| node(name, record, world)).collect(),
        sizes: Some(world.sizes),
    }
}

fn policy(
    key: &PolicyKey,
    entry: &PolicyEntry,
    (needed, of_nodes): (Option<&BTreeMap<&str, u32>>, bool),
    world: &World,
    nodes: &BTreeMap<String, NodeRecord>,
) -> v1::PolicyStatus {
    let text = object_text(&ObjectKey::Policy(key.clone()));
    let refused = |found: &Diagnostic| found.severity == Severity::Error && found.object == text;
    let enforcement = Enforcement::of(entry, needed, nodes, of_nodes);
    v1::PolicyStatus {
        policy: Some(key.into()),
        generation: entry.generation,
        accepted: !world.diagnostics.iter().any(refused),
        endpoints: enforcement.endpoints,
        nodes_needed: count(enforcement.needed),
        nodes_enforced: count(enforcement.enforced),
        enforced_after_ms: enforcement
            .slowest()
            .filter(|_| enforcement.needed > 0)
            .map(milliseconds),
        nodes_waiting: enforcement.waiting,
        bypassed: enforcement.bypassed.unwrap_or_default(),
    }
}

fn node(name: &str, record: &NodeRecord, world: &World) -> v1::NodeStatus {
    v1::NodeStatus {
        node: name.to_owned(),
        connected: record.connected,
        agent_version: record.agent_version.clone(),
        layout: record.layout.clone(),
        revision_wanted: record.wanted,
        revision_held: record.held(),
        last_ack: record.last_ack.map(Into::into),
        ack_latency_ms: milliseconds(record.ack_latency),
        error: [&record.held_back, &record.error, &record.reverted, &record.bypassed]
            .into_iter()
            .find(|text| !text.is_empty())
            .cloned()
            .unwrap_or_default(),
        endpoints: count(Part::of(world, name).endpoints()),
        endpoints_enforced: record.enforced,
        endpoints_announced: count(world.announced.get(name).copied().unwrap_or_default()),
        updates: record.updates,
        snapshots: record.snapshots,
    }
}

fn diagnostic(found: &Diagnostic) -> v1::Diagnostic {
    let severity = match found.severity {
        Severity::Warning => v1::Severity::Warning,
        Severity::Error => v1::Severity::Error,
    };
    v1::Diagnostic {
        severity: severity.into(),
        source: found.source.clone(),
        object: found.object.clone(),
        field: found.field.clone(),
        message: found.message.clone(),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A name for this process that no other one has.
pub(crate) fn instance(started: SystemTime) -> String {
    let since = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", since.as_micros(), std::process::id())
}
