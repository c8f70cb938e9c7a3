//! `bulkhead-agent cleanup`: takes everything of ours off a node. Running it again finds nothing to do.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    cni::install,
    kernel,
    options::CniFolders,
    store::{self, Store},
};

/// Where an agent leaves things on its node.
#[derive(Debug, clap::Args)]
pub(crate) struct Cleanup {
    /// Folder of pinned maps and programs
    #[arg(long, env = "BULKHEAD_BPFFS", default_value = "/sys/fs/bpf/bulkhead")]
    pub(crate) bpffs: PathBuf,
    /// Folder of the last state
    #[arg(long, env = "BULKHEAD_STATE_DIR", default_value = "/var/lib/bulkhead")]
    pub(crate) state_dir: PathBuf,
    /// Socket of the agent
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = "/run/bulkhead/agent.sock")]
    pub(crate) socket: PathBuf,
    #[command(flatten)]
    pub(crate) cni: CniFolders,
    /// When all is done, wait for a signal instead of ending: a pod that is ready then says that its node is clean
    #[arg(long)]
    pub(crate) then_wait: bool,
}

/// What was taken off.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Removed {
    /// CNI configurations without our entry now, and the plugin.
    pub(crate) cni: Vec<PathBuf>,
    /// Devices that are not judged any more.
    pub(crate) devices: usize,
    /// Pins that are gone: maps and links.
    pub(crate) pins: usize,
    /// Files of the state, and the socket.
    pub(crate) files: Vec<PathBuf>,
}

impl Removed {
    /// True when there was nothing.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Cleans the node.
///
/// # Errors
/// When an agent runs here, before anything is touched; or names the file that cannot be removed. Trying again is right.
pub(crate) fn clean(cleanup: &Cleanup) -> Result<Removed> {
    // Both are held to the end: an agent that starts meanwhile is refused.
    let state: Option<File> = Store::lock(&cleanup.state_dir).context("nothing was changed")?;
    let pins = kernel::Leftovers::lock(&cleanup.bpffs).context("nothing was changed")?;
    let mut removed = Removed {
        // First, so that no pod waits for an agent that does not come.
        cni: install::uninstall(&cleanup.cni.cni_bin_dir, &cleanup.cni.cni_conf_dir)?,
        ..Removed::default()
    };
    (removed.devices, removed.pins) = pins.remove()?;
    if state.is_some() {
        remove_state(&cleanup.state_dir, &mut removed.files)?;
    }
    if remove_file(&cleanup.socket)? {
        removed.files.push(cleanup.socket.clone());
    }
    drop(state);
    Ok(removed)
}

/// The state's files; the one that says whose folder it is goes last, so that a second try finds the way.
fn remove_state(folder: &Path, removed: &mut Vec<PathBuf>) -> Result<()> {
    let mut owner = None;
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry.with_context(|| format!("reading {}", folder.display()))?;
        let path = entry.path();
        if entry.file_name() == store::OWNER_FILE {
            owner = Some(path);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
            removed.push(path);
        } else if remove_file(&path)? {
            removed.push(path);
        }
    }
    if let Some(path) = owner
        && remove_file(&path)?
    {
        removed.push(path);
    }
    // In a container the folder is a mount of a root that cannot be written, and stays, empty.
    let stays = [
        ErrorKind::ResourceBusy,
        ErrorKind::ReadOnlyFilesystem,
        ErrorKind::NotFound,
    ];
    match fs::remove_dir(folder) {
        Err(error) if !stays.contains(&error.kind()) => {
            bail!("removing {}: {error}", folder.display())
        }
        _ => Ok(()),
    }
}

/// False when it was not there.
fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err::<bool, io::Error>(error).with_context(|| format!("removing {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(folder: &Path) -> Cleanup {
        Cleanup {
            bpffs: folder.join("bpf"),
            state_dir: folder.join("state"),
            socket: folder.join("agent.sock"),
            cni: CniFolders {
                cni_bin_dir: folder.join("bin"),
                cni_conf_dir: folder.join("net.d"),
            },
            then_wait: false,
        }
    }

    #[test]
    fn a_running_agent_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        let agent = Store::open(&node.state_dir, "n1").unwrap();
        fs::create_dir(folder.path().join("net.d")).unwrap();
        let list = folder.path().join("net.d/10-a.conflist");
        fs::write(
            &list,
            r#"{"name": "n", "plugins": [{"type": "ptp"}, {"type": "bulkhead-cni"}]}"#,
        )
        .unwrap();
        let error = format!("{:#}", clean(&node).unwrap_err());
        assert!(error.contains("another agent is running"), "{error}");
        assert!(
            fs::read_to_string(&list).unwrap().contains("bulkhead-cni"),
            "nothing was changed"
        );
        drop(agent);
        fs::write(node.state_dir.join("pods.json"), "{}").unwrap();
        let removed = clean(&node).unwrap();
        assert_eq!(removed.cni, std::slice::from_ref(&list));
        assert!(!fs::read_to_string(&list).unwrap().contains("bulkhead-cni"));
        assert!(!node.state_dir.exists());
        assert!(
            clean(&node).unwrap().is_nothing(),
            "a second time there is nothing to do"
        );
    }

    #[test]
    fn a_folder_that_is_not_ours_is_not_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        fs::create_dir(&node.state_dir).unwrap();
        let photo = node.state_dir.join("holiday.jpg");
        fs::write(&photo, "").unwrap();
        assert!(clean(&node).unwrap().is_nothing());
        assert!(photo.exists());
    }
}
