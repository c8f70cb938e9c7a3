//! How far every policy has come on its way to the nodes that need it: computed in one place, for metrics and for conditions.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::{ObjectKey, PolicyKey},
};
use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    registry::{NodeRecord, Registry},
    source::object_text,
    world::{PolicyEntry, World},
};

/// Between two looks, at least; and at least ten times what a look takes.
const PAUSE: Duration = Duration::from_millis(100);
/// Names of waiting nodes that are kept.
const WAITING_MAX: usize = 10;
/// Findings of one policy that are kept.
const FINDINGS_MAX: usize = 20;

/// A policy's version on the nodes that have pods it selects.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Enforcement {
    pub(crate) endpoints: u32,
    pub(crate) needed: usize,
    pub(crate) enforced: usize,
    /// The first of the nodes that do not hold it.
    pub(crate) waiting: Vec<String>,
    /// From seeing it to each node's acknowledgement, rising; fewer than nodes where that is no longer remembered.
    pub(crate) latencies: Vec<Duration>,
    /// What a node that needs it says is wrong.
    pub(crate) trouble: Option<String>,
    /// A node that needs it holds it, and packets go past its programs.
    pub(crate) bypassed: Option<String>,
    /// Why a node took it back.
    pub(crate) reverted: Option<String>,
}

impl Enforcement {
    /// How far `entry` is; `of_nodes` = it selects nodes, which take back what cuts them off.
    pub(crate) fn of(
        entry: &PolicyEntry,
        needed: Option<&BTreeMap<&str, u32>>,
        nodes: &BTreeMap<String, NodeRecord>,
        of_nodes: bool,
    ) -> Self {
        let mut found = Self::default();
        for (name, endpoints) in needed.into_iter().flatten() {
            found.needed += 1;
            found.endpoints = found.endpoints.saturating_add(*endpoints);
            let record = nodes.get(*name);
            let reverted = record.filter(|record| of_nodes && !record.reverted.is_empty());
            if let Some(record) = reverted
                && found.reverted.is_none()
            {
                found.reverted = Some(format!("node {name}: {}", record.reverted));
            }
            if let Some(record) = record.filter(|record| record.holds(entry) && reverted.is_none()) {
                found.enforced += 1;
                // A node that connected later is not to blame for the time before.
                let begin = record.connected_at.map_or(entry.seen, |at| at.max(entry.seen));
                let after = record.holds_since(entry);
                found
                    .latencies
                    .extend(after.map(|after| after.saturating_duration_since(begin)));
            } else if found.waiting.len() < WAITING_MAX {
                found.waiting.push((*name).to_owned());
            }
            if found.trouble.is_none() {
                found.trouble = trouble(name, record);
            }
            if found.bypassed.is_none() {
                let said = record.map(|record| &record.bypassed).filter(|said| !said.is_empty());
                found.bypassed = said.map(|said| format!("node {name}: {said}"));
            }
        }
        found.latencies.sort();
        found
    }

    /// Every node that needs it holds it.
    pub(crate) fn complete(&self) -> bool {
        self.enforced == self.needed
    }

    /// The slowest node's time, once all hold it.
    pub(crate) fn slowest(&self) -> Option<Duration> {
        let known = self.complete() && self.latencies.len() == self.needed;
        self.latencies.last().copied().filter(|_| known)
    }

    /// The time that 99 of 100 nodes did not exceed, once all hold it.
    pub(crate) fn p99(&self) -> Option<Duration> {
        let _known = self.slowest()?;
        let rank = (self.latencies.len() * 99).div_ceil(100);
        self.latencies.get(rank.saturating_sub(1)).copied()
    }
}

fn trouble(node: &str, record: Option<&NodeRecord>) -> Option<String> {
    let Some(record) = record else {
        return Some(format!("node {node} has not connected; is its agent running?"));
    };
    if !record.connected {
        return Some(format!(
            "node {node} is not connected; it keeps what it has and learns of nothing new"
        ));
    }
    let said = [&record.held_back, &record.error, &record.bypassed]
        .into_iter()
        .find(|text| !text.is_empty());
    said.map(|said| format!("node {node}: {said}"))
}

/// One policy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) revision: u64,
    pub(crate) enforcement: Enforcement,
    /// What is wrong or suspicious.
    pub(crate) findings: Vec<Diagnostic>,
}

impl Standing {
    /// The first thing that cannot be applied as written.
    pub(crate) fn error(&self) -> Option<&Diagnostic> {
        self.findings.iter().find(|found| found.severity == Severity::Error)
    }
}

/// All policies.
pub(crate) type Standings = BTreeMap<PolicyKey, Standing>;

/// Computes standings until nobody makes worlds any more.
pub(crate) async fn run(
    mut worlds: watch::Receiver<Arc<World>>,
    registry: Registry,
    metrics: Metrics,
    standings: watch::Sender<Arc<Standings>>,
) {
    let mut propagated: BTreeMap<PolicyKey, u64> = BTreeMap::new();
    let mut changes = registry.changes();
    loop {
        let begin = Instant::now();
        let world = Arc::clone(&worlds.borrow_and_update());
        let now = standings_of(&world, &registry.nodes());
        propagated.retain(|key, _| now.contains_key(key));
        for (key, standing) in &now {
            if standing.enforcement.needed > 0
                && let Some(slowest) = standing.enforcement.slowest()
                && propagated.insert(key.clone(), standing.revision) != Some(standing.revision)
            {
                metrics.propagated(slowest);
            }
        }
        if now != **standings.borrow() {
            standings.send_replace(Arc::new(now));
        }
        tokio::time::sleep(PAUSE.max(begin.elapsed() * 10)).await;
        tokio::select! {
            changed = worlds.changed() => if changed.is_err() { return },
            _ = changes.changed() => {}
        }
    }
}

fn standings_of(world: &World, nodes: &BTreeMap<String, NodeRecord>) -> Standings {
    let nodes_of = world.nodes_of_policies();
    let of_nodes = world.policies_of_nodes();
    let mut findings: BTreeMap<&str, Vec<Diagnostic>> = BTreeMap::new();
    for found in world.diagnostics.iter() {
        let of_object = findings.entry(found.object.as_str()).or_default();
        if of_object.len() < FINDINGS_MAX {
            of_object.push(found.clone());
        }
    }
    let standing = |(key, entry): (&PolicyKey, &PolicyEntry)| {
        let object = object_text(&ObjectKey::Policy(key.clone()));
        let standing = Standing {
            uid: entry.uid.clone(),
            generation: entry.generation,
            revision: entry.revision,
            enforcement: Enforcement::of(
                entry,
                nodes_of.get(key.to_string().as_str()),
                nodes,
                of_nodes.contains(key.to_string().as_str()),
            ),
            findings: findings.get(object.as_str()).cloned().unwrap_or_default(),
        };
        (key.clone(), standing)
    };
    world.policies.iter().map(standing).collect()
}
