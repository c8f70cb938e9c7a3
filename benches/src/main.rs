//! `bench-verdict [--json]`: nanoseconds per packet of the shipped kernel programs. See README.md.

mod place;
mod report;
mod rows;
mod world;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, Result, bail};
use bulkhead_dataplane::kernel::lab::Lab;

use crate::{
    place::Place,
    report::{Results, Summary},
    rows::{Peer, Row, measure_named},
    world::{Family, Size},
};

/// Rule entries of the clusters that are measured.
const SIZES: [u32; 3] = [10, 1_000, 100_000];
/// Runs of every row.
const RUNS: usize = 10;

fn main() -> ExitCode {
    let json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(other) => {
            eprintln!("bench-verdict takes --json and nothing else, not {other:?}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(why) = place::obstacle() {
        eprintln!("SKIPPED: {why}");
        return ExitCode::FAILURE;
    }
    match bench(json) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(json: bool) -> Result<ExitCode> {
    let place = Place::new()?;
    let heading = report::heading(&place)?;
    if json {
        eprintln!("{heading}");
    } else {
        println!("{heading}\n");
    }
    let mut results = Results::new();
    let mut failures = Vec::new();
    for entries in SIZES {
        measure_all(&place, entries, &mut results, &mut failures)?;
    }
    if json {
        print!("{}", report::json(&results));
    } else {
        print!("{}", report::table(&results, &SIZES, RUNS));
    }
    for failure in &failures {
        eprintln!("FAILED: {failure:#}");
    }
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Measures every row with so many entries, the rows in turn, so that what else the machine does meets all of them.
fn measure_all(place: &Place, entries: u32, results: &mut Results, failures: &mut Vec<anyhow::Error>) -> Result<()> {
    let size = Size::new(entries)?;
    let mut lab = Lab::open(&place.bpffs.join(entries.to_string())).context("loading the programs")?;
    size.write(&mut lab, place.ifindex)?;
    let mut runs: BTreeMap<(Family, Row), Result<Vec<u64>>> = BTreeMap::new();
    for _ in 0..RUNS {
        for family in Family::ALL {
            let peer = Peer {
                family,
                size,
                ifindex: place.ifindex,
            };
            for row in Row::ALL {
                let so_far = runs.entry((family, row)).or_insert_with(|| Ok(Vec::new()));
                let Ok(list) = so_far else { continue };
                match measure_named(&mut lab, row, &peer, entries) {
                    Ok(time) => list.push(time),
                    Err(error) => *so_far = Err(error),
                }
            }
        }
    }
    for ((family, row), runs) in runs {
        match runs {
            Ok(runs) => {
                let Some(summary) = Summary::of(runs) else {
                    bail!("a row without a run")
                };
                results.insert((family, row, entries), summary);
            }
            Err(error) => failures.push(error),
        }
    }
    Ok(())
}
