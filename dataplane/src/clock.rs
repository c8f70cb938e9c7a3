//! The kernel's clocks, and what they mean on the wall.

use prost_types::Timestamp;
use rustix::time::{ClockId, clock_gettime};

const SECOND: u64 = 1_000_000_000;

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(SECOND)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// `CLOCK_BOOTTIME`, nanoseconds: the time of events.
pub(crate) fn boot() -> u64 {
    nanoseconds(ClockId::Boottime)
}

/// Coarse `CLOCK_MONOTONIC`, nanoseconds: the time of idle flows and adoption windows.
pub(crate) fn monotonic() -> u64 {
    nanoseconds(ClockId::MonotonicCoarse)
}

/// Nanoseconds since 1970.
pub(crate) fn wall() -> u64 {
    nanoseconds(ClockId::Realtime)
}

/// How to tell the wall time of a moment: read both clocks once, then convert many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wall {
    boot: u64,
    monotonic: u64,
    now: u64,
}

impl Wall {
    /// Now.
    pub(crate) fn now() -> Self {
        Self {
            boot: boot(),
            monotonic: monotonic(),
            now: wall(),
        }
    }

    /// Wall time of a `CLOCK_BOOTTIME` moment.
    pub(crate) fn of_boot(self, time: u64) -> u64 {
        shift(self.now, self.boot, time)
    }

    /// `CLOCK_BOOTTIME` of a moment on the wall: not later than that moment, as the wall clock was read last.
    pub(crate) fn to_boot(self, time: u64) -> u64 {
        shift(self.boot, self.now, time)
    }

    /// Wall time of a `CLOCK_MONOTONIC` moment.
    pub(crate) fn of_monotonic(self, time: u64) -> u64 {
        shift(self.now, self.monotonic, time)
    }
}

/// `other` is what another clock says at `here`; what it says at `there`.
fn shift(other: u64, here: u64, there: u64) -> u64 {
    match here.checked_sub(there) {
        Some(past) => other.saturating_sub(past),
        None => other.saturating_add(there.saturating_sub(here)),
    }
}

/// Wall nanoseconds on the wire; 0 is "not known".
pub(crate) fn timestamp(wall: u64) -> Option<Timestamp> {
    (wall != 0).then(|| Timestamp {
        seconds: i64::try_from(wall / SECOND).unwrap_or(i64::MAX),
        nanos: i32::try_from(wall % SECOND).unwrap_or(0),
    })
}

/// Wall nanoseconds from the wire.
pub(crate) fn from_timestamp(time: Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds
        .saturating_mul(SECOND)
        .saturating_add(u64::try_from(time.nanos).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_map_onto_the_wall() {
        let wall = Wall {
            boot: 500,
            monotonic: 300,
            now: 10_000,
        };
        assert_eq!(wall.of_boot(400), 9_900);
        assert_eq!(wall.of_boot(501), 10_001);
        assert_eq!(wall.of_monotonic(290), 9_990);
        assert_eq!(wall.to_boot(10_001), 501);
        assert_eq!(wall.to_boot(9_000), 0);
    }

    #[test]
    fn timestamps_come_back() {
        let time = 1_700_000_000 * SECOND + 42;
        assert_eq!(timestamp(time).map(from_timestamp), Some(time));
        assert_eq!(timestamp(0), None);
    }
}
