//! `bulkhead status`: what the controller wants, what nodes hold, how full this node's tables are, what was lost.

mod json;
mod text;

use std::{
    io::{Write as _, stdout},
    process::ExitCode,
};

use anyhow::bail;
use bulkhead_proto::v1::{AgentStatus, ControllerStatus, GetAgentStatusRequest, GetControllerStatusRequest};
use clap::Args;

use crate::client::{AgentSocket, ControllerSocket, Output, block_on, said};

/// Show where policies are enforced, and the health of the controller and of this node's agent.
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
}

/// Asks both and writes what they say. An error when neither answers.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (controller, agent) = block_on(async { Ok((arguments.ask_controller().await, arguments.ask_agent().await)) })?;
    if let (Err(controller), Err(agent)) = (&controller, &agent) {
        bail!("{controller}\n{agent}");
    }
    let text = match arguments.output {
        Output::Table => text::status(&controller, &agent),
        Output::Json => format!("{:#}\n", json::status(&controller, &agent)),
    };
    stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
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
