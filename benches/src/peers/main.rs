//! `bench-peers TOPIC [--rounds N] [--json]`: ours and others side by side, in one run. See README.md.

mod bed;
mod connections;
mod cpu;
mod flowlog;
mod forwarding;
mod maps;
mod report;
mod rules;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use crate::{
    bed::{Bed, Judge},
    report::Table,
};

/// Ours and others side by side.
#[derive(Debug, Parser)]
struct Options {
    #[arg(value_enum)]
    topic: Topic,
    /// Rounds, in each of which everything takes its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// One JSON object per line on standard output, everything else on standard error
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Topic {
    Forwarding,
    Connections,
    Flowlog,
    Maps,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !bulkhead_testbed::sys::is_root() {
        eprintln!("SKIPPED: not root, and namespaces and kernel programs need root");
        return ExitCode::FAILURE;
    }
    match bench(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(options: &Options) -> Result<ExitCode> {
    let heading = report::heading()?;
    let tables = match options.topic {
        Topic::Forwarding => forwarding::bench(&mut Bed::new()?, &judges(), options.rounds),
        Topic::Connections => connections::bench(&mut Bed::new()?, &judges(), options.rounds),
        Topic::Flowlog => flowlog::bench(options.rounds)?,
        Topic::Maps => maps::bench(options.rounds)?.into(),
    };
    if options.json {
        eprintln!("{heading}");
        print!("{}", tables.iter().map(Table::json).collect::<String>());
    } else {
        println!("{heading}\n");
        println!("{}", tables.iter().map(Table::text).collect::<Vec<_>>().join("\n"));
    }
    Ok(if tables.iter().all(Table::holds) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Those whose programs are here; of the others it is said that they are not.
fn judges() -> Vec<Judge> {
    let (here, absent): (Vec<Judge>, Vec<Judge>) = Judge::ALL.into_iter().partition(|judge| judge.lacks().is_none());
    for judge in absent {
        eprintln!(
            "SKIPPED: {}: {} is not here",
            judge.name(),
            judge.lacks().unwrap_or_default()
        );
    }
    here
}
