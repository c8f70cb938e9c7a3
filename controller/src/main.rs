//! `bulkhead-controller`: reads its configuration, sets up the log, serves until SIGTERM or SIGINT.

use anyhow::Context as _;
use bulkhead_controller::{config::Config, run::run};
use bulkhead_proto::log;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let log_level =
        log::init(&config.log_level, config.log_format).map_err(|error| anyhow::anyhow!("--log-level {error}"))?;
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Box::pin(run(config, Some(log_level), shutdown)).await
}
