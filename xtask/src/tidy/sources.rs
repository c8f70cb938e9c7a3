//! Rules about source files: none orphaned, none too long, each says its job.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::Tree;

const LINES_MAX: usize = 800;

pub(super) fn too_long(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tree.with_extension("rs") {
        let lines = tree.text(path)?.lines().count();
        if lines > LINES_MAX {
            findings.push(format!("{}: {lines} lines; split it", path.display()));
        }
    }
    Ok(findings)
}

pub(super) fn module_docs(tree: &Tree) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tree.with_extension("rs") {
        let text = tree.text(path)?;
        let first = text.lines().find(|line| !line.starts_with("#![")).unwrap_or_default();
        if !first.starts_with("//! ") {
            findings.push(format!(
                "{}: its first line must be `//! ` and say the file's one job",
                path.display()
            ));
        }
    }
    Ok(findings)
}

/// A file that no `mod` names is not compiled and not tested; it only looks as if.
pub(super) fn orphans(tree: &Tree) -> Result<Vec<String>> {
    let sources: BTreeSet<PathBuf> = tree.with_extension("rs").map(Path::to_path_buf).collect();
    let mut reached = BTreeSet::new();
    let mut left: Vec<PathBuf> = sources.iter().filter(|path| is_root(tree, path)).cloned().collect();
    while let Some(path) = left.pop() {
        if !reached.insert(path.clone()) {
            continue;
        }
        let text = tree.text(&path)?;
        left.extend(
            children(&path, &text, is_root(tree, &path))
                .into_iter()
                .filter(|child| sources.contains(child)),
        );
    }
    Ok(sources
        .difference(&reached)
        .map(|path| format!("{}: no `mod` names it", path.display()))
        .collect())
}

/// Crate roots by cargo's conventions, and paths that a manifest names.
fn is_root(tree: &Tree, path: &Path) -> bool {
    let parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let strings: Vec<&str> = parts.iter().map(String::as_str).collect();
    let conventional = match strings.as_slice() {
        [_, "build.rs"] | [.., "src", "lib.rs" | "main.rs"] | [.., "fuzz_targets", _] => true,
        [.., "bin" | "tests" | "benches" | "examples", _] => !strings.contains(&"src") || strings.contains(&"bin"),
        [.., "bin" | "tests" | "benches", _, "main.rs"] => true,
        _ => false,
    };
    conventional || named_in_manifest(tree, path)
}

fn named_in_manifest(tree: &Tree, path: &Path) -> bool {
    path.ancestors().skip(1).any(|folder| {
        let Ok(manifest) = tree.text(&folder.join("Cargo.toml")) else {
            return false;
        };
        let Ok(inside) = path.strip_prefix(folder) else {
            return false;
        };
        ["path", "build"]
            .iter()
            .any(|key| manifest.contains(&format!("{key} = \"{}\"", inside.display())))
    })
}

/// Files that `mod` items of a source may mean.
fn children(path: &Path, text: &str, is_root: bool) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let own = if is_root || path.ends_with("mod.rs") {
        folder.to_path_buf()
    } else {
        path.with_extension("")
    };
    let mut found = Vec::new();
    let mut explicit: Option<PathBuf> = None;
    for line in text.lines().map(str::trim) {
        if let Some(named) = line
            .strip_prefix("#[path = \"")
            .and_then(|rest| rest.strip_suffix("\"]"))
        {
            explicit = Some(folder.join(named));
        } else if let Some(included) = line
            .split_once("include!(\"")
            .and_then(|(_, rest)| rest.split_once('"'))
        {
            found.push(normal(&folder.join(included.0)));
        } else if let Some(name) = module_name(line) {
            match explicit.take() {
                Some(named) => found.push(normal(&named)),
                None => found.extend([own.join(format!("{name}.rs")), own.join(name).join("mod.rs")]),
            }
        }
    }
    found
}

/// The name in `pub(crate) mod name;`.
fn module_name(line: &str) -> Option<&str> {
    let (before, rest) = line.split_once("mod ")?;
    let visible = before.is_empty() || before.starts_with("pub") || before.starts_with("#[");
    rest.strip_suffix(';')
        .filter(|name| visible && name.chars().all(|c| c.is_alphanumeric() || c == '_'))
}

/// Resolves `..` by name.
fn normal(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_found_where_rustc_looks() {
        let text = "pub mod a;\n#[path = \"../x/y.rs\"]\nmod z;\npub(crate) mod b;\n// mod c;\nmod inline {\n";
        let found = children(Path::new("k/src/lib.rs"), text, true);
        for wanted in ["k/src/a.rs", "k/src/a/mod.rs", "k/x/y.rs", "k/src/b.rs"] {
            assert!(found.contains(&PathBuf::from(wanted)), "{wanted} not in {found:?}");
        }
        assert!(!found.iter().any(|path| path.ends_with("c.rs")));
        let nested = children(Path::new("k/src/a.rs"), "mod d;", false);
        assert!(nested.contains(&PathBuf::from("k/src/a/d.rs")));
    }
}
