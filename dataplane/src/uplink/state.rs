//! What is so of the uplinks, for metrics and for people who ask.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bulkhead_proto::v1::{FeedMatch, FeedStatus, SourceDrops, UplinkDevice, UplinkStatus, VerdictCount};
use bulkhead_verdict::{
    address::Address,
    layout::Counter,
    reason::Reason,
    uplink::layout::{DropEntry, DropKey, HANDED_ON, SEVERAL},
};
use prometheus_client::{
    metrics::{counter::Counter as Count, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    lines::{Lines, Reading},
    now,
    options::UplinkOptions,
};
use crate::{
    clock,
    kernel::{KernelError, Mode, Uplink},
};

/// Sources that are told of, those with the most dropped packets.
const SOURCES_TOLD: usize = 20;

/// A device and how the program sits on it, or why not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    pub(crate) ifindex: u32,
    pub(crate) mode: Result<Mode, String>,
}

/// What is so of a feed.
#[derive(Clone, Debug, Default)]
pub(crate) struct FeedState {
    name: String,
    source: String,
    lines: Arc<Lines>,
    wrong: usize,
    told: Vec<String>,
    /// When the list that is in force was last the one that there is, wall nanoseconds; 0 = not since the agent began.
    good_at: u64,
    failures: u64,
    error: String,
}

impl FeedState {
    /// The list of last time is taken.
    pub(super) fn kept(&mut self, reading: &Reading) {
        self.lines = Arc::new(reading.lines.clone());
        self.wrong = reading.wrong;
    }

    /// The list is still the one that there is.
    pub(super) fn good(&mut self) {
        self.good_at = now();
        self.error.clear();
    }

    /// A new list is taken.
    pub(super) fn took(&mut self, reading: &Reading) {
        self.kept(reading);
        self.told = reading.told.iter().map(ToString::to_string).collect();
        self.good();
    }

    /// The list could not be had; true when that is another trouble than before.
    pub(super) fn failed(&mut self, why: &str) -> bool {
        self.failures += 1;
        let other = self.error != why;
        why.clone_into(&mut self.error);
        other
    }
}

/// Everything others may look at.
pub(crate) struct State {
    kernel: Arc<Uplink>,
    feeds: Mutex<Vec<FeedState>>,
    devices: Mutex<BTreeMap<String, Device>>,
    exceptions: Vec<super::options::Cidr>,
    writes: AtomicU64,
    /// Why the tables are not as they should be; empty when they are.
    pub(super) error: Mutex<String>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

type Labels = Vec<(&'static str, String)>;

fn whole(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

impl State {
    pub(super) fn new(options: &UplinkOptions, kernel: Arc<Uplink>) -> Self {
        let feeds = options.threat_feed.iter().map(|feed| FeedState {
            name: feed.name.clone(),
            source: feed.source.to_string(),
            ..FeedState::default()
        });
        Self {
            kernel,
            feeds: Mutex::new(feeds.collect()),
            devices: Mutex::default(),
            exceptions: options.feed_except.clone(),
            writes: AtomicU64::new(0),
            error: Mutex::default(),
        }
    }

    pub(super) fn feed<T: Default>(&self, index: usize, change: impl FnOnce(&mut FeedState) -> T) -> T {
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.get_mut(index).map(change).unwrap_or_default()
    }

    pub(super) fn wrote(&self, writes: u64) {
        self.writes.fetch_add(writes, Ordering::Relaxed);
    }

    pub(super) fn devices(&self) -> BTreeMap<String, Device> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_devices(&self, devices: BTreeMap<String, Device>) {
        *self.devices.lock().unwrap_or_else(PoisonError::into_inner) = devices;
    }

    fn feeds(&self) -> Vec<FeedState> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Packets by reason, as the programs of pods' devices have them.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub(crate) fn verdicts(&self) -> Result<Vec<VerdictCount>, KernelError> {
        let sums = self.kernel.maps.stats.sums()?;
        let one = |number: u8, name: &str| {
            let counter = sums.get(usize::from(number)).filter(|counter| counter.packets > 0)?;
            Some(VerdictCount {
                hook: "uplink".to_owned(),
                reason: name.to_owned(),
                reason_number: number.into(),
                packets: counter.packets,
                bytes: counter.bytes,
            })
        };
        let reasons = Reason::ALL.iter().filter(|reason| reason.is_uplink());
        let reasons = reasons.filter_map(|reason| one(*reason as u8, reason.name()));
        Ok(one(HANDED_ON, "handed-on").into_iter().chain(reasons).collect())
    }

    /// What feeds took away, by number.
    fn by_feed(&self) -> Vec<Counter> {
        // A counter that cannot be read is not told; the others are.
        self.kernel.maps.feeds.sums().unwrap_or_default()
    }

    /// Puts our numbers beside the agent's.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let gauges = || Family::<Labels, Gauge>::default();
        let counts = || Family::<Labels, Count>::default();
        let (lines, wrong, good_at) = (gauges(), gauges(), gauges());
        let (failures, packets, bytes, devices) = (counts(), counts(), counts(), gauges());
        let by_feed = self.by_feed();
        let took = |name: String, number: usize| {
            let labels = vec![("feed", name)];
            if let Some(counter) = by_feed.get(number) {
                packets.get_or_create(&labels).inc_by(counter.packets);
                bytes.get_or_create(&labels).inc_by(counter.bytes);
            }
        };
        for (feed, number) in self.feeds().into_iter().zip(1..) {
            let labels = vec![("feed", feed.name.clone())];
            lines.get_or_create(&labels).set(whole(feed.lines.len()));
            wrong.get_or_create(&labels).set(whole(feed.wrong));
            good_at.get_or_create(&labels).set(whole(feed.good_at / 1_000_000_000));
            failures.get_or_create(&labels).inc_by(feed.failures);
            took(feed.name, number);
        }
        took("several".to_owned(), SEVERAL.into());
        for (name, device) in self.devices() {
            let mode = device.mode.as_ref().map_or("none", |mode| mode.name());
            let labels = vec![("device", name), ("mode", mode.to_owned())];
            devices.get_or_create(&labels).set(i64::from(device.mode.is_ok()));
        }
        let writes: Count = Count::default();
        writes.inc_by(self.writes.load(Ordering::Relaxed));
        let torn: Gauge = Gauge::default();
        torn.set(i64::from(
            !self.error.lock().unwrap_or_else(PoisonError::into_inner).is_empty(),
        ));
        registry.register(
            "feed_lines",
            "Addresses and CIDRs of a threat feed that are in force",
            lines,
        );
        registry.register(
            "feed_wrong_lines",
            "Lines of a threat feed that are no address and no CIDR",
            wrong,
        );
        registry.register(
            "feed_good_seconds",
            "When a threat feed was last had, Unix time; 0 = not since the agent began",
            good_at,
        );
        registry.register(
            "feed_failures",
            "Times a threat feed could not be had, or was not taken",
            failures,
        );
        registry.register("feed_packets", "Packets that a threat feed took away", packets);
        registry.register("feed_bytes", "Bytes that a threat feed took away", bytes);
        registry.register(
            "uplink_attached",
            "1 while feeds and limits are in force on an uplink",
            devices,
        );
        registry.register("uplink_writes", "Writes to the uplink's tables", writes);
        registry.register("uplink_in_error", "1 while the feeds are only partly in force", torn);
    }

    /// Everything, and what is so of one address.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub(crate) fn status(&self, address: Option<IpAddr>) -> Result<UplinkStatus, KernelError> {
        let by_feed = self.by_feed();
        let feeds = self.feeds();
        let count = |number: usize| by_feed.get(number).map_or(0, |counter| counter.packets);
        let matches = |ip: IpAddr| {
            let found = feeds
                .iter()
                .filter_map(move |feed| Some((feed, feed.lines.covering(ip)?)));
            found.map(|(feed, (prefix, length))| FeedMatch {
                feed: feed.name.clone(),
                prefix: format!("{prefix}/{length}"),
            })
        };
        let device = |(name, device): (String, Device)| UplinkDevice {
            name,
            mode: device
                .mode
                .as_ref()
                .map_or_else(|_| String::new(), |mode| mode.name().to_owned()),
            error: device.mode.err().unwrap_or_default(),
        };
        Ok(UplinkStatus {
            devices: self.devices().into_iter().map(device).collect(),
            feeds: feeds
                .iter()
                .zip(1..)
                .map(|(feed, number)| FeedStatus {
                    name: feed.name.clone(),
                    source: feed.source.clone(),
                    lines: feed.lines.len().try_into().unwrap_or(u64::MAX),
                    wrong_lines: feed.wrong.try_into().unwrap_or(u64::MAX),
                    told: feed.told.clone(),
                    good_at: clock::timestamp(feed.good_at),
                    error: feed.error.clone(),
                    packets: count(number),
                })
                .collect(),
            matches: address.map(matches).into_iter().flatten().collect(),
            spared_by: address.and_then(|ip| self.spared_by(ip)).unwrap_or_default(),
            drops: self.drops(address, &feeds)?,
            verdicts: self.verdicts()?,
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }

    fn spared_by(&self, ip: IpAddr) -> Option<String> {
        let within = |prefix: &&super::options::Cidr| {
            super::lines::prefix_of_any_length(&format!("{ip}/{}", prefix.1))
                .is_ok_and(|cut| cut == (prefix.0, prefix.1))
        };
        let prefix = self.exceptions.iter().find(within)?;
        Some(format!("--feed-except {}/{}", prefix.0, prefix.1))
    }

    /// Sources with the most dropped packets, or the one that is asked for.
    fn drops(&self, address: Option<IpAddr>, feeds: &[FeedState]) -> Result<Vec<SourceDrops>, KernelError> {
        let mut drops = Vec::new();
        self.kernel.maps.drops.for_each(|key: DropKey, entry: DropEntry| {
            if address.is_none_or(|ip| Address::from(ip) == key.source) {
                drops.push((entry.count.get(), key, entry));
            }
        })?;
        drops.sort_by_key(|(count, ..)| std::cmp::Reverse(*count));
        drops.truncate(SOURCES_TOLD);
        let clocks = clock::Wall::now();
        let told = |(packets, key, entry): (u64, DropKey, DropEntry)| {
            let feed = usize::try_from(key.feed)
                .ok()
                .and_then(|number| feeds.get(number.checked_sub(1)?));
            let reason = u8::try_from(key.reason).ok().and_then(Reason::from_number);
            SourceDrops {
                source: IpAddr::from(key.source).to_string(),
                reason: reason.map_or("unknown", Reason::name).to_owned(),
                feed: feed.map_or_else(String::new, |feed| feed.name.clone()),
                packets,
                bytes: entry.bytes.get(),
                last: clock::timestamp(clocks.of_boot(entry.last.get())),
            }
        };
        Ok(drops.into_iter().map(told).collect())
    }
}
