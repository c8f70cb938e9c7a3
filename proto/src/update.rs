//! A revision on the wire: a delta cut into chunks on one side, put together again on the other.

use std::{collections::HashMap, sync::Arc};

use bulkhead_policy::{
    digest::Digest,
    model::PolicyKey,
    state::{Delta, PortSet, Resource, ResourceName, State},
};
use prost::Message as _;
use thiserror::Error;

use crate::{
    MESSAGE_BYTES_MAX,
    convert::{
        Inside as _, RuleTable, Shared, WireError, digest_from_bytes, port_set_from_wire, port_set_to_wire, required,
        resource_from_wire, resource_name_from_wire, resource_name_to_wire, resource_to_wire, rule_name_from_wire,
    },
    v1,
};

/// A chunk is closed when it has so many bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Room for a chunk's head.
const HEAD_BYTES: usize = 256;
/// Resources one revision may have; an assembler refuses more, so that a broken peer cannot take all memory.
pub const RESOURCES_MAX: usize = 4_000_000;

/// A policy's version, as a node can be told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyVersion {
    /// Policy.
    pub policy: PolicyKey,
    /// `metadata.generation`; 0 when the source has none.
    pub generation: i64,
    /// Digest of the lowered policy.
    pub spec_digest: Digest,
}

/// One revision of a node's state: everything, or the difference to the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revision {
    /// Number.
    pub revision: u64,
    /// True: `delta` is everything there is. False: a difference.
    pub snapshot: bool,
    /// The resources.
    pub delta: Delta,
    /// Policies that are new or changed.
    pub policies: Vec<PolicyVersion>,
    /// Digest of the state after this revision ([`crate::state_digest::StateDigest`]).
    pub state_digest: Digest,
}

/// A resource that no message can hold.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "resource {name:?} has {bytes} bytes on the wire, more than the {MESSAGE_BYTES_MAX} of a message; split the policy's port lists"
)]
pub struct ResourceTooLarge {
    /// The resource.
    pub name: Box<ResourceName>,
    /// Its size.
    pub bytes: usize,
}

/// Why an update cannot be used. The stream is to be closed and opened again with nothing held.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum UpdateError {
    /// A chunk does not mean anything.
    #[error("update {revision} chunk {chunk}: {error}")]
    Wire {
        /// Revision.
        revision: u64,
        /// Chunk.
        chunk: u32,
        /// Which field, and why.
        error: WireError,
    },
    /// Chunks are missing, repeated or of different updates.
    #[error("update {revision} chunk {chunk} of {chunks} came where chunk {expected} of update {of} was expected")]
    OutOfOrder {
        /// Revision received.
        revision: u64,
        /// Chunk received.
        chunk: u32,
        /// Chunks it says there are.
        chunks: u32,
        /// Chunk expected.
        expected: u32,
        /// Revision expected.
        of: u64,
    },
    /// More resources than a revision may have.
    #[error("update {revision} has more than {RESOURCES_MAX} resources")]
    TooMany {
        /// Revision.
        revision: u64,
    },
}

/// Bytes that the chunks of a revision have on the wire, framing not included.
pub fn bytes(updates: &[v1::Update]) -> usize {
    updates.iter().map(prost::Message::encoded_len).sum()
}

/// Bytes that a node's announcement has on the wire between replicas, framing not included.
pub fn announcement_bytes(announcement: &v1::NodeAnnouncement) -> usize {
    announcement.encoded_len()
}

/// The chunk that is being filled.
#[derive(Default)]
struct Chunk {
    rules: RuleTable,
    /// By address of the shared value, which the delta keeps alive.
    indices: HashMap<usize, u32>,
    port_sets: Vec<v1::PortSet>,
    upserts: Vec<v1::Resource>,
    removes: Vec<v1::ResourceName>,
    policies: Vec<v1::PolicyVersion>,
    bytes: usize,
}

impl Chunk {
    fn port_set(&mut self, set: &Arc<PortSet>) -> u32 {
        let address = Arc::as_ptr(set).addr();
        if let Some(index) = self.indices.get(&address) {
            return *index;
        }
        let index = u32::try_from(self.port_sets.len()).unwrap_or(u32::MAX);
        let wire = port_set_to_wire(set, &mut self.rules);
        self.bytes += field_bytes(wire.encoded_len());
        self.port_sets.push(wire);
        self.indices.insert(address, index);
        index
    }

    fn upsert(&mut self, resource: &Resource) {
        let wire = resource_to_wire(resource, |set| self.port_set(set));
        self.bytes += field_bytes(wire.encoded_len());
        self.upserts.push(wire);
    }

    fn remove(&mut self, name: &ResourceName) {
        let wire = resource_name_to_wire(name);
        self.bytes += field_bytes(wire.encoded_len());
        self.removes.push(wire);
    }

    fn policy(&mut self, policy: &PolicyVersion) {
        let wire = v1::PolicyVersion::from(policy);
        self.bytes += field_bytes(wire.encoded_len());
        self.policies.push(wire);
    }

    fn size(&self) -> usize {
        self.bytes + self.rules.bytes() + HEAD_BYTES
    }

    fn finish(self) -> v1::Update {
        v1::Update {
            rules: self.rules.into_rules(),
            port_sets: self.port_sets,
            upserts: self.upserts,
            removes: self.removes,
            policies: self.policies,
            ..v1::Update::default()
        }
    }
}

/// Bytes of an embedded message with its tag and length.
const fn field_bytes(length: usize) -> usize {
    length + 6
}

/// Alternatives from which on a resource is encoded in a chunk of its own: below it cannot outgrow what a chunk leaves.
const LARGE: usize = 512;

/// Closes chunks as they fill up, and gives them away.
struct Encoder<F> {
    chunk: Chunk,
    full: F,
}

impl<F: FnMut(v1::Update)> Encoder<F> {
    fn new(full: F) -> Self {
        Self {
            chunk: Chunk::default(),
            full,
        }
    }

    fn close(&mut self) {
        (self.full)(std::mem::take(&mut self.chunk).finish());
    }

    fn room(&mut self) {
        if self.chunk.size() >= CHUNK_BYTES {
            self.close();
        }
    }

    fn upsert(&mut self, resource: &Resource) -> Result<(), ResourceTooLarge> {
        let large = matches!(resource, Resource::RulesetEntry(_, _, set) if alternatives(set) > LARGE);
        if large && self.chunk.size() > HEAD_BYTES {
            self.close();
        }
        self.room();
        self.chunk.upsert(resource);
        let bytes = self.chunk.size();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(ResourceTooLarge {
                name: Box::new(resource.name()),
                bytes,
            });
        }
        Ok(())
    }
}

fn alternatives(set: &PortSet) -> usize {
    set.ranges
        .iter()
        .map(|range| range.enforce.len() + range.shadow.len())
        .sum()
}

/// Cuts a revision into messages of at most [`MESSAGE_BYTES_MAX`]; an empty one is one message.
pub fn encode(revision: &Revision) -> Result<Vec<v1::Update>, ResourceTooLarge> {
    let mut updates = Vec::new();
    let mut encoder = Encoder::new(|update| updates.push(update));
    revision
        .delta
        .upserts
        .iter()
        .try_for_each(|resource| encoder.upsert(resource))?;
    for name in &revision.delta.removes {
        encoder.room();
        encoder.chunk.remove(name);
    }
    for policy in &revision.policies {
        encoder.room();
        encoder.chunk.policy(policy);
    }
    encoder.close();
    let chunks = u32::try_from(updates.len()).unwrap_or(u32::MAX);
    for (chunk, update) in (0..).zip(&mut updates) {
        update.revision = revision.revision;
        update.chunk = chunk;
        update.chunks = chunks;
        update.snapshot = revision.snapshot;
        update.state_digest = revision.state_digest.0.to_vec();
    }
    Ok(updates)
}

/// A state as a snapshot's messages, each in its bytes as soon as it is full: what is many times larger than the bytes is
/// never there for all resources at once.
pub fn encode_snapshot(revision: u64, state_digest: Digest, state: &State) -> Result<Vec<Vec<u8>>, ResourceTooLarge> {
    let mut messages = Vec::new();
    let mut encoder = Encoder::new(|mut update: v1::Update| {
        update.revision = revision;
        update.chunk = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        update.snapshot = true;
        update.state_digest = state_digest.0.to_vec();
        messages.push(update.encode_to_vec());
    });
    let mut result = Ok(());
    state.visit(|resource| {
        if result.is_ok() {
            result = encoder.upsert(&resource);
        }
    });
    result?;
    encoder.close();
    // How many there are is known now. Messages one after the other are one message (Protocol Buffers, "Last One Wins").
    let chunks = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    let count = v1::Update {
        chunks,
        ..v1::Update::default()
    };
    for message in &mut messages {
        message.extend(count.encode_to_vec());
    }
    Ok(messages)
}

/// The bytes one resource has when it is sent alone: the same for equal resources, so they can be digested.
pub(crate) fn resource_bytes(resource: &Resource) -> Vec<u8> {
    let mut chunk = Chunk::default();
    chunk.upsert(resource);
    chunk.finish().encode_to_vec()
}

/// Puts the chunks of updates together again.
#[derive(Default, Debug)]
pub struct Assembler {
    partial: Option<(Revision, u32, u32)>,
    shared: Shared,
}

impl Assembler {
    /// Takes the next chunk; the revision when it was the last one. After an error the assembler is empty.
    pub fn push(&mut self, update: v1::Update) -> Result<Option<Revision>, UpdateError> {
        let (revision, chunk, chunks) = (update.revision, update.chunk, update.chunks);
        let (mut whole, expected, total) = match self.partial.take() {
            Some(partial) => partial,
            None => (
                Revision {
                    revision,
                    snapshot: update.snapshot,
                    ..Revision::empty()
                },
                0,
                chunks,
            ),
        };
        let fits = revision == whole.revision && chunk == expected && chunks == total && chunk < chunks;
        if !fits || update.snapshot != whole.snapshot {
            return Err(UpdateError::OutOfOrder {
                revision,
                chunk,
                chunks,
                expected,
                of: whole.revision,
            });
        }
        // Kept for one revision: names that are gone are not to be kept here.
        let mut shared = std::mem::take(&mut self.shared);
        decode_into(update, &mut whole, &mut shared).map_err(|error| UpdateError::Wire { revision, chunk, error })?;
        if whole.delta.upserts.len() + whole.delta.removes.len() + whole.policies.len() > RESOURCES_MAX {
            return Err(UpdateError::TooMany { revision });
        }
        let next = expected + 1;
        if next == total {
            return Ok(Some(whole));
        }
        self.partial = Some((whole, next, total));
        self.shared = shared;
        Ok(None)
    }
}

impl Revision {
    fn empty() -> Self {
        let state_digest = Digest([0; 32]);
        Self {
            revision: 0,
            snapshot: false,
            delta: Delta::default(),
            policies: Vec::new(),
            state_digest,
        }
    }
}

/// Converts every item and names the first one that is wrong.
fn each<W, T>(field: &str, wire: Vec<W>, mut one: impl FnMut(W) -> Result<T, WireError>) -> Result<Vec<T>, WireError> {
    let item = |(at, wire)| one(wire).inside(format_args!("{field}[{at}]"));
    wire.into_iter().enumerate().map(item).collect()
}

fn decode_into(update: v1::Update, whole: &mut Revision, shared: &mut Shared) -> Result<(), WireError> {
    whole.state_digest = digest_from_bytes("state_digest", &update.state_digest)?;
    let rules = each("rules", update.rules, rule_name_from_wire)?;
    let sets = each("port_sets", update.port_sets, |set| {
        port_set_from_wire(set, &rules).map(Arc::new)
    })?;
    whole.delta.upserts.extend(each("upserts", update.upserts, |wire| {
        resource_from_wire(wire, &sets, shared)
    })?);
    whole
        .delta
        .removes
        .extend(each("removes", update.removes, resource_name_from_wire)?);
    whole
        .policies
        .extend(each("policies", update.policies, PolicyVersion::try_from)?);
    Ok(())
}

impl TryFrom<v1::PolicyVersion> for PolicyVersion {
    type Error = WireError;

    fn try_from(wire: v1::PolicyVersion) -> Result<Self, WireError> {
        Ok(Self {
            policy: required("policy", wire.policy)?.try_into().inside("policy")?,
            generation: wire.generation,
            spec_digest: digest_from_bytes("spec_digest", &wire.spec_digest)?,
        })
    }
}

impl From<&PolicyVersion> for v1::PolicyVersion {
    fn from(version: &PolicyVersion) -> Self {
        Self {
            policy: Some((&version.policy).into()),
            generation: version.generation,
            spec_digest: version.spec_digest.0.to_vec(),
        }
    }
}
