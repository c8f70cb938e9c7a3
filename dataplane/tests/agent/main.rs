//! The agent with a real kernel: in network namespaces of its own, with a controller's end of the stream in the test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "helpers of tests, which clippy does not count as tests"
)]

mod controller;
mod faults;
mod kernel;
mod restart;
mod world;

/// True when the tests can run here; says so when they cannot.
fn can_run() -> bool {
    let root = bulkhead_testbed::sys::is_root();
    if !root {
        println!("SKIPPED: needs root for network namespaces and kernel programs");
    }
    root
}
