//! The validating webhook: what the API server asks before it stores a policy is answered by the compiler itself, with the
//! facts of the moment. What cannot be accepted is refused with the words its status would have; what is legal and suspicious is a
//! warning at the terminal of whoever applies it.
//!
//! Nothing depends on it: the API server goes on without an answer (`failurePolicy: Ignore`), and what was stored meanwhile is
//! judged like everything else, in its status. So it answers late or not at all rather than wrong.

mod authority;
mod review;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use axum::{Router, extract::DefaultBodyLimit, routing::post};
use kube::Client;
use tokio::sync::Semaphore;

use self::review::Reviewer;
use crate::{
    service::Service,
    session::raised,
    tls::{
        authority::Shared,
        connection::Connection,
        listener::{self, Connections},
        own::{self, Callers},
    },
};

/// Reviews at once; each is a step of the compiler.
const AT_ONCE: usize = 8;
/// Bytes of a question; the API server stores no larger object, and sends two of them.
const BODY_MAX: usize = 8 << 20;

/// The validating webhook.
#[derive(Clone, PartialEq, Eq, Debug, clap::Args)]
#[group(id = "webhook")]
pub struct Options {
    /// Where the API server asks about policies, over TLS, as in 0.0.0.0:9443; absent = nowhere. Needs --kube.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "BULKHEAD_WEBHOOK_LISTEN",
        conflicts_with = "manifests"
    )]
    pub webhook_listen: Option<SocketAddr>,
    /// Name or address by which the API server reaches it; may be given several times. By default that of the Service
    /// bulkhead-webhook in --namespace.
    #[arg(long, value_name = "NAME", env = "BULKHEAD_WEBHOOK_NAME", value_delimiter = ',')]
    pub webhook_name: Vec<String>,
    /// The ValidatingWebhookConfiguration into which our authority's certificate is written.
    #[arg(
        long,
        value_name = "NAME",
        env = "BULKHEAD_WEBHOOK_CONFIGURATION",
        default_value = "bulkhead"
    )]
    pub webhook_configuration: String,
}

/// Serves until told to stop, where that is asked for.
pub(crate) async fn serve(
    options: &Options,
    namespace: &str,
    authority: Option<Shared>,
    client: Option<Client>,
    service: &Service,
) -> Result<()> {
    let mut stop = service.stop.clone();
    let (Some(address), Some(client), Some(authority)) = (options.webhook_listen, client, authority) else {
        raised(&mut stop).await;
        return Ok(());
    };
    let names = match options.webhook_name.as_slice() {
        [] => vec![format!("bulkhead-webhook.{namespace}.svc")],
        names => names.to_vec(),
    };
    let trusted = authority.certificate_pem().to_owned();
    let connections = listener::listen(address, own::certified(authority, Callers::ApiServer(names.clone()))?).await?;
    tracing::info!(%address, ?names, "serving the validating webhook");
    let reviewer = Reviewer {
        engine: service.engine.clone(),
        worlds: service.worlds.clone(),
        places: Arc::new(Semaphore::new(AT_ONCE)),
    };
    let router = Router::new()
        .route("/validate", post(review::validate))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(reviewer);
    let trust = authority::keep(client, options.webhook_configuration.clone(), trusted);
    let served = axum::serve(Incoming { connections, address }, router);
    tokio::select! {
        served = served => served?,
        () = trust => {}
        () = raised(&mut stop) => {}
    }
    Ok(())
}

/// Connections on which TLS is set up, as axum takes them.
struct Incoming {
    connections: Connections,
    address: SocketAddr,
}

impl axum::serve::Listener for Incoming {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.connections.recv().await {
                Some(Ok(stream)) => {
                    let from = stream.remote().unwrap_or(self.address);
                    return (stream, from);
                }
                Some(Err(_)) => {}
                // The listener ends with the process.
                None => std::future::pending().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

/// The API server gives up after three seconds; an answer must be there before.
const DEADLINE: Duration = Duration::from_secs(2);
