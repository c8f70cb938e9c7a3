//! The whole agent: options, threads and tasks, and how it ends.

use std::{
    fs::File,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use bulkhead_proto::{log::Level, v1::agent_service_server::AgentServiceServer};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_stream::wrappers::UnixListenerStream;

use crate::{
    clock, commands,
    confirm::Confirming,
    cri,
    endpoints::{Here, LinkChanges},
    flows::{self, history},
    gate::{Admissions, Gate},
    ground::Machine,
    health::{self, Health},
    kernel::{Fuse, Kernel},
    metrics::Metrics,
    names::{DeviceNames, Names},
    options::{self, Options, RuntimeSocket},
    server::{self, Agent},
    store::Store,
    stream::{Connection, Stream},
    sync::{self, Holding, Input, Sync},
    tls::Tls,
    uplink::Uplinks,
};

/// Things the sync thread has not taken yet: one revision, one notice, and the questions of status readers.
const QUEUE: usize = 64;

/// Enters the namespace, then runs until told to end.
///
/// # Errors
/// Whatever makes it impossible to begin; later troubles are logged, shown in status and tried again.
pub fn run(options: Options, log_level: Level) -> Result<()> {
    match options.command {
        Some(command) => commands::run(command),
        None => serve(options.agent, log_level),
    }
}

fn serve(options: options::Agent, log_level: Level) -> Result<()> {
    options.tls.source()?;
    if let Some(path) = &options.netns {
        // Before any thread is started: threads inherit it.
        let file = File::open(path).with_context(|| format!("network namespace {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).with_context(|| {
            format!(
                "entering network namespace {}; is that file a namespace, and are you root?",
                path.display()
            )
        })?;
    }
    options.uplinks.check()?;
    let kernel = Kernel::with_uplinks(&options.bpffs, options.flows.tuning(), options.uplinks.entries())?;
    let listener = server::listen(&options.socket).with_context(|| format!("socket {}", options.socket.display()))?;
    let uplinks = match options.uplinks.entries() {
        Some(_) => Some(Uplinks::new(&options.uplinks, &options.state_dir, kernel.uplink()?)?),
        None => None,
    };
    let parts = Parts::start(&options, kernel, uplinks.as_ref(), log_level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(parts.serve(options, listener, uplinks));
    parts.end();
    result
}

/// Who may start.
fn gate(
    options: &options::Agent,
    sync: &SyncSender<Input>,
    holding: &watch::Receiver<Holding>,
    connection: &watch::Receiver<Connection>,
) -> Gate {
    Gate {
        start: options.start_gate,
        control: options.control_namespace.iter().cloned().collect(),
        sync: sync.clone(),
        holding: holding.clone(),
        connection: connection.clone(),
        admissions: Admissions::default(),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .with_context(|| format!("starting thread {name}"))
}

/// The threads, and what connects them to the tasks.
struct Parts {
    sync: SyncSender<Input>,
    agent: Arc<Agent>,
    node: String,
    holding: watch::Receiver<Holding>,
    connection: watch::Sender<Connection>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    log_level: Level,
}

impl Parts {
    fn start(options: &options::Agent, kernel: Kernel, uplinks: Option<&Uplinks>, log_level: Level) -> Result<Self> {
        let node = options.node.clone().context("the node has no name: option --node")?;
        let names = Arc::new(Names::default());
        let metrics = Arc::new(Metrics::default());
        let devices = Arc::new(DeviceNames::default());
        let history = Arc::new(history::History::new(history::LIMIT));
        let counters = Arc::new(flows::Counters::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (holding_sender, holding) = watch::channel(Holding::default());
        let shared = sync::Shared {
            names: names.clone(),
            devices: devices.clone(),
            holding: holding_sender,
            usage: Arc::default(),
            metrics: metrics.clone(),
        };
        let usage = shared.usage.clone();
        let maps = kernel.maps.clone();
        let ring = kernel.events()?;
        let fuse = Fuse::new(options.fail_after_writes, options.refuse_writes.clone());
        let store = Store::open(&options.state_dir, &node)?;
        let here = Here::open(&options.uplinks.uplink).context("asking the kernel about devices")?;
        let machine = Machine::new(kernel, fuse, options.learning())?;
        let state = Sync::start(
            &node,
            Box::new(machine),
            Box::new(here),
            store,
            shared,
            options.confirm_within,
        )?
        .watching(options.drift(), options.canary());

        let (sync, inputs) = sync_channel(QUEUE);
        let syncing = spawn("sync", move || state.run(&inputs))?;
        let shared = flows::Shared {
            names,
            devices,
            history: history.clone(),
            counters: counters.clone(),
            stop: stop.clone(),
        };
        let reader = flows::Reader::new(ring, maps.clone(), options.flows.tuning(), shared);
        let reading = spawn("flows", move || reader.run())?;
        let (changes, notices, stopped) = (LinkChanges::open()?, sync.clone(), stop.clone());
        let watching = spawn("links", move || watch_links(&changes, &notices, &stopped))?;
        let (connection, connected) = watch::channel(Connection::default());
        let gate = gate(options, &sync, &holding, &connected);
        let agent = Arc::new(Agent {
            node: node.as_str().into(),
            started: clock::wall(),
            history,
            counters,
            usage,
            maps,
            sync: sync.clone(),
            holding: holding.clone(),
            connection: connected,
            gate,
            metrics,
            uplinks: uplinks.map(Uplinks::state),
        });
        Ok(Self {
            sync,
            agent,
            node,
            holding,
            connection,
            stop,
            threads: vec![syncing, reading, watching],
            log_level,
        })
    }

    /// Runs the tasks until a signal asks to end, or the sync thread is gone.
    async fn serve(
        &self,
        options: options::Agent,
        listener: std::os::unix::net::UnixListener,
        uplinks: Option<Uplinks>,
    ) -> Result<()> {
        let listener = tokio::net::UnixListener::from_std(listener).context("listening")?;
        let mut terminate = signal(SignalKind::terminate()).context("waiting for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for signals")?;
        let stream = Stream {
            tls: Tls::new(&self.node, &options.tls, &options.state_dir)?,
            node: self.node.clone(),
            address: options.controller.clone(),
            sync: self.sync.clone(),
            holding: self.holding.clone(),
            connection: self.connection.clone(),
            from_scratch: false,
        };
        let confirming = Confirming {
            controller: options.controller.clone(),
            tls: stream.tls.clone(),
            also: options.confirm_also.clone(),
            holding: self.holding.clone(),
            sync: self.sync.clone(),
        };
        let service = AgentServiceServer::from_arc(self.agent.clone());
        let server = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(UnixListenerStream::new(listener));
        let beside = self.beside(&options);
        let guarding = async move {
            match uplinks {
                Some(uplinks) => uplinks.run().await,
                None => std::future::pending().await,
            }
        };
        let mut holding = self.holding.clone();
        let sync_gone = async move { while holding.changed().await.is_ok() {} };
        tokio::select! {
            result = server => result.context("serving the socket"),
            () = stream.run() => Ok(()),
            result = beside => result,
            () = guarding => Ok(()),
            () = confirming.run() => Ok(()),
            () = sync_gone => anyhow::bail!("the sync thread has ended: its last message above says why"),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    }

    /// Asks the container runtime, keeps the CNI plugin installed, tells of health: as far as the options say so.
    async fn beside(&self, options: &options::Agent) -> Result<()> {
        let (runtime_trouble, runtime) = watch::channel(String::new());
        let (install_trouble, install) = watch::channel(String::new());
        let RuntimeSocket(socket) = options.cri_socket.clone();
        let watching = async {
            if let Some(socket) = socket {
                cri::watch(socket, self.sync.clone(), runtime_trouble).await;
            }
            std::future::pending::<()>().await;
        };
        let installing = async {
            if options.cni_install {
                options.installation().keep(install_trouble).await;
            }
            std::future::pending::<()>().await;
        };
        let telling = async {
            let health = Health {
                agent: self.agent.clone(),
                install,
                runtime,
                log_level: self.log_level.clone(),
            };
            match options.health_listen {
                Some(address) => health::serve(address, health).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = watching => Ok(()),
            () = installing => Ok(()),
            result = telling => result,
        }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.sync.send(Input::Stop));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread panicked");
            }
        }
    }
}

/// Tells the sync thread when devices change, until told to stop.
fn watch_links(changes: &LinkChanges, sync: &SyncSender<Input>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match changes.wait() {
            Ok(false) => {}
            // A full queue has work that looks at devices as well.
            Ok(true) if !matches!(sync.try_send(Input::Links), Err(TrySendError::Disconnected(_))) => {}
            Ok(true) => return,
            Err(error) => {
                tracing::error!("devices are not watched any more, they are looked at every few seconds: {error}");
                return;
            }
        }
    }
}
