//! States and deltas as sets of named resources: list a state, take the difference of two, apply a difference. What the
//! wire carries and what the planner starts from.

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;

use crate::{
    digest::Digest,
    state::{Delta, Resource, ResourceName, Ruleset, State},
};

/// A delta that does not fit the state it is applied to.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DeltaError {
    /// An entry came before its ruleset, or after the ruleset was removed.
    #[error("entry for peer {peer} of ruleset {}: no such ruleset in this state; ask for a snapshot", ruleset.short())]
    EntryWithoutRuleset {
        /// The ruleset's name.
        ruleset: Digest,
        /// The entry's peer, as text.
        peer: String,
    },
}

impl Resource {
    /// The resource's name.
    pub fn name(&self) -> ResourceName {
        match self {
            Self::Identity(digest, _) => ResourceName::Identity(*digest),
            Self::Binding(zone, address, _) => ResourceName::Binding(*zone, *address),
            Self::Network(zone, prefix, _) => ResourceName::Network(*zone, *prefix),
            Self::Ruleset(digest, ..) => ResourceName::Ruleset(*digest),
            Self::RulesetEntry(digest, peer, _) => ResourceName::RulesetEntry(*digest, *peer),
            Self::Endpoint(key, _) => ResourceName::Endpoint(key.clone()),
            Self::Leases(class, _) => ResourceName::Leases(*class),
        }
    }
}

impl Delta {
    /// True when nothing changes.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removes.is_empty()
    }

    /// What turns `old` into `new`. A resource comes after those it refers to (a ruleset, its entries, then endpoints).
    #[must_use]
    pub fn between(old: &State, new: &State) -> Self {
        let mut delta = Self::default();
        let Self { upserts, removes } = &mut delta;
        old.identities.compare(&new.identities, |name, value| match value {
            Some(identity) => upserts.push(Resource::Identity(*name, Arc::clone(identity))),
            None => removes.push(ResourceName::Identity(*name)),
        });
        old.bindings
            .compare(&new.bindings, |(zone, address), value| match value {
                Some(binding) => upserts.push(Resource::Binding(*zone, *address, binding.clone())),
                None => removes.push(ResourceName::Binding(*zone, *address)),
            });
        old.networks
            .compare(&new.networks, |(zone, prefix), value| match value {
                Some(network) => upserts.push(Resource::Network(*zone, *prefix, network.clone())),
                None => removes.push(ResourceName::Network(*zone, *prefix)),
            });
        old.rulesets.compare(&new.rulesets, |name, value| match value {
            Some(ruleset) => ruleset_changes(*name, old.rulesets.get(name), ruleset, upserts, removes),
            None => removes.push(ResourceName::Ruleset(*name)),
        });
        old.endpoints.compare(&new.endpoints, |name, value| match value {
            Some(endpoint) => upserts.push(Resource::Endpoint(name.clone(), endpoint.clone())),
            None => removes.push(ResourceName::Endpoint(name.clone())),
        });
        old.leases.compare(&new.leases, |class, value| match value {
            Some(claims) => upserts.push(Resource::Leases(*class, Arc::clone(claims))),
            None => removes.push(ResourceName::Leases(*class)),
        });
        delta
    }
}

/// Calls `changed` with the new value of every key whose value differs; `None` when it is gone.
fn compare<K: Ord, V: PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>, mut changed: impl FnMut(&K, Option<&V>)) {
    for (key, value) in new {
        if old.get(key) != Some(value) {
            changed(key, Some(value));
        }
    }
    for key in old.keys() {
        if !new.contains_key(key) {
            changed(key, None);
        }
    }
}

fn ruleset_changes(
    name: Digest,
    old: Option<&Arc<Ruleset>>,
    new: &Ruleset,
    upserts: &mut Vec<Resource>,
    removes: &mut Vec<ResourceName>,
) {
    let same_head = old.is_some_and(|old| old.direction == new.direction && old.policies == new.policies);
    if !same_head {
        upserts.push(Resource::Ruleset(name, new.direction, new.policies.clone()));
    }
    let none = BTreeMap::new();
    compare(
        old.map_or(&none, |old| &old.entries),
        &new.entries,
        |peer, value| match value {
            Some(ports) => upserts.push(Resource::RulesetEntry(name, *peer, Arc::clone(ports))),
            None => removes.push(ResourceName::RulesetEntry(name, *peer)),
        },
    );
}

impl State {
    /// Every resource of the state, each after those it refers to.
    #[must_use]
    pub fn resources(&self) -> Vec<Resource> {
        let mut resources = Vec::new();
        self.visit(|resource| resources.push(resource));
        resources
    }

    /// The same one by one, for who does not need all of them at once.
    pub fn visit(&self, mut visit: impl FnMut(Resource)) {
        for (name, identity) in &self.identities {
            visit(Resource::Identity(*name, Arc::clone(identity)));
        }
        for ((zone, address), binding) in &self.bindings {
            visit(Resource::Binding(*zone, *address, binding.clone()));
        }
        for ((zone, prefix), network) in &self.networks {
            visit(Resource::Network(*zone, *prefix, network.clone()));
        }
        for (name, ruleset) in &self.rulesets {
            visit(Resource::Ruleset(*name, ruleset.direction, ruleset.policies.clone()));
            for (peer, ports) in &ruleset.entries {
                visit(Resource::RulesetEntry(*name, *peer, Arc::clone(ports)));
            }
        }
        for (key, endpoint) in &self.endpoints {
            visit(Resource::Endpoint(key.clone(), Arc::clone(endpoint)));
        }
        for (class, claims) in &self.leases {
            visit(Resource::Leases(*class, Arc::clone(claims)));
        }
    }

    /// Applies a difference: upserts in their order, then removes. Removing what is not there changes nothing.
    pub fn apply(&mut self, delta: Delta) -> Result<(), DeltaError> {
        delta
            .upserts
            .into_iter()
            .try_for_each(|resource| self.upsert(resource))?;
        delta.removes.iter().for_each(|name| self.remove(name));
        Ok(())
    }

    fn upsert(&mut self, resource: Resource) -> Result<(), DeltaError> {
        match resource {
            Resource::Identity(name, identity) => drop(self.identities.insert(name, identity)),
            Resource::Binding(zone, address, binding) => drop(self.bindings.insert((zone, address), binding)),
            Resource::Network(zone, prefix, network) => drop(self.networks.insert((zone, prefix), network)),
            Resource::Ruleset(name, direction, policies) => {
                if let Some(ruleset) = self.rulesets.get_mut(&name) {
                    let ruleset = Arc::make_mut(ruleset);
                    ruleset.direction = direction;
                    ruleset.policies = policies;
                } else {
                    let entries = BTreeMap::new();
                    let ruleset = Ruleset {
                        direction,
                        policies,
                        entries,
                    };
                    self.rulesets.insert(name, Arc::new(ruleset));
                }
            }
            Resource::RulesetEntry(name, peer, ports) => {
                let missing = || DeltaError::EntryWithoutRuleset {
                    ruleset: name,
                    peer: peer.to_string(),
                };
                let ruleset = self.rulesets.get_mut(&name).ok_or_else(missing)?;
                Arc::make_mut(ruleset).entries.insert(peer, ports);
            }
            Resource::Endpoint(key, endpoint) => drop(self.endpoints.insert(key, endpoint)),
            Resource::Leases(class, claims) => drop(self.leases.insert(class, claims)),
        }
        Ok(())
    }

    fn remove(&mut self, name: &ResourceName) {
        match name {
            ResourceName::Identity(name) => drop(self.identities.remove(name)),
            ResourceName::Binding(zone, address) => drop(self.bindings.remove(&(*zone, *address))),
            ResourceName::Network(zone, prefix) => drop(self.networks.remove(&(*zone, *prefix))),
            ResourceName::Ruleset(name) => drop(self.rulesets.remove(name)),
            ResourceName::RulesetEntry(name, peer) => {
                if let Some(ruleset) = self.rulesets.get_mut(name)
                    && ruleset.entries.contains_key(peer)
                {
                    Arc::make_mut(ruleset).entries.remove(peer);
                }
            }
            ResourceName::Endpoint(key) => drop(self.endpoints.remove(key)),
            ResourceName::Leases(class) => drop(self.leases.remove(class)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Builtin, Direction, Manner, RuleName},
        state::{Alternative, Decision, Identity, PeerId, PortSet, Range},
        table::Table,
    };

    fn ports(decision: Decision) -> Arc<PortSet> {
        let rule = RuleName::Builtin(Builtin::DefaultAllow);
        let enforce = vec![Alternative {
            guard: None,
            decision,
            manner: Manner::default(),
            rule,
        }];
        Arc::new(PortSet {
            ranges: vec![Range {
                low: 0,
                high: 0x5_ffff,
                enforce,
                shadow: Vec::new(),
            }],
        })
    }

    fn state(policies: &[&str], entries: &[(PeerId, Decision)]) -> State {
        let name = Digest::of("test", [b"ruleset".as_slice()]);
        let entries = entries
            .iter()
            .map(|(peer, decision)| (*peer, ports(*decision)))
            .collect();
        let policies = policies.iter().map(ToString::to_string).collect();
        let ruleset = Ruleset {
            direction: Direction::Ingress,
            policies,
            entries,
        };
        State {
            rulesets: Table::from([(name, Arc::new(ruleset))]),
            ..State::default()
        }
    }

    #[test]
    fn a_new_peer_is_one_resource() {
        let old = state(&["a"], &[(PeerId::AnyAddress, Decision::Deny)]);
        let new = state(
            &["a"],
            &[(PeerId::AnyAddress, Decision::Deny), (PeerId::AnyPod, Decision::Allow)],
        );
        let delta = Delta::between(&old, &new);
        assert_eq!(delta.upserts.len(), 1, "{delta:?}");
        assert!(delta.removes.is_empty());
        let mut applied = old.clone();
        applied.apply(delta).unwrap();
        assert_eq!(applied, new);
        let back = Delta::between(&new, &old);
        assert_eq!((back.upserts.len(), back.removes.len()), (0, 1), "{back:?}");
        applied.apply(back).unwrap();
        assert_eq!(applied, old);
    }

    #[test]
    fn renaming_a_rulesets_policies_keeps_its_entries() {
        let old = state(&["a"], &[(PeerId::AnyAddress, Decision::Deny)]);
        let new = state(&["a", "b"], &[(PeerId::AnyAddress, Decision::Deny)]);
        let delta = Delta::between(&old, &new);
        assert_eq!(delta.upserts.len(), 1);
        let mut applied = old;
        applied.apply(delta).unwrap();
        assert_eq!(applied, new);
    }

    #[test]
    fn removing_a_ruleset_takes_its_entries_and_a_late_entry_is_refused() {
        let old = state(&["a"], &[(PeerId::AnyAddress, Decision::Deny)]);
        let delta = Delta::between(&old, &State::default());
        assert_eq!((delta.upserts.len(), delta.removes.len()), (0, 1));
        let mut applied = old.clone();
        applied.apply(delta).unwrap();
        assert_eq!(applied, State::default());
        let entry = old.resources().pop().unwrap();
        let error = applied
            .apply(Delta {
                upserts: vec![entry],
                removes: Vec::new(),
            })
            .unwrap_err();
        assert!(error.to_string().contains("reserved:any-address"), "{error}");
    }

    #[test]
    fn resources_rebuild_the_state() {
        let mut whole = state(
            &["a"],
            &[(PeerId::AnyAddress, Decision::Deny), (PeerId::AnyNode, Decision::Allow)],
        );
        let name = Digest::of("test", [b"identity".as_slice()]);
        whole.identities.insert(
            name,
            Arc::new(Identity {
                atoms: vec!["namespace=a".into()],
            }),
        );
        let mut rebuilt = State::default();
        rebuilt
            .apply(Delta {
                upserts: whole.resources(),
                removes: Vec::new(),
            })
            .unwrap();
        assert_eq!(rebuilt, whole);
        assert_eq!(whole.resources(), Delta::between(&State::default(), &whole).upserts);
    }
}
