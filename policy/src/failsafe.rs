//! What a node needs to stay reachable: ports that no policy of nodes closes (`builtin/failsafe`).

use std::{collections::BTreeSet, fmt, str::FromStr};

use bulkhead_verdict::port::protocol;

use crate::{
    model::{Direction, Protocol},
    program::span,
};

/// Ports of a protocol that stay open in one direction, whoever is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Opening {
    /// Protocol.
    pub protocol: Protocol,
    /// First destination port.
    pub first: u16,
    /// Last destination port.
    pub last: u16,
}

impl FromStr for Opening {
    type Err = String;

    /// `tcp:22`, `udp:67-68`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is neither PROTOCOL:PORT nor PROTOCOL:FIRST-LAST, as in tcp:22 or udp:67-68");
        let (protocol, ports) = text.trim().split_once(':').ok_or_else(wrong)?;
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(wrong()),
        };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let number = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0).ok_or_else(wrong);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        Ok(Self { protocol, first, last })
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "{protocol}:{}", self.first)?;
        if self.last == self.first {
            Ok(())
        } else {
            write!(f, "-{}", self.last)
        }
    }
}

/// The set of a cluster. The default is what a Kubernetes node needs to be mended from afar: SSH, API server, kubelet, etcd, DHCP,
/// DNS, and the controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failsafe {
    /// What nodes receive.
    pub inbound: BTreeSet<Opening>,
    /// What nodes send.
    pub outbound: BTreeSet<Opening>,
    /// Whoever emptied it has said that this is meant.
    pub risk_accepted: bool,
}

/// The default for what nodes receive, as the controller's option takes it.
pub const INBOUND: &str = "tcp:22,udp:68,tcp:2379-2380,tcp:6443,tcp:10250";
/// The default for what they send. The controller's own ports are among it: 4433 for nodes, 9443 for the API server.
pub const OUTBOUND: &str = "tcp:53,udp:53,udp:67,tcp:443,tcp:2379-2380,tcp:4433,tcp:6443,tcp:9443";

impl Default for Failsafe {
    fn default() -> Self {
        let read = |text: &str| text.split(',').filter_map(|each| each.parse().ok()).collect();
        Self {
            inbound: read(INBOUND),
            outbound: read(OUTBOUND),
            risk_accepted: false,
        }
    }
}

impl Failsafe {
    /// What stays open in a direction.
    pub const fn openings(&self, direction: Direction) -> &BTreeSet<Opening> {
        match direction {
            Direction::Egress => &self.outbound,
            Direction::Ingress => &self.inbound,
        }
    }

    /// True when a connection of this IP protocol to this port stays open.
    pub fn keeps(&self, direction: Direction, number: u8, port: u16) -> bool {
        self.openings(direction).iter().any(|opening| {
            let same = match opening.protocol {
                Protocol::Tcp => number == protocol::TCP,
                Protocol::Udp => number == protocol::UDP,
                Protocol::Sctp => number == protocol::SCTP,
            };
            same && (opening.first..=opening.last).contains(&port)
        })
    }

    /// Directions in which nothing stays open, and nobody has said that this is meant.
    pub fn emptied(&self) -> impl Iterator<Item = Direction> {
        let directions = [Direction::Ingress, Direction::Egress];
        directions
            .into_iter()
            .filter(|direction| !self.risk_accepted && self.openings(*direction).is_empty())
    }

    /// What stays open, as positions.
    pub(crate) fn spans(&self, direction: Direction) -> Vec<(u32, u32)> {
        let openings = self.openings(direction).iter();
        openings
            .map(|opening| span(opening.protocol, opening.first, opening.last))
            .collect()
    }

    /// An opening that lies in an interval of positions, as far as that goes.
    pub(crate) fn overlapping(&self, direction: Direction, low: u32, high: u32) -> Option<Opening> {
        let overlaps = |opening: &&Opening| {
            let (first, last) = span(opening.protocol, opening.first, opening.last);
            first <= high && low <= last
        };
        self.openings(direction).iter().find(overlaps).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_are_read_and_written() {
        for text in ["tcp:22", "udp:67-68", "sctp:1-65535"] {
            assert_eq!(text.parse::<Opening>().unwrap().to_string(), text);
        }
        for text in ["22", "tcp", "tcp:0", "tcp:2-1", "icmp:8", "tcp:70000", ""] {
            assert!(text.parse::<Opening>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_is_whole() {
        let default = Failsafe::default();
        assert_eq!(default.inbound.len(), INBOUND.split(',').count());
        assert_eq!(default.outbound.len(), OUTBOUND.split(',').count());
        assert_eq!(default.emptied().count(), 0);
        assert!(default.keeps(Direction::Ingress, 6, 22) && !default.keeps(Direction::Ingress, 17, 22));
        assert!(default.keeps(Direction::Egress, 6, 2380) && !default.keeps(Direction::Egress, 6, 2381));
    }

    #[test]
    fn what_is_emptied_is_said_unless_it_is_meant() {
        let mut none = Failsafe {
            inbound: BTreeSet::new(),
            ..Failsafe::default()
        };
        assert_eq!(none.emptied().collect::<Vec<_>>(), [Direction::Ingress]);
        none.risk_accepted = true;
        assert_eq!(none.emptied().count(), 0);
    }
}
