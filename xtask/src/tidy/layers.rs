//! Rules about crates: who may depend on whom, which foreign types stop where, and lints for all.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Tree;
use crate::run;

/// Who may depend on whom of ours, in the order of the data. A crate that is not named here is a finding.
const ALLOWED: &[(&str, &[&str])] = &[
    ("verdict", &[]),
    ("policy", &["verdict"]),
    ("crds", &["policy", "verdict"]),
    ("proto", &["policy", "verdict"]),
    ("identity", &["proto"]),
    ("controller", &["crds", "policy", "proto", "identity"]),
    ("dataplane", &["verdict", "proto", "policy", "identity"]),
    ("cli", &["crds", "policy", "verdict", "proto"]),
    ("testbed", &["crds", "policy", "verdict", "proto"]),
    (
        "benches",
        &["verdict", "policy", "proto", "controller", "dataplane", "testbed"],
    ),
    ("xtask", &[]),
];

/// Which crates may name a foreign one; crates not listed may be used anywhere.
const FOREIGN: &[(&str, &[&str])] = &[
    // crds: what users write. controller: what it writes itself (Secret, Lease, TokenReview, Event), never facts or policies.
    // cli: the type of a pod, by which kube runs commands in one.
    ("k8s-openapi", &["crds", "controller", "cli"]),
    ("kube", &["crds", "controller", "cli", "benches"]),
    ("kube-core", &["crds"]),
    ("kube-derive", &["crds"]),
    ("aya", &["dataplane", "benches"]),
    ("aya-obj", &["dataplane", "benches"]),
    ("prost", &["proto", "dataplane", "testbed"]),
    ("clap", &["identity", "controller", "dataplane", "cli", "benches"]),
    (
        "tokio",
        &["identity", "controller", "dataplane", "cli", "testbed", "benches"],
    ),
    (
        "tonic",
        &["proto", "controller", "dataplane", "cli", "testbed", "benches"],
    ),
];

/// What the pure crates may not name in `src/` (tests may).
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::env",
    "std::time",
    "std::thread",
    "std::process",
    "tokio",
    "rand::",
];

/// A dependency: name and kind (`normal`, `dev`, `build`).
struct Dependency {
    name: String,
    kind: String,
}

/// Workspace packages by folder, with their dependencies.
fn packages() -> Result<BTreeMap<String, Vec<Dependency>>> {
    let output = run::cargo(&["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("reading cargo metadata")?;
    let mut packages = BTreeMap::new();
    for package in list(&metadata, "packages") {
        let manifest = text(package, "manifest_path");
        let folder = Path::new(manifest)
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default();
        let dependencies = list(package, "dependencies").map(|dependency| Dependency {
            name: text(dependency, "name").to_owned(),
            kind: dependency
                .get("kind")
                .and_then(Value::as_str)
                .unwrap_or("normal")
                .to_owned(),
        });
        packages.insert(folder.to_string_lossy().into_owned(), dependencies.collect());
    }
    Ok(packages)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn down_only(_: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (folder, dependencies) in packages()? {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == folder) else {
            findings.push(format!(
                "{folder} has no place in the layers: add it to ALLOWED in xtask/src/tidy/layers.rs"
            ));
            continue;
        };
        let ours = dependencies
            .iter()
            .filter_map(|d| Some((d.name.strip_prefix("bulkhead-")?, &d.kind)));
        findings.extend(
            // For its tests a crate may name itself, with other features, and the testbed.
            ours.filter(|(name, kind)| {
                let own_tests = *name == folder || (*name == "testbed" && *kind == "dev");
                !allowed.contains(name) && !own_tests
            })
            .map(|(name, kind)| format!("{folder} must not depend on {name} ({kind} dependency)")),
        );
    }
    Ok(findings)
}

pub(super) fn foreign_types(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for (folder, dependencies) in packages()? {
        for dependency in dependencies.iter().filter(|dependency| dependency.kind == "normal") {
            let rule = FOREIGN.iter().find(|(name, _)| *name == dependency.name);
            if rule.is_some_and(|(_, allowed)| !allowed.contains(&folder.as_str())) {
                findings.push(format!(
                    "{folder} must not depend on {}: see FOREIGN in xtask/src/tidy/layers.rs",
                    dependency.name
                ));
            }
        }
    }
    findings.extend(aya_modules(tree)?);
    Ok(findings)
}

/// aya is named by one module of the dataplane (a file, or a folder with its `mod.rs`).
fn aya_modules(tree: &Tree) -> Result<Vec<String>> {
    let mut modules = std::collections::BTreeSet::new();
    for path in tree.with_extension("rs") {
        if let Ok(inside) = path.strip_prefix("dataplane/src")
            && names(&tree.text(path)?, "aya::")
        {
            modules.insert(
                inside
                    .iter()
                    .next()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .trim_end_matches(".rs")
                    .to_owned(),
            );
        }
    }
    if modules.len() > 1 {
        return Ok(vec![format!(
            "dataplane names aya in several modules: {}",
            modules.into_iter().collect::<Vec<_>>().join(", ")
        )]);
    }
    Ok(Vec::new())
}

pub(super) fn pure_crates(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tree.with_extension("rs") {
        if !["policy/src", "verdict/src"]
            .iter()
            .any(|folder| path.starts_with(folder))
        {
            continue;
        }
        let source = tree.text(path)?;
        let production = source.split("#[cfg(test)]").next().unwrap_or_default();
        findings.extend(
            IMPURE
                .iter()
                .filter(|word| names(production, word))
                .map(|word| format!("{} names {word}", path.display())),
        );
    }
    Ok(findings)
}

/// True when code (not a comment) contains a word.
fn names(source: &str, word: &str) -> bool {
    source.lines().any(|line| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(word)
            .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

pub(super) fn lints_inherited(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tree
        .files
        .iter()
        .filter(|path| path.ends_with("Cargo.toml") && path.components().count() > 1)
    {
        let text = tree.text(path)?;
        let outside = text.contains("[workspace]");
        // A crate with a workspace of its own (another target, or nightly) cannot inherit; fuzz targets are a handful of lines.
        if !outside && !text.contains("[lints]\nworkspace = true") {
            findings.push(format!("{}: add `[lints]` with `workspace = true`", path.display()));
        }
        if outside && !path.parent().is_some_and(|folder| folder.ends_with("fuzz")) && !text.contains("[lints.rust]") {
            findings.push(format!(
                "{}: is outside the workspace and needs lints of its own",
                path.display()
            ));
        }
    }
    Ok(findings)
}
