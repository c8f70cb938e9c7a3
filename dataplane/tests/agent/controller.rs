//! The controller's end of the node stream: serves whatever state the test sets, and remembers what the node said.

use std::{
    collections::HashMap,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bulkhead_policy::{
    digest::Digest,
    state::{Delta, State},
};
use bulkhead_proto::{
    PROTOCOL_VERSION,
    state_digest::StateDigest,
    update::{Revision, encode},
    v1::{
        Ack, Announcement, ControllerMessage, Hello, NodeMessage, Welcome,
        controller_message::Message,
        node_message,
        node_service_server::{NodeService, NodeServiceServer},
    },
};
use bulkhead_testbed::process::until;
use tokio::{
    net::UnixListener,
    runtime::Runtime,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{Request, Response, Status, Streaming};

/// Long enough for a loaded machine; nothing is asserted about it.
pub const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Clone, Default)]
struct Wanted {
    revision: u64,
    state: Arc<State>,
}

/// What the node said, all connections together.
#[derive(Default)]
pub struct Said {
    pub hellos: Vec<Hello>,
    pub acks: Vec<Ack>,
    pub announcements: Vec<Announcement>,
}

#[derive(Clone)]
struct Service {
    wanted: watch::Receiver<Wanted>,
    /// States that were sent, by digest: what a node may say it holds.
    sent: Arc<Mutex<HashMap<Vec<u8>, Arc<State>>>>,
    said: Arc<Mutex<Said>>,
    errs: Arc<AtomicBool>,
}

pub struct Controller {
    wanted: watch::Sender<Wanted>,
    said: Arc<Mutex<Said>>,
    /// The next update says that it leads to another state than it does.
    errs: Arc<AtomicBool>,
    runtime: Option<Runtime>,
}

impl Controller {
    pub fn start(socket: &Path) -> Self {
        let _stale = std::fs::remove_file(socket);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let wanted = watch::Sender::new(Wanted::default());
        let said = Arc::new(Mutex::new(Said::default()));
        let errs = Arc::new(AtomicBool::new(false));
        let service = Service {
            wanted: wanted.subscribe(),
            sent: Arc::default(),
            said: said.clone(),
            errs: errs.clone(),
        };
        let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
        runtime.spawn(
            tonic::transport::Server::builder()
                .add_service(NodeServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Self {
            wanted,
            said,
            errs,
            runtime: Some(runtime),
        }
    }

    /// Makes a state the wanted one; gives its revision.
    pub fn want(&self, state: &State) -> u64 {
        let mut revision = 0;
        self.wanted.send_modify(|wanted| {
            wanted.revision += 1;
            wanted.state = Arc::new(state.clone());
            revision = wanted.revision;
        });
        revision
    }

    /// The same, but the next update says that it leads to another state.
    pub fn want_and_err(&self, state: &State) -> u64 {
        self.errs.store(true, Ordering::SeqCst);
        self.want(state)
    }

    /// Waits for an acknowledgement that the condition accepts.
    pub fn ack(&self, revision: u64, what: &str, accept: impl Fn(&Ack) -> bool) -> Ack {
        let found = || {
            let said = self.said.lock().unwrap();
            said.acks
                .iter()
                .rev()
                .find(|ack| ack.revision == revision && accept(ack))
                .cloned()
        };
        until(PATIENCE, found).unwrap_or_else(|| {
            let said = self.said.lock().unwrap();
            panic!(
                "no ack of revision {revision} with {what}; the last one is {:?}",
                said.acks.last()
            )
        })
    }

    pub fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tonic::async_trait]
impl NodeService for Service {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn connect(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Self::ConnectStream>, Status> {
        let (outbox, messages) = mpsc::channel(16);
        tokio::spawn(self.clone().serve(request.into_inner(), outbox));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl Service {
    async fn serve(self, mut inbox: Streaming<NodeMessage>, outbox: mpsc::Sender<Result<ControllerMessage, Status>>) {
        let Ok(Some(NodeMessage {
            message: Some(node_message::Message::Hello(hello)),
        })) = inbox.message().await
        else {
            return;
        };
        let held = hello.held.as_ref().map(|held| held.state_digest.clone());
        let mut last = held.and_then(|digest| self.sent.lock().unwrap().get(&digest).cloned());
        self.said.lock().unwrap().hellos.push(hello);
        let welcome = Welcome {
            controller_version: "test".to_owned(),
            protocol: PROTOCOL_VERSION,
            instance: "test".to_owned(),
            takes_certificates: false,
        };
        if send(&outbox, Message::Welcome(welcome)).await.is_err() {
            return;
        }
        let mut wanted = self.wanted.clone();
        wanted.mark_changed();
        loop {
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = wanted.borrow_and_update().clone();
                    if now.revision == 0 {
                        continue;
                    }
                    for update in self.updates(last.as_deref(), &now) {
                        if send(&outbox, Message::Update(update)).await.is_err() {
                            return;
                        }
                    }
                    last = Some(now.state);
                }
                message = inbox.message() => match message {
                    Ok(Some(NodeMessage { message: Some(message) })) => self.hear(message),
                    _ => return,
                }
            }
        }
    }

    fn updates(&self, last: Option<&State>, now: &Wanted) -> Vec<bulkhead_proto::v1::Update> {
        let digest: Digest = StateDigest::of(&now.state).digest();
        self.sent.lock().unwrap().insert(digest.0.to_vec(), now.state.clone());
        let revision = Revision {
            revision: now.revision,
            snapshot: last.is_none(),
            delta: Delta::between(last.unwrap_or(&State::default()), &now.state),
            policies: Vec::new(),
            state_digest: if self.errs.swap(false, Ordering::SeqCst) {
                Digest::of("test", [b"another state".as_slice()])
            } else {
                digest
            },
        };
        encode(&revision).unwrap()
    }

    fn hear(&self, message: node_message::Message) {
        let mut said = self.said.lock().unwrap();
        match message {
            node_message::Message::Hello(hello) => said.hellos.push(hello),
            node_message::Message::Ack(ack) => said.acks.push(ack),
            node_message::Message::Announcement(announcement) => said.announcements.push(announcement),
            node_message::Message::Certificates(_) => unreachable!("the unix socket needs none"),
        }
    }
}

async fn send(outbox: &mpsc::Sender<Result<ControllerMessage, Status>>, message: Message) -> Result<(), ()> {
    outbox
        .send(Ok(ControllerMessage { message: Some(message) }))
        .await
        .map_err(drop)
}
