//! Keeps the kernel in step with what is wanted: one thread that owns planner, writer and devices, and takes one thing after
//! the other.
//!
//! For each revision: plan (nothing is written if it does not fit) → keep on disk → write in order → attach devices →
//! answer. A device is attached after its endpoint is in the maps: before that it would drop everything.

mod mirror;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use bulkhead_policy::{
    digest::Digest,
    model::WorkloadKey,
    plan::{Limits, MapOp, MapWriter, PlanError, Planner, Usage},
    state::{Delta, State},
};
use bulkhead_proto::{
    state_digest::StateDigest,
    update::Revision,
    v1::{AnnouncedEndpoint, EndpointGeneration, EndpointStatus, WorkloadName},
};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use self::mirror::Mirror;
use crate::{
    clock,
    endpoints::Endpoints,
    kernel::{Kernel, KernelError, Writer},
    names::{DeviceNames, Names},
    store::{Store, Stored},
};

/// How often a failed plan is made anew from what the kernel holds before the failure is reported.
const ATTEMPTS: u32 = 3;
/// Pause before a reported failure is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long unknown mid-stream TCP of a device that was at work before us is judged instead of dropped, nanoseconds.
const ADOPTION: u64 = 60_000_000_000;

/// Why a revision is not in force. What was in force before stays.
#[derive(Debug, Error)]
pub(crate) enum SyncError {
    #[error("the update does not lead to the state the controller says (digest {wanted} wanted, {found} found); a snapshot is asked for")]
    Digest { wanted: String, found: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{}", crate::chain(.0))]
    Kernel(#[from] KernelError),
    #[error("asking the kernel about devices: {0}")]
    Devices(#[from] std::io::Error),
}

impl SyncError {
    /// True when only a snapshot helps.
    pub(crate) fn needs_snapshot(&self) -> bool {
        matches!(self, Self::Digest { .. } | Self::Plan(PlanError::Delta(_) | PlanError::MissingRuleset { .. }))
    }
}

/// What the thread is asked.
#[derive(Debug)]
pub(crate) enum Input {
    /// A revision has arrived.
    Revision { revision: Box<Revision>, reply: oneshot::Sender<Result<(), SyncError>> },
    /// Devices have changed.
    Links,
    /// What the endpoints are like.
    Describe(oneshot::Sender<Vec<EndpointStatus>>),
    /// End; enforcement goes on without us.
    Stop,
}

/// What the node holds, for the controller and for status.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Holding {
    pub(crate) revision: u64,
    pub(crate) digest: Option<Digest>,
    /// Wall nanoseconds of the last map write of the revision.
    pub(crate) held_at: u64,
    pub(crate) apply_micros: u64,
    pub(crate) error: String,
    pub(crate) generations: Vec<EndpointGeneration>,
    pub(crate) announced: Vec<AnnouncedEndpoint>,
}

/// What the thread shares.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) names: Arc<Names>,
    pub(crate) devices: Arc<DeviceNames>,
    pub(crate) holding: watch::Sender<Holding>,
    pub(crate) usage: Arc<Mutex<Usage>>,
}

/// The thread's state.
pub(crate) struct Sync {
    node: String,
    kernel: Kernel,
    writer: Writer,
    planner: Planner,
    endpoints: Endpoints,
    store: Store,
    mirror: Mirror,
    digest: StateDigest,
    shared: Shared,
    holding: Holding,
    /// Devices that carry our programs.
    attached: BTreeSet<u32>,
    /// A plan of this process was carried out.
    planned: bool,
    /// The maps may be between two plans: the next look makes them whole.
    broken: Option<Instant>,
}

impl Sync {
    /// Adopts what the kernel holds: all flows are judged again, devices get this build's programs in place, and the last
    /// state on disk, which is never older than the kernel's, is made true.
    pub(crate) fn start(
        node: &str,
        kernel: Kernel,
        mut writer: Writer,
        store: Store,
        shared: Shared,
    ) -> Result<Self, SyncError> {
        if kernel.found_pins() {
            writer.raise_epoch()?;
        }
        let attached: BTreeSet<u32> = kernel.attached()?.into_iter().collect();
        for ifindex in &attached {
            if let Err(error) = kernel.attach(*ifindex) {
                tracing::warn!("keeping the former programs on a device: {}", crate::chain(&error));
            }
        }
        let (planner, mirror) = adopt(node, &kernel, &shared.names)?;
        let endpoints = Endpoints::new()?;
        let mut sync = Self {
            node: node.to_owned(),
            kernel,
            writer,
            planner,
            endpoints,
            store,
            mirror,
            digest: StateDigest::default(),
            shared,
            holding: Holding::default(),
            attached,
            planned: false,
            broken: None,
        };
        match sync.store.load() {
            Ok(Some(stored)) => sync.resume(&stored),
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
        sync.publish();
        Ok(sync)
    }

    /// Goes on with the state on disk. If that is not possible, what the kernel holds stays in force as it is.
    fn resume(&mut self, stored: &Stored) {
        self.shared.names.load(&stored.state);
        self.endpoints.replace(&stored.state, Instant::now());
        match self.make(&stored.state) {
            Ok(()) => {
                self.digest = StateDigest::of(&stored.state);
                self.holding.revision = stored.revision;
                self.holding.digest = Some(self.digest.digest());
                self.holding.held_at = clock::wall();
                tracing::info!(revision = stored.revision, endpoints = stored.state.endpoints.len(), "the last state is in force");
            }
            Err(error) => {
                self.holding.error = error.to_string();
                tracing::warn!("the last state on disk is not in force, what the kernel holds is: {error}");
            }
        }
    }

    /// The thread's whole life.
    pub(crate) fn run(mut self, inputs: &Receiver<Input>) {
        loop {
            let now = Instant::now();
            let next = self.broken.map_or(self.endpoints.next_look(), |broken| broken.min(self.endpoints.next_look()));
            match inputs.recv_timeout(next.saturating_duration_since(now)) {
                Ok(Input::Revision { revision, reply }) => {
                    let result = self.revision(*revision);
                    self.publish();
                    // Whoever asked may have gone: the stream broke. The kernel holds it all the same.
                    drop(reply.send(result));
                }
                Ok(Input::Links) => self.look(true),
                Ok(Input::Describe(reply)) => drop(reply.send(self.describe())),
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.look(false),
            }
        }
    }

    /// Makes a revision true.
    fn revision(&mut self, revision: Revision) -> Result<(), SyncError> {
        let arrived = Instant::now();
        let result = self.apply_revision(&revision);
        match &result {
            Ok(()) => {
                self.holding.revision = revision.revision;
                self.holding.digest = Some(revision.state_digest);
                self.holding.held_at = clock::wall();
                self.holding.apply_micros = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.holding.error.clear();
                tracing::debug!(revision = revision.revision, micros = self.holding.apply_micros, "in force");
            }
            Err(error) => {
                tracing::warn!(revision = revision.revision, "not in force: {error}");
                self.holding.error = error.to_string();
            }
        }
        result
    }

    fn apply_revision(&mut self, revision: &Revision) -> Result<(), SyncError> {
        if self.broken.is_some() {
            self.repair()?;
        }
        let mut whole = State::default();
        let digest = if revision.snapshot {
            whole.apply(revision.delta.clone()).map_err(PlanError::from)?;
            StateDigest::of(&whole)
        } else {
            self.digest.after(self.planner.state(), &revision.delta)
        };
        if digest.digest() != revision.state_digest {
            let (wanted, found) = (revision.state_digest.short(), digest.digest().short());
            return Err(SyncError::Digest { wanted, found });
        }
        let now = Instant::now();
        let names;
        if revision.snapshot {
            self.endpoints.replace(&whole, now);
            names = Delta::between(self.planner.state(), &whole);
        } else {
            self.endpoints.change(&revision.delta, now);
            names = revision.delta.clone();
        }
        self.open_adoption();
        let local = self.endpoints.local();
        let before = self.store_base(revision);
        let planned = match revision.snapshot {
            true => self.planner.plan(&whole, &local),
            false => self.planner.plan_delta(&revision.delta, &local),
        };
        let ops = match planned {
            Ok(ops) => ops,
            Err(error) => {
                self.endpoints.replace(&self.planner.state().clone(), now);
                return Err(error.into());
            }
        };
        self.digest = digest;
        if let Err(error) = self.store.keep(revision, &before) {
            tracing::warn!("{error}");
        }
        self.shared.names.change(&names, if self.planned { clock::boot() } else { 0 });
        self.carry_out(ops)?;
        self.attach_devices()
    }

    /// The state a difference on disk has to be a difference to, where the file is to be written anew.
    fn store_base(&self, revision: &Revision) -> State {
        if self.store.appends(revision) { State::default() } else { self.planner.state().clone() }
    }

    /// Makes a whole state true.
    fn make(&mut self, state: &State) -> Result<(), SyncError> {
        self.open_adoption();
        let ops = self.planner.plan(state, &self.endpoints.local())?;
        self.carry_out(ops)?;
        self.attach_devices()
    }

    /// Before the first plan of this process: devices that nobody enforced until now have connections we know nothing of.
    fn open_adoption(&mut self) {
        if !self.planned {
            self.endpoints.open_adoption(clock::monotonic().saturating_add(ADOPTION), &self.attached);
        }
    }

    /// Writes a plan. When a write fails, reads back what the kernel holds and plans from there, some times over.
    fn carry_out(&mut self, mut ops: Vec<MapOp>) -> Result<(), SyncError> {
        let mut failures = 0;
        loop {
            self.shared.names.learn(&ops, clock::boot());
            let result = self.writer.apply(&ops);
            let Err(error) = result else {
                self.mirror.follow(&ops);
                self.planned = true;
                self.broken = None;
                return Ok(());
            };
            failures += 1;
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
    fn repair(&mut self) -> Result<(), SyncError> {
        let wanted = self.adopt_again()?;
        self.make(&wanted)
    }

    /// A planner that knows what the kernel holds; gives the state the old one wanted.
    fn adopt_again(&mut self) -> Result<State, KernelError> {
        let (planner, mirror) = adopt(&self.node, &self.kernel, &self.shared.names)?;
        self.mirror = mirror;
        Ok(std::mem::replace(&mut self.planner, planner).state().clone())
    }

    /// Puts programs on devices that lack them. A device that is gone is one endpoint's trouble, not the others'.
    fn attach_devices(&mut self) -> Result<(), SyncError> {
        for ifindex in self.endpoints.take_released() {
            tracing::info!(ifindex, "programs taken off a device that its pod was pointed away from");
            self.kernel.detach(ifindex)?;
            self.attached.remove(&ifindex);
        }
        let missing: Vec<(WorkloadKey, u32, String)> = self
            .endpoints
            .devices()
            .filter(|(_, device)| !self.attached.contains(&device.ifindex))
            .map(|(key, device)| (key.clone(), device.ifindex, device.name.clone()))
            .collect();
        let mut failed = false;
        for (key, ifindex, name) in missing {
            self.shared.devices.learn(ifindex, &name);
            match self.kernel.attach(ifindex) {
                Ok(()) => {
                    self.attached.insert(ifindex);
                    tracing::info!(endpoint = %key, device = name, "attached");
                }
                Err(error) => {
                    failed = true;
                    self.endpoints.failed(&key, format!("device {name}: {}", crate::chain(&error)), Instant::now());
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

    /// Looks at devices, and repairs what a failed write left.
    fn look(&mut self, links_changed: bool) {
        let now = Instant::now();
        if self.broken.is_some_and(|broken| broken <= now) {
            self.broken = Some(now + RETRY);
            match self.repair() {
                Ok(()) => self.holding.error.clear(),
                Err(error) => tracing::warn!("still not in force: {error}"),
            }
        }
        match self.refresh(links_changed, now) {
            Ok(()) => {}
            Err(error) => tracing::warn!("looking at devices: {error}"),
        }
        self.publish();
    }

    fn refresh(&mut self, links_changed: bool, now: Instant) -> Result<(), SyncError> {
        let changed = self.endpoints.refresh(links_changed, now)?;
        if links_changed {
            self.attached = self.kernel.attached()?.into_iter().collect();
        }
        // Without a state there is nothing to plan: what the kernel holds is an earlier agent's and stays.
        if !changed || !self.planned || self.broken.is_some() {
            return Ok(());
        }
        let ops = self.planner.plan_delta(&Delta::default(), &self.endpoints.local())?;
        self.carry_out(ops)?;
        self.attach_devices()
    }

    /// Tells the stream and the status what is so now.
    fn publish(&mut self) {
        for (_, device) in self.endpoints.devices() {
            self.shared.devices.learn(device.ifindex, &device.name);
        }
        self.holding.generations = self.generations();
        self.holding.announced = self.announced();
        let holding = &self.holding;
        self.shared.holding.send_if_modified(|old| {
            let changed = old != holding;
            if changed {
                old.clone_from(holding);
            }
            changed
        });
        *self.shared.usage.lock().unwrap_or_else(PoisonError::into_inner) = self.planner.usage();
    }

    fn generations(&self) -> Vec<EndpointGeneration> {
        let one = |(key, endpoint): (&WorkloadKey, &bulkhead_policy::state::Endpoint)| {
            let (live, why) = self.live(key);
            EndpointGeneration {
                workload: Some(workload(key)),
                pod_uid: endpoint.uid.clone(),
                generation: live.map_or(0, |live| live.generation),
                enforced: live.is_some(),
                why,
            }
        };
        self.planner.state().endpoints.iter().map(one).collect()
    }

    /// An endpoint's place in the kernel when it is enforced, else why it is not.
    fn live(&self, key: &WorkloadKey) -> (Option<mirror::Live>, String) {
        match self.endpoints.device(key) {
            None => (None, "not wanted on this node".to_owned()),
            Some(Err(why)) => (None, why.to_owned()),
            Some(Ok(device)) if !self.attached.contains(&device.ifindex) => {
                (None, format!("device {}: programs are not attached", device.name))
            }
            Some(Ok(device)) => match self.mirror.of_device(device.ifindex) {
                Some(live) => (Some(live), String::new()),
                None => (None, format!("device {}: has no configuration in the kernel", device.name)),
            },
        }
    }

    fn announced(&self) -> Vec<AnnouncedEndpoint> {
        let endpoints = &self.planner.state().endpoints;
        let one = |(key, device): (&WorkloadKey, &crate::endpoints::Device)| AnnouncedEndpoint {
            workload: Some(workload(key)),
            pod_uid: endpoints.get(key).map_or_else(String::new, |endpoint| endpoint.uid.clone()),
            addresses: device.addresses.iter().map(|ip| bulkhead_proto::convert::address_to_bytes(*ip)).collect(),
            device: device.name.clone(),
            ifindex: device.ifindex,
            image_digests: Vec::new(),
        };
        self.endpoints.devices().map(one).collect()
    }

    fn describe(&self) -> Vec<EndpointStatus> {
        let state = self.planner.state();
        let policies = |name: &Digest| state.rulesets.get(name).map(|ruleset| ruleset.policies.clone()).unwrap_or_default();
        let one = |(key, endpoint): (&WorkloadKey, &bulkhead_policy::state::Endpoint)| {
            let (live, error) = self.live(key);
            let device = self.endpoints.device(key).and_then(Result::ok);
            let identity = live.map_or(0, |live| live.identity);
            EndpointStatus {
                workload: Some(workload(key)),
                pod_uid: endpoint.uid.clone(),
                addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
                device: device.map_or_else(String::new, |device| device.name.clone()),
                ifindex: device.map_or(0, |device| device.ifindex),
                slot: live.map_or(0, |live| live.slot),
                identity,
                identity_name: endpoint.identity.to_string(),
                identity_atoms: atoms(state, endpoint),
                egress_ruleset: endpoint.egress.short(),
                ingress_ruleset: endpoint.ingress.short(),
                egress_policies: policies(&endpoint.egress),
                ingress_policies: policies(&endpoint.ingress),
                generation: live.map_or(0, |live| live.generation),
                enforced: live.is_some(),
                error,
            }
        };
        state.endpoints.iter().map(one).collect()
    }
}

fn atoms(state: &State, endpoint: &bulkhead_policy::state::Endpoint) -> Vec<String> {
    match endpoint.identity {
        bulkhead_policy::state::PeerId::Identity(digest) => {
            state.identities.get(&digest).map(|identity| identity.atoms.clone()).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn workload(key: &WorkloadKey) -> WorkloadName {
    WorkloadName { namespace: key.namespace.clone(), name: key.name.clone() }
}

/// A planner for what the kernel holds.
fn adopt(node: &str, kernel: &Kernel, names: &Names) -> Result<(Planner, Mirror), KernelError> {
    let dump = kernel.dump()?;
    names.adopt(&dump);
    let (planner, problems) = Planner::adopt(node, Limits::default(), &dump);
    for problem in problems {
        tracing::warn!("adopting the maps: {problem}");
    }
    Ok((planner, Mirror::of(&dump)))
}
