//! Leases: until when the images of a class satisfy a profile, and the table by which the kernel asks.
//!
//! Numbers of profiles and image classes are made of content, so controller and node agree without an allocator. Two profiles of one
//! number that rules ask for (2⁻³² for a pair) would open each other's rules, and two classes of one number each other's pods, so
//! neither has a lease then.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use bulkhead_verdict::layout::LEASES;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    fqdn::number,
    model::{Direction, Guard, Side, WorkloadKey},
    probe::{End, Probe},
    state::{Ruleset, State},
    state_lookup::workload,
    table::Table,
};

/// Longest name of a profile.
pub const PROFILE_MAX: usize = 63;
/// How many profiles one pod may claim: what a pod's owner writes must not fill every node's table.
pub const CLAIMS_MAX: usize = 16;

/// Name of what a rule demands of images: a label of DNS.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Profile(Arc<str>);

/// Why a text is no profile's name.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("is not the name of a profile; write at most {PROFILE_MAX} lower-case letters, digits and inner '-'")]
pub struct ProfileError;

impl Profile {
    /// Its number in the kernel. Never 0.
    pub fn number(&self) -> u32 {
        number("trust profile", [self.0.as_bytes()])
    }
}

impl FromStr for Profile {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let dashed = text.starts_with('-') || text.ends_with('-');
        if text.is_empty() || text.len() > PROFILE_MAX || dashed || !text.bytes().all(good) {
            return Err(ProfileError);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Profile {
    type Error = ProfileError;
    fn try_from(text: String) -> Result<Self, ProfileError> {
        text.parse()
    }
}

impl From<Profile> for String {
    fn from(profile: Profile) -> Self {
        profile.0.as_ref().to_owned()
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The end of a lease: wall clock, nanoseconds since 1970. The lease runs before that moment, not at it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Deadline(pub u64);

impl Deadline {
    /// It does not end by itself.
    pub const ALWAYS: Self = Self(u64::MAX);

    /// Whether the lease runs at a moment, wall nanoseconds.
    #[must_use]
    pub fn runs(self, now: u64) -> bool {
        self == Self::ALWAYS || now < self.0
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALWAYS {
            return f.write_str("always");
        }
        let (seconds, millis) = (self.0 / 1_000_000_000, self.0 / 1_000_000 % 1_000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Days since 0000-03-01, in years that begin with March: the leap day is a year's last.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if millis != 0 {
            write!(f, ".{millis:03}")?;
        }
        f.write_str("Z")
    }
}

/// The profiles that a workload's images satisfy, and until when. Who says so is not known here.
pub type Claims = BTreeMap<Profile, Deadline>;

/// Number of the class of a set of image digests and what is claimed of it; 0 where nothing is claimed, so no rule asks.
pub fn image_class(images: &BTreeSet<String>, claims: &Claims) -> u32 {
    if claims.is_empty() {
        return 0;
    }
    let claims: Vec<String> = claims
        .iter()
        .map(|(profile, deadline)| format!("{profile}={}", deadline.0))
        .collect();
    let count = u64::try_from(images.len()).unwrap_or(u64::MAX).to_be_bytes();
    let images = images.iter().map(String::as_bytes);
    let fields = std::iter::once(count.as_slice()).chain(images);
    number("image class", fields.chain(claims.iter().map(String::as_bytes)))
}

/// Which claims each class of the cluster makes, counted, so that a class ends with its last pod.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    claims: BTreeMap<u32, BTreeMap<Claims, usize>>,
    dirty: BTreeSet<u32>,
}

impl Classes {
    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// A workload of the class comes.
    pub(crate) fn add(&mut self, class: u32, claims: &Claims) {
        if class == 0 {
            return;
        }
        let count = self.claims.entry(class).or_default().entry(claims.clone()).or_default();
        *count = count.saturating_add(1);
        self.dirty.insert(class);
    }

    /// A workload of the class goes.
    pub(crate) fn remove(&mut self, class: u32, claims: &Claims) {
        let Some(all) = self.claims.get_mut(&class) else { return };
        if let Some(count) = all.get_mut(claims) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                all.remove(claims);
            }
        }
        if all.is_empty() {
            self.claims.remove(&class);
        }
        self.dirty.insert(class);
    }

    /// The classes that changed, with their leases now.
    pub(crate) fn settle(&mut self) -> Vec<(u32, Option<Arc<Claims>>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|class| (class, self.leases(class))).collect()
    }

    /// What all pods of a class claim; none where they differ: two classes have one number.
    fn leases(&self, class: u32) -> Option<Arc<Claims>> {
        let all = self.claims.get(&class)?;
        let (claims, _) = all.first_key_value().filter(|_| all.len() == 1)?;
        (!claims.is_empty()).then(|| Arc::new(claims.clone()))
    }
}

/// The profiles a ruleset asks for. Port sets are shared among peers, so each is read once.
pub fn asked(ruleset: &Ruleset) -> BTreeSet<Profile> {
    let mut seen = BTreeSet::new();
    let mut profiles = BTreeSet::new();
    for ports in ruleset.entries.values().filter(|ports| seen.insert(Arc::as_ptr(ports))) {
        let ranges = ports.ranges.iter();
        for alternative in ranges.flat_map(|range| range.enforce.iter().chain(&range.shadow)) {
            if let Some(Guard::Lease { profile, .. }) = &alternative.guard {
                profiles.insert(profile.clone());
            }
        }
    }
    profiles
}

/// What the kernel is to hold of leases.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaseTables {
    /// LEASES: deadline by profile's number and image class.
    pub leases: BTreeMap<(u32, u32), Deadline>,
    /// What is not given to the kernel, and so does not hold, in words.
    pub refused: Vec<String>,
}

impl LeaseTables {
    /// The leases of these classes that rules ask for.
    pub fn of(asked: &BTreeSet<Profile>, classes: &Table<u32, Arc<Claims>>) -> Self {
        let mut numbers: BTreeMap<u32, Vec<&Profile>> = BTreeMap::new();
        for profile in asked {
            numbers.entry(profile.number()).or_default().push(profile);
        }
        let mut tables = Self::default();
        for (number, profiles) in numbers {
            let [profile] = profiles.as_slice() else {
                let names: Vec<String> = profiles.iter().map(ToString::to_string).collect();
                let names = names.join(" and ");
                tables
                    .refused
                    .push(format!("profiles {names} have one number; rename one of them"));
                continue;
            };
            for (class, claims) in classes {
                if let Some(deadline) = claims.get(*profile) {
                    tables.leases.insert((number, *class), *deadline);
                }
            }
        }
        let limit = usize::try_from(LEASES).unwrap_or(usize::MAX);
        let over = tables.leases.len().saturating_sub(limit);
        if over > 0 {
            tables.refused.push(format!(
                "{over} leases more than the {LEASES} a node holds; let pods of one kind claim the same profiles until the same time"
            ));
            tables.leases = std::mem::take(&mut tables.leases).into_iter().take(limit).collect();
        }
        tables
    }
}

/// The end of a connection whose images the rules of a direction ask for.
pub(crate) fn asked_end(probe: &Probe, direction: Direction, side: Side) -> &End {
    match (direction, side) {
        (Direction::Egress, Side::Subject) | (Direction::Ingress, Side::Peer) => &probe.from,
        (Direction::Egress, Side::Peer) | (Direction::Ingress, Side::Subject) => &probe.to,
    }
}

/// A lease as one end's rules see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lease {
    /// The workload whose images are asked for; `None` when the end is no pod.
    pub of: Option<WorkloadKey>,
    /// Its image class.
    pub class: u32,
    /// Until when; `None` when there is none.
    pub until: Option<Deadline>,
}

impl Lease {
    /// The lease that a compiled state has for a connection, as the rules of a direction ask for it.
    pub fn of(state: &State, probe: &Probe, direction: Direction, profile: &Profile, side: Side) -> Self {
        let end = asked_end(probe, direction, side);
        let binding = state.bindings.get(&(probe.zone, end.address));
        let of = workload(state, probe.zone, end).cloned();
        let class = match (side, &of) {
            (Side::Subject, Some(key)) => state.endpoints.get(key).map(|endpoint| endpoint.image_class),
            (Side::Subject, None) => None,
            // A peer is its address.
            (Side::Peer, _) => binding.map(|binding| binding.image_class),
        };
        let class = class.unwrap_or(0);
        let until = state.leases.get(&class).and_then(|claims| claims.get(profile)).copied();
        Self { of, class, until }
    }

    /// Whether it runs at a moment, wall nanoseconds.
    #[must_use]
    pub fn runs(&self, now: u64) -> bool {
        self.until.is_some_and(|until| until.runs(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(name: &str) -> Profile {
        name.parse().unwrap()
    }

    #[test]
    fn deadlines_read_as_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_796_083_199, "2026-11-30T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Deadline(seconds * 1_000_000_000).to_string(), text);
        }
        assert_eq!(Deadline(1_500_000_000).to_string(), "1970-01-01T00:00:01.500Z");
        assert_eq!(Deadline::ALWAYS.to_string(), "always");
        assert!(Deadline(5).runs(4) && !Deadline(5).runs(5));
    }

    #[test]
    fn names_of_profiles() {
        for good in ["production", "a", "pci-2"] {
            assert!(good.parse::<Profile>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<Profile>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_class_is_images_and_claims() {
        let images = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let claims = Claims::from([(profile("production"), Deadline(7))]);
        let class = image_class(&images(&["a"]), &claims);
        assert_ne!(class, 0);
        assert_eq!(class, image_class(&images(&["a"]), &claims));
        assert_ne!(class, image_class(&images(&["b"]), &claims));
        let later = Claims::from([(profile("production"), Deadline(8))]);
        assert_ne!(class, image_class(&images(&["a"]), &later));
        assert_eq!(image_class(&images(&["a"]), &Claims::new()), 0);
    }

    #[test]
    fn only_what_rules_ask_for_and_no_more_than_fits() {
        let claims = Claims::from([(profile("a"), Deadline(1)), (profile("b"), Deadline::ALWAYS)]);
        let classes: Table<u32, Arc<Claims>> = (1..=70_000).map(|class| (class, Arc::new(claims.clone()))).collect();
        let some = LeaseTables::of(&BTreeSet::from([profile("b")]), &classes);
        assert_eq!(some.leases.len(), 65_536);
        assert!(some.refused[0].starts_with("4464 leases more"), "{:?}", some.refused);
        assert!(some.leases.values().all(|deadline| *deadline == Deadline::ALWAYS));
        assert_eq!(LeaseTables::of(&BTreeSet::new(), &classes), LeaseTables::default());
    }
}
