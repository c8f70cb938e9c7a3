//! Puts the plugin where the container runtime looks, keeps it there while the CNI writes its own files, and takes it away.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use notify::{
    EventKind, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::{mpsc, watch};

use super::{
    PLUGIN,
    conflist::{self, Settings},
};

/// Time between looks when nothing is told: a notice may be lost.
const INTERVAL: Duration = Duration::from_secs(10);
/// Files a runtime reads, of which it takes the first by name.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
/// Longest configuration that is read, bytes.
const TEXT_MAX: u64 = 1 << 20;

/// Where things are on the node.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Folder of plugin binaries.
    pub bin_dir: PathBuf,
    /// Folder of network configurations.
    pub conf_dir: PathBuf,
    /// Socket of the agent.
    pub agent_socket: PathBuf,
    /// File whose presence says that the node has had rules.
    pub state_file: PathBuf,
    /// `open` or `strict`.
    pub start_gate: String,
    /// All the time an ADD may take, milliseconds.
    pub timeout_ms: u32,
}

/// By what a file that was written anew is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Look {
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Look {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            size: found.size(),
        }
    }
}

/// False of what reading causes: our own would wake us, and we would never sleep.
fn is_change(event: &notify::Event) -> bool {
    let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
    !event.kind.is_access() || event.kind == written
}

/// How installing goes, for status: empty when the plugin is in place.
pub type Trouble = watch::Sender<String>;

impl Installation {
    /// Installs, and again whenever the folder of configurations changes, for ever.
    pub async fn keep(self, trouble: Trouble) {
        let (sender, mut changes) = mpsc::channel(1);
        let mut watcher = self.watcher(sender);
        let mut seen = None;
        loop {
            let looked = tokio::task::block_in_place(|| self.install(&mut seen));
            match looked {
                Ok(changed) => {
                    for path in changed {
                        tracing::info!(path = %path.display(), "installed");
                    }
                    trouble.send_replace(String::new());
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if trouble.send_replace(error.clone()) != error {
                        tracing::warn!(
                            "pods start unjudged for a moment, for the CNI plugin is not installed: {error}"
                        );
                    }
                }
            }
            if watcher.is_none() {
                let (sender, fresh) = mpsc::channel(1);
                watcher = self.watcher(sender);
                changes = fresh;
            }
            tokio::select! {
                changed = changes.recv(), if watcher.is_some() => {
                    if changed.is_none() {
                        watcher = None;
                    }
                }
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Tells of changes in the folder; `None` while there is no such folder.
    fn watcher(&self, sender: mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
        let tell = move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(&event)) {
                // One notice that waits is enough: the reader looks at everything.
                sender.try_send(()).ok();
            }
        };
        let mut watcher = notify::recommended_watcher(tell).ok()?;
        watcher.watch(&self.conf_dir, RecursiveMode::NonRecursive).ok()?;
        Some(watcher)
    }

    /// Puts binary and entry in place; gives the files that were written. `seen` is how the binary looked when it was right.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    fn install(&self, seen: &mut Option<Look>) -> Result<Vec<PathBuf>> {
        let mut changed = Vec::new();
        // The binary first: an entry without it would stop every pod.
        let binary = self.bin_dir.join(PLUGIN);
        let look = |path: &Path| fs::metadata(path).ok().map(|found| Look::of(&found));
        if seen.is_none() || look(&binary) != *seen {
            changed.extend(self.install_binary()?);
            *seen = look(&binary);
        }
        changed.extend(self.install_entry()?);
        Ok(changed)
    }

    fn install_binary(&self) -> Result<Option<PathBuf>> {
        let ours = std::env::current_exe()
            .context("where is the agent's binary?")?
            .with_file_name(PLUGIN);
        let bytes = fs::read(&ours).with_context(|| format!("reading {}", ours.display()))?;
        let target = self.bin_dir.join(PLUGIN);
        if fs::read(&target).is_ok_and(|there| there == bytes) {
            return Ok(None);
        }
        fs::create_dir_all(&self.bin_dir).with_context(|| format!("making {}", self.bin_dir.display()))?;
        replace(&target, &bytes, 0o755).with_context(|| format!("writing {}", target.display()))?;
        Ok(Some(target))
    }

    fn install_entry(&self) -> Result<Option<PathBuf>> {
        let Some(path) = first(&self.conf_dir)? else {
            bail!("{}: there is no network configuration (yet)", self.conf_dir.display());
        };
        let settings = Settings {
            agent_socket: &self.agent_socket,
            state_file: &self.state_file,
            start_gate: &self.start_gate,
            timeout_ms: self.timeout_ms,
        };
        let before = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
        let text = read(&path)?;
        let Some(text) = conflist::insert(&text, &settings).with_context(|| path.display().to_string())? else {
            return Ok(None);
        };
        // What its owner writes at this moment is newer than what we read; the next look takes it.
        let now = fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
        if Look::of(&now) != Look::of(&before) {
            bail!("{}: changed while it was read; tried again", path.display());
        }
        replace(&path, text.as_bytes(), before.permissions().mode())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(path))
    }
}

/// Takes our entry out of every configuration, then the binary away; gives the files that were changed.
///
/// # Errors
/// Names the file; those before it are done, and trying again is right.
pub fn uninstall(bin_dir: &Path, conf_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut changed = Vec::new();
    for path in configurations(conf_dir)? {
        let text = read(&path)?;
        // What is no JSON has no entry of ours, and is not ours to mend.
        let Ok(Some(text)) = conflist::remove(&text) else {
            continue;
        };
        let mode = fs::metadata(&path).map_or(0o644, |found| found.permissions().mode());
        replace(&path, text.as_bytes(), mode).with_context(|| format!("writing {}", path.display()))?;
        changed.push(path);
    }
    let binary = bin_dir.join(PLUGIN);
    match fs::remove_file(&binary) {
        Ok(()) => changed.push(binary),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context(format!("removing {}", binary.display())),
    }
    Ok(changed)
}

/// Configurations by name.
fn configurations(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("reading {}", folder.display()))?,
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
            let hidden = path
                .file_name()
                .and_then(OsStr::to_str)
                .is_none_or(|name| name.starts_with('.'));
            EXTENSIONS.contains(&extension) && !hidden && path.is_file()
        })
        .collect();
    paths.sort();
    Ok(paths)
}

/// The one a runtime uses.
fn first(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(configurations(folder)?.into_iter().next())
}

fn read(path: &Path) -> Result<String> {
    let size = fs::metadata(path)
        .with_context(|| format!("looking at {}", path.display()))?
        .size();
    if size > TEXT_MAX {
        bail!("{}: {size} bytes is no network configuration", path.display());
    }
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Replaces a file so that a reader sees the whole of the old or the new one.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or(PLUGIN);
    // Neither a configuration nor a plugin to anyone who lists the folder.
    let fresh = path.with_file_name(format!(".bulkhead-{name}.new"));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&fresh)?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node() -> (tempfile::TempDir, Installation) {
        let folder = tempfile::tempdir().unwrap();
        let installation = Installation {
            bin_dir: folder.path().join("bin"),
            conf_dir: folder.path().join("net.d"),
            agent_socket: "/run/bulkhead/agent.sock".into(),
            state_file: "/var/lib/bulkhead/state.bulkhead".into(),
            start_gate: "open".to_owned(),
            timeout_ms: 10_000,
        };
        fs::create_dir(&installation.conf_dir).unwrap();
        fs::create_dir(&installation.bin_dir).unwrap();
        (folder, installation)
    }

    fn plugins(path: &Path) -> usize {
        let value: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        value["plugins"].as_array().unwrap().len()
    }

    #[test]
    fn reading_is_no_change() {
        for (kind, expected) in [
            (EventKind::Access(AccessKind::Open(AccessMode::Read)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Read)), false),
            (EventKind::Access(AccessKind::Close(AccessMode::Write)), true),
            (EventKind::Create(notify::event::CreateKind::File), true),
            (EventKind::Modify(notify::event::ModifyKind::Any), true),
            (EventKind::Remove(notify::event::RemoveKind::File), true),
            // Notices were lost.
            (EventKind::Other, true),
        ] {
            assert_eq!(is_change(&notify::Event::new(kind)), expected, "{kind:?}");
        }
    }

    #[test]
    fn the_first_configuration_gets_the_entry_and_all_lose_it() {
        let (_folder, node) = node();
        assert!(node.install_entry().unwrap_err().to_string().contains("(yet)"));
        let list = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "ptp"}]}).to_string();
        let (first, second) = (node.conf_dir.join("10-a.conflist"), node.conf_dir.join("20-b.conflist"));
        fs::write(&first, &list).unwrap();
        fs::set_permissions(&first, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&second, &list).unwrap();
        fs::write(node.conf_dir.join("00-notes.txt"), "x").unwrap();
        assert_eq!(node.install_entry().unwrap(), Some(first.clone()));
        assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((plugins(&first), plugins(&second)), (2, 1));
        assert_eq!(node.install_entry().unwrap(), None);
        // Its owner writes it anew.
        fs::write(&first, &list).unwrap();
        assert!(node.install_entry().unwrap().is_some());
        // Another CNI takes over; the former file keeps its entry, which harms nobody until the end.
        let zero = node.conf_dir.join("05-c.conflist");
        fs::write(&zero, &list).unwrap();
        assert_eq!(node.install_entry().unwrap(), Some(zero.clone()));
        let binary = node.bin_dir.join(PLUGIN);
        fs::write(&binary, "").unwrap();
        assert_eq!(uninstall(&node.bin_dir, &node.conf_dir).unwrap(), [zero, first, binary]);
        assert_eq!(uninstall(&node.bin_dir, &node.conf_dir).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_single_plugin_is_refused_by_name() {
        let (_folder, node) = node();
        fs::write(node.conf_dir.join("10-a.conf"), r#"{"type": "bridge"}"#).unwrap();
        let error = format!("{:#}", node.install_entry().unwrap_err());
        assert!(error.contains("10-a.conf") && error.contains(".conflist"), "{error}");
    }
}
