//! The uplink's maps in memory. What the kernel evicts by itself is not imitated: these tables only grow.

use std::{cell::RefCell, collections::HashMap, net::IpAddr, rc::Rc};

use zerocopy::FromBytes;

use super::{
    Answer, Frame, Headers, Tables, judge,
    layout::{DropKey, Hosts, Prefix, PrefixKey, Settings},
};
use crate::{
    address::Address,
    layout::{AddressEntry, Counter, NetworkEntry, Word},
};

impl Frame for &[u8] {
    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        T::read_from_bytes(self.get(offset..end)?).ok()
    }
    fn length(&self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }
}

type Times<K> = RefCell<HashMap<K, Rc<Word<u64>>>>;

/// The maps. What user space writes is public.
#[derive(Default)]
pub struct MemTables {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub now: u64,
    /// What is to be done.
    pub settings: Option<Settings>,
    /// Cells that are not zero, by address >> 8.
    pub cells: HashMap<u32, u8>,
    /// Hosts, by address >> 8.
    pub hosts: HashMap<u32, Hosts>,
    /// IPv6 /16s that are not zero.
    pub roots: HashMap<u32, Prefix>,
    /// Longer IPv6 prefixes.
    pub prefixes: HashMap<PrefixKey, Prefix>,
    /// Prefixes no feed may name: address and length.
    pub exceptions: Vec<(IpAddr, u8)>,
    /// ADDRESSES.
    pub addresses: HashMap<Address, AddressEntry>,
    /// NETWORKS: address, length, identity.
    pub networks: Vec<(IpAddr, u8, NetworkEntry)>,
    pub(super) sources: Times<Address>,
    pub(super) identities: Times<u32>,
    pub(super) targets: Times<u32>,
    pub(super) known: RefCell<HashMap<Address, u64>>,
    pub(super) counters: RefCell<HashMap<u8, Counter>>,
    pub(super) feeds: RefCell<HashMap<u8, Counter>>,
    pub(super) drops: RefCell<HashMap<DropKey, Counter>>,
    pub(super) pace: Rc<Word<u64>>,
}

fn covers((network, length): (IpAddr, u8), address: &Address) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let ip = IpAddr::from(*address);
    if network.is_ipv4() != ip.is_ipv4() {
        return false;
    }
    let length = u32::from(length).saturating_add(if network.is_ipv4() { 96 } else { 0 });
    let shift = 128_u32.saturating_sub(length);
    (bits(network) ^ bits(ip)).checked_shr(shift).unwrap_or(0) == 0
}

fn add(counter: &mut Counter, bytes: u32) {
    counter.packets = counter.packets.saturating_add(1);
    counter.bytes = counter.bytes.saturating_add(bytes.into());
}

impl MemTables {
    /// Decides about a frame, which is left in `headers`.
    pub fn judge(&self, frame: &[u8], headers: &mut Headers) -> Answer {
        judge(&frame, self, headers)
    }

    /// The feed an address is of, or 0.
    pub fn find(&self, address: &Address) -> u8 {
        super::find(self, address)
    }

    /// What was counted under a number.
    pub fn counted(&self, number: u8) -> Counter {
        self.counters.borrow().get(&number).copied().unwrap_or_default()
    }

    /// What a feed took away.
    pub fn of_feed(&self, feed: u8) -> Counter {
        self.feeds.borrow().get(&feed).copied().unwrap_or_default()
    }

    /// Dropped packets by source, reason and feed.
    pub fn drops(&self) -> HashMap<DropKey, Counter> {
        self.drops.borrow().clone()
    }
}

impl Tables for MemTables {
    type Time = Rc<Word<u64>>;

    fn now(&self) -> u64 {
        self.now
    }
    fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }
    fn wide(&self, high: u32) -> bool {
        self.cells
            .iter()
            .any(|(network, byte)| network >> 8 == high && *byte != 0)
    }
    fn mark(&self, high: u32, low: u32) -> bool {
        self.cell(high, low) != 0
    }
    fn cell(&self, high: u32, low: u32) -> u8 {
        self.cells.get(&(high << 8 | low)).copied().unwrap_or(0)
    }
    fn hosts(&self, network: u32, word: u32) -> Option<(u32, u32)> {
        let hosts = self.hosts.get(&network)?;
        let word = usize::try_from(word).ok()?;
        Some((*hosts.bits.get(word)?, hosts.feed))
    }
    fn root(&self, index: u32) -> Prefix {
        self.roots.get(&index).copied().unwrap_or_default()
    }
    fn prefix(&self, key: &PrefixKey) -> Option<Prefix> {
        self.prefixes.get(key).copied()
    }
    fn excepted(&self, address: &Address) -> bool {
        self.exceptions.iter().any(|prefix| covers(*prefix, address))
    }
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        self.addresses.get(address).copied()
    }
    fn network(&self, address: &Address) -> Option<NetworkEntry> {
        let covering = self
            .networks
            .iter()
            .filter(|(network, length, _)| covers((*network, *length), address));
        covering.max_by_key(|(_, length, _)| *length).map(|(.., entry)| *entry)
    }
    fn source(&self, source: &Address) -> Option<Self::Time> {
        self.sources.borrow().get(source).cloned()
    }
    fn add_source(&self, source: &Address, time: u64) {
        self.sources.borrow_mut().insert(*source, Rc::new(Word::new(time)));
    }
    fn identity(&self, identity: u32) -> Option<Self::Time> {
        self.identities.borrow().get(&identity).cloned()
    }
    fn add_identity(&self, identity: u32, time: u64) {
        self.identities.borrow_mut().insert(identity, Rc::new(Word::new(time)));
    }
    fn target(&self, index: u32) -> Option<Self::Time> {
        Some(self.targets.borrow_mut().entry(index).or_default().clone())
    }
    fn known(&self, source: &Address) -> Option<u64> {
        self.known.borrow().get(source).copied()
    }
    fn add_known(&self, source: &Address, until: u64) {
        self.known.borrow_mut().insert(*source, until);
    }
    fn count(&self, number: u8, bytes: u32) {
        add(self.counters.borrow_mut().entry(number).or_default(), bytes);
    }
    fn count_feed(&self, feed: u8, bytes: u32) {
        add(self.feeds.borrow_mut().entry(feed).or_default(), bytes);
    }
    fn note(&self, key: &DropKey, bytes: u32, _now: u64) -> bool {
        self.drops
            .borrow_mut()
            .get_mut(key)
            .map(|counter| add(counter, bytes))
            .is_some()
    }
    fn add_note(&self, key: &DropKey, bytes: u32, _now: u64) {
        add(self.drops.borrow_mut().entry(*key).or_default(), bytes);
    }
    fn pace(&self) -> Option<Self::Time> {
        Some(self.pace.clone())
    }
}
