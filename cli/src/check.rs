//! `bulkhead check`: what is wrong, or suspicious, in folders of manifests.

use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::Object,
};
use clap::ValueEnum;
use serde_json::json;

use crate::manifests::{self, Compiled};

/// Arguments of `check`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Files or folders of manifests.
    #[arg(required = true, value_name = "FILE_OR_DIR")]
    pub manifests: Vec<PathBuf>,
    /// How to print the findings.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How findings are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON object: `diagnostics`, `errors`, `warnings`, `policies`, `pods`.
    Json,
}

/// Runs the command; the status is 1 when there is an error, 0 with warnings only.
///
/// # Errors
/// When a path does not exist.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let compiled = manifests::compile(manifests::read(&arguments.manifests)?);
    let mut out = BufWriter::new(io::stdout().lock());
    match arguments.output {
        Output::Table => write_people(&mut out, &compiled)?,
        Output::Json => write_json(&mut out, &compiled)?,
    }
    out.flush()?;
    Ok(if count(&compiled, Severity::Error) == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn count(compiled: &Compiled, severity: Severity) -> usize {
    compiled
        .diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity == severity)
        .count()
}

fn objects(compiled: &Compiled, is: fn(&Object) -> bool) -> usize {
    compiled.lowered.objects.iter().filter(|object| is(object)).count()
}

fn policies(compiled: &Compiled) -> usize {
    objects(compiled, |object| matches!(object, Object::Policy(_)))
}

fn pods(compiled: &Compiled) -> usize {
    objects(compiled, |object| matches!(object, Object::Workload(_)))
}

fn write_json(out: &mut impl Write, compiled: &Compiled) -> anyhow::Result<()> {
    let report = json!({
        "diagnostics": compiled.diagnostics,
        "errors": count(compiled, Severity::Error),
        "warnings": count(compiled, Severity::Warning),
        "policies": policies(compiled),
        "pods": pods(compiled),
    });
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)?;
    Ok(())
}

/// Findings under the document they are about, in the order of reading.
fn write_people(out: &mut impl Write, compiled: &Compiled) -> io::Result<()> {
    let mut before = None;
    for diagnostic in &compiled.diagnostics {
        let Diagnostic {
            severity,
            source,
            object,
            field,
            message,
        } = diagnostic;
        let place = (source, object);
        if before != Some(place) {
            let source = if source.is_empty() { "(no file)" } else { source };
            writeln!(out, "{source}: {object}")?;
            before = Some(place);
        }
        let word = match severity {
            Severity::Error => "error  ",
            Severity::Warning => "warning",
        };
        let colon = if field.is_empty() { "" } else { ": " };
        writeln!(out, "  {word}  {field}{colon}{message}")?;
    }
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let (errors, warnings) = (count(compiled, Severity::Error), count(compiled, Severity::Warning));
    let of = if policies(compiled) == 1 { "policy" } else { "policies" };
    writeln!(
        out,
        "{} {of}, {}: {}, {}",
        policies(compiled),
        plural(pods(compiled), "pod"),
        plural(errors, "error"),
        plural(warnings, "warning")
    )
}
