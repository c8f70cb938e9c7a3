//! What is known of every node that ever connected, here or to a replica that reports to us: what it holds, what it was sent,
//! how quickly it acknowledges.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bulkhead_policy::digest::Digest;
use tokio::sync::watch;

use crate::{part::Part, world::PolicyEntry};

/// Nodes remembered.
pub(crate) const NODES_MAX: usize = 10_000;
/// States remembered per node, so that it can be sent a difference when it comes back: the one it acknowledged last, and
/// the one it was being sent.
const PARTS: usize = 2;
/// Acknowledgements remembered per node.
const ACKS: usize = 512;

/// Replicas that may report to this one at a time.
const REPLICAS_MAX: usize = 16;
/// What a replica reported is believed so long after its stream has ended: it, or its nodes, come back at once or not at all.
const REPLICA_GONE: Duration = Duration::from_secs(15);

/// By which of its own revisions another replica had each version of a policy.
pub(crate) type Numbering = HashMap<Digest, u64>;

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
    /// Why the node's own rules are not those it was sent; empty when they are.
    pub(crate) reverted: String,
    /// Why the node is not sent what it should have.
    pub(crate) held_back: String,
    /// As of the last ack.
    pub(crate) enforced: u32,
    /// Which of its pods packets reach, or leave, without being judged, and why; empty = none that is known.
    pub(crate) bypassed: String,
    pub(crate) updates: u64,
    pub(crate) snapshots: u64,
    /// When the kernel came to hold a revision; both rise.
    held: VecDeque<(u64, Instant)>,
    parts: VecDeque<Part>,
    /// Whose revisions these are, when they are another replica's.
    pub(crate) numbering: Option<Arc<Numbering>>,
    session: u64,
    displace: Option<watch::Sender<bool>>,
}

impl NodeRecord {
    /// Newest revision whose part the kernel holds; 0 = none.
    pub(crate) fn held(&self) -> u64 {
        self.held.back().map_or(0, |(revision, _)| *revision)
    }

    /// The revision that brought a version of a policy, in the count of the replica that serves this node.
    fn revision_of(&self, entry: &PolicyEntry) -> Option<u64> {
        match &self.numbering {
            None => Some(entry.revision),
            Some(numbering) => numbering.get(&entry.version).copied(),
        }
    }

    /// True when the node holds a version of a policy.
    pub(crate) fn holds(&self, entry: &PolicyEntry) -> bool {
        self.revision_of(entry).is_some_and(|revision| self.held() >= revision)
    }

    /// When the node came to hold a version of a policy; `None` when it does not, or that is longer ago than is remembered.
    pub(crate) fn holds_since(&self, entry: &PolicyEntry) -> Option<Instant> {
        self.held_since(self.revision_of(entry)?)
    }

    /// When the node came to hold `revision` or a later one.
    fn held_since(&self, revision: u64) -> Option<Instant> {
        let at = self.held.partition_point(|(held, _)| *held < revision);
        self.held.get(at).map(|(_, at)| *at)
    }

    /// What the node came to hold after it held `revision`, and when.
    pub(crate) fn held_after(&self, revision: u64) -> impl Iterator<Item = (u64, Instant)> {
        let at = self.held.partition_point(|(held, _)| *held <= revision);
        self.held.range(at..).copied()
    }

    /// Notes that the kernel holds a revision.
    pub(crate) fn hold(&mut self, revision: u64) {
        self.hold_since(revision, Instant::now());
    }

    /// Notes that the kernel came to hold a revision at that time.
    pub(crate) fn hold_since(&mut self, revision: u64, at: Instant) {
        if revision > self.held() {
            if self.held.len() == ACKS {
                self.held.pop_front();
            }
            self.held.push_back((revision, at));
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

/// All nodes: those whose streams end here, and what other replicas report of theirs.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    nodes: Arc<Mutex<BTreeMap<String, NodeRecord>>>,
    /// By the instance that reports.
    replicas: Arc<Mutex<BTreeMap<String, Replica>>>,
    changed: watch::Sender<()>,
}

/// What another replica reports.
#[derive(Debug, Default)]
pub(crate) struct Replica {
    pub(crate) numbering: Arc<Numbering>,
    pub(crate) nodes: BTreeMap<String, NodeRecord>,
    /// Counts its streams; the last one to begin is the one that counts.
    stream: u64,
    ended: Option<Instant>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            nodes: Arc::default(),
            replicas: Arc::default(),
            changed: watch::channel(()).0,
        }
    }
}

/// A replica's stream of reports.
#[derive(Debug)]
pub(crate) struct Reports {
    registry: Registry,
    instance: String,
    stream: u64,
}

impl Reports {
    /// Changes what is known of the replica, unless a newer stream of it has begun.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Replica)) {
        let mut replicas = self.registry.lock_replicas();
        if let Some(replica) = replicas.get_mut(&self.instance)
            && replica.stream == self.stream
        {
            change(replica);
            self.registry.changed.send_replace(());
        }
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.update(|replica| replica.ended = Some(Instant::now()));
    }
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
        record.reverted.clear();
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

    fn lock_replicas(&self) -> MutexGuard<'_, BTreeMap<String, Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the reports of another replica, from the beginning; `None` when there are too many replicas.
    pub(crate) fn reports_of(&self, instance: &str) -> Option<Reports> {
        let mut replicas = self.lock_replicas();
        replicas.retain(|_, replica| replica.ended.is_none_or(|at| at.elapsed() < REPLICA_GONE));
        if replicas.len() >= REPLICAS_MAX && !replicas.contains_key(instance) {
            return None;
        }
        let stream = replicas.get(instance).map_or(1, |replica| replica.stream + 1);
        let replica = Replica {
            stream,
            ..Replica::default()
        };
        replicas.insert(instance.to_owned(), replica);
        Some(Reports {
            registry: self.clone(),
            instance: instance.to_owned(),
            stream,
        })
    }

    /// Changes whenever a record does.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// True while the node is connected here.
    pub(crate) fn serves(&self, node: &str) -> bool {
        self.lock().get(node).is_some_and(|record| record.connected)
    }

    /// The nodes of this replica as they are now.
    pub(crate) fn own(&self) -> BTreeMap<String, NodeRecord> {
        self.lock().clone()
    }

    /// The nodes of all replicas that report here, and our own: of a node that changed replicas, what its last stream said.
    pub(crate) fn nodes(&self) -> BTreeMap<String, NodeRecord> {
        let mut nodes = self.own();
        let newest = |record: &NodeRecord| (record.connected, record.connected_at);
        for replica in self.lock_replicas().values() {
            if replica.ended.is_some_and(|at| at.elapsed() >= REPLICA_GONE) {
                continue;
            }
            for (name, record) in &replica.nodes {
                if nodes.get(name).is_none_or(|known| newest(known) < newest(record)) {
                    let mut record = record.clone();
                    record.numbering = Some(Arc::clone(&replica.numbering));
                    nodes.insert(name.clone(), record);
                }
            }
        }
        nodes
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
            self.registry.changed.send_replace(());
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
