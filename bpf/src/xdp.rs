//! The uplink's program: what comes in by an uplink, looked at by `bulkhead_verdict::uplink` before the stack sees it.
//! Here are only its maps, the frame and the return value.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, xdp_md},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::bpf_xdp_adjust_tail,
};
use bulkhead_verdict::{
    address::Address,
    layout::{AddressEntry, Counter, NetworkEntry, Word},
    maps::Maps,
    uplink::{
        Answer, CHALLENGE_MAX, Frame, Headers, Tables, challenge, find, judge,
        layout::{
            CELLS, COUNTERS, DROPS, DropEntry, DropKey, ENTRIES, EXCEPTIONS, Hosts, IDENTITIES, KNOWN, MARKS, Prefix,
            PrefixKey, SOURCES, Settings, TARGETS, WIDE, WIDE_MARKS,
        },
    },
};

use crate::{clock, state::Kernel};

const ON_DEMAND: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;
/// The agent writes single bytes of the elements, through its own mapping.
const MAPPED: usize = aya_ebpf::bindings::BPF_F_MMAPABLE as usize;
/// Offsets are below this, so that the verifier knows a bound.
const MAX_OFFSET: usize = 0xff;

#[aya_ebpf::macros::btf_map]
static BK_UP_SETTINGS: Array<Settings, 1> = Array::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_CELL: Array<[u8; CELLS], { WIDE as usize }, MAPPED> = Array::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_MARK: Array<[u8; MARKS], { WIDE as usize }, MAPPED> = Array::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_WIDE: Array<[u8; WIDE_MARKS], 1, MAPPED> = Array::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_HOSTS: HashMap<u32, Hosts, { ENTRIES as usize }, ON_DEMAND> = HashMap::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_ROOT: Array<Prefix, { WIDE as usize }> = Array::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_PREFIX: HashMap<PrefixKey, Prefix, { ENTRIES as usize }, ON_DEMAND> = HashMap::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_EXCEPT: LpmTrie<Address, u32, { EXCEPTIONS as usize }> = LpmTrie::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_SOURCE: LruHashMap<Address, u64, { SOURCES as usize }> = LruHashMap::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_IDENTITY: LruHashMap<u32, u64, { IDENTITIES as usize }> = LruHashMap::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_TARGET: Array<u64, { TARGETS as usize }> = Array::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_KNOWN: LruHashMap<Address, u64, { KNOWN as usize }> = LruHashMap::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_DROP: LruHashMap<DropKey, DropEntry, { DROPS as usize }> = LruHashMap::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_PACE: PerCpuArray<u64, 1> = PerCpuArray::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_STATS: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();
#[aya_ebpf::macros::btf_map]
static BK_UP_FEED: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();

/// What becomes of a frame, in the driver's numbers.
pub(crate) mod action {
    pub(crate) const DROP: u32 = 1;
    pub(crate) const PASS: u32 = 2;
    pub(crate) const TX: u32 = 3;
}

/// A frame in the driver's memory.
pub(crate) struct Linear {
    context: *mut xdp_md,
}

impl Linear {
    /// The frame of a program's context.
    #[inline(always)]
    pub(crate) fn new(context: *mut xdp_md) -> Self {
        Self { context }
    }

    /// First byte and the byte behind the last one that is readable.
    #[inline(always)]
    pub(crate) fn bounds(&self) -> (usize, usize) {
        let (start, end): (usize, usize);
        // SAFETY: the context lives as long as the program runs; loaded by hand for the reason `Skb::bounds` has.
        unsafe {
            asm!(
                "{start} = *(u32 *)({context} + {data})",
                context = in(reg) self.context,
                data = const offset_of!(xdp_md, data),
                start = out(reg) start,
                options(pure, readonly, nostack),
            );
            asm!(
                "{end} = *(u32 *)({context} + {data_end})",
                context = in(reg) self.context,
                data_end = const offset_of!(xdp_md, data_end),
                end = out(reg) end,
                options(pure, readonly, nostack),
            );
        }
        (start, end)
    }
}

impl Frame for Linear {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let mut offset = offset;
        // SAFETY: a register's own business. The compiler melts the test above into others, in a form the verifier learns
        // nothing from; this changes nothing and teaches it.
        unsafe { asm!("{offset} &= 255", offset = inout(reg) offset, options(pure, nomem, nostack)) };
        let (start, end) = self.bounds();
        let at = start + offset;
        if at + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the bytes are inside the frame (checked above, and again by the verifier), and the trait asks only for
        // types of which every bit pattern is a value.
        Some(unsafe { (at as *const T).read_unaligned() })
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        let (start, end) = self.bounds();
        (end - start) as u32
    }
}

/// The kernel's tables.
pub(crate) struct Uplink;

#[inline(always)]
fn add(counter: Option<*mut Counter>, bytes: u32) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's own element; XDP programs are not interrupted by each other.
        unsafe {
            (*counter).packets = (*counter).packets.wrapping_add(1);
            (*counter).bytes = (*counter).bytes.wrapping_add(u64::from(bytes));
        }
    }
}

/// A value as a word that other CPUs write too.
#[inline(always)]
fn shared(value: Option<*mut u64>) -> Option<&'static Word<u64>> {
    // SAFETY: an element of a preallocated map stays memory of this type, aligned to 8; that it may become another key's
    // meanwhile costs that key one connection.
    value.map(|value| unsafe { &*value.cast::<Word<u64>>() })
}

impl Tables for Uplink {
    type Time = &'static Word<u64>;

    #[inline(always)]
    fn now(&self) -> u64 {
        clock::boot()
    }
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        BK_UP_SETTINGS.get(0)
    }
    #[inline(always)]
    fn wide(&self, high: u32) -> bool {
        let Some(marks) = BK_UP_WIDE.get(0) else { return false };
        marks[((high >> 3) & 0x1fff) as usize] & 1 << (high & 7) != 0
    }
    #[inline(always)]
    fn mark(&self, high: u32, low: u32) -> bool {
        let Some(marks) = BK_UP_MARK.get(high) else {
            return false;
        };
        marks[((low >> 3) & 0x1f) as usize] & 1 << (low & 7) != 0
    }
    #[inline(always)]
    fn cell(&self, high: u32, low: u32) -> u8 {
        let Some(cells) = BK_UP_CELL.get(high) else { return 0 };
        cells[(low & 0xff) as usize]
    }
    #[inline(always)]
    fn hosts(&self, network: u32, word: u32) -> Option<(u32, u32)> {
        // SAFETY: only user space writes it, and a set that is being written is the old or the new one, word by word.
        let hosts = unsafe { BK_UP_HOSTS.get(network) }?;
        Some((hosts.bits[(word & 7) as usize], hosts.feed))
    }
    #[inline(always)]
    fn root(&self, index: u32) -> Prefix {
        BK_UP_ROOT.get(index).copied().unwrap_or(Prefix { feed: 0, below: 0 })
    }
    #[inline(always)]
    fn prefix(&self, key: &PrefixKey) -> Option<Prefix> {
        // SAFETY: as for the hosts.
        unsafe { BK_UP_PREFIX.get(key) }.copied()
    }
    #[inline(always)]
    fn find(&self, address: &Address) -> u8 {
        (bk_up_find(address) & 0xff) as u8
    }
    #[inline(always)]
    fn excepted(&self, address: &Address) -> bool {
        BK_UP_EXCEPT.get(&Key::new(128, *address)).is_some()
    }
    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        Kernel.address(Kernel.zone(), address)
    }
    #[inline(always)]
    fn network(&self, address: &Address) -> Option<NetworkEntry> {
        Kernel.network(Kernel.zone(), address)
    }
    #[inline(always)]
    fn source(&self, source: &Address) -> Option<Self::Time> {
        shared(BK_UP_SOURCE.get_ptr_mut(source))
    }
    #[inline(always)]
    fn add_source(&self, source: &Address, time: u64) {
        // Without room the source begins anew with its next connection.
        let _lost = BK_UP_SOURCE.insert(source, time, u64::from(BPF_ANY));
    }
    #[inline(always)]
    fn identity(&self, identity: u32) -> Option<Self::Time> {
        shared(BK_UP_IDENTITY.get_ptr_mut(identity))
    }
    #[inline(always)]
    fn add_identity(&self, identity: u32, time: u64) {
        // As for a source.
        let _lost = BK_UP_IDENTITY.insert(identity, time, u64::from(BPF_ANY));
    }
    #[inline(always)]
    fn target(&self, index: u32) -> Option<Self::Time> {
        shared(BK_UP_TARGET.get_ptr_mut(index))
    }
    #[inline(always)]
    fn known(&self, source: &Address) -> Option<u64> {
        // SAFETY: as for the hosts.
        unsafe { BK_UP_KNOWN.get(source) }.copied()
    }
    #[inline(always)]
    fn add_known(&self, source: &Address, until: u64) {
        // A source that is not remembered is challenged again.
        let _lost = BK_UP_KNOWN.insert(source, until, u64::from(BPF_ANY));
    }
    #[inline(always)]
    fn count(&self, number: u8, bytes: u32) {
        add(BK_UP_STATS.get_ptr_mut(number.into()), bytes);
    }
    #[inline(always)]
    fn count_feed(&self, feed: u8, bytes: u32) {
        add(BK_UP_FEED.get_ptr_mut(feed.into()), bytes);
    }
    #[inline(always)]
    fn note(&self, key: &DropKey, bytes: u32, now: u64) -> bool {
        let Some(entry) = BK_UP_DROP.get_ptr_mut(key) else {
            return false;
        };
        // SAFETY: as for `shared`; a count in an element that is another's by now is lost, never a verdict.
        let entry = unsafe { &*entry };
        Kernel.add(&entry.count, 1);
        Kernel.add(&entry.bytes, u64::from(bytes));
        entry.last.set(now);
        true
    }
    #[inline(always)]
    fn add_note(&self, key: &DropKey, bytes: u32, now: u64) {
        let entry = DropEntry {
            count: Word::new(1),
            bytes: Word::new(u64::from(bytes)),
            last: Word::new(now),
        };
        // Another CPU may have been first: this packet is then counted by reason and feed only.
        let _there = BK_UP_DROP.insert(key, entry, u64::from(BPF_NOEXIST));
    }
    #[inline(always)]
    fn pace(&self) -> Option<Self::Time> {
        shared(BK_UP_PACE.get_ptr_mut(0))
    }
}

/// The feed an address is of: a global function, for the sake of the verifier.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn bk_up_find(address: *const Address) -> i32 {
    // SAFETY: the only caller passes a reference. (The verifier does not know that, and wants the pointer compared with null.)
    unsafe { address.as_ref() }.map_or(0, |address| i32::from(find(&Uplink, address)))
}

/// Judges one frame.
#[inline(always)]
pub(crate) fn run(context: *mut xdp_md) -> u32 {
    let mut headers = Headers::default();
    match judge(&Linear::new(context), &Uplink, &mut headers) {
        Answer::Next => action::PASS,
        Answer::Drop(_) => action::DROP,
        Answer::Challenge(number) => reply(context, &headers, number),
    }
}

/// Writes the challenge over the SYN and sends it back by the same device.
#[inline(always)]
fn reply(context: *mut xdp_md, headers: &Headers, number: u32) -> u32 {
    let mut bytes = [0; CHALLENGE_MAX];
    let length = challenge(headers, number, &mut bytes);
    let frame = Linear::new(context);
    // The SYN is at least as long as the challenge: that much of it was read. The driver cannot always cut, and what is not
    // answered is lost as a SYN is in a flood: its client sends it again.
    // SAFETY: the context is valid; pointers into the frame are read anew afterwards.
    if unsafe { bpf_xdp_adjust_tail(context, length as i32 - frame.length() as i32) } != 0 {
        return action::DROP;
    }
    let (start, end) = frame.bounds();
    // Both lengths are constants, as the verifier wants them.
    let written = if headers.source.is_v4() {
        write::<{ CHALLENGE_MAX - 20 }>(&bytes, start, end)
    } else {
        write::<CHALLENGE_MAX>(&bytes, start, end)
    };
    if written { action::TX } else { action::DROP }
}

#[inline(always)]
fn write<const N: usize>(bytes: &[u8; CHALLENGE_MAX], start: usize, end: usize) -> bool {
    if start + N > end {
        return false;
    }
    // SAFETY: inside the frame, checked above and again by the verifier; the buffer is at least as long.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, N) };
    true
}
