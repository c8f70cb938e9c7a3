//! `cargo xtask manifests`: renders the chart to `deploy/manifests/bulkhead.yaml`, which the command line installs from.
//!
//! Namespace and values that the chart only prints stay open in it, as `__namespace__` and `__image.tag__`: `bulkhead install` fills
//! them in. Which values these are is read from the chart's schema, so a new value needs no change here.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    Arguments, paths,
    run::{self, paint},
    tidy::Tree,
};

/// Values the chart computes with, so that a placeholder would not come through. `bulkhead install` knows replicas by itself.
const COMPUTED: [&str; 3] = ["controller.replicas", "agent.criSocket", "certificates.source"];
const KUBERNETES: &str = "1.37.2";
const HEAD: &str = "\
# Made from the chart in deploy/helm/bulkhead by `cargo xtask manifests`; do not edit. `bulkhead install` fills in what stands
# between double underscores; for a file to apply by other means: bulkhead install --dry-run
";
/// Before the digest of the chart's files, by which tidy knows that the file is current without a helm.
const DIGEST: &str = "# Digest of the chart: ";

pub(crate) fn manifests(arguments: &mut Arguments) -> Result<ExitCode> {
    let check = arguments.flag("--check");
    arguments.done()?;
    let Some(helm) = helm()? else {
        bail!(
            "there is no helm in {}: cargo xtask cluster up builds one; or set HELM to a program",
            paths::cache()?.display()
        );
    };
    let text = render(&helm)?;
    let path = committed();
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        println!("{} {} is current", paint(run::GREEN, "✓"), path.display());
        return Ok(ExitCode::SUCCESS);
    }
    if check {
        bail!(
            "{} differs from what the chart says: cargo xtask manifests",
            path.display()
        );
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("{} {} written", paint(run::GREEN, "✓"), path.display());
    Ok(ExitCode::SUCCESS)
}

fn committed() -> PathBuf {
    paths::root().join("deploy/manifests/bulkhead.yaml")
}

fn chart() -> PathBuf {
    paths::root().join("deploy/helm/bulkhead")
}

/// `$HELM`, or the newest one that a test bed was built with.
fn helm() -> Result<Option<PathBuf>> {
    if let Some(path) = env::var_os("HELM") {
        return Ok(Some(path.into()));
    }
    let folder = paths::cache()?.join("kube");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(None);
    };
    let programs = entries.flatten().map(|entry| entry.path().join("bin/helm"));
    let mut dated: Vec<_> = programs
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    dated.sort();
    Ok(dated.pop().map(|(_, path)| path))
}

/// What the committed file should say.
fn render(helm: &PathBuf) -> Result<String> {
    let schema = chart().join("values.schema.json");
    let text = fs::read_to_string(&schema).with_context(|| format!("reading {}", schema.display()))?;
    let schema: Value = serde_json::from_str(&text).with_context(|| format!("reading {}", schema.display()))?;
    let mut open = Vec::new();
    scalars(&schema, "", &mut open);
    open.retain(|name| !COMPUTED.contains(&name.as_str()));
    let mut command = Command::new(helm);
    command
        .args(["template", "bulkhead"])
        .arg(chart())
        .args(["--namespace", "__namespace__", "--kube-version", KUBERNETES])
        .args(["--include-crds", "--no-hooks", "--skip-schema-validation"])
        // Nothing of the person's own configuration may change what is rendered.
        .env_remove("KUBECONFIG");
    for name in &open {
        command.args(["--set-string", &format!("{name}=__{name}__")]);
    }
    let output = command
        .output()
        .with_context(|| format!("starting {}", helm.display()))?;
    if !output.status.success() {
        bail!("helm template: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("helm printed something that is no text")?;
    Ok(format!("{HEAD}{DIGEST}{}\n{}", digest()?, tidy(&text)))
}

/// Of the chart's files, names and contents.
fn digest() -> Result<String> {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "find . -type f ! -name '*.md' | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16",
        ])
        .current_dir(chart());
    let output = command.output().context("running find and sha256sum")?;
    if !output.status.success() {
        bail!(
            "digest of the chart: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The rule of tidy: the committed file was made from the chart as it is.
pub(crate) fn current(_: &Tree) -> Result<Vec<String>> {
    let there = fs::read_to_string(committed()).unwrap_or_default();
    let of_chart = there.lines().find_map(|line| line.strip_prefix(DIGEST));
    Ok(if of_chart == Some(digest()?.as_str()) {
        Vec::new()
    } else {
        vec![format!(
            "{} is older than the chart: cargo xtask manifests",
            committed().display()
        )]
    })
}

/// Names of values that are one string or number each, as `--set` writes them.
fn scalars(schema: &Value, prefix: &str, found: &mut Vec<String>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    for (name, property) in properties {
        let name = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        let kind = property.get("type").and_then(Value::as_str);
        if kind == Some("object") {
            scalars(property, &name, found);
        } else if matches!(kind, Some("string" | "integer"))
            || property.get("enum").is_some()
            || property.get("$ref").is_some()
        {
            found.push(name);
        }
    }
}

/// Without what only Helm's own installations have.
fn tidy(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        if line.starts_with("# Source:") || line.trim_start().starts_with("helm.sh/chart:") {
            continue;
        }
        out.push_str(&line.replace(
            "app.kubernetes.io/managed-by: Helm",
            "app.kubernetes.io/managed-by: bulkhead-install",
        ));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_file_is_what_the_chart_says() {
        let Some(helm) = helm().unwrap() else {
            println!("SKIPPED: no helm in {}", paths::cache().unwrap().display());
            return;
        };
        let there = fs::read_to_string(committed()).unwrap();
        assert!(
            there == render(&helm).unwrap(),
            "the chart has changed: cargo xtask manifests"
        );
    }

    #[test]
    fn open_values_are_the_schemas_scalars() {
        let schema = serde_json::json!({"properties": {
            "a": {"type": "object", "properties": {"b": {"type": "integer"}, "c": {"type": "array"}, "d": {"$ref": "#/x"}}},
            "e": {"enum": ["f"]}, "g": {"type": "boolean"},
        }});
        let mut found = Vec::new();
        scalars(&schema, "", &mut found);
        assert_eq!(found, ["a.b", "a.d", "e"]);
    }
}
