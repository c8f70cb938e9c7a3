//! `cargo xtask mutants`: named faults, each of which a test must catch.
//!
//! A fault is put into a copy of the tree, never into the checkout, and the cheapest test that ought to notice is run there:
//! it must pass without the fault and fail with it. The faults are in `xtask/mutants/*.txt`; see [`table`] for the format.

mod scratch;
mod table;

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use self::{scratch::Scratch, table::Mutant};
use crate::{
    Arguments, paths,
    run::{self, paint, seconds},
    setup,
};

/// What a test may take before it is ended; with a fault in the tree that is as good as failing.
const SECONDS_MAX: &str = "600";
/// What timeout(1) answers when it had to end a command.
const TIMED_OUT: i32 = 124;

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The test failed.
    Caught,
    /// The test did not end.
    Hung,
    /// The test passed.
    Missed,
    /// The faulty tree does not compile, so nothing was tested.
    Broken,
    /// The text that the fault replaces is not there once.
    Stale,
}

impl Verdict {
    fn text(self) -> String {
        match self {
            Self::Caught => paint(run::GREEN, "caught"),
            Self::Hung => paint(run::GREEN, "caught (did not end)"),
            Self::Missed => paint(run::RED, "MISSED"),
            Self::Broken => paint(run::RED, "DOES NOT COMPILE"),
            Self::Stale => paint(run::RED, "DOES NOT APPLY"),
        }
    }

    fn is_good(self) -> bool {
        matches!(self, Self::Caught | Self::Hung)
    }
}

pub(crate) fn mutants(arguments: &mut Arguments) -> Result<ExitCode> {
    let list = arguments.flag("--list");
    let mut wanted = Vec::new();
    while let Some(name) = arguments.positional() {
        wanted.push(name);
    }
    arguments.done()?;
    let all = table::read(&paths::root())?;
    if list {
        for mutant in &all {
            println!("{:<34} {:<8} {}", mutant.name, mutant.area, mutant.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(all, &wanted)?;
    setup::ensure()?;
    run_all(&chosen)
}

/// The mutants of these names or areas; all when there are none.
fn choose(all: Vec<Mutant>, wanted: &[String]) -> Result<Vec<Mutant>> {
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !all.iter().any(|mutant| mutant.is_called(name)))
    {
        bail!("there is no mutant or area {unknown}; see `cargo xtask mutants --list`");
    }
    let is_wanted = |mutant: &Mutant| wanted.is_empty() || wanted.iter().any(|name| mutant.is_called(name));
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// What became of all of them.
#[derive(Default)]
struct Count {
    caught: usize,
    not: usize,
    skipped: usize,
}

fn run_all(mutants: &[Mutant]) -> Result<ExitCode> {
    let started = Instant::now();
    let scratch = Scratch::open()?;
    let mut count = Count::default();
    // By test, so that one build serves as the baseline of all that need it.
    let mut by_test: BTreeMap<&str, Vec<&Mutant>> = BTreeMap::new();
    for mutant in mutants {
        by_test.entry(&mutant.test).or_default().push(mutant);
    }
    for (test, mutants) in by_test {
        run_some(&scratch, test, &mutants, &mut count)?;
    }
    println!(
        "{} caught, {} not, {} skipped, in {}",
        count.caught,
        count.not,
        count.skipped,
        seconds(started.elapsed())
    );
    // What was skipped is not known to be caught.
    Ok(if count.not + count.skipped == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The mutants of one test, behind a run without any fault.
fn run_some(scratch: &Scratch, test: &str, mutants: &[&Mutant], count: &mut Count) -> Result<()> {
    if mutants.iter().any(|mutant| mutant.needs_root) && !run::is_root() {
        count.skipped += mutants.len();
        for mutant in mutants {
            println!(
                "{:<34} {}: cargo test {test} needs root",
                mutant.name,
                paint(run::YELLOW, "SKIPPED")
            );
        }
        return Ok(());
    }
    let begun = Instant::now();
    let (verdict, by) = judge(scratch, test)?;
    if verdict != Verdict::Missed {
        bail!(
            "cargo test {test} does not pass without a fault ({by}), so it cannot tell; see {}",
            scratch.log().display()
        );
    }
    let passes = format!(
        "cargo test {test}: passes without a fault ({})",
        seconds(begun.elapsed())
    );
    println!("{}", paint(run::DIM, &passes));
    for mutant in mutants {
        let begun = Instant::now();
        let (verdict, by) = try_one(scratch, mutant)?;
        if verdict.is_good() {
            count.caught += 1;
        } else {
            count.not += 1;
        }
        print_line(mutant, verdict, &by, begun.elapsed());
    }
    Ok(())
}

fn print_line(mutant: &Mutant, verdict: Verdict, by: &str, elapsed: Duration) {
    println!(
        "{:<34} {:>8}  {} {}",
        mutant.name,
        seconds(elapsed),
        verdict.text(),
        paint(run::DIM, if verdict.is_good() { by } else { &mutant.what })
    );
}

/// Puts one fault into the copy, tests, and takes it out again.
fn try_one(scratch: &Scratch, mutant: &Mutant) -> Result<(Verdict, String)> {
    let original = scratch.text(&mutant.file)?;
    let faulty = match mutant.applied(&original) {
        Ok(faulty) => faulty,
        Err(error) => return Ok((Verdict::Stale, error.to_string())),
    };
    scratch.write(&mutant.file, &faulty)?;
    let verdict = judge(scratch, &mutant.test);
    scratch.write(&mutant.file, &original)?;
    verdict
}

/// Builds and runs a test in the copy; tells what became of it and the first test that failed.
fn judge(scratch: &Scratch, test: &str) -> Result<(Verdict, String)> {
    let (cargo, libtest) = test.split_once(" -- ").unwrap_or((test, ""));
    let built = scratch.run(cargo_test(scratch, cargo).arg("--no-run"))?;
    if !built.status.success() {
        return Ok((Verdict::Broken, String::new()));
    }
    let mut command = cargo_test(scratch, cargo);
    command.arg("--").args(libtest.split_whitespace());
    let output = scratch.run(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut failed = text
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    let verdict = match output.status.code() {
        Some(0) => Verdict::Missed,
        Some(TIMED_OUT) => Verdict::Hung,
        _ => Verdict::Caught,
    };
    Ok((verdict, failed.next().unwrap_or_default().to_owned()))
}

fn cargo_test(scratch: &Scratch, arguments: &str) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", SECONDS_MAX])
        .arg(paths::cargo())
        .arg("test")
        .args(arguments.split_whitespace())
        .current_dir(scratch.tree())
        .env("CARGO_TARGET_DIR", scratch.target())
        // A failing property is all we ask for: neither the smallest case nor a file that remembers it.
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
        .stdin(Stdio::null());
    command
}
