//! Sends an answer back: the refused packet's buffer, with the answer in it, to where the packet came from.

use core::arch::asm;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH},
    helpers::{bpf_redirect, bpf_skb_change_tail, bpf_skb_store_bytes},
};
use bulkhead_verdict::answer::Answer;

use crate::{SHOT, state};

/// Turns the buffer into the answer and hands it to the device's other hook, which knows it by its mark (a pod cannot set one:
/// the kernel clears marks where a packet leaves a network namespace). What the pod sent comes back to it; what was sent to the
/// pod goes out as if the pod had answered.
#[inline(always)]
pub(crate) fn send(buffer: *mut __sk_buff, answer: &Answer, back_in: bool) -> i32 {
    let mark = state::answer_mark();
    let mut length = answer.length();
    // SAFETY: copies a register to itself. What the compiler would conclude from here on, the verifier has to see.
    unsafe { asm!("{0} = {0}", inout(reg) length) };
    length &= Answer::MASK;
    if mark == 0 || length < Answer::SHORTEST {
        return SHOT;
    }
    let flags = if back_in { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: the context is valid, and the answer is longer than `length`.
    unsafe {
        if bpf_skb_change_tail(buffer, length, 0) != 0 {
            return SHOT;
        }
        let words = answer.words().as_ptr().cast();
        if bpf_skb_store_bytes(buffer, 0, words, length, u64::from(BPF_F_INVALIDATE_HASH)) != 0 {
            return SHOT;
        }
        (*buffer).mark = mark;
        bpf_redirect((*buffer).ifindex, flags) as i32
    }
}

/// Takes the mark off, so that no rule of the host takes it for one of its own.
#[inline(always)]
pub(crate) fn unmark(buffer: *mut __sk_buff) {
    // SAFETY: the context is valid.
    unsafe { (*buffer).mark = 0 };
}
