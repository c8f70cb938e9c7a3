//! The copy of the tree that faults are put into, with a target directory of its own. Both are in the cache, so that the
//! next run finds everything built.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail};

use crate::paths;

/// The copy. Held by one run at a time.
pub(crate) struct Scratch {
    folder: PathBuf,
    /// Where commands write; one file for all of a run.
    output: File,
    _lock: File,
}

impl Scratch {
    /// Makes the copy equal to the checkout, changes that are not committed included.
    pub(crate) fn open() -> Result<Self> {
        let folder = paths::cache()?.join("mutants");
        let tree = folder.join("tree");
        fs::create_dir_all(&tree).with_context(|| format!("creating {}", tree.display()))?;
        let lock = folder.join("lock");
        let lock = File::create(&lock).with_context(|| format!("creating {}", lock.display()))?;
        if lock.try_lock().is_err() {
            bail!(
                "another run of `cargo xtask mutants` uses {}; wait for it",
                folder.display()
            );
        }
        let log = folder.join("log");
        File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let output = OpenOptions::new()
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let scratch = Self {
            folder,
            output,
            _lock: lock,
        };
        scratch.copy()?;
        Ok(scratch)
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.folder.join("target")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Runs a command; what it says also goes to the log.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Output> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = command.output().with_context(|| format!("running {program}"))?;
        for bytes in [&output.stdout, &output.stderr] {
            (&self.output).write_all(bytes).context("writing the log")?;
        }
        Ok(output)
    }

    /// A file of the copy.
    pub(crate) fn text(&self, file: &str) -> Result<String> {
        let path = self.tree().join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes a file of the copy.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.tree().join(file);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Copies what differs, and only that: cargo builds anew what is younger than what it built.
    fn copy(&self) -> Result<()> {
        let (from, to) = (paths::root(), self.tree());
        let wanted = files(&from)?;
        for file in &wanted {
            let (from, to) = (from.join(file), to.join(file));
            let content = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
            if fs::read(&to).is_ok_and(|old| old == content) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            }
            fs::write(&to, content).with_context(|| format!("writing {}", to.display()))?;
        }
        let mut there = Vec::new();
        walk(&to, Path::new(""), &mut there)?;
        for file in there.iter().filter(|file| !wanted.contains(*file)) {
            let path = to.join(file);
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

/// The checkout's files: those git knows and those it does not ignore.
fn files(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("running git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("a file name that is no UTF-8")?;
    let names = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    Ok(names.filter(|name| root.join(name).is_file()).collect())
}

/// Files below a folder, relative to it.
fn walk(root: &Path, inside: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(inside);
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        let path = inside.join(entry.file_name());
        let kind = entry
            .file_type()
            .with_context(|| format!("asking about {}", path.display()))?;
        if kind.is_dir() {
            walk(root, &path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}
