//! One node's stream: sends it the newest state whenever it is ready for one, and takes what it says.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bulkhead_proto::{
    convert::digest_from_bytes,
    update::{PolicyVersion, Revision, bytes, encode},
    v1::{self, controller_message, node_message},
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Status, Streaming};

use crate::{
    engine::Input, metrics::Metrics, part::Part, registry::Seat, replicas::Posted, service::Service,
    tls::standing::Standing, world::World,
};

/// First wait before an update the node refused is sent again; doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);
/// Characters of a node's error text that are kept.
const ERROR_CHARACTERS: usize = 1024;

/// Messages on their way to the node; the session sends the next when there is room.
pub(crate) type Outbound = mpsc::Sender<Result<v1::ControllerMessage, Status>>;

/// An update that was sent and not acknowledged.
#[derive(Debug)]
struct InFlight {
    revision: u64,
    part: Part,
    sent: Instant,
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Session {
    seat: Seat,
    engine: mpsc::Sender<Input>,
    announced: Posted,
    metrics: Metrics,
    worlds: watch::Receiver<Arc<World>>,
    outbound: Outbound,
    outgoing: VecDeque<v1::ControllerMessage>,
    /// What the node holds, as far as we know it.
    base: Option<Part>,
    /// The node enforces a state already; it is not given one that is known in part only.
    keeps_state: bool,
    in_flight: Option<InFlight>,
    retry_at: Option<Instant>,
    refusals: u32,
    /// For how long the node may stay; `None` on the unix socket.
    pub(crate) standing: Option<Standing>,
}

impl Session {
    /// A session after its Hello.
    pub(crate) fn new(seat: Seat, hello: &v1::Hello, service: &Service, outbound: Outbound) -> Self {
        let worlds = service.worlds.clone();
        let held = hello
            .held
            .as_ref()
            .and_then(|held| digest_from_bytes("state_digest", &held.state_digest).ok());
        let base = held.and_then(|digest| {
            let current = Part::of(&worlds.borrow(), seat.node());
            // After a restart of the controller nothing is remembered, but the node may hold just what is wanted.
            seat.recall(digest)
                .or_else(|| (current.digest() == digest).then_some(current))
        });
        let outgoing = VecDeque::new();
        Self {
            seat,
            engine: service.engine.clone(),
            announced: Posted::new(&service.board, &hello.node),
            metrics: service.metrics.clone(),
            worlds,
            outbound,
            outgoing,
            base,
            keeps_state: hello.held.is_some(),
            in_flight: None,
            retry_at: None,
            refusals: 0,
            standing: None,
        }
    }

    /// Queues a message that comes before everything else.
    pub(crate) fn greet(&mut self, welcome: v1::Welcome) {
        self.queue(controller_message::Message::Welcome(welcome));
    }

    /// Works until the node leaves, is displaced, breaks the protocol, or `stop` turns true.
    pub(crate) async fn run(mut self, mut inbound: Streaming<v1::NodeMessage>, mut stop: watch::Receiver<bool>) {
        let end = self.serve(&mut inbound, &mut stop).await;
        match &end {
            Ok(()) => tracing::info!(node = self.seat.node(), "node left"),
            Err(status) => tracing::warn!(node = self.seat.node(), reason = status.message(), "stream ended"),
        }
        if let Err(status) = end {
            // Without room the node reads nothing, so it would not read this either.
            drop(self.outbound.try_send(Err(status)));
        }
    }

    async fn serve(
        &mut self,
        inbound: &mut Streaming<v1::NodeMessage>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Status> {
        let outbound = self.outbound.clone();
        self.consider();
        loop {
            let ready = self.in_flight.is_none();
            let retry = self.retry_at.unwrap_or_else(Instant::now);
            tokio::select! {
                () = raised(stop) => return Err(Status::unavailable("the controller shuts down")),
                () = raised(&mut self.seat.displaced) => {
                    return Err(Status::aborted("another stream of this node took over"));
                }
                permit = outbound.reserve(), if !self.outgoing.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(message) = self.outgoing.pop_front() {
                        permit.send(Ok(message));
                    }
                }
                message = inbound.message() => match message? {
                    Some(message) => self.take(message).await?,
                    None => return Ok(()),
                },
                changed = self.worlds.changed(), if ready => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the controller shuts down"));
                    }
                    self.consider();
                }
                () = tokio::time::sleep_until(retry.into()), if ready && self.retry_at.is_some() => self.consider(),
            }
        }
    }

    fn queue(&mut self, message: controller_message::Message) {
        self.outgoing
            .push_back(v1::ControllerMessage { message: Some(message) });
    }

    /// Sends what the node lacks, if it lacks anything and may have it.
    fn consider(&mut self) {
        let world = Arc::clone(&self.worlds.borrow_and_update());
        self.retry_at = None;
        if self.in_flight.is_some() || world.revision == 0 || self.waits(&world) {
            return;
        }
        let part = Part::of(&world, self.seat.node());
        let delta = part.since(self.base.as_ref(), &world);
        if self.base.is_some() && delta.is_empty() {
            self.seat.update(|record| record.hold(world.revision));
            self.base = Some(part);
            return;
        }
        let revision = Revision {
            revision: world.revision,
            snapshot: self.base.is_none(),
            policies: self.policies(&world, &part),
            state_digest: part.digest(),
            delta,
        };
        match encode(&revision) {
            Ok(updates) => {
                tracing::debug!(
                    node = self.seat.node(),
                    revision = revision.revision,
                    snapshot = revision.snapshot,
                    upserts = revision.delta.upserts.len(),
                    removes = revision.delta.removes.len(),
                    "sending"
                );
                self.seat.update(|record| {
                    record.wanted = revision.revision;
                    record.held_back.clear();
                    record.updates += 1;
                    record.snapshots += u64::from(revision.snapshot);
                    record.remember(&part);
                });
                let resources = revision.delta.upserts.len() + revision.delta.removes.len();
                self.metrics.sent(resources, bytes(&updates));
                for update in updates {
                    self.queue(controller_message::Message::Update(update));
                }
                self.in_flight = Some(InFlight {
                    revision: revision.revision,
                    part,
                    sent: Instant::now(),
                });
            }
            Err(error) => {
                tracing::error!(node = self.seat.node(), %error, "the node keeps what it has");
                self.seat.update(|record| {
                    record.wanted = revision.revision;
                    record.held_back = error.to_string();
                });
            }
        }
    }

    /// True while the node is better off with what it has.
    fn waits(&mut self, world: &World) -> bool {
        let waits = self.keeps_state && !world.unknown.is_empty();
        if waits {
            let error = format!(
                "not sent: {} could not be read since the controller started; the node keeps what it has; correct or remove it",
                world.unknown.join(", ")
            );
            self.seat.update(|record| record.held_back = error);
        } else if self.keeps_state {
            // From here on the controller knows what was in force.
            self.keeps_state = false;
            self.seat.update(|record| record.held_back.clear());
        }
        waits
    }

    /// Policies of the node that are newer than what it holds; all of them in a snapshot.
    fn policies(&self, world: &World, part: &Part) -> Vec<PolicyVersion> {
        let held = if self.base.is_some() { self.held() } else { 0 };
        let mut news = world.policies_since(held).peekable();
        if news.peek().is_none() {
            return Vec::new();
        }
        let selecting: std::collections::BTreeSet<&str> = part.policies().collect();
        let news = news.filter(|(key, _)| selecting.contains(key.to_string().as_str()));
        news.map(|(key, entry)| PolicyVersion {
            policy: key.clone(),
            generation: entry.generation,
            spec_digest: entry.spec_digest,
        })
        .collect()
    }

    fn held(&self) -> u64 {
        let mut held = 0;
        self.seat.update(|record| held = record.held());
        held
    }

    async fn take(&mut self, message: v1::NodeMessage) -> Result<(), Status> {
        match message.message {
            Some(node_message::Message::Ack(ack)) => {
                self.acknowledged(&ack);
                Ok(())
            }
            Some(node_message::Message::Announcement(announcement)) => self.announced(announcement).await,
            Some(node_message::Message::Certificates(certificates)) => match &self.standing {
                Some(standing) => standing.take(certificates),
                None => Err(Status::invalid_argument(
                    "certificates are for TCP; the unix socket needs none",
                )),
            },
            Some(node_message::Message::Hello(_)) => Err(Status::invalid_argument("a second Hello on one stream")),
            None => Err(Status::invalid_argument(
                "field message: missing, or of a newer version than this controller",
            )),
        }
    }

    /// An Ack of what was sent last answers it; any other one is news of what the node holds already (a device came or went).
    fn acknowledged(&mut self, ack: &v1::Ack) {
        let enforced = ack.endpoints.iter().filter(|endpoint| endpoint.enforced).count();
        let enforced = u32::try_from(enforced).unwrap_or(u32::MAX);
        let bypassed = bypassed(ack);
        let error: String = ack.error.chars().take(ERROR_CHARACTERS).collect();
        let reverted: String = ack.host_reverted.chars().take(ERROR_CHARACTERS).collect();
        let Some(in_flight) = self.in_flight.take_if(|in_flight| in_flight.revision == ack.revision) else {
            self.seat.update(|record| {
                record.enforced = enforced;
                record.bypassed = bypassed;
                record.error = error;
                record.reverted = reverted;
            });
            return;
        };
        if error.is_empty() {
            self.refusals = 0;
            self.seat.update(|record| {
                record.hold(ack.revision);
                record.remember(&in_flight.part);
                record.last_ack = Some(SystemTime::now());
                record.ack_latency = in_flight.sent.elapsed();
                record.enforced = enforced;
                record.bypassed = bypassed;
                record.error.clear();
                record.reverted = reverted;
            });
            self.base = Some(in_flight.part);
            self.consider();
        } else {
            tracing::error!(
                node = self.seat.node(),
                revision = ack.revision,
                error,
                "the node does not hold the update"
            );
            self.seat.update(|record| {
                record.last_ack = Some(SystemTime::now());
                record.error = error;
            });
            let wait = RETRY.saturating_mul(1 << self.refusals.min(6)).min(RETRY_MAX);
            self.refusals = self.refusals.saturating_add(1);
            self.retry_at = Some(Instant::now() + wait);
        }
    }

    async fn announced(&mut self, announcement: v1::Announcement) -> Result<(), Status> {
        let (answer, answered) = oneshot::channel();
        let node = self.seat.node().to_owned();
        self.announced.put_up(announcement.clone());
        let shuts_down = |()| Status::unavailable("the controller shuts down");
        let input = Input::Announce {
            node,
            announcement,
            answer,
        };
        self.engine.send(input).await.map_err(|_| shuts_down(()))?;
        let rejected = answered.await.map_err(|_| shuts_down(()))?;
        self.metrics.rejected(rejected.len());
        for v1::announcement_result::Rejection { workload, reason } in &rejected {
            let workload = workload.clone().unwrap_or_default();
            let (namespace, name) = (workload.namespace, workload.name);
            if reason == bulkhead_proto::NOT_DECLARED {
                tracing::debug!(
                    node = self.seat.node(),
                    "announced endpoint {namespace}/{name}: {reason}"
                );
                continue;
            }
            tracing::warn!(
                node = self.seat.node(),
                "announced endpoint {namespace}/{name} is not believed: {reason}"
            );
        }
        self.queue(controller_message::Message::AnnouncementResult(
            v1::AnnouncementResult { rejected },
        ));
        Ok(())
    }
}

/// Which pods' packets are not all judged, as text: the first, and how many more.
fn bypassed(ack: &v1::Ack) -> String {
    let mut pods = ack.endpoints.iter().filter(|endpoint| endpoint.bypassed);
    let Some(first) = pods.next() else {
        return String::new();
    };
    let name = first.workload.clone().unwrap_or_default();
    let why: String = first.why.chars().take(ERROR_CHARACTERS).collect();
    let more = match pods.count() {
        0 => String::new(),
        more => format!(" (and {more} more pods of this node)"),
    };
    format!("{}/{}: {why}{more}", name.namespace, name.name)
}

/// Done when the flag is true, or can never become it.
pub(crate) async fn raised(flag: &mut watch::Receiver<bool>) {
    drop(flag.wait_for(|raised| *raised).await);
}
