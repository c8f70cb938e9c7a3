//! `cargo xtask bpf`: builds the kernel programs by the same recipe as the agent's build script, and says what came out.

#[path = "../../dataplane/build/recipe.rs"]
#[allow(
    dead_code,
    clippy::match_bool,
    reason = "shared with the agent's build script, which uses the rest"
)]
mod recipe;

use std::{fs, process::ExitCode};

use anyhow::{Context, Result};

use crate::{paths, run, setup};

pub(crate) fn build_and_describe() -> Result<ExitCode> {
    setup::ensure()?;
    let root = paths::root();
    let request = recipe::Request {
        root: &root,
        target_dir: &paths::target().join("bpf"),
        arch: std::env::consts::ARCH,
    };
    let object = recipe::build(request)?;
    let size = fs::metadata(&object.path)
        .with_context(|| format!("reading {}", object.path.display()))?
        .len();
    let path = object.path.to_string_lossy();
    let digest = run::output("sha256sum", &[&path]).context("running sha256sum")?;
    println!("path    {path}");
    println!("size    {size} bytes");
    println!("sha256  {}", digest.split_whitespace().next().unwrap_or_default());
    println!("built   with {}", object.toolchain);
    Ok(ExitCode::SUCCESS)
}
