//! Everything compiled at one revision, in the shape sessions need: what all nodes share, and what each has alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use bulkhead_policy::{
    diagnostic::Diagnostic,
    digest::Digest,
    model::{PolicyKey, PolicyKind, WorkloadKey},
    state::{Delta, Endpoint, Resource, ResourceName, State},
    table::Table,
};
use bulkhead_proto::{state_digest::StateDigest, v1};

/// A policy as it is in force at a revision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PolicyEntry {
    /// `metadata.uid`; empty when the source has none.
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) spec_digest: Digest,
    /// Names this version for every replica.
    pub(crate) version: Digest,
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
    step: Option<Arc<Step>>,
}

impl Local {
    /// What comes of it by `change`.
    fn next(&self, change: impl FnOnce(&mut State)) -> Self {
        let mut state = State::clone(&self.state);
        change(&mut state);
        let delta = Delta::between(&self.state, &state);
        if delta.is_empty() {
            return self.clone();
        }
        Self {
            digest: self.digest.after(&self.state, &delta),
            state: Arc::new(state),
            step: Step::kept(&self.state, delta),
        }
    }

    /// What turns a node's own part of the past into this one.
    pub(crate) fn since(&self, old: &Arc<State>) -> Delta {
        difference(old, &self.state, self.step.as_deref())
    }
}

/// How a part came from the one before.
#[derive(Debug)]
struct Step {
    from: Arc<State>,
    delta: Delta,
}

impl Step {
    /// Nobody asks for what came of nothing: who has nothing is sent everything.
    fn kept(from: &Arc<State>, delta: Delta) -> Option<Arc<Self>> {
        let from = Arc::clone(from);
        (*from != State::default()).then(|| Arc::new(Self { from, delta }))
    }
}

fn difference(old: &Arc<State>, new: &Arc<State>, step: Option<&Step>) -> Delta {
    if Arc::ptr_eq(old, new) {
        return Delta::default();
    }
    match step {
        Some(step) if Arc::ptr_eq(&step.from, old) => step.delta.clone(),
        _ => Delta::between(old, new),
    }
}

/// One revision. Revisions rise from one process to the next too, as long as the clock does, so that what a node says of an
/// old one is never taken for an answer to a new one. Revision 0 is "the source has said nothing yet", and no node is told of it.
///
/// What two revisions have in common they share: the next one costs what changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) revision: u64,
    /// Identities, bindings and networks.
    pub(crate) shared: Arc<State>,
    pub(crate) shared_digest: StateDigest,
    step: Option<Arc<Step>>,
    pub(crate) locals: Table<String, Local>,
    /// Every node's endpoints.
    endpoints: Table<WorkloadKey, Arc<Endpoint>>,
    /// How many endpoints of a node have a ruleset.
    users: Table<(Digest, String), u32>,
    pub(crate) policies: Table<PolicyKey, PolicyEntry>,
    /// Versions of policies by the revision that brought them.
    news: Table<(u64, PolicyKey), ()>,
    pub(crate) diagnostics: Arc<Vec<Diagnostic>>,
    /// Texts nobody could read since the start (see `Batch::unknown`).
    pub(crate) unknown: Arc<Vec<String>>,
    pub(crate) sizes: v1::IndexSizes,
    /// Believed announcements, by node.
    pub(crate) announced: Table<String, usize>,
}

impl World {
    /// The world after `delta` made `state` of what this world was made of. Revision, policies and diagnostics are the caller's.
    pub(crate) fn next(&self, state: &State, delta: &Delta) -> Self {
        let mut next = self.clone();
        let shared = shared_part(delta);
        if !shared.is_empty() {
            next.shared_digest = self.shared_digest.after(&self.shared, &shared);
            next.shared = Arc::new(State {
                identities: state.identities.clone(),
                bindings: state.bindings.clone(),
                networks: state.networks.clone(),
                leases: state.leases.clone(),
                ..State::default()
            });
            next.step = Step::kept(&self.shared, shared);
        }
        next.endpoints = state.endpoints.clone();
        for (node, change) in self.concerned(&mut next.users, state, delta) {
            let local = self.locals.get(&node).cloned().unwrap_or_default();
            let local = local.next(|local| change.apply(&node, &next.users, state, local));
            if local.state.endpoints.is_empty() {
                next.locals.remove(&node);
            } else {
                next.locals.insert(node, local);
            }
        }
        next
    }

    /// The nodes whose own part a delta may change, and what of it; counts who has which ruleset.
    fn concerned<'a>(
        &self,
        users: &mut Table<(Digest, String), u32>,
        state: &State,
        delta: &'a Delta,
    ) -> BTreeMap<String, Concern<'a>> {
        let mut concerned: BTreeMap<String, Concern<'a>> = BTreeMap::new();
        let mut rulesets = BTreeSet::new();
        let names = delta.upserts.iter().map(|resource| match resource {
            Resource::Endpoint(key, _) => Some(Touched::Endpoint(key)),
            Resource::Ruleset(name, ..) | Resource::RulesetEntry(name, ..) => Some(Touched::Ruleset(*name)),
            Resource::Identity(..) | Resource::Binding(..) | Resource::Network(..) | Resource::Leases(..) => None,
        });
        let gone = delta.removes.iter().map(|name| match name {
            ResourceName::Endpoint(key) => Some(Touched::Endpoint(key)),
            ResourceName::Ruleset(name) | ResourceName::RulesetEntry(name, _) => Some(Touched::Ruleset(*name)),
            ResourceName::Identity(_)
            | ResourceName::Binding(..)
            | ResourceName::Network(..)
            | ResourceName::Leases(_) => None,
        });
        for touched in names.chain(gone).flatten() {
            let key = match touched {
                Touched::Endpoint(key) => key,
                Touched::Ruleset(name) => {
                    rulesets.insert(name);
                    continue;
                }
            };
            for (endpoint, is_new) in [(self.endpoints.get(key), false), (state.endpoints.get(key), true)] {
                let Some((endpoint, node)) = endpoint.and_then(|it| Some((it, it.node.as_ref()?))) else {
                    continue;
                };
                let concern = concerned.entry(node.clone()).or_default();
                concern.endpoints.insert(key);
                for name in [endpoint.egress, endpoint.ingress] {
                    concern.rulesets.insert(name);
                    count(users, (name, node.clone()), is_new);
                }
            }
        }
        for name in rulesets {
            let of_ruleset = users
                .range((name, String::new())..)
                .take_while(|((it, _), _)| *it == name);
            for ((_, node), _) in of_ruleset {
                concerned.entry(node.clone()).or_default().rulesets.insert(name);
            }
        }
        concerned
    }

    /// What turns a shared part of the past into this world's.
    pub(crate) fn shared_since(&self, old: &Arc<State>) -> Delta {
        difference(old, &self.shared, self.step.as_deref())
    }

    /// Takes a version of a policy.
    pub(crate) fn set_policy(&mut self, key: &PolicyKey, entry: Option<PolicyEntry>) {
        let revision = entry.as_ref().map(|entry| entry.revision);
        let old = match entry {
            Some(entry) => self.policies.insert(key.clone(), entry),
            None => self.policies.remove(key),
        };
        if let Some(old) = old {
            self.news.remove(&(old.revision, key.clone()));
        }
        self.news.extend(revision.map(|revision| ((revision, key.clone()), ())));
    }

    /// Policies whose version came after a revision.
    pub(crate) fn policies_since(&self, revision: u64) -> impl Iterator<Item = (&PolicyKey, &PolicyEntry)> {
        let first = (revision.saturating_add(1), FIRST_POLICY);
        let news = self.news.range(first..).map(|((_, key), ())| key);
        news.filter_map(|key| Some((key, self.policies.get(key)?)))
    }

    /// Policies that select nodes, by the text rulesets name them by.
    pub(crate) fn policies_of_nodes(&self) -> BTreeSet<&str> {
        let hosts = self.locals.values().flat_map(|local| {
            let endpoints = local.state.endpoints.iter().filter(|(key, _)| key.is_node());
            endpoints.flat_map(|(_, endpoint)| {
                let rulesets = [endpoint.egress, endpoint.ingress].map(|name| local.state.rulesets.get(&name));
                rulesets.into_iter().flatten()
            })
        });
        hosts
            .flat_map(|ruleset| ruleset.policies.iter().map(String::as_str))
            .collect()
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

/// Before all policies.
const FIRST_POLICY: PolicyKey = PolicyKey {
    kind: PolicyKind::NetworkPolicy,
    namespace: String::new(),
    name: String::new(),
};

/// A resource that nodes have alone.
enum Touched<'a> {
    Endpoint(&'a WorkloadKey),
    Ruleset(Digest),
}

/// What of a node's own part is to be looked at.
#[derive(Debug, Default)]
struct Concern<'a> {
    endpoints: BTreeSet<&'a WorkloadKey>,
    rulesets: BTreeSet<Digest>,
}

impl Concern<'_> {
    /// Makes a node's own part what `state` says.
    fn apply(&self, node: &str, users: &Table<(Digest, String), u32>, state: &State, local: &mut State) {
        for key in &self.endpoints {
            let endpoint = state.endpoints.get(*key);
            match endpoint.filter(|endpoint| endpoint.node.as_deref() == Some(node)) {
                Some(endpoint) => drop(local.endpoints.insert((*key).clone(), endpoint.clone())),
                None => drop(local.endpoints.remove(*key)),
            }
        }
        for name in &self.rulesets {
            let used = users.contains_key(&(*name, node.to_owned()));
            match state.rulesets.get(name).filter(|_| used) {
                Some(ruleset) => drop(local.rulesets.insert(*name, Arc::clone(ruleset))),
                None => drop(local.rulesets.remove(name)),
            }
        }
    }
}

/// Counts one more, or one less.
fn count(users: &mut Table<(Digest, String), u32>, key: (Digest, String), more: bool) {
    let before = users.get(&key).copied().unwrap_or(0);
    match (more, before) {
        (true, before) => drop(users.insert(key, before.saturating_add(1))),
        (false, 0 | 1) => drop(users.remove(&key)),
        (false, before) => drop(users.insert(key, before - 1)),
    }
}

/// The resources every node has.
fn shared_part(delta: &Delta) -> Delta {
    let shared = |resource: &&Resource| {
        matches!(
            resource,
            Resource::Identity(..) | Resource::Binding(..) | Resource::Network(..) | Resource::Leases(..)
        )
    };
    let shared_name = |name: &&ResourceName| {
        matches!(
            name,
            ResourceName::Identity(..)
                | ResourceName::Binding(..)
                | ResourceName::Network(..)
                | ResourceName::Leases(..)
        )
    };
    Delta {
        upserts: delta.upserts.iter().filter(shared).cloned().collect(),
        removes: delta.removes.iter().filter(shared_name).cloned().collect(),
    }
}

#[cfg(test)]
mod tests;
