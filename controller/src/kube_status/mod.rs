//! What is said on the objects of the API server: conditions on kinds with a status, Events on those without, and Events of
//! errors on all. Every replica serves nodes; only the one that holds the Lease writes here.
//!
//! Nothing is written that is there already; one pass writes one object after the other, at most [`WRITES_PER_SECOND`]; what
//! fails is tried again later and later. A status of ours changes no generation, so our own writes wake nobody.

pub(crate) mod conditions;
pub(crate) mod election;
mod events;
mod statuses;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bulkhead_policy::model::{PolicyKey, PolicyKind};
use kube::{
    Client,
    core::{ApiResource, GroupVersionKind},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{metrics::Metrics, progress::Standings};

/// Name of the Lease, and our name as the manager of fields.
const MANAGER: &str = "bulkhead-controller";
/// Objects written at most.
const WRITES_PER_SECOND: u32 = 50;
/// What failed, and Events that have expired, are looked at so often.
const AGAIN: Duration = Duration::from_secs(5);

/// How a kind of policy is told what became of it: its resource, when it has a status of conditions.
fn status_of(kind: PolicyKind) -> Option<ApiResource> {
    let (group, version, plural) = match kind {
        PolicyKind::NetworkPolicy => return None,
        PolicyKind::ClusterNetworkPolicy => ("policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies"),
        PolicyKind::SegmentPolicy => ("bulkhead.dev", "v1alpha1", "segmentpolicies"),
        PolicyKind::ClusterSegmentPolicy => ("bulkhead.dev", "v1alpha1", "clustersegmentpolicies"),
    };
    let kind = GroupVersionKind::gvk(group, version, &kind.to_string());
    Some(ApiResource::from_gvk_with_plural(&kind, plural))
}

/// Writes as long as the process runs.
pub(crate) async fn run(
    client: Client,
    namespace: String,
    who: election::Identity,
    standings: watch::Receiver<Arc<Standings>>,
    metrics: Metrics,
) {
    let (lead, leads) = watch::channel(false);
    let identity = who.instance.clone();
    let election = election::run(client.clone(), namespace, who, lead);
    tokio::select! {
        () = election => {}
        () = write(client, identity, standings, leads, metrics) => {}
    }
}

async fn write(
    client: Client,
    identity: String,
    mut standings: watch::Receiver<Arc<Standings>>,
    mut leads: watch::Receiver<bool>,
    metrics: Metrics,
) {
    let mut pace = interval(Duration::from_secs(1) / WRITES_PER_SECOND);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut statuses = statuses::Statuses::new(client.clone(), Instant::now());
    let mut events = events::Events::new(client, identity);
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let now = Arc::clone(&standings.borrow_and_update());
        statuses.retain(&now);
        events.forget_old();
        for (key, standing) in now.iter() {
            if !*leads.borrow() {
                // Another one may have written since.
                statuses = statuses.forgotten();
                break;
            }
            if events.lacks(key, standing) {
                pace.tick().await;
                told(&metrics, key, events.write(key, standing).await);
            }
            if let Some(resource) = status_of(key.kind)
                && statuses.lacks(key, standing)
            {
                pace.tick().await;
                told(&metrics, key, statuses.write(&resource, key, standing).await);
            }
        }
        tokio::select! {
            changed = standings.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

fn told(metrics: &Metrics, key: &PolicyKey, written: kube::Result<()>) {
    metrics.status_written(written.is_ok());
    if let Err(error) = written {
        tracing::warn!(policy = %key, %error, "what became of the policy cannot be written; trying again");
    }
}
