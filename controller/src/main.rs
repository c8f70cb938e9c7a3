//! `bulkhead-controller`: reads its configuration, sets up the log, serves until SIGTERM or SIGINT.

use std::io::{IsTerminal as _, stderr};

use anyhow::Context as _;
use bulkhead_controller::{
    config::{Config, LogFormat},
    run::run,
};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let filter = EnvFilter::try_new(&config.log_level).with_context(|| {
        format!(
            "--log-level {:?}: expected a level or directives such as info",
            config.log_level
        )
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(config, shutdown).await
}
