//! `cargo xtask tidy`: the rules of the tree, each a test of its own.

mod docs;
mod layers;
mod reasons;
mod sources;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments, manifests, paths,
    run::{self, paint, step},
    tests::Outcome,
};

/// A rule: what it demands, and the finder of what breaks it.
type Rule = (&'static str, fn(&Tree) -> Result<Vec<String>>);

const RULES: &[Rule] = &[
    ("every crate inherits the workspace's lints", layers::lints_inherited),
    ("dependencies point down only", layers::down_only),
    ("foreign types stop where they must", layers::foreign_types),
    ("policy and verdict do no input or output", layers::pure_crates),
    ("no source file is orphaned", sources::orphans),
    ("no source file is longer than 800 lines", sources::too_long),
    ("every source file says its one job first", sources::module_docs),
    ("drop reasons are append-only", reasons::append_only),
    ("every example is loaded by a test", docs::examples_tested),
    ("relative links in documents resolve", docs::links),
    ("README is at most 150 lines", docs::readme_length),
    ("deploy/manifests is made from the chart as it is", manifests::current),
    ("no file is larger than 1 MiB", docs::blobs),
    ("no registry host is named", docs::registry_hosts),
];

/// The files of the checkout that git knows or would take.
pub(crate) struct Tree {
    root: PathBuf,
    files: Vec<PathBuf>,
}

impl Tree {
    fn read() -> Result<Self> {
        let root = paths::root();
        let output = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
            .current_dir(&root)
            .output()
            .context("git ls-files")?;
        if !output.status.success() {
            bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let mut files: Vec<PathBuf> = String::from_utf8_lossy(&output.stdout)
            .split('\0')
            .filter(|name| !name.is_empty() && root.join(name).is_file())
            .map(PathBuf::from)
            .collect();
        files.sort();
        files.dedup();
        Ok(Self { root, files })
    }

    /// Files with this extension, relative to the root.
    fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = &'a Path> {
        self.files
            .iter()
            .map(PathBuf::as_path)
            .filter(move |path| path.extension().is_some_and(|e| e == extension))
    }

    /// The text of a file of the tree.
    fn text(&self, path: &Path) -> Result<String> {
        fs::read_to_string(self.root.join(path)).with_context(|| format!("reading {}", path.display()))
    }
}

/// The command.
pub(crate) fn command(arguments: &mut Arguments) -> Result<ExitCode> {
    let clippy = !arguments.flag("--no-clippy");
    arguments.done()?;
    let outcome = all(clippy)?;
    println!("{} passed, {} failed, 0 skipped", outcome.passed, outcome.failed.len());
    Ok(if outcome.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Checks every rule, then format, and lints when asked.
pub(crate) fn all(clippy: bool) -> Result<Outcome> {
    let tree = Tree::read()?;
    let mut outcome = Outcome::default();
    for (name, find) in RULES {
        report(&mut outcome, name, find(&tree));
    }
    let format = |manifest: Option<&str>| {
        let mut command = run::cargo(&["fmt", "--check"]);
        match manifest {
            None => command.arg("--all"),
            Some(path) => command.args(["--manifest-path", path]),
        };
        step(
            &format!("cargo fmt --check {}", manifest.unwrap_or_default()),
            &mut command,
        )
        .map(|()| Vec::new())
    };
    report(&mut outcome, "cargo fmt", format(None));
    if tree.files.iter().any(|path| path == Path::new("bpf/Cargo.toml")) {
        report(&mut outcome, "cargo fmt of bpf", format(Some("bpf/Cargo.toml")));
    }
    if clippy {
        let mut command = run::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        report(
            &mut outcome,
            "cargo clippy -D warnings",
            step("cargo clippy", &mut command).map(|()| Vec::new()),
        );
    }
    Ok(outcome)
}

fn report(outcome: &mut Outcome, name: &str, found: Result<Vec<String>>) {
    let findings = found.unwrap_or_else(|error| vec![format!("{error:#}")]);
    if findings.is_empty() {
        outcome.passed += 1;
        return;
    }
    println!("{} {name}", paint(run::RED, "✗"));
    for finding in &findings {
        println!("    {finding}");
    }
    outcome.failed.push(format!("tidy: {name}"));
}

#[cfg(test)]
mod self_tests {
    use super::{RULES, Tree};

    /// So that `cargo test` alone notices, format and lints left out.
    #[test]
    fn the_tree_is_tidy() {
        let tree = Tree::read().unwrap();
        let findings: Vec<String> = RULES
            .iter()
            .flat_map(|(name, find)| {
                find(&tree)
                    .unwrap_or_else(|error| vec![format!("{error:#}")])
                    .into_iter()
                    .map(move |f| format!("{name}: {f}"))
            })
            .collect();
        assert!(findings.is_empty(), "{}", findings.join("\n"));
    }
}
