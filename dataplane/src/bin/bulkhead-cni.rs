//! `bulkhead-cni`: the chained CNI plugin. A pod starts when the agent says that its first packet will be judged.

use std::{
    io::{Read, Write},
    process::ExitCode,
};

use bulkhead_dataplane::cni::plugin;

/// Longest configuration, bytes.
const INPUT_MAX: u64 = 1 << 20;

fn main() -> ExitCode {
    let mut input = String::new();
    // What cannot be read is no JSON either, and is told as that.
    drop(std::io::stdin().take(INPUT_MAX).read_to_string(&mut input));
    let answer = plugin::call(|name| std::env::var(name).ok(), &input);
    let written = match &answer.output {
        Some(output) => writeln!(std::io::stdout(), "{output}"),
        None => Ok(()),
    };
    if answer.success && written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
