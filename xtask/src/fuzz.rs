//! `cargo xtask fuzz`: runs every fuzz target of every `<crate>/fuzz` for a while, under the nightly compiler.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments, paths,
    run::{self, output, paint, step},
};

const CARGO_FUZZ_VERSION: &str = "0.13.2";
const DEFAULT_SECONDS: u64 = 60;

/// A fuzz target: the crate's `fuzz` directory and its name in the manifest there.
struct Target {
    directory: PathBuf,
    name: String,
}

pub(crate) fn fuzz(arguments: &mut Arguments) -> Result<ExitCode> {
    let seconds = match arguments.value("--seconds")? {
        None => DEFAULT_SECONDS,
        Some(text) => text
            .parse()
            .with_context(|| format!("--seconds {text}: not a number of seconds"))?,
    };
    let wanted = arguments.positional();
    arguments.done()?;
    let all = targets()?;
    let chosen: Vec<&Target> = all
        .iter()
        .filter(|target| wanted.as_ref().is_none_or(|name| *name == target.name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
        bail!(
            "no fuzz target {}; there are: {}",
            wanted.unwrap_or_default(),
            names.join(", ")
        );
    }
    let tool = cargo_fuzz()?;
    let mut failed = 0_usize;
    for target in &chosen {
        let result = run_target(&tool, target, seconds);
        match &result {
            Ok(summary) => println!(
                "{} {}: no crash in {seconds} s ({summary})",
                paint(run::GREEN, "✓"),
                target.name
            ),
            Err(error) => println!("{} {}: {error:#}", paint(run::RED, "✗"), target.name),
        }
        failed += usize::from(result.is_err());
    }
    println!("{} passed, {failed} failed, 0 skipped", chosen.len() - failed);
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every `[[bin]]` of every `<crate>/fuzz/Cargo.toml`.
fn targets() -> Result<Vec<Target>> {
    let mut found = Vec::new();
    let mut directories: Vec<PathBuf> = fs::read_dir(paths::root())
        .context("reading the checkout")?
        .filter_map(|entry| Some(entry.ok()?.path().join("fuzz")))
        .filter(|path| path.join("Cargo.toml").exists())
        .collect();
    directories.sort();
    for directory in directories {
        let manifest = directory.join("Cargo.toml");
        let text = fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
        let names = text.split("[[bin]]").skip(1).filter_map(|section| {
            let line = section.lines().find(|line| line.trim_start().starts_with("name"))?;
            Some(line.split_once('"')?.1.split_once('"')?.0.to_owned())
        });
        found.extend(names.map(|name| Target {
            directory: directory.clone(),
            name,
        }));
    }
    Ok(found)
}

/// cargo-fuzz of the pinned version, installed into the cache when it is not there.
fn cargo_fuzz() -> Result<PathBuf> {
    if output("rustup", &["run", "nightly", "rustc", "-V"]).is_none() {
        bail!("fuzzing needs the nightly compiler (sanitizers): rustup toolchain install nightly --profile minimal");
    }
    let root = paths::cache()?.join(format!("tools/cargo-fuzz-{CARGO_FUZZ_VERSION}"));
    let tool = root.join("bin/cargo-fuzz");
    if !tool.exists() {
        println!(
            "installing cargo-fuzz {CARGO_FUZZ_VERSION} into {} (about a minute, once)",
            root.display()
        );
        let mut command = run::cargo(&[
            "install",
            "cargo-fuzz",
            "--version",
            CARGO_FUZZ_VERSION,
            "--locked",
            "--root",
        ]);
        step("install cargo-fuzz", command.arg(&root))?;
    }
    Ok(tool)
}

/// Builds and runs one target; the summary is libFuzzer's last status line.
fn run_target(tool: &Path, target: &Target, seconds: u64) -> Result<String> {
    let fuzz = |verb: &str| -> Result<Command> {
        let mut command = Command::new("rustup");
        command
            .args(["run", "nightly"])
            .arg(tool)
            // cargo hands its own name as the first argument to a subcommand.
            .args(["fuzz", verb, "--fuzz-dir", "."])
            .arg(&target.name)
            .current_dir(&target.directory)
            // The outer cargo's choice of compiler must not reach the inner one.
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO")
            .env("CARGO_TARGET_DIR", paths::cache()?.join("target-fuzz"));
        Ok(command)
    };
    step(&format!("build fuzz target {}", target.name), &mut fuzz("build")?)?;
    let title = format!("fuzz {}", target.name);
    step(
        &title,
        fuzz("run")?.args([
            "--",
            &format!("-max_total_time={seconds}"),
            "-max_len=4096",
            "-print_final_stats=1",
        ]),
    )?;
    let log = paths::target().join("xtask").join(format!(
        "fuzz-{}.log",
        target.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    ));
    let text = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    let executed = text
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    Ok(format!(
        "{} executions",
        executed.unwrap_or("an unknown number of").trim()
    ))
}
