//! Transition identities: how an address changes hands while endpoints flip.
//!
//! An address that goes from X to Y while endpoints flip is first bound to T = (X → Y). A ruleset that an endpoint leaves
//! says of T what it says of X, a ruleset that an endpoint enters says what it says of Y, and any other says what it says
//! of X. So neither binding T nor a flip nor binding Y shows an endpoint a mix of old and new. A ruleset that one endpoint
//! leaves while another enters it would have to say both: it gets a second number first.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_verdict::layout::{AddressEntry, Config, NetworkEntry, address_flag, identity};

use super::{
    Planner,
    changes::{Change, NO_SLOT, Work},
    error::PlanError,
    kernel::Kernel,
    names::{AddressId, NetworkId, Who},
    rulesets::Contents,
};
use crate::{digest::Digest, intern::Name, model::WorkloadKey};

/// Who had an address before the plan, if that is known.
pub(crate) type Owner<'a> = &'a dyn Fn(crate::model::Zone, std::net::IpAddr) -> Option<std::sync::Arc<WorkloadKey>>;

/// An endpoint that changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flip {
    pub(crate) old: Option<Config>,
    pub(crate) new: Config,
}

/// The way a binding goes from old to new.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Route {
    /// At once, before the flips: every ruleset that is left says the same of both.
    Early,
    /// At once, behind the flips: nothing flips, or every ruleset that is entered says the same of both.
    Late,
    /// By a transition identity.
    Via(Transition),
}

/// A transition: from whom, to whom, and what the address is next to its identity meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Transition {
    from: Who,
    to: Who,
    wider: u32,
}

/// How everything that changes goes from old to new.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) flips: BTreeMap<u32, Flip>,
    /// Rulesets some endpoint leaves.
    left: BTreeSet<u32>,
    /// Rulesets some endpoint enters.
    entered: BTreeSet<u32>,
    pub(crate) addresses: BTreeMap<AddressId, Route>,
    pub(crate) networks: BTreeMap<NetworkId, Route>,
    pub(crate) numbers: BTreeMap<Transition, u32>,
}

impl Planner {
    /// Finds the flips and a way for every change, gives rulesets a second number where one has to say two things, and
    /// writes the transition identities.
    pub(crate) fn find_routes(&mut self, work: &mut Work, contents: &mut Contents) -> Result<Routes, PlanError> {
        let mut routes = loop {
            let routes = self.routes(work);
            let torn = self.torn(&routes);
            if torn.is_empty() {
                break routes;
            }
            for ruleset in torn {
                if let Some(digest) = self.kernel.rulesets.name(ruleset).map(|name| name.digest) {
                    self.renumber(digest, work, contents)?;
                }
            }
        };
        let transitions: BTreeSet<Transition> = routes.transitions().collect();
        for transition in transitions {
            let number = self.add_transition(&routes, transition);
            work.stale_identities.insert(number);
            routes.numbers.insert(transition, number);
        }
        Ok(routes)
    }

    fn routes(&mut self, work: &Work) -> Routes {
        let mut routes = Routes::default();
        for (slot, key) in &work.endpoints {
            let Some(new) = self.config(key) else { continue };
            let old = self.kernel.configs.get(slot).copied();
            if old != Some(new) {
                routes.flips.insert(*slot, Flip { old, new });
            }
            // What no device leads to judges nothing, nor does a device that is taken away first.
            if let Some(old) = old
                && self.kernel.devices.get(&new.ifindex) == Some(slot)
            {
                routes.flip(&old, &new);
            }
        }
        for (id, change) in &work.addresses {
            let (from, to) = self.address_who(work, *id, change);
            // Any interned identity will do here: what counts is whether it is a pod's or a node's.
            let entry = AddressEntry {
                identity: identity::FIRST_INTERNED,
                ..carrier(change)
            };
            let transition = Transition {
                from,
                to,
                wider: Who::of_address(&entry).wider,
            };
            let lasting = change.old.is_some() && change.new.is_some();
            routes.addresses.insert(
                *id,
                routes.route(&self.kernel, transition, !work.networks.is_empty(), lasting),
            );
        }
        for (id, change) in &work.networks {
            let (from, to) = self.network_who(work, *id, change);
            let entry = change.new.or(change.old).unwrap_or_default();
            let transition = Transition {
                from,
                to,
                wider: Who::of_network(entry).wider,
            };
            routes
                .networks
                .insert(*id, routes.route(&self.kernel, transition, true, false));
        }
        routes
    }

    /// Rulesets that would have to say two things of one transition.
    fn torn(&self, routes: &Routes) -> Vec<u32> {
        let transitions: BTreeSet<Transition> = routes.transitions().collect();
        let both = routes.left.intersection(&routes.entered).copied();
        let says_two = |ruleset: &u32| {
            transitions
                .iter()
                .any(|way| !self.kernel.says_same(*ruleset, way.from, way.to))
        };
        both.filter(says_two).collect()
    }

    fn add_transition(&mut self, routes: &Routes, transition: Transition) -> u32 {
        let from = self.identity_text(transition.from);
        let to = self.identity_text(transition.to);
        // The number is part of the name: a transition identity is never taken for another plan's.
        let unique = self.kernel.identities.next_number().to_le_bytes();
        let digest = Digest::of("transition", [from.as_bytes(), to.as_bytes(), unique.as_slice()]);
        let number = self
            .kernel
            .add_identity(&Name::new(digest, &format!("transition from {from} to {to}")));
        let live = self.kernel.users.keys().copied();
        let rulesets: BTreeSet<u32> = live.chain(routes.entered.iter().copied()).collect();
        for ruleset in rulesets {
            let who = if routes.entered.contains(&ruleset) {
                transition.to
            } else {
                transition.from
            };
            let says = self.kernel.resolve(ruleset, who);
            let otherwise = self.kernel.resolve(
                ruleset,
                Who {
                    wider: transition.wider,
                    ..Who::NOBODY
                },
            );
            if let Some(set) = says
                && !self.kernel.is_same(says, otherwise)
            {
                self.kernel.sets.hold(set);
                self.kernel.put_entry(ruleset, number, set);
            }
        }
        number
    }

    fn identity_text(&self, who: Who) -> String {
        match self.peer(who.identity) {
            Some(peer) => peer.to_string(),
            None => format!("number {}", who.identity),
        }
    }

    /// The entry an address has on its way.
    pub(crate) fn way_entry(
        &self,
        id: AddressId,
        change: &Change<AddressEntry>,
        number: u32,
        owner: Owner<'_>,
    ) -> AddressEntry {
        let mut entry = AddressEntry {
            identity: number,
            ..carrier(change)
        };
        if let (Some(old), Some(new)) = (change.old, change.new)
            && old.image_class != new.image_class
        {
            // Old rules and the new class together are a mix. For one workload they are two changes in some order; where
            // the address changes hands they are nobody's, so nobody's class it is: no lease runs.
            let key = id.of_state();
            let before = key.and_then(|(zone, address)| owner(zone, address));
            let after = key
                .and_then(|key| self.state.bindings.get(&key))
                .map(|binding| &binding.name);
            if before.is_none() || before.as_ref() != after {
                entry.image_class = 0;
            }
        }
        entry
    }
}

/// The entry an address has on its way, but for its identity.
fn carrier(change: &Change<AddressEntry>) -> AddressEntry {
    let mut entry = change.new.or(change.old).unwrap_or_default();
    let old = change.old.unwrap_or_default();
    if change.new.is_none() {
        entry.slot = NO_SLOT;
    }
    if old.flags & address_flag::LOCAL_NODE == 0 {
        entry.flags &= !address_flag::LOCAL_NODE;
    }
    entry
}

/// The entry a network has on its way.
pub(crate) fn network_way_entry(change: &Change<NetworkEntry>, number: u32) -> NetworkEntry {
    NetworkEntry {
        identity: number,
        ..change.new.or(change.old).unwrap_or_default()
    }
}

impl Routes {
    fn flip(&mut self, old: &Config, new: &Config) {
        for (left, entered) in [(old.egress, new.egress), (old.ingress, new.ingress)] {
            // The endpoint's image class is part of what a ruleset says of a peer.
            if left != entered || old.image_class != new.image_class {
                self.left.insert(left);
                self.entered.insert(entered);
            }
        }
    }

    fn route(&self, kernel: &Kernel, way: Transition, networks_change: bool, lasting: bool) -> Route {
        if self.left.is_empty() || (lasting && way.from == way.to) {
            return Route::Late;
        }
        let all_say_same = |rulesets: &BTreeSet<u32>| {
            rulesets
                .iter()
                .all(|ruleset| kernel.says_same(*ruleset, way.from, way.to))
        };
        // Where networks change too, an address without a binding changes with them; then all go the same way.
        if networks_change {
            Route::Via(way)
        } else if all_say_same(&self.entered) {
            Route::Late
        } else if all_say_same(&self.left) {
            Route::Early
        } else {
            Route::Via(way)
        }
    }

    fn transitions(&self) -> impl Iterator<Item = Transition> {
        self.addresses
            .values()
            .chain(self.networks.values())
            .filter_map(|route| match route {
                Route::Via(transition) => Some(*transition),
                Route::Early | Route::Late => None,
            })
    }
}
