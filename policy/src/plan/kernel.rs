//! The planner's picture of the kernel maps. Every change to the picture is a write in the plan; nothing else changes it.

use std::collections::BTreeMap;

use bulkhead_verdict::layout::{
    self, AddressEntry, Config, EndpointWord, InternKey, NetworkEntry, PortSet, RuleKey, intern_kind,
};

use super::{
    error::{Capacity, Limits},
    names::{AddressId, NetworkId, Who},
    op::MapOp,
    portset::{Interval, PortSets, name_of},
    tracked::Tracked,
};
use crate::{
    digest::Digest,
    extent::Extents,
    intern::{Interner, Name},
    model::WorkloadKey,
};

/// Where in a plan a write belongs. The order of the variants is the order of the writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    /// First thing after an adoption.
    Adopt,
    /// What a cut-off plan left behind and nothing can reach.
    Garbage,
    /// Names of numbers.
    Names,
    /// Cells of ALTERNATIVES, which nothing refers to yet.
    Alternatives,
    /// Cells of RANGES, which nothing refers to yet.
    Ranges,
    /// Entries that cannot be observed yet.
    Rules,
    /// Endpoints that are gone go, and devices that are not an endpoint's any more.
    Down,
    /// Addresses and networks go to their transition identities.
    Transition,
    /// Endpoints flip.
    Flips,
    /// Addresses and networks go to their new identities.
    Bindings,
    /// Endpoints that only become wider, and devices that go live.
    Live,
    /// Nothing that was unpublished is in use behind this.
    Barrier,
    /// What nothing can reach any more.
    Removals,
}

/// The highest numbers of entries this plan had at any time.
#[derive(Clone, Copy, Debug, Default)]
struct Peaks {
    interned: usize,
    rules: usize,
    addresses: usize,
    networks: usize,
    devices: usize,
}

/// What the maps hold, and the writes of the plan that is being made.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) identities: Interner,
    pub(crate) rulesets: Interner,
    pub(crate) rules: Interner,
    /// Entries of `NAMES_OF` that could not be read when they were adopted, by kind and number.
    pub(crate) unreadable: Tracked<(u32, u32), ()>,
    /// Names of slots: the number is the slot.
    pub(crate) slot_names: Tracked<u32, Name>,
    pub(crate) slot_of: Tracked<Digest, u32>,
    /// Slots by workload; more than one while a pod is replaced by another of its name.
    pub(crate) slots_of: Tracked<(WorkloadKey, u32), ()>,
    pub(crate) sets: PortSets,
    pub(crate) entries: Tracked<(u32, u32), PortSet>,
    pub(crate) by_peer: Tracked<(u32, u32), ()>,
    pub(crate) addresses: Tracked<AddressId, AddressEntry>,
    pub(crate) networks: Tracked<NetworkId, NetworkEntry>,
    /// Prefix lengths in use, by zone.
    lengths: Tracked<(u32, u8), u32>,
    pub(crate) words: Tracked<u32, EndpointWord>,
    /// Configurations in force, by slot.
    pub(crate) configs: Tracked<u32, Config>,
    pub(crate) devices: Tracked<u32, u32>,
    pub(crate) devices_of: Tracked<(u32, u32), ()>,
    /// Addresses and networks bound to an identity.
    pub(crate) bound: Tracked<u32, u32>,
    /// Configurations in force that name an identity as the endpoint's own.
    pub(crate) subjects: Tracked<u32, u32>,
    /// Configurations in force that name a ruleset.
    pub(crate) users: Tracked<u32, u32>,
    pub(crate) config_extents: Extents,
    pub(crate) slot_extents: Extents,
    pub(crate) freed_configs: Vec<u32>,
    pub(crate) freed_slots: Vec<u32>,
    /// The highest generation any slot ever had. One counter for all slots: no generation ever comes back anywhere.
    pub(crate) generation: Tracked<u8, u32>,
    out: BTreeMap<Phase, Vec<MapOp>>,
    peaks: Peaks,
}

impl Kernel {
    /// Empty maps.
    pub(crate) fn empty() -> Self {
        let interner = |first| Interner::new(first, [], |_, new| new);
        Self {
            identities: interner(layout::identity::FIRST_INTERNED),
            rulesets: interner(1),
            rules: interner(layout::rule::FIRST_INTERNED),
            unreadable: Tracked::default(),
            slot_names: Tracked::default(),
            slot_of: Tracked::default(),
            slots_of: Tracked::default(),
            sets: PortSets::empty(),
            entries: Tracked::default(),
            by_peer: Tracked::default(),
            addresses: Tracked::default(),
            networks: Tracked::default(),
            lengths: Tracked::default(),
            words: Tracked::default(),
            configs: Tracked::default(),
            devices: Tracked::default(),
            devices_of: Tracked::default(),
            bound: Tracked::default(),
            subjects: Tracked::default(),
            users: Tracked::default(),
            config_extents: Extents::new(1, []),
            slot_extents: Extents::new(0, []),
            freed_configs: Vec::new(),
            freed_slots: Vec::new(),
            generation: Tracked::default(),
            out: BTreeMap::new(),
            peaks: Peaks::default(),
        }
    }

    /// Adds a write.
    pub(crate) fn push(&mut self, phase: Phase, op: MapOp) {
        self.out.entry(phase).or_default().push(op);
    }

    /// True when a phase has writes.
    pub(crate) fn has(&self, phase: Phase) -> bool {
        self.out.get(&phase).is_some_and(|ops| !ops.is_empty())
    }

    // --- names ------------------------------------------------------------------------------------------------

    fn count_names(&mut self) {
        let count = [
            self.identities.len(),
            self.rulesets.len(),
            self.rules.len(),
            self.slot_names.len(),
        ];
        self.peaks.interned = self.peaks.interned.max(count.iter().sum());
    }

    fn write_name(&mut self, kind: u32, number: u32, name: &Name) {
        self.push(
            Phase::Names,
            MapOp::Intern(InternKey { kind, number }, Box::new(name.entry())),
        );
        self.count_names();
    }

    /// The number of an identity, a new one if it has none.
    pub(crate) fn identity(&mut self, digest: Digest, text: impl FnOnce() -> String) -> u32 {
        self.identities
            .number(&digest)
            .unwrap_or_else(|| self.add_identity(&Name::new(digest, &text())))
    }

    /// A new number for an identity.
    pub(crate) fn add_identity(&mut self, name: &Name) -> u32 {
        let number = self.identities.add(name.clone());
        self.write_name(intern_kind::IDENTITY, number, name);
        number
    }

    /// A new number for a ruleset, even if it has one.
    pub(crate) fn add_ruleset(&mut self, name: &Name) -> u32 {
        let number = self.rulesets.add(name.clone());
        self.write_name(intern_kind::RULESET, number, name);
        number
    }

    /// Another text for a ruleset's number.
    pub(crate) fn rename_ruleset(&mut self, number: u32, name: Name) {
        self.write_name(intern_kind::RULESET, number, &name);
        self.rulesets.rename(number, name);
    }

    /// The number of a rule, a new one if it has none.
    pub(crate) fn rule(&mut self, text: &str) -> u32 {
        let digest = Digest::of("rule", [text.as_bytes()]);
        self.rules.number(&digest).unwrap_or_else(|| {
            let name = Name::new(digest, text);
            let number = self.rules.add(name.clone());
            self.write_name(intern_kind::RULE, number, &name);
            number
        })
    }

    /// Takes a free slot for an endpoint.
    pub(crate) fn add_slot(&mut self, key: &WorkloadKey, digest: Digest) -> u32 {
        let slot = self.slot_extents.allocate(1);
        let name = Name::new(digest, &key.to_string());
        self.slot_names.set(slot, Some(name.clone()));
        self.slot_of.set(digest, Some(slot));
        self.slots_of.set((key.clone(), slot), Some(()));
        self.write_name(intern_kind::ENDPOINT, slot, &name);
        slot
    }

    /// Frees a slot that is not live.
    pub(crate) fn remove_slot(&mut self, phase: Phase, slot: u32) {
        self.freed_slots.push(slot);
        let Some(name) = self.slot_names.set(slot, None) else {
            return;
        };
        if self.slot_of.get(&name.digest) == Some(&slot) {
            self.slot_of.set(name.digest, None);
        }
        if let Some(key) = super::names::workload_of(&name.text) {
            self.slots_of.set((key, slot), None);
        }
        self.push(
            phase,
            MapOp::RemoveIntern(InternKey {
                kind: intern_kind::ENDPOINT,
                number: slot,
            }),
        );
    }

    /// Frees a number and its name.
    pub(crate) fn remove_name(&mut self, phase: Phase, kind: u32, number: u32) {
        let interner = match kind {
            intern_kind::IDENTITY => &mut self.identities,
            intern_kind::RULESET => &mut self.rulesets,
            _ => &mut self.rules,
        };
        if interner.name(number).is_some() {
            interner.remove(number);
            self.push(phase, MapOp::RemoveIntern(InternKey { kind, number }));
        }
    }

    /// Removes what could not be read, unless the number has been named anew.
    pub(crate) fn remove_unreadable(&mut self, phase: Phase) {
        let unreadable: Vec<(u32, u32)> = self.unreadable.keys().copied().collect();
        for (kind, number) in unreadable {
            self.unreadable.set((kind, number), None);
            let named = match kind {
                intern_kind::IDENTITY => self.identities.name(number).is_some(),
                intern_kind::RULESET => self.rulesets.name(number).is_some(),
                intern_kind::RULE => self.rules.name(number).is_some(),
                _ => self.slot_names.contains_key(&number),
            };
            if !named {
                self.push(phase, MapOp::RemoveIntern(InternKey { kind, number }));
            }
        }
    }

    // --- rules ------------------------------------------------------------------------------------------------

    /// Writes an entry; takes over one reference to the set.
    pub(crate) fn put_entry(&mut self, ruleset: u32, peer: u32, set: PortSet) {
        let old = self.entries.get(&(ruleset, peer)).copied();
        if old == Some(set) {
            self.sets.release(set);
            return;
        }
        self.entries.set((ruleset, peer), Some(set));
        self.by_peer.set((peer, ruleset), Some(()));
        self.push(Phase::Rules, MapOp::Rule(RuleKey { ruleset, peer }, set));
        self.peaks.rules = self.peaks.rules.max(self.entries.len());
        if let Some(old) = old {
            self.sets.release(old);
        }
    }

    /// Writes an entry with a content, unless it has it.
    pub(crate) fn put_content(&mut self, ruleset: u32, peer: u32, content: &[Interval]) {
        let name = name_of(content);
        if self.content(ruleset, peer) != Some(name) {
            let set = self.sets.acquire(name, content);
            self.put_entry(ruleset, peer, set);
        }
    }

    /// Removes an entry.
    pub(crate) fn remove_entry(&mut self, phase: Phase, ruleset: u32, peer: u32) {
        if let Some(old) = self.entries.set((ruleset, peer), None) {
            self.by_peer.set((peer, ruleset), None);
            self.sets.release(old);
            self.push(phase, MapOp::RemoveRule(RuleKey { ruleset, peer }));
        }
    }

    /// Name of the content of an entry; `None` when there is none, or a broken one.
    pub(crate) fn content(&self, ruleset: u32, peer: u32) -> Option<Digest> {
        self.entries
            .get(&(ruleset, peer))
            .and_then(|set| self.sets.content(*set))
    }

    /// What a ruleset says of somebody.
    pub(crate) fn resolve(&self, ruleset: u32, who: Who) -> Option<PortSet> {
        who.peers().find_map(|peer| self.entries.get(&(ruleset, peer)).copied())
    }

    /// Whether a ruleset says the same of two.
    pub(crate) fn says_same(&self, ruleset: u32, one: Who, other: Who) -> bool {
        self.is_same(self.resolve(ruleset, one), self.resolve(ruleset, other))
    }

    /// Whether two sets are the same, or have the same content.
    pub(crate) fn is_same(&self, one: Option<PortSet>, other: Option<PortSet>) -> bool {
        let content = |set: Option<PortSet>| set.and_then(|set| self.sets.content(set));
        one == other || content(one).is_some() && content(one) == content(other)
    }

    /// Peers that a ruleset has entries for.
    pub(crate) fn peers_of(&self, ruleset: u32) -> Vec<u32> {
        self.entries
            .range((ruleset, 0)..=(ruleset, u32::MAX))
            .map(|((_, peer), _)| *peer)
            .collect()
    }

    /// Rulesets that have an entry for a peer.
    pub(crate) fn rulesets_of(&self, peer: u32) -> Vec<u32> {
        self.by_peer
            .range((peer, 0)..=(peer, u32::MAX))
            .map(|((_, ruleset), ())| *ruleset)
            .collect()
    }

    // --- who an address is --------------------------------------------------------------------------------------

    /// Writes or removes a binding.
    pub(crate) fn set_address(&mut self, phase: Phase, id: AddressId, entry: Option<AddressEntry>) {
        if self.addresses.get(&id).copied() == entry {
            return;
        }
        if let Some(old) = self.addresses.set(id, entry) {
            self.bound.down(old.identity);
        }
        match entry {
            Some(entry) => {
                self.bound.up(entry.identity);
                self.push(phase, MapOp::Address(id.key(), entry));
            }
            None => self.push(phase, MapOp::RemoveAddress(id.key())),
        }
        self.peaks.addresses = self.peaks.addresses.max(self.addresses.len());
    }

    /// Takes over a binding.
    pub(crate) fn adopt_address(&mut self, id: AddressId, entry: AddressEntry) {
        self.addresses.set(id, Some(entry));
        self.bound.up(entry.identity);
    }

    /// Takes over a prefix.
    pub(crate) fn adopt_network(&mut self, id: NetworkId, entry: NetworkEntry) {
        self.networks.set(id, Some(entry));
        self.bound.up(entry.identity);
        self.lengths.up((id.zone, id.length));
    }

    /// Writes or removes a prefix.
    pub(crate) fn set_network(&mut self, phase: Phase, id: NetworkId, entry: Option<NetworkEntry>) {
        if self.networks.get(&id).copied() == entry {
            return;
        }
        if let Some(old) = self.networks.set(id, entry) {
            self.bound.down(old.identity);
            self.lengths.down((id.zone, id.length));
        }
        let (length, key) = id.key();
        match entry {
            Some(entry) => {
                self.bound.up(entry.identity);
                self.lengths.up((id.zone, id.length));
                self.push(phase, MapOp::Network(length, key, entry));
            }
            None => self.push(phase, MapOp::RemoveNetwork(length, key)),
        }
        self.peaks.networks = self.peaks.networks.max(self.networks.len());
    }

    /// Prefix lengths a zone has, shortest first.
    pub(crate) fn lengths(&self, zone: u32) -> Vec<u8> {
        self.lengths
            .range((zone, 0)..=(zone, u8::MAX))
            .map(|((_, length), _)| *length)
            .collect()
    }

    // --- endpoints ----------------------------------------------------------------------------------------------

    fn count_config(&mut self, config: &Config, count: impl Fn(&mut Tracked<u32, u32>, u32) -> u32) {
        count(&mut self.subjects, config.identity);
        count(&mut self.users, config.egress);
        count(&mut self.users, config.ingress);
    }

    /// Takes over a configuration in force.
    pub(crate) fn adopt_config(&mut self, slot: u32, config: Config) {
        self.configs.set(slot, Some(config));
        self.count_config(&config, Tracked::up);
    }

    fn next_generation(&mut self) -> u32 {
        let generation = self.generation.count(&0).checked_add(1).unwrap_or(1);
        self.generation.set(0, Some(generation));
        generation
    }

    /// Puts a configuration in force, or takes the endpoint down. The new word is one store.
    pub(crate) fn flip(&mut self, phase: Phase, slot: u32, config: Option<Config>) {
        let old_word = self.words.get(&slot).copied().unwrap_or_default();
        let old = self.configs.set(slot, config);
        if let Some(old) = old {
            self.count_config(&old, Tracked::down);
            self.freed_configs.push(old_word.config);
        }
        let mut word = EndpointWord {
            config: 0,
            generation: self.next_generation(),
        };
        if let Some(config) = config {
            word.config = self.config_extents.allocate(1);
            self.count_config(&config, Tracked::up);
            self.push(phase, MapOp::Config(word.config, Box::new(config)));
        }
        self.words.set(slot, Some(word));
        self.push(phase, MapOp::Endpoint(slot, word));
    }

    /// Points a device to a slot, or to nothing.
    pub(crate) fn set_device(&mut self, phase: Phase, ifindex: u32, slot: Option<u32>) {
        if self.devices.get(&ifindex).copied() == slot {
            return;
        }
        if let Some(old) = self.devices.set(ifindex, slot) {
            self.devices_of.set((old, ifindex), None);
        }
        match slot {
            Some(slot) => {
                self.devices_of.set((slot, ifindex), Some(()));
                self.push(phase, MapOp::Device(ifindex, slot));
            }
            None => self.push(phase, MapOp::RemoveDevice(ifindex)),
        }
        self.peaks.devices = self.peaks.devices.max(self.devices.len());
    }

    /// Devices that lead to a slot.
    pub(crate) fn devices_of(&self, slot: u32) -> Vec<u32> {
        self.devices_of
            .range((slot, 0)..=(slot, u32::MAX))
            .map(|((_, ifindex), ())| *ifindex)
            .collect()
    }

    // --- the end ------------------------------------------------------------------------------------------------

    /// Whether the plan, as it stands, fits.
    pub(crate) fn fits(&self, limits: &Limits) -> Result<(), Capacity> {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let needs = [
            ("NAMES_OF", count(self.peaks.interned), limits.interned),
            (
                "ALTERNATIVES",
                u64::from(self.sets.alternative_extents.end()),
                limits.alternatives,
            ),
            ("RANGES", u64::from(self.sets.range_extents.end()), limits.ranges),
            ("RULES", count(self.peaks.rules), limits.rules),
            ("ADDRESSES", count(self.peaks.addresses), limits.addresses),
            ("NETWORKS", count(self.peaks.networks), limits.networks),
            ("ENDPOINT", u64::from(self.slot_extents.end()), limits.endpoints),
            ("CONFIG", u64::from(self.config_extents.end()), limits.configs),
            ("DEVICES", count(self.peaks.devices), limits.devices),
        ];
        match needs.into_iter().find(|(_, needed, limit)| *needed > u64::from(*limit)) {
            Some((map, needed, limit)) => Err(Capacity { map, needed, limit }),
            None => Ok(()),
        }
    }

    /// Lets what was freed be used again: nothing can reach it.
    pub(crate) fn reuse_freed(&mut self) {
        self.sets.reuse_freed();
        for index in self.freed_configs.drain(..) {
            self.config_extents.release(index, 1);
        }
        for slot in self.freed_slots.drain(..) {
            self.slot_extents.release(slot, 1);
        }
    }

    /// True when the plan frees something.
    pub(crate) fn has_freed(&self) -> bool {
        self.sets.has_freed() || !self.freed_configs.is_empty() || !self.freed_slots.is_empty()
    }

    /// Ends the plan: the picture is final, and these are the writes that make the kernel so.
    pub(crate) fn commit(&mut self) -> Vec<MapOp> {
        let alternatives = std::mem::take(&mut self.sets.written_alternatives);
        let ranges = std::mem::take(&mut self.sets.written_ranges);
        self.out.insert(Phase::Alternatives, alternatives);
        self.out.insert(Phase::Ranges, ranges);
        self.reuse_freed();
        self.sets.commit();
        self.each(Interner::commit, Extents::commit);
        self.for_maps(&mut Commit);
        self.peaks = Peaks::default();
        std::mem::take(&mut self.out).into_values().flatten().collect()
    }

    /// Ends an adoption: the picture is what the maps hold.
    pub(crate) fn settle(&mut self) {
        self.each(Interner::commit, Extents::commit);
        self.for_maps(&mut Commit);
    }

    /// Takes the plan back: nothing was written.
    pub(crate) fn rollback(&mut self) {
        self.sets.rollback();
        self.each(Interner::rollback, Extents::rollback);
        self.for_maps(&mut Rollback);
        self.freed_configs.clear();
        self.freed_slots.clear();
        self.peaks = Peaks::default();
        self.out.clear();
    }

    fn each(&mut self, interner: impl Fn(&mut Interner), extents: impl Fn(&mut Extents)) {
        interner(&mut self.identities);
        interner(&mut self.rulesets);
        interner(&mut self.rules);
        extents(&mut self.config_extents);
        extents(&mut self.slot_extents);
    }

    fn for_maps(&mut self, end: &mut impl End) {
        end.map(&mut self.unreadable);
        end.map(&mut self.slot_names);
        end.map(&mut self.slot_of);
        end.map(&mut self.slots_of);
        end.map(&mut self.entries);
        end.map(&mut self.by_peer);
        end.map(&mut self.addresses);
        end.map(&mut self.networks);
        end.map(&mut self.lengths);
        end.map(&mut self.words);
        end.map(&mut self.configs);
        end.map(&mut self.devices);
        end.map(&mut self.devices_of);
        end.map(&mut self.bound);
        end.map(&mut self.subjects);
        end.map(&mut self.users);
        end.map(&mut self.generation);
    }
}

/// One of the two ends a plan can have, for maps of every type.
trait End {
    fn map<K: Ord + Clone, V: Clone>(&mut self, map: &mut Tracked<K, V>);
}

struct Commit;
struct Rollback;

impl End for Commit {
    fn map<K: Ord + Clone, V: Clone>(&mut self, map: &mut Tracked<K, V>) {
        map.commit();
    }
}

impl End for Rollback {
    fn map<K: Ord + Clone, V: Clone>(&mut self, map: &mut Tracked<K, V>) {
        map.rollback();
    }
}
