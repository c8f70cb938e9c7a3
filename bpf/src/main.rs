//! The kernel programs: what a pod sends and what is sent to it, judged by `bulkhead_verdict::decide`.
//!
//! Everything that decides is in `verdict`; here are only the maps, the packet and the return value. A packet that
//! passes goes on to the programs behind ours (`TCX_NEXT`): we never force through what another program would drop.
//!
//! Built for `bpfel-unknown-none` with `-Z build-std=core`, linked by bpf-linker.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bench;
mod clock;
mod dns;
mod packet;
mod stage;
mod state;

use aya_ebpf::{macros::classifier, programs::TcContext};
use bulkhead_verdict::{decide, maps::Hook};

use crate::{packet::Skb, state::Kernel};

/// Go on with the next program; pass if there is none.
const NEXT: i32 = -1;
/// Drop.
const SHOT: i32 = 2;

/// What a pod sends: the ingress hook of its host-side device.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    run(&context, Hook::FromPod)
}

/// What is sent to a pod: the egress hook of its host-side device.
#[classifier]
pub fn to_pod(context: TcContext) -> i32 {
    run(&context, Hook::ToPod)
}

/// Nothing: the floor that measurements compare with.
#[classifier]
pub fn empty(_context: TcContext) -> i32 {
    NEXT
}

/// For measurements: as [`from_pod`], each time with the next source port.
#[classifier]
pub fn bench_new_flow(context: TcContext) -> i32 {
    if bench::next_port(&Skb::new(&context)) {
        run(&context, Hook::FromPod)
    } else {
        SHOT
    }
}

/// For measurements: the next source port and nothing else, which [`bench_new_flow`] does beside judging.
#[classifier]
pub fn bench_mutate(context: TcContext) -> i32 {
    if bench::next_port(&Skb::new(&context)) {
        NEXT
    } else {
        SHOT
    }
}

/// Judges one packet.
#[inline(always)]
fn run(context: &TcContext, hook: Hook) -> i32 {
    // The array has the element; without one there is nowhere to judge, so nothing passes.
    let Some(scratch) = state::scratch() else { return SHOT };
    if decide(&Skb::new(context), &Kernel, scratch, hook).reason.passes() {
        NEXT
    } else {
        SHOT
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The helpers used are for programs under a licence compatible with the kernel's.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
