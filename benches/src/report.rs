//! What was measured, for people and for programs.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use bulkhead_dataplane::kernel::OBJECT;
use bulkhead_verdict::layout::LAYOUT;

use crate::{
    place::Place,
    rows::{REPEAT_NEW, Row},
    world::Family,
};

/// Runs of one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Summary {
    min: u64,
    /// Twice the median, which may lie between two whole numbers.
    twice_median: u64,
    max: u64,
}

impl Summary {
    /// Of at least one run.
    pub(crate) fn of(mut runs: Vec<u64>) -> Option<Self> {
        runs.sort_unstable();
        let (low, high) = (runs.get((runs.len().checked_sub(1)?) / 2)?, runs.get(runs.len() / 2)?);
        Some(Self {
            min: *runs.first()?,
            twice_median: low + high,
            max: *runs.last()?,
        })
    }

    fn median(self) -> String {
        let half = if self.twice_median.is_multiple_of(2) { "" } else { ".5" };
        format!("{}{half}", self.twice_median / 2)
    }
}

/// Rows that hold, by what they are of.
pub(crate) type Results = BTreeMap<(Family, Row, u32), Summary>;

/// What was measured and where.
pub(crate) fn heading(place: &Place) -> Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("asking for the kernel's release")?;
    Ok(format!(
        "object  sha256 {}\nlayout  {LAYOUT}\nkernel  {}, CPU {} ({})",
        sha256(OBJECT)?,
        release.trim(),
        place.cpu,
        processor(),
    ))
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown model".to_owned(), |(_, name)| name.trim().to_owned())
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("running sha256sum")?;
    child
        .stdin
        .take()
        .context("no pipe to sha256sum")?
        .write_all(bytes)
        .context("writing to sha256sum")?;
    let output = child.wait_with_output().context("reading from sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.split_whitespace().next() {
        Some(digest) if output.status.success() => Ok(digest.to_owned()),
        _ => bail!("sha256sum: {}", output.status),
    }
}

/// One object per line.
pub(crate) fn json(results: &Results) -> String {
    let line = |((family, row, entries), summary): (&(Family, Row, u32), &Summary)| {
        format!(
            "{{\"name\":\"{}\",\"family\":\"{}\",\"entries\":{entries},\"min\":{},\"median\":{},\"max\":{},\"unit\":\"ns\"}}\n",
            row.name(),
            family.name(),
            summary.min,
            summary.median(),
            summary.max,
        )
    };
    results.iter().map(line).collect()
}

/// A table for each family.
pub(crate) fn table(results: &Results, sizes: &[u32], runs: usize) -> String {
    let mut lines = vec![format!(
        "nanoseconds per packet: minimum and median of {runs} runs, and the minimum above that of `empty`"
    )];
    for family in Family::ALL {
        let titles = sizes.iter().map(|size| format!("{:>26}", format!("{size} entries")));
        let columns = sizes
            .iter()
            .map(|_| format!("{:>10}{:>8}{:>8}", "min", "median", "+empty"));
        lines.push(String::new());
        lines.push(line(family.name(), titles));
        lines.push(line("", columns));
        for row in Row::ALL {
            lines.push(line(
                row.name(),
                sizes.iter().map(|size| cell(results, family, row, *size)),
            ));
        }
    }
    lines.push(format!(
        "\nnew_allowed runs the hook's program behind a change of the source port ({REPEAT_NEW} flows per run, none evicted);\n\
         mutate_only is that change alone. Nothing is subtracted from any number but in the column +empty.\n"
    ));
    lines.join("\n")
}

fn line(name: &str, cells: impl Iterator<Item = String>) -> String {
    format!("{name:<21}{}", cells.collect::<String>())
}

fn cell(results: &Results, family: Family, row: Row, size: u32) -> String {
    let Some(summary) = results.get(&(family, row, size)) else {
        return format!("{:>26}", "FAILED");
    };
    let above = match results.get(&(family, Row::Empty, size)) {
        Some(empty) if row != Row::Empty => format!("+{}", summary.min.saturating_sub(empty.min)),
        _ => String::new(),
    };
    format!("{:>10}{:>8}{above:>8}", summary.min, summary.median())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_ten_lies_between_the_middle_two() {
        let summary = Summary::of(vec![9, 1, 8, 2, 7, 3, 10, 4, 6, 5]).unwrap();
        assert_eq!((summary.min, summary.median(), summary.max), (1, "5.5".to_owned(), 10));
        assert_eq!(Summary::of(vec![4, 2, 3]).unwrap().median(), "3");
        assert_eq!(Summary::of(vec![]), None);
    }

    #[test]
    fn json_has_one_object_per_line() {
        let summary = Summary::of(vec![1, 2]).unwrap();
        let results = Results::from([((Family::V6, Row::NewAllowed, 10), summary)]);
        assert_eq!(
            json(&results),
            "{\"name\":\"new_allowed\",\"family\":\"v6\",\"entries\":10,\"min\":1,\"median\":1.5,\"max\":2,\"unit\":\"ns\"}\n"
        );
    }
}
