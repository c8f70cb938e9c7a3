//! The TCP server: authority, listener and services put together.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bulkhead_identity::{Identity, Source, Trust};
use bulkhead_proto::{
    MESSAGE_BYTES_MAX,
    spiffe::Peer,
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
    listener,
    options::Options,
    own::{self, Callers},
    review::Reviewer,
    secret,
};
use crate::{replicas::Take, service::Service, session::raised};

/// Where the authority is when neither a folder is named nor a cluster is there to keep it.
const CA_DIR: &str = "/var/lib/bulkhead/ca";
/// HTTP/2 pings: a node that vanished without a word is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Where certificates of the node stream come from.
#[derive(Clone, Debug)]
pub(crate) enum From {
    /// Our own authority, which gives nodes theirs too.
    Authority(Shared),
    /// Elsewhere, on both ends.
    Source {
        /// Ours; `None` until there is one.
        newest: watch::Receiver<Option<Identity>>,
        /// The source, for people.
        name: String,
    },
}

impl From {
    /// Follows a source that is not our own authority.
    pub(crate) fn source(source: Source, options: &Options) -> Self {
        let name = source.to_string();
        let newest = bulkhead_identity::follow(source, Peer::Controller, options.trust_domain.clone());
        Self::Source { newest, name }
    }
}

/// The authority the options name; with `publish` its certificate is put where agents look for it.
pub(crate) async fn authority(options: &Options, cluster: Option<(&Client, &str)>, publish: bool) -> Result<Shared> {
    let material = match (&options.ca_dir, cluster) {
        (None, Some((client, namespace))) => secret::authority(client, namespace, &options.trust_domain).await?,
        (folder, _) => {
            let folder = folder.as_deref().unwrap_or(Path::new(CA_DIR));
            Material::of_folder(folder, &options.trust_domain)?
        }
    };
    let lifetime = Duration::from_secs(options.certificate_hours.saturating_mul(3600));
    let authority = Authority::new(&material, options.trust_domain.clone(), lifetime)?;
    if let Some((client, namespace)) = cluster.filter(|_| publish) {
        secret::publish(client, namespace, authority.certificate_pem()).await?;
    }
    Ok(Arc::new(authority))
}

/// Serves nodes until told to stop.
pub(crate) async fn serve(
    options: &Options,
    from: From,
    trust: watch::Sender<Option<Trust>>,
    client: Option<Client>,
    service: Service,
) -> Result<()> {
    let mut stop = service.stop.clone();
    let Some(address) = options.listen_tls else {
        raised(&mut stop).await;
        return Ok(());
    };
    let (configurations, bootstrap) = match from {
        From::Authority(authority) => {
            trust.send_replace(Some(authority.trust()?));
            let reviewer = client.map(|client| Reviewer {
                client,
                audience: options.token_audience.clone(),
                service_account: options.agent_service_account.clone(),
            });
            let bootstrap = BootstrapServiceServer::new(Bootstrap::new(authority.clone(), reviewer));
            (own::certified(authority, Callers::Nodes)?, Some(bootstrap))
        }
        From::Source { newest, name } => {
            tracing::info!("waiting for a certificate from {name}");
            let configurations = tokio::select! {
                configurations = own::followed(newest, trust) => configurations?,
                () = raised(&mut stop) => return Ok(()),
            };
            (configurations, None)
        }
    };
    let connections = listener::listen(address, configurations).await?;
    tracing::info!(%address, trust_domain = %options.trust_domain, "serving nodes over TLS");
    let replicas = ReplicaServiceServer::new(Take {
        registry: service.registry.clone(),
        engine: service.engine.clone(),
        board: service.board.clone(),
        trusted: service.trusted.clone(),
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
        .add_optional_service(bootstrap)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move { raised(&mut stop).await })
        .await
        .context("serving nodes over TLS")
}
