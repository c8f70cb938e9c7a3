//! `bulkhead-demo [--keep]`: what `cargo xtask demo` shows, once everything is built.

use std::process::ExitCode;

fn main() -> ExitCode {
    let keep = std::env::args().skip(1).any(|argument| argument == "--keep");
    match bulkhead_testbed::demo::run(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
