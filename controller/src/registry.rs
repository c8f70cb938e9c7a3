//! What is known of every node that ever connected: what it holds, what it was sent, how quickly it acknowledges.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bulkhead_policy::digest::Digest;
use tokio::sync::{Notify, watch};

use crate::part::Part;

/// Nodes remembered.
pub(crate) const NODES_MAX: usize = 10_000;
/// States remembered per node, so that it can be sent a difference when it comes back: the one it acknowledged last, and
/// the one it was being sent.
const PARTS: usize = 2;
/// Acknowledgements remembered per node.
const ACKS: usize = 512;

/// A node as status tells of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeRecord {
    pub(crate) connected: bool,
    pub(crate) connected_at: Option<Instant>,
    pub(crate) agent_version: String,
    pub(crate) layout: String,
    /// Newest revision that changes something for the node.
    pub(crate) wanted: u64,
    pub(crate) last_ack: Option<SystemTime>,
    pub(crate) ack_latency: Duration,
    /// What the node says is wrong.
    pub(crate) error: String,
    /// Why the node is not sent what it should have.
    pub(crate) held_back: String,
    /// As of the last ack.
    pub(crate) enforced: u32,
    pub(crate) updates: u64,
    pub(crate) snapshots: u64,
    /// When the kernel came to hold a revision; both rise.
    held: VecDeque<(u64, Instant)>,
    parts: VecDeque<Part>,
    session: u64,
    displace: Option<watch::Sender<bool>>,
}

impl NodeRecord {
    /// Newest revision whose part the kernel holds; 0 = none.
    pub(crate) fn held(&self) -> u64 {
        self.held.back().map_or(0, |(revision, _)| *revision)
    }

    /// When the node came to hold `revision` or a later one; `None` when it does not, or that is longer ago than is remembered.
    pub(crate) fn held_since(&self, revision: u64) -> Option<Instant> {
        let at = self.held.partition_point(|(held, _)| *held < revision);
        self.held.get(at).map(|(_, at)| *at)
    }

    /// Notes that the kernel holds a revision.
    pub(crate) fn hold(&mut self, revision: u64) {
        if revision > self.held() {
            if self.held.len() == ACKS {
                self.held.pop_front();
            }
            self.held.push_back((revision, Instant::now()));
        }
    }

    /// Remembers a part that the node may come back with.
    pub(crate) fn remember(&mut self, part: &Part) {
        let digest = part.digest();
        self.parts.retain(|known| known.digest() != digest);
        if self.parts.len() == PARTS {
            self.parts.pop_front();
        }
        self.parts.push_back(part.clone());
    }
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registry {
    nodes: Arc<Mutex<BTreeMap<String, NodeRecord>>>,
    changed: Arc<Notify>,
}

/// Why a node cannot be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this controller knows {NODES_MAX} nodes already and takes no more")]
pub(crate) struct TooManyNodes;

/// A session's place in the registry.
#[derive(Debug)]
pub(crate) struct Seat {
    registry: Registry,
    node: String,
    session: u64,
    /// Turns true when another session of the node takes over.
    pub(crate) displaced: watch::Receiver<bool>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, NodeRecord>> {
        // A panic while the lock was held leaves plain values behind, at worst one of them old.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a node's new session; the one before, if any, is told to end.
    pub(crate) fn enter(&self, node: &str, agent_version: &str, layout: &str) -> Result<Seat, TooManyNodes> {
        let mut nodes = self.lock();
        if nodes.len() >= NODES_MAX && !nodes.contains_key(node) {
            return Err(TooManyNodes);
        }
        let record = nodes.entry(node.to_owned()).or_default();
        let (displace, displaced) = watch::channel(false);
        if let Some(before) = record.displace.replace(displace) {
            before.send_replace(true);
        }
        record.session += 1;
        record.connected = true;
        record.connected_at = Some(Instant::now());
        agent_version.clone_into(&mut record.agent_version);
        layout.clone_into(&mut record.layout);
        record.error.clear();
        record.held_back.clear();
        // Until the node says otherwise it holds nothing we know of.
        record.held.clear();
        (record.updates, record.snapshots) = (0, 0);
        Ok(Seat {
            registry: self.clone(),
            node: node.to_owned(),
            session: record.session,
            displaced,
        })
    }

    /// Done when a node's record changed since the last time; for one who asks.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Every node as it is now.
    pub(crate) fn nodes(&self) -> BTreeMap<String, NodeRecord> {
        self.lock().clone()
    }
}

impl Seat {
    /// Name of the node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Changes the node's record, unless another session has taken over.
    pub(crate) fn update(&self, change: impl FnOnce(&mut NodeRecord)) {
        let mut nodes = self.registry.lock();
        if let Some(record) = nodes.get_mut(&self.node)
            && record.session == self.session
        {
            change(record);
            self.registry.changed.notify_one();
        }
    }

    /// A remembered part of this digest.
    pub(crate) fn recall(&self, digest: Digest) -> Option<Part> {
        let nodes = self.registry.lock();
        nodes
            .get(&self.node)?
            .parts
            .iter()
            .find(|part| part.digest() == digest)
            .cloned()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.update(|record| {
            record.connected = false;
            record.displace = None;
        });
    }
}
