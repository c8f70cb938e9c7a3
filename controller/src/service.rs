//! The gRPC services: the node stream's first message, and status.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::{
    PROTOCOL_VERSION,
    v1::{self, controller_service_server::ControllerService, node_message, node_service_server::NodeService},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    engine::Input,
    metrics::Metrics,
    registry::Registry,
    replicas::Board,
    session::Session,
    status,
    tls::{
        connection::{Caller, caller, refused},
        standing::{Standing, Trusted},
    },
    world::World,
};

/// Messages waiting for the transport. Few: chunks are large, and what waits here is not newer than what is sent next.
const OUTBOUND: usize = 4;
/// A stream that says nothing for so long after it was opened is closed.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest node name, that of a DNS name.
const NODE_NAME_MAX: usize = 253;

/// Both services.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) registry: Registry,
    pub(crate) engine: mpsc::Sender<Input>,
    /// What nodes announce, for other replicas.
    pub(crate) board: Board,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) about: Arc<status::About>,
    pub(crate) metrics: Metrics,
    /// Whose certificates are believed.
    pub(crate) trusted: Trusted,
}

async fn hello(inbound: &mut Streaming<v1::NodeMessage>) -> Result<v1::Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))??;
    let Some(node_message::Message::Hello(hello)) = first.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message of a node is Hello"));
    };
    if hello.protocol != PROTOCOL_VERSION {
        return Err(Status::failed_precondition(format!(
            "the agent speaks protocol {}, this controller {PROTOCOL_VERSION}; upgrade the older one",
            hello.protocol
        )));
    }
    if hello.node.is_empty() || hello.node.len() > NODE_NAME_MAX {
        return Err(Status::invalid_argument(format!(
            "field node: a name of 1 to {NODE_NAME_MAX} bytes is needed"
        )));
    }
    Ok(hello)
}

#[tonic::async_trait]
impl NodeService for Service {
    type ConnectStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::NodeMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let trust_domain = self.trusted.borrow().as_ref().map(|trust| trust.trust_domain().clone());
        let caller = caller(&request, trust_domain.as_ref())?;
        let mut inbound = request.into_inner();
        let hello = hello(&mut inbound).await?;
        let standing = match caller {
            Caller::Local => None,
            Caller::Node(node) if node.name == hello.node => Some(Standing::new(node, self.trusted.clone())),
            Caller::Node(node) => {
                let reason = format!("node {} asks for the state of node {}", node.name, hello.node);
                return Err(refused(None, &reason));
            }
            Caller::Controller(replica) => {
                return Err(refused(
                    replica.remote,
                    "the certificate is a controller's, not a node's",
                ));
            }
            Caller::Unknown(remote) => {
                let reason = format!(
                    "node {} has no client certificate; get one from BootstrapService",
                    hello.node
                );
                return Err(refused(remote, &reason));
            }
        };
        let seat = self
            .registry
            .enter(&hello.node, &hello.agent_version, &hello.layout)
            .map_err(|error| Status::resource_exhausted(error.to_string()))?;
        tracing::info!(
            node = hello.node,
            version = hello.agent_version,
            layout = hello.layout,
            holds = hello.held.as_ref().map_or(0, |held| held.revision),
            "node connected"
        );
        let (outbound, stream) = mpsc::channel(OUTBOUND);
        let mut session = Session::new(seat, &hello, self, outbound);
        session.greet(v1::Welcome {
            controller_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL_VERSION,
            instance: self.about.instance.clone(),
            takes_certificates: standing.is_some(),
        });
        // Ends with the stream or at shutdown; a panic in it takes its own stream with it and nothing else.
        let stop = self.stop.clone();
        let lapsed = standing.as_ref().map(Standing::lapsed);
        session.standing = standing;
        drop(tokio::spawn(async move {
            tokio::select! {
                () = session.run(inbound, stop) => {}
                reason = async { match lapsed {
                    Some(lapsed) => lapsed.await,
                    None => std::future::pending().await,
                } } => tracing::warn!(node = hello.node, "the stream is closed: {reason}"),
            }
        }));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl ControllerService for Service {
    async fn get_status(
        &self,
        _request: Request<v1::GetControllerStatusRequest>,
    ) -> Result<Response<v1::ControllerStatus>, Status> {
        let world = Arc::clone(&self.worlds.borrow());
        Ok(Response::new(status::status(
            &self.about,
            &world,
            &self.registry.nodes(),
        )))
    }
}
