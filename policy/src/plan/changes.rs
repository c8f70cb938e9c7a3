//! Who addresses and networks are to be, and which endpoints are to be live: the wanted state as entries of the maps.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_verdict::{
    address::Address,
    layout::{AddressEntry, Config, NetworkEntry, address_flag, config_flag, identity, network_flag},
};

use super::{
    Planner,
    dirty::Dirty,
    error::PlanError,
    names::{ADDRESS_BITS, AddressId, NetworkId, V4_BITS, Who, endpoint_digest},
};
use crate::{
    digest::Digest,
    model::WorkloadKey,
    state::{AddressKind, Endpoint, PeerId},
};

/// Slot of an address that is no pod of this node.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// The entry there is and the entry wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change<E> {
    pub(crate) old: Option<E>,
    pub(crate) new: Option<E>,
}

/// What one plan is about, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// Bindings that change.
    pub(crate) addresses: BTreeMap<AddressId, Change<AddressEntry>>,
    /// Networks that change.
    pub(crate) networks: BTreeMap<NetworkId, Change<NetworkEntry>>,
    /// Prefix lengths of `networks`, by zone.
    lengths: BTreeSet<(u32, u8)>,
    /// How the number of bindings of an identity changes.
    bound: BTreeMap<u32, i64>,
    /// Endpoints that are to be live, by slot.
    pub(crate) endpoints: BTreeMap<u32, WorkloadKey>,
    /// Slots that are not to be live any more.
    pub(crate) removed: BTreeSet<u32>,
    /// Numbers that may have lost their last use.
    pub(crate) stale_rulesets: BTreeSet<u32>,
    pub(crate) stale_identities: BTreeSet<u32>,
    pub(crate) stale_entries: BTreeSet<(u32, u32)>,
}

impl Work {
    fn count(&mut self, identity: Option<u32>, by: i64) {
        let Some(identity) = identity else { return };
        let count = self.bound.entry(identity).or_default();
        *count = count.saturating_add(by);
        self.stale_identities.insert(identity);
    }
}

/// The number of a reserved peer.
pub(crate) fn reserved(peer: PeerId) -> Result<u32, Digest> {
    match peer {
        PeerId::UnknownPod => Ok(identity::UNKNOWN_POD),
        PeerId::AnyPod => Ok(identity::ANY_POD),
        PeerId::AnyNode => Ok(identity::ANY_NODE),
        PeerId::AnyAddress => Ok(identity::ANY_ADDRESS),
        PeerId::Identity(digest) => Err(digest),
    }
}

impl Planner {
    /// The number of a peer, a new one if it has none.
    pub(crate) fn number(&mut self, peer: PeerId) -> u32 {
        reserved(peer).unwrap_or_else(|digest| {
            self.kernel
                .identity(digest, || match self.state.identities.get(&digest) {
                    Some(identity) => identity.atoms.join(", "),
                    None => digest.short(),
                })
        })
    }

    /// The number of a peer, if it has one.
    pub(crate) fn known(&self, peer: PeerId) -> Option<u32> {
        reserved(peer)
            .or_else(|digest| self.kernel.identities.number(&digest).ok_or(()))
            .ok()
    }

    /// True when addresses or networks will be bound to an identity after the plan.
    pub(crate) fn bound_after(&self, work: &Work, identity: u32) -> bool {
        let now = i64::from(self.kernel.bound.count(&identity));
        now.saturating_add(work.bound.get(&identity).copied().unwrap_or(0)) > 0
    }

    // --- endpoints ----------------------------------------------------------------------------------------------

    /// The endpoint of a workload, when it is wanted and its device is here.
    fn present(&self, key: &WorkloadKey) -> Option<&Endpoint> {
        let endpoint = self.state.endpoints.get(key)?;
        let local = self.local.get(key)?;
        local
            .uid
            .as_ref()
            .is_none_or(|uid| *uid == endpoint.uid)
            .then_some(endpoint)
    }

    /// The slot of a workload that is present.
    pub(crate) fn slot(&self, key: &WorkloadKey) -> Option<u32> {
        let endpoint = self.present(key)?;
        self.kernel.slot_of.get(&endpoint_digest(key, &endpoint.uid)).copied()
    }

    /// Finds the slots of the endpoints to look at: of those that are to be live, and of those that are not any more.
    pub(crate) fn find_slots(&mut self, dirty: &mut Dirty, work: &mut Work) -> Result<(), PlanError> {
        let dirty_addresses = &mut dirty.addresses;
        for key in &dirty.endpoints {
            if let Some(endpoint) = self.state.endpoints.get(key) {
                for ruleset in [endpoint.egress, endpoint.ingress] {
                    if !self.state.rulesets.contains_key(&ruleset) {
                        return Err(PlanError::MissingRuleset {
                            endpoint: key.clone(),
                            ruleset,
                        });
                    }
                }
            }
            let wanted = self.present(key).map(|endpoint| endpoint_digest(key, &endpoint.uid));
            let mut slot = wanted.and_then(|digest| self.kernel.slot_of.get(&digest).copied());
            let of_name: Vec<u32> = self
                .kernel
                .slots_of
                .range((key.clone(), 0)..=(key.clone(), u32::MAX))
                .map(|((_, slot), ())| *slot)
                .filter(|other| Some(*other) != slot)
                .collect();
            for gone in of_name {
                work.removed.insert(gone);
                self.touch_addresses(dirty_addresses, gone, None);
            }
            if let Some(digest) = wanted
                && slot.is_none()
            {
                slot = Some(self.kernel.add_slot(key, digest));
            }
            if let Some(slot) = slot {
                work.endpoints.insert(slot, key.clone());
                self.touch_addresses(dirty_addresses, slot, Some(key));
            }
        }
        if dirty.everything {
            let nameless = self.kernel.words.iter().filter(|(slot, word)| {
                word.config != 0 && !work.endpoints.contains_key(slot) && !self.kernel.slot_names.contains_key(slot)
            });
            work.removed.extend(nameless.map(|(slot, _)| *slot));
        }
        Ok(())
    }

    /// The bindings of an endpoint's addresses name its slot: those it has and those it is to have.
    fn touch_addresses(&self, dirty: &mut BTreeSet<AddressId>, slot: u32, key: Option<&WorkloadKey>) {
        let config = self.kernel.configs.get(&slot).copied().unwrap_or_default();
        dirty.extend(own_addresses(&config).filter(|id| self.kernel.addresses.contains_key(id)));
        if let Some(endpoint) = key.and_then(|key| self.state.endpoints.get(key)) {
            dirty.extend(
                endpoint
                    .addresses
                    .iter()
                    .map(|address| AddressId::new(endpoint.zone, *address)),
            );
        }
    }

    /// The configuration an endpoint is to have; `None` when its rulesets have no numbers (`find_slots` has checked that
    /// they are there).
    pub(crate) fn config(&mut self, key: &WorkloadKey) -> Option<Config> {
        let endpoint = self.present(key)?.clone();
        let identity = self.number(endpoint.identity);
        let local = self.local.get(key)?;
        let egress = self.kernel.rulesets.number(&endpoint.egress)?;
        let ingress = self.kernel.rulesets.number(&endpoint.ingress)?;
        let adopt = if local.adopt_until == 0 { 0 } else { config_flag::ADOPT };
        let host = if key.is_node() { config_flag::HOST } else { 0 };
        let mut config = Config {
            identity,
            image_class: endpoint.image_class,
            egress,
            ingress,
            ifindex: local.ifindex,
            flags: config_flag::ENFORCE | adopt | host,
            zone: u32::from(endpoint.zone.0),
            mac: local.mac,
            adopt_until: local.adopt_until,
            ..Config::default()
        };
        // Which addresses are a node's own is asked of OWN: it may have more than there is room for here.
        if key.is_node() {
            return Some(config);
        }
        let link_local = local.addresses.iter().filter(|address| match address {
            std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
            std::net::IpAddr::V4(_) => false,
        });
        set_addresses(
            &mut config,
            endpoint
                .addresses
                .iter()
                .chain(link_local)
                .map(|address| Address::from(*address)),
        );
        Some(config)
    }

    // --- addresses and networks -----------------------------------------------------------------------------------

    fn wanted_address(&mut self, id: AddressId) -> Option<AddressEntry> {
        let key = id.of_state()?;
        let binding = self.state.bindings.get(&key)?.clone();
        let local_pod = binding.kind == AddressKind::Pod
            && binding.peer != PeerId::UnknownPod
            && self
                .present(&binding.name)
                .is_some_and(|endpoint| endpoint.addresses.contains(&key.1));
        let slot = if local_pod { self.slot(&binding.name) } else { None };
        let flags = match binding.kind {
            AddressKind::Pod => address_flag::POD,
            AddressKind::Node if binding.node.as_deref() == Some(self.node.as_str()) => address_flag::LOCAL_NODE,
            AddressKind::Node => 0,
            AddressKind::Service => address_flag::SERVICE,
        };
        let identity = self.number(binding.peer);
        Some(AddressEntry {
            identity,
            image_class: binding.image_class,
            slot: slot.unwrap_or(NO_SLOT),
            flags,
        })
    }

    fn wanted_network(&mut self, id: NetworkId) -> Option<NetworkEntry> {
        let network = id.of_state().and_then(|key| self.state.networks.get(&key)).cloned();
        match network {
            Some(network) => {
                let flags = if network.pod_range { network_flag::POD_RANGE } else { 0 };
                Some(NetworkEntry {
                    identity: self.number(network.peer),
                    flags,
                })
            }
            // IPv4 is mapped into IPv6 here, and `::/0` says nothing about it: what no IPv4 prefix covers is anybody.
            None if id == NetworkId::all_v4(id.zone) && self.a_prefix_covers_v4(id) => Some(NetworkEntry {
                identity: identity::ANY_ADDRESS,
                flags: 0,
            }),
            None => None,
        }
    }

    fn a_prefix_covers_v4(&self, all_v4: NetworkId) -> bool {
        (0..V4_BITS).any(|length| {
            let wider = all_v4.first_address().network(length);
            wider
                .of_state()
                .is_some_and(|key| self.state.networks.contains_key(&key))
        })
    }

    /// Finds which bindings and networks change.
    pub(crate) fn find_changes(&mut self, dirty: &Dirty, work: &mut Work) {
        for id in &dirty.addresses {
            let old = self.kernel.addresses.get(id).copied();
            let new = self.wanted_address(*id);
            if old != new {
                work.count(old.map(|entry| entry.identity), -1);
                work.count(new.map(|entry| entry.identity), 1);
                work.addresses.insert(*id, Change { old, new });
            }
        }
        for id in &dirty.networks {
            let old = self.kernel.networks.get(id).copied();
            let new = self.wanted_network(*id);
            if old != new {
                work.count(old.map(|entry| entry.identity), -1);
                work.count(new.map(|entry| entry.identity), 1);
                work.lengths.insert((id.zone, id.length));
                work.networks.insert(*id, Change { old, new });
            }
        }
    }

    /// Who an unbound address of at most this prefix length is in the maps now.
    fn covered_now(&self, address: AddressId, longest: u8) -> Who {
        let lengths = self
            .kernel
            .lengths(address.zone)
            .into_iter()
            .rev()
            .filter(|length| *length <= longest);
        let mut found = lengths.filter_map(|length| self.kernel.networks.get(&address.network(length)));
        found.next().map_or(Who::NOBODY, |entry| Who::of_network(*entry))
    }

    /// Who it will be after the plan.
    fn covered_after(&self, work: &Work, address: AddressId, longest: u8) -> Who {
        let mut lengths: BTreeSet<u8> = self.kernel.lengths(address.zone).into_iter().collect();
        lengths.extend(
            work.lengths
                .range((address.zone, 0)..=(address.zone, u8::MAX))
                .map(|(_, length)| *length),
        );
        let lengths = lengths.into_iter().rev().filter(|length| *length <= longest);
        let mut found = lengths.filter_map(|length| {
            let id = address.network(length);
            match work.networks.get(&id) {
                Some(change) => change.new.map(Who::of_network),
                None => self.kernel.networks.get(&id).copied().map(Who::of_network),
            }
        });
        found.next().unwrap_or(Who::NOBODY)
    }

    /// Who an address is now and who it will be.
    pub(crate) fn address_who(&self, work: &Work, id: AddressId, change: &Change<AddressEntry>) -> (Who, Who) {
        let now = change
            .old
            .as_ref()
            .map_or_else(|| self.covered_now(id, ADDRESS_BITS), Who::of_address);
        let after = change.new.as_ref().map(Who::of_address);
        (now, after.unwrap_or_else(|| self.covered_after(work, id, ADDRESS_BITS)))
    }

    /// Who the addresses that only this prefix covers are now and will be.
    pub(crate) fn network_who(&self, work: &Work, id: NetworkId, change: &Change<NetworkEntry>) -> (Who, Who) {
        let (address, wider) = (id.first_address(), id.length.checked_sub(1));
        let now = change.old.map(Who::of_network);
        let after = change.new.map(Who::of_network);
        let none = |who: Option<Who>| who.unwrap_or(Who::NOBODY);
        (
            now.unwrap_or_else(|| none(wider.map(|length| self.covered_now(address, length)))),
            after.unwrap_or_else(|| none(wider.map(|length| self.covered_after(work, address, length)))),
        )
    }
}

/// Sets an endpoint's own addresses. There is room for few; the first ones count, and from one that does not fit the
/// endpoint cannot send.
pub(crate) fn set_addresses(config: &mut Config, addresses: impl IntoIterator<Item = Address>) {
    config.addresses = <[Address; 5]>::default();
    config.address_count = 0;
    for (place, address) in config.addresses.iter_mut().zip(addresses) {
        *place = address;
        config.address_count = config.address_count.saturating_add(1);
    }
}

/// An endpoint's own addresses.
pub(crate) fn addresses_of(config: &Config) -> impl Iterator<Item = Address> {
    let count = usize::try_from(config.address_count).unwrap_or(usize::MAX);
    config.addresses.into_iter().take(count)
}

fn own_addresses(config: &Config) -> impl Iterator<Item = AddressId> {
    let zone = config.zone;
    addresses_of(config).map(move |address| AddressId::of_key(&bulkhead_verdict::layout::AddressKey { address, zone }))
}
