//! Uplinks: follows the feeds, keeps the uplink's tables as they say, and its program on the devices that lead out.
//!
//! Nothing here is in a packet's way. What is in force is pinned and stays when the agent ends; trouble with a feed, a table
//! or a device leaves what was good before, and is told in log, metrics and `bulkhead-agent uplink`.

pub(crate) mod devices;
mod fetch;
mod follow;
mod image;
mod lines;
pub(crate) mod measured;
pub(crate) mod options;
mod shelf;
pub(crate) mod show;
mod state;
mod tables;

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use bulkhead_verdict::{
    address::Address,
    uplink::layout::{Settings, flag},
};
use tokio::{
    sync::mpsc,
    task,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

pub(crate) use self::state::State;
use self::{
    follow::{News, Seen},
    lines::{Lines, Reading},
    options::{FeedOption, UplinkMode, UplinkOptions},
    shelf::Shelf,
    state::Device,
};
use crate::{
    chain, clock,
    endpoints::Netlink,
    kernel::{Exception, KernelError, Mode, Uplink},
    memory,
};

/// How often devices are looked for.
const LOOK: Duration = Duration::from_secs(5);
/// Longest wait at start for feeds that are not on disk, while what a predecessor left stays in force.
const FIRST_ANSWERS: Duration = Duration::from_secs(5);
/// Seconds a source that answered a challenge is known.
const KNOWN_FOR: u32 = 600;
/// News on their way.
const INBOX: usize = 16;

/// Everything about this node's uplinks.
pub(crate) struct Uplinks {
    options: UplinkOptions,
    shelf: Shelf,
    kernel: Arc<Uplink>,
    state: Arc<State>,
    client: fetch::Client,
    /// What the tables are to hold, by feed.
    wanted: Vec<Arc<Lines>>,
    /// A write failed half-way: the tables are gone through as a whole next time.
    torn: bool,
}

impl Uplinks {
    /// Reads what is on disk. Nothing in the kernel changes yet.
    ///
    /// # Errors
    /// Whatever makes it impossible to begin.
    pub(crate) fn new(options: &UplinkOptions, state_dir: &Path, kernel: Uplink) -> Result<Self> {
        let folder = || format!("keeping feeds below {}", state_dir.display());
        let shelf = Shelf::open(state_dir).with_context(folder)?;
        if !shelf.same_order(&options.threat_feed).with_context(folder)? {
            // Their numbers mean other feeds now.
            kernel.forget_feed_counts()?;
        }
        let kernel = Arc::new(kernel);
        let state = Arc::new(State::new(options, kernel.clone()));
        Ok(Self {
            client: fetch::Client::new(options.feed_authorities.as_deref())?,
            wanted: options.threat_feed.iter().map(|_| Arc::default()).collect(),
            options: options.clone(),
            shelf,
            kernel,
            state,
            torn: true,
        })
    }

    /// What others may look at.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Works for ever.
    pub(crate) async fn run(mut self) {
        self.read_shelf().await;
        let (sender, mut news) = mpsc::channel(INBOX);
        for (index, feed) in self.options.threat_feed.iter().enumerate() {
            let (source, client) = (feed.source.clone(), self.client.clone());
            drop(tokio::spawn(follow::follow(
                index,
                source,
                client,
                self.options.feed_interval,
                sender.clone(),
            )));
        }
        self.first_answers(&mut news).await;
        self.mend().await;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    self.mend().await;
                    self.attach();
                }
                // Never ends: we hold a sender ourselves.
                Some((index, seen)) = news.recv() => self.hear(index, seen).await,
            }
        }
    }

    /// Takes the last good texts.
    async fn read_shelf(&mut self) {
        for index in 0..self.options.threat_feed.len() {
            let Some(feed) = self.options.threat_feed.get(index).cloned() else {
                continue;
            };
            match self.shelf.text(&feed) {
                Ok(Some(text)) => {
                    let reading = read(text).await;
                    let lines = reading.lines.len();
                    tracing::info!(feed = feed.name, lines, "the last good list is on disk");
                    self.state.feed(index, |state| state.kept(&reading));
                    self.set(index, reading);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(feed = feed.name, "the last good list on disk cannot be read: {error}"),
            }
        }
    }

    /// A node whose disk knows nothing, and whose kernel perhaps does, does not let go of that before it was told better.
    async fn first_answers(&mut self, news: &mut mpsc::Receiver<News>) {
        let end = Instant::now() + FIRST_ANSWERS;
        let mut silent: Vec<usize> = (0..self.wanted.len())
            .filter(|index| self.wanted.get(*index).is_some_and(|lines| lines.is_empty()))
            .collect();
        while !silent.is_empty() {
            let Ok(Some((index, seen))) = timeout_at(end, news.recv()).await else {
                break;
            };
            silent.retain(|other| *other != index);
            self.hear(index, seen).await;
        }
    }

    fn set(&mut self, index: usize, reading: Reading) {
        if let Some(place) = self.wanted.get_mut(index) {
            *place = Arc::new(reading.lines);
        }
    }

    /// Takes news of a feed.
    async fn hear(&mut self, index: usize, seen: Seen) {
        let Some(feed) = self.options.threat_feed.get(index).cloned() else {
            return;
        };
        match seen {
            Seen::Same => self.state.feed(index, state::FeedState::good),
            Seen::Failed(why) => self.complain(index, &feed, &why),
            Seen::Text(text) => {
                let reading = read(text.clone()).await;
                match self.refused(index, &reading) {
                    Some(why) => self.complain(index, &feed, &why),
                    None => self.take(index, &feed, text, reading).await,
                }
                // A million lines are much more as text.
                memory::give_back();
            }
        }
    }

    /// Why a text is not taken.
    fn refused(&self, index: usize, reading: &Reading) -> Option<String> {
        let (good, wrong) = (reading.lines.len(), reading.wrong);
        if good == 0 && wrong == 0 {
            return Some("it is empty".to_owned());
        }
        if wrong > good {
            let first = reading.told.first().map(ToString::to_string).unwrap_or_default();
            return Some(format!(
                "{wrong} lines are wrong and {good} are not, so it is no list of addresses; {first}"
            ));
        }
        let mut feeds = self.wanted.clone();
        *feeds.get_mut(index)? = Arc::new(reading.lines.clone());
        let (hosts, prefixes) = image::Touched::needs(&feeds);
        let (needed, room) = (
            hosts.max(prefixes),
            usize::try_from(self.options.feed_entries).unwrap_or(usize::MAX),
        );
        (needed > room).then(|| format!("all feeds together need {needed} entries, and --feed-entries is {room}"))
    }

    fn complain(&self, index: usize, feed: &FeedOption, why: &str) {
        let lines = self.wanted.get(index).map_or(0, |lines| lines.len());
        if self.state.feed(index, |state| state.failed(why)) {
            if lines == 0 {
                tracing::error!(feed = feed.name, source = %feed.source, "{why}; there is no list of it until then");
            } else {
                tracing::warn!(feed = feed.name, source = %feed.source, "{why}; the last good list stays in force, {lines} lines");
            }
        }
    }

    async fn take(&mut self, index: usize, feed: &FeedOption, text: String, reading: Reading) {
        for wrong in &reading.told {
            tracing::warn!(feed = feed.name, "{wrong}; the other lines are in force");
        }
        // First on disk: what is in force is what a successor finds.
        if let Err(error) = self.shelf.keep(feed, &text) {
            tracing::warn!(
                feed = feed.name,
                "the list cannot be kept on disk, a restart would wait for it: {error}"
            );
        }
        drop(text);
        let old = self.wanted.clone();
        self.state.feed(index, |state| state.took(&reading));
        self.set(index, reading);
        if self.torn {
            // The next look writes everything, and this with it.
            return;
        }
        let (kernel, new, begin) = (self.kernel.clone(), self.wanted.clone(), Instant::now());
        let written = blocking(move || tables::change(&mut &kernel.maps, &old, &new)).await;
        self.written(written, begin);
        let lines = self.wanted.get(index).map_or(0, |lines| lines.len());
        tracing::info!(feed = feed.name, lines, "the list is in force");
    }

    /// Goes through the tables as a whole, when nobody knows what they hold.
    async fn mend(&mut self) {
        if !self.torn {
            return;
        }
        let (kernel, feeds, begin) = (self.kernel.clone(), self.wanted.clone(), Instant::now());
        let settings = self.settings();
        let secret = match fresh_secret() {
            Ok(secret) => secret,
            // Challenges nobody can guess the number of are the point: without, nothing is begun.
            Err(error) => {
                return tracing::error!(
                    "no secret for challenges: {error:?}; tried again in {} s",
                    LOOK.as_secs()
                );
            }
        };
        let exceptions = self.exceptions();
        let written = blocking(move || {
            write_exceptions(&kernel, &exceptions)?;
            let writes = tables::adopt(&kernel.maps, &feeds)?;
            kernel.set_settings(&settings, secret)?;
            Ok(writes)
        })
        .await;
        self.torn = false;
        self.written(written, begin);
        memory::give_back();
    }

    fn written(&mut self, written: Result<u64, KernelError>, begin: Instant) {
        let error = match written {
            Ok(writes) => {
                let milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::debug!(writes, milliseconds, "the uplink's tables are written");
                self.state.wrote(writes);
                String::new()
            }
            Err(error) => {
                self.torn = true;
                let error = chain(&error);
                tracing::error!(
                    "the feeds are only partly in force: {error}; the tables are written again in {} s",
                    LOOK.as_secs()
                );
                error
            }
        };
        *self.state.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn settings(&self) -> Settings {
        let options = &self.options;
        let mut settings = Settings {
            known_for: KNOWN_FOR,
            ..Settings::default()
        };
        if !options.threat_feed.is_empty() {
            settings.flags |= flag::FEEDS;
        }
        for (rate, bit, limit) in [
            (options.limit_source_connections, flag::SOURCES, &mut settings.source),
            (
                options.limit_identity_connections,
                flag::IDENTITIES,
                &mut settings.identity,
            ),
            (options.guard_syn, flag::GUARD, &mut settings.guard),
        ] {
            if let Some(rate) = rate {
                settings.flags |= bit;
                *limit = rate.limit();
            }
        }
        settings
    }

    fn exceptions(&self) -> Vec<Exception> {
        let bits = |cidr: &options::Cidr| u32::from(cidr.1) + if cidr.0.is_ipv4() { 96 } else { 0 };
        let exception = |cidr: &options::Cidr| Exception {
            bits: bits(cidr),
            address: Address::from(cidr.0),
        };
        self.options.feed_except.iter().map(exception).collect()
    }

    /// Puts the program where it belongs and is not yet.
    fn attach(&self) {
        let (found, missing) = match devices::find(&self.options.uplink) {
            Ok(found) => found,
            Err(error) => {
                return tracing::error!("the node's devices cannot be asked for: {error}; uplinks stay as they are");
            }
        };
        let mut devices = BTreeMap::new();
        let before = self.state.devices();
        for (ifindex, name) in &found {
            let held = before
                .get(name)
                .filter(|device| device.ifindex == *ifindex && device.mode.is_ok());
            let device = match held {
                Some(device) => device.clone(),
                None => self.attach_one(*ifindex, name, before.get(name)),
            };
            devices.insert(name.clone(), device);
        }
        for name in missing {
            let error = "there is no such device".to_owned();
            if before.get(&name).is_none_or(|device| device.mode.is_ok()) {
                tracing::error!("--uplink {name}: {error}; it is looked for every {} s", LOOK.as_secs());
            }
            devices.insert(
                name,
                Device {
                    ifindex: 0,
                    mode: Err(error),
                },
            );
        }
        let wanted: Vec<u32> = found.keys().copied().collect();
        if let Err(error) = self.kernel.keep_only(&wanted) {
            tracing::error!(
                "a device that is no uplink any more cannot be let go of: {}",
                chain(&error)
            );
        }
        self.state.set_devices(devices);
    }

    /// Modes to try on a device, in order. A veth device that sends a frame back in the driver loses it, unless the other end
    /// has a program too: challenges would not arrive.
    fn modes(&self, ifindex: u32) -> &'static [Mode] {
        let chosen = self.options.uplink_mode;
        if chosen != UplinkMode::Auto || self.options.guard_syn.is_none() {
            return chosen.modes();
        }
        let veth = Netlink::open().and_then(|mut netlink| netlink.links()).map(|links| {
            let link = links.iter().find(|link| link.index == ifindex);
            link.is_some_and(|link| link.peer.is_some())
        });
        // A driver that cannot be asked about is one that can at least do this.
        if veth.unwrap_or(true) {
            UplinkMode::Generic.modes()
        } else {
            chosen.modes()
        }
    }

    fn attach_one(&self, ifindex: u32, name: &str, before: Option<&Device>) -> Device {
        let mode = match self.kernel.attach(ifindex, self.modes(ifindex)) {
            Ok(mode) => {
                tracing::info!(device = name, mode = mode.name(), "the uplink is looked at");
                Ok(mode)
            }
            Err(error) => Err(explain(&error)),
        };
        if let Err(error) = &mode
            && before.is_none_or(|before| before.mode.as_ref() != Err(error))
        {
            tracing::error!(
                device = name,
                "{error}; feeds and limits are not in force there; tried again every {} s",
                LOOK.as_secs()
            );
        }
        Device { ifindex, mode }
    }
}

/// Says what an error of attaching most often means.
fn explain(error: &KernelError) -> String {
    let hint = match error {
        KernelError::Attach { source, .. } => match source.raw_os_error() {
            Some(libc::EBUSY) => ": another XDP program is on it, or one in another mode; a device has room for one",
            Some(libc::EOPNOTSUPP) => ": its driver has no XDP; --uplink-mode generic works on every device",
            Some(libc::EINVAL | libc::ERANGE) => {
                ": its driver refuses XDP as the device is set up (MTU, large receive offload, queues)"
            }
            _ => "",
        },
        _ => "",
    };
    format!("{}{hint}", chain(error))
}

fn write_exceptions(kernel: &Uplink, wanted: &[Exception]) -> Result<(), KernelError> {
    let table = &kernel.maps.exceptions;
    wanted.iter().try_for_each(|exception| table.set(exception, &1))?;
    let mut gone = Vec::new();
    table.for_each(|exception, _| {
        if !wanted.contains(&exception) {
            gone.push(exception);
        }
    })?;
    table.remove_all(&gone)
}

async fn read(text: String) -> Reading {
    // A panic in there is one here.
    task::spawn_blocking(move || lines::read(&text))
        .await
        .unwrap_or_default()
}

async fn blocking(work: impl FnOnce() -> Result<u64, KernelError> + Send + 'static) -> Result<u64, KernelError> {
    let failed = |error: task::JoinError| KernelError::Map {
        map: "BK_UP_CELL",
        doing: "writing",
        source: io::Error::other(error),
    };
    task::spawn_blocking(work).await.map_err(failed)?
}

fn fresh_secret() -> Result<[u64; 2], rustls::crypto::GetRandomFailed> {
    let mut halves = [[0; 8]; 2];
    for half in &mut halves {
        rustls::crypto::ring::default_provider().secure_random.fill(half)?;
    }
    Ok(halves.map(u64::from_ne_bytes))
}

/// When something happened, as others say it.
fn now() -> u64 {
    clock::wall()
}
