//! What the command line says about uplinks.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use bulkhead_verdict::uplink::layout::{ENTRIES, FEEDS, Limit};

use super::lines;
use crate::kernel::Mode;

/// Longest name of a feed.
const NAME_MAX: usize = 32;
/// Largest number of connections a limit may name.
const RATE_MAX: u32 = 10_000_000;
/// Most entries either hash of the feeds may have.
const ENTRIES_MAX: u32 = 1 << 24;

/// Without a feed and without a limit nothing is put on any uplink.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Uplinks (XDP; only with a feed, a limit or the guard)")]
pub(crate) struct UplinkOptions {
    /// Drop what comes from the addresses of a list: <NAME=/ABSOLUTE/PATH>, <NAME=http://…> or <NAME=https://…> (may be given
    /// several times). One address or CIDR a line; `#` and `;` begin comments. A file is followed; a URL is asked every
    /// --feed-interval with its `ETag`. A list that cannot be had, or is suddenly empty, changes nothing
    #[arg(long, value_name = "NAME=SOURCE")]
    pub(crate) threat_feed: Vec<FeedOption>,
    /// How often a URL is asked for news
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = interval)]
    pub(crate) feed_interval: Duration,
    /// Addresses no feed may take away, beside those of the cluster's pods and nodes: a CIDR, as 10.0.0.0/8 (may be given
    /// several times). Lists of "bogus" addresses name private ranges: except those that your API server and your people are in
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) feed_except: Vec<Cidr>,
    /// Certificates of the authorities that https feeds are checked against, PEM. Default: the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) feed_authorities: Option<PathBuf>,
    /// Room for IPv4 /24s of which single hosts are listed, and for IPv6 prefixes: each so many (100 bytes each when used)
    #[arg(long, value_name = "NUMBER", default_value_t = ENTRIES, value_parser = clap::value_parser!(u32).range(1..=i64::from(ENTRIES_MAX)))]
    pub(crate) feed_entries: u32,
    /// New TCP connections that one source may open, whoever it is: <100/s> or <100/s:burst=200>; /m and /h too. A source is an
    /// IPv4 address or an IPv6 /64
    #[arg(long, value_name = "RATE")]
    pub(crate) limit_source_connections: Option<Rate>,
    /// New TCP connections that all sources of one identity may open together: pods of other nodes, and CIDRs that policies
    /// name. Sources without an identity have no such limit
    #[arg(long, value_name = "RATE")]
    pub(crate) limit_identity_connections: Option<Rate>,
    /// SYNs that one destination (address and port) may be sent before sources have to show that they are who they say. A
    /// source that answers our challenge is known for ten minutes; a forged one cannot answer. Connections that are open are never touched
    #[arg(long, value_name = "RATE")]
    pub(crate) guard_syn: Option<Rate>,
    /// Devices that lead out of the node, or `auto`: those with a default route (may be given several times)
    #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_value = "auto")]
    pub(crate) uplink: Vec<String>,
    /// How the program sits on them: in the driver, in the stack, or in the driver where that can be
    #[arg(long, value_enum, default_value_t)]
    pub(crate) uplink_mode: UplinkMode,
}

/// See [`UplinkOptions::uplink_mode`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum UplinkMode {
    /// In the driver; in the stack where the driver cannot, and on veth devices with --guard-syn
    #[default]
    Auto,
    /// In the driver only
    Native,
    /// In the stack
    Generic,
}

impl UplinkMode {
    /// Modes to try, in order.
    pub(crate) const fn modes(self) -> &'static [Mode] {
        match self {
            Self::Auto => &[Mode::Native, Mode::Generic],
            Self::Native => &[Mode::Native],
            Self::Generic => &[Mode::Generic],
        }
    }
}

impl UplinkOptions {
    /// Room for entries of feeds, when there is anything to do at all.
    pub(crate) fn entries(&self) -> Option<u32> {
        let limits = [
            self.limit_source_connections,
            self.limit_identity_connections,
            self.guard_syn,
        ];
        if self.threat_feed.is_empty() && limits.iter().all(Option::is_none) {
            return None;
        }
        Some(if self.threat_feed.is_empty() {
            1
        } else {
            self.feed_entries
        })
    }

    /// Refuses two feeds of one name, and more than there are numbers for.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.threat_feed.len() > usize::from(FEEDS) {
            anyhow::bail!(
                "--threat-feed: {} feeds, and there can be {FEEDS}",
                self.threat_feed.len()
            );
        }
        for (index, feed) in self.threat_feed.iter().enumerate() {
            if self.threat_feed.iter().take(index).any(|other| other.name == feed.name) {
                anyhow::bail!(
                    "--threat-feed: two feeds are called {}; counts and logs could not tell them apart",
                    feed.name
                );
            }
        }
        Ok(())
    }
}

/// A feed and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct FeedOption {
    /// What logs and metrics call it.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) source: Source,
}

/// Where a feed is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// A file that somebody else replaces.
    File(PathBuf),
    /// Asked over HTTP.
    Url(hyper::Uri),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => write!(f, "{url}"),
        }
    }
}

impl FromStr for FeedOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, source) = text
            .split_once('=')
            .ok_or("not NAME=SOURCE, as in drop=/etc/bulkhead/feeds/drop.txt or drop=https://HOST/drop.txt")?;
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
            return Err(format!("{name:?}: a feed's name is 1 to {NAME_MAX} of a-z, 0-9 and -"));
        }
        let source = if source.starts_with('/') {
            Source::File(source.into())
        } else {
            let url: hyper::Uri = source.parse().map_err(|error| format!("{source}: {error}"))?;
            match (url.scheme_str(), url.host()) {
                (Some("http" | "https"), Some(_)) => Source::Url(url),
                _ => return Err(format!("{source}: neither /ABSOLUTE/PATH nor http://… or https://…")),
            }
        };
        Ok(Self {
            name: name.to_owned(),
            source,
        })
    }
}

/// A prefix of any length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cidr(pub(crate) IpAddr, pub(crate) u8);

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        lines::prefix_of_any_length(text)
            .map(|(address, length)| Self(address, length))
            .map_err(|why| format!("{text} {why}"))
    }
}

/// How often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rate {
    count: u32,
    seconds: u32,
    burst: u32,
}

impl Rate {
    /// The same for the kernel.
    pub(crate) const fn limit(self) -> Limit {
        Limit::of(self.count, self.seconds, self.burst)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text}: not a rate, as in 100/s, 600/m or 100/s:burst=200");
        let (rate, burst) = match text.split_once(':') {
            Some((rate, burst)) => (rate, Some(burst.strip_prefix("burst=").ok_or_else(wrong)?)),
            None => (text, None),
        };
        let (count, unit) = rate.split_once('/').ok_or_else(wrong)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let number = |text: &str| {
            text.parse::<u32>()
                .ok()
                .filter(|number| (1..=RATE_MAX).contains(number))
        };
        let count = number(count).ok_or_else(wrong)?;
        let burst = match burst {
            Some(burst) => number(burst).ok_or_else(wrong)?,
            None => count,
        };
        Ok(Self { count, seconds, burst })
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = crate::options::duration(text)?;
    if interval.is_zero() {
        return Err("0 would ask without a pause".to_owned());
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_unit_and_may_have_a_burst() {
        let rate = |text: &str| text.parse::<Rate>();
        assert_eq!(
            rate("100/s"),
            Ok(Rate {
                count: 100,
                seconds: 1,
                burst: 100
            })
        );
        assert_eq!(
            rate("6/m:burst=2"),
            Ok(Rate {
                count: 6,
                seconds: 60,
                burst: 2
            })
        );
        assert_eq!(
            rate("6/m:burst=2").unwrap().limit(),
            Limit {
                interval: 10_000_000_000,
                tolerance: 10_000_000_000
            }
        );
        for text in [
            "",
            "100",
            "0/s",
            "100/d",
            "100/s:200",
            "100/s:burst=0",
            "-1/s",
            "99999999/s",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_feed_has_a_name_and_a_place() {
        let feed = |text: &str| text.parse::<FeedOption>();
        assert_eq!(
            feed("drop=/etc/drop.txt").unwrap().source,
            Source::File("/etc/drop.txt".into())
        );
        assert_eq!(
            feed("drop=https://lists.example/a?b=c").unwrap().source.to_string(),
            "https://lists.example/a?b=c"
        );
        for text in [
            "/etc/drop.txt",
            "=x",
            "Drop=/x",
            "a b=/x",
            "drop=x",
            "drop=ftp://h/x",
            "../x=/y",
        ] {
            assert!(feed(text).is_err(), "{text}");
        }
    }
}
