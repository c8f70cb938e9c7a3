//! The packet as the kernel hands it over: direct access, every read checked against the end.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_pull_data, programs::TcContext};
use bulkhead_verdict::{
    Scratch, Stage,
    dns::{Step, message::MESSAGE, stream::BYTES},
    layout::Word,
    maps::{Half, Maps, Packet},
};

use crate::{dns, stage, state};

/// Offsets are below this, so that the verifier knows a bound; headers never reach so far.
const MAX_OFFSET: usize = 0x3fff;

/// A socket buffer.
pub(crate) struct Skb {
    pub(crate) buffer: *mut __sk_buff,
}

impl Skb {
    /// The buffer of a program's context.
    #[inline(always)]
    pub(crate) fn new(context: &TcContext) -> Self {
        Self {
            buffer: context.skb.skb,
        }
    }

    /// First byte and the byte behind the last one that is readable.
    #[inline(always)]
    pub(crate) fn bounds(&self) -> (usize, usize) {
        let (start, end): (usize, usize);
        // SAFETY: the context lives as long as the program runs. Loaded by hand, because the compiler widens the fields,
        // which are 32 bits in the header, with shifts, and the verifier allows none on what are pointers to it.
        unsafe {
            asm!(
                "{start} = *(u32 *)({buffer} + {data})",
                buffer = in(reg) self.buffer,
                data = const offset_of!(__sk_buff, data),
                start = out(reg) start,
                options(pure, readonly, nostack),
            );
            asm!(
                "{end} = *(u32 *)({buffer} + {data_end})",
                buffer = in(reg) self.buffer,
                data_end = const offset_of!(__sk_buff, data_end),
                end = out(reg) end,
                options(pure, readonly, nostack),
            );
        }
        (start, end)
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let (start, end) = self.bounds();
        let at = start + offset;
        if at + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the bytes are inside the packet (checked above, and again by the verifier), and the trait asks only
        // for types of which every bit pattern is a value.
        Some(unsafe { (at as *const T).read_unaligned() })
    }

    #[inline(always)]
    fn reach(&self, end: usize) {
        let (start, behind) = self.bounds();
        if start + end > behind && end <= self.length() as usize {
            // SAFETY: the context is valid; pointers into the packet are read anew at each load. A refusal shows as a
            // load that finds nothing, so the packet is dropped.
            unsafe { bpf_skb_pull_data(self.buffer, end as u32) };
        }
    }

    #[inline(always)]
    fn stage<M: Maps>(&self, _maps: &M, scratch: &mut Scratch, stage: Stage) {
        stage::call(self.buffer, scratch, stage);
    }

    #[inline(always)]
    fn copy(&self, offset: u32, length: u32, into: &[Word<u8>; MESSAGE]) -> bool {
        dns::copy(self.buffer, offset, length, into)
    }

    #[inline(always)]
    fn came_by(&self) -> u32 {
        // SAFETY: as in `bounds`.
        unsafe { (*self.buffer).ingress_ifindex }
    }

    #[inline(always)]
    fn append(&self, offset: u32, length: u32, into: &[Word<u8>; BYTES], at: u32) -> bool {
        dns::append(self.buffer, offset, length, into, at)
    }

    #[inline(always)]
    fn message(&self, from: &[Word<u8>; BYTES], length: u32, into: &[Word<u8>; MESSAGE]) -> bool {
        dns::message(from, length, into)
    }

    #[inline(always)]
    fn rewrite(&self, half: Half) -> bool {
        dns::rewrite(self.buffer, half)
    }

    #[inline(always)]
    fn repeat<M: Maps>(&self, _maps: &M, scratch: &mut Scratch, step: Step, times: u32) {
        dns::repeat(self.buffer, scratch, step, times);
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: as in `bounds`.
        unsafe { (*self.buffer).vlan_present != 0 }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: as in `bounds`.
        unsafe { (*self.buffer).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as in `bounds`.
        unsafe { (*self.buffer).ifindex }
    }

    #[inline(always)]
    fn is_answer(&self) -> bool {
        // SAFETY: as in `bounds`.
        let mark = unsafe { (*self.buffer).mark };
        mark != 0 && mark == state::answer_mark()
    }

    #[inline(always)]
    fn has_socket(&self) -> bool {
        // SAFETY: as in `bounds`; the field is only compared with null.
        unsafe { !(*self.buffer).__bindgen_anon_2.sk.is_null() }
    }
}
