//! The last state on disk, written before the kernel is told: what an agent starts from while the controller is away.
//!
//! A file is a list of frames, each `length (4 bytes), BLAKE3 of the payload (32 bytes), payload`, little-endian. Payloads
//! are the chunks of revisions as they go over the wire: first a snapshot, then the differences since. A frame that was cut
//! by a crash ends the file: its revision was not in force anywhere. The file is written anew when the differences outgrow
//! the snapshot.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bulkhead_policy::state::State;
use bulkhead_proto::{
    MESSAGE_BYTES_MAX,
    state_digest::StateDigest,
    update::{Assembler, Revision, encode, encode_snapshot},
    v1::Update,
};
use prost::Message;
use thiserror::Error;

/// Name of the file. Its presence says that the node has had a state, which the CNI plugin looks at too.
pub(crate) const FILE: &str = "state.bulkhead";
const PODS_FILE: &str = "pods.json";
/// Says whose folder it is; locked while an agent runs on it.
pub(crate) const OWNER_FILE: &str = "node";
/// Longest name of a node that is read back, bytes (a DNS subdomain has 253).
const OWNER_MAX: u64 = 512;
/// Differences may at least be this long before the file is written anew, bytes.
const SLACK: u64 = 1 << 20;

/// What is wrong with the file. Enforcement does not depend on it.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    #[error("{}: {source}; the last state is not kept, so a restart without the controller begins with what the kernel holds", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{}: another agent is running on this folder; two nodes need two --state-dir", folder.display())]
    Taken { folder: PathBuf },
    #[error("{}: this is the state of node {owner}, and this is node {node}; another node's rules must not be applied here: give another --state-dir, or remove the folder if the node was renamed", folder.display())]
    OtherNode {
        folder: PathBuf,
        owner: String,
        node: String,
    },
    #[error("{}: {source}; it is ignored", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {problem}; it is ignored", path.display())]
    Content { path: PathBuf, problem: String },
}

/// A state that was found on disk.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) revision: u64,
    pub(crate) state: State,
}

/// The file.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    /// Open for appending; `None` until a snapshot was written.
    file: Option<File>,
    snapshot_bytes: u64,
    appended_bytes: u64,
    /// Held for its lock.
    _owner: File,
}

impl Store {
    /// Makes the folder, and takes it for this node and process.
    pub(crate) fn open(folder: &Path, node: &str) -> Result<Self, StoreError> {
        let path = folder.join(FILE);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| StoreError::Write {
                path: path.clone(),
                source,
            })?;
        Ok(Self {
            path,
            file: None,
            snapshot_bytes: 0,
            appended_bytes: 0,
            _owner: claim(folder, node)?,
        })
    }

    /// Takes a folder that an agent left, whoever's it was; `None` when no agent ever had it.
    pub(crate) fn lock(folder: &Path) -> Result<Option<File>, StoreError> {
        let path = folder.join(OWNER_FILE);
        let failed = |source| StoreError::Read {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::Taken {
                folder: folder.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// True when a state was ever kept here, readable or not.
    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Where the pods of this node are kept: beside the state.
    pub(crate) fn pods_path(&self) -> PathBuf {
        self.path.with_file_name(PODS_FILE)
    }

    /// Reads the last whole revision; `None` when there is no file.
    pub(crate) fn load(&self) -> Result<Option<Stored>, StoreError> {
        read(&self.path)
    }

    /// True when a revision is added to the file, false when the file is written anew.
    fn appends(&self, revision: &Revision) -> bool {
        let outgrown = self.appended_bytes > self.snapshot_bytes.max(SLACK);
        self.file.is_some() && !revision.snapshot && !outgrown
    }

    /// Keeps a revision: `after` is the state it leads to (not looked at when it is added to the file). Called before the
    /// kernel is told, so that the disk is never older than the kernel.
    pub(crate) fn keep(&mut self, revision: &Revision, after: &State) -> Result<(), StoreError> {
        let appends = self.appends(revision);
        let result = match &mut self.file {
            Some(file) if appends => {
                let added = messages(revision).and_then(|payloads| append(file, &payloads));
                added.map(|bytes| self.appended_bytes = self.appended_bytes.saturating_add(bytes))
            }
            _ => self.rewrite(revision, after),
        };
        result.map_err(|source| {
            // A gap would make the file wrong, an absent one is only less useful.
            self.file = None;
            drop(fs::remove_file(&self.path));
            StoreError::Write {
                path: self.path.clone(),
                source,
            }
        })
    }

    fn rewrite(&mut self, revision: &Revision, after: &State) -> io::Result<()> {
        let messages = encode_snapshot(revision.revision, revision.state_digest, after).map_err(io::Error::other)?;
        let fresh = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&fresh)?;
        self.snapshot_bytes = 0;
        for message in messages {
            self.snapshot_bytes = self.snapshot_bytes.saturating_add(append(&mut file, &[message])?);
        }
        self.appended_bytes = 0;
        file.sync_data()?;
        fs::rename(&fresh, &self.path)?;
        self.file = Some(file);
        Ok(())
    }
}

/// Writes a state into a file of its own, whole or not at all.
pub(crate) fn write_state(path: &Path, state: &State) -> Result<(), StoreError> {
    let digest = StateDigest::of(state).digest();
    let write = || -> io::Result<()> {
        let messages = encode_snapshot(1, digest, state).map_err(io::Error::other)?;
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        for message in messages {
            append(&mut file, &[message])?;
        }
        file.sync_data()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| StoreError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Reads what [`write_state`] wrote; `None` when there is no file.
pub(crate) fn read_state(path: &Path) -> Result<Option<State>, StoreError> {
    Ok(read(path)?.map(|stored| stored.state))
}

/// Reads the last whole revision of a file; `None` when there is none.
fn read(path: &Path) -> Result<Option<Stored>, StoreError> {
    let failed = |source| StoreError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let content = |problem: String| StoreError::Content {
        path: path.to_owned(),
        problem,
    };
    let mut assembler = Assembler::default();
    let mut stored: Option<Stored> = None;
    while let Some(payload) = frame(&mut file).map_err(failed)? {
        let update = Update::decode(payload.as_slice()).map_err(|error| content(error.to_string()))?;
        let revision = assembler.push(update).map_err(|error| content(error.to_string()))?;
        let Some(Revision {
            revision,
            snapshot,
            delta,
            ..
        }) = revision
        else {
            continue;
        };
        let mut state = match (snapshot, stored.take()) {
            (true, _) => State::default(),
            (false, Some(before)) => before.state,
            (false, None) => return Err(content("it begins with a difference".to_owned())),
        };
        state.apply(delta).map_err(|error| content(error.to_string()))?;
        stored = Some(Stored { revision, state });
    }
    Ok(stored)
}

fn messages(revision: &Revision) -> io::Result<Vec<Vec<u8>>> {
    let chunks = encode(revision).map_err(io::Error::other)?;
    Ok(chunks.iter().map(Message::encode_to_vec).collect())
}

/// Adds frames in one write.
fn append(file: &mut File, payloads: &[Vec<u8>]) -> io::Result<u64> {
    let mut bytes = Vec::new();
    for payload in payloads {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(blake3::hash(payload).as_bytes());
        bytes.extend_from_slice(payload);
    }
    file.write_all(&bytes)?;
    Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

/// The next whole frame; `None` at the end, and at a frame that was cut or is not what was written.
fn frame(file: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 36];
    if !read_whole(file, &mut head)? {
        return Ok(None);
    }
    let [a, b, c, d, hash @ ..] = head;
    let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Ok(None);
    }
    let mut payload = vec![0; length];
    let whole = read_whole(file, &mut payload)? && blake3::hash(&payload).as_bytes() == &hash;
    Ok(whole.then_some(payload))
}

fn read_whole(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Locks the folder, and sees that it is this node's.
fn claim(folder: &Path, node: &str) -> Result<File, StoreError> {
    let path = folder.join(OWNER_FILE);
    let failed = |source| StoreError::Write {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Taken {
            folder: folder.to_owned(),
        },
        TryLockError::Error(source) => failed(source),
    })?;
    let mut owner = String::new();
    Read::by_ref(&mut file)
        .take(OWNER_MAX)
        .read_to_string(&mut owner)
        .map_err(failed)?;
    if owner.is_empty() {
        file.write_all(node.as_bytes()).map_err(failed)?;
    } else if owner != node {
        return Err(StoreError::OtherNode {
            folder: folder.to_owned(),
            owner,
            node: node.to_owned(),
        });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use bulkhead_policy::{
        digest::Digest,
        model::{WorkloadKey, Zone},
        state::{AddressKind, Binding, Delta, PeerId, Resource},
    };

    use super::*;

    fn binding(last: u8, name: &str) -> Resource {
        let binding = Binding {
            peer: PeerId::AnyPod,
            kind: AddressKind::Pod,
            image_class: 0,
            name: Arc::new(WorkloadKey {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
            }),
            node: None,
        };
        Resource::Binding(Zone(0), IpAddr::from([10, 0, 0, last]), binding)
    }

    fn revision(number: u64, snapshot: bool, upserts: Vec<Resource>) -> Revision {
        let delta = Delta {
            upserts,
            removes: Vec::new(),
        };
        Revision {
            revision: number,
            snapshot,
            delta,
            policies: Vec::new(),
            state_digest: Digest([0; 32]),
        }
    }

    #[test]
    fn what_was_kept_comes_back_and_a_cut_frame_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), "n1").unwrap();
        assert!(store.load().unwrap().is_none());
        let mut state = State::default();
        let mut keep = |number, snapshot, one: Resource| {
            let revision = revision(number, snapshot, vec![one]);
            state.apply(revision.delta.clone()).unwrap();
            store.keep(&revision, &state).unwrap();
        };
        keep(5, true, binding(1, "a"));
        keep(6, false, binding(2, "b"));
        let stored = store.load().unwrap().unwrap();
        assert_eq!((stored.revision, stored.state.bindings.len()), (6, 2));

        let path = folder.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let revision = store.load().unwrap().map(|stored| stored.revision);
            assert!(matches!(revision, None | Some(5)), "cut at {cut}: {revision:?}");
        }
        let mut flipped = bytes.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(store.load().unwrap().unwrap().revision, 5);
    }

    #[test]
    fn a_folder_is_one_node_s_and_one_process_s() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "n1").unwrap();
        let error = Store::open(folder.path(), "n1").unwrap_err().to_string();
        assert!(error.contains("another agent is running on this folder"), "{error}");
        drop(store);
        let error = Store::open(folder.path(), "n2").unwrap_err().to_string();
        assert!(error.contains("the state of node n1, and this is node n2"), "{error}");
        Store::open(folder.path(), "n1").unwrap();
    }

    #[test]
    fn a_successor_begins_with_a_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), "n1").unwrap();
        let mut state = State::default();
        let mut keep = |store: &mut Store, number, snapshot, one| {
            let revision = revision(number, snapshot, vec![one]);
            state.apply(revision.delta.clone()).unwrap();
            store.keep(&revision, &state).unwrap();
        };
        keep(&mut store, 5, true, binding(1, "a"));
        drop(store);
        let mut successor = Store::open(folder.path(), "n1").unwrap();
        keep(&mut successor, 6, false, binding(1, "c"));
        let stored = successor.load().unwrap().unwrap();
        assert_eq!((stored.revision, stored.state.bindings.len()), (6, 1));
    }
}
