//! A folder of manifests at one moment after the other: which files there are, what changed, what each last said.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    digest::Digest,
    model::{Object, ObjectKey},
};

use super::{Batch, merge::Merged, object_text};

/// Files a folder may have; what is beyond is left out, with an error.
const FILES_MAX: usize = 20_000;
/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Subfolders are read to this depth.
const DEPTH_MAX: usize = 8;
/// A file changed so recently may change again without its times telling.
const RACY: Duration = Duration::from_secs(1);

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
    racy: bool,
}

/// A file and what it last gave.
#[derive(Debug, Default)]
pub(super) struct FileState {
    stamp: Option<Stamp>,
    content: Option<Digest>,
    pub(super) objects: BTreeMap<ObjectKey, Object>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Some of it could not be read, and there was nothing from before to keep.
    unknown: bool,
}

/// A folder and what it last gave.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: BTreeMap<String, FileState>,
    merged: Merged,
    diagnostics: Vec<Diagnostic>,
    unknown: Vec<String>,
    /// False until the folder itself could be read once.
    read_once: bool,
    complained: bool,
}

#[derive(Default)]
struct Listing {
    files: BTreeMap<String, PathBuf>,
    /// Folders that could not be listed, with a slash at the end; the files below them are neither there nor gone.
    failed: Vec<String>,
    diagnostics: Vec<Diagnostic>,
}

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        let merged = Merged::default();
        let files = BTreeMap::new();
        Self {
            path: path.to_owned(),
            files,
            merged,
            diagnostics: Vec::new(),
            unknown: Vec::new(),
            read_once: false,
            complained: false,
        }
    }

    /// Looks again. `None` when nothing changed, and before the folder could be read for the first time.
    pub(super) fn scan(&mut self) -> Option<Batch> {
        let seen = Instant::now();
        let mut listing = Listing::default();
        match list(&self.path, "", 0, &mut listing) {
            Ok(()) => {}
            Err(error) if self.read_once => listing.fail("", &self.path, &error),
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::error!(
                        folder = %self.path.display(), %error,
                        "the folder of manifests cannot be read; nothing is sent to any node until it can"
                    );
                }
                return None;
            }
        }
        let Listing {
            files,
            failed,
            mut diagnostics,
        } = listing;
        self.files.retain(|name, _| {
            files.contains_key(name) || failed.iter().any(|folder| name.starts_with(folder.as_str()))
        });
        for (name, path) in files {
            self.files.entry(name.clone()).or_default().read(&name, &path);
        }
        diagnostics.extend(self.files.values().flat_map(|file| file.diagnostics.iter().cloned()));
        let events = self.merged.take(&self.files, &mut diagnostics);
        let unknown: Vec<String> = self
            .files
            .iter()
            .filter(|(_, file)| file.unknown)
            .map(|(name, _)| name.clone())
            .collect();
        let first = !std::mem::replace(&mut self.read_once, true);
        if !first && events.is_empty() && diagnostics == self.diagnostics && unknown == self.unknown {
            return None;
        }
        self.diagnostics.clone_from(&diagnostics);
        self.unknown.clone_from(&unknown);
        Some(Batch {
            events,
            diagnostics,
            unknown,
            seen,
        })
    }
}

impl Listing {
    fn fail(&mut self, name: &str, path: &Path, error: &io::Error) {
        self.failed.push(name.to_owned());
        let message =
            format!("the folder cannot be read ({error}); what its files said stays in force; make it readable");
        self.diagnostics
            .push(finding(&path.display().to_string(), "folder", message));
    }
}

/// Lists manifests: names that end in .yaml, .yml or .json and do not begin with a dot (as editors' and kubelet's own do).
fn list(folder: &Path, prefix: &str, depth: usize, listing: &mut Listing) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.starts_with('.') {
            continue;
        }
        let (path, relative) = (entry.path(), format!("{prefix}{name}"));
        if entry.file_type()?.is_dir() {
            if depth == DEPTH_MAX {
                continue;
            }
            let relative = format!("{relative}/");
            if let Err(error) = list(&path, &relative, depth + 1, listing) {
                listing.fail(&relative, &path, &error);
            }
        } else if [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending)) {
            if listing.files.len() == FILES_MAX {
                let message = format!("there are more than {FILES_MAX} files; this one is left out; join files");
                listing.diagnostics.push(finding(&relative, "file", message));
                return Ok(());
            }
            listing.files.insert(relative, path);
        }
    }
    Ok(())
}

fn finding(source: &str, object: &str, message: String) -> Diagnostic {
    let (source, object) = (source.to_owned(), object.to_owned());
    Diagnostic {
        severity: Severity::Error,
        source,
        object,
        field: String::new(),
        message,
    }
}

impl FileState {
    /// Reads the file if it may have changed.
    fn read(&mut self, name: &str, path: &Path) {
        let stamp = stamp(path).ok();
        if stamp.is_some_and(|stamp| !stamp.racy) && stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        match content(path) {
            Ok(text) => {
                let digest = Digest::of("file", [text.as_bytes()]);
                if self.content.replace(digest) != Some(digest) {
                    self.lower(name, &text);
                }
            }
            Err(error) => {
                // Not a stamp to believe: the same file may be readable a moment later.
                (self.stamp, self.content) = (None, None);
                self.unknown |= self.objects.is_empty();
                let stays = if self.unknown {
                    "what it says is not known"
                } else {
                    "what it said before stays in force"
                };
                let message = format!("cannot be read ({error}); {stays}; make it readable or remove it");
                self.diagnostics = vec![finding(name, "file", message)];
            }
        }
    }

    fn lower(&mut self, name: &str, text: &str) {
        let (objects, diagnostics) = bulkhead_crds::lower(text, name);
        let old = std::mem::replace(
            &mut self.objects,
            objects.into_iter().map(|object| (object.key(), object)).collect(),
        );
        self.diagnostics = diagnostics;
        let errors = || {
            self.diagnostics
                .iter()
                .filter(|found| found.severity == Severity::Error)
        };
        // A document that cannot be read does not say what it was; any object that is missing now may have been in it.
        let unreadable = errors().any(|found| found.object == "document");
        let named: BTreeSet<String> = errors().map(|found| found.object.clone()).collect();
        let mut kept = Vec::new();
        for (key, object) in old {
            let text = object_text(&key);
            if !self.objects.contains_key(&key) && (unreadable || named.contains(&text)) {
                kept.push(text);
                self.objects.insert(key, object);
            }
        }
        self.unknown = unreadable && kept.is_empty();
        for object in kept {
            let message =
                "cannot be read any more; what it said before stays in force; correct or remove it".to_owned();
            self.diagnostics.push(Diagnostic {
                severity: Severity::Warning,
                ..finding(name, &object, message)
            });
        }
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    let age = metadata
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    Ok(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        racy: age.is_none_or(|age| age < RACY),
    })
}

fn content(path: &Path) -> io::Result<String> {
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    let mut bytes = Vec::new();
    let length = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if u64::try_from(length).is_ok_and(|length| length > FILE_BYTES_MAX) {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {FILE_BYTES_MAX} bytes"),
        ));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

#[cfg(test)]
mod tests;
