//! `cargo xtask demo`: sets up, builds, and hands over to the demo in testbed/.

use std::{os::unix::process::CommandExt, process::ExitCode};

use anyhow::{Result, bail};

use crate::{
    Arguments, paths,
    run::{self, step},
    setup,
};

pub(crate) fn demo(arguments: &mut Arguments) -> Result<ExitCode> {
    let keep = arguments.flag("--keep");
    arguments.done()?;
    if !run::is_root() {
        bail!(
            "the demo makes network namespaces and loads kernel programs, which needs root. Nothing outside its own \
             namespaces is touched. Run: sudo -E {} xtask demo",
            paths::cargo().display()
        );
    }
    setup::ensure()?;
    build()?;
    let mut demo = run::cargo(&[
        "run",
        "--quiet",
        "--package",
        "bulkhead-testbed",
        "--bin",
        "bulkhead-demo",
        "--",
    ]);
    if keep {
        demo.arg("--keep");
    }
    // Replaces this process, so that Ctrl-C reaches the demo alone and it can clean up.
    bail!("starting the demo: {}", demo.exec())
}

/// Builds the binaries the demo starts: all of the workspace's, see `tests::Select` for why not only those.
fn build() -> Result<()> {
    step(
        "build controller, agent, cli and testbed",
        &mut run::cargo(&["build", "--workspace", "--bins"]),
    )
}
