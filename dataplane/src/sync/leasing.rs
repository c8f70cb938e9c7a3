//! Leases that rules ask for: into the kernel before the rules and classes that need them, out after them. The kernel compares the
//! deadlines by itself, so nothing here has to run for a lease to end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use bulkhead_policy::{
    digest::Digest,
    lease::{self, Deadline, LeaseTables, Profile},
    state::{Ruleset, State},
};
use bulkhead_verdict::layout::{LEASES, LeaseKey};

use super::{Sync, SyncError, apply};
use crate::{clock::Wall, kernel::KernelError};

/// How far a deadline in the kernel may be from what the wall clock says before it is written again, nanoseconds: less than that is
/// the clock being slewed, more is somebody having set it.
const SLACK: u64 = 10_000_000;

/// What is known of leases.
#[derive(Debug, Default)]
pub(super) struct Leasing {
    /// The profiles each ruleset asks for; a ruleset that is shared with the last look is not read again.
    rulesets: BTreeMap<Digest, (Arc<Ruleset>, BTreeSet<Profile>)>,
    wanted: LeaseTables,
    /// What the kernel holds, `CLOCK_BOOTTIME`.
    held: BTreeMap<(u32, u32), u64>,
}

impl Leasing {
    fn tables(&mut self, state: &State) -> LeaseTables {
        self.rulesets.retain(|name, _| state.rulesets.get(name).is_some());
        for (name, ruleset) in state.rulesets.iter() {
            let known = self
                .rulesets
                .get(name)
                .is_some_and(|(known, _)| Arc::ptr_eq(known, ruleset));
            if !known {
                self.rulesets.insert(*name, (ruleset.clone(), lease::asked(ruleset)));
            }
        }
        let asked = self.rulesets.values().flat_map(|(_, asked)| asked).cloned().collect();
        LeaseTables::of(&asked, &state.leases)
    }

    /// What the kernel is to hold, by the wall clock as it is now.
    fn deadlines(&self) -> BTreeMap<(u32, u32), u64> {
        let wall = Wall::now();
        let boot = |deadline: Deadline| match deadline {
            Deadline::ALWAYS => u64::MAX,
            Deadline(moment) => wall.to_boot(moment),
        };
        let leases = self.wanted.leases.iter();
        leases.map(|(key, deadline)| (*key, boot(*deadline))).collect()
    }
}

fn key((profile, image_class): (u32, u32)) -> LeaseKey {
    LeaseKey { profile, image_class }
}

impl Sync {
    /// What the kernel holds of leases, from an earlier agent.
    pub(super) fn adopt_leases(&mut self) -> Result<(), KernelError> {
        let held = self.ground.leases()?;
        let held = held.into_iter();
        self.leasing.held = held
            .map(|(key, deadline)| ((key.profile, key.image_class), deadline))
            .collect();
        Ok(())
    }

    /// Adds the leases that the state's rules ask for. Those that end sooner than before do at once.
    pub(super) fn widen_leases(&mut self) -> Result<(), SyncError> {
        let tables = self.leasing.tables(self.planner.state());
        for refused in tables
            .refused
            .iter()
            .filter(|it| !self.leasing.wanted.refused.contains(it))
        {
            tracing::error!("leases are not in force, and rules that ask for them allow nothing: {refused}");
        }
        self.leasing.wanted = tables;
        let limit = usize::try_from(LEASES).unwrap_or(usize::MAX);
        let new = self.leasing.wanted.leases.keys();
        let new = new.filter(|key| !self.leasing.held.contains_key(*key)).count();
        if self.leasing.held.len().saturating_add(new) > limit {
            // No room for old and new together: what both have stays, the rest is closed for a moment.
            self.narrow_leases()?;
        }
        self.write_leases()
    }

    /// Writes the deadlines that are not what the wall clock says.
    pub(super) fn write_leases(&mut self) -> Result<(), SyncError> {
        let wanted = self.leasing.deadlines();
        let held = &self.leasing.held;
        let wrong = |key: &(u32, u32), deadline: u64| held.get(key).is_none_or(|held| held.abs_diff(deadline) > SLACK);
        let changed: Vec<((u32, u32), u64)> = wanted
            .into_iter()
            .filter(|(key, deadline)| wrong(key, *deadline))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        let sooner = changed
            .iter()
            .any(|(key, deadline)| held.get(key).is_some_and(|held| held > deadline));
        let elements: Vec<(LeaseKey, u64)> = changed.iter().map(|(one, deadline)| (key(*one), *deadline)).collect();
        let result = self.ground.set_leases(&elements);
        self.leased(result)?;
        self.leasing.held.extend(changed);
        if sooner {
            // A live flow may rely on the later end for as long as it was told.
            self.ground.raise_epoch()?;
        }
        Ok(())
    }

    /// Compares what the kernel holds with what was written last, and puts it right; how many were looked at.
    pub(super) fn compare_leases(&mut self) -> Result<usize, SyncError> {
        let found = self.ground.leases()?;
        let found: BTreeMap<(u32, u32), u64> = found
            .into_iter()
            .map(|(key, deadline)| ((key.profile, key.image_class), deadline))
            .collect();
        let held = &self.leasing.held;
        let keys: BTreeSet<(u32, u32)> = held.keys().chain(found.keys()).copied().collect();
        let looked_at = keys.len().max(1);
        let (mut said, mut written, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for one in keys {
            let (wanted, there) = (held.get(&one).copied(), found.get(&one).copied());
            if wanted == there {
                continue;
            }
            let (profile, class) = one;
            said.push(format!(
                "the lease of profile {profile} for image class {class} ends at {there:?} and should at {wanted:?} (boot time, ns)"
            ));
            match wanted {
                Some(deadline) => written.push((key(one), deadline)),
                None => removed.push(key(one)),
            }
        }
        if !said.is_empty() {
            let result = self.ground.set_leases(&written);
            self.leased(result)?;
            let result = self.ground.remove_leases(&removed);
            self.leased(result)?;
            self.ground.raise_epoch()?;
        }
        self.said("LEASE", &said);
        Ok(looked_at)
    }

    /// Takes away the leases that no rule asks for any more, or that no pod has.
    pub(super) fn narrow_leases(&mut self) -> Result<(), SyncError> {
        let leases = &self.leasing.wanted.leases;
        let held = self.leasing.held.keys();
        let gone: Vec<(u32, u32)> = held.filter(|key| !leases.contains_key(*key)).copied().collect();
        if gone.is_empty() {
            return Ok(());
        }
        let keys: Vec<LeaseKey> = gone.iter().copied().map(key).collect();
        let result = self.ground.remove_leases(&keys);
        self.leased(result)?;
        for key in &gone {
            self.leasing.held.remove(key);
        }
        let classes: BTreeSet<u32> = gone.iter().map(|(_, class)| *class).collect();
        let state = self.planner.state();
        let endpoints = state.endpoints.values();
        let mut borne = endpoints
            .map(|endpoint| endpoint.image_class)
            .chain(state.bindings.values().map(|binding| binding.image_class));
        // A pod that gets another class is judged again because of that; one that keeps it is told so here.
        if borne.any(|class| classes.contains(&class)) {
            self.ground.raise_epoch()?;
        }
        Ok(())
    }

    /// After a failed write nobody knows what the kernel holds: it is read again, and what is wrong is repaired soon.
    fn leased(&mut self, result: Result<(), KernelError>) -> Result<(), SyncError> {
        result.map_err(|error| {
            self.broken = Some(Instant::now() + apply::RETRY);
            if let Err(error) = self.adopt_leases() {
                tracing::warn!("reading the leases back: {}", crate::chain(&error));
            }
            error.into()
        })
    }
}
