//! A cluster as a source: one watch per kind, merged to batches.
//!
//! Nothing is sent before every kind was listed once. From then on a watch that fails, expires or lists again changes nothing by
//! itself: an object is gone when the API server says so, or when a complete list is without it.
//!
//! | an object that cannot be read | what is in force |
//! |---|---|
//! | and was given before | what it said before, until it is corrected or deleted |
//! | a policy whose selector can be read (even in part) | it denies what it selects, as its lowering says |
//! | any other | nothing; it is reported, and nodes are told the rest |

mod known;
mod raw;
mod watch;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bulkhead_crds::cluster_network_policy;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep_until, timeout_at},
};

use self::{
    known::{Known, News},
    raw::{
        AddressGroup, ClusterNetworkPolicy, ClusterSegmentPolicy, EndpointSlice, Kind, Namespace, NetworkPolicy, Node,
        Pod, SegmentPolicy, Service,
    },
    watch::{Definition, Watch},
};
use super::Batch;
use crate::metrics::Metrics;

/// News on their way; a watch that has more waits, and the API server with it.
const NEWS: usize = 1_024;
/// A burst is one batch when it lasts no longer …
const BURST: Duration = Duration::from_millis(10);
/// … and is no larger.
const EVENTS_MAX: usize = 4_096;
/// An answer of the API server that says nothing for so long is given up. Longer than a watch lasts.
const READ_TIMEOUT: Duration = Duration::from_mins(5);
/// Kinds watched.
const KINDS: usize = 10;

/// A client for the cluster of a kubeconfig, or by KUBECONFIG, or the one this process runs in; and the server's address.
pub(crate) async fn connect(kubeconfig: Option<&Path>) -> anyhow::Result<(Client, String)> {
    let mut config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("using {}", path.display()))?
        }
        None => Config::infer()
            .await
            .context("no cluster: give --kubeconfig, set KUBECONFIG, or run in a pod with a service account")?,
    };
    // A watch hears a bookmark every minute; a list that hangs must not hang for ever.
    config.read_timeout = Some(READ_TIMEOUT);
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).with_context(|| format!("setting up the client of {server}"))?;
    Ok((client, server))
}

/// The watches of one cluster.
pub(crate) struct Kube {
    client: Client,
    install_crds: bool,
    metrics: Metrics,
}

impl Kube {
    pub(crate) fn new(client: Client, install_crds: bool, metrics: Metrics) -> Self {
        Self {
            client,
            install_crds,
            metrics,
        }
    }

    /// Watches until nobody takes batches any more. The first batch is everything there is.
    pub(crate) async fn run(self, batches: mpsc::Sender<Batch>) {
        let (news, told) = mpsc::channel(NEWS);
        let mut watches = JoinSet::new();
        let watch = |number, definition| Watch {
            client: self.client.clone(),
            number,
            news: news.clone(),
            metrics: self.metrics.clone(),
            definition,
        };
        let upstream = Definition {
            name: "clusternetworkpolicies.policy.networking.k8s.io",
            install: self.install_crds.then(cluster_network_policy::crd),
        };
        // Ours come with the chart, which also renews them.
        let ours = |name| Definition { name, install: None };
        spawn::<Namespace>(&mut watches, watch(0, None));
        spawn::<Node>(&mut watches, watch(1, None));
        spawn::<Pod>(&mut watches, watch(2, None));
        spawn::<Service>(&mut watches, watch(3, None));
        spawn::<EndpointSlice>(&mut watches, watch(4, None));
        spawn::<NetworkPolicy>(&mut watches, watch(5, None));
        spawn::<ClusterNetworkPolicy>(&mut watches, watch(6, Some(upstream)));
        let definition = ours("segmentpolicies.bulkhead.dev");
        spawn::<SegmentPolicy>(&mut watches, watch(7, Some(definition)));
        let definition = ours("clustersegmentpolicies.bulkhead.dev");
        spawn::<ClusterSegmentPolicy>(&mut watches, watch(8, Some(definition)));
        spawn::<AddressGroup>(&mut watches, watch(9, Some(ours("addressgroups.bulkhead.dev"))));
        drop(news);
        tokio::select! {
            () = merge(told, &batches) => {}
            () = batches.closed() => {}
            // A watch never ends by itself: what it watches would not be seen any more.
            _ = watches.join_next() => tracing::error!("a watch of the API server ended"),
        }
    }
}

fn spawn<K: Kind>(watches: &mut JoinSet<()>, watch: Watch) {
    watches.spawn(watch.run::<K>());
}

/// Makes batches of news.
async fn merge(mut told: mpsc::Receiver<News>, batches: &mpsc::Sender<Batch>) {
    let mut known = Known::new(KINDS);
    let mut diagnostics = Vec::new();
    let mut first = true;
    while let Some(news) = told.recv().await {
        let mut seen = Instant::now();
        let mut events = Vec::new();
        let mut found = known.take(news, &mut events);
        while !known.complete() {
            let Some(news) = told.recv().await else { return };
            found |= known.take(news, &mut events);
            seen = Instant::now();
        }
        let end = tokio::time::Instant::from_std(seen) + BURST;
        while events.len() < EVENTS_MAX
            && let Ok(Some(news)) = timeout_at(end, told.recv()).await
        {
            found |= known.take(news, &mut events);
        }
        if found {
            diagnostics = known.diagnostics();
        }
        if !std::mem::replace(&mut first, false) && events.is_empty() && !found {
            // Heartbeats: no reason to look more often than there are bursts.
            sleep_until(end).await;
            continue;
        }
        let batch = Batch {
            events,
            diagnostics: diagnostics.clone(),
            unknown: Vec::new(),
            seen,
        };
        if batches.send(batch).await.is_err() {
            return;
        }
    }
}
