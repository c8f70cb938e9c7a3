//! What was measured, for people and for programs: one table per topic, ours and others' rows side by side.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use bulkhead_dataplane::kernel::OBJECT;
use serde_json::json;

/// What a row should not exceed.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    most: f64,
    text: String,
}

impl Bar {
    /// A number.
    pub(crate) fn most(most: f64) -> Self {
        Self {
            most,
            text: format!("bar {most}"),
        }
    }

    /// So much more than something.
    pub(crate) fn over(base: f64, more: f64, what: &str) -> Self {
        Self {
            most: base + more,
            text: format!("bar +{more} over {what}"),
        }
    }

    /// So many times something.
    pub(crate) fn times(base: f64, factor: f64, what: &str) -> Self {
        Self {
            most: base * factor,
            text: format!("bar {factor} x {what}"),
        }
    }
}

/// One row: all its numbers, or why there are none.
#[derive(Debug)]
struct Row {
    name: String,
    values: Vec<f64>,
    failure: Option<String>,
    bar: Option<Bar>,
    note: String,
}

impl Row {
    fn min(&self) -> Option<f64> {
        self.values.iter().copied().min_by(f64::total_cmp)
    }

    fn median(&self) -> Option<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        let (low, high) = (
            values.get(values.len().checked_sub(1)? / 2)?,
            values.get(values.len() / 2)?,
        );
        Some(f64::midpoint(*low, *high))
    }

    fn missed(&self) -> bool {
        matches!((self.min(), &self.bar), (Some(min), Some(bar)) if min > bar.most)
    }
}

/// Rows that can be compared. The first one is what the others are compared with.
#[derive(Debug)]
pub(crate) struct Table {
    topic: &'static str,
    title: String,
    unit: &'static str,
    rows: Vec<Row>,
}

impl Table {
    /// An empty one. What is before the title's colon names it in JSON.
    pub(crate) fn new(topic: &'static str, title: &str, unit: &'static str) -> Self {
        Self {
            topic,
            title: title.to_owned(),
            unit,
            rows: Vec::new(),
        }
    }

    fn row(&mut self, name: &str) -> &mut Row {
        let place = self.rows.iter().position(|row| row.name == name);
        let place = place.unwrap_or_else(|| {
            self.rows.push(Row {
                name: name.to_owned(),
                values: Vec::new(),
                failure: None,
                bar: None,
                note: String::new(),
            });
            self.rows.len() - 1
        });
        #[expect(clippy::indexing_slicing, reason = "found or made just above")]
        &mut self.rows[place]
    }

    /// Adds numbers to a row. One failure is the row's end: what else it has measured is not believed.
    pub(crate) fn add(&mut self, name: &str, values: Result<Vec<f64>>) {
        let row = self.row(name);
        match values {
            Ok(values) => row.values.extend(values),
            Err(error) => row.failure = Some(format!("{error:#}")),
        }
        if row.failure.is_some() {
            row.values.clear();
        }
    }

    /// Says something of a row.
    pub(crate) fn note(&mut self, name: &str, note: &str) {
        note.clone_into(&mut self.row(name).note);
    }

    /// Sets a row's bar.
    pub(crate) fn bar(&mut self, name: &str, bar: Option<Bar>) {
        self.row(name).bar = bar;
    }

    /// A row's smallest number.
    pub(crate) fn min(&self, name: &str) -> Option<f64> {
        self.rows.iter().find(|row| row.name == name)?.min()
    }

    /// Whether every row has numbers.
    pub(crate) fn holds(&self) -> bool {
        self.rows.iter().all(|row| row.failure.is_none())
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n", self.title);
        let first = self.rows.first().and_then(Row::min);
        let _never = writeln!(
            text,
            "  {:<36}{:>10}{:>10}{:>10}{:>8}  {}",
            "", "min", "median", "+first", "x first", self.unit
        );
        for row in &self.rows {
            let (Some(min), Some(median)) = (row.min(), row.median()) else {
                let _never = writeln!(
                    text,
                    "  {:<36}FAILED: {}",
                    row.name,
                    row.failure.as_deref().unwrap_or("no number")
                );
                continue;
            };
            let _never = write!(text, "  {:<36}{}{}", row.name, number(min), number(median));
            if let Some(first) = first.filter(|first| *first > 0.0) {
                let _never = write!(text, "{}{:>8.2}", number(min - first), min / first);
            }
            if let Some(bar) = &row.bar {
                let _never = write!(text, "  {}: {}", bar.text, if row.missed() { "MISSED" } else { "held" });
            }
            let _never = writeln!(text, "  {}", row.note);
        }
        text
    }

    /// One object per line.
    pub(crate) fn json(&self) -> String {
        let mut text = String::new();
        let case = self.title.split(':').next().unwrap_or_default();
        for row in &self.rows {
            let line = json!({
                "topic": self.topic, "case": case, "name": row.name, "unit": self.unit, "runs": row.values.len(),
                "min": row.min(), "median": row.median(), "failure": row.failure, "note": row.note,
                "bar": row.bar.as_ref().map(|bar| bar.most), "bar_means": row.bar.as_ref().map(|bar| &bar.text),
                "missed": row.bar.as_ref().map(|_| row.missed()),
            });
            let _never = writeln!(text, "{line}");
        }
        text
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 1_000.0 {
        format!("{value:>10.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:>10.1}")
    } else {
        format!("{value:>10.4}")
    }
}

/// What is measured, and where.
pub(crate) fn heading() -> Result<String> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(format!(
        "object  sha256 {}\nkernel  {}, {} CPUs ({}), load {}",
        sha256(OBJECT)?,
        read("/proc/sys/kernel/osrelease").trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
        model.map_or("unknown model", |(_, model)| model),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    ))
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("running sha256sum")?;
    let mut pipe = child.stdin.take().context("no pipe to sha256sum")?;
    pipe.write_all(bytes).context("writing to sha256sum")?;
    drop(pipe);
    let output = child.wait_with_output().context("reading from sha256sum")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.split_whitespace().next() {
        Some(digest) if output.status.success() => Ok(digest.to_owned()),
        _ => bail!("sha256sum: {}", output.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_missed_by_the_minimum_and_a_failure_ends_a_row() {
        let mut table = Table::new("topic", "case: of a test", "ns");
        table.add("none", Ok(vec![120.0, 100.0, 110.0]));
        table.add("ours", Ok(vec![150.0, 104.0]));
        table.bar("ours", table.min("none").map(|base| Bar::times(base, 1.05, "none")));
        assert!(table.text().contains("held"), "{}", table.text());
        table.bar("ours", Some(Bar::over(100.0, 3.0, "none")));
        assert!(table.text().contains("MISSED"), "{}", table.text());
        assert!(table.json().contains("\"missed\":true"), "{}", table.json());
        assert!(table.holds());
        table.add("ours", Err(anyhow::anyhow!("wrong verdict")));
        table.add("ours", Ok(vec![1.0]));
        assert!(!table.holds());
        assert!(table.text().contains("FAILED: wrong verdict"), "{}", table.text());
        assert_eq!(table.min("ours"), None);
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        let mut table = Table::new("topic", "case", "ns");
        table.add("row", Ok(vec![4.0, 1.0, 2.0, 3.0]));
        assert!(table.json().contains("\"median\":2.5"), "{}", table.json());
    }
}
