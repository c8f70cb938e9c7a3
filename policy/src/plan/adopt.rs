//! The picture of maps that hold something already, whatever it is: what an agent starts from that finds pinned maps.
//!
//! A plan may have been cut after any write, so all of this is normal: port sets that no entry names, entries of rulesets
//! that no endpoint uses, names without a use, addresses bound to transition identities, slots with a name and no
//! endpoint. The next full plan uses it or frees it. What no plan leaves behind is reported as a problem; it is left out
//! of the picture, so the next full plan writes it anew.

use std::collections::BTreeMap;

use bulkhead_verdict::layout::{self, Config, PortSet, intern_kind};

use super::{
    dump::MapDump,
    error::Problem,
    kernel::Kernel,
    names::{AddressId, NetworkId, workload_of},
    portset::Arrays,
    tracked::Tracked,
};
use crate::{
    extent::Extents,
    intern::{Interner, Name},
};

/// Reads the maps.
pub(crate) fn kernel(dump: &MapDump) -> (Kernel, Vec<Problem>) {
    let mut kernel = Kernel::empty();
    let mut problems = Vec::new();
    endpoints(&mut kernel, dump, &mut problems);
    names(&mut kernel, dump, &mut problems);
    entries(&mut kernel, dump, &mut problems);
    for (key, entry) in &dump.addresses {
        kernel.adopt_address(AddressId::of_key(key), *entry);
    }
    for ((length, key), entry) in &dump.networks {
        if let Some(id) = NetworkId::of_key(*length, key) {
            kernel.adopt_network(id, *entry);
        }
    }
    for (ifindex, slot) in &dump.devices {
        kernel.devices.set(*ifindex, Some(*slot));
        kernel.devices_of.set((*slot, *ifindex), Some(()));
    }
    nameless(&mut kernel, &mut problems);
    kernel.settle();
    problems.sort_unstable();
    (kernel, problems)
}

fn endpoints(kernel: &mut Kernel, dump: &MapDump, problems: &mut Vec<Problem>) {
    let mut holders: BTreeMap<u32, u32> = BTreeMap::new();
    let mut highest = 0;
    for (slot, word) in (0_u32..).zip(&dump.endpoints) {
        highest = highest.max(word.generation);
        if word.config == 0 && word.generation == 0 {
            continue;
        }
        kernel.words.set(slot, Some(*word));
        if word.config == 0 {
            continue;
        }
        let config = usize::try_from(word.config)
            .ok()
            .and_then(|index| dump.configs.get(index))
            .copied();
        let config = config.filter(|config| *config != Config::default());
        match (config, holders.get(&word.config)) {
            (None, _) => problems.push(Problem::Config {
                slot,
                config: word.config,
            }),
            (_, Some(first)) => {
                problems.push(Problem::SharedConfig {
                    first: *first,
                    second: slot,
                    config: word.config,
                });
            }
            (Some(config), None) => {
                holders.insert(word.config, slot);
                kernel.adopt_config(slot, config);
            }
        }
    }
    kernel.generation.set(0, Some(highest));
    // An index that a broken word names is kept out of use as long as the word stands: until the next adoption.
    let indices = kernel
        .words
        .values()
        .filter(|word| word.config != 0)
        .map(|word| (word.config, 1));
    kernel.config_extents = Extents::new(1, indices);
}

fn names(kernel: &mut Kernel, dump: &MapDump, problems: &mut Vec<Problem>) {
    let mut by_kind: BTreeMap<u32, BTreeMap<u32, Name>> = BTreeMap::new();
    for (key, entry) in &dump.interned {
        if let Some(name) = Name::read(entry) {
            by_kind.entry(key.kind).or_default().insert(key.number, name);
        } else {
            kernel.unreadable.set((key.kind, key.number), Some(()));
            problems.push(Problem::Name {
                kind: key.kind,
                number: key.number,
            });
        }
    }
    let mut take = |kind: u32| by_kind.remove(&kind).unwrap_or_default();
    let users = &kernel.users;
    // Of two numbers of a ruleset: the one more endpoints use, else the later one.
    let more_used = |one: u32, other: u32| {
        if users.count(&one) > users.count(&other) {
            one
        } else {
            other
        }
    };
    let rulesets = Interner::new(1, take(intern_kind::RULESET), more_used);
    kernel.identities = Interner::new(
        layout::identity::FIRST_INTERNED,
        take(intern_kind::IDENTITY),
        |one, _| one,
    );
    kernel.rules = Interner::new(layout::rule::FIRST_INTERNED, take(intern_kind::RULE), |one, _| one);
    kernel.rulesets = rulesets;
    for (slot, name) in take(intern_kind::ENDPOINT) {
        let Some(key) = workload_of(&name.text) else {
            kernel.unreadable.set((intern_kind::ENDPOINT, slot), Some(()));
            problems.push(Problem::Name {
                kind: intern_kind::ENDPOINT,
                number: slot,
            });
            continue;
        };
        let live = |slot: &u32| kernel.configs.contains_key(slot);
        // Of two slots of an endpoint: the live one.
        if kernel
            .slot_of
            .get(&name.digest)
            .is_none_or(|other| live(&slot) && !live(other))
        {
            kernel.slot_of.set(name.digest, Some(slot));
        }
        kernel.slots_of.set((key, slot), Some(()));
        kernel.slot_names.set(slot, Some(name));
    }
    let live = kernel
        .words
        .iter()
        .filter(|(_, word)| word.config != 0)
        .map(|(slot, _)| *slot);
    let used: Vec<u32> = live.chain(kernel.slot_names.keys().copied()).collect();
    kernel.slot_extents = Extents::new(0, used.into_iter().map(|slot| (slot, 1)));
}

fn entries(kernel: &mut Kernel, dump: &MapDump, problems: &mut Vec<Problem>) {
    let arrays = Arrays {
        ranges: &dump.ranges,
        alternatives: &dump.alternatives,
    };
    let mut broken: Vec<PortSet> = Vec::new();
    // In order, so that two adoptions of one dump agree.
    let mut rules: Vec<_> = dump
        .rules
        .iter()
        .map(|(key, set)| (key.ruleset, key.peer, *set))
        .collect();
    rules.sort_unstable_by_key(|(ruleset, peer, _)| (*ruleset, *peer));
    for (ruleset, peer, set) in rules {
        if let Err(problem) = kernel.sets.adopt(set, &arrays) {
            problems.push(Problem::PortSet { ruleset, peer, problem });
            if arrays.ranges_of(set).is_some() {
                broken.push(set);
            }
        }
        kernel.entries.set((ruleset, peer), Some(set));
        kernel.by_peer.set((peer, ruleset), Some(()));
    }
    kernel.sets.adopted(&broken);
}

/// Numbers in use that have no name are not to be given out.
fn nameless(kernel: &mut Kernel, problems: &mut Vec<Problem>) {
    let mut check = |kind: &'static str, interner: &mut Interner, first: u32, used: Vec<u32>| {
        for number in used.into_iter().filter(|number| *number >= first) {
            if interner.name(number).is_none() {
                problems.push(Problem::NamelessNumber { kind, number });
                interner.skip(number);
            }
        }
    };
    let keys = |counts: &Tracked<u32, u32>| counts.keys().copied().collect::<Vec<u32>>();
    let identities: Vec<u32> = keys(&kernel.bound).into_iter().chain(keys(&kernel.subjects)).collect();
    check(
        "identity",
        &mut kernel.identities,
        layout::identity::FIRST_INTERNED,
        identities,
    );
    check("ruleset", &mut kernel.rulesets, 1, keys(&kernel.users));
    check(
        "rule",
        &mut kernel.rules,
        layout::rule::FIRST_INTERNED,
        keys(&kernel.sets.rules),
    );
    // Entries of a number that has lost its name are garbage, and their number must not be given out before they go.
    for (ruleset, peer) in kernel.entries.keys().copied().collect::<Vec<_>>() {
        if kernel.rulesets.name(ruleset).is_none() {
            kernel.rulesets.skip(ruleset);
        }
        if peer >= layout::identity::FIRST_INTERNED && kernel.identities.name(peer).is_none() {
            kernel.identities.skip(peer);
        }
    }
    let live: Vec<u32> = kernel
        .words
        .iter()
        .filter(|(_, word)| word.config != 0)
        .map(|(slot, _)| *slot)
        .collect();
    for slot in live {
        if !kernel.slot_names.contains_key(&slot) {
            problems.push(Problem::NamelessEndpoint { slot });
        }
    }
}
