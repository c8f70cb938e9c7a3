//! What a report says: the difference between what there is and what was told.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bulkhead_policy::{model::PolicyKey, table::Table};
use bulkhead_proto::v1;

use crate::{
    registry::NodeRecord,
    world::{PolicyEntry, World},
};

/// Versions in one message; one is some 50 bytes.
const POLICIES_MAX: usize = 20_000;
/// Nodes in one message; one with all it is remembered for is some 10 KB.
const NODES_MAX: usize = 200;

/// What was told of a node.
#[derive(Clone, PartialEq, Debug)]
struct ToldNode {
    connected_at: Option<Instant>,
    held: u64,
    /// Everything else that a report has.
    rest: v1::NodeReport,
}

/// What was told on a stream.
#[derive(Debug, Default)]
pub(super) struct Told {
    policies: Table<PolicyKey, PolicyEntry>,
    nodes: BTreeMap<String, ToldNode>,
}

impl Told {
    /// What there is to tell; nothing when there is nothing new.
    pub(super) fn news(
        &mut self,
        instance: &str,
        world: &World,
        nodes: &BTreeMap<String, NodeRecord>,
    ) -> Vec<v1::ReplicaReport> {
        let (policies, gone) = self.policies(world);
        let nodes: Vec<_> = nodes
            .iter()
            .filter_map(|(name, record)| self.node(name, record))
            .collect();
        let empty = || v1::ReplicaReport {
            instance: instance.to_owned(),
            ..v1::ReplicaReport::default()
        };
        // Policies first: what a node holds is said in their numbers.
        let mut reports = Vec::new();
        for policies in policies.chunks(POLICIES_MAX) {
            let policies = policies.to_vec();
            reports.push(v1::ReplicaReport { policies, ..empty() });
        }
        for nodes in nodes.chunks(NODES_MAX) {
            let nodes = nodes.to_vec();
            reports.push(v1::ReplicaReport { nodes, ..empty() });
        }
        for gone in gone.chunks(POLICIES_MAX) {
            let gone = gone.to_vec();
            reports.push(v1::ReplicaReport { gone, ..empty() });
        }
        reports
    }

    fn policies(&mut self, world: &World) -> (Vec<v1::PolicyRevision>, Vec<Vec<u8>>) {
        let (mut policies, mut gone) = (Vec::new(), Vec::new());
        self.policies.compare(&world.policies, |key, entry| {
            let old = self.policies.get(key).map(|old| old.version);
            if let Some(old) = old.filter(|old| entry.is_none_or(|entry| entry.version != *old)) {
                gone.push(old.0.to_vec());
            }
            policies.extend(entry.map(|entry| v1::PolicyRevision {
                version: entry.version.0.to_vec(),
                revision: entry.revision,
            }));
        });
        self.policies = world.policies.clone();
        (policies, gone)
    }

    fn node(&mut self, name: &str, record: &NodeRecord) -> Option<v1::NodeReport> {
        let rest = v1::NodeReport {
            node: name.to_owned(),
            connected: record.connected,
            agent_version: record.agent_version.clone(),
            layout: record.layout.clone(),
            wanted: record.wanted,
            last_ack: record.last_ack.map(Into::into),
            ack_latency_ms: milliseconds(record.ack_latency),
            error: record.error.clone(),
            held_back: record.held_back.clone(),
            host_reverted: record.reverted.clone(),
            enforced: record.enforced,
            bypassed: record.bypassed.clone(),
            updates: record.updates,
            snapshots: record.snapshots,
            ..v1::NodeReport::default()
        };
        let now = ToldNode {
            connected_at: record.connected_at,
            held: record.held(),
            rest,
        };
        let before = self.nodes.get(name);
        if before == Some(&now) {
            return None;
        }
        let same_stream = before.filter(|before| before.connected_at == now.connected_at);
        let held = record.held_after(same_stream.map_or(0, |before| before.held));
        let report = v1::NodeReport {
            connected_before_ms: record.connected_at.map_or(0, |at| milliseconds(at.elapsed())),
            begins: same_stream.is_none(),
            held: held
                .map(|(revision, at)| v1::HeldRevision {
                    revision,
                    before_ms: milliseconds(at.elapsed()),
                })
                .collect(),
            ..now.rest.clone()
        };
        self.nodes.insert(name.to_owned(), now);
        Some(report)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
