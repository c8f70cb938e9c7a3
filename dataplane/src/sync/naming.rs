//! Names in rules: what the kernel is to hold of them goes in before the rules that ask, and out after them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bulkhead_policy::{
    digest::Digest,
    fqdn::{NameTables, Names, Pattern},
    model::Guard,
    state::{PortSet, Ruleset, State},
};

use super::{Sync, SyncError};

/// Patterns no rule asks for any more that are kept because a wider one does.
const FORMER_MAX: usize = 4096;

/// What is known of names.
#[derive(Debug, Default)]
pub(super) struct Naming {
    /// The sets each ruleset asks for; a ruleset that is shared with the last look is not read again.
    rulesets: BTreeMap<Digest, (Arc<Ruleset>, BTreeSet<Names>)>,
    /// Patterns the kernel holds, asked for or not.
    former: BTreeSet<Pattern>,
    /// What the kernel holds; `None` = not known.
    pub(super) held: Option<NameTables>,
    /// Devices that may have learned something.
    devices: BTreeSet<u32>,
}

impl Naming {
    /// The tables for a state.
    fn wanted(&mut self, state: &State) -> NameTables {
        self.rulesets.retain(|name, _| state.rulesets.get(name).is_some());
        for (name, ruleset) in state.rulesets.iter() {
            let known = self
                .rulesets
                .get(name)
                .is_some_and(|(known, _)| Arc::ptr_eq(known, ruleset));
            if !known {
                self.rulesets.insert(*name, (ruleset.clone(), names_in(ruleset)));
            }
        }
        let sets: BTreeSet<&Names> = self.rulesets.values().flat_map(|(_, names)| names).collect();
        let tables = NameTables::of(sets.iter().copied(), &self.former);
        if tables.classes.len() > FORMER_MAX {
            // Too many to keep those that nobody asks for.
            return NameTables::of(sets, &BTreeSet::new());
        }
        tables
    }
}

/// The sets of names a ruleset asks for. Port sets are shared among peers, so each is read once.
fn names_in(ruleset: &Ruleset) -> BTreeSet<Names> {
    let mut seen: BTreeSet<*const PortSet> = BTreeSet::new();
    let mut names = BTreeSet::new();
    for ports in ruleset.entries.values().filter(|ports| seen.insert(Arc::as_ptr(ports))) {
        for alternative in ports
            .ranges
            .iter()
            .flat_map(|range| range.enforce.iter().chain(&range.shadow))
        {
            if let Some(Guard::Name(set)) = &alternative.guard {
                names.insert(set.clone());
            }
        }
    }
    names
}

impl Sync {
    /// What the kernel holds of names, from an earlier agent.
    pub(super) fn adopt_names(&mut self) -> Result<(), SyncError> {
        self.naming.former = self.ground.former_names()?;
        self.naming.devices = self.ground.learned_devices()?;
        self.forget_names()
    }

    /// Adds the names that the state's rules ask for.
    pub(super) fn widen_names(&mut self) -> Result<NameTables, SyncError> {
        let tables = self.naming.wanted(self.planner.state());
        if self.naming.held.as_ref() == Some(&tables) {
            return Ok(tables);
        }
        for refused in &tables.refused {
            tracing::warn!("a name in a rule is not in force and matches nothing: {refused}");
        }
        self.naming.held = None;
        self.ground.widen_names(&tables)?;
        let texts = tables
            .classes
            .iter()
            .map(|(class, pattern)| (*class, pattern.to_string().into()));
        self.shared.names.set_patterns(texts.collect());
        Ok(tables)
    }

    /// Takes away those that no rule asks for any more.
    pub(super) fn narrow_names(&mut self, tables: NameTables) -> Result<(), SyncError> {
        if self.naming.held.as_ref() != Some(&tables) {
            self.ground.narrow_names(&tables)?;
            self.naming.former = tables.classes.values().cloned().collect();
            self.naming.held = Some(tables);
        }
        Ok(())
    }

    /// Forgets what endpoints learned whose devices are gone. A device that only lacks our programs (a bypass) keeps it.
    pub(super) fn forget_names(&mut self) -> Result<(), SyncError> {
        let present = self.endpoints.present()?;
        let gone: BTreeSet<u32> = self.naming.devices.difference(&present).copied().collect();
        self.naming.devices.retain(|device| present.contains(device));
        self.naming.devices.extend(&self.attached);
        if !gone.is_empty() {
            self.ground.forget_learned(&gone)?;
        }
        Ok(())
    }
}
