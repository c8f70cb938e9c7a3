//! Pinned maps and links from outside, as a fault or a stranger's hand changes them: elements are bytes.
#![expect(
    unsafe_code,
    reason = "bpf(2) takes pointers; each comes from a slice that outlives the call"
)]

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

const LOOKUP: i32 = 1;
const UPDATE: i32 = 2;
const DELETE: i32 = 3;
const NEXT_KEY: i32 = 4;
const OPEN: i32 = 7;
const INFO: i32 = 15;
const LINK_DETACH: i32 = 34;

/// Calls bpf(2) with an attribute of so many words; what it points at must live for the call and be as long as the command says.
pub(crate) fn call<const WORDS: usize>(command: i32, mut attribute: [u64; WORDS]) -> io::Result<i64> {
    // SAFETY: the attribute lives for the call and its size is given; addresses in it are of the callers' slices, which are as long
    // as the map's key and value, or as the numbers beside them say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(&attribute)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

pub(crate) fn place(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

fn place_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr().expose_provenance() as u64
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_encoded_bytes())?;
    made(call(OPEN, [place(text.as_bytes_with_nul()), 0, 0, 0])?)
}

/// The descriptor that a command gave.
pub(crate) fn made(number: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel gave us this descriptor just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pinned map.
#[derive(Debug)]
pub struct PinnedMap {
    fd: OwnedFd,
    key: usize,
    value: usize,
}

impl PinnedMap {
    /// Opens a pin.
    ///
    /// # Errors
    /// What bpf(2) says; `ENOENT` when there is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open(path)?;
        // The head of `struct bpf_map_info`: type, id, key size, value size.
        let mut info = [0_u8; 16];
        let length = (info.len() as u64) << 32;
        call(INFO, [number(&fd) | length, place_mut(&mut info), 0, 0])?;
        let size = |at: usize| info.get(at..).and_then(<[u8]>::first_chunk).copied();
        let size = |at| usize::try_from(u32::from_ne_bytes(size(at).unwrap_or_default())).unwrap_or(0);
        Ok(Self {
            key: size(8),
            value: size(12),
            fd,
        })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// What bpf(2) says; `ENOENT` when there is none.
    pub fn get(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        self.fits(key, self.key)?;
        let mut value = vec![0; self.value];
        call(LOOKUP, [number(&self.fd), place(key), place_mut(&mut value), 0])?;
        Ok(value)
    }

    /// Writes a value.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.fits(key, self.key)?;
        self.fits(value, self.value)?;
        call(UPDATE, [number(&self.fd), place(key), place(value), 0]).map(drop)
    }

    /// Removes an element.
    ///
    /// # Errors
    /// What bpf(2) says; `ENOENT` when there is none.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.fits(key, self.key)?;
        call(DELETE, [number(&self.fd), place(key), 0, 0]).map(drop)
    }

    /// Every element.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn elements(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut elements = Vec::new();
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.key];
            let after = key.as_deref().map_or(0, place);
            match call(NEXT_KEY, [number(&self.fd), after, place_mut(&mut next), 0]) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(elements),
                Err(error) => return Err(error),
            }
            elements.push((next.clone(), self.get(&next)?));
            key = Some(next);
        }
    }

    fn fits(&self, bytes: &[u8], size: usize) -> io::Result<()> {
        if bytes.len() == size {
            return Ok(());
        }
        let Self { key, value, .. } = self;
        Err(io::Error::other(format!(
            "keys have {key} bytes and values {value}, not {}",
            bytes.len()
        )))
    }
}

pub(crate) fn number(fd: &OwnedFd) -> u64 {
    u64::from(fd.as_raw_fd().unsigned_abs())
}

/// Takes a pinned link's program off its device; the pin stays.
///
/// # Errors
/// What bpf(2) says.
pub fn detach(link: &Path) -> io::Result<()> {
    let link = open(link)?;
    call(LINK_DETACH, [number(&link), 0, 0, 0]).map(drop)
}
