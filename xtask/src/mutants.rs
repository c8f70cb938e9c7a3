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

use anyhow::{Context, Result, bail};

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
}

impl Verdict {
    fn text(self) -> String {
        match self {
            Self::Caught => paint(run::GREEN, "caught"),
            Self::Hung => paint(run::GREEN, "caught (did not end)"),
            Self::Missed => paint(run::RED, "MISSED"),
            Self::Broken => paint(run::RED, "DOES NOT COMPILE"),
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

fn run_all(mutants: &[Mutant]) -> Result<ExitCode> {
    let started = Instant::now();
    let scratch = Scratch::open()?;
    let mut bad = 0;
    // By test, so that one build serves as the baseline of all that need it.
    let mut by_test: BTreeMap<&str, Vec<&Mutant>> = BTreeMap::new();
    for mutant in mutants {
        by_test.entry(&mutant.test).or_default().push(mutant);
    }
    for (test, mutants) in by_test {
        let baseline = Instant::now();
        match judge(&scratch, test)? {
            Verdict::Missed => println!(
                "{}",
                paint(
                    run::DIM,
                    &format!(
                        "cargo test {test}: passes without a fault ({})",
                        seconds(baseline.elapsed())
                    )
                )
            ),
            Verdict::Caught | Verdict::Hung | Verdict::Broken => {
                bail!(
                    "cargo test {test} does not pass without a fault, so it cannot tell; see {}",
                    scratch.log().display()
                )
            }
        }
        for mutant in mutants {
            let begun = Instant::now();
            let verdict = try_one(&scratch, mutant)?;
            bad += usize::from(!verdict.is_good());
            print_line(mutant, verdict, begun.elapsed());
        }
    }
    println!(
        "{} mutants, {} caught, {bad} not, in {}",
        mutants.len(),
        mutants.len() - bad,
        seconds(started.elapsed())
    );
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_line(mutant: &Mutant, verdict: Verdict, elapsed: Duration) {
    println!(
        "{:<34} {:>8}  {}  {}",
        mutant.name,
        seconds(elapsed),
        verdict.text(),
        paint(run::DIM, &mutant.what)
    );
}

/// Puts one fault into the copy, tests, and takes it out again.
fn try_one(scratch: &Scratch, mutant: &Mutant) -> Result<Verdict> {
    let original = scratch.text(&mutant.file)?;
    let faulty = mutant.applied(&original)?;
    scratch.write(&mutant.file, &faulty)?;
    let verdict = judge(scratch, &mutant.test);
    scratch.write(&mutant.file, &original)?;
    verdict
}

/// Builds and runs a test in the copy.
fn judge(scratch: &Scratch, test: &str) -> Result<Verdict> {
    let (cargo, libtest) = test.split_once(" -- ").unwrap_or((test, ""));
    let build = cargo_test(scratch, cargo)
        .arg("--no-run")
        .status()
        .context("running cargo")?;
    if !build.success() {
        return Ok(Verdict::Broken);
    }
    let mut command = cargo_test(scratch, cargo);
    command.arg("--").args(libtest.split_whitespace());
    let status = command.status().context("running cargo")?;
    Ok(match status.code() {
        Some(0) => Verdict::Missed,
        Some(TIMED_OUT) => Verdict::Hung,
        _ => Verdict::Caught,
    })
}

fn cargo_test(scratch: &Scratch, arguments: &str) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", SECONDS_MAX])
        .arg(paths::cargo())
        .args(["test", "--quiet"])
        .args(arguments.split_whitespace())
        .current_dir(scratch.tree())
        .env("CARGO_TARGET_DIR", scratch.target())
        // A failing property is all we ask for: neither the smallest case nor a file that remembers it.
        .env("PROPTEST_MAX_SHRINK_ITERS", "0")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
        .stdin(Stdio::null());
    scratch.log_to(&mut command);
    command
}
