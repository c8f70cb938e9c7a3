//! Carries out the planner's writes in order, adjacent ones to the same map in one system call.

use std::{
    hash::{BuildHasher, RandomState},
    ops::RangeInclusive,
};

use bulkhead_policy::plan::{MapOp, MapWriter};
use bulkhead_verdict::layout as l;
use rustix::{
    io::Errno,
    process::{Signal, getpid, kill_process},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    KernelError, Maps,
    barrier::Barrier,
    maps::{NetworkPrefix, Table},
};

/// For tests of the real agent from outside: writes that fail, and a process that is killed between two writes, as a power
/// cut would. Writes are counted from 1; a refused one counts.
#[derive(Clone, Debug, Default)]
pub struct Fuse {
    /// Kill this process after so many writes.
    pub kill_after: Option<u64>,
    /// These writes fail.
    pub refuse: Option<RangeInclusive<u64>>,
    /// Writes so far.
    done: u64,
}

impl Fuse {
    /// What a test asked for.
    pub fn new(kill_after: Option<u64>, refuse: Option<RangeInclusive<u64>>) -> Self {
        Self {
            kill_after,
            refuse,
            done: 0,
        }
    }

    /// How many of `wanted` writes may be done before something happens.
    fn allows(&self, wanted: usize) -> usize {
        let until_kill = self.kill_after.map(|after| after.saturating_sub(self.done));
        let next = self.done.saturating_add(1);
        let until_refusal = self
            .refuse
            .as_ref()
            .filter(|range| *range.end() >= next)
            .map(|range| range.start().saturating_sub(next));
        let limits = [until_kill, until_refusal].into_iter().flatten();
        limits.fold(wanted, |allowed, limit| {
            allowed.min(usize::try_from(limit).unwrap_or(usize::MAX))
        })
    }

    /// Counts writes done; does not return after the last one allowed.
    fn burn(&mut self, done: usize) {
        self.done = self.done.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        if self.kill_after.is_some_and(|after| self.done >= after) {
            tracing::error!("killed by --fail-after-writes");
            if kill_process(getpid(), Signal::KILL).is_err() {
                std::process::abort();
            }
        }
    }

    /// The write that was not allowed.
    fn refuse(&mut self, map: &'static str) -> KernelError {
        self.burn(1);
        KernelError::Map {
            map,
            doing: "writing (refused by --refuse-writes)",
            source: Errno::IO.into(),
        }
    }
}

/// The only writer of the maps.
#[derive(Debug)]
pub(crate) struct Writer {
    maps: Maps,
    barrier: Barrier,
    fuse: Fuse,
    /// What `BK_EPOCH` and `BK_PEER_EPOCH` hold; nobody else writes them.
    epoch: u32,
    peer_epochs: Vec<u32>,
    /// The other element of `BK_EPOCH`.
    mark: u32,
}

impl Writer {
    pub(super) fn new(maps: Maps, fuse: Fuse) -> Result<Self, KernelError> {
        let epoch = maps.epoch.get(&0)?.unwrap_or(0);
        let mut mark = maps.epoch.get(&1)?.unwrap_or(0);
        if mark == 0 {
            mark = answer_mark();
            maps.epoch.set(&1, &mark)?;
        }
        let mut peer_epochs = Vec::new();
        maps.peer_epochs.for_each(|_, value| peer_epochs.push(value))?;
        Ok(Self {
            barrier: Barrier::new()?,
            maps,
            fuse,
            epoch,
            peer_epochs,
            mark,
        })
    }

    /// Raises the global epoch: every flow is judged again on its next packet.
    pub(crate) fn raise_epoch(&mut self) -> Result<(), KernelError> {
        self.epoch = self.epoch.wrapping_add(1);
        set(&self.maps.epoch, &[(0, self.epoch)], &mut self.fuse)
    }

    /// Compares the epochs with what was written last and puts right what differs: past both values, so that no approval of either
    /// holds. What was found, as text.
    pub(crate) fn put_epochs_right(&mut self) -> Result<Vec<String>, KernelError> {
        let mut found = Vec::new();
        let epoch = self.maps.epoch.get(&0)?.unwrap_or(0);
        if epoch != self.epoch {
            found.push(format!("the epoch is {epoch}, not {}", self.epoch));
            self.epoch = self.epoch.max(epoch);
        }
        let mark = self.maps.epoch.get(&1)?.unwrap_or(0);
        if mark != self.mark {
            found.push("the mark of answers is another one".to_owned());
            set(&self.maps.epoch, &[(1, self.mark)], &mut self.fuse)?;
        }
        let mut wrong = Vec::new();
        let written = &mut self.peer_epochs;
        self.maps.peer_epochs.for_each(|slot, value| {
            let place = usize::try_from(slot).ok().and_then(|slot| written.get_mut(slot));
            if let Some(written) = place.filter(|written| **written != value) {
                found.push(format!("peer epoch {slot} is {value}, not {written}"));
                *written = value.max(*written);
                wrong.push(slot);
            }
        })?;
        self.raise_peers(&wrong)?;
        if !found.is_empty() {
            self.raise_epoch()?;
        }
        Ok(found)
    }

    /// Raises peer epochs; a slot that is named twice is raised once, which judges again just as well.
    fn raise_peers(&mut self, slots: &[u32]) -> Result<(), KernelError> {
        let mut slots = slots.to_vec();
        slots.sort_unstable();
        slots.dedup();
        let mut raised = Vec::with_capacity(slots.len());
        for slot in slots {
            let place = usize::try_from(slot)
                .ok()
                .and_then(|slot| self.peer_epochs.get_mut(slot));
            let Some(value) = place else { continue };
            *value = value.wrapping_add(1);
            raised.push((slot, *value));
        }
        set(&self.maps.peer_epochs, &raised, &mut self.fuse)
    }

    /// Carries out writes of one kind.
    fn run(&mut self, ops: &[MapOp]) -> Result<(), KernelError> {
        let Self { maps, fuse, .. } = self;
        let Some(first) = ops.first() else { return Ok(()) };
        match first {
            MapOp::Intern(..) => set(&maps.interned, &pick(ops, interned), fuse),
            MapOp::RemoveIntern(..) => remove(&maps.interned, &pick(ops, removed_intern), fuse),
            MapOp::Alternative(..) => set(&maps.alternatives, &pick(ops, alternative), fuse),
            MapOp::Range(..) => set(&maps.ranges, &pick(ops, range), fuse),
            MapOp::Rule(..) => set(&maps.rules, &pick(ops, rule), fuse),
            MapOp::RemoveRule(..) => remove(&maps.rules, &pick(ops, removed_rule), fuse),
            MapOp::Config(..) => set(&maps.configs, &pick(ops, config), fuse),
            MapOp::Endpoint(..) => set(&maps.endpoints, &pick(ops, endpoint), fuse),
            MapOp::Device(..) => set(&maps.devices, &pick(ops, device), fuse),
            MapOp::RemoveDevice(..) => remove(&maps.devices, &pick(ops, removed_device), fuse),
            MapOp::Address(..) => set(&maps.addresses, &pick(ops, address), fuse),
            MapOp::RemoveAddress(..) => remove(&maps.addresses, &pick(ops, removed_address), fuse),
            MapOp::Network(..) => set(&maps.networks, &pick(ops, network), fuse),
            MapOp::RemoveNetwork(..) => remove(&maps.networks, &pick(ops, removed_network), fuse),
            MapOp::PeerEpoch(..) => self.raise_peers(&pick(ops, peer_epoch)),
            MapOp::Epoch => self.raise_epoch(),
            MapOp::Barrier => self.barrier.wait(),
        }
    }
}

impl MapWriter for Writer {
    type Error = KernelError;

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), KernelError> {
        // One kind is one map and one command, so a run of it may go in one call and keeps its order.
        ops.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b))
            .try_for_each(|run| self.run(run))
    }
}

/// A mark nobody else's rules look for, and nobody can guess: answers travel under it from one hook of a device to the other.
fn answer_mark() -> u32 {
    let [_, _, _, _, a, b, c, d] = RandomState::new().hash_one(0_u8).to_be_bytes();
    u32::from_be_bytes([a, b, c, d]) | 1
}

fn set<K, V>(table: &Table<K, V>, elements: &[(K, V)], fuse: &mut Fuse) -> Result<(), KernelError>
where
    K: IntoBytes + Immutable + Clone,
    V: IntoBytes + Immutable + Clone,
{
    let now = fuse.allows(elements.len());
    table.set_all(elements.get(..now).unwrap_or(elements))?;
    fuse.burn(now);
    if now < elements.len() {
        Err(fuse.refuse(table.name()))
    } else {
        Ok(())
    }
}

fn remove<K, V>(table: &Table<K, V>, keys: &[K], fuse: &mut Fuse) -> Result<(), KernelError>
where
    K: IntoBytes + Immutable + Clone,
    V: FromBytes,
{
    let now = fuse.allows(keys.len());
    table.remove_all(keys.get(..now).unwrap_or(keys))?;
    fuse.burn(now);
    if now < keys.len() {
        Err(fuse.refuse(table.name()))
    } else {
        Ok(())
    }
}

fn pick<T>(ops: &[MapOp], part: impl Fn(&MapOp) -> Option<T>) -> Vec<T> {
    ops.iter().filter_map(part).collect()
}

/// One function per kind: what of the operation goes into the map.
macro_rules! parts {
    ($($name:ident: $pattern:pat => $part:expr, $type:ty;)*) => {
        $(fn $name(op: &MapOp) -> Option<$type> {
            match op { $pattern => Some($part), _ => None }
        })*
    };
}

parts! {
    interned: MapOp::Intern(key, entry) => (*key, **entry), (l::InternKey, l::InternEntry);
    removed_intern: MapOp::RemoveIntern(key) => *key, l::InternKey;
    alternative: MapOp::Alternative(index, value) => (*index, *value), (u32, l::Alternative);
    range: MapOp::Range(index, value) => (*index, *value), (u32, l::Range);
    rule: MapOp::Rule(key, set) => (*key, *set), (l::RuleKey, l::PortSet);
    removed_rule: MapOp::RemoveRule(key) => *key, l::RuleKey;
    config: MapOp::Config(index, config) => (*index, **config), (u32, l::Config);
    endpoint: MapOp::Endpoint(slot, word) => (*slot, *word), (u32, l::EndpointWord);
    device: MapOp::Device(ifindex, slot) => (*ifindex, *slot), (u32, u32);
    removed_device: MapOp::RemoveDevice(ifindex) => *ifindex, u32;
    address: MapOp::Address(key, entry) => (*key, *entry), (l::AddressKey, l::AddressEntry);
    removed_address: MapOp::RemoveAddress(key) => *key, l::AddressKey;
    network: MapOp::Network(bits, key, entry) => (NetworkPrefix { bits: *bits, key: *key }, *entry), (NetworkPrefix, l::NetworkEntry);
    removed_network: MapOp::RemoveNetwork(bits, key) => NetworkPrefix { bits: *bits, key: *key }, NetworkPrefix;
    peer_epoch: MapOp::PeerEpoch(slot) => *slot, u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuse_stops_at_the_next_event() {
        let mut fuse = Fuse::new(Some(10), Some(4..=5));
        assert_eq!(fuse.allows(100), 3);
        fuse.burn(3);
        assert_eq!(fuse.allows(1), 0);
        fuse.burn(1);
        assert_eq!(fuse.allows(1), 0);
        fuse.burn(1);
        assert_eq!(fuse.allows(100), 5);
        assert_eq!(Fuse::default().allows(100), 100);
    }
}
