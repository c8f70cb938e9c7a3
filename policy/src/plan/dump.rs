//! What the kernel maps hold, as plain values: what a planner adopts, and the simplest thing a plan can be applied to.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
};

use bulkhead_verdict::layout::{
    AddressEntry, AddressKey, Alternative, Config, EndpointWord, InternEntry, InternKey, NetworkEntry, NetworkKey,
    PortSet, Range, RuleKey,
};

use super::op::{MapOp, MapWriter};

/// A copy of every map the planner writes. Arrays are vectors that may end where only zeroes follow.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MapDump {
    /// `NAMES_OF`.
    pub interned: HashMap<InternKey, InternEntry>,
    /// `ALTERNATIVES`.
    pub alternatives: Vec<Alternative>,
    /// `RANGES`.
    pub ranges: Vec<Range>,
    /// `RULES`.
    pub rules: HashMap<RuleKey, PortSet>,
    /// `CONFIG`.
    pub configs: Vec<Config>,
    /// `ENDPOINT`.
    pub endpoints: Vec<EndpointWord>,
    /// `DEVICES`: ifindex → slot.
    pub devices: BTreeMap<u32, u32>,
    /// `ADDRESSES`.
    pub addresses: HashMap<AddressKey, AddressEntry>,
    /// `NETWORKS`, by prefix length in bits of the whole key (see [`MapOp::Network`]) and key.
    pub networks: HashMap<(u32, NetworkKey), NetworkEntry>,
}

impl MapDump {
    /// Carries out one write. Epochs and barriers leave no trace here.
    pub fn write(&mut self, op: &MapOp) {
        match op {
            MapOp::Intern(key, entry) => drop(self.interned.insert(*key, **entry)),
            MapOp::RemoveIntern(key) => drop(self.interned.remove(key)),
            MapOp::Alternative(index, value) => put(&mut self.alternatives, *index, *value),
            MapOp::Range(index, value) => put(&mut self.ranges, *index, *value),
            MapOp::Rule(key, set) => drop(self.rules.insert(*key, *set)),
            MapOp::RemoveRule(key) => drop(self.rules.remove(key)),
            MapOp::Config(index, config) => put(&mut self.configs, *index, **config),
            MapOp::Endpoint(slot, word) => put(&mut self.endpoints, *slot, *word),
            MapOp::Device(ifindex, slot) => drop(self.devices.insert(*ifindex, *slot)),
            MapOp::RemoveDevice(ifindex) => drop(self.devices.remove(ifindex)),
            MapOp::Address(key, entry) => drop(self.addresses.insert(*key, *entry)),
            MapOp::RemoveAddress(key) => drop(self.addresses.remove(key)),
            MapOp::Network(length, key, entry) => drop(self.networks.insert((*length, *key), *entry)),
            MapOp::RemoveNetwork(length, key) => drop(self.networks.remove(&(*length, *key))),
            MapOp::PeerEpoch(_) | MapOp::Epoch | MapOp::Barrier => {}
        }
    }
}

fn put<T: Default + Clone>(array: &mut Vec<T>, index: u32, value: T) {
    let Ok(index) = usize::try_from(index) else { return };
    if array.len() <= index {
        array.resize(index.saturating_add(1), T::default());
    }
    if let Some(place) = array.get_mut(index) {
        *place = value;
    }
}

impl MapWriter for MapDump {
    type Error = Infallible;

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Infallible> {
        for op in ops {
            self.write(op);
        }
        Ok(())
    }
}
