//! The packet verdict: one `no_std`, allocation-free crate that is compiled for the kernel (`bpfel-unknown-none`) and
//! for the host. The kernel programs, the host tests, the fuzzers, the simulator and the replay all call [`decide`].
#![cfg_attr(not(any(test, feature = "host")), no_std)]

pub mod address;
pub mod layout;
pub mod maps;
pub mod port;
pub mod reason;
