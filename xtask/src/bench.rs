//! `cargo xtask bench`: builds the benchmark and runs it.

use std::{
    io,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments,
    run::{self, paint, step},
    setup,
};

pub(crate) fn bench(arguments: &mut Arguments) -> Result<ExitCode> {
    let json = arguments.flag("--json");
    let name = arguments.positional().unwrap_or_else(|| "verdict".to_owned());
    arguments.done()?;
    if name != "verdict" {
        bail!("there is no benchmark {name}; there is: verdict");
    }
    if !run::is_root() {
        let reason = "bench verdict: not root, and loading kernel programs needs CAP_BPF";
        eprintln!("{} {reason}", paint(run::YELLOW, "SKIPPED"));
        // Nothing was measured, which is no success.
        return Ok(ExitCode::FAILURE);
    }
    // Not optimised: what is measured are the kernel programs, which always are, and the kernel holds the watch.
    let package = ["--package", "bulkhead-benches"];
    let mut build = run::cargo(&["build"]);
    build.args(package);
    if json {
        // Standard output is for the measurements alone.
        succeeds(Command::new(std::env::current_exe().context("finding xtask")?).arg("setup"))?;
        succeeds(&mut build)?;
    } else {
        setup::ensure()?;
        step("build the benchmark", &mut build)?;
    }
    let mut command = run::cargo(&["run", "--quiet"]);
    command.args(package).args(["--bin", "bench-verdict", "--"]);
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
