//! Runs the `bulkhead` command on manifests in a temporary folder.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "each test file uses some of it")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// What a run of the command gave.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Lines of standard output.
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }
}

/// Runs `bulkhead` with something on its standard input.
pub(crate) fn bulkhead(arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its arguments ends before it reads its input.
    if let Err(error) = child.stdin.take().unwrap().write_all(input.as_bytes()) {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder with these files.
pub(crate) fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// Simulates probes `(from, to, port, protocol)`.
pub(crate) fn simulate(manifests: &Path, probes: &[(&str, &str, i64, &str)]) -> Ran {
    let probe = |(from, to, port, protocol): &(&str, &str, i64, &str)| serde_json::json!({"from": from, "to": to, "port": port, "protocol": protocol});
    let probes = Value::Array(probes.iter().map(probe).collect()).to_string();
    let manifests = manifests.to_str().unwrap();
    bulkhead(
        &[
            "simulate",
            "--manifests",
            manifests,
            "--probes",
            "-",
            "--output",
            "jsonl",
        ],
        &probes,
    )
}

/// The repository's examples.
pub(crate) fn examples() -> PathBuf {
    PathBuf::from("../examples")
}

/// A pod as YAML.
pub(crate) fn pod(key: &str, labels: &str, addresses: &[&str], more_spec: &str) -> String {
    let (namespace, name) = key.split_once('/').unwrap();
    let ips: Vec<String> = addresses.iter().map(|address| format!("{{ip: '{address}'}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec: {{{more_spec}}}\nstatus: {{phase: Running, podIPs: [{}]}}\n",
        ips.join(", ")
    )
}
