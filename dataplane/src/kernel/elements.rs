//! Single elements and slices of the maps the planner writes, spelled as the writes that would make them so.

use bulkhead_policy::plan::{MapKind, MapOp};
use bulkhead_verdict::layout::{AddressEntry, Config, InternEntry, NetworkEntry};
use zerocopy::FromBytes;

use super::{
    KernelError, Maps,
    maps::{NetworkPrefix, Table},
    sys,
};

/// How far a slice by slice read of a map has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Option<sys::Token>);

impl Maps {
    /// What the kernel has where a write writes; `None` = nothing. Of NETWORKS it is the longest prefix that covers the key and is
    /// not longer: where that is another one with the same value, no packet is judged differently.
    pub(crate) fn element(&self, like: &MapOp) -> Result<Option<MapOp>, KernelError> {
        Ok(match like {
            MapOp::Intern(key, _) => {
                let entry: Option<InternEntry> = self.interned.get(key)?;
                entry.map(|entry| MapOp::Intern(*key, Box::new(entry)))
            }
            MapOp::Alternative(index, _) => {
                let cell = self.alternatives.get(index)?;
                cell.map(|cell| MapOp::Alternative(*index, cell))
            }
            MapOp::Range(index, _) => self.ranges.get(index)?.map(|range| MapOp::Range(*index, range)),
            MapOp::Rule(key, _) => self.rules.get(key)?.map(|set| MapOp::Rule(*key, set)),
            MapOp::Config(index, _) => {
                let config: Option<Config> = self.configs.get(index)?;
                config.map(|config| MapOp::Config(*index, Box::new(config)))
            }
            MapOp::Endpoint(slot, _) => self.endpoints.get(slot)?.map(|word| MapOp::Endpoint(*slot, word)),
            MapOp::Device(ifindex, _) => self.devices.get(ifindex)?.map(|slot| MapOp::Device(*ifindex, slot)),
            MapOp::Address(key, _) => {
                let entry: Option<AddressEntry> = self.addresses.get(key)?;
                entry.map(|entry| MapOp::Address(*key, entry))
            }
            MapOp::Network(bits, key, _) => {
                let prefix = NetworkPrefix { bits: *bits, key: *key };
                let entry: Option<NetworkEntry> = self.networks.get(&prefix)?;
                entry.map(|entry| MapOp::Network(*bits, *key, entry))
            }
            _ => None,
        })
    }

    /// The next elements of a map, about as many as wanted; `true` with the last ones. CONFIG, RANGES and ALTERNATIVES have none:
    /// what nothing refers to there may be anything.
    pub(crate) fn scan(
        &self,
        kind: MapKind,
        place: &mut Place,
        count: usize,
    ) -> Result<(Vec<MapOp>, bool), KernelError> {
        match kind {
            MapKind::Names => slice(&self.interned, place, count, |key, entry| {
                MapOp::Intern(key, Box::new(entry))
            }),
            MapKind::Rules => slice(&self.rules, place, count, MapOp::Rule),
            MapKind::Endpoints => slice(&self.endpoints, place, count, MapOp::Endpoint),
            MapKind::Devices => slice(&self.devices, place, count, MapOp::Device),
            MapKind::Addresses => slice(&self.addresses, place, count, MapOp::Address),
            MapKind::Networks => slice(&self.networks, place, count, |prefix, entry| {
                MapOp::Network(prefix.bits, prefix.key, entry)
            }),
            MapKind::Alternatives | MapKind::Ranges => Ok((Vec::new(), true)),
        }
    }
}

fn slice<K: FromBytes, V: FromBytes>(
    table: &Table<K, V>,
    place: &mut Place,
    count: usize,
    spell: impl Fn(K, V) -> MapOp,
) -> Result<(Vec<MapOp>, bool), KernelError> {
    let mut ops = Vec::new();
    let mut chunk = count.max(1);
    let last = table.slice(&mut place.0, &mut chunk, &mut |key, value| ops.push(spell(key, value)))?;
    Ok((ops, last))
}
