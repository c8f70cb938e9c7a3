//! The kernel programs: what a pod sends and what is sent to it, judged by `bulkhead_verdict::decide`.
//!
//! Everything that decides is in `verdict`; here are only the maps, the packet and the return value. A packet that
//! passes goes on to the programs behind ours (`TCX_NEXT`): we never force through what another program would drop.
//!
//! Built for `bpfel-unknown-none` with `-Z build-std=core`, linked by bpf-linker.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answer;
mod bench;
mod clock;
mod dns;
mod packet;
mod stage;
mod state;
mod xdp;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use bulkhead_verdict::{Scratch, decide, decide_host, maps::Hook, reason::Reason};

use crate::{packet::Skb, state::Kernel};

/// Go on with the next program; pass if there is none.
const NEXT: i32 = -1;
/// Drop.
const SHOT: i32 = 2;
/// What an XDP program says that could not do its work.
const ABORTED: u32 = 0;

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

/// What the node sends: the egress hook of a device that leads out.
#[classifier]
pub fn from_host(context: TcContext) -> i32 {
    run_host(&context, Hook::FromPod)
}

/// What comes in to the node: the ingress hook of a device that leads out.
#[classifier]
pub fn to_host(context: TcContext) -> i32 {
    run_host(&context, Hook::ToPod)
}

/// What comes in by an uplink.
#[xdp(frags)]
pub fn uplink(context: XdpContext) -> u32 {
    xdp::run(context.ctx)
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

/// For measurements: reads headers and nothing else.
#[classifier]
pub fn bench_headers(context: TcContext) -> i32 {
    match bench::headers(&Skb::new(&context)) {
        Some(_) => NEXT,
        None => SHOT,
    }
}

/// For measurements: as [`bench_headers`], and the record of a flow.
#[classifier]
pub fn bench_event(context: TcContext) -> i32 {
    let skb = Skb::new(&context);
    match bench::headers(&skb) {
        Some(headers) => {
            bench::event(&skb, &headers);
            NEXT
        }
        None => SHOT,
    }
}

/// For measurements: the next source and nothing else.
#[xdp(frags)]
pub fn bench_source(context: XdpContext) -> u32 {
    if bench::next_source(context.ctx) {
        xdp::action::PASS
    } else {
        ABORTED
    }
}

/// For measurements: as [`uplink`], each time with the next source.
#[xdp(frags)]
pub fn bench_uplink(context: XdpContext) -> u32 {
    if bench::next_source(context.ctx) {
        xdp::run(context.ctx)
    } else {
        ABORTED
    }
}

/// For measurements: a longest-prefix trie, each time with the next source.
#[xdp(frags)]
pub fn bench_trie(context: XdpContext) -> u32 {
    if bench::next_source(context.ctx) {
        bench::lpm(context.ctx)
    } else {
        ABORTED
    }
}

/// Judges one packet.
#[inline(always)]
fn run(context: &TcContext, hook: Hook) -> i32 {
    // The array has the element; without one there is nowhere to judge, so nothing passes.
    let Some(scratch) = state::scratch() else { return SHOT };
    let reason = decide(&Skb::new(context), &Kernel, scratch, hook).reason;
    let back_in = match hook {
        Hook::FromPod => false,
        Hook::ToPod => true,
    };
    act(context, scratch, reason, back_in)
}

/// Judges one packet at an uplink.
#[inline(always)]
fn run_host(context: &TcContext, hook: Hook) -> i32 {
    let Some(scratch) = state::scratch() else { return SHOT };
    let reason = decide_host(&Skb::new(context), &Kernel, scratch, hook).reason;
    let back_in = match hook {
        Hook::FromPod => true,
        Hook::ToPod => false,
    };
    act(context, scratch, reason, back_in)
}

/// Does what was decided; an answer is received by the device (`back_in`) or sent by it.
#[inline(always)]
fn act(context: &TcContext, scratch: &Scratch, reason: Reason, back_in: bool) -> i32 {
    if reason.passes() {
        if reason == Reason::Answer {
            answer::unmark(context.skb.skb);
        }
        NEXT
    } else if scratch.answer().length() == 0 {
        SHOT
    } else {
        answer::send(context.skb.skb, scratch.answer(), back_in)
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
