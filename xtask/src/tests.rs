//! `cargo xtask test`: every tier of tests, counted. A test that could not run is counted as skipped, with its reason, and
//! is never green.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments,
    cluster::binaries,
    conformance, paths,
    run::{self, paint, seconds, step},
    setup, tidy,
};

const HISTOGRAM_COLUMNS: usize = 6;

/// How the reason of an ignored test begins that a tier of its own runs: it is not skipped for want of anything.
const SLOW: &str = "ignored, slow: ";

/// The tier whose tests want what a cluster's nodes have.
const E2E: &str = "e2e";

/// A tier of tests.
struct Tier {
    name: &'static str,
    what: &'static str,
    select: Select,
}

/// Which tests a tier runs. Always out of the whole workspace: cargo unites the features of the packages it is asked for,
/// and would compile half of the dependencies again for each other set.
enum Select {
    /// Everything that no other tier names.
    Rest,
    /// Integration tests of these names.
    Named(&'static [&'static str]),
    /// Integration tests whose names begin with this: they want a real API server.
    Kube(&'static str),
    /// What integration tests of these names have marked `#[ignore = "slow: …"]`; only when asked for.
    Slow(&'static [&'static str]),
    /// The tree's own rules.
    Tidy,
    /// On a cluster; only when asked for, since it takes minutes and builds Kubernetes.
    Cluster,
}

const TIERS: [Tier; 8] = [
    Tier {
        name: "unit",
        what: "unit and property tests of all crates; no root needed",
        select: Select::Rest,
    },
    Tier {
        name: "kube",
        what: "the controller on a real API server and etcd; Go, which builds them once",
        select: Select::Kube("kube"),
    },
    Tier {
        name: "kernel",
        what: "the shipped kernel programs against the same vectors as the host, and the agent's maps; root",
        select: Select::Named(&["kernel_vectors", "agent"]),
    },
    Tier {
        name: E2E,
        what: "real TCP, UDP and ICMP between pods in namespaces, compared with simulate and the oracle; root, and Go for kube-proxy",
        select: Select::Named(&[
            "bed",
            "demo",
            "matrix",
            "faults",
            "cni",
            "rotation",
            "established",
            "names",
            "uplinks",
            "pressure",
            "drift",
            "past",
            "leases",
            "host",
            "services",
            "soak",
        ]),
    },
    Tier {
        name: "restart",
        what: "the agent dies and comes back under traffic; root",
        select: Select::Named(&["restart"]),
    },
    Tier {
        name: "tidy",
        what: "the rules of the tree: layers, sizes, docs, examples, format, lints",
        select: Select::Tidy,
    },
    Tier {
        name: "slow",
        what: "tests that take minutes; only with --tier slow",
        select: Select::Slow(&["kube_faults"]),
    },
    Tier {
        name: "cluster",
        what: "few of upstream's specs on a real cluster with our agents; root and Go; only with --tier cluster",
        select: Select::Cluster,
    },
];

/// The soak alone, for as long as is asked.
const SOAK: Tier = Tier {
    name: "soak",
    what: "policies and labels change and agents are killed, at random, under traffic; root",
    select: Select::Named(&["soak"]),
};

/// What a tier did.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Tests that ran and hold.
    pub(crate) passed: usize,
    /// Names of tests that do not hold, or what else went wrong.
    pub(crate) failed: Vec<String>,
    /// Tests that could not run: name and reason.
    pub(crate) skipped: Vec<(String, String)>,
    /// Lines worth showing whatever happened.
    pub(crate) notes: Vec<String>,
}

pub(crate) fn test(arguments: &mut Arguments) -> Result<ExitCode> {
    let list = arguments.flag("--list");
    let wanted = arguments.value("--tier")?;
    let soak = arguments.value("--soak")?;
    arguments.done()?;
    if let Some(seconds) = &soak {
        let _: u32 = seconds
            .parse()
            .with_context(|| format!("--soak {seconds}: not a number of seconds"))?;
    }
    if list {
        for tier in &TIERS {
            println!("{:<8} {}", tier.name, tier.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let tiers: Vec<&Tier> = TIERS
        .iter()
        .filter(|tier| match wanted.as_deref() {
            Some(name) => name == tier.name,
            None => soak.is_none() && !matches!(tier.select, Select::Cluster | Select::Slow(_)),
        })
        .chain(soak.is_some().then_some(&SOAK))
        .collect();
    if tiers.is_empty() {
        bail!(
            "there is no tier {}; see `cargo xtask test --list`",
            wanted.unwrap_or_default()
        );
    }
    let started = Instant::now();
    setup::ensure()?;
    let mut total = Outcome::default();
    for tier in tiers {
        let started = Instant::now();
        println!("{} {}", paint(run::BOLD, tier.name), paint(run::DIM, tier.what));
        let outcome = run_tier(tier, soak.as_deref()).unwrap_or_else(|error| Outcome {
            failed: vec![format!("{}: {error:#}", tier.name)],
            ..Outcome::default()
        });
        print_tier(tier, &outcome, &seconds(started.elapsed()));
        total.add(outcome);
    }
    for (name, reason) in &total.skipped {
        println!("{} {name}: {reason}", paint(run::YELLOW, "SKIPPED"));
    }
    for name in &total.failed {
        println!("{} {name}", paint(run::RED, "FAILED"));
    }
    println!("all tiers: {}", seconds(started.elapsed()));
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed,
        total.failed.len(),
        total.skipped.len()
    );
    Ok(if total.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

fn print_tier(tier: &Tier, outcome: &Outcome, elapsed: &str) {
    for note in &outcome.notes {
        println!("    {note}");
    }
    let (code, mark) = match (outcome.failed.is_empty(), outcome.skipped.is_empty()) {
        (false, _) => (run::RED, "✗"),
        (true, false) => (run::YELLOW, "!"),
        (true, true) => (run::GREEN, "✓"),
    };
    println!(
        "{} {}: {} passed, {} failed, {} skipped in {elapsed}",
        paint(code, mark),
        tier.name,
        outcome.passed,
        outcome.failed.len(),
        outcome.skipped.len()
    );
}

fn run_tier(tier: &Tier, soak: Option<&str>) -> Result<Outcome> {
    let tests = match tier.select {
        Select::Tidy => return tidy::all(true),
        Select::Cluster => return conformance::smoke(),
        Select::Named(names) | Select::Slow(names) => names.iter().map(ToString::to_string).collect(),
        Select::Kube(_) | Select::Rest => integration_tests(tier)?,
    };
    // Builds the binaries too, those that the end-to-end tests start.
    step("build all tests", &mut run::cargo(&["test", "--workspace", "--no-run"]))?;
    let mut outcome = Outcome::default();
    let mut command = run::cargo(&["test", "--no-fail-fast", "--workspace"]);
    for test in &tests {
        command.args(["--test", test]);
    }
    // One by one where tests load programs and make namespaces: they would share the machine's two cores and time out.
    if matches!(tier.select, Select::Rest) {
        command.args(["--lib", "--bins", "--", "--show-output"]);
    } else {
        command.args(["--", "--show-output", "--test-threads=1"]);
    }
    if matches!(tier.select, Select::Slow(_)) {
        command.arg("--ignored");
    }
    if let Some(seconds) = soak {
        command.env("BULKHEAD_SOAK", seconds);
    }
    let end_to_end = tier.name == E2E && run::is_root();
    if end_to_end {
        // kube-proxy and the CNI's plugins want Debian's programs.
        setup::ensure_cluster()?;
    }
    if (end_to_end || matches!(tier.select, Select::Kube(_) | Select::Slow(_)))
        && let Some(program) = binaries::api_server()?
    {
        command.env("BULKHEAD_KUBE_TESTBED", program);
    }
    read_results(&mut command, tier.name, &mut outcome)?;
    if outcome.passed + outcome.failed.len() + outcome.skipped.len() == 0 {
        bail!("no test ran at all, which is not a success");
    }
    Ok(outcome)
}

/// Names of the workspace's integration tests that are of a tier which does not name them: a new one runs without being
/// entered anywhere.
fn integration_tests(tier: &Tier) -> Result<Vec<String>> {
    let output = run::cargo(&["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let owner = |name: &str| {
        TIERS.iter().find(|tier| match tier.select {
            Select::Named(names) => names.contains(&name),
            Select::Kube(prefix) => name.starts_with(prefix),
            _ => false,
        })
    };
    let is_ours = |name: &str| match owner(name) {
        Some(owner) => owner.name == tier.name,
        None => matches!(tier.select, Select::Rest),
    };
    let mut tests = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        for target in package["targets"].as_array().into_iter().flatten() {
            if let Some(name) = target["name"].as_str()
                && target["kind"][0] == "test"
                && is_ours(name)
            {
                tests.push(name.to_owned());
            }
        }
    }
    tests.sort();
    Ok(tests)
}

/// Runs `cargo test` and reads what libtest prints. A test that cannot run prints `SKIPPED: why` and returns; libtest calls
/// that passed, we do not.
fn read_results(command: &mut Command, log: &str, outcome: &mut Outcome) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("running cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let directory = paths::target().join("xtask");
    fs::create_dir_all(&directory).context("creating the log directory")?;
    let path = directory.join(format!("test-{log}.log"));
    fs::write(&path, [output.stdout.as_slice(), &output.stderr].concat()).context("writing the log")?;
    let results = Results::read(&text);
    for (name, block) in &results.failures {
        println!("{} {name}\n{block}", paint(run::RED, "✗"));
    }
    outcome.notes.push(format!("log: {}", path.display()));
    outcome.notes.extend(results.notes);
    for row in results.histogram.chunks(HISTOGRAM_COLUMNS) {
        outcome.notes.push(format!("reached: {}", row.join(" · ")));
    }
    let failed_before = outcome.failed.len();
    outcome.passed += results.passed;
    outcome.failed.extend(results.failures.into_keys());
    outcome.skipped.extend(results.skipped);
    if !output.status.success() && outcome.failed.len() == failed_before {
        println!("{}", String::from_utf8_lossy(&output.stderr));
        outcome.failed.push(format!(
            "cargo test of {log} ended with {} without naming a test",
            output.status
        ));
    }
    Ok(())
}

/// libtest's output, read.
#[derive(Default)]
struct Results {
    passed: usize,
    /// Name → what it printed.
    failures: BTreeMap<String, String>,
    skipped: Vec<(String, String)>,
    notes: Vec<String>,
    histogram: Vec<String>,
}

/// `    12  policy-denied`: how often something was reached.
fn histogram_row(line: &str) -> Option<(u64, &str)> {
    let (count, name) = line.strip_prefix(' ')?.trim_start().split_once("  ")?;
    Some((count.parse().ok()?, name)).filter(|(_, name)| !name.contains("  "))
}

impl Results {
    fn read(text: &str) -> Self {
        let mut results = Self::default();
        let mut names_failed = Vec::new();
        let mut printing: Option<String> = None;
        // Verdicts come first, then what tests printed, which may look like anything.
        let mut verdicts = true;
        for line in text.lines() {
            verdicts = (verdicts || line.starts_with("running ")) && line != "successes:" && line != "failures:";
            if let Some(name) = line
                .strip_prefix("---- ")
                .and_then(|rest| rest.strip_suffix(" stdout ----"))
            {
                printing = Some(name.to_owned());
            } else if let (true, Some((name, verdict))) = (
                verdicts,
                line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")),
            ) {
                match verdict {
                    "ok" => results.passed += 1,
                    "FAILED" => names_failed.push(name.to_owned()),
                    other if other.starts_with(SLOW) => {}
                    other if other.starts_with("ignored") => results.skipped.push((name.to_owned(), other.to_owned())),
                    _ => {}
                }
            } else if line.starts_with("test result: ") || line == "successes:" || line == "failures:" {
                printing = None;
            } else if let Some(name) = &printing {
                if let Some(reason) = line.strip_prefix("SKIPPED: ") {
                    results.passed = results.passed.saturating_sub(1);
                    results.skipped.push((name.clone(), reason.to_owned()));
                } else if let Some(note) = line.strip_prefix("NOTE: ") {
                    results.notes.push(note.to_owned());
                } else if let Some((count, name)) = histogram_row(line) {
                    results.histogram.push(format!("{name} {count}"));
                }
                let block = results.failures.entry(name.clone()).or_default();
                block.push_str("    ");
                block.push_str(line);
                block.push('\n');
            }
        }
        results.failures.retain(|name, _| names_failed.contains(name));
        for name in names_failed {
            results.failures.entry(name).or_default();
        }
        results
    }
}

#[cfg(test)]
mod self_tests {
    use super::Results;

    const OUTPUT: &str = "running 5 tests
test a::good ... ok
test b::needs_root ... ok
test c::bad ... FAILED
test d::later ... ignored, not on this kernel
test e::long ... ignored, slow: minutes

successes:

---- a::good stdout ----
NOTE: 12 packets
    12  policy-denied

---- b::needs_root stdout ----
SKIPPED: not root

failures:

---- c::bad stdout ----
assertion failed
test of nothing ... at all

failures:
    c::bad

test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let results = Results::read(OUTPUT);
        assert_eq!(results.passed, 1);
        assert_eq!(results.failures.keys().collect::<Vec<_>>(), ["c::bad"]);
        assert!(results.failures["c::bad"].contains("assertion failed"));
        assert_eq!(results.notes, ["12 packets"]);
        assert_eq!(results.histogram, ["policy-denied 12"]);
        let skipped: Vec<_> = results
            .skipped
            .iter()
            .map(|(name, why)| (name.as_str(), why.as_str()))
            .collect();
        assert_eq!(
            skipped,
            [
                ("d::later", "ignored, not on this kernel"),
                ("b::needs_root", "not root")
            ]
        );
    }
}
