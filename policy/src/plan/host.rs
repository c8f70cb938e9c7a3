//! Carries writes out on the verdict's maps in memory: what the simulator and the tests do in place of the agent.

use std::convert::Infallible;

use bulkhead_verdict::{
    host::{MemMaps, Prefix},
    layout::NetworkKey,
};

use super::op::{MapOp, MapWriter};

fn prefix(length: u32, key: NetworkKey) -> Prefix {
    Prefix { length, key }
}

impl MapWriter for MemMaps {
    type Error = Infallible;

    /// Names are left out: no verdict asks for them ([`super::Names::observe`] keeps them).
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Infallible> {
        for op in ops {
            match op {
                MapOp::Intern(..) | MapOp::RemoveIntern(_) | MapOp::Barrier => {}
                MapOp::Alternative(index, cell) => drop(self.alternatives.insert(*index, *cell)),
                MapOp::Range(index, range) => drop(self.ranges.insert(*index, *range)),
                MapOp::Rule(key, set) => drop(self.rules.insert(*key, *set)),
                MapOp::RemoveRule(key) => drop(self.rules.remove(key)),
                MapOp::Config(index, config) => drop(self.configs.insert(*index, **config)),
                MapOp::Endpoint(slot, word) => drop(self.endpoints.insert(*slot, *word)),
                MapOp::Device(ifindex, slot) => drop(self.devices.insert(*ifindex, *slot)),
                MapOp::RemoveDevice(ifindex) => drop(self.devices.remove(ifindex)),
                MapOp::Address(key, entry) => drop(self.addresses.insert(*key, *entry)),
                MapOp::RemoveAddress(key) => drop(self.addresses.remove(key)),
                MapOp::Network(length, key, entry) => drop(self.networks.insert(prefix(*length, *key), *entry)),
                MapOp::RemoveNetwork(length, key) => drop(self.networks.remove(&prefix(*length, *key))),
                MapOp::PeerEpoch(slot) => {
                    let epoch = self.peer_epochs.entry(*slot).or_default();
                    *epoch = epoch.wrapping_add(1);
                }
                MapOp::Epoch => self.epoch = self.epoch.wrapping_add(1),
            }
        }
        Ok(())
    }
}
