//! Everything compiled at one revision, in the shape sessions need: what all nodes share, and what each has alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use bulkhead_policy::{
    diagnostic::Diagnostic,
    digest::Digest,
    model::PolicyKey,
    state::{Delta, Resource, ResourceName, State},
};
use bulkhead_proto::{state_digest::StateDigest, v1};

/// A policy as it is in force at a revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PolicyEntry {
    /// `metadata.uid`; empty when the source has none.
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) spec_digest: Digest,
    /// The revision that brought this version.
    pub(crate) revision: u64,
    /// When the source saw it.
    pub(crate) seen: Instant,
}

/// What one node has alone: its endpoints and their rulesets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Local {
    pub(crate) state: Arc<State>,
    pub(crate) digest: StateDigest,
}

/// How the shared part came from the one before.
#[derive(Debug)]
struct Step {
    from: Arc<State>,
    delta: Delta,
}

/// One revision. Revisions rise from one process to the next too, as long as the clock does, so that what a node says of an
/// old one is never taken for an answer to a new one. Revision 0 is "the source has said nothing yet", and no node is told of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) revision: u64,
    /// Identities, bindings and networks.
    pub(crate) shared: Arc<State>,
    pub(crate) shared_digest: StateDigest,
    step: Option<Arc<Step>>,
    pub(crate) locals: BTreeMap<String, Local>,
    pub(crate) policies: Arc<BTreeMap<PolicyKey, PolicyEntry>>,
    pub(crate) diagnostics: Arc<Vec<Diagnostic>>,
    /// Texts nobody could read since the start (see `Batch::unknown`).
    pub(crate) unknown: Arc<Vec<String>>,
    pub(crate) sizes: v1::IndexSizes,
    /// Believed announcements, by node.
    pub(crate) announced: BTreeMap<String, usize>,
}

impl World {
    /// The world after `delta` made `state` of what this world was made of. Revision, policies and diagnostics are the caller's.
    pub(crate) fn next(&self, state: &State, delta: &Delta) -> Self {
        let mut next = self.clone();
        let delta = shared_part(delta);
        if !delta.is_empty() {
            next.shared_digest = self.shared_digest.after(&self.shared, &delta);
            next.shared = Arc::new(State {
                identities: state.identities.clone(),
                bindings: state.bindings.clone(),
                networks: state.networks.clone(),
                ..State::default()
            });
            next.step = Some(Arc::new(Step {
                from: Arc::clone(&self.shared),
                delta,
            }));
        }
        next.locals = self.next_locals(state);
        next
    }

    fn next_locals(&self, state: &State) -> BTreeMap<String, Local> {
        let mut locals: BTreeMap<String, State> = BTreeMap::new();
        for (key, endpoint) in &state.endpoints {
            let Some(node) = &endpoint.node else { continue };
            let local = locals.entry(node.clone()).or_default();
            for name in [endpoint.egress, endpoint.ingress] {
                if let Some(ruleset) = state.rulesets.get(&name) {
                    local.rulesets.insert(name, Arc::clone(ruleset));
                }
            }
            local.endpoints.insert(key.clone(), endpoint.clone());
        }
        let kept = |(node, state): (String, State)| {
            let local = match self.locals.get(&node) {
                Some(old) if *old.state == state => old.clone(),
                _ => Local {
                    digest: StateDigest::of(&state),
                    state: Arc::new(state),
                },
            };
            (node, local)
        };
        locals.into_iter().map(kept).collect()
    }

    /// What turns a shared part of the past into this world's.
    pub(crate) fn shared_since(&self, old: &Arc<State>) -> Delta {
        if Arc::ptr_eq(old, &self.shared) {
            return Delta::default();
        }
        match &self.step {
            Some(step) if Arc::ptr_eq(&step.from, old) => step.delta.clone(),
            _ => Delta::between(old, &self.shared),
        }
    }

    /// Nodes with endpoints that a policy selects. Rulesets name their policies by this text.
    pub(crate) fn nodes_of_policies(&self) -> BTreeMap<&str, BTreeMap<&str, u32>> {
        let mut found: BTreeMap<&str, BTreeMap<&str, u32>> = BTreeMap::new();
        for (node, local) in &self.locals {
            for endpoint in local.state.endpoints.values() {
                let rulesets = [endpoint.egress, endpoint.ingress];
                let policies = rulesets.iter().filter_map(|name| local.state.rulesets.get(name));
                let policies: BTreeSet<&str> = policies
                    .flat_map(|ruleset| ruleset.policies.iter().map(String::as_str))
                    .collect();
                for policy in policies {
                    *found.entry(policy).or_default().entry(node).or_default() += 1;
                }
            }
        }
        found
    }
}

/// The resources every node has.
fn shared_part(delta: &Delta) -> Delta {
    let shared = |resource: &&Resource| {
        matches!(
            resource,
            Resource::Identity(..) | Resource::Binding(..) | Resource::Network(..)
        )
    };
    let shared_name = |name: &&ResourceName| {
        matches!(
            name,
            ResourceName::Identity(..) | ResourceName::Binding(..) | ResourceName::Network(..)
        )
    };
    Delta {
        upserts: delta.upserts.iter().filter(shared).cloned().collect(),
        removes: delta.removes.iter().filter(shared_name).cloned().collect(),
    }
}
