//! DNS names in rules: what a pattern means, and the tables by which the kernel finds the patterns a name matches.
//!
//! Numbers are made of content, so controller and node agree without an allocator. Two sets or two patterns of one number
//! (2⁻³² for a pair) would open each other's addresses, so neither is given to the kernel: both match nothing, and it is said.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

use bulkhead_verdict::dns::{
    reversed_name,
    table::{MemberKey, PATTERNS, PatternEntry},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::Digest;

/// Longest name, dots included.
pub const NAME_MAX: usize = 253;

/// Which names of a domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reach {
    /// The domain's own name.
    Itself,
    /// Names with one label more.
    Children,
    /// Names with one label more, or several.
    Below,
}

/// A name (`api.example.com`), the names directly in a domain (`*.example.com`), or all names in it (`**.example.com`). A wildcard
/// does not match the domain itself. Case does not matter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    domain: String,
    reach: Reach,
}

/// Why a text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum PatternError {
    /// Nothing, or nothing but a wildcard.
    #[error("names no domain; write a name, or a wildcard in front of one (*.example.com, **.example.com)")]
    Empty,
    /// Longer than names are.
    #[error("is longer than {NAME_MAX} characters, which no DNS name is; shorten it")]
    TooLong,
    /// A label that is none.
    #[error(
        "has the label {0:?}; a label has 1 to 63 letters, digits, '-' or '_', and a wildcard stands alone in front"
    )]
    Label(String),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (reach, domain) = match (text.strip_prefix("**."), text.strip_prefix("*.")) {
            (Some(domain), _) => (Reach::Below, domain),
            (None, Some(domain)) => (Reach::Children, domain),
            (None, None) => (Reach::Itself, text),
        };
        let domain = domain.strip_suffix('.').unwrap_or(domain).to_ascii_lowercase();
        if domain.is_empty() || domain == "*" || domain == "**" {
            return Err(PatternError::Empty);
        }
        if text.len() > NAME_MAX + 1 || domain.len() > NAME_MAX {
            return Err(PatternError::TooLong);
        }
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let wrong = domain
            .split('.')
            .find(|label| !(1..=63).contains(&label.len()) || !label.bytes().all(good));
        if let Some(label) = wrong {
            return Err(PatternError::Label(label.to_owned()));
        }
        Ok(Self { domain, reach })
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wildcard = match self.reach {
            Reach::Itself => "",
            Reach::Children => "*.",
            Reach::Below => "**.",
        };
        write!(f, "{wildcard}{}", self.domain)
    }
}

impl Pattern {
    /// Its number in the kernel: the class of names that match it most closely. Never 0.
    pub fn number(&self) -> u32 {
        number("name pattern", [self.to_string().as_bytes()])
    }

    fn of(domain: &str, reach: Reach) -> Self {
        Self {
            domain: domain.to_owned(),
            reach,
        }
    }

    /// The patterns that match every name this one matches, itself first, from close to wide.
    fn wider(&self) -> impl Iterator<Item = Self> + use<> {
        let above = |domain: &str| domain.split_once('.').map(|(_, parent)| parent.to_owned());
        let mut list = vec![self.clone()];
        let mut next = match self.reach {
            Reach::Itself => {
                let parent = above(&self.domain);
                list.extend(parent.iter().map(|parent| Self::of(parent, Reach::Children)));
                parent
            }
            Reach::Children => Some(self.domain.clone()),
            Reach::Below => above(&self.domain),
        };
        while let Some(domain) = next {
            list.push(Self::of(&domain, Reach::Below));
            next = above(&domain);
        }
        list.into_iter()
    }
}

/// The names a rule asks for: at least one of these patterns matches.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Names(Arc<BTreeSet<Pattern>>);

impl Names {
    /// A set of patterns.
    pub fn new(patterns: BTreeSet<Pattern>) -> Self {
        Self(Arc::new(patterns))
    }

    /// Its patterns.
    pub fn patterns(&self) -> &BTreeSet<Pattern> {
        &self.0
    }

    /// Its number in the kernel. Never 0.
    pub fn number(&self) -> u32 {
        let texts: Vec<String> = self.0.iter().map(Pattern::to_string).collect();
        number("names", texts.iter().map(String::as_bytes))
    }

    /// Whether a name, as a pattern without a wildcard, is one of these.
    pub fn has(&self, name: &Pattern) -> bool {
        name.wider().any(|pattern| self.0.contains(&pattern))
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(Pattern::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

pub(crate) fn number<'a>(domain: &str, fields: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let [a, b, c, d, ..] = Digest::of(domain, fields).0;
    u32::from_be_bytes([a, b, c, d]).max(1)
}

/// What the kernel is to hold of names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NameTables {
    /// PATTERNS by reversed domain.
    pub patterns: BTreeMap<Vec<u8>, PatternEntry>,
    /// MEMBERS.
    pub members: BTreeSet<MemberKey>,
    /// The pattern behind a class.
    pub classes: BTreeMap<u32, Pattern>,
    /// What is not given to the kernel, and why.
    pub refused: Vec<String>,
}

impl NameTables {
    /// The tables for the sets that rules ask for. `former` are patterns that rules asked for once: what was learned for
    /// them stays usable where wider patterns still match.
    pub fn of<'a>(sets: impl IntoIterator<Item = &'a Names>, former: &BTreeSet<Pattern>) -> Self {
        let mut tables = Self::default();
        let mut numbers: BTreeMap<u32, BTreeSet<&Names>> = BTreeMap::new();
        for set in sets {
            numbers.entry(set.number()).or_default().insert(set);
        }
        let mut asked: BTreeMap<&Pattern, BTreeSet<u32>> = BTreeMap::new();
        for (number, sets) in &numbers {
            let mut sets = sets.iter();
            match (sets.next(), sets.next()) {
                (Some(one), None) => {
                    for pattern in one.patterns() {
                        asked.entry(pattern).or_default().insert(*number);
                    }
                }
                (Some(one), Some(other)) => {
                    let message = format!(
                        "the names [{one}] and [{other}] share the number {number:#x}; change one of the lists"
                    );
                    tables.refused.push(message);
                }
                _ => {}
            }
        }
        let covered = |pattern: &&Pattern| pattern.wider().any(|wider| asked.contains_key(&wider));
        let mut known: BTreeMap<u32, &Pattern> = BTreeMap::new();
        let mut broken = BTreeSet::new();
        for pattern in asked.keys().copied().chain(former.iter().filter(covered)) {
            let number = pattern.number();
            if let Some(other) = known.insert(number, pattern)
                && other != pattern
            {
                broken.insert(number);
                let message =
                    format!("the names {pattern} and {other} share the number {number:#x}; change one of them");
                tables.refused.push(message);
            }
        }
        known.retain(|number, _| !broken.contains(number));
        tables.fill(&known, &asked);
        tables
    }

    fn fill(&mut self, known: &BTreeMap<u32, &Pattern>, asked: &BTreeMap<&Pattern, BTreeSet<u32>>) {
        let present: BTreeSet<&Pattern> = known.values().copied().collect();
        let closest = |domain: &str, reach| {
            let mut wider = Pattern::of(domain, reach).wider();
            wider
                .find(|pattern| present.contains(pattern))
                .map_or(0, |pattern| pattern.number())
        };
        let limit = usize::try_from(PATTERNS).unwrap_or(usize::MAX);
        for (number, pattern) in known {
            let Some(key) = reversed_name(&pattern.domain) else {
                self.refused
                    .push(format!("{pattern} is no name that DNS can carry; correct it"));
                continue;
            };
            if self.patterns.len() >= limit && !self.patterns.contains_key(&key) {
                self.refused.push(format!(
                    "{pattern} does not fit: rules of this node name more than {limit} domains"
                ));
                continue;
            }
            let entry = PatternEntry {
                length: u32::try_from(key.len()).unwrap_or(u32::MAX),
                exact: closest(&pattern.domain, Reach::Itself),
                child: closest(&pattern.domain, Reach::Children),
                deeper: closest(&pattern.domain, Reach::Below),
            };
            self.patterns.insert(key, entry);
            self.classes.insert(*number, (*pattern).clone());
            let sets = pattern.wider().filter_map(|wider| asked.get(&wider)).flatten();
            self.members.extend(sets.map(|set| MemberKey {
                class: *number,
                set: *set,
            }));
        }
    }
}

#[cfg(test)]
mod tests;
