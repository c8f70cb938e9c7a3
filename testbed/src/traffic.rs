//! What peers are asked and what they report: one JSON object per line of their input and output.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A new connection to try.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Destination.
    pub to: IpAddr,
    /// Port; ignored for ICMP.
    pub port: u16,
    /// `TCP`, `UDP` or `ICMP`.
    pub protocol: String,
}

/// What became of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The other end answered.
    Open,
    /// The other end's kernel answered that nobody listens: the packet arrived and so did the answer.
    Refused,
    /// No answer within the time: a drop, somewhere.
    Timeout,
    /// The network said that there is no way.
    Unreachable,
}

impl Outcome {
    /// True when the packet reached the other end and its answer came back.
    pub fn reached(self) -> bool {
        matches!(self, Self::Open | Self::Refused)
    }
}

/// What the load generator reports at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Connections started.
    pub attempts: u64,
    /// Connections that got their answer.
    pub ok: u64,
    /// Connections that did not.
    pub failed: u64,
}

/// What a newcomer reports at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct KnockReport {
    /// The other end answered at last.
    pub open: bool,
    /// Attempts that the other end's kernel refused: nobody listened yet, and no rule stood in the way.
    pub refused: u64,
    /// Attempts that nobody answered: a packet was dropped.
    pub timeouts: u64,
    /// Attempts for which the network had no way.
    pub unreachable: u64,
}

/// What the datagram stream reports at its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StreamReport {
    /// Datagrams sent, numbered from 0.
    pub sent: u64,
    /// Echoes that came back.
    pub echoed: u64,
    /// Numbers that are missing.
    pub missing: u64,
    /// Milliseconds of the longest time without an echo.
    pub longest_silence_ms: u64,
}

/// What a held connection says when it changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "event")]
pub enum HoldEvent {
    /// The first echo came back, from this local port.
    Alive {
        /// Local port.
        port: u16,
    },
    /// No echo for a while.
    Stalled {
        /// Echoes so far.
        echoes: u64,
    },
    /// Echoes come back again.
    Resumed,
    /// The other end closed or reset.
    Closed {
        /// Echoes so far.
        echoes: u64,
    },
}

/// What the sniffer and the spoofer report at their end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CountReport {
    /// Frames seen or sent.
    pub frames: u64,
}
