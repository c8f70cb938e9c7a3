//! Connections to the agent's and the controller's sockets, with errors that say what to start.

use std::{
    future::Future,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use bulkhead_proto::{
    MESSAGE_BYTES_MAX,
    v1::{agent_service_client::AgentServiceClient, controller_service_client::ControllerServiceClient},
};
use clap::{Args, ValueEnum};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Where this node's agent answers.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct AgentSocket {
    /// Socket of this node's agent.
    #[arg(
        long,
        value_name = "PATH",
        env = "BULKHEAD_AGENT_SOCKET",
        default_value = "/run/bulkhead/agent.sock"
    )]
    pub agent_socket: PathBuf,
}

/// Where the controller answers.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct ControllerSocket {
    /// Socket of the controller.
    #[arg(
        long,
        value_name = "PATH",
        env = "BULKHEAD_CONTROLLER_SOCKET",
        default_value = "/run/bulkhead/controller.sock"
    )]
    pub controller_socket: PathBuf,
}

/// How an answer is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl AgentSocket {
    /// Connects to the agent.
    pub async fn connect(&self) -> anyhow::Result<AgentServiceClient<Channel>> {
        let channel = connect(&self.agent_socket, "agent", "bulkhead-agent", "--agent-socket").await?;
        Ok(AgentServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }
}

impl ControllerSocket {
    /// Connects to the controller.
    pub async fn connect(&self) -> anyhow::Result<ControllerServiceClient<Channel>> {
        let path = &self.controller_socket;
        let channel = connect(
            path,
            "controller",
            "bulkhead-controller --manifests DIR",
            "--controller-socket",
        )
        .await?;
        Ok(ControllerServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }
}

/// Answers about a whole cluster are one message and may be larger than those of a stream.
const ANSWER_BYTES_MAX: usize = 16 * MESSAGE_BYTES_MAX;

async fn connect(path: &Path, who: &str, start: &str, flag: &str) -> anyhow::Result<Channel> {
    // Tried first, because the transport's own error does not tell why.
    UnixStream::connect(path)
        .await
        .map_err(|error| anyhow::anyhow!(explain(&error, path, who, start, flag)))?;
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://bulkhead");
    endpoint
        .connect_with_connector(connector)
        .await
        .with_context(|| format!("talking to the {who}"))
}

fn explain(error: &io::Error, path: &Path, who: &str, start: &str, flag: &str) -> String {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => {
            format!("no {who} socket at {path}: start `{start}`, or say where its socket is with {flag}")
        }
        ErrorKind::ConnectionRefused => {
            format!("nobody serves the {who} socket {path}: the {who} has died; start `{start}` again")
        }
        ErrorKind::PermissionDenied => format!("no permission to use the {who} socket {path}: run this as root"),
        _ => format!("cannot use the {who} socket {path}: {error}"),
    }
}

/// An answer's error in words: the message, without the machinery around it.
pub fn said(status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{} ({})", status.message(), status.code())
}

/// Runs a command's conversation.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_or_dead_socket_says_what_to_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let agent = AgentSocket {
            agent_socket: path.clone(),
        };
        let error = agent.connect().await.unwrap_err().to_string();
        assert!(
            error.contains("start `bulkhead-agent`") && error.contains("--agent-socket"),
            "{error}"
        );
        drop(tokio::net::UnixListener::bind(&path).unwrap());
        let controller = ControllerSocket {
            controller_socket: path,
        };
        let error = controller.connect().await.unwrap_err().to_string();
        assert!(
            error.contains("has died") && error.contains("bulkhead-controller --manifests"),
            "{error}"
        );
    }
}
