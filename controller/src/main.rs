//! `bulkhead-controller`: reads its configuration, sets up the log, serves until SIGTERM or SIGINT.

use std::{
    io::{IsTerminal as _, stderr},
    sync::Arc,
};

use anyhow::Context as _;
use bulkhead_controller::{
    config::{Config, LogFormat},
    run::{LogLevel, run},
};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, reload};

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
    let log_level = match config.log_format {
        LogFormat::Text => {
            let log = log.with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            level(handle)
        }
        LogFormat::Json => {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            level(handle)
        }
    };
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

/// What changes the level of the log that belongs to `handle`.
fn level<S: 'static>(handle: reload::Handle<EnvFilter, S>) -> LogLevel {
    Arc::new(move |directives| {
        let filter = EnvFilter::try_new(directives).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    })
}
