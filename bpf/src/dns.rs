//! The maps of names, and loops as the verifier wants them: callbacks whose body it checks once.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    helpers::generated::{
        bpf_l4_csum_replace, bpf_loop, bpf_probe_read_kernel, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    macros::btf_map,
};
use bulkhead_verdict::{
    Scratch,
    dns::{
        Step,
        message::{MESSAGE, REVERSED},
        reversed_start,
        stream::{BYTES, STREAMS, Stream},
        table::{
            BucketKey, KEY_BYTES, LEARNED, LearnedBucket, MEMBERS, MemberKey, Naming, PATTERNS, PENDING, PatternEntry,
            PendingBucket,
        },
    },
    layout::Word,
    maps::Half,
};

use crate::{
    packet::Skb,
    state::{Kernel, ON_DEMAND},
};

/// Bytes in front of the name in a key of `BK_PATTERN`: how many bits count.
const BITS: u32 = 4;

#[btf_map]
static BK_NAMING: Array<Naming, 1> = Array::new();
#[btf_map]
static BK_PATTERN: LpmTrie<[u8; KEY_BYTES], PatternEntry, { PATTERNS as usize }> = LpmTrie::new();
#[btf_map]
static BK_MEMBER: HashMap<MemberKey, u32, { MEMBERS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_LEARNED: HashMap<BucketKey, LearnedBucket, { LEARNED as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_PENDING: HashMap<BucketKey, PendingBucket, { PENDING as usize }, ON_DEMAND> = HashMap::new();

#[btf_map]
static BK_STREAM: HashMap<BucketKey, Stream, { STREAMS as usize }, ON_DEMAND> = HashMap::new();

#[inline(always)]
pub(crate) fn naming() -> Option<Naming> {
    BK_NAMING.get(0).copied()
}

#[inline(always)]
pub(crate) fn pattern(reversed: &[Word<u8>; REVERSED], length: u32) -> Option<PatternEntry> {
    let start = reversed_start(length).wrapping_sub(BITS) as usize & (REVERSED / 2 - 1);
    // SAFETY: the start is in the first half of the buffer, whose second half is longer than a key; the bytes in front of
    // the name are nobody's. The buffer is this CPU's scratch memory.
    let key = unsafe {
        let key = (&raw const *reversed).cast::<u8>().add(start);
        key.cast_mut().cast::<u32>().write_unaligned(length.wrapping_mul(8));
        &*key.cast::<Key<[u8; KEY_BYTES]>>()
    };
    BK_PATTERN.get(key).copied()
}

#[inline(always)]
pub(crate) fn member(key: &MemberKey) -> bool {
    // SAFETY: only whether it is there counts.
    unsafe { BK_MEMBER.get(key) }.is_some()
}

#[inline(always)]
pub(crate) fn learned(key: &BucketKey) -> Option<&'static LearnedBucket> {
    // SAFETY: an element that is deleted meanwhile stays memory until the program has ended; `Word` is for other writers.
    BK_LEARNED.get_ptr(key).map(|bucket| unsafe { &*bucket })
}

#[inline(always)]
pub(crate) fn insert_learned(key: &BucketKey, empty: &LearnedBucket) {
    // Whether there is one now is asked anew.
    let _there = BK_LEARNED.insert(key, empty, u64::from(BPF_NOEXIST));
}

#[inline(always)]
pub(crate) fn pending(key: &BucketKey) -> Option<&'static PendingBucket> {
    // SAFETY: as for LEARNED.
    BK_PENDING.get_ptr(key).map(|bucket| unsafe { &*bucket })
}

#[inline(always)]
pub(crate) fn insert_pending(key: &BucketKey, empty: &PendingBucket) {
    // Whether there is one now is asked anew.
    let _there = BK_PENDING.insert(key, empty, u64::from(BPF_NOEXIST));
}

#[inline(always)]
pub(crate) fn stream(key: &BucketKey) -> Option<&'static Stream> {
    // SAFETY: as for LEARNED.
    BK_STREAM.get_ptr(key).map(|stream| unsafe { &*stream })
}

#[inline(always)]
pub(crate) fn insert_stream(key: &BucketKey, empty: &Stream) {
    // Whether there is one now is asked anew.
    let _there = BK_STREAM.insert(key, empty, u64::from(BPF_NOEXIST));
}

/// Compare and exchange.
#[inline(always)]
pub(crate) fn swap(word: &Word<u64>, old: u64, new: u64) -> bool {
    let mut found = old;
    // SAFETY: the address is of a live, aligned word; the instruction is the kernel's.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") found);
    }
    found == old
}

/// Copies bytes of the packet, wherever the kernel keeps them.
#[inline(always)]
pub(crate) fn copy(buffer: *mut __sk_buff, offset: u32, length: u32, into: &[Word<u8>; MESSAGE]) -> bool {
    let mut length = u64::from(length);
    // SAFETY: copies a register to itself, so that what is compared is what is handed over, and not a copy of it.
    unsafe { asm!("{0} = {0}", inout(reg) length) };
    if length == 0 || length > MESSAGE as u64 {
        return false;
    }
    // SAFETY: the length is compared with the buffer's; words may be written through a shared reference.
    unsafe {
        let into = (&raw const *into).cast_mut().cast::<c_void>();
        bpf_skb_load_bytes(buffer.cast(), offset, into, length as u32) == 0
    }
}

/// Copies bytes of the packet behind those of a stream.
#[inline(always)]
pub(crate) fn append(buffer: *mut __sk_buff, offset: u32, length: u32, into: &[Word<u8>; BYTES], at: u32) -> bool {
    let (mut length, mut at) = (u64::from(length), u64::from(at));
    // SAFETY: as in `copy`.
    unsafe { asm!("{0} = {0}", "{1} = {1}", inout(reg) length, inout(reg) at) };
    if length == 0 || length > MESSAGE as u64 || at >= MESSAGE as u64 {
        return false;
    }
    // SAFETY: both are at most half of the buffer; words may be written through a shared reference.
    unsafe {
        let into = (&raw const *into).cast_mut().cast::<u8>().add(at as usize);
        bpf_skb_load_bytes(buffer.cast(), offset, into.cast(), length as u32) == 0
    }
}

/// Copies a message out of a stream, from behind its length on.
#[inline(always)]
pub(crate) fn message(from: &[Word<u8>; BYTES], length: u32, into: &[Word<u8>; MESSAGE]) -> bool {
    let mut length = u64::from(length);
    // SAFETY: as in `copy`.
    unsafe { asm!("{0} = {0}", inout(reg) length) };
    if length == 0 || length > MESSAGE as u64 {
        return false;
    }
    // SAFETY: the length is compared with the shorter buffer's, and the other one has two bytes more than that to give.
    unsafe {
        let into = (&raw const *into).cast_mut().cast::<c_void>();
        let from = (&raw const *from).cast::<u8>().add(2);
        bpf_probe_read_kernel(into, length as u32, from.cast()) == 0
    }
}

/// Changes two bytes of the packet and the checksum with them.
#[inline(always)]
pub(crate) fn rewrite(buffer: *mut __sk_buff, half: Half) -> bool {
    let (old, new) = (half.old as u16, half.new as u16);
    let bytes = new.to_be_bytes();
    let (old, new) = if half.odd {
        (old, new)
    } else {
        (old.to_be(), new.to_be())
    };
    // SAFETY: the context is valid and the bytes live for the call; pointers into the packet are read anew at each load.
    unsafe {
        bpf_l4_csum_replace(
            buffer,
            half.checksum,
            u64::from(old),
            u64::from(new),
            u64::from(BPF_F_MARK_MANGLED_0) | 2,
        ) == 0
            && bpf_skb_store_bytes(buffer, half.at, bytes.as_ptr().cast(), 2, 0) == 0
    }
}

/// What a callback is handed.
struct Context {
    buffer: *mut __sk_buff,
    scratch: *mut Scratch,
}

macro_rules! steps {
    ($($name:ident = $step:ident;)*) => {
        $(
            /// A step as a callback; 1 ends the loop.
            unsafe extern "C" fn $name(_number: u32, context: *mut c_void) -> i64 {
                // SAFETY: the only caller is `repeat`, whose context lives on its stack.
                let context = unsafe { &*context.cast::<Context>() };
                // SAFETY: `repeat` does not use the scratch memory meanwhile.
                let scratch = unsafe { &mut *context.scratch };
                i64::from(Step::$step.run(&Skb { buffer: context.buffer }, &Kernel, scratch))
            }
        )*

        /// Runs a step at most so many times.
        #[inline(always)]
        pub(crate) fn repeat(buffer: *mut __sk_buff, scratch: &mut Scratch, step: Step, times: u32) {
            let mut context = Context { buffer, scratch };
            let callback = match step {
                $(Step::$step => $name as *mut c_void,)*
            };
            // SAFETY: the callback is handed a context of its type, which outlives the call.
            unsafe { bpf_loop(times, callback, (&raw mut context).cast(), 0) };
        }
    };
}

steps! {
    name_step = Name;
    record_step = Record;
    place_step = Place;
    query_step = Query;
    answer_step = Answer;
    known_step = Known;
}
