//! `cargo xtask mutants`: named faults, each of which a test must catch.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::Arguments;

pub(crate) fn mutants(arguments: &mut Arguments) -> Result<ExitCode> {
    arguments.done()?;
    bail!("not written yet")
}
