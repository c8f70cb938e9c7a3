//! Asks controller and agents over their sockets, as the command line does.

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, Result};
use bulkhead_proto::v1::{
    AgentStatus, ControllerStatus, EndpointStatus, Flow, FlowFilter, GetAgentStatusRequest, GetControllerStatusRequest,
    GetEndpointsRequest, GetFlowsRequest, agent_service_client::AgentServiceClient,
    controller_service_client::ControllerServiceClient, get_flows_response::Response,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::transport::{Channel, Endpoint};

const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Records waiting to be looked at; a demo or test looks all the time.
const FLOWS_WAITING_MAX: usize = 16_384;

/// A connection to one socket, made anew when it was lost. Its calls block.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    channel: Channel,
    socket: PathBuf,
}

/// Records as they come in.
#[derive(Debug)]
pub struct Flows {
    receiver: mpsc::Receiver<Flow>,
    /// Its runtime reads them.
    _client: Client,
}

impl Flows {
    /// The next record, if one comes within the time.
    pub fn next(&self, within: Duration) -> Option<Flow> {
        self.receiver.recv_timeout(within).ok()
    }

    /// The records that have come already.
    pub fn waiting(&self) -> impl Iterator<Item = Flow> {
        self.receiver.try_iter()
    }
}

impl Client {
    /// A client of a socket; connects with the first call.
    ///
    /// # Errors
    /// When no runtime can be made.
    pub fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting a runtime")?;
        let path = socket.to_path_buf();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is never resolved; a unix socket has none.
        let endpoint = Endpoint::from_static("http://socket.invalid").timeout(ANSWER_MAX);
        let channel = runtime.block_on(async { endpoint.connect_with_connector_lazy(connector) });
        Ok(Self {
            runtime,
            channel,
            socket: socket.to_path_buf(),
        })
    }

    /// What the controller says of policies and nodes.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn controller_status(&self) -> Result<ControllerStatus> {
        let mut client = ControllerServiceClient::new(self.channel.clone());
        self.call(client.get_status(GetControllerStatusRequest {}))
    }

    /// What an agent says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn agent_status(&self) -> Result<AgentStatus> {
        let mut client = AgentServiceClient::new(self.channel.clone());
        self.call(client.get_status(GetAgentStatusRequest {}))
    }

    /// The endpoints of an agent.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn endpoints(&self) -> Result<Vec<EndpointStatus>> {
        let mut client = AgentServiceClient::new(self.channel.clone());
        Ok(self.call(client.get_endpoints(GetEndpointsRequest {}))?.endpoints)
    }

    /// The flow records an agent has kept that pass any of the filters (none = all).
    ///
    /// # Errors
    /// When it does not answer.
    pub fn flows(&self, filters: Vec<FlowFilter>) -> Result<Vec<Flow>> {
        let mut client = AgentServiceClient::new(self.channel.clone());
        let request = GetFlowsRequest {
            filters,
            ..GetFlowsRequest::default()
        };
        let flows = async {
            let mut stream = client.get_flows(request).await?.into_inner();
            let mut flows = Vec::new();
            while let Some(response) = stream.message().await? {
                if let Some(Response::Flow(flow)) = response.response {
                    flows.push(flow);
                }
            }
            Ok::<_, tonic::Status>(flows)
        };
        self.runtime
            .block_on(flows)
            .with_context(|| format!("reading flows from {}", self.socket.display()))
    }

    /// Records from now on, until the result is dropped or the agent ends.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn follow(self) -> Result<Flows> {
        // No deadline on this one: it lasts as long as the agent.
        let mut client = AgentServiceClient::new(self.channel.clone());
        let mut request = tonic::Request::new(GetFlowsRequest {
            follow: true,
            last: 1,
            ..GetFlowsRequest::default()
        });
        request.set_timeout(Duration::from_hours(24));
        let mut stream = self.call(client.get_flows(request))?;
        let (sender, receiver) = mpsc::sync_channel(FLOWS_WAITING_MAX);
        self.runtime.spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                // A full queue loses the record here; nothing is counted from this side.
                if let Some(Response::Flow(flow)) = response.response
                    && matches!(sender.try_send(flow), Err(mpsc::TrySendError::Disconnected(_)))
                {
                    return;
                }
            }
        });
        Ok(Flows {
            receiver,
            _client: self,
        })
    }

    fn call<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T> {
        let response = self.runtime.block_on(call);
        Ok(response
            .with_context(|| format!("asking {}", self.socket.display()))?
            .into_inner())
    }
}
