//! Port sets in RANGES and ALTERNATIVES: equal ones are stored once, and lists of alternatives share their tails.
//!
//! What is stored is named by its content, over rule *numbers*, so that it can be recognised in a dump. Whoever holds a
//! set (an entry of RULES) counts as one reference; what nobody holds is freed when the plan is final, never earlier,
//! so within one plan no index gets a second meaning.

use std::{ops::Bound, sync::Arc};

use bulkhead_verdict::{
    layout::{Alternative, MAX_ALTERNATIVES, MAX_SEARCH, PortSet, Range, guard},
    port::Position,
};

use super::{op::MapOp, tracked::Tracked};
use crate::{digest::Digest, extent::Extents};

/// An interval and its alternatives, rules already numbered; `next` is 0 everywhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interval {
    pub(crate) low: u32,
    pub(crate) high: u32,
    pub(crate) enforce: Vec<Alternative>,
    pub(crate) shadow: Vec<Alternative>,
}

/// Content of a port set.
pub(crate) type Content = Vec<Interval>;

/// What makes two cells of ALTERNATIVES the same.
type CellKey = (u32, u32, u32, [u8; 4]);

fn cell_key(cell: &Alternative) -> CellKey {
    (
        cell.rule,
        cell.argument,
        cell.next,
        [cell.action, cell.guard, cell.side, cell.negated],
    )
}

/// What is wrong with a port set, if anything: the lookup needs it sorted, gapless and bounded, every list ended.
pub(crate) fn check(content: &[Interval]) -> Result<(), &'static str> {
    let mut next = Some(Position::FIRST.0);
    for interval in content {
        if next != Some(interval.low) || interval.high < interval.low {
            return Err("its ranges are not sorted, or leave a gap, or overlap");
        }
        next = interval.high.checked_add(1);
        check_list(&interval.enforce)?;
        if !interval.shadow.is_empty() {
            check_list(&interval.shadow)?;
        }
    }
    if content.last().map(|last| last.high) != Some(Position::LAST.0) {
        return Err("its ranges do not reach to the last position");
    }
    if content.len() > 1 << MAX_SEARCH {
        return Err("it has more ranges than the kernel's search can cover");
    }
    Ok(())
}

fn check_list(list: &[Alternative]) -> Result<(), &'static str> {
    match list.split_last() {
        None => Err("a range has no alternatives"),
        Some((last, _)) if last.guard != guard::NONE => Err("the last alternative of a range has a guard"),
        Some((_, rest)) if rest.iter().any(|one| one.guard == guard::NONE) => {
            Err("an alternative without a guard is not the last one")
        }
        Some(_) if list.len() > usize::try_from(MAX_ALTERNATIVES).unwrap_or(usize::MAX) => {
            Err("a range has more alternatives than the kernel walks")
        }
        Some(_) => Ok(()),
    }
}

/// Name of a content.
pub(crate) fn name_of(content: &[Interval]) -> Digest {
    let mut bytes = Vec::with_capacity(content.len().saturating_mul(48));
    for interval in content {
        bytes.extend_from_slice(&interval.low.to_le_bytes());
        bytes.extend_from_slice(&interval.high.to_le_bytes());
        for list in [&interval.enforce, &interval.shadow] {
            bytes.extend_from_slice(&u32::try_from(list.len()).unwrap_or(u32::MAX).to_le_bytes());
            for cell in list {
                bytes.extend_from_slice(&cell.rule.to_le_bytes());
                bytes.extend_from_slice(&cell.argument.to_le_bytes());
                bytes.extend_from_slice(&[cell.action, cell.guard, cell.side, cell.negated]);
            }
        }
    }
    Digest::of("port set", [bytes.as_slice()])
}

#[derive(Clone, Debug)]
struct Stored {
    content: Digest,
    references: u32,
    ranges: Arc<[Range]>,
}

/// Everything in RANGES and ALTERNATIVES.
#[derive(Debug)]
pub(crate) struct PortSets {
    by_content: Tracked<Digest, u32>,
    sets: Tracked<u32, Stored>,
    cells: Tracked<CellKey, u32>,
    alternatives: Tracked<u32, (Alternative, u32)>,
    /// How many cells name a rule.
    pub(crate) rules: Tracked<u32, u32>,
    pub(crate) range_extents: Extents,
    pub(crate) alternative_extents: Extents,
    freed_ranges: Vec<(u32, u32)>,
    freed_alternatives: Vec<u32>,
    /// Writes of this plan.
    pub(crate) written_alternatives: Vec<MapOp>,
    pub(crate) written_ranges: Vec<MapOp>,
}

impl PortSets {
    /// Nothing stored. Index 0 of ALTERNATIVES means "none".
    pub(crate) fn empty() -> Self {
        Self {
            by_content: Tracked::default(),
            sets: Tracked::default(),
            cells: Tracked::default(),
            alternatives: Tracked::default(),
            rules: Tracked::default(),
            range_extents: Extents::new(0, []),
            alternative_extents: Extents::new(1, []),
            freed_ranges: Vec::new(),
            freed_alternatives: Vec::new(),
            written_alternatives: Vec::new(),
            written_ranges: Vec::new(),
        }
    }

    /// Name of the content of a set that RULES holds; `None` for one that was broken when it was adopted.
    pub(crate) fn content(&self, set: PortSet) -> Option<Digest> {
        self.stored(set).map(|stored| stored.content)
    }

    fn stored(&self, set: PortSet) -> Option<&Stored> {
        self.sets
            .get(&set.first)
            .filter(|stored| u32::try_from(stored.ranges.len()) == Ok(set.count))
    }

    /// One more reference to a set that is there.
    pub(crate) fn hold(&mut self, set: PortSet) {
        if let Some(mut stored) = self.stored(set).cloned() {
            stored.references = stored.references.saturating_add(1);
            self.sets.set(set.first, Some(stored));
        }
    }

    /// A reference to the set of this content (its name is `name`), which is written if it is not there.
    pub(crate) fn acquire(&mut self, name: Digest, content: &[Interval]) -> PortSet {
        if let Some(first) = self.by_content.get(&name).copied()
            && let Some(stored) = self.sets.get(&first)
        {
            let set = PortSet {
                first,
                count: u32::try_from(stored.ranges.len()).unwrap_or(u32::MAX),
            };
            self.hold(set);
            return set;
        }
        let ranges: Arc<[Range]> = content
            .iter()
            .map(|interval| Range {
                low: interval.low,
                high: interval.high,
                enforce: self.list(&interval.enforce),
                shadow: self.list(&interval.shadow),
            })
            .collect();
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        let first = self.range_extents.allocate(count);
        for (index, range) in (first..).zip(ranges.iter()) {
            self.written_ranges.push(MapOp::Range(index, *range));
        }
        self.by_content.set(name, Some(first));
        self.sets.set(
            first,
            Some(Stored {
                content: name,
                references: 1,
                ranges,
            }),
        );
        PortSet { first, count }
    }

    /// A reference to the list of these alternatives, written where it is not there; 0 for an empty one.
    fn list(&mut self, list: &[Alternative]) -> u32 {
        let mut next = 0;
        for cell in list.iter().rev() {
            let cell = Alternative { next, ..*cell };
            if let Some(index) = self.cells.get(&cell_key(&cell)).copied() {
                self.hold_cell(index);
                // The cell that was there holds its successor already.
                self.release_list(next);
                next = index;
            } else {
                let index = self.alternative_extents.allocate(1);
                self.cells.set(cell_key(&cell), Some(index));
                self.alternatives.set(index, Some((cell, 1)));
                self.rules.up(cell.rule);
                self.written_alternatives.push(MapOp::Alternative(index, cell));
                next = index;
            }
        }
        next
    }

    fn hold_cell(&mut self, index: u32) {
        if let Some((cell, references)) = self.alternatives.get(&index).copied() {
            self.alternatives.set(index, Some((cell, references.saturating_add(1))));
        }
    }

    /// One reference less to the list that begins at an index.
    fn release_list(&mut self, mut index: u32) {
        while let Some((cell, references)) = self.alternatives.get(&index).copied() {
            if references > 1 {
                self.alternatives.set(index, Some((cell, references.saturating_sub(1))));
                return;
            }
            self.alternatives.set(index, None);
            if self.cells.get(&cell_key(&cell)) == Some(&index) {
                self.cells.set(cell_key(&cell), None);
            }
            self.rules.down(cell.rule);
            self.freed_alternatives.push(index);
            index = cell.next;
        }
    }

    /// One reference less to a set.
    pub(crate) fn release(&mut self, set: PortSet) {
        let Some(mut stored) = self.stored(set).cloned() else {
            return;
        };
        if stored.references > 1 {
            stored.references = stored.references.saturating_sub(1);
            self.sets.set(set.first, Some(stored));
            return;
        }
        self.sets.set(set.first, None);
        if self.by_content.get(&stored.content) == Some(&set.first) {
            self.by_content.set(stored.content, None);
        }
        for range in stored.ranges.iter() {
            self.release_list(range.enforce);
            self.release_list(range.shadow);
        }
        self.freed_ranges.push((set.first, set.count));
    }

    /// True when this plan freed something that may be used again only behind a barrier.
    pub(crate) fn has_freed(&self) -> bool {
        !self.freed_ranges.is_empty() || !self.freed_alternatives.is_empty()
    }

    /// Lets freed indices be used again.
    pub(crate) fn reuse_freed(&mut self) {
        for (first, count) in self.freed_ranges.drain(..) {
            self.range_extents.release(first, count);
        }
        for index in self.freed_alternatives.drain(..) {
            self.alternative_extents.release(index, 1);
        }
    }

    /// Makes the plan final; what it freed may be used by the next one.
    pub(crate) fn commit(&mut self) {
        self.reuse_freed();
        self.written_alternatives.clear();
        self.written_ranges.clear();
        self.by_content.commit();
        self.sets.commit();
        self.cells.commit();
        self.alternatives.commit();
        self.rules.commit();
        self.range_extents.commit();
        self.alternative_extents.commit();
    }

    /// Takes the plan back.
    pub(crate) fn rollback(&mut self) {
        self.freed_ranges.clear();
        self.freed_alternatives.clear();
        self.written_alternatives.clear();
        self.written_ranges.clear();
        self.by_content.rollback();
        self.sets.rollback();
        self.cells.rollback();
        self.alternatives.rollback();
        self.rules.rollback();
        self.range_extents.rollback();
        self.alternative_extents.rollback();
    }

    /// Takes over a set that a dump holds, as one reference. `Err` when it cannot be looked up.
    pub(crate) fn adopt(&mut self, set: PortSet, arrays: &Arrays<'_>) -> Result<(), &'static str> {
        if self.stored(set).is_some() {
            self.hold(set);
            return Ok(());
        }
        if self.sets.contains_key(&set.first) {
            return Err("it shares its first range with a set of another length");
        }
        let ranges = arrays.ranges_of(set).ok_or("it lies outside of RANGES")?;
        let content = arrays.content(ranges)?;
        check(&content)?;
        let name = name_of(&content);
        for range in ranges {
            self.adopt_list(range.enforce, arrays);
            self.adopt_list(range.shadow, arrays);
        }
        if !self.by_content.contains_key(&name) {
            self.by_content.set(name, Some(set.first));
        }
        self.sets.set(
            set.first,
            Some(Stored {
                content: name,
                references: 1,
                ranges: ranges.into(),
            }),
        );
        Ok(())
    }

    /// One more reference to a list of a dump, which was checked.
    fn adopt_list(&mut self, mut index: u32, arrays: &Arrays<'_>) {
        while index != 0 {
            if self.alternatives.contains_key(&index) {
                self.hold_cell(index);
                return;
            }
            let Some(cell) = arrays.alternative(index) else { return };
            self.alternatives.set(index, Some((cell, 1)));
            if !self.cells.contains_key(&cell_key(&cell)) {
                self.cells.set(cell_key(&cell), Some(index));
            }
            self.rules.up(cell.rule);
            index = cell.next;
        }
    }

    /// Ends an adoption: whatever no set holds is free. `broken` extents stay untouched until the next adoption.
    pub(crate) fn adopted(&mut self, broken: &[PortSet]) {
        let used = self
            .sets
            .iter()
            .map(|(first, stored)| (*first, u32::try_from(stored.ranges.len()).unwrap_or(0)));
        self.range_extents = Extents::new(0, used.chain(broken.iter().map(|set| (set.first, set.count))));
        self.alternative_extents = Extents::new(1, self.alternatives.keys().map(|index| (*index, 1)));
        self.commit();
    }
}

/// RANGES and ALTERNATIVES of a dump.
pub(crate) struct Arrays<'a> {
    pub(crate) ranges: &'a [Range],
    pub(crate) alternatives: &'a [Alternative],
}

impl Arrays<'_> {
    pub(crate) fn ranges_of(&self, set: PortSet) -> Option<&[Range]> {
        let first = usize::try_from(set.first).ok()?;
        let count = usize::try_from(set.count).ok()?;
        self.ranges.get(first..first.checked_add(count)?)
    }

    fn alternative(&self, index: u32) -> Option<Alternative> {
        self.alternatives.get(usize::try_from(index).ok()?).copied()
    }

    fn content(&self, ranges: &[Range]) -> Result<Content, &'static str> {
        let list = |mut index: u32| {
            let mut list = Vec::new();
            for _ in 0..MAX_ALTERNATIVES {
                if index == 0 {
                    return Ok(list);
                }
                let cell = self
                    .alternative(index)
                    .ok_or("a list of alternatives leaves ALTERNATIVES")?;
                list.push(Alternative { next: 0, ..cell });
                index = cell.next;
            }
            if index == 0 {
                Ok(list)
            } else {
                Err("a list of alternatives does not end")
            }
        };
        ranges
            .iter()
            .map(|range| {
                let (enforce, shadow) = (list(range.enforce)?, list(range.shadow)?);
                Ok(Interval {
                    low: range.low,
                    high: range.high,
                    enforce,
                    shadow,
                })
            })
            .collect()
    }
}

impl PortSets {
    /// Sets that begin behind an index of RANGES.
    pub(crate) fn ranges_behind(&self, after: Option<u32>) -> impl Iterator<Item = (u32, &[Range])> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sets = self.sets.range((from, Bound::Unbounded));
        sets.map(|(first, stored)| (*first, &*stored.ranges))
    }

    /// Cells behind an index of ALTERNATIVES.
    pub(crate) fn alternatives_behind(&self, after: Option<u32>) -> impl Iterator<Item = (u32, Alternative)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let cells = self.alternatives.range((from, Bound::Unbounded));
        cells.map(|(index, (cell, _))| (*index, *cell))
    }

    /// Indices of RANGES that sets lie in.
    pub(crate) fn ranges_in_use(&self) -> u32 {
        self.sets
            .values()
            .map(|stored| u32::try_from(stored.ranges.len()).unwrap_or(0))
            .sum()
    }

    /// Indices of ALTERNATIVES that lists lie in.
    pub(crate) fn alternatives_in_use(&self) -> usize {
        self.alternatives.len()
    }
}
