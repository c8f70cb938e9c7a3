//! The control plane: a cluster or manifests in, each node's part of the compiled state out, acknowledgements back.
//!
//! ```text
//! source (kube, files) ─► facts ─► engine (compiler) ─► World ─► session per node ─► node stream
//!                           ▲                                         │ acks, announcements
//!                           └─────────────── registry ◄───────────────┘ ─► status
//! ```
//!
//! Everything between source and sessions is a value with a revision: a session takes the newest `World` whenever its node
//! is ready for one, so a slow node costs nobody anything and gets one difference, not a backlog.

pub mod config;
mod engine;
mod facts;
mod health;
mod kube_status;
mod metrics;
mod part;
mod progress;
mod registry;
mod replicas;
pub mod run;
mod service;
mod session;
mod socket;
pub mod source;
mod status;
pub mod tls;
pub mod webhook;
mod world;
