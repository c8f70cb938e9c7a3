//! What the verdict asks of its surroundings: a packet to read and maps to look into. The kernel programs implement both
//! over `__sk_buff` and BPF maps, the host over byte slices and `MemMaps`.

use core::ops::Deref;

use zerocopy::FromBytes;

use crate::{
    Scratch, Stage,
    address::Address,
    dns::{
        Step,
        message::{MESSAGE, REVERSED},
        stream::{BYTES, Stream},
        table::{BucketKey, LearnedBucket, MemberKey, Naming, PatternEntry, PendingBucket},
    },
    flow::idle::Class,
    layout::{
        AddressEntry, Alternative, Config, DenyEntry, DenyKey, EndpointWord, Event, Flow, FlowKey, FragmentEntry,
        FragmentKey, LeaseKey, NameKey, NetworkEntry, PortSet, Quota, Range, RuleKey, Word,
    },
};

/// Where a packet is judged. TCX ingress of the host-side device is what the pod sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Hook {
    /// A packet the pod sends.
    FromPod = 0,
    /// A packet towards the pod.
    ToPod = 1,
}

/// Two bytes of a packet that are to be others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Half {
    /// Where they are.
    pub at: u32,
    /// What they are, below 65,536.
    pub old: u32,
    /// What they are to be, likewise.
    pub new: u32,
    /// Where the checksum over them is; 0 in it = there is none.
    pub checksum: u32,
    /// They are two halves of 16-bit words, for the checksum.
    pub odd: bool,
}

/// A packet as the hook sees it.
pub trait Packet {
    /// Reads a value at an offset from the Ethernet header; `None` past the end.
    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T>;
    /// Asks for the first `end` bytes to be readable, where the packet has them (the kernel may keep them elsewhere).
    fn reach(&self, end: usize);
    /// True when the packet carries a VLAN tag outside of its bytes.
    fn tagged(&self) -> bool;
    /// Bytes of the packet, all fragments of the socket buffer included.
    fn length(&self) -> u32;
    /// Index of the device whose hook runs.
    fn ifindex(&self) -> u32;
    /// True when a local socket sent the packet (it was not forwarded).
    fn has_socket(&self) -> bool;
    /// True when it is an [`crate::answer::Answer`] that the other hook of this device wrote.
    fn is_answer(&self) -> bool;
    /// Runs a stage of the decision. The kernel makes each a function of its own, which its verifier checks once and
    /// not again for every way that leads there.
    #[inline(always)]
    fn stage<M: Maps>(&self, maps: &M, scratch: &mut Scratch, stage: Stage)
    where
        Self: Sized,
    {
        stage.run(self, maps, scratch);
    }
    /// Copies `length` bytes from an offset on, which are at most as many as `into` has; false when they are not there.
    fn copy(&self, offset: u32, length: u32, into: &[Word<u8>; MESSAGE]) -> bool;
    /// Index of the device by which it came to this host; 0 when it was made here.
    fn came_by(&self) -> u32;
    /// Copies `length` bytes from an offset on to `at`, which is less than `into` is half long; false when they are not there or
    /// more than half of that.
    fn append(&self, offset: u32, length: u32, into: &[Word<u8>; BYTES], at: u32) -> bool;
    /// Copies a message out of a stream, from behind its length on; false when it does not fit.
    fn message(&self, from: &[Word<u8>; BYTES], length: u32, into: &[Word<u8>; MESSAGE]) -> bool;
    /// Changes two bytes, and the checksum with them; false when that cannot be.
    fn rewrite(&self, half: Half) -> bool;
    /// Runs a step until it says that it was the last one, at most so many times. In the kernel its body is checked once.
    #[inline(always)]
    fn repeat<M: Maps>(&self, maps: &M, scratch: &mut Scratch, step: Step, times: u32)
    where
        Self: Sized,
    {
        for _ in 0..times {
            if step.run(self, maps, scratch) {
                break;
            }
        }
    }
}

/// The maps of layout.rs, and the clocks.
pub trait Maps {
    /// A reference to a flow; the value may be shared with other CPUs (see `Word`).
    type FlowRef: Deref<Target = Flow>;
    /// A reference to an aggregated denial.
    type DenyRef: Deref<Target = DenyEntry>;
    /// A reference to learned addresses.
    type LearnedRef: Deref<Target = LearnedBucket>;
    /// A reference to queries.
    type PendingRef: Deref<Target = PendingBucket>;
    /// A reference to a stream.
    type StreamRef: Deref<Target = Stream>;

    /// Coarse `CLOCK_MONOTONIC`, nanoseconds.
    fn now(&self) -> u64;
    /// `CLOCK_BOOTTIME`, nanoseconds.
    fn boot_time(&self) -> u64;
    /// CPU number and a counter that rises by one per call on this CPU, from 1: ids of new flows.
    fn next_flow_id(&self) -> (u32, u64);
    /// The zone these programs serve.
    fn zone(&self) -> u32;
    /// Global epoch.
    fn epoch(&self) -> u32;
    /// Epoch of an address's slot (`Address::epoch_slot`).
    fn peer_epoch(&self, slot: u32) -> u32;

    /// Slot of the endpoint behind a device.
    fn device(&self, ifindex: u32) -> Option<u32>;
    /// ENDPOINT word of a slot.
    fn endpoint(&self, slot: u32) -> Option<EndpointWord>;
    /// CONFIG by index. A reference, because a copy would not fit the BPF stack.
    fn config(&self, index: u32) -> Option<&Config>;
    /// ADDRESSES.
    fn address(&self, zone: u32, address: &Address) -> Option<AddressEntry>;
    /// OWN: whether it is one of this node's own addresses.
    fn own(&self, address: &Address) -> bool;
    /// NETWORKS, longest match.
    fn network(&self, zone: u32, address: &Address) -> Option<NetworkEntry>;
    /// RULES.
    fn rule(&self, key: &RuleKey) -> Option<PortSet>;
    /// RANGES by index.
    fn range(&self, index: u32) -> Option<Range>;
    /// ALTERNATIVES by index.
    fn alternative(&self, index: u32) -> Option<Alternative>;
    /// LEASES: deadline, `CLOCK_BOOTTIME`.
    fn lease(&self, key: &LeaseKey) -> Option<u64>;
    /// EXPIRIES by number: deadline, `CLOCK_BOOTTIME`.
    fn expiry(&self, number: u32) -> Option<u64>;
    /// NAMES: deadline, `CLOCK_BOOTTIME`.
    fn name(&self, key: &NameKey) -> Option<u64>;
    /// NAMING.
    fn naming(&self) -> Option<Naming>;
    /// PATTERNS, longest match of the name that ends at `dns::message::REVERSED_END` and has so many bytes.
    fn pattern(&self, reversed: &[Word<u8>; REVERSED], length: u32) -> Option<PatternEntry>;
    /// Whether MEMBERS has the pair.
    fn member(&self, key: &MemberKey) -> bool;
    /// LEARNED.
    fn learned(&self, key: &BucketKey) -> Option<Self::LearnedRef>;
    /// Adds a bucket to LEARNED, unless there is one.
    fn insert_learned(&self, key: &BucketKey, empty: &LearnedBucket);
    /// PENDING.
    fn pending(&self, key: &BucketKey) -> Option<Self::PendingRef>;
    /// Adds a bucket to PENDING, unless there is one.
    fn insert_pending(&self, key: &BucketKey, empty: &PendingBucket);
    /// STREAMS.
    fn stream(&self, key: &BucketKey) -> Option<Self::StreamRef>;
    /// Adds a stream to STREAMS, unless there is one.
    fn insert_stream(&self, key: &BucketKey, empty: &Stream);
    /// Writes a word if it still is what it was; false when it is not.
    fn swap(&self, word: &Word<u64>, old: u64, new: u64) -> bool;

    /// CONFIRMED.
    fn confirmed(&self, key: &FlowKey) -> Option<Self::FlowRef>;
    /// TENTATIVE.
    fn tentative(&self, key: &FlowKey) -> Option<Self::FlowRef>;
    /// Adds a flow to TENTATIVE, replacing one with the same key; false when there is no room.
    fn insert_tentative(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Copies a tentative flow to CONFIRMED and takes it out of TENTATIVE; false when CONFIRMED is full.
    fn confirm(&self, key: &FlowKey, flow: &Flow) -> bool;
    /// Removes a flow from both tables.
    fn remove_flow(&self, key: &FlowKey);

    /// ANSWERS: until when the budget is used up, coarse `CLOCK_MONOTONIC`; `None` beyond the end.
    fn answers(&self, index: u32) -> Option<&Word<u64>>;

    /// QUOTAS by endpoint slot, or [`crate::quota::ALL`]; `None` beyond the end.
    fn quota(&self, index: u32) -> Option<&Quota>;
    /// Time in which an endpoint may open one more flow in the long run, nanoseconds; 0 = as many as it likes.
    fn opening_interval(&self) -> u64;
    /// A time-out that can be configured, nanoseconds.
    fn idle(&self, class: Class) -> u64;

    /// FRAGMENTS.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry>;
    /// Remembers a first fragment.
    fn insert_fragment(&self, key: &FragmentKey, entry: &FragmentEntry);

    /// DENIES.
    fn denied(&self, key: &DenyKey) -> Option<Self::DenyRef>;
    /// Adds an aggregated denial; false when DENIES is full.
    fn insert_denied(&self, key: &DenyKey, entry: &DenyEntry) -> bool;
    /// Adds to a counter that other CPUs add to as well.
    fn add(&self, word: &Word<u64>, amount: u64);
    /// Writes an event: `fill` writes every field but `sequence` and `cpu`, which this sets (the next number of this
    /// CPU). A full ring loses it, which the gap in the numbers and [`crate::layout::stat::LOST_EVENT`] tell.
    fn emit(&self, hook: Hook, fill: impl FnOnce(&mut Event));
    /// Counts a packet in STATS, under a [`crate::reason::Reason`] or a [`crate::layout::stat`].
    fn count(&self, hook: Hook, number: u8, bytes: u32);
}
