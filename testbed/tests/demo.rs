//! README's first command, to its end and interrupted: it shows what it should, and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{path::Path, process::Command, time::Duration};

use bulkhead_testbed::{Running, sys};

use common::{SOON, skipped};

fn start(arguments: &[&str], logs: &Path) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-demo"));
    command.args(arguments);
    Running::start("demo", command, logs).unwrap()
}

/// Namespaces and folders of a demo's process.
fn left_behind(pid: u32) -> Vec<String> {
    let mine = [format!("bh-{pid}-"), format!("{pid}-")];
    ["/run/netns", "/run/bulkhead-testbed"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| mine.iter().any(|prefix| name.starts_with(prefix)))
        .collect()
}

fn lines_until(demo: &Running, wanted: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        lines.push(demo.line(Duration::from_mins(2)).unwrap());
        if lines.last().unwrap().contains(wanted) {
            return lines;
        }
    }
}

#[test]
fn the_demo_plays_to_its_end() {
    if skipped() {
        return;
    }
    let logs = tempfile::tempdir().unwrap();
    let mut demo = start(&[], logs.path());
    let lines = lines_until(&demo, "all as it should be");
    assert!(demo.wait(SOON).unwrap().success());
    // Colours are for terminals.
    assert!(!lines.iter().any(|line| line.contains('\x1b')));
    let denied = lines
        .iter()
        .filter(|line| line.contains("denied") && line.contains("default-deny"))
        .count();
    assert!(
        denied >= 10,
        "each denied attempt names its rule:\n{}",
        lines.join("\n")
    );
    assert_eq!(left_behind(demo.pid()), Vec::<String>::new());
}

#[test]
fn an_interrupted_demo_cleans_up() {
    if skipped() {
        return;
    }
    let logs = tempfile::tempdir().unwrap();
    let mut demo = start(&["--keep"], logs.path());
    lines_until(&demo, "default deny, then");
    assert!(!left_behind(demo.pid()).is_empty(), "it is running");
    sys::signal(demo.pid(), 2).unwrap();
    lines_until(&demo, "cleaned up");
    assert!(demo.wait(SOON).unwrap().success());
    assert_eq!(left_behind(demo.pid()), Vec::<String>::new());
}
