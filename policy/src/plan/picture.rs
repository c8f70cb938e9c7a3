//! What the maps hold when every plan so far was carried out, element by element: what a comparison with the kernel goes by.
//!
//! An element is spelled as the write that makes it so. What nothing refers to is not part of the picture: freed cells of
//! RANGES, ALTERNATIVES and CONFIG keep their last content in the kernel, which no packet can reach.

use std::{
    collections::{BTreeMap, btree_map},
    ops::Bound,
};

use bulkhead_verdict::layout::{InternKey, PortSet, RuleKey, intern_kind};

use super::{
    Planner,
    names::{AddressId, NetworkId},
    op::MapOp,
};
use crate::intern::{Interner, Name};

/// The maps the planner writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MapKind {
    /// `NAMES_OF`.
    Names,
    /// `ALTERNATIVES`.
    Alternatives,
    /// `RANGES`.
    Ranges,
    /// `RULES`.
    Rules,
    /// `ENDPOINT`, and the part of `CONFIG` that it names.
    Endpoints,
    /// `DEVICES`.
    Devices,
    /// `ADDRESSES`.
    Addresses,
    /// `NETWORKS`.
    Networks,
}

impl MapKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Names,
        Self::Alternatives,
        Self::Ranges,
        Self::Rules,
        Self::Endpoints,
        Self::Devices,
        Self::Addresses,
        Self::Networks,
    ];
}

/// The elements behind a key.
fn behind<K: Ord, V>(map: &BTreeMap<K, V>, after: Option<K>) -> btree_map::Range<'_, K, V> {
    map.range((after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded))
}

fn intern(kind: u32, number: u32, name: &Name) -> MapOp {
    MapOp::Intern(InternKey { kind, number }, Box::new(name.entry()))
}

fn rule((ruleset, peer): (u32, u32), set: PortSet) -> MapOp {
    MapOp::Rule(RuleKey { ruleset, peer }, set)
}

impl Planner {
    /// About so many elements of a map, in an order of their own: the first ones, or those behind an element that an earlier
    /// call gave last. None are left when the answer is empty.
    pub fn elements(&self, kind: MapKind, after: Option<&MapOp>, count: usize) -> Vec<MapOp> {
        match kind {
            MapKind::Names => self.names_behind(after, count),
            MapKind::Ranges => self.ranges_behind(after, count),
            MapKind::Endpoints => self.endpoints_behind(after, count),
            MapKind::Alternatives => {
                let after = index(after);
                let cells = self.kernel.sets.alternatives_behind(after).take(count);
                cells.map(|(index, cell)| MapOp::Alternative(index, cell)).collect()
            }
            MapKind::Rules => {
                let after = match after {
                    Some(MapOp::Rule(key, _)) => Some((key.ruleset, key.peer)),
                    _ => None,
                };
                let entries = behind(&self.kernel.entries, after).take(count);
                entries.map(|(key, set)| rule(*key, *set)).collect()
            }
            MapKind::Devices => {
                let devices = behind(&self.kernel.devices, index(after)).take(count);
                devices.map(|(ifindex, slot)| MapOp::Device(*ifindex, *slot)).collect()
            }
            MapKind::Addresses => {
                let after = match after {
                    Some(MapOp::Address(key, _)) => Some(AddressId::of_key(key)),
                    _ => None,
                };
                let addresses = behind(&self.kernel.addresses, after).take(count);
                addresses.map(|(id, entry)| MapOp::Address(id.key(), *entry)).collect()
            }
            MapKind::Networks => {
                let after = match after {
                    Some(MapOp::Network(length, key, _)) => NetworkId::of_key(*length, key),
                    _ => None,
                };
                let networks = behind(&self.kernel.networks, after).take(count);
                let network = |(length, key), entry| MapOp::Network(length, key, entry);
                networks.map(|(id, entry)| network(id.key(), *entry)).collect()
            }
        }
    }

    fn interner(&self, kind: u32) -> Option<&Interner> {
        match kind {
            intern_kind::IDENTITY => Some(&self.kernel.identities),
            intern_kind::RULESET => Some(&self.kernel.rulesets),
            intern_kind::RULE => Some(&self.kernel.rules),
            _ => None,
        }
    }

    fn names_behind(&self, after: Option<&MapOp>, count: usize) -> Vec<MapOp> {
        let (first, number) = match after {
            Some(MapOp::Intern(key, _)) => (key.kind, Some(key.number)),
            _ => (intern_kind::IDENTITY, None),
        };
        let after = |kind| number.filter(|_| kind == first);
        let interned = (first..intern_kind::ENDPOINT).filter_map(|kind| Some((kind, self.interner(kind)?)));
        let interned = interned.flat_map(|(kind, names)| {
            let names = names.behind(after(kind));
            names.map(move |(number, name)| intern(kind, number, name))
        });
        let slots = behind(&self.kernel.slot_names, after(intern_kind::ENDPOINT));
        let slots = slots.map(|(slot, name)| intern(intern_kind::ENDPOINT, *slot, name));
        interned.chain(slots).take(count).collect()
    }

    /// Whole port sets.
    fn ranges_behind(&self, after: Option<&MapOp>, count: usize) -> Vec<MapOp> {
        let mut ops = Vec::new();
        for (first, ranges) in self.kernel.sets.ranges_behind(index(after)) {
            if ops.len() >= count {
                break;
            }
            let cells = (first..).zip(ranges.iter());
            ops.extend(cells.map(|(index, range)| MapOp::Range(index, *range)));
        }
        ops
    }

    /// Whole slots: what CONFIG holds for one comes before its word.
    fn endpoints_behind(&self, after: Option<&MapOp>, count: usize) -> Vec<MapOp> {
        let after = match after {
            Some(MapOp::Endpoint(slot, _)) => Some(*slot),
            _ => None,
        };
        let mut ops = Vec::new();
        for (slot, word) in behind(&self.kernel.words, after) {
            if ops.len() >= count {
                break;
            }
            let config = self.kernel.configs.get(slot).filter(|_| word.config != 0);
            ops.extend(config.map(|config| MapOp::Config(word.config, Box::new(*config))));
            ops.push(MapOp::Endpoint(*slot, *word));
        }
        ops
    }

    /// What a map that the kernel can be asked for all elements of should hold where a write writes; `None` = nothing. Of
    /// arrays that is ENDPOINT: a slot without an endpoint is zero.
    pub fn element(&self, like: &MapOp) -> Option<MapOp> {
        let kernel = &self.kernel;
        match like {
            MapOp::Intern(key, _) if key.kind == intern_kind::ENDPOINT => {
                let name = kernel.slot_names.get(&key.number)?;
                Some(intern(key.kind, key.number, name))
            }
            MapOp::Intern(key, _) => {
                let name = self.interner(key.kind)?.name(key.number)?;
                Some(intern(key.kind, key.number, name))
            }
            MapOp::Rule(key, _) => {
                let place = (key.ruleset, key.peer);
                Some(rule(place, *kernel.entries.get(&place)?))
            }
            MapOp::Endpoint(slot, _) => {
                let word = kernel.words.get(slot).copied();
                Some(MapOp::Endpoint(*slot, word.unwrap_or_default()))
            }
            MapOp::Device(ifindex, _) => Some(MapOp::Device(*ifindex, *kernel.devices.get(ifindex)?)),
            MapOp::Address(key, _) => {
                let entry = kernel.addresses.get(&AddressId::of_key(key))?;
                Some(MapOp::Address(*key, *entry))
            }
            MapOp::Network(length, key, _) => {
                let id = NetworkId::of_key(*length, key).filter(|id| id.key() == (*length, *key))?;
                Some(MapOp::Network(*length, *key, *kernel.networks.get(&id)?))
            }
            _ => None,
        }
    }
}

/// The place of an array's element.
fn index(op: Option<&MapOp>) -> Option<u32> {
    match op? {
        MapOp::Alternative(index, _) | MapOp::Range(index, _) | MapOp::Device(index, _) => Some(*index),
        _ => None,
    }
}
