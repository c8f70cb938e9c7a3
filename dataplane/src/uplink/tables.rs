//! Brings the uplink's tables from some feeds to others: as many writes as entries differ, in an order in which a packet
//! meets an entry as it was or as it is to be, never neither.

use std::collections::HashMap;

use bulkhead_verdict::uplink::layout::{Hosts, Prefix, PrefixKey, cell};

use super::image::{self, Cell, Feeds, Touched};
use crate::kernel::{KernelError, UplinkMaps};

/// Cells, hosts and prefixes somewhere: the kernel's, or a test's.
pub(crate) trait Store {
    /// Why something cannot be written.
    type Error;
    /// An IPv4 /24's byte.
    fn cell(&self, network: u32) -> u8;
    fn set_cell(&mut self, network: u32, byte: u8);
    fn set_hosts(&mut self, hosts: &[(u32, Hosts)]) -> Result<(), Self::Error>;
    fn remove_hosts(&mut self, networks: &[u32]) -> Result<(), Self::Error>;
    fn set_roots(&mut self, roots: &[(u32, Prefix)]) -> Result<(), Self::Error>;
    fn set_prefixes(&mut self, prefixes: &[(PrefixKey, Prefix)]) -> Result<(), Self::Error>;
    fn remove_prefixes(&mut self, keys: &[PrefixKey]) -> Result<(), Self::Error>;
}

impl Store for &UplinkMaps {
    type Error = KernelError;

    fn cell(&self, network: u32) -> u8 {
        UplinkMaps::cell(self, network)
    }
    fn set_cell(&mut self, network: u32, byte: u8) {
        UplinkMaps::set_cell(self, network, byte);
    }
    fn set_hosts(&mut self, hosts: &[(u32, Hosts)]) -> Result<(), KernelError> {
        self.hosts.set_all(hosts)
    }
    fn remove_hosts(&mut self, networks: &[u32]) -> Result<(), KernelError> {
        self.hosts.remove_all(networks)
    }
    fn set_roots(&mut self, roots: &[(u32, Prefix)]) -> Result<(), KernelError> {
        self.roots.set_all(roots)
    }
    fn set_prefixes(&mut self, prefixes: &[(PrefixKey, Prefix)]) -> Result<(), KernelError> {
        self.prefixes.set_all(prefixes)
    }
    fn remove_prefixes(&mut self, keys: &[PrefixKey]) -> Result<(), KernelError> {
        self.prefixes.remove_all(keys)
    }
}

/// Writes the entries that a change from `old` to `new` touches; the number of writes.
///
/// # Errors
/// A table that is full, or cannot be written: what was written before stays, and a later call goes on from there.
pub(crate) fn change<S: Store>(store: &mut S, old: &Feeds, new: &Feeds) -> Result<u64, S::Error> {
    let nothing = super::lines::Lines::default();
    let changed = (0..old.len().max(new.len())).flat_map(|index| {
        let (before, after) = (old.get(index), new.get(index));
        before
            .map_or(&nothing, |lines| lines)
            .changed(after.map_or(&nothing, |lines| lines))
    });
    let touched = Touched::by(changed);
    write(store, &touched, new, |network| {
        (image::cell(old, network) != image::cell(new, network)).then_some(())
    })
}

/// Writes these entries as the feeds want them. `differs` says of an IPv4 /24 with hosts whether they are to be written.
pub(crate) fn write<S: Store>(
    store: &mut S,
    touched: &Touched,
    feeds: &Feeds,
    differs: impl Fn(u32) -> Option<()>,
) -> Result<u64, S::Error> {
    let mut writes = 0;
    let (mut hosts, mut bytes, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for network in &touched.cells {
        let (was, is) = (store.cell(*network), image::cell(feeds, *network));
        match is {
            Cell::Some(set) if was != cell::HOSTS || differs(*network).is_some() => hosts.push((*network, set)),
            Cell::All(_) if was == cell::HOSTS => gone.push(*network),
            _ => {}
        }
        if was != is.byte() {
            bytes.push((*network, is.byte()));
        }
    }
    // The hosts are there before a byte says so, and go after it says so no more.
    writes += hosts.len() + bytes.len() + gone.len();
    store.set_hosts(&hosts)?;
    for (network, byte) in bytes {
        store.set_cell(network, byte);
    }
    store.remove_hosts(&gone)?;

    let (mut set, mut gone) = (Vec::new(), Vec::new());
    // Longer prefixes before the shorter ones that say that there are any.
    for (address, class) in touched.prefixes.iter().rev() {
        let key = image::key(*address, *class);
        match image::prefix(feeds, *address, *class) {
            Some(prefix) => set.push((key, prefix)),
            None => gone.push(key),
        }
    }
    set.sort_by_key(|(key, _)| std::cmp::Reverse(key.class));
    let roots: Vec<_> = touched
        .roots
        .iter()
        .map(|index| (*index, image::root(feeds, *index)))
        .collect();
    writes += set.len() + gone.len() + roots.len();
    store.set_prefixes(&set)?;
    store.set_roots(&roots)?;
    store.remove_prefixes(&gone)?;
    Ok(u64::try_from(writes).unwrap_or(u64::MAX))
}

/// Brings tables of which nobody knows how they came to be to what the feeds want: what a predecessor left.
///
/// # Errors
/// As [`change`]; also when they cannot be read.
pub(crate) fn adopt(maps: &UplinkMaps, feeds: &Feeds) -> Result<u64, KernelError> {
    let mut touched = Touched::by(feeds.iter().flat_map(|feed| feed.all()));
    let mut hosts = HashMap::new();
    maps.hosts.for_each(|network, set| {
        hosts.insert(network, set);
    })?;
    touched.cells.extend(hosts.keys());
    touched.cells.extend(maps.listed());
    maps.prefixes
        .for_each(|key: PrefixKey, _| touched.prefixes.push(image::prefix_of(&key)))?;
    maps.roots.for_each(|index, root: Prefix| {
        if root != Prefix::default() {
            touched.roots.push(index);
        }
    })?;
    let touched = touched.sorted();
    // Hosts of which a byte does not speak, as a death between the two writes leaves them.
    let lost: Vec<u32> = hosts
        .keys()
        .copied()
        .filter(|network| maps.cell(*network) != cell::HOSTS)
        .collect();
    maps.hosts.remove_all(&lost)?;
    let held = |network: u32| hosts.get(&network).copied();
    write(&mut &*maps, &touched, feeds, |network| {
        (held(network).map(Cell::Some) != Some(image::cell(feeds, network))).then_some(())
    })
}
