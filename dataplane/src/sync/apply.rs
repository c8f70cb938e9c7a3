//! Making a revision true: plan, keep, write, attach.

use std::time::{Duration, Instant};

use bulkhead_policy::{
    model::WorkloadKey,
    plan::{MapOp, PlanError},
    state::{Delta, State},
};
use bulkhead_proto::{state_digest::StateDigest, update::Revision};

use super::{Sync, SyncError, adopt};
use crate::{clock, kernel::KernelError};

/// How often a failed plan is made anew from what the kernel holds before the failure is reported.
const ATTEMPTS: u32 = 3;
/// Pause before a reported failure is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// How long unknown mid-stream TCP of a device that was at work before us is judged instead of dropped, nanoseconds.
const ADOPTION: u64 = 60_000_000_000;

/// When an adoption window that opens now closes.
pub(super) fn adoption_end() -> u64 {
    clock::monotonic().saturating_add(ADOPTION)
}

impl Sync {
    /// Makes a revision true.
    pub(super) fn revision(&mut self, revision: Revision) -> Result<(), SyncError> {
        let arrived = Instant::now();
        let number = revision.revision;
        let result = self.apply_revision(revision);
        match &result {
            Ok(()) => {
                self.hold();
                self.shared.metrics.apply.observe(arrived.elapsed().as_secs_f64());
                self.holding.apply_micros = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
                tracing::debug!(revision = number, micros = self.holding.apply_micros, "in force");
            }
            Err(error) => {
                tracing::warn!(revision = number, "not in force: {error}");
                self.holding.error = error.to_string();
            }
        }
        result
    }

    /// What was planned last is what the kernel holds.
    pub(super) fn hold(&mut self) {
        let Some((revision, digest)) = self.wanted else { return };
        self.holding.revision = revision;
        self.holding.digest = Some(digest);
        self.holding.held_at = clock::wall();
        self.holding.ever = true;
        self.holding.error.clear();
    }

    fn apply_revision(&mut self, mut revision: Revision) -> Result<(), SyncError> {
        if self.broken.is_some() {
            self.repair()?;
        }
        let mut whole = State::default();
        let digest = if revision.snapshot {
            whole
                .apply(std::mem::take(&mut revision.delta))
                .map_err(PlanError::from)?;
            StateDigest::of(&whole)
        } else {
            self.digest.after(self.truth(), &revision.delta)
        };
        if digest.digest() != revision.state_digest {
            let (wanted, found) = (revision.state_digest.short(), digest.digest().short());
            return Err(SyncError::Digest { wanted, found });
        }
        let ops = if revision.snapshot || self.is_about_the_node(&revision.delta) {
            if !revision.snapshot {
                whole = self.truth().clone();
                whole.apply(revision.delta.clone()).map_err(PlanError::from)?;
            }
            let before = self.confirm.truth.clone();
            let state = self.choose(whole);
            let planned = self.plan(None, &state);
            if planned.is_err() {
                self.confirm.truth = before;
            }
            planned?
        } else {
            self.plan(Some(&revision.delta), &State::default())?
        };
        self.digest = digest;
        self.wanted = Some((revision.revision, revision.state_digest));
        let wanted = self.confirm.truth.as_ref().unwrap_or_else(|| self.planner.state());
        if let Err(error) = self.store.keep(&revision, wanted) {
            tracing::warn!("{error}");
        }
        // The first state is what an earlier agent's records are about.
        let since = if self.planned { clock::boot() } else { 0 };
        self.shared.names.change(&self.planner.state().bindings, since);
        self.carry_out(ops)?;
        self.attach_devices()
    }

    /// Plans a change, or without one a whole state. On an error everything is as before.
    fn plan(&mut self, delta: Option<&Delta>, whole: &State) -> Result<Vec<MapOp>, SyncError> {
        let now = Instant::now();
        match delta {
            None => self.endpoints.replace(whole, now),
            Some(delta) => self.endpoints.change(delta, now),
        }
        self.open_adoption();
        let local = self.endpoints.local();
        let planned = match delta {
            None => self.planner.plan(whole, &local),
            Some(delta) => self.planner.plan_delta(delta, &local),
        };
        planned.map_err(|error| {
            self.endpoints.replace(self.planner.state(), now);
            error.into()
        })
    }

    /// Makes a whole state true.
    pub(super) fn make(&mut self, state: &State) -> Result<(), SyncError> {
        self.open_adoption();
        let ops = self.planner.plan(state, &self.endpoints.local())?;
        self.carry_out(ops)?;
        self.attach_devices()
    }

    /// Devices that nobody judged until now may have connections we know nothing of: all before the first plan of this
    /// process, later those of pods that ran without rules.
    pub(super) fn open_adoption(&mut self) {
        self.endpoints
            .open_adoption(adoption_end(), &self.attached, !self.planned);
        self.endpoints.open_host_adoption(adoption_end(), &self.attached_out);
    }

    /// Writes a plan, with the names and leases its rules ask for around it.
    pub(super) fn carry_out(&mut self, ops: Vec<MapOp>) -> Result<(), SyncError> {
        let names = self.widen_names()?;
        self.widen_leases()?;
        self.write(ops)?;
        self.narrow_leases()?;
        self.narrow_names(names)
    }

    /// Writes a plan. When a write fails, reads back what the kernel holds and plans from there, some times over.
    fn write(&mut self, mut ops: Vec<MapOp>) -> Result<(), SyncError> {
        let mut failures = 0;
        loop {
            self.shared.names.learn(&ops, clock::boot());
            let result = self.ground.apply(&ops);
            let Err(error) = result else {
                self.shared
                    .metrics
                    .map_writes
                    .inc_by(u64::try_from(ops.len()).unwrap_or(u64::MAX));
                self.mirror.follow(&ops);
                self.planned = true;
                self.broken = None;
                return Ok(());
            };
            failures += 1;
            self.shared.metrics.map_failures.inc();
            tracing::warn!(failures, "a map write failed: {}", crate::chain(&error));
            self.broken = Some(Instant::now() + RETRY);
            if failures >= ATTEMPTS {
                return Err(error.into());
            }
            let wanted = self.adopt_again()?;
            ops = self.planner.plan(&wanted, &self.endpoints.local())?;
        }
    }

    /// Makes the state true again, from whatever the kernel holds.
    pub(super) fn repair(&mut self) -> Result<(), SyncError> {
        let wanted = self.adopt_again()?;
        self.make(&wanted)
    }

    /// A planner that knows what the kernel holds; gives the state the old one wanted.
    fn adopt_again(&mut self) -> Result<State, KernelError> {
        let (planner, mirror) = adopt(&self.node, &*self.ground, &self.shared.names)?;
        self.mirror = mirror;
        Ok(std::mem::replace(&mut self.planner, planner).state().clone())
    }

    /// Puts programs on devices that lack them. A device that is gone is one endpoint's trouble, not the others'.
    pub(super) fn attach_devices(&mut self) -> Result<(), SyncError> {
        for ifindex in self.endpoints.take_released() {
            tracing::info!(
                ifindex,
                "programs taken off a device that its pod was pointed away from"
            );
            self.ground.detach(ifindex)?;
            self.attached.remove(&ifindex);
        }
        self.release_host()?;
        if self.bypass.is_some() {
            return Ok(());
        }
        self.attach_host()?;
        let missing: Vec<(WorkloadKey, u32, String)> = self
            .endpoints
            .devices()
            .filter(|(_, device)| !self.attached.contains(&device.ifindex))
            .map(|(key, device)| (key.clone(), device.ifindex, device.name.clone()))
            .collect();
        let mut failed = false;
        for (key, ifindex, name) in missing {
            self.shared.devices.learn(ifindex, &name);
            match self.ground.attach(ifindex) {
                Ok(()) => {
                    self.attached.insert(ifindex);
                    self.holding.adopted += u64::from(self.endpoints.pods().ran_unjudged(&key));
                    tracing::info!(endpoint = %key, device = name, "attached");
                    // After it is attached: what opens from now on is judged, and what was open until now is found.
                    self.inherit(&key, ifindex);
                }
                Err(error) => {
                    failed = true;
                    self.endpoints
                        .failed(&key, format!("device {name}: {}", crate::chain(&error)), Instant::now());
                }
            }
        }
        if failed {
            // Their slots are taken down again.
            let ops = self.planner.plan_delta(&Delta::default(), &self.endpoints.local())?;
            self.carry_out(ops)?;
        }
        Ok(())
    }
}
