//! Reports to the replica that writes status, whichever that is, and takes its news.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use bulkhead_proto::v1::{self, replica_service_client::ReplicaServiceClient};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    board::{Reader, learn},
    compose::Told,
};
use crate::{
    registry::Registry,
    service::Service,
    tls::{dial, serve::From},
    world::World,
};

/// Between two reports, at least: what comes meanwhile is in the next one.
const PAUSE: Duration = Duration::from_millis(20);
/// Before a stream that failed is opened again.
const RETRY: Duration = Duration::from_secs(1);
/// Reports waiting for the transport.
const OUTBOUND: usize = 2;

/// Reports for as long as the process runs, while another replica writes.
pub(crate) async fn run(from: From, service: &Service, mut leader: watch::Receiver<Option<SocketAddr>>) {
    let mut complained = false;
    loop {
        let Ok(found) = leader.wait_for(Option::is_some).await.map(|leader| *leader) else {
            return std::future::pending().await;
        };
        let Some(address) = found else { continue };
        let reporting = report(&from, service, address, &mut complained);
        let ended = tokio::select! {
            ended = reporting => ended,
            () = another(leader.clone(), address) => continue,
        };
        if let Err(error) = ended
            && !std::mem::replace(&mut complained, true)
        {
            tracing::warn!(
                %address,
                "the replica that writes status is not told what our nodes hold, so it says they are waiting; trying again: {error:#}"
            );
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Done when another replica leads than the one at `address`, or none.
async fn another(mut leader: watch::Receiver<Option<SocketAddr>>, address: SocketAddr) {
    while *leader.borrow_and_update() == Some(address) {
        if leader.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// One stream, until it fails.
async fn report(from: &From, service: &Service, address: SocketAddr, complained: &mut bool) -> Result<()> {
    let mut client = ReplicaServiceClient::new(dial::channel(from, address).await?);
    let (reports, outbound) = mpsc::channel(OUTBOUND);
    let announcing = announce(reports.clone(), &service.about.instance, service.board.reader());
    let telling = tell(
        reports,
        service.about.instance.clone(),
        service.worlds.clone(),
        service.registry.clone(),
    );
    let streaming = async {
        let mut news = client.report(ReceiverStream::new(outbound)).await?.into_inner();
        while let Some(news) = news.message().await? {
            for told in news.announcements {
                learn(&service.registry, &service.engine, told).await;
            }
        }
        Ok::<(), Status>(())
    };
    tracing::info!(%address, "telling the replica that writes status what our nodes hold");
    *complained = false;
    tokio::select! {
        ended = streaming => match ended {
            Ok(()) => bail!("the other replica ended the stream"),
            Err(status) => bail!("the stream of reports: {}", status.message()),
        },
        () = announcing => bail!("the stream of reports is closed"),
        () = telling => bail!("there is nothing to report any more"),
    }
}

/// Sends what our nodes announce, at once: somewhere a pod is about to start.
async fn announce(reports: mpsc::Sender<v1::ReplicaReport>, instance: &str, mut board: Reader) {
    loop {
        for announcements in board.news(|by| by.is_none()).await {
            let report = v1::ReplicaReport {
                instance: instance.to_owned(),
                announcements,
                ..v1::ReplicaReport::default()
            };
            if reports.send(report).await.is_err() {
                // The stream has failed; the other half says why.
                return std::future::pending().await;
            }
        }
    }
}

/// Sends what is new whenever something is.
async fn tell(
    reports: mpsc::Sender<v1::ReplicaReport>,
    instance: String,
    mut worlds: watch::Receiver<Arc<World>>,
    registry: Registry,
) {
    let mut told = Told::default();
    let mut changes = registry.changes();
    loop {
        let world = Arc::clone(&worlds.borrow_and_update());
        changes.borrow_and_update();
        for report in told.news(&instance, &world, &registry.own()) {
            if reports.send(report).await.is_err() {
                // The stream has failed; the other half says why.
                return std::future::pending().await;
            }
        }
        tokio::time::sleep(PAUSE).await;
        tokio::select! {
            changed = worlds.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
