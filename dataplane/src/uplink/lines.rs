//! The text of a feed: addresses and CIDRs, one a line. A line that is wrong is told, and costs only itself.

use std::{fmt, net::IpAddr};

use bulkhead_verdict::uplink::layout::{SHORTEST_V4, SHORTEST_V6};

/// Wrong lines that are kept to be told.
const TOLD: usize = 5;
/// Bytes of a wrong line that are told.
const TOLD_BYTES: usize = 60;

/// What a feed names: sorted, each once, none with bits behind its length.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lines {
    /// IPv4: `address << 8 | length`.
    v4: Vec<u64>,
    /// IPv6: address and length.
    v6: Vec<(u128, u8)>,
    /// Lengths that occur among the IPv4 ones: bit `length`.
    v4_lengths: u64,
    /// Lengths that occur among the IPv6 ones: bit `length`, 128 left out.
    v6_lengths: u128,
}

/// A wrong line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wrong {
    /// From 1.
    pub(crate) line: usize,
    /// What it says, cut.
    pub(crate) text: String,
    /// What is wrong.
    pub(crate) why: &'static str,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {:?} {}", self.line, self.text, self.why)
    }
}

/// What came of reading a text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    pub(crate) lines: Lines,
    /// How many lines are wrong.
    pub(crate) wrong: usize,
    /// The first of them.
    pub(crate) told: Vec<Wrong>,
}

/// Reads a feed: `#` and `;` begin comments, of a line the first word counts.
pub(crate) fn read(text: &str) -> Reading {
    let mut reading = Reading::default();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        let content = line.split(['#', ';']).next().unwrap_or_default();
        let Some(word) = content
            .split([' ', '\t', ',', '\r', '\u{feff}'])
            .find(|word| !word.is_empty())
        else {
            continue;
        };
        match prefix(word) {
            Ok((IpAddr::V4(address), length)) => v4.push(u64::from(address.to_bits()) << 8 | u64::from(length)),
            Ok((IpAddr::V6(address), length)) => v6.push((address.to_bits(), length)),
            Err(why) => {
                reading.wrong += 1;
                if reading.told.len() < TOLD {
                    let text = line.trim().chars().take(TOLD_BYTES).collect();
                    reading.told.push(Wrong {
                        line: number + 1,
                        text,
                        why,
                    });
                }
            }
        }
    }
    reading.lines = Lines::of(v4, v6);
    reading
}

/// An address or CIDR of a feed, cut to its length.
fn prefix(word: &str) -> Result<(IpAddr, u8), &'static str> {
    let (address, length) = prefix_of_any_length(word)?;
    if length < if address.is_ipv4() { SHORTEST_V4 } else { SHORTEST_V6 } {
        return Err("is too wide to be meant: IPv4 from /8 on, IPv6 from /16 on");
    }
    Ok((address, length))
}

/// An address or CIDR, cut to its length.
pub(super) fn prefix_of_any_length(word: &str) -> Result<(IpAddr, u8), &'static str> {
    let (address, length) = match word.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (word, None),
    };
    let address: IpAddr = address.parse().map_err(|_| "is no address and no CIDR")?;
    let address = address.to_canonical();
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let length: u8 = match length {
        None => whole,
        Some(length) => length.parse().map_err(|_| "has a prefix length that is no number")?,
    };
    if length > whole {
        return Err("has a prefix length that its family does not have");
    }
    Ok((cut(address, length), length))
}

fn cut(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & mask_v4(length)).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & mask_v6(length)).into()),
    }
}

/// The first bits of an IPv4 address.
pub(super) fn mask_v4(length: u8) -> u32 {
    u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0)
}

/// The first bits of an IPv6 address.
pub(super) fn mask_v6(length: u8) -> u128 {
    u128::MAX
        .checked_shl(128_u32.saturating_sub(length.into()))
        .unwrap_or(0)
}

/// A line of either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    V4(u32, u8),
    V6(u128, u8),
}

impl Lines {
    fn of(mut v4: Vec<u64>, mut v6: Vec<(u128, u8)>) -> Self {
        v4.sort_unstable();
        v4.dedup();
        v4.shrink_to_fit();
        v6.sort_unstable();
        v6.dedup();
        v6.shrink_to_fit();
        Self {
            v4_lengths: v4.iter().fold(0, |mask, line| mask | 1 << (line & 0xff)),
            v6_lengths: v6.iter().fold(0, |mask, (_, length)| {
                mask | 1_u128.checked_shl((*length).into()).unwrap_or(0)
            }),
            v4,
            v6,
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// True for a feed that names nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every line.
    pub(super) fn all(&self) -> impl Iterator<Item = Line> {
        let v4 = self.v4.iter().map(|line| unpack(*line));
        v4.chain(self.v6.iter().map(|(address, length)| Line::V6(*address, *length)))
    }

    /// The lines that are in one of the two only.
    pub(super) fn changed(&self, other: &Self) -> Vec<Line> {
        let mut changed = Vec::new();
        differing(&self.v4, &other.v4, |line| changed.push(unpack(*line)));
        differing(&self.v6, &other.v6, |(address, length)| {
            changed.push(Line::V6(*address, *length));
        });
        changed
    }

    /// True when the feed has exactly this IPv4 prefix.
    pub(super) fn has_v4(&self, address: u32, length: u8) -> bool {
        self.v4_lengths & (1 << length) != 0
            && self
                .v4
                .binary_search(&(u64::from(address & mask_v4(length)) << 8 | u64::from(length)))
                .is_ok()
    }

    /// True when the feed has exactly this IPv6 prefix.
    pub(super) fn has_v6(&self, address: u128, length: u8) -> bool {
        let used = length == 128 || self.v6_lengths & 1_u128.checked_shl(length.into()).unwrap_or(0) != 0;
        used && self.v6.binary_search(&(address & mask_v6(length), length)).is_ok()
    }

    /// The IPv4 lines whose address is in a prefix: address and length.
    pub(super) fn in_v4(&self, address: u32, length: u8) -> impl Iterator<Item = (u32, u8)> {
        let (first, last) = (address & mask_v4(length), address | !mask_v4(length));
        let start = self.v4.partition_point(|line| *line < u64::from(first) << 8);
        let end = u64::from(last) << 8 | 0xff;
        let rest = self.v4.get(start..).unwrap_or_default();
        rest.iter()
            .take_while(move |line| **line <= end)
            .map(|line| halves(*line))
    }

    /// The IPv6 lines whose address is in a prefix.
    pub(super) fn in_v6(&self, address: u128, length: u8) -> impl Iterator<Item = (u128, u8)> {
        let (first, last) = (address & mask_v6(length), address | !mask_v6(length));
        let start = self.v6.partition_point(|line| *line < (first, 0));
        let rest = self.v6.get(start..).unwrap_or_default();
        rest.iter().copied().take_while(move |(address, _)| *address <= last)
    }

    /// The narrowest line that an address is in.
    pub(crate) fn covering(&self, address: IpAddr) -> Option<(IpAddr, u8)> {
        match address.to_canonical() {
            IpAddr::V4(v4) => (0..=32_u8)
                .rev()
                .find(|length| self.has_v4(v4.to_bits(), *length))
                .map(|length| (cut(v4.into(), length), length)),
            IpAddr::V6(v6) => (0..=128_u8)
                .rev()
                .find(|length| self.has_v6(v6.to_bits(), *length))
                .map(|length| (cut(v6.into(), length), length)),
        }
    }
}

fn halves(line: u64) -> (u32, u8) {
    (
        u32::try_from(line >> 8).unwrap_or(u32::MAX),
        u8::try_from(line & 0xff).unwrap_or(u8::MAX),
    )
}

fn unpack(line: u64) -> Line {
    let (address, length) = halves(line);
    Line::V4(address, length)
}

/// Calls `each` for what is in one of two sorted lists only.
fn differing<T: Ord>(one: &[T], two: &[T], mut each: impl FnMut(&T)) {
    let (mut one, mut two) = (one.iter().peekable(), two.iter().peekable());
    loop {
        match (one.peek(), two.peek()) {
            (None, None) => return,
            (Some(a), Some(b)) if a == b => {
                one.next();
                two.next();
            }
            (Some(a), b) if b.is_none_or(|b| a < b) => {
                each(a);
                one.next();
            }
            (_, Some(b)) => {
                each(b);
                two.next();
            }
            (Some(a), None) => {
                each(a);
                one.next();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_feed_is_read_and_its_wrong_lines_are_told() {
        let text = "; Some DROP list\n# another comment\n\n1.10.16.0/20 ; SBL256894\n 192.0.2.7\r\n2001:db8::/32 # x\n\
                    10.1.2.3/24\n::ffff:192.0.2.7\nno address\n1.2.3.4/33\n0.0.0.0/0\n1.2.3.4/x\n::/0\n1.2.3.4-1.2.3.9\n2001:db8::1,why\n";
        let reading = read(text);
        let all: Vec<Line> = reading.lines.all().collect();
        let v4 = |text: &str, length| Line::V4(text.parse::<std::net::Ipv4Addr>().unwrap().to_bits(), length);
        let v6 = |text: &str, length| Line::V6(text.parse::<std::net::Ipv6Addr>().unwrap().to_bits(), length);
        assert_eq!(
            all,
            [
                v4("1.10.16.0", 20),
                v4("10.1.2.0", 24),
                v4("192.0.2.7", 32),
                v6("2001:db8::", 32),
                v6("2001:db8::1", 128)
            ]
        );
        assert_eq!(reading.wrong, 6);
        assert_eq!(reading.told.len(), TOLD);
        assert_eq!(
            reading.told[0].to_string(),
            "line 9: \"no address\" is no address and no CIDR"
        );
        assert_eq!((reading.told[1].line, reading.told[2].line), (10, 11));
    }

    #[test]
    fn what_changed_is_found_from_both_sides() {
        let (one, two) = (
            read("1.1.1.1\n1.1.1.2\n::1:1\n").lines,
            read("1.1.1.2\n1.1.1.3\n::1:2\n").lines,
        );
        assert_eq!(one.changed(&two).len(), 4);
        assert_eq!(two.changed(&one).len(), 4);
        assert!(one.changed(&one).is_empty());
        assert_eq!(one.changed(&Lines::default()).len(), 3);
        assert_eq!(Lines::default().changed(&one).len(), 3);
    }

    #[test]
    fn the_narrowest_line_is_named() {
        let lines = read("10.0.0.0/8\n10.1.0.0/16\n2001:db8::/32\n2001:db8::1").lines;
        let covering = |text: &str| {
            lines
                .covering(text.parse().unwrap())
                .map(|(ip, length)| format!("{ip}/{length}"))
        };
        assert_eq!(covering("10.1.2.3").as_deref(), Some("10.1.0.0/16"));
        assert_eq!(covering("10.2.2.3").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(covering("11.2.2.3"), None);
        assert_eq!(covering("2001:db8::1").as_deref(), Some("2001:db8::1/128"));
        assert_eq!(covering("2001:db8::2").as_deref(), Some("2001:db8::/32"));
    }
}
