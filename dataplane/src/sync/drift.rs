//! Drift: the kernel's maps and programs are compared with what this agent put there, a slice at a time, and put right.
//!
//! The sync thread does it, between two inputs. It is the only writer, so what it finds is nobody's half-done work.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bulkhead_policy::plan::{MapKind, MapOp};

use super::{Sync, SyncError, apply::adoption_end};
use crate::kernel::{Leads, Place, Standing};

/// Differences that are written down one by one in a slice; the rest is counted.
const SAID_MAX: usize = 20;

/// How often, and how much at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two slices; zero = nothing is compared.
    pub(crate) interval: Duration,
    /// Elements in a slice.
    pub(crate) entries: usize,
}

impl Pace {
    /// Nothing is compared.
    pub(crate) const OFF: Self = Self {
        interval: Duration::ZERO,
        entries: 0,
    };
}

/// What a round looks at, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Is in the kernel what should be?
    Wanted(usize),
    /// Should be there what is in the kernel?
    Found(usize),
    Epochs,
    Names,
    Leases,
    Devices,
    Verdicts,
}

impl Stage {
    const FIRST: Self = Self::Wanted(0);

    /// `None` = the round is over.
    fn next(self) -> Option<Self> {
        let last = MapKind::ALL.len().saturating_sub(1);
        Some(match self {
            Self::Wanted(map) if map < last => Self::Wanted(map.saturating_add(1)),
            Self::Wanted(_) => Self::Found(0),
            Self::Found(map) if map < last => Self::Found(map.saturating_add(1)),
            Self::Found(_) => Self::Epochs,
            Self::Epochs => Self::Names,
            Self::Names => Self::Leases,
            Self::Leases => Self::Devices,
            Self::Devices => Self::Verdicts,
            Self::Verdicts => return None,
        })
    }
}

/// How far the comparison has come.
#[derive(Debug)]
pub(super) struct Drift {
    pace: Pace,
    /// When the next slice is due.
    due: Instant,
    stage: Stage,
    /// The last element that was looked for.
    after: Option<MapOp>,
    /// How far the kernel's map was read.
    place: Place,
    /// Number of the next sample of verdicts.
    pub(super) sample: u64,
    /// Devices that were seen with our programs.
    judged: BTreeSet<u32>,
    /// Devices whose foreign programs were reported, with these.
    ahead: BTreeSet<(u32, Vec<u32>)>,
}

impl Drift {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            due: Instant::now() + pace.interval,
            stage: Stage::FIRST,
            after: None,
            place: Place::default(),
            sample: 0,
            judged: BTreeSet::new(),
            ahead: BTreeSet::new(),
        }
    }

    /// When the next slice is due; `None` = never.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.pace.interval.is_zero()).then_some(self.due)
    }

    fn go_on(&mut self) -> bool {
        self.after = None;
        self.place = Place::default();
        let next = self.stage.next();
        self.stage = next.unwrap_or(Stage::FIRST);
        next.is_some()
    }
}

/// An element that is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Difference {
    /// `None` = nothing should be there.
    wanted: Option<MapOp>,
    /// `None` = nothing is there.
    found: Option<MapOp>,
}

impl Difference {
    /// `None` when both are the same.
    fn between(wanted: Option<MapOp>, found: Option<MapOp>) -> Option<Self> {
        (wanted != found).then_some(Self { wanted, found })
    }

    fn map(&self) -> &'static str {
        let element = self.wanted.as_ref().or(self.found.as_ref());
        element.map_or("", MapOp::map)
    }

    /// For metrics.
    fn kind(&self) -> &'static str {
        match (&self.wanted, &self.found) {
            (Some(_), Some(_)) => "wrong",
            (Some(_), None) => "missing",
            (None, _) => "surplus",
        }
    }

    /// The write that puts it right.
    fn repair(&self) -> Option<MapOp> {
        match (&self.wanted, &self.found) {
            (Some(wanted), _) => Some(wanted.clone()),
            (None, found) => found.as_ref()?.removal(),
        }
    }
}

/// Where in the order of a plan a repair belongs: what is referred to before what refers to it, what leads somewhere last, and
/// what takes away from a hash after what is put in.
fn rank(op: &MapOp) -> u8 {
    match op {
        MapOp::Intern(..) => 0,
        MapOp::Alternative(..) => 1,
        MapOp::Range(..) => 2,
        MapOp::Rule(..) => 3,
        MapOp::RemoveDevice(_) => 4,
        MapOp::Config(..) => 5,
        MapOp::Endpoint(..) => 6,
        MapOp::Address(..) => 7,
        MapOp::Network(..) => 8,
        MapOp::RemoveAddress(_) => 9,
        MapOp::RemoveNetwork(..) => 10,
        MapOp::Device(..) => 11,
        MapOp::RemoveRule(_) => 12,
        MapOp::RemoveIntern(_) => 13,
        MapOp::Epoch | MapOp::PeerEpoch(_) | MapOp::Barrier => 14,
    }
}

/// The writes that put differences right. After them every flow is judged again: one may have been approved meanwhile.
fn repairs(differences: &[Difference]) -> Vec<MapOp> {
    let mut ops: Vec<MapOp> = differences.iter().filter_map(Difference::repair).collect();
    ops.sort_by_key(rank);
    if ops
        .iter()
        .any(|op| !matches!(op, MapOp::Intern(..) | MapOp::RemoveIntern(_)))
    {
        ops.push(MapOp::Epoch);
    }
    ops
}

impl Sync {
    /// Compares the next slice, if it is time and the maps are known.
    pub(super) fn watch_drift(&mut self) {
        let now = Instant::now();
        if self.drift.due().is_none_or(|due| due > now) {
            return;
        }
        // Before the first plan the maps are an earlier agent's, and after a failed write nobody's.
        if self.planned && self.broken.is_none() {
            if let Err(error) = self.compare_slice() {
                tracing::warn!("comparing the kernel's maps with what they should hold: {error}");
                self.drift.go_on();
            }
            let took = now.elapsed().as_secs_f64();
            self.shared.metrics.drift.slice.observe(took);
        }
        self.drift.due = Instant::now() + self.drift.pace.interval;
    }

    fn compare_slice(&mut self) -> Result<(), SyncError> {
        let mut room = self.drift.pace.entries;
        while room > 0 {
            let (looked_at, done) = match self.drift.stage {
                Stage::Wanted(map) => self.compare_wanted(map, room)?,
                Stage::Found(map) => self.compare_found(map, room)?,
                Stage::Epochs => (self.compare_epochs()?, true),
                Stage::Names => (self.compare_names()?, true),
                Stage::Leases => (self.compare_leases()?, true),
                Stage::Devices => (self.compare_devices()?, true),
                Stage::Verdicts => (self.compare_verdict()?, true),
            };
            room = room.saturating_sub(looked_at);
            let looked_at = u64::try_from(looked_at).unwrap_or(u64::MAX);
            self.shared.metrics.drift.compared.inc_by(looked_at);
            if done && !self.drift.go_on() {
                self.shared.metrics.drift.rounds.inc();
                return Ok(());
            }
        }
        Ok(())
    }

    /// What should be there: wrong and missing elements.
    fn compare_wanted(&mut self, map: usize, room: usize) -> Result<(usize, bool), SyncError> {
        let Some(kind) = MapKind::ALL.get(map) else {
            return Ok((0, true));
        };
        let wanted = self.planner.elements(*kind, self.drift.after.as_ref(), room);
        let mut differences = Vec::new();
        for op in &wanted {
            let found = self.ground.element(op)?;
            differences.extend(Difference::between(Some(op.clone()), found));
        }
        let looked_at = wanted.len();
        self.drift.after = wanted.into_iter().next_back();
        self.put_right(&differences)?;
        Ok((looked_at, looked_at == 0))
    }

    /// What is there: surplus elements.
    fn compare_found(&mut self, map: usize, room: usize) -> Result<(usize, bool), SyncError> {
        let Some(kind) = MapKind::ALL.get(map) else {
            return Ok((0, true));
        };
        let (found, last) = self.ground.scan(*kind, &mut self.drift.place, room)?;
        let looked_at = found.len();
        let compare = |op: MapOp| Difference::between(self.planner.element(&op), Some(op));
        let differences: Vec<Difference> = found.into_iter().filter_map(compare).collect();
        self.put_right(&differences)?;
        Ok((looked_at, last))
    }

    fn put_right(&mut self, differences: &[Difference]) -> Result<(), SyncError> {
        for difference in differences.iter().take(SAID_MAX) {
            tracing::warn!(
                map = difference.map(),
                kind = difference.kind(),
                "DRIFT: a map of this node is not what the agent wrote; found {:?}, wanted {:?}; it is put right, and \
                 every flow is judged again",
                difference.found,
                difference.wanted
            );
        }
        if differences.len() > SAID_MAX {
            tracing::warn!(
                "DRIFT: and {} more differences",
                differences.len().saturating_sub(SAID_MAX)
            );
        }
        for difference in differences {
            self.shared.metrics.drift.found(difference.map(), difference.kind(), 1);
        }
        let ops = repairs(differences);
        if let Err(error) = self.ground.apply(&ops) {
            // The maps may be anything now: the next look reads them and makes a whole plan.
            self.broken = Some(Instant::now());
            return Err(error.into());
        }
        self.shared.metrics.drift.repaired(differences.len());
        Ok(())
    }

    pub(super) fn said(&self, map: &'static str, found: &[String]) {
        for text in found.iter().take(SAID_MAX) {
            tracing::warn!(map, "DRIFT: {text}; it is put right, and every flow is judged again");
        }
        self.shared.metrics.drift.found(map, "wrong", found.len());
        self.shared.metrics.drift.repaired(found.len());
    }

    fn compare_epochs(&mut self) -> Result<usize, SyncError> {
        let found = self.ground.put_epochs_right()?;
        self.said("EPOCH", &found);
        Ok(1)
    }

    /// The tables of names are read whole: they are small, and what a node's rules ask for is their size.
    fn compare_names(&mut self) -> Result<usize, SyncError> {
        let Some(tables) = self.naming.held.clone() else {
            return Ok(1);
        };
        let found = self.ground.name_differences(&tables)?;
        if !found.is_empty() {
            self.ground.widen_names(&tables)?;
            self.ground.narrow_names(&tables)?;
            self.ground.raise_epoch()?;
        }
        self.said("NAMING", &found);
        Ok(tables.patterns.len().saturating_add(tables.members.len()).max(1))
    }

    /// Endpoints' devices have our programs, and nobody's before them.
    fn compare_devices(&mut self) -> Result<usize, SyncError> {
        if self.bypass.is_some() {
            return Ok(1);
        }
        // A look at devices may have noticed first that a link is gone, and then it is not among those attached.
        let had = |ifindex: &u32| self.attached.contains(ifindex) || self.drift.judged.contains(ifindex);
        let devices: Vec<(u32, String)> = self
            .endpoints
            .devices()
            .filter(|(_, device)| had(&device.ifindex))
            .map(|(_, device)| (device.ifindex, device.name.clone()))
            .collect();
        self.drift.judged = devices.iter().map(|(ifindex, _)| *ifindex).collect();
        let (mut ahead_of_us, mut lost) = (BTreeSet::new(), 0_usize);
        for (ifindex, device) in &devices {
            match self.ground.standing(*ifindex, Leads::In)? {
                // Whoever watches devices tells of it.
                Standing::NoDevice => drop(self.drift.judged.remove(ifindex)),
                Standing::There { ahead } if ahead.is_empty() => {}
                Standing::There { ahead } => drop(ahead_of_us.insert((*ifindex, ahead))),
                Standing::Missing { program } => {
                    tracing::warn!(
                        device,
                        program,
                        "DRIFT: a device has lost its program, and its pod was not judged; it is attached again"
                    );
                    self.attached.remove(ifindex);
                    lost = lost.saturating_add(1);
                }
            }
        }
        lost = lost.saturating_add(self.compare_host(&mut ahead_of_us)?);
        for (ifindex, programs) in ahead_of_us.difference(&self.drift.ahead) {
            tracing::warn!(
                ifindex,
                ?programs,
                "programs of others run before ours on a pod's device: what they let pass is not judged"
            );
        }
        let count = ahead_of_us.len();
        self.drift.ahead = ahead_of_us;
        self.shared
            .metrics
            .drift
            .ahead
            .set(i64::try_from(count).unwrap_or(i64::MAX));
        if lost > 0 {
            self.shared.metrics.drift.found("programs", "missing", lost);
            self.attach_again()?;
            self.shared.metrics.drift.repaired(lost);
        }
        Ok(devices.len().max(1))
    }

    /// As after a bypass: what began while nothing judged is judged as of now, not dropped for having begun unseen.
    fn attach_again(&mut self) -> Result<(), SyncError> {
        self.endpoints.open_adoption(adoption_end(), &self.attached, true);
        let result = self.replan();
        self.publish();
        result
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_verdict::layout::{Alternative, EndpointWord, PortSet, RuleKey};

    use super::*;

    fn rule(peer: u32, first: u32) -> MapOp {
        MapOp::Rule(RuleKey { ruleset: 1, peer }, PortSet { first, count: 1 })
    }

    #[test]
    fn a_difference_is_wrong_missing_or_surplus() {
        let kinds = [
            (Some(rule(1, 2)), Some(rule(1, 3)), "wrong", Some(rule(1, 2))),
            (Some(rule(1, 2)), None, "missing", Some(rule(1, 2))),
            (None, Some(rule(1, 3)), "surplus", rule(1, 3).removal()),
        ];
        for (wanted, found, kind, repair) in kinds {
            let difference = Difference::between(wanted, found).expect("they differ");
            assert_eq!(
                (difference.map(), difference.kind(), difference.repair()),
                ("RULES", kind, repair)
            );
        }
        assert_eq!(Difference::between(Some(rule(1, 2)), Some(rule(1, 2))), None);
        assert_eq!(Difference::between(None, None), None);
    }

    #[test]
    fn what_is_referred_to_is_repaired_first_and_flows_are_judged_last() {
        let word = MapOp::Endpoint(
            3,
            EndpointWord {
                config: 1,
                generation: 9,
            },
        );
        let cell = MapOp::Alternative(7, Alternative::default());
        let wanted = |op: &MapOp| Difference::between(Some(op.clone()), None);
        let differences: Vec<Difference> = [&word, &rule(1, 2), &cell].into_iter().filter_map(wanted).collect();
        assert_eq!(repairs(&differences), [cell, rule(1, 2), word, MapOp::Epoch]);
        assert_eq!(repairs(&[]), []);
    }

    #[test]
    fn a_round_looks_at_everything_and_ends() {
        let mut drift = Drift::new(Pace::OFF);
        assert_eq!(drift.due(), None);
        let mut stages = 1;
        while drift.go_on() {
            stages += 1;
        }
        assert_eq!(stages, 2 * MapKind::ALL.len() + 5);
        assert_eq!(drift.stage, Stage::FIRST);
    }
}
