//! `testbed-peer ROLE …`: one process of a test or of the demo, inside a pod's namespace.

use std::process::ExitCode;

use anyhow::{Result, bail};
use bulkhead_testbed::peer::{self, Options};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed-peer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((role, rest)) = arguments.split_first() else {
        bail!("which role?")
    };
    let options = Options::read(rest)?;
    match role.as_str() {
        "serve" => peer::serve(&options),
        "probe" => peer::probe(&options),
        "load" => peer::load(&options),
        "knock" => peer::knock(&options),
        "hold" => peer::hold(&options),
        "stream" => peer::stream(&options),
        "spoof" => peer::spoof(&options),
        "sniff" => peer::sniff(&options),
        other => bail!("there is no role {other}"),
    }
}
