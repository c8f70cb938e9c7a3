//! What other replicas report, taken in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::{
    convert::digest_from_bytes,
    v1::{self, replica_service_server::ReplicaService},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::board::{Board, Reader, learn};
use crate::{
    engine::Input,
    registry::{NODES_MAX, NodeRecord, Registry, Replica, Reports},
    session::raised,
    tls::{
        connection::{Caller, caller, refused},
        standing::{Trusted, replica_lapsed},
    },
};

/// News waiting for the transport.
const OUTBOUND: usize = 2;
/// Versions of policies remembered of a replica.
const VERSIONS_MAX: usize = 200_000;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) registry: Registry,
    pub(crate) engine: mpsc::Sender<Input>,
    pub(crate) board: Board,
    pub(crate) trusted: Trusted,
    pub(crate) stop: watch::Receiver<bool>,
}

/// Where news goes.
type News = mpsc::Sender<Result<v1::ReplicaNews, Status>>;

#[tonic::async_trait]
impl ReplicaService for Take {
    type ReportStream = ReceiverStream<Result<v1::ReplicaNews, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::ReplicaReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let trust_domain = self.trusted.borrow().as_ref().map(|trust| trust.trust_domain().clone());
        let replica = match caller(&request, trust_domain.as_ref())? {
            Caller::Controller(replica) => replica,
            Caller::Node(node) => {
                let reason = format!("node {} reports as if it were a controller", node.name);
                return Err(refused(None, &reason));
            }
            Caller::Unknown(remote) => return Err(refused(remote, "who reports has no certificate")),
            Caller::Local => return Err(Status::failed_precondition("replicas report over TLS")),
        };
        let remote = replica.remote;
        let lapsed = replica_lapsed(replica, self.trusted.clone());
        let (news, stream) = mpsc::channel(OUTBOUND);
        let take = self.clone();
        let inbound = request.into_inner();
        // Ends with the stream or at shutdown.
        drop(tokio::spawn(async move {
            let ended = tokio::select! {
                ended = take.serve(inbound, &news) => ended,
                reason = lapsed => Err(refused(remote, &reason)),
            };
            if let Err(status) = ended {
                drop(news.try_send(Err(status)));
            }
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Take {
    /// Takes what one replica says and tells it what the others' nodes announce, until it leaves.
    async fn serve(&self, mut inbound: Streaming<v1::ReplicaReport>, news: &News) -> Result<(), Status> {
        let mut stop = self.stop.clone();
        // Who it is stands in its first report.
        let first = tokio::select! {
            first = inbound.message() => first?,
            () = raised(&mut stop) => None,
        };
        let Some(first) = first else { return Ok(()) };
        let instance = first.instance.clone();
        let reports = self.registry.reports_of(&instance);
        let reports = reports.ok_or_else(|| Status::resource_exhausted("too many replicas report"))?;
        let taking = async {
            let mut report = Some(first);
            while let Some(one) = report {
                self.take(&reports, &instance, one).await?;
                report = inbound.message().await?;
            }
            Ok(())
        };
        tokio::select! {
            taken = taking => taken,
            () = tell(self.board.reader(), &instance, news) => Ok(()),
            () = raised(&mut stop) => Ok(()),
        }
    }

    async fn take(&self, reports: &Reports, instance: &str, mut report: v1::ReplicaReport) -> Result<(), Status> {
        for told in std::mem::take(&mut report.announcements) {
            let (node, announcement) = (told.node.clone(), told.announcement.clone().unwrap_or_default());
            if learn(&self.registry, &self.engine, told).await {
                self.board.put_up(Some(instance), &node, announcement);
            }
        }
        let mut taken = Ok(());
        reports.update(|replica| taken = take(replica, report));
        taken
    }
}

/// Tells what is new of nodes that are not the replica's own, until it leaves.
async fn tell(mut board: Reader, instance: &str, news: &News) {
    loop {
        for announcements in board.news(|by| by != Some(instance)).await {
            if news.send(Ok(v1::ReplicaNews { announcements })).await.is_err() {
                return;
            }
        }
    }
}

/// Takes a report into what is known of the replica.
fn take(replica: &mut Replica, report: v1::ReplicaReport) -> Result<(), Status> {
    let version =
        |bytes: &[u8]| digest_from_bytes("version", bytes).map_err(|error| Status::invalid_argument(error.to_string()));
    if !(report.policies.is_empty() && report.gone.is_empty()) {
        let numbering = Arc::make_mut(&mut replica.numbering);
        for gone in &report.gone {
            numbering.remove(&version(gone)?);
        }
        for policy in &report.policies {
            numbering.insert(version(&policy.version)?, policy.revision);
        }
        if numbering.len() > VERSIONS_MAX {
            return Err(Status::resource_exhausted(format!(
                "more than {VERSIONS_MAX} versions of policies"
            )));
        }
    }
    let now = Instant::now();
    for node in report.nodes {
        if replica.nodes.len() >= NODES_MAX && !replica.nodes.contains_key(&node.node) {
            return Err(Status::resource_exhausted(format!("more than {NODES_MAX} nodes")));
        }
        let record = replica.nodes.entry(node.node.clone()).or_default();
        if node.begins {
            *record = NodeRecord::default();
        }
        take_node(record, node, now);
    }
    Ok(())
}

fn take_node(record: &mut NodeRecord, node: v1::NodeReport, now: Instant) {
    let before = |milliseconds: u64| now.checked_sub(Duration::from_millis(milliseconds)).unwrap_or(now);
    record.connected = node.connected;
    if node.begins {
        record.connected_at = Some(before(node.connected_before_ms));
    }
    for held in node.held {
        record.hold_since(held.revision, before(held.before_ms));
    }
    record.agent_version = node.agent_version;
    record.layout = node.layout;
    record.wanted = node.wanted;
    record.last_ack = node.last_ack.and_then(|at| at.try_into().ok());
    record.ack_latency = Duration::from_millis(node.ack_latency_ms);
    record.error = node.error;
    record.held_back = node.held_back;
    record.reverted = node.host_reverted;
    record.enforced = node.enforced;
    record.bypassed = node.bypassed;
    record.updates = node.updates;
    record.snapshots = node.snapshots;
}
