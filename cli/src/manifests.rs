//! Reads manifests from files and folders, and compiles them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use bulkhead_crds::{Lowered, Manifests};
use bulkhead_policy::{
    compiler::Compiler,
    diagnostic::Diagnostic,
    model::{Event, ObjectKey},
};

/// Folders inside folders are read to this depth.
const MAX_DEPTH: usize = 16;

/// What the manifests say, compiled.
#[derive(Debug)]
pub struct Compiled {
    /// Facts and policies.
    pub lowered: Lowered,
    /// The compiled state.
    pub compiler: Compiler,
    /// What is wrong or suspicious: of reading first, then of compiling.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads files, and all `.yaml`, `.yml` and `.json` files of folders and the folders in them, in order of their names. Names that begin
/// with a dot are left out, as are links to folders.
///
/// # Errors
/// When a path that was named does not exist. A file that cannot be read is a diagnostic: the rest is applied.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Lowered> {
    let mut manifests = Manifests::default();
    for path in paths {
        let kind = fs::metadata(path).with_context(|| format!("reading manifests from {}", path.display()))?;
        if kind.is_dir() {
            let mut files = Vec::new();
            find(path, 0, &mut files, &mut manifests);
            for file in &files {
                add(file, &mut manifests);
            }
        } else {
            add(path, &mut manifests);
        }
    }
    Ok(manifests.finish())
}

fn add(path: &Path, manifests: &mut Manifests) {
    let source = path.display().to_string();
    match fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => manifests.add(&text, &source),
        Ok(Err(error)) => manifests.add_unreadable(&source, &format!("{error}; save it as UTF-8")),
        Err(error) => manifests.add_unreadable(&source, &error.to_string()),
    }
}

fn find(folder: &Path, depth: usize, files: &mut Vec<PathBuf>, manifests: &mut Manifests) {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) => return manifests.add_unreadable(&folder.display().to_string(), &error.to_string()),
    };
    if depth > MAX_DEPTH {
        return manifests.add_unreadable(&folder.display().to_string(), "too many folders inside each other");
    }
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find(&path, depth + 1, files, manifests);
        } else if path
            .extension()
            .is_some_and(|it| it == "yaml" || it == "yml" || it == "json")
            && path.is_file()
        {
            files.push(path);
        }
    }
}

/// Compiles what was read.
pub fn compile(lowered: Lowered) -> Compiled {
    let mut compiler = Compiler::default();
    let changes = compiler.apply(&[Event::Resync(lowered.objects.clone())]);
    let sources: BTreeMap<String, &String> = lowered
        .sources
        .iter()
        .map(|(key, source)| (object_name(key), source))
        .collect();
    let with_source = |diagnostic: Diagnostic| match sources.get(&diagnostic.object) {
        Some(source) if diagnostic.source.is_empty() => Diagnostic {
            source: (*source).clone(),
            ..diagnostic
        },
        _ => diagnostic,
    };
    let mut diagnostics = lowered.diagnostics.clone();
    diagnostics.extend(changes.diagnostics.into_iter().map(with_source));
    diagnostics.extend(compiler.capacity(usize::MAX));
    Compiled {
        lowered,
        compiler,
        diagnostics,
    }
}

/// `Kind namespace/name`, as diagnostics name objects.
fn object_name(key: &ObjectKey) -> String {
    match key {
        ObjectKey::Namespace(name) => format!("Namespace {name}"),
        ObjectKey::Workload(key) => format!("Pod {key}"),
        ObjectKey::Node(name) => format!("Node {name}"),
        ObjectKey::Policy(key) => key.to_string().replacen('/', " ", 1),
        ObjectKey::Service(key) => format!("Service {key}"),
        ObjectKey::EndpointSlice(key) => format!("EndpointSlice {key}"),
        ObjectKey::AddressGroup(name) => format!("AddressGroup {name}"),
    }
}
