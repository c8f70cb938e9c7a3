//! HTTP for machines and for people at 3 a.m.: metrics, health, and on a loopback port the whole state and the log level.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use bulkhead_proto::log::Level;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    config::Config,
    engine::Pulse,
    metrics::Metrics,
    progress::Standings,
    registry::{NodeRecord, Registry},
    session::raised,
    status::About,
    world::World,
};

/// An engine that works on one batch for longer is stuck: a rebuild of a large cluster takes seconds.
const STUCK: Duration = Duration::from_mins(2);
/// Bytes of a request's body.
const BODY_MAX: usize = 4_096;
/// The content type of the text format.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told of.
#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) about: Arc<About>,
    pub(crate) worlds: watch::Receiver<Arc<World>>,
    pub(crate) standings: watch::Receiver<Arc<Standings>>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) pulse: Pulse,
    pub(crate) log_level: Option<Level>,
}

impl Health {
    /// Serves what the configuration asks for, until `stop` is raised.
    pub(crate) async fn start(&self, config: &Config, stop: &watch::Receiver<bool>) -> anyhow::Result<()> {
        if let Some(address) = config.metrics_listen {
            serve(address, self.public(), stop.clone()).await?;
        }
        if let Some(address) = config.debug_listen {
            serve(address, self.debug(), stop.clone()).await?;
        }
        Ok(())
    }

    /// /metrics, /livez and /readyz.
    fn public(&self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .with_state(self.clone())
    }

    /// /debug/state and /debug/log-level.
    fn debug(&self) -> Router {
        Router::new()
            .route("/debug/state", get(state))
            .route("/debug/log-level", put(log_level))
            .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
            .with_state(self.clone())
    }
}

/// Listens, and serves until `stop` is raised.
async fn serve(address: SocketAddr, router: Router, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}; is another process there?"))?;
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "serving HTTP");
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { raised(&mut stop).await });
    // Ends with the process's other parts; a broken connection ends nothing.
    drop(tokio::spawn(served.into_future()));
    Ok(())
}

async fn metrics(State(health): State<Health>) -> Response {
    let world = Arc::clone(&health.worlds.borrow());
    // Each replica exports its own.
    let nodes = health.registry.own();
    let text = tokio::task::spawn_blocking(move || health.metrics.text(&world, &nodes)).await;
    match text {
        Ok(Ok(text)) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A part that ends takes the process with it, so what is left to say is whether the engine moves.
async fn livez(State(health): State<Health>) -> (StatusCode, String) {
    match health.pulse.busy() {
        Some(busy) if busy > STUCK => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the compiler has worked on one batch for {} s\n", busy.as_secs()),
        ),
        _ => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let world = health.worlds.borrow();
    if world.revision == 0 {
        let message = format!(
            "nothing compiled yet: {} has not been read whole\n",
            health.about.source
        );
        (StatusCode::SERVICE_UNAVAILABLE, message)
    } else if world.unknown.is_empty() {
        (StatusCode::OK, format!("ok, revision {}\n", world.revision))
    } else {
        let message = format!("cannot be read since the start: {}\n", world.unknown.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

async fn log_level(State(health): State<Health>, directives: String) -> (StatusCode, String) {
    let Some(set) = &health.log_level else {
        return (
            StatusCode::NOT_IMPLEMENTED,
            "this process does not own its log\n".to_owned(),
        );
    };
    let directives = directives.trim();
    match set(directives) {
        Ok(()) => (StatusCode::OK, format!("{directives}\n")),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

async fn state(State(health): State<Health>) -> Response {
    let dump = tokio::task::spawn_blocking(move || dump(&health)).await;
    dump.map_or_else(
        |_| StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        |dump| Json(dump).into_response(),
    )
}

/// Everything a person may ask for. Resources are listed with their names in front, because JSON has no other keys than texts.
fn dump(health: &Health) -> Value {
    let world = Arc::clone(&health.worlds.borrow());
    let standings = Arc::clone(&health.standings.borrow());
    let policies: Vec<Value> = standings
        .iter()
        .map(|(key, standing)| {
            let enforcement = &standing.enforcement;
            json!({
                "policy": key.to_string(), "uid": standing.uid, "generation": standing.generation,
                "endpoints": enforcement.endpoints, "nodesNeeded": enforcement.needed, "nodesEnforced": enforcement.enforced,
                "waiting": enforcement.waiting, "trouble": enforcement.trouble,
            })
        })
        .collect();
    let nodes = health.registry.nodes();
    let locals: serde_json::Map<String, Value> = world
        .locals
        .iter()
        .map(|(node, local)| (node.clone(), resources(&local.state)))
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": health.about.instance,
        "source": health.about.source,
        "revision": world.revision,
        "unknown": *world.unknown,
        "diagnostics": *world.diagnostics,
        "policies": policies,
        "nodes": nodes.iter().map(|(name, record)| node(name, record, &world)).collect::<Vec<_>>(),
        "shared": resources(&world.shared),
        "perNode": locals,
    })
}

fn node(name: &str, record: &NodeRecord, world: &World) -> Value {
    json!({
        "node": name, "connected": record.connected, "agentVersion": record.agent_version, "layout": record.layout,
        "wanted": record.wanted, "held": record.held(), "error": record.error, "heldBack": record.held_back,
        "enforced": record.enforced, "updates": record.updates, "snapshots": record.snapshots,
        "announced": world.announced.get(name),
    })
}

fn resources(state: &bulkhead_policy::state::State) -> Value {
    let all = bulkhead_policy::state::Delta::between(&bulkhead_policy::state::State::default(), state).upserts;
    serde_json::to_value(all).unwrap_or_else(|error| json!({"error": error.to_string()}))
}
