//! `cargo xtask bench`: builds a benchmark and runs it.

use std::{
    io,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments, paths,
    run::{self, paint, step},
    setup,
};

/// A benchmark: what it is called, its program, how that is built.
struct Benchmark {
    name: &'static str,
    program: &'static str,
    /// What the program is told beside options.
    topic: Option<&'static str>,
    /// Measures others too, whose programs are installed where they are missing.
    peers: bool,
    /// Programs it is made of: packages and binaries.
    parts: &'static [[&'static str; 2]],
    profile: &'static str,
    /// Loads kernel programs.
    root: bool,
    /// Options with a value that go to the program as they are.
    options: &'static [&'static str],
}

const PROPAGATION: [[&str; 2]; 2] = [
    ["bulkhead-benches", "bench-propagation"],
    ["bulkhead-dataplane", "bulkhead-agent"],
];

/// What `bench-peers` runs.
const NODE: [[&str; 2]; 3] = [
    ["bulkhead-benches", "bench-peers"],
    ["bulkhead-dataplane", "bulkhead-agent"],
    ["bulkhead-controller", "bulkhead-controller"],
];

/// A topic of `bench-peers`. Not optimised, as the first: packets are the kernel's, and what is ours in user space is an upper bound.
const fn peers(name: &'static str) -> Benchmark {
    Benchmark {
        name,
        program: "bench-peers",
        topic: Some(name),
        peers: true,
        parts: &NODE,
        profile: "dev",
        root: true,
        options: &["--rounds"],
    }
}

const BENCHMARKS: [Benchmark; 9] = [
    peers("forwarding"),
    peers("connections"),
    peers("flowlog"),
    peers("maps"),
    // Not optimised: what is measured are the kernel programs, which always are, and the kernel holds the watch.
    Benchmark {
        name: "verdict",
        program: "bench-verdict",
        topic: None,
        peers: false,
        parts: &[["bulkhead-benches", "bench-verdict"]],
        profile: "dev",
        root: true,
        options: &[],
    },
    // Not optimised, as above: what reading and loading a feed takes is an upper bound.
    Benchmark {
        name: "feed",
        program: "bench-feed",
        topic: None,
        peers: false,
        parts: &[["bulkhead-benches", "bench-feed"]],
        profile: "dev",
        root: true,
        options: &[],
    },
    // Not optimised: the writes are two system calls, and the packets are the kernel's.
    Benchmark {
        name: "revocation",
        program: "bench-revocation",
        topic: None,
        peers: false,
        parts: &[
            ["bulkhead-benches", "bench-revocation"],
            ["bulkhead-dataplane", "bulkhead-agent"],
            ["bulkhead-controller", "bulkhead-controller"],
            ["bulkhead-testbed", "testbed-peer"],
        ],
        profile: "dev",
        root: true,
        options: &["--runs", "--flows"],
    },
    Benchmark {
        name: "propagation",
        program: "bench-propagation",
        topic: None,
        peers: false,
        parts: &PROPAGATION,
        profile: "bench",
        root: false,
        options: &[
            "--nodes",
            "--agents",
            "--kernel-agents",
            "--pods",
            "--policies",
            "--changes",
        ],
    },
    // The same program, larger, without changes.
    Benchmark {
        name: "memory",
        program: "bench-propagation",
        topic: None,
        peers: false,
        parts: &PROPAGATION,
        profile: "bench",
        root: false,
        options: &[
            "--nodes",
            "--agents",
            "--kernel-agents",
            "--pods",
            "--policies",
            "--changes",
        ],
    },
];

/// What `memory` is unless the command line says otherwise.
const MEMORY: [(&str, &str); 5] = [
    ("--nodes", "1000"),
    ("--agents", "1"),
    ("--pods", "50000"),
    ("--policies", "5000"),
    ("--changes", "0"),
];

pub(crate) fn bench(arguments: &mut Arguments) -> Result<ExitCode> {
    let json = arguments.flag("--json");
    let mut given = Vec::new();
    for option in BENCHMARKS.iter().flat_map(|benchmark| benchmark.options) {
        if let Some(value) = arguments.value(option)? {
            given.push(((*option).to_owned(), value));
        }
    }
    let name = arguments.positional().unwrap_or_else(|| "verdict".to_owned());
    arguments.done()?;
    let Some(benchmark) = BENCHMARKS.iter().find(|benchmark| benchmark.name == name) else {
        let names: Vec<&str> = BENCHMARKS.iter().map(|benchmark| benchmark.name).collect();
        bail!("there is no benchmark {name}; there are: {}", names.join(", "));
    };
    if let Some((option, _)) = given
        .iter()
        .find(|(option, _)| !benchmark.options.contains(&option.as_str()))
    {
        bail!("benchmark {name} has no option {option}");
    }
    if name == "memory" {
        let missing = MEMORY
            .iter()
            .filter(|(option, _)| !given.iter().any(|(it, _)| it == option));
        let missing: Vec<_> = missing
            .map(|(it, value)| ((*it).to_owned(), (*value).to_owned()))
            .collect();
        given.extend(missing);
    }
    if benchmark.root && !run::is_root() {
        let reason = format!("bench {name}: not root, and loading kernel programs needs CAP_BPF");
        eprintln!("{} {reason}", paint(run::YELLOW, "SKIPPED"));
        // Nothing was measured, which is no success.
        return Ok(ExitCode::FAILURE);
    }
    let mut build = run::cargo(&["build", "--profile", benchmark.profile]);
    for [package, binary] in benchmark.parts {
        build.args(["--package", package, "--bin", binary]);
    }
    if benchmark.peers
        && let Err(error) = setup::ensure_peers()
    {
        // Whatever is not here is skipped by name.
        eprintln!("{} {error:#}", paint(run::YELLOW, "NOTE"));
    }
    if json {
        // Standard output is for the measurements alone.
        succeeds(Command::new(std::env::current_exe().context("finding xtask")?).arg("setup"))?;
        succeeds(&mut build)?;
    } else {
        setup::ensure()?;
        step("build the benchmark", &mut build)?;
    }
    let folder = if benchmark.profile == "dev" { "debug" } else { "release" };
    let mut command = Command::new(paths::target().join(folder).join(benchmark.program));
    command.args(benchmark.topic);
    command.args(given.iter().flat_map(|(option, value)| [option, value]));
    if json {
        command.arg("--json");
    }
    let status = command.status().context("running the benchmark")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs a command whose standard output goes to standard error.
fn succeeds(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(Stdio::from(io::stderr()))
        .status()
        .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("{}: {status}", command.get_program().to_string_lossy());
    }
    Ok(())
}
