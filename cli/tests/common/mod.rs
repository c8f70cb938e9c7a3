//! Runs the `bulkhead` command on manifests in a temporary folder.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// What a run of the command gave.
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Lines of standard output.
    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }
}

/// Runs `bulkhead` with something on its standard input.
pub fn bulkhead(arguments: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder with these files.
pub fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// Simulates probes `(from, to, port, protocol)`.
pub fn simulate(manifests: &Path, probes: &[(&str, &str, i64, &str)]) -> Ran {
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
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// A pod as YAML.
pub fn pod(key: &str, labels: &str, addresses: &[&str], more_spec: &str) -> String {
    let (namespace, name) = key.split_once('/').unwrap();
    let ips: Vec<String> = addresses.iter().map(|address| format!("{{ip: '{address}'}}")).collect();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\n\
         spec: {{{more_spec}}}\nstatus: {{phase: Running, podIPs: [{}]}}\n",
        ips.join(", ")
    )
}
