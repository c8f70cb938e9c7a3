//! Upstream's suite for ClusterNetworkPolicy (the module network-policy-api): built from its own sources, its image made here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::junit::{Spec, Verdict};
use crate::{
    cluster::{
        Cluster,
        binaries::{self, Binaries},
        process::output_of,
    },
    images::{self, Image, archive},
    run::attempt,
};

/// The release whose types `crds/` has.
const VERSION: &str = "v0.2.0";
const MODULE: &str = "sigs.k8s.io/network-policy-api";
const PROGRAM: &str = "e2e-policy-api";
/// What we have beyond the standard channel.
const FEATURES: &str = "ClusterNetworkPolicyNamedPorts,ClusterNetworkPolicyEgressNodePeers";

/// Runs the tests whose names match.
pub(super) fn run(cluster: &Cluster, focus: &str, sctp: bool) -> Result<Vec<Spec>> {
    let binaries = &cluster.binaries;
    let sources = ensure(binaries)?;
    let archives = image(binaries, &sources)?;
    images::load(cluster, &archives)?;
    let mut command = Command::new(binaries.program(PROGRAM));
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .arg("-test.v")
        .arg(format!("-test.run=^TestConformance$/{focus}"))
        .arg("-test.timeout=60m")
        .arg(format!("-supported-features={FEATURES}"));
    if !sctp {
        // Each level of names is matched by a pattern of its own.
        command.arg("-test.skip=^TestConformance$/(?i)sctp|^TestConformance$/.*/(?i)sctp");
    }
    let (_, log) = attempt("network-policy-api suite", &mut command)?;
    let text = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
    println!("log     {}", log.display());
    let mut specs = read(&text, sctp);
    if specs.is_empty() {
        bail!("no spec ran, which is not a success; see {}", log.display());
    }
    if !sctp {
        specs.extend(sctp_specs(&sources)?);
    }
    Ok(specs)
}

/// Builds the suite; gives the folder of its sources.
fn ensure(binaries: &Binaries) -> Result<PathBuf> {
    let go = binaries::go().context("Go is not installed")?;
    let mut download = Command::new(&go);
    download.args(["mod", "download", "-json", &format!("{MODULE}@{VERSION}")]);
    let said: serde_json::Value =
        serde_json::from_str(&output_of(&mut download)?).context("reading what `go mod download` says")?;
    let sources = PathBuf::from(said["Dir"].as_str().context("`go mod download` names no folder")?);
    if !binaries.program(PROGRAM).exists() {
        binaries::build_test(binaries, &go, PROGRAM, &sources, "./conformance")?;
    }
    if !binaries.program("shell").exists() {
        binaries::build(binaries, &go, "shell", "./shell")?;
    }
    Ok(sources)
}

/// The image under the name that the suite's manifests ask for: there is no registry to pull it from.
fn image(binaries: &Binaries, sources: &Path) -> Result<Vec<(String, PathBuf)>> {
    let manifests = sources.join("conformance/base/manifests.yaml");
    let text = fs::read_to_string(&manifests).with_context(|| format!("reading {}", manifests.display()))?;
    let names: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image:"))
        .map(str::trim)
        .collect();
    let mut archives = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        let path = binaries.root.join(format!("policy-api-{number}.tar"));
        if !path.exists() {
            let image = Image {
                name,
                files: &[
                    (&binaries.program("agnhost"), "/agnhost"),
                    (&binaries.program("shell"), "/bin/bash"),
                ],
                entrypoint: "/agnhost",
                command: &["pause"],
            };
            archive::write(&image, &path)?;
        }
        archives.push((name.to_owned(), path));
    }
    Ok(archives)
}

/// The tests that `-test.skip` leaves out without a word.
fn sctp_specs(sources: &Path) -> Result<Vec<Spec>> {
    let folder = sources.join("conformance/tests");
    let mut specs = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry.context("listing the suite's tests")?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("ShortName:"));
        specs.extend(names.filter(|name| name.contains("SCTP")).map(|name| Spec {
            name: name.trim_matches(|c| " \",".contains(c)).to_owned(),
            verdict: Verdict::Skipped("this kernel has no SCTP".to_owned()),
            seconds: 0.0,
        }));
    }
    specs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(specs)
}

/// The results in the output of a Go test: those that have no test below them.
fn read(text: &str, sctp: bool) -> Vec<Spec> {
    let stuck = stuck(text);
    let results: Vec<(&str, &str, f64)> = text.lines().filter_map(result).collect();
    let is_parent = |name: &str| {
        let prefix = format!("{name}/");
        results.iter().any(|(_, other, _)| other.starts_with(&prefix))
    };
    results
        .iter()
        .filter(|(_, name, _)| !is_parent(name))
        .map(|(word, name, seconds)| Spec {
            name: name.trim_start_matches("TestConformance/").replace('_', " "),
            seconds: *seconds,
            verdict: match *word {
                "PASS" => Verdict::Passed,
                "SKIP" => Verdict::Skipped("a feature that the suite was not told of".to_owned()),
                _ if !sctp && stuck.get(name).is_some_and(|command| is_sctp(command)) => {
                    Verdict::Skipped("it held up to its SCTP check, and this kernel has no SCTP".to_owned())
                }
                _ => Verdict::Failed(format!("search the log for {name}")),
            },
        })
        .collect()
}

/// The last probe of each test that did not come out as wanted: the one that a failed test ended with.
fn stuck(text: &str) -> BTreeMap<&str, &str> {
    let mut test = "";
    let mut commands = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("=== ") {
            test = rest.split_whitespace().nth(1).unwrap_or_default();
        } else if let Some((_, command)) = line.split_once("FAILED Command was ") {
            commands.insert(test, command);
        }
    }
    commands
}

fn is_sctp(command: &str) -> bool {
    command.contains("--protocol=sctp")
}

/// `    --- PASS: TestConformance/Name (1.23s)`.
fn result(line: &str) -> Option<(&str, &str, f64)> {
    let (word, rest) = line.trim().strip_prefix("--- ")?.split_once(": ")?;
    let (name, seconds) = rest.rsplit_once(" (")?;
    Some((word, name, seconds.strip_suffix("s)")?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_specs() {
        let text = "=== RUN   TestConformance\n--- FAIL: TestConformance (3.00s)\n    --- PASS: TestConformance/A (1.00s)\n        \
                    --- PASS: TestConformance/A/deny_all (0.50s)\n    --- SKIP: TestConformance/B (0.00s)\n    \
                    --- FAIL: TestConformance/C (2.00s)\n";
        let specs = read(text, true);
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["A/deny all", "B", "C"]);
        assert!(matches!(specs[0].verdict, Verdict::Passed));
        assert!(matches!(specs[2].verdict, Verdict::Failed(_)));
    }

    #[test]
    fn what_only_lacks_sctp_is_told_from_what_fails() {
        let log = |protocol: &str| {
            format!(
                "=== RUN   TestConformance/A\n    helper.go:71: FAILED Command was [/agnhost connect --protocol={protocol} x]\n\
                 --- FAIL: TestConformance/A (1.00s)\n"
            )
        };
        assert!(matches!(read(&log("sctp"), false)[0].verdict, Verdict::Skipped(_)));
        assert!(matches!(read(&log("sctp"), true)[0].verdict, Verdict::Failed(_)));
        assert!(matches!(read(&log("udp"), false)[0].verdict, Verdict::Failed(_)));
    }
}
