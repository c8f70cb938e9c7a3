//! `bulkhead status`: what the controller wants, what nodes hold, how full this node's tables are, what was lost; or, from afar, how a
//! whole cluster is.

mod cluster;
mod json;
mod text;

use std::{
    io::{Write as _, stdout},
    process::ExitCode,
};

use anyhow::bail;
use bulkhead_proto::v1::{AgentStatus, ControllerStatus, GetAgentStatusRequest, GetControllerStatusRequest};
use clap::Args;

use crate::{
    client::{AgentSocket, ControllerSocket, Output, block_on, said},
    cluster::Access,
};

/// Show where policies are enforced, and the health of the controller and of this node's agent.
///
/// Where neither has a socket, or with --kubeconfig or --context, a cluster is asked instead: workloads, nodes without an agent, policies
/// that are not in force. The status is then 1 when something is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct Arguments {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub agent: AgentSocket,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub controller: ControllerSocket,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub access: Access,
    /// Namespace of controller and agents, for a cluster.
    #[arg(long, short, default_value = "bulkhead-system", value_name = "NAME")]
    pub namespace: String,
}

/// Asks and writes what is said. An error when nobody answers.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    block_on(async {
        if arguments.access != Access::default() {
            let cluster = arguments.access.connect().await?;
            return cluster::run(&cluster, &arguments.namespace, arguments.output).await;
        }
        let (controller, agent) = (arguments.ask_controller().await, arguments.ask_agent().await);
        if let (Err(controller), Err(agent)) = (&controller, &agent) {
            return match arguments.access.connect().await {
                Ok(cluster) => cluster::run(&cluster, &arguments.namespace, arguments.output).await,
                Err(cluster) => bail!("{controller}\n{agent}\n{cluster:#}"),
            };
        }
        let text = match arguments.output {
            Output::Table => text::status(&controller, &agent),
            Output::Json => format!("{:#}\n", json::status(&controller, &agent)),
        };
        stdout().lock().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    })
}

/// An answer, or why there is none.
type Answer<T> = Result<T, String>;

impl Arguments {
    async fn ask_controller(&self) -> Answer<ControllerStatus> {
        let ask = async {
            let mut client = self.controller.connect().await?;
            let answer = client.get_status(GetControllerStatusRequest {}).await;
            anyhow::Ok(answer.map_err(|status| said(&status))?.into_inner())
        };
        ask.await.map_err(|error| format!("{error:#}"))
    }

    async fn ask_agent(&self) -> Answer<AgentStatus> {
        let ask = async {
            let mut client = self.agent.connect().await?;
            let answer = client.get_status(GetAgentStatusRequest {}).await;
            anyhow::Ok(answer.map_err(|status| said(&status))?.into_inner())
        };
        ask.await.map_err(|error| format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests;
