//! The packet verdict: one `no_std`, allocation-free crate that is compiled for the kernel (`bpfel-unknown-none`) and
//! for the host. The kernel programs, the host tests, the fuzzers, the simulator and the replay all call [`decide`].
#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)
)]
#![allow(
    clippy::inline_always,
    reason = "a call that is left is a call in the kernel: stages say where calls are"
)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::unreachable))]

pub mod address;
pub mod answer;
pub mod connection;
pub mod decide;
pub mod dns;
pub mod flow;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod layout;
pub mod maps;
pub mod packet;
pub mod policy;
pub mod port;
pub mod quota;
pub mod reason;
pub mod record;
mod related;
pub mod scratch;
pub mod spoof;
#[cfg(test)]
mod tests;
pub mod uplink;
#[cfg(any(test, feature = "host"))]
pub mod vectors;

pub use decide::{Stage, Verdict, decide, decide_host};
pub use scratch::Scratch;
