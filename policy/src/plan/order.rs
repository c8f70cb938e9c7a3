//! One plan from its first look to its last write, in the order the module's text gives.

use std::collections::BTreeSet;

use bulkhead_verdict::{
    address::Address,
    layout::{Config, PEER_EPOCHS},
};

use super::{
    Planner,
    changes::{Work, addresses_of, set_addresses},
    dirty::Dirty,
    error::PlanError,
    kernel::Phase,
    names::AddressId,
    op::MapOp,
    rulesets::Contents,
    transition::{Flip, Owner, Route, Routes, network_way_entry},
};
use crate::model::WorkloadKey;

/// From so many peer epochs on, the global one is raised instead.
const MANY_EPOCHS: usize = (PEER_EPOCHS / 4) as usize;

impl Planner {
    /// Makes the plan, or leaves the picture of the maps as it was.
    pub(crate) fn run(&mut self, dirty: Dirty, owner: Owner<'_>) -> Result<Vec<MapOp>, PlanError> {
        match self.try_run(dirty, owner) {
            Ok(()) => {
                self.adopted = false;
                Ok(self.kernel.commit())
            }
            Err(error) => {
                self.kernel.rollback();
                Err(error)
            }
        }
    }

    fn try_run(&mut self, mut dirty: Dirty, owner: Owner<'_>) -> Result<(), PlanError> {
        if dirty.everything {
            self.clear_garbage();
        }
        if self.adopted {
            self.kernel.push(Phase::Adopt, MapOp::Epoch);
        }
        if self.adopted || self.kernel.has(Phase::Garbage) {
            // A predecessor may have been cut off before its barrier; what it unpublished is ours to use.
            self.kernel.push(Phase::Adopt, MapOp::Barrier);
        }
        let mut work = Work::default();
        let mut contents = Contents::default();
        self.find_slots(&mut dirty, &mut work)?;
        self.find_changes(&dirty, &mut work);
        self.write_rulesets(&dirty, &mut work, &mut contents)?;
        let routes = self.find_routes(&mut work, &mut contents)?;
        self.take_down(&dirty, &mut work, &routes);
        self.bind_early(&work, &routes, owner);
        self.flip_all(&mut work, &routes);
        self.bind_late(&work, &routes);
        self.go_live(&work, &routes);
        self.remove_unused(&dirty, work);
        self.kernel.fits(&self.limits)?;
        Ok(())
    }

    /// Addresses and networks to their transition identities, or at once to their new ones.
    fn bind_early(&mut self, work: &Work, routes: &Routes, owner: Owner<'_>) {
        let mut bound = BTreeSet::new();
        for (id, change) in &work.addresses {
            match routes.addresses.get(id) {
                Some(Route::Early) => {
                    self.kernel.set_address(Phase::Transition, *id, change.new);
                    bound.insert(*id);
                }
                Some(Route::Via(transition)) => {
                    if let Some(number) = routes.numbers.get(transition) {
                        let entry = self.way_entry(*id, change, *number, owner);
                        self.kernel.set_address(Phase::Transition, *id, Some(entry));
                    }
                }
                Some(Route::Late) | None => {}
            }
        }
        // The longest prefix first: a shorter one must not answer for addresses that a longer one is about to.
        for (id, change) in work.networks.iter().rev() {
            if let Some(Route::Via(transition)) = routes.networks.get(id)
                && let Some(number) = routes.numbers.get(transition)
            {
                let entry = network_way_entry(change, *number);
                self.kernel.set_network(Phase::Transition, *id, Some(entry));
            }
        }
        self.raise_epochs(Phase::Transition, &bound);
    }

    /// Endpoints that are gone: no device leads to them, and their word is zero. Devices that are not an endpoint's any
    /// more. Before everything else that can be seen, so that the rest need not care for them.
    fn take_down(&mut self, dirty: &Dirty, work: &mut Work, routes: &Routes) {
        for slot in work.removed.clone() {
            for ifindex in self.kernel.devices_of(slot) {
                self.kernel.set_device(Phase::Down, ifindex, None);
            }
            if let Some(config) = self.kernel.configs.get(&slot).copied() {
                stale(work, &config);
            }
            if self.kernel.words.get(&slot).is_some_and(|word| word.config != 0) {
                self.kernel.flip(Phase::Down, slot, None);
            }
        }
        for (slot, key) in &work.endpoints {
            let Some(local) = self.local.get(key).filter(|_| key.is_node()) else {
                continue;
            };
            for ifindex in self.kernel.devices_of(*slot) {
                if ifindex != local.ifindex && !local.more.contains(&ifindex) {
                    self.kernel.set_device(Phase::Down, ifindex, None);
                }
            }
        }
        for (slot, flip) in &routes.flips {
            for ifindex in self.kernel.devices_of(*slot) {
                if ifindex != flip.new.ifindex && !work.endpoints.get(slot).is_some_and(WorkloadKey::is_node) {
                    self.kernel.set_device(Phase::Down, ifindex, None);
                }
            }
            if bindings_change(work)
                && let Some(narrowed) = flip.old.and_then(|old| narrowed(&old, &flip.new))
            {
                self.kernel.flip(Phase::Down, *slot, Some(narrowed));
            }
        }
        if dirty.everything {
            let lost: Vec<u32> = self
                .kernel
                .devices
                .iter()
                .filter(|(_, slot)| !work.endpoints.contains_key(slot))
                .map(|(ifindex, _)| *ifindex)
                .collect();
            for ifindex in lost {
                self.kernel.set_device(Phase::Down, ifindex, None);
            }
        }
    }

    fn flip_all(&mut self, work: &mut Work, routes: &Routes) {
        let bindings_change = bindings_change(work);
        for (slot, flip) in &routes.flips {
            if let Some(old) = flip.old {
                stale(work, &old);
            }
            let now = if bindings_change {
                before_bindings(flip)
            } else {
                flip.new
            };
            if flip.old != Some(now) {
                self.kernel.flip(Phase::Flips, *slot, Some(now));
            }
        }
    }

    /// Addresses and networks to their new identities.
    fn bind_late(&mut self, work: &Work, routes: &Routes) {
        // An address that becomes bound goes before the networks that stood for it, one that loses its binding goes after
        // those that will; likewise longer prefixes come before shorter ones and go after them.
        let mut bound = BTreeSet::new();
        let late = |id: &AddressId| routes.addresses.get(id) != Some(&Route::Early);
        for (id, change) in work
            .addresses
            .iter()
            .filter(|(id, change)| change.new.is_some() && late(id))
        {
            self.kernel.set_address(Phase::Bindings, *id, change.new);
            bound.insert(*id);
        }
        for (id, change) in work.networks.iter().rev().filter(|(_, change)| change.new.is_some()) {
            self.kernel.set_network(Phase::Bindings, *id, change.new);
        }
        for (id, _) in work.networks.iter().filter(|(_, change)| change.new.is_none()) {
            self.kernel.set_network(Phase::Bindings, *id, None);
        }
        for (id, change) in work
            .addresses
            .iter()
            .filter(|(id, change)| change.new.is_none() && late(id))
        {
            self.kernel.set_address(Phase::Bindings, *id, change.new);
            bound.insert(*id);
        }
        if work.networks.is_empty() {
            self.raise_epochs(Phase::Bindings, &bound);
        } else {
            self.kernel.push(Phase::Bindings, MapOp::Epoch);
        }
    }

    fn raise_epochs(&mut self, phase: Phase, bound: &BTreeSet<AddressId>) {
        let slots: BTreeSet<u32> = bound.iter().map(|id| id.kernel_address().epoch_slot()).collect();
        if slots.len() > MANY_EPOCHS {
            self.kernel.push(phase, MapOp::Epoch);
            return;
        }
        for slot in slots {
            self.kernel.push(phase, MapOp::PeerEpoch(slot));
        }
    }

    /// Endpoints get what they may only have with the new bindings, and new ones their devices.
    fn go_live(&mut self, work: &Work, routes: &Routes) {
        for (slot, flip) in &routes.flips {
            if self.kernel.configs.get(slot) != Some(&flip.new) {
                self.kernel.flip(Phase::Live, *slot, Some(flip.new));
            }
        }
        for (slot, key) in &work.endpoints {
            if let Some(ifindex) = self.kernel.configs.get(slot).map(|config| config.ifindex) {
                self.kernel.set_device(Phase::Live, ifindex, Some(*slot));
                for ifindex in self.local.get(key).iter().flat_map(|local| &local.more) {
                    self.kernel.set_device(Phase::Live, *ifindex, Some(*slot));
                }
            }
        }
    }
}

/// Numbers that a configuration used and that may be unused now.
fn stale(work: &mut Work, config: &Config) {
    work.stale_rulesets.extend([config.egress, config.ingress]);
    work.stale_identities.insert(config.identity);
}

fn bindings_change(work: &Work) -> bool {
    !work.addresses.is_empty() || !work.networks.is_empty()
}

/// The addresses an endpoint had and keeps.
fn kept(old: &Config, new: &Config) -> Vec<Address> {
    let stays = |address: &Address| addresses_of(new).any(|other| other == *address);
    addresses_of(old).filter(stays).collect()
}

/// What an endpoint is that loses addresses, before bindings change: as it was, without them. `None` when it keeps all.
fn narrowed(old: &Config, new: &Config) -> Option<Config> {
    let mut config = *old;
    set_addresses(&mut config, kept(old, new));
    (config != *old).then_some(config)
}

/// What an endpoint is while bindings change: with the addresses that it had and keeps. A packet from or to a new address
/// of its own is judged only when all that is new is there.
fn before_bindings(flip: &Flip) -> Config {
    let Some(old) = flip.old else { return flip.new };
    let mut config = flip.new;
    set_addresses(&mut config, kept(&old, &flip.new));
    config
}
