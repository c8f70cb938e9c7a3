//! Carries out the planner's writes in order, adjacent ones to the same map in one system call.

use bulkhead_policy::plan::{MapOp, MapWriter};
use bulkhead_verdict::layout as l;
use rustix::process::{Signal, getpid, kill_process};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    KernelError, Maps,
    barrier::Barrier,
    maps::{NetworkPrefix, Table},
};

/// For tests: kills this process after so many map writes, as a power cut would. Whoever tests "killed between any two
/// writes" does it from outside, with the real agent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fuse(pub Option<u64>);

impl Fuse {
    /// How many of `wanted` writes may be done now.
    fn allows(self, wanted: usize) -> usize {
        self.0.map_or(wanted, |left| wanted.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// Counts writes done; does not return after the last one allowed.
    fn burn(&mut self, done: usize) {
        let Some(left) = &mut self.0 else { return };
        *left = left.saturating_sub(u64::try_from(done).unwrap_or(u64::MAX));
        if *left == 0 {
            tracing::error!("killed by --fail-after-writes");
            if kill_process(getpid(), Signal::KILL).is_err() {
                std::process::abort();
            }
        }
    }
}

/// The only writer of the maps.
#[derive(Debug)]
pub(crate) struct Writer {
    maps: Maps,
    barrier: Barrier,
    fuse: Fuse,
    /// What BK_EPOCH and BK_PEER_EPOCH hold; nobody else writes them.
    epoch: u32,
    peer_epochs: Vec<u32>,
}

impl Writer {
    pub(super) fn new(maps: Maps, fuse: Fuse) -> Result<Self, KernelError> {
        let epoch = maps.epoch.get(&0)?.unwrap_or(0);
        let mut peer_epochs = Vec::new();
        maps.peer_epochs.for_each(|_, value| peer_epochs.push(value))?;
        Ok(Self { barrier: Barrier::new()?, maps, fuse, epoch, peer_epochs })
    }

    /// Raises the global epoch: every flow is judged again on its next packet.
    pub(crate) fn raise_epoch(&mut self) -> Result<(), KernelError> {
        self.epoch = self.epoch.wrapping_add(1);
        self.maps.epoch.set(&0, &self.epoch)?;
        self.fuse.burn(1);
        Ok(())
    }

    /// Raises peer epochs; a slot that is named twice is raised once, which judges again just as well.
    fn raise_peers(&mut self, slots: &[u32]) -> Result<(), KernelError> {
        let mut slots = slots.to_vec();
        slots.sort_unstable();
        slots.dedup();
        let mut raised = Vec::with_capacity(slots.len());
        for slot in slots {
            let place = usize::try_from(slot).ok().and_then(|slot| self.peer_epochs.get_mut(slot));
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
        ops.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)).try_for_each(|run| self.run(run))
    }
}

fn set<K, V>(table: &Table<K, V>, elements: &[(K, V)], fuse: &mut Fuse) -> Result<(), KernelError>
where
    K: IntoBytes + Immutable + Clone,
    V: IntoBytes + Immutable + Clone,
{
    let now = fuse.allows(elements.len());
    table.set_all(elements.get(..now).unwrap_or(elements))?;
    fuse.burn(now);
    Ok(())
}

fn remove<K, V>(table: &Table<K, V>, keys: &[K], fuse: &mut Fuse) -> Result<(), KernelError>
where
    K: IntoBytes + Immutable + Clone,
    V: FromBytes,
{
    let now = fuse.allows(keys.len());
    table.remove_all(keys.get(..now).unwrap_or(keys))?;
    fuse.burn(now);
    Ok(())
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
