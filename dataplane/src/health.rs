//! `/livez`, `/readyz` and `/metrics` for kubelet and Prometheus; on a loopback address the log level too.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, put},
};
use bulkhead_proto::log::Level;
use tokio::{net::TcpListener, sync::watch};

use crate::{metrics, server::Agent};

/// What is served from.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) agent: Arc<Agent>,
    /// Why the CNI plugin is not in place; empty when it is, or nobody asked for it.
    pub(crate) install: watch::Receiver<String>,
    /// Why the container runtime does not answer; empty when it does, or nobody asks it.
    pub(crate) runtime: watch::Receiver<String>,
    pub(crate) log_level: Level,
}

/// Serves for ever.
///
/// # Errors
/// When the address is taken.
pub(crate) async fn serve(address: SocketAddr, health: Health) -> Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address} (option --health-listen)"))?;
    let mut router = Router::new()
        // The threads take the process with them when they end, so who answers is alive.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    // Nobody changes the log of another machine.
    if address.ip().is_loopback() {
        router = router.route("/debug/log-level", put(log_level));
    }
    axum::serve(listener, router.with_state(health))
        .await
        .context("serving health")
}

async fn log_level(State(health): State<Health>, directives: String) -> (StatusCode, String) {
    match (health.log_level)(directives.trim()) {
        Ok(()) => (StatusCode::OK, format!("{}\n", directives.trim())),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

/// Ready: a state is in force, and pods that start are judged. Not asked is whether the controller is there: what is in
/// force stays without it.
async fn ready(State(health): State<Health>) -> impl IntoResponse {
    let mut problems = Vec::new();
    {
        let holding = health.agent.holding.borrow();
        if holding.digest.is_none() {
            problems.push("no state is in force yet".to_owned());
        }
        if !holding.error.is_empty() {
            problems.push(format!("the newest state is not in force: {}", holding.error));
        }
        if let Some((_, reason)) = &holding.bypass {
            problems.push(format!("a bypass is in force: {reason}"));
        }
    }
    let install = health.install.borrow().clone();
    if !install.is_empty() {
        problems.push(format!("the CNI plugin is not installed: {install}"));
    }
    let runtime = health.runtime.borrow().clone();
    if !runtime.is_empty() {
        problems.push(format!("the container runtime does not answer: {runtime}"));
    }
    if problems.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    match metrics::text(&health.agent) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        Err(error) => {
            let kind = "text/plain; charset=utf-8";
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                [(header::CONTENT_TYPE, kind)],
                format!("{error:#}\n"),
            )
        }
    }
}
