//! `bulkhead-agent`.

use std::process::ExitCode;

use bulkhead_dataplane::{Options, agent};
use bulkhead_proto::log;
use clap::Parser;

fn main() -> ExitCode {
    let options = Options::parse();
    let (directives, format) = options.log();
    let level = match log::init(directives, format) {
        Ok(level) => level,
        Err(error) => {
            eprintln!("bulkhead-agent: --log-level {error}");
            return ExitCode::FAILURE;
        }
    };
    match agent::run(options, level) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
