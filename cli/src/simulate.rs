//! `bulkhead simulate`: whether connections would be allowed, as the kernel would say it.
//!
//! Manifests are compiled, planned and written to maps in memory exactly as an agent writes the kernel's, and each connection's first
//! packet goes through the verdict that the kernel runs: from-pod at the source pod's device, to-pod at the destination's.

mod answer;
mod node;
mod question;
mod service;
mod world;

use std::{
    fs,
    io::{self, BufWriter, Read as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::Value;

pub use answer::{Answer, EndAnswer, Outcome, Verdict};
pub use node::WorldError;
pub(crate) use question::ip_protocol;
pub use question::{Name, Question, QuestionError};
pub(crate) use world::Route;
pub use world::{Path as QuestionPath, World};

use crate::{manifests, table};

/// Status when a probe could not be answered.
const SOME_UNANSWERED: u8 = 2;

/// Arguments of `simulate`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Files or folders of manifests: YAML or JSON as kubectl prints it, lists included.
    #[arg(long, required = true, num_args = 1.., value_name = "FILE_OR_DIR")]
    pub manifests: Vec<PathBuf>,
    /// A JSON array of {"from": IP or "ns/pod", "to": the same, "port": number, "protocol": "TCP", "UDP" or "SCTP"}; `-` reads it from
    /// standard input. A probe from a node's address is judged as a packet that the node forwards. With "name", a DNS name, the source pod
    /// had the address of `to` from an answer for it; without, no rule that names fqdns applies.
    #[arg(long, value_name = "PROBES.json")]
    pub probes: PathBuf,
    /// How to print the answers.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How answers are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// One JSON object for each probe, in order.
    Jsonl,
    /// A table.
    Table,
}

/// Runs the command. Diagnostics go to standard error; the status is 2 when a probe could not be answered.
///
/// # Errors
/// When the manifests or the probes cannot be read at all, or the policies do not fit a node's maps.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let compiled = manifests::compile(manifests::read(&arguments.manifests)?);
    let mut errors = io::stderr().lock();
    compiled
        .diagnostics
        .iter()
        .try_for_each(|diagnostic| writeln!(errors, "{diagnostic}"))?;
    drop(errors);
    let world = World::new(compiled.lowered, compiled.compiler.state())?;
    let probes = read_probes(&arguments.probes)?;
    let outcomes: Vec<Outcome> = probes.iter().map(|probe| answer(&world, probe)).collect();
    let mut out = BufWriter::new(io::stdout().lock());
    match arguments.output {
        Output::Jsonl => write_lines(&mut out, &outcomes)?,
        Output::Table => write_table(&mut out, &probes, &outcomes)?,
    }
    out.flush()?;
    let unanswered = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Error { .. }));
    Ok(if unanswered {
        ExitCode::from(SOME_UNANSWERED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Answers a probe as it stands in the file.
pub fn answer(world: &World, probe: &Value) -> Outcome {
    match Question::read(probe).and_then(|question| world.ask(&question)) {
        Ok(answer) => Outcome::Answer(answer),
        Err(error) => Outcome::Error {
            error: error.to_string(),
        },
    }
}

fn read_probes(path: &Path) -> anyhow::Result<Vec<Value>> {
    let context = || format!("reading probes from {}", path.display());
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).with_context(context)?;
        text
    } else {
        fs::read_to_string(path).with_context(context)?
    };
    match serde_json::from_str(&text).with_context(context)? {
        Value::Array(probes) => Ok(probes),
        _ => anyhow::bail!(
            "{}: not a JSON array; write [{{\"from\": …, \"to\": …, \"port\": …, \"protocol\": …}}]",
            context()
        ),
    }
}

fn write_lines(out: &mut impl Write, outcomes: &[Outcome]) -> anyhow::Result<()> {
    for outcome in outcomes {
        serde_json::to_writer(&mut *out, outcome)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn write_table(out: &mut impl Write, probes: &[Value], outcomes: &[Outcome]) -> anyhow::Result<()> {
    let word = |probe: &Value, field: &str| match probe.get(field) {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let end = |end: &Option<EndAnswer>| {
        end.as_ref()
            .map_or("-".to_owned(), |end| format!("{}: {}", end.verdict, end.rule))
    };
    let rows: Vec<[String; 6]> = probes
        .iter()
        .zip(outcomes)
        .map(|(probe, outcome)| {
            let port = format!("{}/{}", word(probe, "port"), word(probe, "protocol"));
            let (from, to) = (word(probe, "from"), word(probe, "to"));
            match outcome {
                Outcome::Answer(answer) => {
                    let [egress, ingress] = [end(&answer.egress), end(&answer.ingress)];
                    [
                        from,
                        to,
                        port,
                        answer.verdict.to_string(),
                        egress,
                        format!("{ingress} ({})", answer.reason),
                    ]
                }
                Outcome::Error { error } => [from, to, port, "error".to_owned(), error.clone(), String::new()],
            }
        })
        .collect();
    table::write(
        out,
        ["FROM", "TO", "PORT", "VERDICT", "EGRESS", "INGRESS (REASON)"],
        &rows,
    )?;
    Ok(())
}
