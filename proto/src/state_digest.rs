//! Digest of a state that can be kept up to date by differences: controller and node compare what they hold by 32 bytes.

use std::sync::Arc;

use bulkhead_policy::{
    digest::Digest,
    state::{Delta, Resource, ResourceName, State},
};

use crate::update::resource_bytes;

/// The sum, modulo 2^256, of the digests of a state's resources. It finds mistakes (a lost or repeated resource); it does not
/// withstand someone who makes resources up to collide, and need not: both ends trust the stream.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StateDigest([u64; 4]);

impl StateDigest {
    /// The digest of a state.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let mut digest = Self::default();
        state.visit(|resource| digest.add(&resource));
        digest
    }

    /// The digest of the state that `delta` makes of `old`, whose digest this is.
    #[must_use]
    pub fn after(mut self, old: &State, delta: &Delta) -> Self {
        for resource in &delta.upserts {
            if let Some(before) = find(old, &resource.name()) {
                self.subtract(&before);
            }
            self.add(resource);
        }
        for name in &delta.removes {
            let Some(before) = find(old, name) else { continue };
            self.subtract(&before);
            if let ResourceName::Ruleset(name) = name
                && let Some(ruleset) = old.rulesets.get(name)
            {
                let entries = ruleset.entries.iter();
                entries.for_each(|(peer, set)| self.subtract(&Resource::RulesetEntry(*name, *peer, Arc::clone(set))));
            }
        }
        self
    }

    /// The 32 bytes that go over the wire.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut bytes = [0; 32];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Digest(bytes)
    }

    /// The digest of two states together that have no resource in common.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        let mut carry = false;
        for (word, term) in self.0.iter_mut().zip(other.0) {
            let (sum, first) = word.overflowing_add(term);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            (*word, carry) = (sum, first || second);
        }
        self
    }

    fn add(&mut self, resource: &Resource) {
        *self = self.plus(Self(words(resource)));
    }

    fn subtract(&mut self, resource: &Resource) {
        let mut borrow = false;
        for (word, term) in self.0.iter_mut().zip(words(resource)) {
            let (difference, first) = word.overflowing_sub(term);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            (*word, borrow) = (difference, first || second);
        }
    }
}

fn words(resource: &Resource) -> [u64; 4] {
    let digest = Digest::of("bulkhead.dev/resource/v1", [resource_bytes(resource).as_slice()]);
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(digest.0.chunks_exact(8)) {
        *word = chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

fn find(state: &State, name: &ResourceName) -> Option<Resource> {
    Some(match name {
        ResourceName::Identity(name) => Resource::Identity(*name, Arc::clone(state.identities.get(name)?)),
        ResourceName::Binding(zone, address) => {
            Resource::Binding(*zone, *address, state.bindings.get(&(*zone, *address))?.clone())
        }
        ResourceName::Network(zone, prefix) => {
            Resource::Network(*zone, *prefix, state.networks.get(&(*zone, *prefix))?.clone())
        }
        ResourceName::Ruleset(name) => {
            let ruleset = state.rulesets.get(name)?;
            Resource::Ruleset(*name, ruleset.direction, ruleset.policies.clone())
        }
        ResourceName::RulesetEntry(name, peer) => {
            Resource::RulesetEntry(*name, *peer, Arc::clone(state.rulesets.get(name)?.entries.get(peer)?))
        }
        ResourceName::Endpoint(key) => Resource::Endpoint(key.clone(), state.endpoints.get(key)?.clone()),
        ResourceName::Leases(class) => Resource::Leases(*class, Arc::clone(state.leases.get(class)?)),
    })
}
