//! The TCP server: authority, listener and services put together.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bulkhead_proto::{
    MESSAGE_BYTES_MAX,
    v1::{
        bootstrap_service_server::BootstrapServiceServer, node_service_server::NodeServiceServer,
        replica_service_server::ReplicaServiceServer,
    },
};
use kube::Client;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::{
    authority::{Authority, Material, Shared},
    bootstrap::Bootstrap,
    listener::{self, Callers},
    options::Options,
    review::Reviewer,
    secret,
};
use crate::{replicas::Take, service::Service, session::raised};

/// Where the authority is when neither a folder is named nor a cluster is there to keep it.
const CA_DIR: &str = "/var/lib/bulkhead/ca";
/// HTTP/2 pings: a node that vanished without a word is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The authority the options name, its certificate published where agents look for it.
pub(crate) async fn authority(options: &Options, cluster: Option<(&Client, &str)>) -> Result<Shared> {
    let material = match (&options.ca_dir, cluster) {
        (None, Some((client, namespace))) => secret::authority(client, namespace, &options.trust_domain).await?,
        (folder, _) => {
            let folder = folder.as_deref().unwrap_or(Path::new(CA_DIR));
            Material::of_folder(folder, &options.trust_domain)?
        }
    };
    let lifetime = Duration::from_secs(options.certificate_hours.saturating_mul(3600));
    let authority = Authority::new(&material, options.trust_domain.clone(), lifetime)?;
    if let Some((client, namespace)) = cluster {
        secret::publish(client, namespace, authority.certificate_pem()).await?;
    }
    Ok(Arc::new(authority))
}

/// Serves nodes until told to stop.
pub(crate) async fn serve(
    options: &Options,
    authority: Shared,
    client: Option<Client>,
    service: Service,
    mut stop: watch::Receiver<bool>,
) -> Result<()> {
    let Some(address) = options.listen_tls else {
        raised(&mut stop).await;
        return Ok(());
    };
    let connections = listener::listen(address, authority.clone(), Callers::Nodes).await?;
    let reviewer = client.map(|client| Reviewer {
        client,
        audience: options.token_audience.clone(),
        service_account: options.agent_service_account.clone(),
    });
    tracing::info!(%address, trust_domain = %options.trust_domain, "serving nodes over TLS");
    let replicas = ReplicaServiceServer::new(Take {
        registry: service.registry.clone(),
        trust_domain: options.trust_domain.clone(),
        stop: stop.clone(),
    });
    let nodes = NodeServiceServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(nodes)
        .add_service(replicas.max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(BootstrapServiceServer::new(Bootstrap::new(authority, reviewer)))
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move { raised(&mut stop).await })
        .await
        .context("serving nodes over TLS")
}
