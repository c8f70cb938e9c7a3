//! `bench-revocation [--runs N] [--flows N] [--json]`: from the write that takes a permission away to the last packet that still passes,
//! on real packets between pods, beside nftables. See README.md.

mod bed;
mod stream;

use std::{process::ExitCode, thread, time::Duration};

use anyhow::{Result, ensure};
use clap::Parser;
use serde_json::json;

use crate::{
    bed::{Bed, Peer},
    stream::{Stream, now},
};

/// How long after a write is looked for packets that still pass.
const AFTER: Duration = Duration::from_millis(100);

/// Time from the write that takes a permission away to the last packet of a live flow that still passes.
#[derive(Debug, Parser)]
struct Options {
    /// Writes per row
    #[arg(long, default_value_t = 50)]
    runs: u32,
    /// Live flows beside the one that is cut
    #[arg(long, default_value_t = 100_000)]
    flows: u32,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

/// What came of a row.
struct Row {
    name: String,
    /// Nanoseconds from the end of the write to the last packet's departure, sorted; below 0 = it left before the write had ended.
    latencies: Vec<i64>,
    /// The same from the beginning of the write.
    since_begin: Vec<i64>,
    /// Runs in which packets went on passing.
    not_cut: u32,
}

fn main() -> ExitCode {
    if !bulkhead_testbed::sys::is_root() {
        eprintln!("SKIPPED: not root, and namespaces and kernel programs need root");
        return ExitCode::FAILURE;
    }
    match bench(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<()> {
    let bed = Bed::new()?;
    let mut rows = Vec::new();
    for flows in [0, options.flows] {
        let live = bed.open(flows)?;
        rows.push(measure(
            options,
            &bed,
            format!("bulkhead, {live} live flows"),
            &bed.ours()?,
        )?);
    }
    let bed = bed.without_us()?;
    for (name, established) in [
        ("nftables, every packet asked", false),
        ("nftables, established first", true),
    ] {
        rows.push(measure(options, &bed, name.to_owned(), &bed.nftables(established)?)?);
    }
    for row in &rows {
        print(row, options);
    }
    let ours = rows.iter().take(2).all(|row| row.not_cut == 0);
    ensure!(ours, "a revoked flow went on");
    Ok(())
}

fn measure(options: &Options, bed: &Bed, name: String, peer: &dyn Peer) -> Result<Row> {
    let stream = Stream::start(bed)?;
    let mut row = Row {
        name,
        latencies: Vec::new(),
        since_begin: Vec::new(),
        not_cut: 0,
    };
    for _ in 0..options.runs {
        peer.allow()?;
        stream.runs()?;
        let begun = now();
        peer.revoke()?;
        let written = now();
        thread::sleep(AFTER);
        let last = stream.last();
        let late = i64::try_from(last)? - i64::try_from(written)?;
        // Within the last tenth of the time: it still passes.
        if late > i64::try_from(AFTER.as_nanos())? / 10 * 9 {
            row.not_cut += 1;
        } else {
            row.latencies.push(late);
            row.since_begin.push(i64::try_from(last)? - i64::try_from(begun)?);
        }
    }
    peer.allow()?;
    row.latencies.sort_unstable();
    row.since_begin.sort_unstable();
    Ok(row)
}

fn print(row: &Row, options: &Options) {
    let middle = row.latencies.len() / 2;
    let (median, most) = (row.latencies.get(middle), row.latencies.last());
    let (since, since_most) = (row.since_begin.get(middle), row.since_begin.last());
    if options.json {
        let line = json!({
            "name": row.name, "runs": options.runs, "not_cut": row.not_cut, "median_ns": median, "max_ns": most,
            "since_begin_median_ns": since, "since_begin_max_ns": since_most,
        });
        println!("{line}");
        return;
    }
    let text = |value: Option<&i64>| value.map_or_else(|| "-".to_owned(), |value| format!("{} µs", value / 1_000));
    println!(
        "{:32} after the write: median {:>10} max {:>10}; since its beginning: median {:>10} max {:>10}; not cut {:>3} of {}",
        row.name,
        text(median),
        text(most),
        text(since),
        text(since_most),
        row.not_cut,
        options.runs
    );
}
