//! Wires source, engine and services together, watches over them, and takes them down in order.

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use bulkhead_identity::{Source as CertificateSource, Trust};
use bulkhead_policy::compiler::ControlPlane;
use bulkhead_proto::{
    MESSAGE_BYTES_MAX,
    log::Level,
    v1::{controller_service_server::ControllerServiceServer, node_service_server::NodeServiceServer},
};
use kube::Client;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Server, server::Router};

use crate::{
    config::{Config, Listen},
    engine::{Engine, Input, Pulse},
    health::Health,
    kube_status,
    metrics::Metrics,
    progress,
    registry::Registry,
    replicas,
    service::Service,
    session::raised,
    socket::Socket,
    source::{
        Batch,
        files::Files,
        kube::{Kube, connect},
    },
    status::{self, About},
    tls::{self, serve::From},
    webhook,
};

/// Inputs waiting for the engine; who has more waits.
const INPUTS: usize = 64;
/// Time streams have to end at shutdown.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until `shutdown` is done (then Ok), or until a part of it ends that must not. `log_level` changes the level at run time.
pub async fn run(config: Config, log_level: Option<Level>, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let certificates = config.tls.source()?;
    let failsafe = config.failsafe().map_err(anyhow::Error::msg)?;
    let Listen::Unix(path) = &config.listen;
    let (_socket, listener) = Socket::bind(path)?;
    let started = SystemTime::now();
    let metrics = Metrics::default();
    let (source, source_text, cluster) = Source::of(&config, &metrics).await?;
    let about = About {
        instance: status::instance(started),
        started,
        source: source_text.clone(),
    };
    let (engine, worlds) = Engine::new(metrics.clone(), control_plane(&config), failsafe);
    let pulse = engine.pulse();
    let (inputs, engine_inputs) = mpsc::channel(INPUTS);
    let (batches, mut source_batches) = mpsc::channel::<Batch>(1);
    let engine_ended = thread("engine", move || engine.run(engine_inputs))?;
    let source_ended = source.start(batches)?;

    let (stop, stopped) = watch::channel(false);
    let (trust, trusted) = watch::channel(None);
    let service = Service {
        registry: Registry::default(),
        engine: inputs.clone(),
        board: replicas::Board::default(),
        worlds,
        stop: stopped.clone(),
        about: Arc::new(about),
        metrics,
        trusted,
    };
    let (leader, leads) = watch::channel(None);
    let (given_back, lease) = oneshot::channel();
    let nodes = over_tls(&config, (certificates, trust), cluster.as_ref(), &service, leads);
    let mut tasks = JoinSet::new();
    let health = report(
        &mut tasks,
        &service,
        cluster.clone(),
        &config,
        (leader, stopped.clone(), given_back),
        (pulse, log_level),
    );
    health.start(&config, &stopped).await?;
    let incoming = UnixListenerStream::new(listener);
    let server = router(service.clone()).serve_with_incoming_shutdown(incoming, until(stopped));
    tokio::pin!(server);
    tracing::info!(socket = %path.display(), source = source_text, "serving");

    let forward = forward(&mut source_batches, &inputs);
    tokio::select! {
        served = &mut server => {
            served.context("serving the socket")?;
            bail!("the server ended by itself");
        }
        served = nodes => {
            served?;
            bail!("the TLS server ended by itself");
        }
        _ = source_ended => bail!("the watch of {source_text} ended; no change would be seen any more"),
        _ = engine_ended => bail!("the compiler ended; no change would be compiled any more"),
        () = forward => bail!("the way from the source to the compiler is closed"),
        Some(ended) = tasks.join_next() => bail!("a part that reports status ended: {ended:?}"),
        () = shutdown => {}
    }
    tracing::info!("shutting down; nodes keep enforcing what they hold");
    stop.send_replace(true);
    end(&mut server, lease).await
}

/// Waits until the Lease is given back and the socket's streams have ended.
async fn end(
    server: impl Future<Output = Result<(), tonic::transport::Error>>,
    lease: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    // Without a cluster there is none, and nobody to say so.
    drop(tokio::time::timeout(GRACE, lease).await);
    if let Ok(served) = tokio::time::timeout(GRACE, server).await {
        return served.context("closing the socket");
    }
    tracing::warn!("streams did not end within {} s", GRACE.as_secs());
    Ok(())
}

/// Which pods are the controller's own, on a cluster.
fn control_plane(config: &Config) -> Option<ControlPlane> {
    config.kube.then(|| ControlPlane {
        namespace: config.namespace.clone(),
        service_account: config.service_account.clone(),
    })
}

/// Both services.
fn router(service: Service) -> Router {
    let node_service = NodeServiceServer::new(service.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Server::builder()
        .add_service(node_service)
        .add_service(ControllerServiceServer::new(service))
}

/// Serves nodes and the API server over TLS where that is asked for; ends only with an error.
async fn over_tls(
    config: &Config,
    (source, trust): (Option<CertificateSource>, watch::Sender<Option<Trust>>),
    cluster: Option<&Client>,
    service: &Service,
    leads: watch::Receiver<Option<SocketAddr>>,
) -> anyhow::Result<()> {
    if config.tls.listen_tls.is_none() && config.webhook.webhook_listen.is_none() {
        return std::future::pending().await;
    }
    let secret = cluster.map(|client| (client, config.namespace.as_str()));
    // The API server is shown a certificate of our own authority, whatever nodes are shown.
    let authority = if source.is_none() || config.webhook.webhook_listen.is_some() {
        let authority = tls::serve::authority(&config.tls, secret, source.is_none()).await;
        Some(authority.context("certificate authority")?)
    } else {
        None
    };
    let from = match (source, &authority) {
        (Some(source), _) => From::source(source, &config.tls),
        (None, Some(authority)) => From::Authority(authority.clone()),
        (None, None) => bail!("no source of certificates"),
    };
    let reports = replicas::run(from.clone(), service, leads);
    let webhook = webhook::serve(&config.webhook, &config.namespace, authority, cluster.cloned(), service);
    let nodes = tls::serve::serve(&config.tls, from, trust, cluster.cloned(), service.clone());
    let served = async { tokio::try_join!(nodes, webhook).map(|_| ()) };
    tokio::select! {
        served = served => served,
        () = reports => bail!("reports to other replicas ended by themselves"),
    }
}

/// Carries batches from the source to the engine until one of them is gone.
async fn forward(batches: &mut mpsc::Receiver<Batch>, inputs: &mpsc::Sender<Input>) {
    while let Some(batch) = batches.recv().await {
        if inputs.send(Input::Batch(batch)).await.is_err() {
            return;
        }
    }
}

/// Starts what tells of progress, and on a cluster's objects too.
fn report(
    tasks: &mut JoinSet<()>,
    service: &Service,
    cluster: Option<Client>,
    config: &Config,
    (leader, stop, given_back): (
        watch::Sender<Option<SocketAddr>>,
        watch::Receiver<bool>,
        oneshot::Sender<()>,
    ),
    (pulse, log_level): (Pulse, Option<Level>),
) -> Health {
    let (standing, standings) = watch::channel(Arc::default());
    let health = Health {
        about: Arc::clone(&service.about),
        worlds: service.worlds.clone(),
        standings: standings.clone(),
        registry: service.registry.clone(),
        metrics: service.metrics.clone(),
        pulse,
        log_level,
    };
    let (worlds, registry) = (service.worlds.clone(), service.registry.clone());
    tasks.spawn(progress::run(worlds, registry, service.metrics.clone(), standing));
    if let Some(client) = cluster {
        let identity = kube_status::election::Identity {
            instance: service.about.instance.clone(),
            address: config.tls.advertised(),
            leader,
            stop,
            given_back,
        };
        let namespace = config.namespace.clone();
        tasks.spawn(kube_status::run(
            client,
            namespace,
            identity,
            standings,
            service.metrics.clone(),
        ));
    }
    health
}

/// Where objects come from.
enum Source {
    Files(PathBuf),
    Kube(Kube),
}

impl Source {
    /// The source the configuration names, what people are told of it, and the cluster when it is one.
    async fn of(config: &Config, metrics: &Metrics) -> anyhow::Result<(Self, String, Option<Client>)> {
        if let Some(path) = &config.manifests {
            return Ok((Self::Files(path.clone()), format!("files {}", path.display()), None));
        }
        let (client, server) = connect(config.kubeconfig.as_deref()).await?;
        let kube = Kube::new(client.clone(), config.install_crds, metrics.clone());
        Ok((Self::Kube(kube), format!("kube {server}"), Some(client)))
    }

    /// The receiver is done when the source ended.
    fn start(self, batches: mpsc::Sender<Batch>) -> anyhow::Result<oneshot::Receiver<()>> {
        match self {
            Self::Files(path) => {
                let files = Files::new(&path);
                thread("source", move || files.run(&batches))
            }
            Self::Kube(kube) => {
                let (alive, ended) = oneshot::channel::<()>();
                // Ends when nobody takes its batches.
                drop(tokio::spawn(async move {
                    let _alive = alive;
                    kube.run(batches).await;
                }));
                Ok(ended)
            }
        }
    }
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
