//! Namespaces as nodes and pods, with real processes in them. Nothing depends on this but tests, the demo and xtask.
//!
//! A [`Testnet`] is a small cluster: node namespaces joined by a bridge in a namespace of their own, pod namespaces behind
//! veth pairs, routed as by a CNI that gives each pod a /32 and a /128. Nothing is made outside of these namespaces, names
//! are unique per run, and dropping the value removes everything.

pub mod client;
pub mod demo;
pub mod foreign;
pub mod frame;
pub mod manifests;
pub mod namespace;
pub mod peer;
pub mod pinned;
pub mod process;
pub mod runtime;
pub mod stack;
pub mod sys;
pub mod testnet;
pub mod traffic;
pub mod workload_api;

pub use process::Running;
pub use stack::Stack;
pub use testnet::{Plan, Pod, PodPlan, Testnet};
