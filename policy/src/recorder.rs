//! The state, and what a step changed in it: the delta is known from the writes, without comparing two states.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    digest::Digest,
    index::Place,
    lease::Claims,
    model::{WorkloadKey, Zone},
    state::{Binding, Delta, Endpoint, Identity, Network, PeerId, PortSet, Resource, ResourceName, Ruleset, State},
    table::Table,
};

/// A state that remembers what it was when the step began, as far as it was written to.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    state: State,
    before: BTreeMap<ResourceName, Option<Resource>>,
}

impl Recorder {
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn set_identity(&mut self, name: Digest, value: Option<Identity>) {
        self.remember(ResourceName::Identity(name));
        set(&mut self.state.identities, name, value.map(Arc::new));
    }

    pub(crate) fn set_binding(&mut self, place: Place, value: Option<Binding>) {
        self.remember(ResourceName::Binding(place.0, place.1));
        set(&mut self.state.bindings, place, value);
    }

    pub(crate) fn set_network(&mut self, key: (Zone, ipnetwork::IpNetwork), value: Option<Network>) {
        self.remember(ResourceName::Network(key.0, key.1));
        set(&mut self.state.networks, key, value);
    }

    pub(crate) fn set_endpoint(&mut self, key: &WorkloadKey, value: Option<Endpoint>) {
        self.remember(ResourceName::Endpoint(key.clone()));
        set(&mut self.state.endpoints, key.clone(), value.map(Arc::new));
    }

    pub(crate) fn set_leases(&mut self, class: u32, value: Option<Arc<Claims>>) {
        self.remember(ResourceName::Leases(class));
        set(&mut self.state.leases, class, value);
    }

    /// Adds a whole new ruleset, or removes one with its entries.
    pub(crate) fn set_ruleset(&mut self, name: Digest, value: Option<Ruleset>) {
        self.remember(ResourceName::Ruleset(name));
        set(&mut self.state.rulesets, name, value.map(Arc::new));
    }

    /// Sets or removes an entry of a ruleset that was there before this step.
    pub(crate) fn set_entry(&mut self, ruleset: Digest, peer: PeerId, value: Option<Arc<PortSet>>) {
        let current = self
            .state
            .rulesets
            .get(&ruleset)
            .and_then(|ruleset| ruleset.entries.get(&peer));
        if current == value.as_ref() {
            return;
        }
        self.remember(ResourceName::RulesetEntry(ruleset, peer));
        if let Some(ruleset) = self.state.rulesets.get_mut(&ruleset) {
            let entries = &mut Arc::make_mut(ruleset).entries;
            match value {
                Some(value) => drop(entries.insert(peer, value)),
                None => drop(entries.remove(&peer)),
            }
        }
    }

    /// Rulesets that were not there before this step.
    pub(crate) fn new_rulesets(&self) -> impl Iterator<Item = Digest> {
        self.before.iter().filter_map(|(name, before)| match name {
            ResourceName::Ruleset(digest) if before.is_none() && self.state.rulesets.contains_key(digest) => {
                Some(*digest)
            }
            _ => None,
        })
    }

    fn remember(&mut self, name: ResourceName) {
        if !self.before.contains_key(&name) {
            let before = self.current(&name);
            self.before.insert(name, before);
        }
    }

    fn current(&self, name: &ResourceName) -> Option<Resource> {
        let state = &self.state;
        Some(match name {
            ResourceName::Identity(name) => Resource::Identity(*name, state.identities.get(name)?.clone()),
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
                Resource::RulesetEntry(*name, *peer, state.rulesets.get(name)?.entries.get(peer)?.clone())
            }
            ResourceName::Endpoint(key) => Resource::Endpoint(key.clone(), state.endpoints.get(key)?.clone()),
            ResourceName::Leases(class) => Resource::Leases(*class, state.leases.get(class)?.clone()),
        })
    }

    /// Ends a step: what it changed, in the order of the names (identities first, then what refers to them).
    pub(crate) fn settle(&mut self) -> Delta {
        let mut delta = Delta::default();
        for (name, before) in std::mem::take(&mut self.before) {
            match (before, self.current(&name)) {
                (before, Some(now)) => {
                    let whole = match (&before, &now) {
                        (None, Resource::Ruleset(ruleset, ..)) => {
                            self.state.rulesets.get(ruleset).map(|it| (ruleset, it))
                        }
                        _ => None,
                    };
                    let entries = whole.into_iter().flat_map(|(name, ruleset)| {
                        let entries = ruleset.entries.iter();
                        entries.map(|(peer, ports)| Resource::RulesetEntry(*name, *peer, Arc::clone(ports)))
                    });
                    let entries: Vec<Resource> = entries.collect();
                    if before.as_ref() != Some(&now) {
                        delta.upserts.push(now);
                    }
                    delta.upserts.extend(entries);
                }
                (Some(_), None) => delta.removes.push(name),
                (None, None) => {}
            }
        }
        delta
    }
}

fn set<K: Ord + Clone, V: Clone>(map: &mut Table<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
