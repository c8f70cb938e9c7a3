//! A controller on a real socket, and a node that does what an agent does but for the kernel.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that meets a surprise is to fail"
)]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::{ffi::OsString, path::Path, path::PathBuf, time::Duration};

use bulkhead_controller::{config::Config, run::run};
use bulkhead_policy::state::State;
use bulkhead_proto::{
    PROTOCOL_VERSION,
    state_digest::StateDigest,
    update::{Assembler, Revision},
    v1::{
        self, controller_message::Message, controller_service_client::ControllerServiceClient,
        node_message::Message as NodeMessage, node_service_client::NodeServiceClient,
    },
};
use clap::Parser as _;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Far more than anything here takes; only a failing test waits so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Controller {
    directory: TempDir,
    arguments: Vec<OsString>,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Controller {
    pub(crate) async fn start(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let arguments = vec!["--manifests".into(), manifests.into()];
        let mut controller = Self::new(directory, arguments);
        for (name, text) in files {
            controller.write(name, text);
        }
        controller.run().await;
        controller
    }

    /// One with these arguments beside its socket.
    pub(crate) async fn start_with(arguments: Vec<OsString>) -> Self {
        let mut controller = Self::new(tempfile::tempdir().unwrap(), arguments);
        controller.run().await;
        controller
    }

    fn new(directory: TempDir, arguments: Vec<OsString>) -> Self {
        Self {
            directory,
            arguments,
            stop: None,
            running: None,
        }
    }

    /// Starts it (again) and waits until its socket answers.
    pub(crate) async fn run(&mut self) {
        let (stop, stopped) = oneshot::channel::<()>();
        let config = self.config();
        self.running = Some(tokio::spawn(run(config, None, async move { drop(stopped.await) })));
        self.stop = Some(stop);
        let socket = self.socket();
        let connected = async {
            while UnixStream::connect(&socket).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, connected).await.expect("the socket appears");
    }

    pub(crate) fn config(&self) -> Config {
        let listen = format!("unix:{}", self.socket().display());
        let first = ["bulkhead-controller", "--listen", &listen].map(OsString::from);
        Config::parse_from(first.into_iter().chain(self.arguments.iter().cloned()))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("controller.sock")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let manifests = self.directory.path().join("manifests");
        let new = manifests.join(".new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, manifests.join(name)).unwrap();
    }

    /// Ends it as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        let running = self.running.take().unwrap();
        timeout(DEADLINE, running).await.expect("it ends").unwrap().unwrap();
    }

    pub(crate) async fn status(&self) -> v1::ControllerStatus {
        let mut client = ControllerServiceClient::new(channel(&self.socket()).await);
        client
            .get_status(v1::GetControllerStatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// Asks until the answer is as wanted.
    pub(crate) async fn status_when(&self, wanted: impl Fn(&v1::ControllerStatus) -> bool) -> v1::ControllerStatus {
        self.status_within(DEADLINE, wanted).await
    }

    /// Asks until the answer is as wanted, but no longer than this.
    pub(crate) async fn status_within(
        &self,
        deadline: Duration,
        wanted: impl Fn(&v1::ControllerStatus) -> bool,
    ) -> v1::ControllerStatus {
        let mut last = v1::ControllerStatus::default();
        let asking = async {
            loop {
                last = self.status().await;
                if wanted(&last) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let found = timeout(deadline, asking).await.is_ok();
        assert!(found, "never as wanted: {last:#?}");
        last
    }
}

pub(crate) async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://controller")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// One stream of a node, and what the node has of its state.
pub(crate) struct Node {
    pub(crate) state: State,
    pub(crate) held: Option<v1::Held>,
    pub(crate) welcome: v1::Welcome,
    messages: mpsc::Sender<v1::NodeMessage>,
    inbound: Streaming<v1::ControllerMessage>,
    assembler: Assembler,
}

pub(crate) fn hello(name: &str) -> v1::Hello {
    v1::Hello {
        node: name.into(),
        agent_version: "test".into(),
        layout: "1.0".into(),
        protocol: PROTOCOL_VERSION,
        held: None,
    }
}

/// Opens a stream with any first message.
pub(crate) async fn open(
    controller: &Controller,
    first: NodeMessage,
) -> Result<(mpsc::Sender<v1::NodeMessage>, Streaming<v1::ControllerMessage>), Status> {
    let mut client = NodeServiceClient::new(channel(&controller.socket()).await);
    let (messages, stream) = mpsc::channel(16);
    messages.send(v1::NodeMessage { message: Some(first) }).await.unwrap();
    let inbound = client.connect(ReceiverStream::new(stream)).await?.into_inner();
    Ok((messages, inbound))
}

impl Node {
    pub(crate) async fn connect(controller: &Controller, name: &str) -> Self {
        Self::connect_with(controller, hello(name), State::default()).await
    }

    pub(crate) async fn connect_with(controller: &Controller, hello: v1::Hello, state: State) -> Self {
        let held = hello.held.clone();
        let (messages, mut inbound) = open(controller, NodeMessage::Hello(hello)).await.unwrap();
        let first = timeout(DEADLINE, inbound.message())
            .await
            .expect("a welcome")
            .unwrap()
            .unwrap();
        let Some(Message::Welcome(welcome)) = first.message else {
            panic!("{first:?}")
        };
        Self {
            state,
            held,
            welcome,
            messages,
            inbound,
            assembler: Assembler::default(),
        }
    }

    /// The stream is cut; what the node holds stays.
    pub(crate) async fn reconnect(self, controller: &Controller, name: &str) -> Self {
        let Self {
            state,
            held,
            messages,
            inbound,
            ..
        } = self;
        drop((messages, inbound));
        Self::connect_with(controller, v1::Hello { held, ..hello(name) }, state).await
    }

    pub(crate) async fn next(&mut self) -> Result<Message, Status> {
        let message = timeout(DEADLINE, self.inbound.message()).await.expect("a message")?;
        Ok(message
            .expect("the stream is open")
            .message
            .expect("a message of a known kind"))
    }

    /// The next update, applied and checked, not acknowledged.
    pub(crate) async fn receive(&mut self) -> Revision {
        loop {
            let Message::Update(update) = self.next().await.unwrap() else {
                continue;
            };
            let Some(revision) = self.assembler.push(update).unwrap() else {
                continue;
            };
            if revision.snapshot {
                self.state = State::default();
            }
            self.state.apply(revision.delta.clone()).unwrap();
            assert_eq!(
                StateDigest::of(&self.state).digest(),
                revision.state_digest,
                "both ends hold the same"
            );
            return revision;
        }
    }

    pub(crate) async fn send(&self, message: NodeMessage) {
        self.messages
            .send(v1::NodeMessage { message: Some(message) })
            .await
            .unwrap();
    }

    pub(crate) async fn acknowledge(&mut self, revision: &Revision) {
        self.held = Some(v1::Held {
            revision: revision.revision,
            state_digest: revision.state_digest.0.to_vec(),
        });
        let ack = v1::Ack {
            revision: revision.revision,
            ..v1::Ack::default()
        };
        self.send(NodeMessage::Ack(ack)).await;
    }

    /// The next update, applied and acknowledged.
    pub(crate) async fn update(&mut self) -> Revision {
        let revision = self.receive().await;
        self.acknowledge(&revision).await;
        revision
    }

    /// Takes and acknowledges updates until the state is as wanted.
    pub(crate) async fn update_until(&mut self, mut wanted: impl FnMut(&Self) -> bool) {
        while !wanted(self) {
            self.update().await;
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.state.endpoints.keys().map(ToString::to_string).collect()
    }
}

pub(crate) fn pod(name: &str, node: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}\n\
         status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n---\n"
    )
}

/// Whom pods labelled `app: <name>` may be reached by.
pub(crate) fn policy(name: &str, from: &str, generation: u32) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: shop, generation: {generation}}}\n\
         spec:\n  podSelector: {{matchLabels: {{app: {name}}}}}\n  policyTypes: [Ingress]\n\
         \x20 ingress:\n  - from: [{{podSelector: {{matchLabels: {{app: {from}}}}}}}]\n    ports: [{{port: 80}}]\n---\n"
    )
}
