//! Keeps the kernel in step with what is wanted: one thread that owns planner, writer and devices, and takes one thing after
//! the other.
//!
//! For each revision: plan (nothing is written if it does not fit) → keep on disk → write in order → attach devices →
//! answer. A device is attached after its endpoint is in the maps: before that it would drop everything.

mod apply;
mod bypass;
mod canary;
mod confirm;
mod drift;
mod host;
mod inherit;
mod leasing;
mod mirror;
mod naming;
mod pods;
mod report;
mod sample;

pub(crate) use canary::Way;
pub(crate) use drift::Pace;
pub(crate) use inherit::NO_CPU;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use bulkhead_policy::{
    digest::Digest,
    model::WorkloadKey,
    plan::{Limits, PlanError, Planner, Usage},
    state::Delta,
};
use bulkhead_proto::{
    state_digest::StateDigest,
    update::Revision,
    v1::{AnnouncedEndpoint, EndpointGeneration, EndpointStatus},
};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use self::{
    bypass::Bypass, canary::Canary, confirm::Confirm, drift::Drift, leasing::Leasing, mirror::Mirror, naming::Naming,
    pods::Waiter,
};
pub(crate) use self::{bypass::BypassError, pods::TOO_MANY};
use crate::{
    endpoints::{Devices, Endpoints, Pod, Pods},
    ground::Ground,
    kernel::KernelError,
    memory,
    metrics::Metrics,
    names::{DeviceNames, Names},
    store::{Store, Stored},
};

/// Why a revision is not in force. What was in force before stays.
#[derive(Debug, Error)]
pub(crate) enum SyncError {
    #[error(
        "the update does not lead to the state the controller says (digest {wanted} wanted, {found} found); a snapshot is asked for"
    )]
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
        matches!(
            self,
            Self::Digest { .. } | Self::Plan(PlanError::Delta(_) | PlanError::MissingRuleset { .. })
        )
    }
}

/// What the thread is asked.
#[derive(Debug)]
pub(crate) enum Input {
    /// A revision has arrived.
    Revision {
        revision: Box<Revision>,
        reply: oneshot::Sender<Result<(), SyncError>>,
    },
    /// Devices have changed.
    Links,
    /// Every pod that the container runtime says runs.
    Pods(Vec<Pod>),
    /// A pod has its network and waits to start; the answer comes when its first packet will be judged, and not before.
    Attach { pod: Box<Pod>, reply: oneshot::Sender<()> },
    /// A pod starts without that.
    StartsUnjudged(WorkloadKey),
    /// A sandbox loses its network.
    Detach(String),
    /// Nothing is judged until then (wall nanoseconds); 0 ends it.
    Bypass {
        until: u64,
        reason: String,
        reply: oneshot::Sender<Result<u32, BypassError>>,
    },
    /// The trial of that number is confirmed.
    Confirmed(u64),
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
    /// Addresses of the node's own devices.
    pub(crate) own: Vec<IpAddr>,
    /// The node has had a state at any time.
    pub(crate) ever: bool,
    /// Pods here that run without rules.
    pub(crate) unmanaged: u32,
    /// Pods that were adopted after they had run without rules.
    pub(crate) adopted: u64,
    /// The node's own rules are tried: the number of the trial.
    pub(crate) trial: Option<u64>,
    /// Why the node's own rules are not those that are wanted; empty when they are.
    pub(crate) reverted: String,
    /// While nothing is judged: until when (wall nanoseconds), and why.
    pub(crate) bypass: Option<(u64, String)>,
}

/// What the thread shares.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) names: Arc<Names>,
    pub(crate) devices: Arc<DeviceNames>,
    pub(crate) holding: watch::Sender<Holding>,
    pub(crate) usage: Arc<Mutex<Usage>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The thread's state.
pub(crate) struct Sync {
    node: String,
    ground: Box<dyn Ground>,
    planner: Planner,
    endpoints: Endpoints,
    store: Store,
    mirror: Mirror,
    digest: StateDigest,
    /// Number and digest of the state that was planned last.
    wanted: Option<(u64, Digest)>,
    shared: Shared,
    holding: Holding,
    /// Devices that carry our programs.
    attached: BTreeSet<u32>,
    /// Devices that lead out of the node and carry our programs.
    attached_out: BTreeSet<u32>,
    /// What OWN holds, as far as this process wrote it.
    own_written: Option<BTreeSet<IpAddr>>,
    /// A plan of this process was carried out.
    planned: bool,
    /// The maps may be between two plans: the next look makes them whole.
    broken: Option<Instant>,
    /// Pods that wait to start.
    waiters: Vec<Waiter>,
    bypass: Option<Bypass>,
    /// Number of the last flow that was made for a connection older than its judge.
    inherited: u64,
    naming: Naming,
    drift: Drift,
    canary: Canary,
    leasing: Leasing,
    confirm: Confirm,
}

impl Sync {
    /// Adopts what the kernel holds: all flows are judged again, devices get this build's programs in place, and the last
    /// state on disk, which is never older than the kernel's, is made true.
    pub(crate) fn start(
        node: &str,
        mut ground: Box<dyn Ground>,
        devices: Box<dyn Devices>,
        store: Store,
        shared: Shared,
        confirm_within: Duration,
    ) -> Result<Self, SyncError> {
        if ground.found() {
            ground.raise_epoch()?;
        }
        let attached: BTreeSet<u32> = ground.attached()?.into_iter().collect();
        for ifindex in &attached {
            if let Err(error) = ground.attach(*ifindex) {
                tracing::warn!("keeping the former programs on a device: {}", crate::chain(&error));
            }
        }
        let (planner, mirror) = adopt(node, &*ground, &shared.names)?;
        let pods = Pods::load(&store.pods_path()).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; it is ignored", store.pods_path().display());
            Pods::default()
        });
        let endpoints = Endpoints::new(pods, devices);
        let holding = Holding {
            ever: store.exists() || !attached.is_empty(),
            ..Holding::default()
        };
        let mut sync = Self {
            node: node.to_owned(),
            ground,
            planner,
            endpoints,
            store,
            mirror,
            digest: StateDigest::default(),
            wanted: None,
            shared,
            holding,
            attached,
            attached_out: BTreeSet::new(),
            own_written: None,
            planned: false,
            broken: None,
            waiters: Vec::new(),
            bypass: None,
            inherited: inherit::first_id(),
            naming: Naming::default(),
            drift: Drift::new(Pace::OFF),
            canary: Canary::new(Duration::ZERO),
            leasing: Leasing::default(),
            confirm: Confirm::default(),
        };
        sync.adopt_confirmations(confirm_within);
        sync.adopt_host()?;
        sync.adopt_names()?;
        sync.adopt_leases()?;
        sync.end_former_bypass();
        match sync.store.load() {
            Ok(Some(stored)) => sync.resume(&stored),
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
        sync.publish();
        memory::give_back();
        Ok(sync)
    }

    /// The same, comparing the kernel with what it should hold at a pace, and looking for packets that go past our programs
    /// at an interval; zero = never.
    pub(crate) fn watching(self, pace: Pace, canary: Duration) -> Self {
        Self {
            drift: Drift::new(pace),
            canary: Canary::new(canary),
            ..self
        }
    }

    /// Goes on with the state on disk. If that is not possible, what the kernel holds stays in force as it is.
    fn resume(&mut self, stored: &Stored) {
        self.shared.names.load(&stored.state);
        let state = self.choose(stored.state.clone());
        self.endpoints.replace(&state, Instant::now());
        match self.make(&state) {
            Ok(()) => {
                self.digest = StateDigest::of(&stored.state);
                self.wanted = Some((stored.revision, self.digest.digest()));
                self.hold();
                tracing::info!(
                    revision = stored.revision,
                    endpoints = stored.state.endpoints.len(),
                    "the last state is in force"
                );
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
            self.watch_drift();
            self.watch_canary();
            let now = Instant::now();
            let ends = [
                self.broken,
                self.bypass.as_ref().map(|bypass| bypass.ends),
                self.confirm.trial.as_ref().map(|trial| trial.ends),
            ];
            let look = ends
                .into_iter()
                .flatten()
                .fold(self.endpoints.next_look(), Instant::min);
            let watches = [self.drift.due(), self.canary.due()];
            let next = watches.into_iter().flatten().fold(look, Instant::min);
            match inputs.recv_timeout(next.saturating_duration_since(now)) {
                Ok(Input::Revision { revision, reply }) => {
                    let large = revision.snapshot;
                    let result = self.revision(*revision);
                    self.publish();
                    // Whoever asked may have gone: the stream broke. The kernel holds it all the same.
                    drop(reply.send(result));
                    if large {
                        memory::give_back();
                    }
                }
                Ok(Input::Links) => self.look(true),
                Ok(Input::Pods(running)) => self.change_pods(|pods| pods.list(running)),
                Ok(Input::Attach { pod, reply }) => self.attach_pod(*pod, reply),
                Ok(Input::StartsUnjudged(key)) => self.starts_unjudged(&key),
                Ok(Input::Detach(sandbox)) => self.change_pods(|pods| pods.remove(&sandbox).into_iter().collect()),
                Ok(Input::Bypass { until, reason, reply }) => {
                    let result = self.set_bypass(until, reason);
                    self.publish();
                    drop(reply.send(result));
                }
                Ok(Input::Confirmed(number)) => {
                    self.confirmed(number);
                    self.publish();
                }
                Ok(Input::Describe(reply)) => drop(reply.send(self.describe())),
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if Instant::now() < look => {}
                Err(RecvTimeoutError::Timeout) => self.look(false),
            }
        }
    }

    /// Looks at devices, and repairs what a failed write left.
    fn look(&mut self, links_changed: bool) {
        let now = Instant::now();
        if self.bypass.as_ref().is_some_and(|bypass| bypass.ends <= now) {
            self.end_bypass("its time is over");
        }
        if self.confirm.trial.as_ref().is_some_and(|trial| trial.ends <= now) {
            self.end_trial("no new connection to the controller came about in time");
        }
        if self.broken.is_some_and(|broken| broken <= now) {
            self.broken = Some(now + apply::RETRY);
            match self.repair() {
                Ok(()) => self.hold(),
                Err(error) => tracing::warn!("still not in force: {error}"),
            }
        }
        if self.planned
            && let Err(error) = self.write_leases()
        {
            tracing::warn!("after the clock was set: {error}");
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
            self.attached = self.ground.attached()?.into_iter().collect();
            self.attached_out = self.ground.attached_out()?.into_iter().collect();
            self.forget_names()?;
        }
        if changed { self.replan() } else { Ok(()) }
    }

    /// Plans again because devices changed.
    fn replan(&mut self) -> Result<(), SyncError> {
        // Without a state there is nothing to plan: what the kernel holds is an earlier agent's and stays.
        if !self.planned || self.broken.is_some() {
            return Ok(());
        }
        self.open_adoption();
        let ops = self.planner.plan_delta(&Delta::default(), &self.endpoints.local())?;
        self.carry_out(ops)?;
        self.attach_devices()
    }
}

/// A planner for what the kernel holds.
fn adopt(node: &str, ground: &dyn Ground, names: &Names) -> Result<(Planner, Mirror), KernelError> {
    let dump = ground.dump()?;
    names.adopt(&dump);
    let (planner, problems) = Planner::adopt(node, Limits::default(), &dump);
    for problem in problems {
        tracing::warn!("adopting the maps: {problem}");
    }
    Ok((planner, Mirror::of(&dump)))
}
