//! The real binary: its flags, its exit status, SIGTERM.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    process::{Child, Command, Stdio},
};

fn controller(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-controller"));
    command
        .arg("--manifests")
        .arg(folder.join("manifests"))
        .stderr(Stdio::piped());
    command
        .arg("--listen")
        .arg(format!("unix:{}", folder.join("c.sock").display()));
    command
}

/// Starts it and waits for its word that it serves; the rest of its log can be read from what comes back.
fn serving(command: &mut Command) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("serving") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended before it served");
    }
    (child, log)
}

#[test]
fn sigterm_ends_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("manifests")).unwrap();
    let (mut child, mut log) = serving(controller(folder.path()).args(["--log-format", "json"]));
    assert!(folder.path().join("c.sock").exists());
    let second = controller(folder.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("another controller is serving on"), "{said}");
    let killed = Command::new("kill")
        .arg("-TERM")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(killed.success());
    assert!(child.wait().unwrap().success(), "asked to end is no failure");
    assert!(!folder.path().join("c.sock").exists());
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.lines().all(|line| line.starts_with('{')), "json lines: {rest}");
    assert!(rest.contains("nodes keep enforcing"), "{rest}");
}

#[test]
fn what_was_killed_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, _log) = serving(&mut controller(folder.path()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(folder.path().join("c.sock").exists(), "nobody cleaned up");
    let (mut child, _log) = serving(&mut controller(folder.path()));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn wrong_flags_say_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = controller(folder.path())
        .args(["--log-level", "info,=,"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("--log-level"), "{said}");
    let wrong = Command::new(env!("CARGO_BIN_EXE_bulkhead-controller"))
        .args(["--manifests", "/m", "--listen", "tcp:1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(said.contains("unix:"), "{said}");
}

#[test]
fn the_chart_gives_it_arguments_that_it_has() {
    use clap::Parser as _;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/bulkhead.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let mut arguments = None;
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let object: serde_yaml_ng::Value = serde::Deserialize::deserialize(document).unwrap();
        if object["kind"] == "Deployment" {
            let container = &object["spec"]["template"]["spec"]["containers"][0];
            arguments = container["args"].as_sequence().cloned();
        }
    }
    // Where the installation puts a value there is a number here, which every one of these options takes.
    let filled = arguments.unwrap().into_iter().map(|argument| {
        let mut text = argument.as_str().unwrap().replace("$(POD_IP)", "10.0.0.1");
        while let Some(start) = text.find("__") {
            let end = start + 2 + text[start + 2..].find("__").unwrap() + 2;
            text.replace_range(start..end, "8000");
        }
        text
    });
    let arguments: Vec<String> = ["bulkhead-controller".to_owned()].into_iter().chain(filled).collect();
    assert!(arguments.len() > 5, "{arguments:?}");
    if let Err(error) = bulkhead_controller::config::Config::try_parse_from(&arguments) {
        panic!("{error}\n{arguments:?}");
    }
}
