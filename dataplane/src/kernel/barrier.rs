//! Waits until no kernel program runs that began before: an RCU grace period.
//!
//! The programs run inside RCU read-side sections (TCX takes `rcu_read_lock` around the whole program list on ingress, and
//! bottom-half RCU on egress; both have been one flavour since Linux 5.0), so a grace period is exactly "every program
//! that could still hold what was unpublished has returned". Two system calls wait for one:
//!
//! 1. `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu()` in the kernel, and nothing else. On a machine with one CPU
//!    it returns at once, rightly: programs run with bottom halves off, so none is half-way while we run.
//! 2. It answers `EINVAL` on kernels with `nohz_full` CPUs. There, updating a map of maps serves: that command's contract is
//!    to return only after the programs that may use the old inner map have ended, through `synchronize_rcu()` as well.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::thread::{MembarrierCommand, membarrier};

use super::{KernelError, sys};

/// How this machine waits.
#[derive(Debug)]
pub(crate) enum Barrier {
    Membarrier,
    MapOfMaps { outer: OwnedFd, inner: OwnedFd },
}

impl Barrier {
    /// Tries what works here, once.
    pub(crate) fn new() -> Result<Self, KernelError> {
        if membarrier(MembarrierCommand::Global).is_ok() {
            return Ok(Self::Membarrier);
        }
        Self::map_of_maps().map_err(|source| KernelError::Barrier { source })
    }

    fn map_of_maps() -> io::Result<Self> {
        let inner = sys::create_array(None)?;
        let outer = sys::create_array(Some(inner.as_fd()))?;
        Ok(Self::MapOfMaps { outer, inner })
    }

    /// Returns after a full grace period: some milliseconds.
    pub(crate) fn wait(&self) -> Result<(), KernelError> {
        match self {
            Self::Membarrier => membarrier(MembarrierCommand::Global).map_err(io::Error::from),
            Self::MapOfMaps { outer, inner } => {
                use std::os::fd::AsRawFd;
                let inner = inner.as_raw_fd().to_ne_bytes();
                sys::update(outer.as_fd(), &0_u32.to_ne_bytes(), &inner)
            }
        }
        .map_err(|source| KernelError::Barrier { source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_return() {
        assert!(Barrier::Membarrier.wait().is_ok());
        match Barrier::map_of_maps() {
            Ok(barrier) => barrier.wait().unwrap(),
            Err(error) => println!("SKIPPED: a map of maps needs CAP_BPF: {error}"),
        }
    }
}
