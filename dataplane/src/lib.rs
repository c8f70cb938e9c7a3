//! The node agent: loads the kernel programs, keeps their maps in step with the controller, reads what they saw.
//!
//! ```text
//! controller ─► stream ─► sync (plan, store, write, attach) ─► kernel (pinned maps, TCX links)
//!     ▲           │            ▲ endpoints (devices)               │
//!     └── acks ◄──┘                                                ▼
//! people ◄─ server ◄────────── flows (names as of then) ◄── event ring, denials, flow tables
//! ```

pub mod agent;
mod cleanup;
mod clock;
pub mod cni;
mod commands;
mod confirm;
mod cri;
mod endpoints;
mod flows;
mod gate;
mod ground;
mod health;
pub mod kernel;
mod memory;
mod metrics;
mod names;
mod options;
mod server;
pub mod simulated;
mod store;
mod stream;
mod sync;
mod tls;
mod uplink;

pub use options::Options;

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
