//! What the uplink's tables hold for some feeds: which entries a line touches, and what each of them is. An entry is made
//! from all feeds anew whenever a line of it changes, so the tables are a function of the feeds, however they came to be.

use std::sync::Arc;

use bulkhead_verdict::{
    address::Address,
    uplink::layout::{Hosts, Prefix, PrefixKey, SEVERAL, cell},
};

use super::lines::{Line, Lines, mask_v6};

/// Class of an IPv6 /16 and of a /32.
const ROOT: u32 = 4;
const DIRECTORY: u32 = 8;

/// Feeds in the order of their numbers, which begin at 1.
pub(crate) type Feeds = [Arc<Lines>];

/// Entries of the tables, each once, sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Touched {
    /// IPv4 /24s: address >> 8.
    pub(crate) cells: Vec<u32>,
    /// IPv6 /16s.
    pub(crate) roots: Vec<u32>,
    /// Longer IPv6 prefixes: address and class.
    pub(crate) prefixes: Vec<(u128, u32)>,
}

/// What an IPv4 /24 is to hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cell {
    /// Nothing, or one feed's number.
    All(u8),
    /// Some hosts.
    Some(Hosts),
}

impl Cell {
    /// Its byte.
    pub(crate) fn byte(&self) -> u8 {
        match self {
            Self::All(feed) => *feed,
            Self::Some(_) => cell::HOSTS,
        }
    }
}

fn number(index: usize) -> u8 {
    u8::try_from(index + 1).unwrap_or(SEVERAL)
}

fn class_of(length: u8) -> u32 {
    u32::from(length).div_ceil(4).max(ROOT)
}

fn length_of(class: u32) -> u8 {
    u8::try_from(class * 4).unwrap_or(u8::MAX).min(128)
}

/// The key of a prefix in the kernel.
pub(crate) fn key(address: u128, class: u32) -> PrefixKey {
    PrefixKey::of(&Address::from(std::net::IpAddr::from(address.to_be_bytes())), class)
}

/// The prefix of a key.
pub(crate) fn prefix_of(key: &PrefixKey) -> (u128, u32) {
    let mut bits = 0_u128;
    for word in key.address.0 {
        bits = bits << 32 | u128::from(u32::from_be(word));
    }
    (bits, key.class)
}

impl Touched {
    /// The entries that these lines touch.
    pub(crate) fn by(lines: impl IntoIterator<Item = Line>) -> Self {
        let mut touched = Self::default();
        lines.into_iter().for_each(|line| touched.line(line));
        touched.sorted()
    }

    /// Each once, in order.
    pub(crate) fn sorted(mut self) -> Self {
        self.cells.sort_unstable();
        self.cells.dedup();
        self.roots.sort_unstable();
        self.roots.dedup();
        self.prefixes.sort_unstable();
        self.prefixes.dedup();
        self
    }

    fn line(&mut self, line: Line) {
        match line {
            Line::V4(address, length) => {
                let first = address >> 8;
                let count = 1_u32 << 24_u8.saturating_sub(length);
                self.cells.extend(first..first.saturating_add(count));
            }
            Line::V6(address, length) => {
                self.roots.push(root_of(address));
                let class = class_of(length);
                if class == ROOT {
                    return;
                }
                let whole = length_of(class);
                for index in 0..1_u128 << whole.saturating_sub(length) {
                    self.prefixes.push((address | index << (128 - u32::from(whole)), class));
                }
                if class > DIRECTORY {
                    self.prefixes.push((address & mask_v6(32), DIRECTORY));
                }
            }
        }
    }

    /// Entries of the hash of hosts and of the hash of prefixes that the feeds need at most.
    pub(crate) fn needs(feeds: &Feeds) -> (usize, usize) {
        let mut hosts = Vec::new();
        let mut touched = Self::default();
        for line in feeds.iter().flat_map(|feed| feed.all()) {
            match line {
                Line::V4(address, 25..) => {
                    if hosts.last() != Some(&(address >> 8)) {
                        hosts.push(address >> 8);
                    }
                }
                Line::V4(..) => {}
                Line::V6(..) => touched.line(line),
            }
        }
        hosts.sort_unstable();
        hosts.dedup();
        (hosts.len(), touched.sorted().prefixes.len())
    }
}

fn root_of(address: u128) -> u32 {
    u32::try_from(address >> 112).unwrap_or(0)
}

/// What an IPv4 /24 holds.
pub(crate) fn cell(feeds: &Feeds, network: u32) -> Cell {
    let address = network << 8;
    let whole = |feed: &Arc<Lines>| (0..=24).any(|length| feed.has_v4(address, length));
    if let Some(index) = feeds.iter().position(whole) {
        return Cell::All(number(index));
    }
    let mut hosts = Hosts::default();
    for (index, feed) in feeds.iter().enumerate() {
        for (start, length) in feed.in_v4(address, 24) {
            let count = 1_u32 << 32_u8.saturating_sub(length);
            for host in (start & 0xff)..(start & 0xff) + count {
                let word = usize::try_from(host / 32).unwrap_or(0);
                if let Some(word) = hosts.bits.get_mut(word) {
                    *word |= 1 << (host % 32);
                }
            }
            let number = u32::from(number(index));
            hosts.feed = if hosts.feed == 0 || hosts.feed == number {
                number
            } else {
                SEVERAL.into()
            };
        }
    }
    if hosts.feed == 0 {
        Cell::All(cell::NOTHING)
    } else {
        Cell::Some(hosts)
    }
}

/// What an IPv6 /16 holds.
pub(crate) fn root(feeds: &Feeds, index: u32) -> Prefix {
    let address = u128::from(index) << 112;
    let feed = feeds.iter().position(|feed| feed.has_v6(address, 16));
    let classes = below(feeds, address, ROOT, |class| class.min(DIRECTORY));
    Prefix {
        feed: feed.map_or(0, number).into(),
        below: classes,
    }
}

/// What a longer IPv6 prefix holds; nothing when it holds nothing.
pub(crate) fn prefix(feeds: &Feeds, address: u128, class: u32) -> Option<Prefix> {
    let lengths = length_of(class) - 3..=length_of(class);
    let feed = feeds
        .iter()
        .position(|feed| lengths.clone().any(|length| feed.has_v6(address, length)));
    let classes = if class == DIRECTORY {
        below(feeds, address, DIRECTORY, |class| class)
    } else {
        0
    };
    let prefix = Prefix {
        feed: feed.map_or(0, number).into(),
        below: classes,
    };
    (prefix != Prefix::default()).then_some(prefix)
}

/// The classes of lines below a prefix, each as `seen` says.
fn below(feeds: &Feeds, address: u128, class: u32, seen: impl Fn(u32) -> u32) -> u32 {
    let mut mask = 0;
    for (_, length) in feeds.iter().flat_map(|feed| feed.in_v6(address, length_of(class))) {
        let longer = class_of(length);
        if longer > class {
            mask |= 1 << (seen(longer) - 1);
        }
    }
    mask
}

#[cfg(test)]
mod tests;
