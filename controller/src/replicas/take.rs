//! What other replicas report, taken in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_proto::{
    convert::digest_from_bytes,
    v1::{self, replica_service_server::ReplicaService},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    registry::{NODES_MAX, NodeRecord, Registry, Replica},
    session::raised,
    tls::{
        connection::{Caller, caller, refused},
        standing::{Trusted, replica_lapsed},
    },
};

/// Versions of policies remembered of a replica.
const VERSIONS_MAX: usize = 200_000;

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct Take {
    pub(crate) registry: Registry,
    pub(crate) trusted: Trusted,
    pub(crate) stop: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl ReplicaService for Take {
    async fn report(&self, request: Request<Streaming<v1::ReplicaReport>>) -> Result<Response<v1::ReportEnd>, Status> {
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
        tokio::pin!(lapsed);
        let mut inbound = request.into_inner();
        let mut stop = self.stop.clone();
        let mut reports = None;
        loop {
            let report = tokio::select! {
                report = inbound.message() => report?,
                () = raised(&mut stop) => None,
                reason = &mut lapsed => return Err(refused(remote, &reason)),
            };
            let Some(report) = report else {
                return Ok(Response::new(v1::ReportEnd {}));
            };
            let reports = match &mut reports {
                Some(reports) => reports,
                none => {
                    let begun = self.registry.reports_of(&report.instance);
                    none.insert(begun.ok_or_else(|| Status::resource_exhausted("too many replicas report"))?)
                }
            };
            let mut taken = Ok(());
            reports.update(|replica| taken = take(replica, report));
            taken?;
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
    record.enforced = node.enforced;
    record.updates = node.updates;
    record.snapshots = node.snapshots;
}
