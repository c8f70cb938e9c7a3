//! The kernel's clocks.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns};

/// Coarse CLOCK_MONOTONIC, nanoseconds.
#[inline(always)]
pub(crate) fn coarse() -> u64 {
    // SAFETY: takes no argument and touches no memory.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// CLOCK_BOOTTIME, nanoseconds.
#[inline(always)]
pub(crate) fn boot() -> u64 {
    // SAFETY: takes no argument and touches no memory.
    unsafe { bpf_ktime_get_boot_ns() }
}
