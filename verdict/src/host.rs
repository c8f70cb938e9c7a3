//! Host side of the verdict: the kernel's maps in memory, packets in slices, and a way to judge a connection at once.
//!
//! What user space writes are plain public maps; what the kernel writes sits in cells, as [`Maps`] takes `&self`.

pub mod dns;
pub mod frame;

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{HashMap, HashSet},
    net::IpAddr,
    rc::Rc,
};

use zerocopy::{FromBytes, IntoBytes};

use crate::{
    Scratch, Verdict,
    address::Address,
    decide, decide_host,
    dns::{
        message::{MESSAGE, REVERSED, REVERSED_END},
        stream::{BYTES, Stream},
        table::{BucketKey, LearnedBucket, MemberKey, Naming, PatternEntry, PendingBucket},
    },
    flow::idle::Class,
    layout::{
        ALTERNATIVES, ANSWERS, AddressEntry, AddressKey, Alternative, CONFIGS, CONFIRMED, Config, Counter, DENIES,
        DenyEntry, DenyKey, ENDPOINTS, EXPIRIES, EndpointWord, Event, Flow, FlowKey, FragmentEntry, FragmentKey,
        LeaseKey, NameKey, NetworkEntry, NetworkKey, PEER_EPOCHS, PortSet, QUOTAS, Quota, RANGES, Range, RuleKey,
        TENTATIVE, Word, config_flag, stat,
    },
    maps::{Half, Hook, Maps, Packet},
    quota,
};

/// A packet in memory and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// The frame.
    pub bytes: &'a [u8],
    /// Index of the device.
    pub ifindex: u32,
    /// A local socket sent it.
    pub socket: bool,
    /// It carries a VLAN tag beside its bytes.
    pub tagged: bool,
    /// The other hook wrote it as an answer.
    pub answer: bool,
    /// Index of the device by which it came to this host; 0 = it was made here.
    pub came_by: u32,
}

impl Packet for Slice<'_> {
    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        T::read_from_bytes(self.bytes.get(offset..end)?).ok()
    }
    fn reach(&self, _end: usize) {}
    fn tagged(&self) -> bool {
        self.tagged
    }
    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
    fn has_socket(&self) -> bool {
        self.socket
    }
    fn is_answer(&self) -> bool {
        self.answer
    }
    fn came_by(&self) -> u32 {
        self.came_by
    }
    fn copy(&self, offset: u32, length: u32, into: &[Word<u8>; MESSAGE]) -> bool {
        let Some(bytes) = self.part(offset, length) else {
            return false;
        };
        for (word, byte) in into.iter().zip(bytes) {
            word.set(*byte);
        }
        bytes.len() <= MESSAGE
    }
    fn append(&self, offset: u32, length: u32, into: &[Word<u8>; BYTES], at: u32) -> bool {
        let (Some(bytes), Ok(at)) = (self.part(offset, length), usize::try_from(at)) else {
            return false;
        };
        if bytes.len() > MESSAGE || at >= MESSAGE {
            return false;
        }
        for (word, byte) in into.iter().skip(at).zip(bytes) {
            word.set(*byte);
        }
        true
    }
    fn message(&self, from: &[Word<u8>; BYTES], length: u32, into: &[Word<u8>; MESSAGE]) -> bool {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        for (word, byte) in into.iter().zip(from.iter().skip(2)).take(length) {
            word.set(byte.get());
        }
        length <= MESSAGE
    }
    // A slice cannot be written; what becomes of the packet is looked at with real ones.
    fn rewrite(&self, _half: Half) -> bool {
        true
    }
}

impl Slice<'_> {
    fn part(&self, offset: u32, length: u32) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.bytes.get(start..end)
    }
}

/// A prefix of NETWORKS.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prefix {
    /// Bits that count: 32 of the zone, then those of the address (IPv4: 96 more than its own).
    pub length: u32,
    /// Zone and address; bits that do not count are zero.
    pub key: NetworkKey,
}

impl Prefix {
    /// The prefix of an address range as people write it: `length` counts the family's own bits.
    pub fn new(zone: u32, address: IpAddr, length: u32) -> Self {
        let offset: u32 = if address.is_ipv4() { 128 } else { 32 };
        Self::masked(
            offset.saturating_add(length),
            NetworkKey {
                zone_be: zone.to_be(),
                address: address.into(),
            },
        )
    }

    /// Clears the bits that do not count.
    fn masked(length: u32, key: NetworkKey) -> Self {
        let mut bits = length;
        let mut words = [key.zone_be, 0, 0, 0, 0];
        for (word, address) in words.iter_mut().skip(1).zip(key.address.0) {
            *word = address;
        }
        for word in &mut words {
            let take = bits.min(32);
            bits = bits.saturating_sub(take);
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(take)).unwrap_or(0);
            *word = (u32::from_be(*word) & mask).to_be();
        }
        let [zone_be, a, b, c, d] = words;
        Self {
            length,
            key: NetworkKey {
                zone_be,
                address: Address([a, b, c, d]),
            },
        }
    }
}

/// How much the kernel's own tables hold; lower them to see what happens when they are full. Unlike the kernel's,
/// TENTATIVE refuses when it is full and does not evict.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// CONFIRMED.
    pub confirmed: usize,
    /// TENTATIVE.
    pub tentative: usize,
    /// DENIES.
    pub denies: usize,
    /// Events before the ring is full.
    pub events: usize,
    /// Time in which an endpoint may open one more flow, nanoseconds; 0 = as many as it likes.
    pub opening_interval: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            confirmed: CONFIRMED as usize,
            tentative: TENTATIVE as usize,
            denies: DENIES as usize,
            events: 1 << 16,
            opening_interval: quota::INTERVAL,
        }
    }
}

/// The maps of layout.rs in memory. Elements of an array that are not set are zero, as the kernel's are.
#[derive(Default)]
pub struct MemMaps {
    /// Device → slot.
    pub devices: HashMap<u32, u32>,
    /// ENDPOINT by slot.
    pub endpoints: HashMap<u32, EndpointWord>,
    /// CONFIG by index.
    pub configs: HashMap<u32, Config>,
    /// ADDRESSES.
    pub addresses: HashMap<AddressKey, AddressEntry>,
    /// OWN.
    pub own: RefCell<HashSet<Address>>,
    /// NETWORKS.
    pub networks: HashMap<Prefix, NetworkEntry>,
    /// RULES.
    pub rules: HashMap<RuleKey, PortSet>,
    /// RANGES by index.
    pub ranges: HashMap<u32, Range>,
    /// ALTERNATIVES by index.
    pub alternatives: HashMap<u32, Alternative>,
    /// LEASES.
    pub leases: HashMap<LeaseKey, u64>,
    /// EXPIRIES by number.
    pub expiries: HashMap<u32, u64>,
    /// NAMES.
    pub names: HashMap<NameKey, u64>,
    /// NAMING.
    pub naming: Naming,
    /// PATTERNS by reversed name.
    pub patterns: HashMap<Vec<u8>, PatternEntry>,
    /// MEMBERS.
    pub members: HashSet<MemberKey>,
    /// The zone.
    pub zone: u32,
    /// The global epoch.
    pub epoch: u32,
    /// `PEER_EPOCH` by slot.
    pub peer_epochs: HashMap<u32, u32>,
    /// Coarse `CLOCK_MONOTONIC`, nanoseconds.
    pub now: Cell<u64>,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot: Cell<u64>,
    /// Capacities.
    pub limits: Limits,
    /// CONFIRMED.
    pub confirmed: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    /// TENTATIVE.
    pub tentative: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    /// FRAGMENTS.
    pub fragments: RefCell<HashMap<FragmentKey, FragmentEntry>>,
    /// LEARNED.
    pub learned: RefCell<HashMap<BucketKey, Rc<LearnedBucket>>>,
    /// PENDING.
    pub pending: RefCell<HashMap<BucketKey, Rc<PendingBucket>>>,
    /// STREAMS.
    pub streams: RefCell<HashMap<BucketKey, Rc<Stream>>>,
    /// DENIES.
    pub denies: RefCell<HashMap<DenyKey, Rc<DenyEntry>>>,
    /// The event ring.
    pub events: RefCell<Vec<Event>>,
    /// STATS by hook and number.
    pub stats: RefCell<HashMap<(u8, u8), Counter>>,
    /// Events so far, lost ones included.
    pub sequence: Cell<u64>,
    /// Flows so far.
    pub opened: Cell<u64>,
    /// ANSWERS, made at the first look.
    answers: OnceCell<Vec<Word<u64>>>,
    /// QUOTAS, likewise.
    quotas: OnceCell<Vec<Quota>>,
    /// What an unset element of CONFIG is.
    unset: Config,
}

impl MemMaps {
    /// Judges a packet.
    pub fn decide(&self, hook: Hook, packet: &Slice<'_>) -> Verdict {
        decide(packet, self, &mut Scratch::new(), hook)
    }

    /// Judges a packet at an uplink.
    pub fn decide_host(&self, hook: Hook, packet: &Slice<'_>) -> Verdict {
        decide_host(packet, self, &mut Scratch::new(), hook)
    }

    /// Judges a packet; with it the frame that is sent back in its place, empty = none.
    pub fn decide_and_answer(&self, hook: Hook, packet: &Slice<'_>) -> (Verdict, Vec<u8>) {
        Self::answering(|scratch| decide(packet, self, scratch, hook))
    }

    /// The same at an uplink.
    pub fn decide_host_and_answer(&self, hook: Hook, packet: &Slice<'_>) -> (Verdict, Vec<u8>) {
        Self::answering(|scratch| decide_host(packet, self, scratch, hook))
    }

    fn answering(decide: impl FnOnce(&mut Scratch) -> Verdict) -> (Verdict, Vec<u8>) {
        let mut scratch = Scratch::new();
        let verdict = decide(&mut scratch);
        let mut frame: Vec<u8> = scratch
            .answer()
            .words()
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let length = if verdict.reason.passes() {
            0
        } else {
            scratch.answer().length()
        };
        frame.truncate(usize::try_from(length).unwrap_or(0));
        (verdict, frame)
    }

    /// Judges a connection as if nothing had been said yet: its first packet, at one device. Known flows are forgotten.
    pub fn probe(&self, hook: Hook, ifindex: u32, probe: &Probe) -> Verdict {
        self.confirmed.borrow_mut().clear();
        self.tentative.borrow_mut().clear();
        let config = self
            .device(ifindex)
            .and_then(|slot| self.endpoint(slot))
            .and_then(|word| self.config(word.config));
        let mac = match hook {
            Hook::FromPod => config.map_or([0; 6], |config| config.mac),
            Hook::ToPod => [2, 0, 0, 0, 0, 1],
        };
        let bytes = probe.first_packet(mac);
        let host = config.is_some_and(|config| config.flags & config_flag::HOST != 0);
        let packet = Slice {
            bytes: &bytes,
            ifindex,
            // A node's own rules are about what its own sockets send.
            socket: probe.socket || host && hook == Hook::FromPod,
            tagged: false,
            answer: false,
            came_by: 0,
        };
        if !host {
            return self.decide(hook, &packet);
        }
        let own = match hook {
            Hook::FromPod => probe.source,
            Hook::ToPod => probe.destination,
        };
        self.own.replace(HashSet::from([own.into()]));
        self.decide_host(hook, &packet)
    }

    /// A copy of what user space wrote, without flows, fragments, denials, events and counters.
    #[must_use]
    pub fn as_written(&self) -> Self {
        Self {
            devices: self.devices.clone(),
            endpoints: self.endpoints.clone(),
            configs: self.configs.clone(),
            addresses: self.addresses.clone(),
            own: self.own.clone(),
            networks: self.networks.clone(),
            rules: self.rules.clone(),
            ranges: self.ranges.clone(),
            alternatives: self.alternatives.clone(),
            leases: self.leases.clone(),
            expiries: self.expiries.clone(),
            names: self.names.clone(),
            naming: self.naming,
            patterns: self.patterns.clone(),
            members: self.members.clone(),
            zone: self.zone,
            epoch: self.epoch,
            peer_epochs: self.peer_epochs.clone(),
            now: self.now.clone(),
            boot: self.boot.clone(),
            limits: self.limits,
            ..Self::default()
        }
    }

    /// What a counter of STATS says.
    pub fn counted(&self, hook: Hook, number: u8) -> Counter {
        self.stats
            .borrow()
            .get(&(hook as u8, number))
            .copied()
            .unwrap_or_default()
    }

    /// An array's element: zero when it was never set, `None` beyond the end.
    fn element<T: Copy + Default>(map: &HashMap<u32, T>, index: u32, size: u32) -> Option<T> {
        (index < size).then(|| map.get(&index).copied().unwrap_or_default())
    }
}

/// A new connection to ask about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Probe {
    /// Who opens it.
    pub source: IpAddr,
    /// To whom; of the same family.
    pub destination: IpAddr,
    /// IP protocol: TCP, UDP, SCTP or any other (whose port is ignored).
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
    /// A local socket of the node opens it.
    pub socket: bool,
}

impl Probe {
    /// The connection's first packet.
    pub fn first_packet(&self, source_mac: [u8; 6]) -> Vec<u8> {
        /// Any port of the range clients use.
        const SOURCE_PORT: u16 = 40_000;
        let frame = frame::frame(self.source, self.destination).source_mac(source_mac);
        match self.protocol {
            crate::port::protocol::TCP => frame.tcp(SOURCE_PORT, self.port, crate::packet::tcp::SYN),
            crate::port::protocol::UDP => frame.udp(SOURCE_PORT, self.port),
            crate::port::protocol::SCTP => frame.sctp(SOURCE_PORT, self.port),
            crate::port::protocol::ICMP | crate::port::protocol::ICMPV6 => frame.echo_request(1),
            other => frame.protocol(other),
        }
        .build()
    }
}

impl Maps for MemMaps {
    type FlowRef = Rc<Flow>;
    type DenyRef = Rc<DenyEntry>;
    type LearnedRef = Rc<LearnedBucket>;
    type PendingRef = Rc<PendingBucket>;
    type StreamRef = Rc<Stream>;

    fn now(&self) -> u64 {
        self.now.get()
    }
    fn boot_time(&self) -> u64 {
        self.boot.get()
    }
    fn next_flow_id(&self) -> (u32, u64) {
        self.opened.set(self.opened.get().wrapping_add(1));
        (0, self.opened.get())
    }
    fn zone(&self) -> u32 {
        self.zone
    }
    fn epoch(&self) -> u32 {
        self.epoch
    }
    fn peer_epoch(&self, slot: u32) -> u32 {
        Self::element(&self.peer_epochs, slot, PEER_EPOCHS).unwrap_or(0)
    }
    fn device(&self, ifindex: u32) -> Option<u32> {
        self.devices.get(&ifindex).copied()
    }
    fn endpoint(&self, slot: u32) -> Option<EndpointWord> {
        Self::element(&self.endpoints, slot, ENDPOINTS)
    }
    fn config(&self, index: u32) -> Option<&Config> {
        (index < CONFIGS).then(|| self.configs.get(&index).unwrap_or(&self.unset))
    }
    fn address(&self, zone: u32, address: &Address) -> Option<AddressEntry> {
        self.addresses
            .get(&AddressKey {
                address: *address,
                zone,
            })
            .copied()
    }
    fn own(&self, address: &Address) -> bool {
        self.own.borrow().contains(address)
    }
    fn network(&self, zone: u32, address: &Address) -> Option<NetworkEntry> {
        let key = NetworkKey {
            zone_be: zone.to_be(),
            address: *address,
        };
        (0..=160)
            .rev()
            .find_map(|length| self.networks.get(&Prefix::masked(length, key)).copied())
    }
    fn rule(&self, key: &RuleKey) -> Option<PortSet> {
        self.rules.get(key).copied()
    }
    fn range(&self, index: u32) -> Option<Range> {
        Self::element(&self.ranges, index, RANGES)
    }
    fn alternative(&self, index: u32) -> Option<Alternative> {
        Self::element(&self.alternatives, index, ALTERNATIVES)
    }
    fn lease(&self, key: &LeaseKey) -> Option<u64> {
        self.leases.get(key).copied()
    }
    fn expiry(&self, number: u32) -> Option<u64> {
        Self::element(&self.expiries, number, EXPIRIES)
    }
    fn name(&self, key: &NameKey) -> Option<u64> {
        self.names.get(key).copied()
    }
    fn naming(&self) -> Option<Naming> {
        Some(self.naming)
    }
    fn pattern(&self, reversed: &[Word<u8>; REVERSED], length: u32) -> Option<PatternEntry> {
        let end = REVERSED_END as usize;
        let start = end.checked_sub(usize::try_from(length).ok()?)?;
        let name: Vec<u8> = reversed.get(start..end)?.iter().map(Word::get).collect();
        (0..=name.len())
            .rev()
            .find_map(|length| self.patterns.get(name.get(..length)?).copied())
    }
    fn member(&self, key: &MemberKey) -> bool {
        self.members.contains(key)
    }
    fn learned(&self, key: &BucketKey) -> Option<Rc<LearnedBucket>> {
        self.learned.borrow().get(key).cloned()
    }
    fn insert_learned(&self, key: &BucketKey, _empty: &LearnedBucket) {
        self.learned.borrow_mut().entry(*key).or_default();
    }
    fn pending(&self, key: &BucketKey) -> Option<Rc<PendingBucket>> {
        self.pending.borrow().get(key).cloned()
    }
    fn insert_pending(&self, key: &BucketKey, _empty: &PendingBucket) {
        self.pending.borrow_mut().entry(*key).or_default();
    }
    fn stream(&self, key: &BucketKey) -> Option<Rc<Stream>> {
        self.streams.borrow().get(key).cloned()
    }
    fn insert_stream(&self, key: &BucketKey, _empty: &Stream) {
        self.streams
            .borrow_mut()
            .entry(*key)
            .or_insert_with(|| Rc::new(Stream::FREE));
    }
    fn swap(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        let same = word.get() == old;
        if same {
            word.set(new);
        }
        same
    }

    fn confirmed(&self, key: &FlowKey) -> Option<Rc<Flow>> {
        self.confirmed.borrow().get(key).cloned()
    }
    fn tentative(&self, key: &FlowKey) -> Option<Rc<Flow>> {
        self.tentative.borrow().get(key).cloned()
    }
    fn insert_tentative(&self, key: &FlowKey, flow: &Flow) -> bool {
        let mut table = self.tentative.borrow_mut();
        let room = table.len() < self.limits.tentative || table.contains_key(key);
        if room && let Some(copy) = copy(flow) {
            table.insert(*key, Rc::new(copy));
        }
        room
    }
    fn confirm(&self, key: &FlowKey, flow: &Flow) -> bool {
        let mut table = self.confirmed.borrow_mut();
        let room = table.len() < self.limits.confirmed && !table.contains_key(key);
        if room && let Some(copy) = copy(flow) {
            table.insert(*key, Rc::new(copy));
            self.tentative.borrow_mut().remove(key);
        }
        room
    }
    fn remove_flow(&self, key: &FlowKey) {
        self.confirmed.borrow_mut().remove(key);
        self.tentative.borrow_mut().remove(key);
    }

    fn answers(&self, index: u32) -> Option<&Word<u64>> {
        let budgets = self
            .answers
            .get_or_init(|| (0..ANSWERS).map(|_| Word::default()).collect());
        budgets.get(usize::try_from(index).ok()?)
    }

    fn quota(&self, index: u32) -> Option<&Quota> {
        let quotas = self
            .quotas
            .get_or_init(|| (0..QUOTAS).map(|_| Quota::default()).collect());
        quotas.get(usize::try_from(index).ok()?)
    }
    fn opening_interval(&self) -> u64 {
        self.limits.opening_interval
    }
    fn idle(&self, class: Class) -> u64 {
        class.default_time()
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        self.fragments.borrow().get(key).copied()
    }
    fn insert_fragment(&self, key: &FragmentKey, entry: &FragmentEntry) {
        self.fragments.borrow_mut().insert(*key, *entry);
    }

    fn denied(&self, key: &DenyKey) -> Option<Rc<DenyEntry>> {
        self.denies.borrow().get(key).cloned()
    }
    fn insert_denied(&self, key: &DenyKey, entry: &DenyEntry) -> bool {
        let mut table = self.denies.borrow_mut();
        let room = table.len() < self.limits.denies;
        if room && let Some(copy) = copy(entry) {
            table.insert(*key, Rc::new(copy));
        }
        room
    }
    fn add(&self, word: &Word<u64>, amount: u64) {
        word.set(word.get().wrapping_add(amount));
    }
    fn emit(&self, hook: Hook, fill: impl FnOnce(&mut Event)) {
        self.sequence.set(self.sequence.get().wrapping_add(1));
        let mut events = self.events.borrow_mut();
        if events.len() >= self.limits.events {
            drop(events);
            self.count(hook, stat::LOST_EVENT, 0);
            return;
        }
        let mut event = Event {
            sequence: self.sequence.get(),
            cpu: 0,
            ..Event::default()
        };
        fill(&mut event);
        events.push(event);
    }
    fn count(&self, hook: Hook, number: u8, bytes: u32) {
        let mut stats = self.stats.borrow_mut();
        let counter = stats.entry((hook as u8, number)).or_default();
        counter.packets = counter.packets.wrapping_add(1);
        counter.bytes = counter.bytes.wrapping_add(u64::from(bytes));
    }
}

/// Copies a value made of words byte by byte, as the kernel does when it takes it into a map.
fn copy<T: FromBytes + IntoBytes + Default>(value: &T) -> Option<T> {
    // The words are cells, so their bytes are not borrowable as plain memory; a copy by value goes through a move.
    let mut bytes = vec![0; size_of::<T>()];
    read_words(value, &mut bytes);
    T::read_from_bytes(&bytes).ok()
}

#[expect(
    unsafe_code,
    reason = "cells cannot be borrowed as bytes; the host runs one decision at a time"
)]
fn read_words<T: IntoBytes>(value: &T, bytes: &mut [u8]) {
    // SAFETY: `T: IntoBytes` has no padding, `bytes` has its size, and nobody writes the value meanwhile: `MemMaps` is
    // not `Sync`.
    unsafe {
        std::ptr::from_ref(value)
            .cast::<u8>()
            .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len());
    };
}
