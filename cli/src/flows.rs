//! `bulkhead flows`: what connected, or could not, and which rule decided.

mod json;
mod line;

use std::{
    io::{IsTerminal as _, Write as _, stdout},
    process::ExitCode,
};

use anyhow::bail;
use bulkhead_proto::v1::{FlowFilter, GetFlowsRequest, Verdict, get_flows_response::Response};
use clap::{Args, ValueEnum};

use crate::client::{AgentSocket, Output, block_on, said};

/// Show connections of this node's pods, and the rule that decided each.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct Arguments {
    /// Keep going with what happens from now on.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the newest N of what is kept [default: 20 with --follow, else all].
    #[arg(long, value_name = "N")]
    pub last: Option<u64>,
    /// Who began it: namespace/pod, namespace/, an address, a prefix, or a label key=value.
    #[arg(long, value_name = "WHO")]
    pub from: Option<String>,
    /// Whom it was for; forms as for --from.
    #[arg(long, value_name = "WHO")]
    pub to: Option<String>,
    /// Only what was allowed, or only what was denied.
    #[arg(long, value_enum)]
    pub verdict: Option<WantedVerdict>,
    /// Part of the name of the rule that decided.
    #[arg(long, value_name = "SUBSTRING")]
    pub policy: Option<String>,
    /// Destination port.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// tcp, udp, sctp, icmp, icmpv6, or a number.
    #[arg(long, value_name = "NAME")]
    pub protocol: Option<String>,
    /// Form of the output; json has one object per line.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub socket: AgentSocket,
}

/// A verdict to look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WantedVerdict {
    /// It may live.
    Allowed,
    /// It may not, or not any more.
    Denied,
}

/// Writes flows to standard output until there are no more.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    block_on(arguments.talk())?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    async fn talk(&self) -> anyhow::Result<()> {
        let mut client = self.socket.connect().await?;
        let mut stream = client
            .get_flows(self.request())
            .await
            .map_err(|status| said(&status))?
            .into_inner();
        let mut out = stdout().lock();
        let coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        while let Some(answer) = stream.message().await.map_err(|status| said(&status))? {
            let line = match (answer.response, self.output) {
                (Some(Response::Flow(flow)), Output::Table) => line::flow(&flow, coloured),
                (Some(Response::Flow(flow)), Output::Json) => json::flow(&flow).to_string(),
                (Some(Response::Lost(lost)), Output::Table) => line::lost(&lost, coloured),
                (Some(Response::Lost(lost)), Output::Json) => json::lost(&lost).to_string(),
                (None, _) => bail!("the agent sent a record this version does not know; upgrade `bulkhead`"),
            };
            writeln!(out, "{line}")?;
            out.flush()?;
        }
        if self.follow {
            bail!("the agent ended the stream; it was stopped, or this reader was too slow");
        }
        Ok(())
    }

    fn request(&self) -> GetFlowsRequest {
        let verdict = match self.verdict {
            None => Verdict::Unknown,
            Some(WantedVerdict::Allowed) => Verdict::Forwarded,
            Some(WantedVerdict::Denied) => Verdict::Dropped,
        };
        let filter = FlowFilter {
            source: self.from.clone().unwrap_or_default(),
            destination: self.to.clone().unwrap_or_default(),
            verdict: verdict.into(),
            policy: self.policy.clone().unwrap_or_default(),
            port: self.port.unwrap_or_default().into(),
            protocol: self.protocol.clone().unwrap_or_default(),
        };
        let filters = if filter == FlowFilter::default() {
            Vec::new()
        } else {
            vec![filter]
        };
        let last = self.last.unwrap_or(if self.follow { 20 } else { 0 });
        GetFlowsRequest {
            filters,
            since: None,
            follow: self.follow,
            last,
        }
    }
}

#[cfg(test)]
mod tests;
