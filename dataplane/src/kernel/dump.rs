//! Copies of what the kernel's maps hold: for adoption, and for checking what was written.

use std::{collections::HashMap, hash::Hash};

use bulkhead_policy::plan::MapDump;
use zerocopy::FromBytes;

use super::{Kernel, KernelError, maps::Table};

impl Kernel {
    /// Reads every map the planner writes.
    pub fn dump(&self) -> Result<MapDump, KernelError> {
        let maps = &self.maps;
        let mut networks = HashMap::new();
        maps.networks.for_each(|prefix, entry| {
            networks.insert((prefix.bits, prefix.key), entry);
        })?;
        Ok(MapDump {
            interned: hash(&maps.interned)?,
            alternatives: array(&maps.alternatives)?,
            ranges: array(&maps.ranges)?,
            rules: hash(&maps.rules)?,
            configs: array(&maps.configs)?,
            endpoints: array(&maps.endpoints)?,
            devices: hash(&maps.devices)?.into_iter().collect(),
            addresses: hash(&maps.addresses)?,
            networks,
        })
    }
}

fn hash<K: FromBytes + Eq + Hash, V: FromBytes>(table: &Table<K, V>) -> Result<HashMap<K, V>, KernelError> {
    let mut copy = HashMap::new();
    table.for_each(|key, value| {
        copy.insert(key, value);
    })?;
    Ok(copy)
}

/// An array up to its last element that is not all zero.
fn array<V: FromBytes + Default + PartialEq>(table: &Table<u32, V>) -> Result<Vec<V>, KernelError> {
    let mut copy = Vec::new();
    let mut zeroes = 0_usize;
    let zero = V::default();
    table.for_each(|_, value| {
        if value == zero {
            zeroes += 1;
        } else {
            copy.extend(std::iter::repeat_with(V::default).take(std::mem::take(&mut zeroes)));
            copy.push(value);
        }
    })?;
    Ok(copy)
}
