//! `cargo xtask bench`: builds the benchmark with optimisation and runs it.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{
    Arguments,
    run::{self, step},
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
        bail!("loading kernel programs needs root");
    }
    setup::ensure()?;
    let build = ["build", "--release", "--package", "bulkhead-benches"];
    step("build the benchmark", &mut run::cargo(&build))?;
    let mut command = run::cargo(&[
        "run",
        "--quiet",
        "--release",
        "--package",
        "bulkhead-benches",
        "--bin",
        &name,
        "--",
    ]);
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
