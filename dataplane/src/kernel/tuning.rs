//! What of the flow tables can be chosen: time-outs, and how much one endpoint may open. Constants of the programs once they are loaded.

use aya::EbpfLoader;
use bulkhead_verdict::{
    flow::idle::{self, Class},
    quota,
};

/// Numbers the programs are loaded with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// Idle time-out of open TCP connections, nanoseconds.
    pub tcp: u64,
    /// Of UDP and SCTP flows.
    pub datagram: u64,
    /// Of flows of protocols without a time-out of their own.
    pub other: u64,
    /// Time in which an endpoint may open one more flow in the long run, nanoseconds; 0 = as many as it likes.
    pub opening_interval: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            tcp: idle::TCP,
            datagram: idle::DATAGRAM,
            other: idle::OTHER,
            opening_interval: quota::INTERVAL,
        }
    }
}

impl Tuning {
    /// The time-out of a class, nanoseconds.
    pub(crate) const fn idle(&self, class: Class) -> u64 {
        match class {
            Class::Tcp => self.tcp,
            Class::Datagram => self.datagram,
            Class::Other => self.other,
        }
    }

    /// Sets the programs' constants.
    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("BK_IDLE_TCP", &self.tcp, true)
            .override_global("BK_IDLE_DATAGRAM", &self.datagram, true)
            .override_global("BK_IDLE_OTHER", &self.other, true)
            .override_global("BK_OPENING", &self.opening_interval, true);
    }
}
