//! Removes what nothing can reach: at the end of a plan what it replaced, at the beginning of a full one what a cut-off
//! plan left behind.

use std::collections::BTreeSet;

use bulkhead_verdict::layout::{identity, intern_kind};

use super::{Planner, changes::Work, dirty::Dirty, kernel::Phase, names::workload_of, op::MapOp};

/// Numbers to look at.
#[derive(Default)]
struct Candidates {
    rulesets: BTreeSet<u32>,
    entries: BTreeSet<(u32, u32)>,
    identities: BTreeSet<u32>,
}

impl Planner {
    /// What a cut-off plan left behind and nothing can reach, now and by the wanted state. Its indices are used again by
    /// this very plan, behind the barrier at its beginning.
    pub(crate) fn clear_garbage(&mut self) {
        let everything = self.every_number();
        self.sweep(Phase::Garbage, everything);
        let slots: Vec<u32> = self
            .kernel
            .slot_names
            .iter()
            .filter(|(slot, name)| {
                let wanted = workload_of(&name.text).and_then(|key| self.slot(&key)) == Some(**slot);
                !wanted && self.kernel.words.get(slot).is_none_or(|word| word.config == 0)
            })
            .map(|(slot, _)| *slot)
            .collect();
        for slot in slots {
            for ifindex in self.kernel.devices_of(slot) {
                self.kernel.set_device(Phase::Garbage, ifindex, None);
            }
            self.kernel.remove_slot(Phase::Garbage, slot);
        }
        self.kernel.reuse_freed();
    }

    fn every_number(&self) -> Candidates {
        let kernel = &self.kernel;
        let peers = kernel.by_peer.keys().map(|(peer, _)| *peer);
        Candidates {
            rulesets: kernel
                .rulesets
                .iter()
                .map(|(n, _)| n)
                .chain(kernel.entries.keys().map(|(n, _)| *n))
                .collect(),
            entries: BTreeSet::new(),
            identities: kernel.identities.iter().map(|(n, _)| n).chain(peers).collect(),
        }
    }

    /// The end of a plan: behind a barrier, everything goes that it made unreachable.
    pub(crate) fn remove_unused(&mut self, dirty: &Dirty, work: Work) {
        let mut candidates = Candidates {
            rulesets: work.stale_rulesets,
            entries: work.stale_entries,
            identities: work.stale_identities,
        };
        if dirty.everything {
            let everything = self.every_number();
            candidates.rulesets.extend(everything.rulesets);
            candidates.identities.extend(everything.identities);
        }
        candidates.identities.extend(
            dirty
                .identities
                .iter()
                .filter_map(|name| self.kernel.identities.number(name)),
        );
        self.sweep(Phase::Removals, candidates);
        for slot in work.removed {
            self.kernel.remove_slot(Phase::Removals, slot);
        }
        if dirty.everything {
            self.kernel.remove_unreadable(Phase::Removals);
        }
        self.forget_rules();
        if self.kernel.has(Phase::Removals) || self.kernel.has_freed() {
            self.kernel.push(Phase::Barrier, MapOp::Barrier);
        }
    }

    fn sweep(&mut self, phase: Phase, mut candidates: Candidates) {
        for ruleset in candidates.rulesets {
            if self.kernel.users.count(&ruleset) != 0 || self.ruleset_wanted(ruleset).is_some() {
                continue;
            }
            for peer in self.kernel.peers_of(ruleset) {
                self.kernel.remove_entry(phase, ruleset, peer);
                candidates.identities.insert(peer);
            }
            self.kernel.remove_name(phase, intern_kind::RULESET, ruleset);
        }
        for (ruleset, peer) in candidates.entries {
            if !self.entry_wanted(ruleset, peer) {
                self.kernel.remove_entry(phase, ruleset, peer);
                candidates.identities.insert(peer);
            }
        }
        for number in candidates.identities {
            if number < identity::FIRST_INTERNED || self.kernel.bound.count(&number) != 0 {
                continue;
            }
            for ruleset in self.kernel.rulesets_of(number) {
                if !self.entry_wanted(ruleset, number) {
                    self.kernel.remove_entry(phase, ruleset, number);
                }
            }
            if self.kernel.subjects.count(&number) == 0 && self.kernel.rulesets_of(number).is_empty() {
                self.kernel.remove_name(phase, intern_kind::IDENTITY, number);
            }
        }
    }

    /// Rules that nothing names any more stay known, because flow records name them, until there are too many. The
    /// highest number always stays: it tells a successor where to go on counting.
    fn forget_rules(&mut self) {
        let known = self.kernel.rules.len();
        let limit = usize::try_from(self.limits.idle_rules).unwrap_or(usize::MAX);
        if known <= self.kernel.sets.rules.len().saturating_add(limit) {
            return;
        }
        let highest = self.kernel.rules.highest();
        let idle: Vec<u32> = self
            .kernel
            .rules
            .iter()
            .map(|(number, _)| number)
            .filter(|number| self.kernel.sets.rules.count(number) == 0 && Some(*number) != highest)
            .collect();
        // A quarter more than needed, so that not every plan has to look.
        let keep = limit.saturating_sub(limit / 4);
        let forget = idle.len().saturating_sub(keep);
        for number in idle.into_iter().take(forget) {
            self.kernel.remove_name(Phase::Removals, intern_kind::RULE, number);
        }
    }
}
