//! `AgentService`: flows, status and endpoints for the people on this node.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixListener},
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::Ordering,
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use bulkhead_policy::plan::Usage;
use bulkhead_proto::{
    convert::address_from_bytes,
    filter::Filters,
    v1::{
        AgentStatus, AttachPodRequest, AttachPodResponse, Bypass, CheckPodRequest, DetachPodRequest, DetachPodResponse,
        EndpointStatus, Flow, GetAgentStatusRequest, GetEndpointsRequest, GetEndpointsResponse, GetFlowsRequest,
        GetFlowsResponse, GetUplinksRequest, LossPlace, LostFlows, MapUsage, SetBypassRequest, SetBypassResponse,
        UplinkStatus, VerdictCount, agent_service_server::AgentService, get_flows_response,
    },
};
use bulkhead_verdict::{
    dns::Outcome,
    layout::{self, LAYOUT},
    maps::Hook,
    reason::Reason,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use crate::{
    clock,
    flows::{
        Counters,
        history::{Batch, Entry, History, Loss},
    },
    gate::Gate,
    kernel::Maps,
    metrics::Metrics,
    stream::Connection,
    sync::{Holding, Input},
    uplink,
};

/// Entries read from the history at once.
const BATCH: usize = 256;
/// Responses on their way to one reader; a reader that takes none keeps its place in the history until that runs over it.
const OUTBOX: usize = 64;

/// What the service answers from.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) node: Arc<str>,
    /// Wall nanoseconds.
    pub(crate) started: u64,
    pub(crate) history: Arc<History>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) usage: Arc<Mutex<Usage>>,
    pub(crate) maps: Maps,
    pub(crate) sync: SyncSender<Input>,
    pub(crate) holding: watch::Receiver<Holding>,
    pub(crate) connection: watch::Receiver<Connection>,
    pub(crate) gate: Gate,
    pub(crate) metrics: Arc<Metrics>,
    /// Absent where nobody configured a feed or a limit.
    pub(crate) uplinks: Option<Arc<uplink::State>>,
}

/// Longest bypass: a person who needs more says so again.
const BYPASS_MAX: u64 = 24 * 60 * 60;
/// Longest wait for room in the sync thread's queue.
const QUEUE_WAIT: Duration = Duration::from_secs(2);

/// Listens on a socket that only root can open. Refuses to take the socket of an agent that answers.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another agent answers there"));
        }
        fs::remove_file(path)?;
    }
    // No moment at which others could connect: the file is made with these permissions.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// One reader's walk through the history.
struct Walk {
    node: Arc<str>,
    history: Arc<History>,
    filters: Filters,
    since: u64,
    position: u64,
    /// Position behind the newest entry when the reader asked: what is missed before it is history's loss, after it the
    /// reader's own.
    asked_at: u64,
    follow: bool,
    outbox: mpsc::Sender<Result<GetFlowsResponse, Status>>,
}

impl Walk {
    fn wanted(&self, entry: &Entry) -> Option<GetFlowsResponse> {
        let response = match entry {
            Entry::Record(record) if record.time < self.since => return None,
            Entry::Record(record) => {
                let flow: Flow = record.message(&self.node);
                self.filters
                    .matches(&flow)
                    .then_some(get_flows_response::Response::Flow(flow))?
            }
            Entry::Loss(loss) if loss.last < self.since => return None,
            Entry::Loss(loss) => get_flows_response::Response::Lost(lost(loss)),
        };
        Some(GetFlowsResponse {
            response: Some(response),
        })
    }

    /// Moves the start so that only the newest `last` matching records follow.
    fn skip_to_last(&mut self, last: u64) {
        let (oldest, end) = self.history.range();
        let mut found = 0_u64;
        let mut start = end;
        // Backwards in batches, until enough match.
        while start > oldest && found < last {
            let from = start.saturating_sub(u64::try_from(BATCH).unwrap_or(1)).max(oldest);
            let count = usize::try_from(start.saturating_sub(from)).unwrap_or(BATCH);
            let batch = self.history.read(from, count);
            for entry in batch.entries.iter().rev() {
                if found >= last {
                    break;
                }
                start = start.saturating_sub(1);
                if matches!(entry, Entry::Record(_)) && self.wanted(entry).is_some() {
                    found = found.saturating_add(1);
                }
            }
            start = if found >= last { start } else { from };
        }
        self.position = start;
    }

    /// Sends until the end, or for ever when following; ends early when the reader is gone.
    async fn run(mut self) {
        let mut watch = self.history.watch();
        loop {
            let asked_for = self.position;
            let Batch { entries, missed, next } = self.history.read(self.position, BATCH);
            self.position = next;
            if missed > 0 && self.send_missed(asked_for, missed).await.is_err() {
                return;
            }
            for entry in &entries {
                let Some(response) = self.wanted(entry) else { continue };
                if self.outbox.send(Ok(response)).await.is_err() {
                    return;
                }
            }
            if !entries.is_empty() {
                continue;
            }
            if !self.follow || watch.wait_for(|end| *end > self.position).await.is_err() {
                return;
            }
        }
    }

    async fn send_missed(
        &self,
        position: u64,
        missed: u64,
    ) -> Result<(), mpsc::error::SendError<Result<GetFlowsResponse, Status>>> {
        let place = if position < self.asked_at {
            LossPlace::History
        } else {
            LossPlace::Subscriber
        };
        let now = clock::wall();
        let response = get_flows_response::Response::Lost(lost(&Loss {
            count: missed,
            place,
            first: now,
            last: now,
        }));
        self.outbox
            .send(Ok(GetFlowsResponse {
                response: Some(response),
            }))
            .await
    }
}

fn lost(loss: &Loss) -> LostFlows {
    LostFlows {
        count: loss.count,
        place: loss.place.into(),
        first: clock::timestamp(loss.first),
        last: clock::timestamp(loss.last),
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<GetFlowsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Agent {
    type GetFlowsStream = Responses;

    async fn get_flows(&self, request: Request<GetFlowsRequest>) -> Result<Response<Responses>, Status> {
        let request = request.into_inner();
        let filters = Filters::parse(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (outbox, responses) = mpsc::channel(OUTBOX);
        let (oldest, end) = self.history.range();
        let mut walk = Walk {
            node: self.node.clone(),
            history: self.history.clone(),
            filters,
            since: request.since.map_or(0, clock::from_timestamp),
            position: oldest,
            asked_at: end,
            follow: request.follow,
            outbox,
        };
        if request.last > 0 {
            walk.skip_to_last(request.last);
        }
        tokio::spawn(walk.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn get_status(&self, _: Request<GetAgentStatusRequest>) -> Result<Response<AgentStatus>, Status> {
        self.status().map(Response::new)
    }

    async fn get_endpoints(&self, _: Request<GetEndpointsRequest>) -> Result<Response<GetEndpointsResponse>, Status> {
        let (reply, answer) = oneshot::channel::<Vec<EndpointStatus>>();
        self.sync
            .try_send(Input::Describe(reply))
            .map_err(|error| match error {
                TrySendError::Full(_) => Status::resource_exhausted("the agent is busy with an update; try again"),
                TrySendError::Disconnected(_) => Status::unavailable("the agent is stopping"),
            })?;
        let endpoints = answer.await.map_err(|_| Status::unavailable("the agent is stopping"))?;
        Ok(Response::new(GetEndpointsResponse { endpoints }))
    }

    async fn attach_pod(&self, request: Request<AttachPodRequest>) -> Result<Response<AttachPodResponse>, Status> {
        self.gate.attach(request.into_inner()).await.map(Response::new)
    }

    async fn check_pod(&self, request: Request<CheckPodRequest>) -> Result<Response<AttachPodResponse>, Status> {
        Ok(Response::new(self.gate.check(request.into_inner())))
    }

    async fn detach_pod(&self, request: Request<DetachPodRequest>) -> Result<Response<DetachPodResponse>, Status> {
        let input = Input::Detach(request.into_inner().sandbox);
        self.gate.tell(input, tokio::time::Instant::now() + QUEUE_WAIT).await?;
        Ok(Response::new(DetachPodResponse {}))
    }

    async fn get_uplinks(&self, request: Request<GetUplinksRequest>) -> Result<Response<UplinkStatus>, Status> {
        self.uplink_status(&request.into_inner().address).map(Response::new)
    }

    async fn set_bypass(&self, request: Request<SetBypassRequest>) -> Result<Response<SetBypassResponse>, Status> {
        let SetBypassRequest { seconds, reason } = request.into_inner();
        let seconds = u64::from(seconds);
        if seconds > BYPASS_MAX {
            return Err(Status::invalid_argument("a bypass lasts 24 hours at most"));
        }
        if reason.trim().is_empty() {
            return Err(Status::invalid_argument(
                "a bypass needs a reason: people will ask for it",
            ));
        }
        let (reply, answer) = oneshot::channel();
        let until = clock::wall().saturating_add(seconds.saturating_mul(1_000_000_000));
        let until = if seconds == 0 { 0 } else { until };
        let input = Input::Bypass { until, reason, reply };
        self.gate.tell(input, tokio::time::Instant::now() + QUEUE_WAIT).await?;
        let result = answer.await.map_err(|_| Status::unavailable("the agent is stopping"))?;
        let devices = result.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(SetBypassResponse { devices }))
    }
}

impl Agent {
    fn uplink_status(&self, address: &[u8]) -> Result<UplinkStatus, Status> {
        let state = self.uplinks.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "nothing is to be done on uplinks: give the agent a --threat-feed, a --limit-… or --guard-syn",
            )
        })?;
        let address = match address {
            [] => None,
            bytes => Some(
                address_from_bytes("address", bytes).map_err(|error| Status::invalid_argument(error.to_string()))?,
            ),
        };
        let mut status = state
            .status(address)
            .map_err(|error| Status::internal(crate::chain(&error)))?;
        if let Some(ip) = address
            && status.spared_by.is_empty()
        {
            let key = layout::AddressKey {
                address: ip.into(),
                zone: 0,
            };
            let bound = self
                .maps
                .addresses
                .get(&key)
                .map_err(|error| Status::internal(crate::chain(&error)))?;
            if bound.is_some() {
                "it is an address of a pod or a node of this cluster".clone_into(&mut status.spared_by);
            }
        }
        Ok(status)
    }

    /// What is so now.
    pub(crate) fn status(&self) -> Result<AgentStatus, Status> {
        let holding = self.holding.borrow().clone();
        let connection = self.connection.borrow().clone();
        let count = |enforced: fn(&bulkhead_proto::v1::EndpointGeneration) -> bool| {
            u32::try_from(holding.generations.iter().filter(|endpoint| enforced(endpoint)).count()).unwrap_or(u32::MAX)
        };
        let sums = self
            .maps
            .stats
            .sums()
            .map_err(|error| Status::internal(crate::chain(&error)))?;
        Ok(AgentStatus {
            node: self.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT.to_owned(),
            started: clock::timestamp(self.started),
            controller_connected: connection.connected,
            revision: holding.revision,
            state_digest: holding.digest.map_or_else(Vec::new, |digest| digest.0.to_vec()),
            held_at: clock::timestamp(holding.held_at),
            error: if holding.error.is_empty() {
                connection.error
            } else {
                holding.error.clone()
            },
            endpoints: count(|_| true),
            endpoints_enforced: count(|endpoint| endpoint.enforced),
            maps: self.map_usage(),
            verdicts: {
                let mut all = verdicts(&sums);
                if let Some(uplinks) = &self.uplinks {
                    all.extend(
                        uplinks
                            .verdicts()
                            .map_err(|error| Status::internal(crate::chain(&error)))?,
                    );
                }
                all
            },
            names: names(&sums),
            lost: self.losses(),
            events_read: self.counters.events.load(Ordering::Relaxed),
            unmanaged: holding.unmanaged,
            bypass: holding.bypass.map(|(until, reason)| Bypass {
                until: clock::timestamp(until),
                reason,
            }),
        })
    }

    fn map_usage(&self) -> Vec<MapUsage> {
        let usage = *self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        let number = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let counted = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let names = usage.identities + usage.rulesets + usage.rules_named + usage.rules_idle + usage.endpoints;
        [
            ("endpoints", number(usage.endpoints), layout::ENDPOINTS),
            ("configs", number(usage.configs), layout::CONFIGS),
            ("devices", number(usage.devices), layout::DEVICES),
            ("addresses", number(usage.addresses), layout::ADDRESSES),
            ("networks", number(usage.networks), layout::NETWORKS),
            ("rules", number(usage.rules), layout::RULES),
            ("ranges", u64::from(usage.ranges), layout::RANGES),
            ("alternatives", number(usage.alternatives), layout::ALTERNATIVES),
            ("names", number(names), layout::INTERNS),
            ("confirmed flows", counted(&self.counters.confirmed), layout::CONFIRMED),
            ("tentative flows", counted(&self.counters.tentative), layout::TENTATIVE),
            ("denials", counted(&self.counters.denies), layout::DENIES),
        ]
        .map(|(name, used, limit)| MapUsage {
            name: name.to_owned(),
            used,
            limit: limit.into(),
        })
        .into()
    }

    fn losses(&self) -> Vec<LostFlows> {
        let counters = &self.counters;
        [
            (LossPlace::KernelRing, &counters.lost_events, &counters.lost_events_at),
            (LossPlace::DenyTable, &counters.lost_denials, &counters.lost_denials_at),
        ]
        .into_iter()
        .map(|(place, count, at)| (place, count.load(Ordering::Relaxed), at.load(Ordering::Relaxed)))
        .filter(|(_, count, _)| *count > 0)
        .map(|(place, count, last)| {
            lost(&Loss {
                count,
                place,
                first: 0,
                last,
            })
        })
        .collect()
    }
}

/// Reasons that counted anything.
fn verdicts(sums: &[layout::Counter]) -> Vec<VerdictCount> {
    let reasons: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| (*reason as u8, reason.name()))
        .collect();
    counts(sums, &reasons)
}

/// What became of DNS queries and answers.
fn names(sums: &[layout::Counter]) -> Vec<VerdictCount> {
    let outcomes: Vec<_> = Outcome::ALL
        .iter()
        .map(|outcome| (*outcome as u8, outcome.name()))
        .collect();
    counts(sums, &outcomes)
}

/// Numbers of STATS that counted anything, by their words.
fn counts(sums: &[layout::Counter], numbers: &[(u8, &'static str)]) -> Vec<VerdictCount> {
    let one = |hook: Hook, name: &str, number: u8, word: &str| {
        let index = usize::from(hook as u8) << 8 | usize::from(number);
        let counter = sums.get(index).filter(|counter| counter.packets > 0)?;
        Some(VerdictCount {
            hook: name.to_owned(),
            reason: word.to_owned(),
            reason_number: u32::from(number),
            packets: counter.packets,
            bytes: counter.bytes,
        })
    };
    [(Hook::FromPod, "from-pod"), (Hook::ToPod, "to-pod")]
        .into_iter()
        .flat_map(|(hook, name)| {
            numbers
                .iter()
                .filter_map(move |(number, word)| one(hook, name, *number, word))
        })
        .collect()
}
