//! The maps of names: what rules ask for goes in, what pods learned is only looked at. The kernel learns by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use bulkhead_policy::fqdn::{NameTables, Pattern};
use bulkhead_verdict::{
    address::Address,
    dns::{
        place,
        stream::{OF_ENDPOINT, Stream},
        table::{
            BucketKey, CLAIMED, KEY_BYTES, LEARNED_BUCKETS, LearnedBucket, MemberKey, Naming, PENDING_BUCKETS,
            PatternEntry, PendingBucket, class_of,
        },
    },
};

use super::{
    KernelError,
    maps::{PatternKey, Table},
    table,
};

/// Longest time an address is kept whatever an answer says, seconds.
const MAX_TTL: u32 = 86_400;

/// How answers are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Learning {
    /// They are learned.
    pub(crate) on: bool,
    /// An address is kept for at least so many seconds.
    pub(crate) min_ttl: u32,
}

/// Handles on the maps of names.
#[derive(Clone, Debug)]
pub(crate) struct NameMaps {
    naming: Table<u32, Naming>,
    patterns: Table<PatternKey, PatternEntry>,
    members: Table<MemberKey, u32>,
    learned: Table<BucketKey, LearnedBucket>,
    pending: Table<BucketKey, PendingBucket>,
    streams: Table<BucketKey, Stream>,
}

impl NameMaps {
    pub(super) fn open(folder: &Path) -> Result<Self, KernelError> {
        Ok(Self {
            naming: table(folder, "BK_NAMING")?,
            patterns: table(folder, "BK_PATTERN")?,
            members: table(folder, "BK_MEMBER")?,
            learned: table(folder, "BK_LEARNED")?,
            pending: table(folder, "BK_PENDING")?,
            streams: table(folder, "BK_STREAM")?,
        })
    }

    /// Adds what rules are about to ask for, before they do. Nothing goes yet.
    pub(crate) fn widen(&self, tables: &NameTables, learning: Learning) -> Result<(), KernelError> {
        let there = self.all_members()?;
        let members: Vec<(MemberKey, u32)> = tables.members.difference(&there).map(|member| (*member, 1)).collect();
        self.members.set_all(&members)?;
        let there = self.all_patterns()?;
        for (name, entry) in &tables.patterns {
            if there.get(name) != Some(entry)
                && let Some(key) = key(name)
            {
                self.patterns.set(&key, entry)?;
            }
        }
        if !tables.patterns.is_empty() {
            self.switch(learning)?;
        }
        Ok(())
    }

    /// Takes away what no rule asks for any more.
    pub(crate) fn narrow(&self, tables: &NameTables) -> Result<(), KernelError> {
        if tables.patterns.is_empty() {
            self.switch(Learning { on: false, min_ttl: 0 })?;
        }
        let there = self.all_patterns()?;
        let gone = there.keys().filter(|name| !tables.patterns.contains_key(*name));
        let gone: Vec<PatternKey> = gone.filter_map(|name| key(name)).collect();
        self.patterns.remove_all(&gone)?;
        let there = self.all_members()?;
        let gone: Vec<MemberKey> = there.difference(&tables.members).copied().collect();
        self.members.remove_all(&gone)
    }

    /// What the maps hold beside or instead of these tables, as text; nothing where they are what [`Self::widen`] and
    /// [`Self::narrow`] made them.
    pub(crate) fn differences(&self, tables: &NameTables, learning: Learning) -> Result<Vec<String>, KernelError> {
        let mut found = Vec::new();
        let there = self.all_members()?;
        for member in there.symmetric_difference(&tables.members) {
            let what = if there.contains(member) { "surplus" } else { "missing" };
            found.push(format!("MEMBERS: {member:?} is {what}"));
        }
        let there = self.all_patterns()?;
        let names: BTreeSet<&Vec<u8>> = there.keys().chain(tables.patterns.keys()).collect();
        for name in names {
            let (is, should) = (there.get(name), tables.patterns.get(name));
            if is != should {
                let name = domain(name).unwrap_or_else(|| format!("{name:?}"));
                found.push(format!("PATTERNS: {name} is {is:?}, not {should:?}"));
            }
        }
        let naming = self.naming.get(&0)?.unwrap_or_default();
        let on = u32::from(learning.on && !tables.patterns.is_empty());
        if naming.enabled != on || (on != 0 && naming != wanted_naming(learning)) {
            found.push(format!("NAMING is {naming:?}"));
        }
        Ok(found)
    }

    fn switch(&self, learning: Learning) -> Result<(), KernelError> {
        self.naming.set(&0, &wanted_naming(learning))
    }

    /// The patterns an earlier agent wrote: what was learned for them is still there.
    pub(crate) fn former(&self) -> Result<BTreeSet<Pattern>, KernelError> {
        let mut former = BTreeSet::new();
        for (name, entry) in self.all_patterns()? {
            let Some(domain) = domain(&name) else { continue };
            for (wildcard, class) in [("", entry.exact), ("*.", entry.child), ("**.", entry.deeper)] {
                // A class may be a wider pattern's, which has an entry of its own.
                let pattern = format!("{wildcard}{domain}").parse::<Pattern>().ok();
                former.extend(pattern.filter(|pattern| pattern.number() == class));
            }
        }
        Ok(former)
    }

    /// Forgets what endpoints learned whose devices are gone.
    pub(crate) fn forget(&self, devices: &BTreeSet<u32>) -> Result<(), KernelError> {
        for ifindex in devices {
            let keys = |count: u32| -> Vec<BucketKey> {
                (0..count)
                    .map(|bucket| BucketKey {
                        ifindex: *ifindex,
                        bucket,
                    })
                    .collect()
            };
            self.learned.remove_all(&keys(LEARNED_BUCKETS))?;
            self.pending.remove_all(&keys(PENDING_BUCKETS))?;
            self.streams.remove_all(&keys(OF_ENDPOINT))?;
        }
        Ok(())
    }

    /// Devices whose endpoints learned something.
    pub(crate) fn devices(&self) -> Result<BTreeSet<u32>, KernelError> {
        let mut devices = BTreeSet::new();
        self.learned.for_each(|key, _| devices.extend([key.ifindex]))?;
        self.pending.for_each(|key, _| devices.extend([key.ifindex]))?;
        Ok(devices)
    }

    /// Classes an endpoint learned an address with.
    pub(crate) fn classes(&self, ifindex: u32, address: &Address) -> Result<BTreeSet<u32>, KernelError> {
        let (key, halves) = place(ifindex, address);
        let Some(bucket) = self.learned.get(&key)? else {
            return Ok(BTreeSet::new());
        };
        let ways = bucket.ways.iter().filter(|way| {
            let [high, low] = &way.address;
            [high.get(), low.get()] == halves
        });
        let words = ways
            .map(|way| way.word.get())
            .filter(|word| *word != 0 && *word != CLAIMED);
        Ok(words.map(class_of).collect())
    }

    fn all_patterns(&self) -> Result<BTreeMap<Vec<u8>, PatternEntry>, KernelError> {
        let mut all = BTreeMap::new();
        self.patterns.for_each(|key, entry| {
            let bytes = usize::try_from(key.bits / 8).unwrap_or(usize::MAX);
            if let Some(name) = key.name.get(..bytes) {
                all.insert(name.to_vec(), entry);
            }
        })?;
        Ok(all)
    }

    fn all_members(&self) -> Result<BTreeSet<MemberKey>, KernelError> {
        let mut all = BTreeSet::new();
        self.members.for_each(|key, _| all.extend([key]))?;
        Ok(all)
    }
}

fn wanted_naming(learning: Learning) -> Naming {
    Naming {
        enabled: u32::from(learning.on),
        min_ttl: learning.min_ttl,
        max_ttl: MAX_TTL.max(learning.min_ttl),
        padding: 0,
    }
}

/// The key of a reversed name.
fn key(name: &[u8]) -> Option<PatternKey> {
    let mut bytes = [0; KEY_BYTES];
    bytes.get_mut(..name.len())?.copy_from_slice(name);
    Some(PatternKey {
        bits: u32::try_from(name.len().checked_mul(8)?).ok()?,
        name: bytes,
    })
}

/// The domain of a reversed name; `None` of what nobody wrote.
fn domain(reversed: &[u8]) -> Option<String> {
    let wire: Vec<u8> = reversed.iter().rev().copied().collect();
    let mut labels = Vec::new();
    let mut rest = wire.as_slice();
    while let Some((length, behind)) = rest.split_first() {
        let (label, next) = behind.split_at_checked(usize::from(*length))?;
        labels.push(std::str::from_utf8(label).ok()?);
        rest = next;
    }
    Some(labels.join("."))
}

#[cfg(test)]
mod tests {
    use bulkhead_verdict::dns::reversed_name;

    use super::*;

    #[test]
    fn a_key_gives_its_domain_back() {
        for name in ["example.com", "a", "x.y.z.test"] {
            assert_eq!(reversed_name(name).and_then(|key| domain(&key)).as_deref(), Some(name));
        }
        assert_eq!(domain(&[9, b'x']), None);
    }
}
