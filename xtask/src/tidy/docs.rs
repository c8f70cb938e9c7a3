//! Rules about documents, examples and what does not belong into the tree.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::Tree;

const BLOB_MAX: u64 = 1 << 20;
const README_LINES_MAX: usize = 150;

/// Hosts of package registries: a person may use another one, and cargo knows its own. Split, so that this file is clean.
const REGISTRIES: &[(&str, &str)] = &[
    ("crates", ".io"),
    ("docs", ".rs/"),
    ("registry.npmjs", ".org"),
    ("pypi", ".org"),
    ("proxy.golang", ".org"),
    ("docker", ".io"),
    ("quay", ".io"),
    ("ghcr", ".io"),
];

pub(super) fn readme_length(tree: &Tree) -> Result<Vec<String>> {
    let lines = tree.text(Path::new("README.md"))?.lines().count();
    Ok(if lines > README_LINES_MAX {
        vec![format!("README.md: {lines} lines")]
    } else {
        Vec::new()
    })
}

pub(super) fn links(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tree.with_extension("md") {
        let text = tree.text(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for target in targets(&text) {
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !tree.root.join(folder).join(file).exists() {
                findings.push(format!("{}: link to {file}, which is not there", path.display()));
            }
        }
    }
    Ok(findings)
}

/// Targets of `[text](target)` outside of code blocks.
fn targets(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut code = false;
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        if !code && !line.starts_with("    ") {
            found.extend(
                line.split("](")
                    .skip(1)
                    .filter_map(|rest| rest.split_once(')').map(|(target, _)| target)),
            );
        }
    }
    found
}

pub(super) fn blobs(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in &tree.files {
        let size = fs::metadata(tree.root.join(path))
            .with_context(|| format!("reading {}", path.display()))?
            .len();
        if size > BLOB_MAX {
            findings.push(format!("{}: {size} bytes", path.display()));
        }
    }
    Ok(findings)
}

pub(super) fn registry_hosts(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tree.files.iter().filter(|path| !path.ends_with("Cargo.lock")) {
        let bytes = fs::read(tree.root.join(path)).with_context(|| format!("reading {}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        for (name, suffix) in REGISTRIES {
            let host = format!("{name}{suffix}");
            findings.extend(
                text.lines()
                    .enumerate()
                    .filter(|(_, line)| line.contains(&host))
                    .map(|(number, _)| format!("{}:{}: names {host}", path.display(), number + 1)),
            );
        }
    }
    Ok(findings)
}

/// A test loads an example when it names the file, or walks the folder.
pub(super) fn examples_tested(tree: &Tree) -> Result<Vec<String>> {
    let mut tests = String::new();
    for path in tree.with_extension("rs").filter(|path| !path.starts_with("xtask")) {
        let text = tree.text(path)?;
        if path.iter().any(|part| part == "tests" || part == "tests.rs") {
            tests.push_str(&text);
        } else if let Some((_, inline)) = text.split_once("#[cfg(test)]") {
            tests.push_str(inline);
        }
    }
    let walks = tests
        .lines()
        .any(|line| line.contains("read_dir") && line.contains("examples"));
    let examples = tree
        .files
        .iter()
        .filter(|path| path.starts_with("examples") && path.extension().is_some_and(|e| e == "yaml"));
    Ok(examples
        .filter(|path| {
            let inside = path
                .strip_prefix("examples")
                .unwrap_or(path)
                .to_string_lossy()
                .into_owned();
            !walks && !tests.contains(&inside)
        })
        .map(|path| format!("{}: no test names it, and none walks examples/", path.display()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::targets;

    #[test]
    fn links_in_code_are_no_links() {
        let text = "see [a](b.md) and [c](d.md#e)\n```\n[x](y)\n```\n    [z](w)\n";
        assert_eq!(targets(text), ["b.md", "d.md#e"]);
    }
}
