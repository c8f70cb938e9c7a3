//! Wires source, engine and services together, watches over them, and takes them down in order.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use bulkhead_proto::{
    MESSAGE_BYTES_MAX,
    v1::{controller_service_server::ControllerServiceServer, node_service_server::NodeServiceServer},
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    config::{Config, Listen},
    engine::{Engine, Input},
    registry::Registry,
    service::Service,
    session::raised,
    socket::Socket,
    source::{Batch, files::Files},
    status::{self, About},
    tls,
};

/// Inputs waiting for the engine; who has more waits.
const INPUTS: usize = 64;
/// Time streams have to end at shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `shutdown` is done (then Ok), or until a part of it ends that must not.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let Listen::Unix(path) = &config.listen;
    let (_socket, listener) = Socket::bind(path)?;
    let started = SystemTime::now();
    let about = About {
        instance: status::instance(started),
        started,
        source: format!("files {}", config.manifests.display()),
    };
    let (engine, worlds) = Engine::new();
    let (inputs, engine_inputs) = mpsc::channel(INPUTS);
    let (batches, mut source_batches) = mpsc::channel::<Batch>(1);
    let engine_ended = thread("engine", move || engine.run(engine_inputs))?;
    let files = Files::new(&config.manifests);
    let source_ended = thread("source", move || files.run(&batches))?;

    let (stop, stopped) = watch::channel(false);
    let service = Service {
        registry: Registry::default(),
        engine: inputs.clone(),
        worlds,
        stop: stopped.clone(),
        about: Arc::new(about),
        trust_domain: config.tls.listen_tls.map(|_| config.tls.trust_domain.clone()),
    };
    let client: Option<kube::Client> = None;
    let cluster = client.as_ref().map(|client| (client, "bulkhead-system"));
    let nodes = async {
        if config.tls.listen_tls.is_none() {
            return std::future::pending().await;
        }
        let authority = tls::serve::authority(&config.tls, cluster)
            .await
            .context("certificate authority")?;
        tls::serve::serve(&config.tls, authority, client.clone(), service.clone(), stopped.clone()).await
    };
    let node_service = NodeServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .add_service(node_service)
        .add_service(ControllerServiceServer::new(service.clone()))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), until(stopped.clone()));
    tokio::pin!(server);
    tracing::info!(socket = %path.display(), manifests = %config.manifests.display(), "serving");

    let forward = async {
        while let Some(batch) = source_batches.recv().await {
            if inputs.send(Input::Batch(batch)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        served = &mut server => {
            served.context("serving the socket")?;
            bail!("the server ended by itself");
        }
        served = nodes => {
            served?;
            bail!("the TLS server ended by itself");
        }
        _ = source_ended => bail!("the watch of {} ended; no change would be seen any more", config.manifests.display()),
        _ = engine_ended => bail!("the compiler ended; no change would be compiled any more"),
        () = forward => bail!("the way from the source to the compiler is closed"),
        () = shutdown => {}
    }
    tracing::info!("shutting down; nodes keep enforcing what they hold");
    stop.send_replace(true);
    if let Ok(served) = tokio::time::timeout(GRACE, &mut server).await {
        return served.context("closing the socket");
    }
    tracing::warn!("streams did not end within {} s", GRACE.as_secs());
    Ok(())
}

async fn until(mut stopped: watch::Receiver<bool>) {
    raised(&mut stopped).await;
}

/// Runs blocking work; the receiver is done when it ended, by return or by panic.
fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<oneshot::Receiver<()>> {
    let (alive, ended) = oneshot::channel::<()>();
    let work = move || {
        let _alive = alive;
        work();
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .with_context(|| format!("starting thread {name}"))?;
    Ok(ended)
}
