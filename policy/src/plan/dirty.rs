//! What a plan has to look at: the names of everything that may differ between the maps and the wanted state.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    LocalEndpoints,
    kernel::Kernel,
    names::{AddressId, NetworkId, workload_of},
};
use crate::{
    digest::Digest,
    model::{WorkloadKey, Zone},
    state::{Delta, PeerId, Resource, ResourceName, State},
};

/// Names of what to look at.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    pub(crate) everything: bool,
    pub(crate) identities: BTreeSet<Digest>,
    pub(crate) addresses: BTreeSet<AddressId>,
    pub(crate) networks: BTreeSet<NetworkId>,
    /// Rulesets whose head changed, that are new, or that are gone.
    pub(crate) rulesets: BTreeSet<Digest>,
    /// Entries by ruleset.
    pub(crate) entries: BTreeMap<Digest, BTreeSet<PeerId>>,
    pub(crate) endpoints: BTreeSet<WorkloadKey>,
}

impl Dirty {
    /// Everything the maps hold and everything that is wanted.
    pub(crate) fn everything(wanted: &State, kernel: &Kernel) -> Self {
        let mut dirty = Self {
            everything: true,
            ..Self::default()
        };
        let bindings = wanted
            .bindings
            .keys()
            .map(|(zone, address)| AddressId::new(*zone, *address));
        dirty.addresses = bindings.chain(kernel.addresses.keys().copied()).collect();
        let networks = wanted
            .networks
            .keys()
            .map(|(zone, network)| NetworkId::new(*zone, *network));
        networks
            .chain(kernel.networks.keys().copied())
            .for_each(|id| dirty.network(id));
        dirty.rulesets = wanted.rulesets.keys().copied().collect();
        let slots = kernel.slot_names.values().filter_map(|name| workload_of(&name.text));
        dirty.endpoints = wanted.endpoints.keys().cloned().chain(slots).collect();
        dirty
    }

    /// What a delta and a change of the local devices concern.
    pub(crate) fn of(delta: &Delta, old: &LocalEndpoints, new: &LocalEndpoints) -> Self {
        let mut dirty = Self::default();
        let upserts = delta.upserts.iter().map(Resource::name);
        for name in upserts.chain(delta.removes.iter().cloned()) {
            dirty.add(name);
        }
        let keys = old.keys().chain(new.keys());
        dirty
            .endpoints
            .extend(keys.filter(|key| old.get(key) != new.get(key)).cloned());
        dirty
    }

    fn add(&mut self, name: ResourceName) {
        match name {
            ResourceName::Identity(digest) => drop(self.identities.insert(digest)),
            ResourceName::Binding(zone, address) => drop(self.addresses.insert(AddressId::new(zone, address))),
            ResourceName::Network(zone, network) => self.network(NetworkId::new(zone, network)),
            ResourceName::Ruleset(digest) => drop(self.rulesets.insert(digest)),
            ResourceName::RulesetEntry(digest, peer) => drop(self.entries.entry(digest).or_default().insert(peer)),
            ResourceName::Endpoint(key) => drop(self.endpoints.insert(key)),
            // Deadlines need a clock, so the agent writes them around the plan.
            ResourceName::Leases(_) => {}
        }
    }

    fn network(&mut self, id: NetworkId) {
        self.networks.insert(id);
        if id.covers_v4() {
            self.networks.insert(NetworkId::all_v4(id.zone));
        }
    }
}

/// What takes a delta back that is about to be applied.
pub(crate) fn inverse(state: &State, delta: &Delta) -> Delta {
    let mut undo = Delta::default();
    let upserts = delta.upserts.iter().map(Resource::name);
    let names: BTreeSet<ResourceName> = upserts.chain(delta.removes.iter().cloned()).collect();
    // In the order of the names a ruleset comes before its entries, as `State::apply` wants it.
    for name in names {
        match current(state, &name) {
            Some(resources) => undo.upserts.extend(resources),
            None => undo.removes.push(name),
        }
    }
    undo
}

/// The resources behind a name as they are now; of a ruleset, its entries too.
fn current(state: &State, name: &ResourceName) -> Option<Vec<Resource>> {
    let one = match name {
        ResourceName::Identity(digest) => Resource::Identity(*digest, Arc::clone(state.identities.get(digest)?)),
        ResourceName::Binding(zone, address) => {
            Resource::Binding(*zone, *address, state.bindings.get(&(*zone, *address))?.clone())
        }
        ResourceName::Network(zone, network) => {
            Resource::Network(*zone, *network, state.networks.get(&(*zone, *network))?.clone())
        }
        ResourceName::Ruleset(digest) => {
            let ruleset = state.rulesets.get(digest)?;
            let head = Resource::Ruleset(*digest, ruleset.direction, ruleset.policies.clone());
            let entries = ruleset.entries.iter();
            let entries = entries.map(|(peer, ports)| Resource::RulesetEntry(*digest, *peer, Arc::clone(ports)));
            return Some(std::iter::once(head).chain(entries).collect());
        }
        ResourceName::RulesetEntry(digest, peer) => {
            let ports = state.rulesets.get(digest)?.entries.get(peer)?;
            Resource::RulesetEntry(*digest, *peer, Arc::clone(ports))
        }
        ResourceName::Endpoint(key) => Resource::Endpoint(key.clone(), state.endpoints.get(key)?.clone()),
        ResourceName::Leases(class) => Resource::Leases(*class, Arc::clone(state.leases.get(class)?)),
    };
    Some(vec![one])
}

/// Whose the addresses were that a delta's inverse binds again.
pub(crate) fn owners(undo: &Delta) -> BTreeMap<(Zone, IpAddr), Arc<WorkloadKey>> {
    let bindings = undo.upserts.iter().filter_map(|resource| match resource {
        Resource::Binding(zone, address, binding) => Some(((*zone, *address), binding.name.clone())),
        _ => None,
    });
    bindings.collect()
}
