//! The unix socket: one owner at a time, readable by that owner only, gone when it is.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use thiserror::Error;
use tokio::net::UnixListener;

/// Why a socket cannot be had.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    /// Another process serves it.
    #[error("another controller is serving on {}; stop it first, or choose another socket with --listen", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A bound socket. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    /// Held as long as the socket is served; the kernel lets go of it whatever way the process ends.
    _lock: File,
}

impl Socket {
    /// Takes the socket over from whoever is dead, and from nobody who is alive.
    pub(crate) fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io { what, path, source }
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed("create the folder", folder))?;
        }
        let lock_path = beside(path, ".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path);
        let lock = lock.map_err(failed("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SocketError::Taken { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &lock_path)(error)),
        }
        // Bound beside and moved into place, so that nobody can connect before the permissions are set.
        let new = beside(path, ".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new)(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(failed("bind", &new))?;
        fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(failed("set the permissions of", &new))?;
        fs::rename(&new, path).map_err(failed("rename a new socket to", path))?;
        Ok((
            Self {
                path: path.to_owned(),
                _lock: lock,
            },
            listener,
        ))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_owner_that_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/a.sock");
        let (socket, listener) = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = Socket::bind(&path).unwrap_err();
        assert!(
            refused.to_string().contains("another controller is serving"),
            "{refused}"
        );
        tokio::net::UnixStream::connect(&path).await.unwrap();
        drop((socket, listener));
        assert!(!path.exists());
        drop(Socket::bind(&path).unwrap());
    }

    #[tokio::test]
    async fn what_a_dead_owner_left_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a killed process leaves its socket");
        let (_socket, _listener) = Socket::bind(&path).unwrap();
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }
}
