//! `bulkhead`, the command for people: what would be allowed, why, and what is wrong with a folder of policies.
//!
//! Each command is a module with its `Arguments` and a `run` that says with which status the process ends. A new one is a
//! module here and a variant in `main.rs`.

pub mod check;
pub mod client;
pub mod cluster;
pub mod connectivity;
pub mod endpoints;
pub mod explain;
pub mod flows;
pub mod install;
pub mod manifests;
pub mod simulate;
pub mod status;
pub mod support_bundle;
pub mod table;
pub mod uninstall;
