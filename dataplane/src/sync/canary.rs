//! Whether packets go past our programs: what pods' devices carried, beside what was judged.
//!
//! A CNI that hands packets to a pod behind its device's back (`bpf_redirect_peer`), or takes them off the device before our
//! program runs, leaves no trace in our maps. The devices' own counters have it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use bulkhead_verdict::maps::Hook;

use super::{Sync, SyncError};
use crate::{
    endpoints::Traffic,
    kernel::{Leads, Standing},
};

/// A device counts as gone past for so many looks after the last packet that was.
const REMEMBERED: u32 = 12;
/// Packets that may be counted by a device and not judged yet, per CPU, where the kernel does not say (`netdev_max_backlog`).
const BACKLOG: u64 = 1_000;
/// Packets that were judged nowhere before it is said: devices count some that no program sees (a namespace that goes).
const TOLERATED: i64 = 16;

/// Which way packets went.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Way {
    /// To the pod, without having been sent by the host's end of its device.
    ToPod,
    /// Off the host's end before our program ran.
    FromPod,
}

impl Way {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ToPod => "to-pod",
            Self::FromPod => "from-pod",
        }
    }

    fn why(self, device: &str) -> String {
        match self {
            Self::ToPod => format!(
                "packets reach the pod past device {device} and are not judged: another program delivers them straight to the pod's end \
                 (bpf_redirect_peer, as CNIs with an eBPF datapath do); turn that off, for Cilium bpf.hostLegacyRouting"
            ),
            Self::FromPod => format!(
                "packets of the pod leave device {device} before our program runs and are not judged: another program (XDP, or one \
                 attached before ours) takes them; see `bpftool net`"
            ),
        }
    }
}

/// What was seen last, and what has gone past.
#[derive(Debug)]
pub(super) struct Canary {
    interval: Duration,
    due: Instant,
    last: Option<Look>,
    /// Most that is known to have gone past to each device's pod, since it was first seen.
    to_pod: BTreeMap<u32, i64>,
    /// Packets that devices counted and no program judged, summed over the looks.
    unjudged: i64,
    /// The largest of those that was said.
    said: i64,
    /// Devices that packets went past, which way, and when it was seen last.
    past: BTreeMap<(u32, Way), Instant>,
}

/// One look.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Look {
    judged: u64,
    devices: BTreeMap<u32, Traffic>,
}

impl Look {
    fn sent_by_pods(&self) -> u64 {
        self.devices
            .values()
            .fold(0, |sum, traffic| sum.wrapping_add(traffic.from_pod))
    }
}

impl Canary {
    /// Looks at an interval; zero = never.
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            due: Instant::now() + interval,
            last: None,
            to_pod: BTreeMap::new(),
            unjudged: 0,
            said: 0,
            past: BTreeMap::new(),
        }
    }

    /// When the next look is due; `None` = never.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.interval.is_zero()).then_some(self.due)
    }

    /// Why a device's pod is not all judged; `None` = it is, as far as is seen.
    pub(super) fn past(&self, ifindex: u32, device: &str) -> Option<String> {
        [Way::ToPod, Way::FromPod]
            .into_iter()
            .find(|way| self.past.contains_key(&(ifindex, *way)))
            .map(|way| way.why(device))
    }

    /// Packets that went past to pods since the look before, by device.
    fn past_to_pods(&mut self, devices: &BTreeMap<u32, Traffic>) -> BTreeMap<u32, u64> {
        self.to_pod.retain(|ifindex, _| devices.contains_key(ifindex));
        let mut more = BTreeMap::new();
        for (ifindex, traffic) in devices {
            let (least, most) = traffic.past;
            // What was so when the device was first seen was before us.
            let known = self.to_pod.entry(*ifindex).or_insert(most);
            if let Ok(count @ 1..) = u64::try_from(least.saturating_sub(*known)) {
                *known = least;
                more.insert(*ifindex, count);
            }
        }
        more
    }

    /// Packets of pods that no program judged, since that was said last; 0 unless they are more than can be under way.
    fn unjudged_since(&mut self, now: &Look, quiet: bool, under_way: u64) -> u64 {
        let Some(before) = self.last.replace(now.clone()) else {
            return 0;
        };
        // What devices that came or went carried meanwhile is not known.
        if !before.devices.keys().eq(now.devices.keys()) {
            return 0;
        }
        let came = now.sent_by_pods().wrapping_sub(before.sent_by_pods());
        let judged = now.judged.wrapping_sub(before.judged);
        self.unjudged = self.unjudged.saturating_add(came.wrapping_sub(judged).cast_signed());
        let waiting = if quiet {
            0
        } else {
            under_way.try_into().unwrap_or(i64::MAX)
        };
        let more = self.unjudged.saturating_sub(waiting).saturating_sub(self.said);
        if more <= TOLERATED {
            return 0;
        }
        self.said = self.said.saturating_add(more);
        more.unsigned_abs()
    }
}

impl Sync {
    /// Looks, if it is time.
    pub(super) fn watch_canary(&mut self) {
        let now = Instant::now();
        if self.canary.due().is_none_or(|due| due > now) {
            return;
        }
        self.canary.due = now + self.canary.interval;
        // During a bypass nothing is to be judged.
        let result = if self.bypass.is_some() || !self.planned {
            self.canary.last = None;
            Ok(())
        } else {
            self.look_past(now)
        };
        if let Err(error) = result {
            tracing::warn!("comparing what pods' devices carried with what was judged: {error}");
        }
    }

    fn look_past(&mut self, now: Instant) -> Result<(), SyncError> {
        let (look, quiet) = self.count_traffic()?;
        let before: Vec<(u32, Way)> = self.canary.past.keys().copied().collect();
        for (ifindex, packets) in self.canary.past_to_pods(&look.devices) {
            self.shared.metrics.went_past(Way::ToPod, packets);
            self.canary.past.insert((ifindex, Way::ToPod), now);
        }
        // What the node's own programs judge is counted with what pods' programs do, and would hide what those do not.
        let packets = if self.ground.attached_out()?.is_empty() {
            self.canary.unjudged_since(&look, quiet, under_way())
        } else {
            self.canary.last = None;
            0
        };
        if packets > 0 {
            let devices = self.suspects(&look)?;
            if !devices.is_empty() {
                self.shared.metrics.went_past(Way::FromPod, packets);
            }
            for ifindex in devices {
                self.canary.past.insert((ifindex, Way::FromPod), now);
            }
        }
        let remembered = self.canary.interval.saturating_mul(REMEMBERED);
        self.canary
            .past
            .retain(|(ifindex, _), seen| look.devices.contains_key(ifindex) && now.duration_since(*seen) < remembered);
        let after: Vec<(u32, Way)> = self.canary.past.keys().copied().collect();
        if before != after {
            self.say_past(&before, &after);
            self.publish();
        }
        Ok(())
    }

    /// What has been judged and carried so far, and whether nothing was under way meanwhile.
    fn count_traffic(&mut self) -> Result<(Look, bool), SyncError> {
        let before = self.ground.judged(Hook::FromPod)?;
        let mut devices = BTreeMap::new();
        for ifindex in &self.attached {
            if let Some(traffic) = self.endpoints.traffic(*ifindex)? {
                devices.insert(*ifindex, traffic);
            }
        }
        let judged = self.ground.judged(Hook::FromPod)?;
        Ok((Look { judged, devices }, before == judged))
    }

    /// Devices from which something takes packets: those where that can be seen, else all. None where the kernel merges
    /// packets before programs run (generic receive offload), so that there are fewer to judge.
    fn suspects(&mut self, look: &Look) -> Result<BTreeSet<u32>, SyncError> {
        for (_, device) in self.endpoints.devices() {
            if look.devices.contains_key(&device.ifindex) && self.endpoints.merges(&device.name)? {
                tracing::debug!(
                    device = device.name,
                    "merges packets it receives, so they cannot be compared with those judged"
                );
                return Ok(BTreeSet::new());
            }
        }
        let mut seen = BTreeSet::new();
        for (ifindex, traffic) in &look.devices {
            let standing = self.ground.standing(*ifindex, Leads::In)?;
            let before_us = matches!(standing, Standing::Missing { .. })
                || matches!(standing, Standing::There { ahead } if !ahead.is_empty());
            if traffic.xdp || before_us {
                seen.insert(*ifindex);
            }
        }
        Ok(if seen.is_empty() {
            look.devices.keys().copied().collect()
        } else {
            seen
        })
    }

    fn say_past(&self, before: &[(u32, Way)], after: &[(u32, Way)]) {
        for (ifindex, way) in after.iter().filter(|past| !before.contains(past)) {
            let device = self.endpoints.devices().find(|(_, device)| device.ifindex == *ifindex);
            if let Some((pod, device)) = device {
                tracing::error!(
                    pod = %pod,
                    "NOT ENFORCED: {}",
                    way.why(&device.name)
                );
            }
        }
        for (ifindex, way) in before.iter().filter(|past| !after.contains(past)) {
            tracing::info!(
                ifindex,
                way = way.name(),
                "for a while no packet has gone past our programs"
            );
        }
    }
}

/// Packets that may wait for their program while counters are read.
fn under_way() -> u64 {
    let backlog = fs::read_to_string("/proc/sys/net/core/netdev_max_backlog")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(BACKLOG);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    backlog.saturating_mul(u64::try_from(cpus).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(from_pod: u64, past: (i64, i64)) -> Traffic {
        Traffic {
            from_pod,
            past,
            xdp: false,
        }
    }

    fn look(judged: u64, devices: &[(u32, Traffic)]) -> Look {
        Look {
            judged,
            devices: devices.iter().copied().collect(),
        }
    }

    #[test]
    fn what_passes_while_it_is_looked_is_nothing_past() {
        let mut canary = Canary::new(Duration::ZERO);
        let mut past = |least, most| canary.past_to_pods(&BTreeMap::from([(7, traffic(0, (least, most)))]));
        assert_eq!(past(-50, 3), BTreeMap::new(), "what was before us does not count");
        assert_eq!(past(3, 3), BTreeMap::new());
        assert_eq!(past(-20, 9), BTreeMap::new());
        assert_eq!(past(5, 8), BTreeMap::from([(7, 2)]));
        assert_eq!(past(5, 5), BTreeMap::new(), "it is counted once");
        assert_eq!(past(6, 6), BTreeMap::from([(7, 1)]));
    }

    #[test]
    fn a_device_that_comes_again_begins_anew() {
        let mut canary = Canary::new(Duration::ZERO);
        let pair = |past| BTreeMap::from([(7, traffic(0, (past, past)))]);
        assert_eq!(canary.past_to_pods(&pair(0)), BTreeMap::new());
        assert_eq!(canary.past_to_pods(&BTreeMap::new()), BTreeMap::new());
        assert_eq!(canary.past_to_pods(&pair(100)), BTreeMap::new());
    }

    #[test]
    fn packets_under_way_are_not_lost_ones() {
        let mut canary = Canary::new(Duration::ZERO);
        let mut more =
            |judged, came, quiet| canary.unjudged_since(&look(judged, &[(7, traffic(came, (0, 0)))]), quiet, 1_000);
        assert_eq!(more(0, 500, true), 0, "what was before us does not count");
        assert_eq!(more(10_000, 10_900, false), 0, "400 may be under way");
        assert_eq!(more(20_400, 20_900, true), 0, "they were");
        assert_eq!(more(20_500, 21_100, true), 100);
        assert_eq!(more(20_600, 21_200, true), 0, "it is said once");
        assert_eq!(more(20_600, 23_200, false), 1_000, "as many are certain");
        assert_eq!(more(20_600, 23_200, true), 1_000);
    }

    #[test]
    fn what_unknown_devices_carried_is_not_guessed() {
        let mut canary = Canary::new(Duration::ZERO);
        let one = [(7, traffic(0, (0, 0)))];
        let two = [(7, traffic(5_000, (0, 0))), (8, traffic(9_000, (0, 0)))];
        for devices in [&one[..], &two, &one] {
            assert_eq!(canary.unjudged_since(&look(0, devices), true, 0), 0);
        }
    }
}
