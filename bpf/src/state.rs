//! The maps, and how the verdict reaches them. Layouts and sizes are `bulkhead_verdict::layout`'s.

use core::arch::asm;

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_NOEXIST, BPF_RB_NO_WAKEUP},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    helpers::bpf_get_smp_processor_id,
    macros::btf_map,
};
use bulkhead_verdict::{
    Scratch,
    address::Address,
    dns::{
        message::REVERSED,
        stream::Stream,
        table::{BucketKey, LearnedBucket, MemberKey, Naming, PatternEntry, PendingBucket},
    },
    flow::idle::{self, Class},
    layout::{
        ADDRESSES, ALTERNATIVES, ANSWERS, AddressEntry, AddressKey, Alternative, CONFIGS, CONFIRMED, Config, Counter,
        DENIES, DEVICES, DenyEntry, DenyKey, ENDPOINTS, EPOCHS, EVENTS_BYTES, EXPIRIES, EndpointWord, Event, FRAGMENTS,
        Flow, FlowKey, FragmentEntry, FragmentKey, INTERNS, InternEntry, InternKey, LEASES, LeaseKey, NAMES, NETWORKS,
        NameKey, NetworkEntry, NetworkKey, OWN, PEER_EPOCHS, PortSet, QUOTAS, Quota, RANGES, RULES, Range, RuleKey,
        STATS, TENTATIVE, Word, stat,
    },
    maps::{Hook, Maps},
    quota,
};

use crate::{clock, dns};

/// Memory is taken when an entry is written, for maps that only user space fills.
pub(crate) const ON_DEMAND: usize = aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize;

#[btf_map]
static BK_DEVICE: HashMap<u32, u32, { DEVICES as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_ENDPOINT: Array<EndpointWord, { ENDPOINTS as usize }> = Array::new();
#[btf_map]
static BK_CONFIG: Array<Config, { CONFIGS as usize }> = Array::new();
#[btf_map]
static BK_ADDRESS: HashMap<AddressKey, AddressEntry, { ADDRESSES as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_OWN: HashMap<Address, u32, { OWN as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_NETWORK: LpmTrie<NetworkKey, NetworkEntry, { NETWORKS as usize }> = LpmTrie::new();
#[btf_map]
static BK_RULE: HashMap<RuleKey, PortSet, { RULES as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_RANGE: Array<Range, { RANGES as usize }> = Array::new();
#[btf_map]
static BK_ALT: Array<Alternative, { ALTERNATIVES as usize }> = Array::new();
#[btf_map]
static BK_LEASE: HashMap<LeaseKey, u64, { LEASES as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_EXPIRY: Array<u64, { EXPIRIES as usize }> = Array::new();
#[btf_map]
static BK_NAME: HashMap<NameKey, u64, { NAMES as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static BK_CONFIRMED: HashMap<FlowKey, Flow, { CONFIRMED as usize }> = HashMap::new();
#[btf_map]
static BK_TENTATIVE: LruHashMap<FlowKey, Flow, { TENTATIVE as usize }> = LruHashMap::new();
#[btf_map]
static BK_FRAGMENT: LruHashMap<FragmentKey, FragmentEntry, { FRAGMENTS as usize }> = LruHashMap::new();
#[btf_map]
static BK_ANSWER: Array<u64, { ANSWERS as usize }> = Array::new();
#[btf_map]
static BK_QUOTA: Array<Quota, { QUOTAS as usize }> = Array::new();
#[btf_map]
static BK_DENY: HashMap<DenyKey, DenyEntry, { DENIES as usize }> = HashMap::new();
#[btf_map]
static BK_EVENT: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();
#[btf_map]
static BK_STATS: PerCpuArray<Counter, { STATS as usize }> = PerCpuArray::new();
/// Element 0: the global epoch; element 1: the mark of answers, 0 = none are sent.
#[btf_map]
static BK_EPOCH: Array<u32, { EPOCHS as usize }> = Array::new();
#[btf_map]
static BK_PEER_EPOCH: Array<u32, { PEER_EPOCHS as usize }> = Array::new();
/// Element 0: events written on this CPU; element 1: flows opened on it.
#[btf_map]
static BK_SEQUENCE: PerCpuArray<u64, 2> = PerCpuArray::new();
/// Working memory of the decision under way on this CPU.
#[btf_map]
static BK_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
/// Only user space reads and writes it; it is here so that it is pinned with what it explains.
#[btf_map]
static BK_INTERN: HashMap<InternKey, InternEntry, { INTERNS as usize }, ON_DEMAND> = HashMap::new();

/// The zone the programs serve; the agent sets it before loading.
#[unsafe(no_mangle)]
static BK_ZONE: Global<u32> = Global::new(0);
/// What [`Maps::opening_interval`] gives.
#[unsafe(no_mangle)]
static BK_OPENING: Global<u64> = Global::new(quota::INTERVAL);
/// What [`Maps::idle`] gives for TCP.
#[unsafe(no_mangle)]
static BK_IDLE_TCP: Global<u64> = Global::new(idle::TCP);
/// What it gives for UDP and SCTP.
#[unsafe(no_mangle)]
static BK_IDLE_DATAGRAM: Global<u64> = Global::new(idle::DATAGRAM);
/// What it gives for other protocols.
#[unsafe(no_mangle)]
static BK_IDLE_OTHER: Global<u64> = Global::new(idle::OTHER);

/// The working memory.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: TCX programs run with bottom halves off and call no helper that runs another one, so on this CPU nobody
    // else holds the element. Zeroes, its first content, are a valid `Scratch`.
    BK_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The mark under which answers travel from one hook of a device to the other; 0 = none are sent.
#[inline(always)]
pub(crate) fn answer_mark() -> u32 {
    // SAFETY: as for the epoch.
    BK_EPOCH.get_ptr(1).map_or(0, |mark| unsafe { mark.read_volatile() })
}

/// Adds one to a number of this CPU and returns it.
#[inline(always)]
fn next(index: u32) -> u64 {
    match BK_SEQUENCE.get_ptr_mut(index) {
        // SAFETY: as for the scratch memory.
        Some(number) => unsafe {
            *number = (*number).wrapping_add(1);
            *number
        },
        None => 0,
    }
}

/// This CPU.
#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: takes no argument and touches no memory.
    unsafe { bpf_get_smp_processor_id() as u32 }
}

/// The kernel's maps.
pub(crate) struct Kernel;

impl Maps for Kernel {
    type FlowRef = &'static Flow;
    type DenyRef = &'static DenyEntry;
    type LearnedRef = &'static LearnedBucket;
    type PendingRef = &'static PendingBucket;
    type StreamRef = &'static Stream;

    #[inline(always)]
    fn now(&self) -> u64 {
        clock::coarse()
    }
    #[inline(always)]
    fn boot_time(&self) -> u64 {
        clock::boot()
    }
    #[inline(always)]
    fn next_flow_id(&self) -> (u32, u64) {
        (cpu(), next(1))
    }
    #[inline(always)]
    fn zone(&self) -> u32 {
        BK_ZONE.load()
    }
    #[inline(always)]
    fn epoch(&self) -> u32 {
        // SAFETY: an array's element lives as long as the map; user space writes it whole.
        BK_EPOCH.get_ptr(0).map_or(0, |epoch| unsafe { epoch.read_volatile() })
    }
    #[inline(always)]
    fn peer_epoch(&self, slot: u32) -> u32 {
        // SAFETY: as for the epoch.
        BK_PEER_EPOCH
            .get_ptr(slot)
            .map_or(0, |epoch| unsafe { epoch.read_volatile() })
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<u32> {
        // SAFETY: read at once, and only what user space wrote.
        unsafe { BK_DEVICE.get(ifindex) }.copied()
    }
    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<EndpointWord> {
        // One load of 8 bytes: configuration and generation belong together.
        // SAFETY: as for the epoch; the type has 8 bytes and the element's alignment is 8.
        BK_ENDPOINT.get_ptr(slot).map(|word| unsafe {
            let word = word.cast::<u64>().read_volatile();
            EndpointWord {
                config: word as u32,
                generation: (word >> 32) as u32,
            }
        })
    }
    #[inline(always)]
    fn config(&self, index: u32) -> Option<&Config> {
        BK_CONFIG.get(index)
    }
    #[inline(always)]
    fn address(&self, zone: u32, address: &Address) -> Option<AddressEntry> {
        // SAFETY: as for the device.
        unsafe {
            BK_ADDRESS.get(AddressKey {
                address: *address,
                zone,
            })
        }
        .copied()
    }
    #[inline(always)]
    fn own(&self, address: &Address) -> bool {
        // SAFETY: as for the device.
        unsafe { BK_OWN.get(address) }.is_some()
    }
    #[inline(always)]
    fn network(&self, zone: u32, address: &Address) -> Option<NetworkEntry> {
        let key = NetworkKey {
            zone_be: zone.to_be(),
            address: *address,
        };
        BK_NETWORK.get(&Key::new(160, key)).copied()
    }
    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<PortSet> {
        // SAFETY: as for the device.
        unsafe { BK_RULE.get(key) }.copied()
    }
    #[inline(always)]
    fn range(&self, index: u32) -> Option<Range> {
        BK_RANGE.get(index).copied()
    }
    #[inline(always)]
    fn alternative(&self, index: u32) -> Option<Alternative> {
        BK_ALT.get(index).copied()
    }
    #[inline(always)]
    fn lease(&self, key: &LeaseKey) -> Option<u64> {
        // SAFETY: as for the device.
        unsafe { BK_LEASE.get(key) }.copied()
    }
    #[inline(always)]
    fn expiry(&self, number: u32) -> Option<u64> {
        BK_EXPIRY.get(number).copied()
    }
    #[inline(always)]
    fn name(&self, key: &NameKey) -> Option<u64> {
        // SAFETY: as for the device.
        unsafe { BK_NAME.get(key) }.copied()
    }
    #[inline(always)]
    fn naming(&self) -> Option<Naming> {
        dns::naming()
    }
    #[inline(always)]
    fn pattern(&self, reversed: &[Word<u8>; REVERSED], length: u32) -> Option<PatternEntry> {
        dns::pattern(reversed, length)
    }
    #[inline(always)]
    fn member(&self, key: &MemberKey) -> bool {
        dns::member(key)
    }
    #[inline(always)]
    fn learned(&self, key: &BucketKey) -> Option<Self::LearnedRef> {
        dns::learned(key)
    }
    #[inline(always)]
    fn insert_learned(&self, key: &BucketKey, empty: &LearnedBucket) {
        dns::insert_learned(key, empty);
    }
    #[inline(always)]
    fn pending(&self, key: &BucketKey) -> Option<Self::PendingRef> {
        dns::pending(key)
    }
    #[inline(always)]
    fn insert_pending(&self, key: &BucketKey, empty: &PendingBucket) {
        dns::insert_pending(key, empty);
    }

    #[inline(always)]
    fn stream(&self, key: &BucketKey) -> Option<Self::StreamRef> {
        dns::stream(key)
    }

    #[inline(always)]
    fn insert_stream(&self, key: &BucketKey, empty: &Stream) {
        dns::insert_stream(key, empty);
    }
    #[inline(always)]
    fn swap(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        dns::swap(word, old, new)
    }

    #[inline(always)]
    fn confirmed(&self, key: &FlowKey) -> Option<Self::FlowRef> {
        // SAFETY: a preallocated element stays memory of this type; that it may become another flow's is what the
        // approval's tag is for, and `Word` for that others write it.
        BK_CONFIRMED.get_ptr(key).map(|flow| unsafe { &*flow })
    }
    #[inline(always)]
    fn tentative(&self, key: &FlowKey) -> Option<Self::FlowRef> {
        // SAFETY: as for CONFIRMED.
        BK_TENTATIVE.get_ptr(key).map(|flow| unsafe { &*flow })
    }
    #[inline(always)]
    fn insert_tentative(&self, key: &FlowKey, flow: &Flow) -> bool {
        BK_TENTATIVE.insert(key, flow, u64::from(BPF_ANY)).is_ok()
    }
    #[inline(always)]
    fn confirm(&self, key: &FlowKey, flow: &Flow) -> bool {
        let confirmed = BK_CONFIRMED.insert(key, flow, u64::from(BPF_NOEXIST)).is_ok();
        if confirmed {
            let _gone = BK_TENTATIVE.remove(key);
        }
        confirmed
    }
    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey) {
        let _confirmed = BK_CONFIRMED.remove(key);
        let _tentative = BK_TENTATIVE.remove(key);
    }

    #[inline(always)]
    fn answers(&self, index: u32) -> Option<&Word<u64>> {
        // SAFETY: an array's element lives as long as the map; a word of eight bytes is what it is.
        BK_ANSWER
            .get_ptr(index)
            .map(|word| unsafe { &*word.cast::<Word<u64>>() })
    }

    #[inline(always)]
    fn quota(&self, index: u32) -> Option<&Quota> {
        // SAFETY: an array's element lives as long as the map; its words are made for being written by others.
        BK_QUOTA.get_ptr(index).map(|quota| unsafe { &*quota })
    }
    #[inline(always)]
    fn opening_interval(&self) -> u64 {
        BK_OPENING.load()
    }
    #[inline(always)]
    fn idle(&self, class: Class) -> u64 {
        match class {
            Class::Tcp => BK_IDLE_TCP.load(),
            Class::Datagram => BK_IDLE_DATAGRAM.load(),
            Class::Other => BK_IDLE_OTHER.load(),
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        // SAFETY: read at once; an element that is another's by now gives another's ports, which nothing uses.
        unsafe { BK_FRAGMENT.get(key) }.copied()
    }
    #[inline(always)]
    fn insert_fragment(&self, key: &FragmentKey, entry: &FragmentEntry) {
        // A fragment that is not remembered is dropped later, with its reason.
        let _lost = BK_FRAGMENT.insert(key, entry, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn denied(&self, key: &DenyKey) -> Option<Self::DenyRef> {
        // SAFETY: as for CONFIRMED; a count in a recycled element is lost, never a verdict.
        BK_DENY.get_ptr(key).map(|entry| unsafe { &*entry })
    }
    #[inline(always)]
    fn insert_denied(&self, key: &DenyKey, entry: &DenyEntry) -> bool {
        BK_DENY.insert(key, entry, u64::from(BPF_NOEXIST)).is_ok()
    }
    #[inline(always)]
    fn add(&self, word: &Word<u64>, amount: u64) {
        // SAFETY: the address is of a live, aligned word; the instruction is the kernel's atomic addition.
        unsafe { asm!("lock *(u64 *)({word} + 0) += {amount}", word = in(reg) word, amount = in(reg) amount) };
    }
    #[inline(always)]
    fn emit(&self, hook: Hook, fill: impl FnOnce(&mut Event)) {
        let sequence = next(0);
        let Some(mut entry) = BK_EVENT.reserve(0) else {
            self.count(hook, stat::LOST_EVENT, 0);
            return;
        };
        // SAFETY: the reservation is as big as an event, of which every bit pattern is a value.
        let event = unsafe { &mut *entry.as_mut_ptr() };
        event.sequence = sequence;
        event.cpu = cpu();
        fill(event);
        // The reader looks every few milliseconds; waking it for each event would cost more than the verdict.
        entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    }
    #[inline(always)]
    fn count(&self, hook: Hook, number: u8, bytes: u32) {
        if let Some(counter) = BK_STATS.get_ptr_mut((hook as u32) << 8 | u32::from(number)) {
            // SAFETY: as for the scratch memory.
            unsafe {
                (*counter).packets = (*counter).packets.wrapping_add(1);
                (*counter).bytes = (*counter).bytes.wrapping_add(u64::from(bytes));
            }
        }
    }
}
