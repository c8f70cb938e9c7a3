//! bpf(2) by hand: the commands aya has no call for (batches, links by device index, facts about a descriptor). One of
//! the three places of this crate with `unsafe`; everything above it works on bytes of checked length.
#![expect(
    unsafe_code,
    reason = "the system call takes pointers; every one comes from a slice that outlives the call"
)]

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::atomic::AtomicU8,
};

/// Commands of bpf(2) (`enum bpf_cmd` in the kernel's uapi/linux/bpf.h).
mod command {
    pub(super) const MAP_CREATE: libc::c_int = 0;
    pub(super) const MAP_LOOKUP_ELEM: libc::c_int = 1;
    pub(super) const MAP_UPDATE_ELEM: libc::c_int = 2;
    pub(super) const MAP_DELETE_ELEM: libc::c_int = 3;
    pub(super) const OBJ_PIN: libc::c_int = 6;
    pub(super) const OBJ_GET: libc::c_int = 7;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    pub(super) const PROG_QUERY: libc::c_int = 16;
    pub(super) const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
    pub(super) const MAP_LOOKUP_BATCH: libc::c_int = 24;
    pub(super) const MAP_UPDATE_BATCH: libc::c_int = 26;
    pub(super) const MAP_DELETE_BATCH: libc::c_int = 27;
    pub(super) const LINK_CREATE: libc::c_int = 28;
    pub(super) const LINK_UPDATE: libc::c_int = 29;
}

/// Map types (`enum bpf_map_type`) the agent meets.
pub(crate) mod map_type {
    pub(crate) const HASH: u32 = 1;
    pub(crate) const ARRAY: u32 = 2;
    pub(crate) const PERCPU_ARRAY: u32 = 6;
    pub(crate) const LRU_HASH: u32 = 9;
    pub(crate) const LPM_TRIE: u32 = 11;
    pub(crate) const ARRAY_OF_MAPS: u32 = 12;
    pub(crate) const RINGBUF: u32 = 27;
}

/// Attach types (`enum bpf_attach_type`) of TCX.
pub(crate) mod attach_type {
    pub(crate) const TCX_INGRESS: u32 = 46;
    pub(crate) const TCX_EGRESS: u32 = 47;
    pub(super) const XDP: u32 = 37;
}

/// Every attribute is passed zeroed to this size, so that fields of later kernels are zero too.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    in_token: u64,
    out_token: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Question {
    fd: u32,
    length: u32,
    answer: u64,
}

#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

/// What the kernel says of a map (the head of `struct bpf_map_info`).
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// What the kernel says of a TCX link (the head of `struct bpf_link_info`).
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    padding: u32,
    /// 0 when the device is gone.
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
}

fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is a live `repr(C)` value of the given size; pointers inside it are the callers' business,
    // each of which passes slices that live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn call_for_fd<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel gave us this descriptor just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

// The attributes hold pointers as 64-bit numbers; addresses are never wider than that.
fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr().expose_provenance() as u64
}

fn address_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr().expose_provenance() as u64
}

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Writes one element. The slices must be as long as the map's key and value, which the caller has checked once.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut element = Element {
        map: number(map),
        key: address(key),
        value: address(value),
        ..Element::default()
    };
    call(command::MAP_UPDATE_ELEM, &mut element).map(drop)
}

/// Removes one element; false when there was none.
pub(crate) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut element = Element {
        map: number(map),
        key: address(key),
        ..Element::default()
    };
    absent_is_false(call(command::MAP_DELETE_ELEM, &mut element))
}

/// Reads one element; false when there is none.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut element = Element {
        map: number(map),
        key: address(key),
        value: address_mut(value),
        ..Element::default()
    };
    absent_is_false(call(command::MAP_LOOKUP_ELEM, &mut element))
}

/// Reads and removes one element in one step; false when there is none.
pub(crate) fn lookup_and_delete(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut element = Element {
        map: number(map),
        key: address(key),
        value: address_mut(value),
        ..Element::default()
    };
    absent_is_false(call(command::MAP_LOOKUP_AND_DELETE_ELEM, &mut element))
}

/// Writes one element unless the key has one.
pub(crate) fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    const NO_EXIST: u64 = 1;
    let mut element = Element {
        map: number(map),
        key: address(key),
        value: address(value),
        flags: NO_EXIST,
        ..Element::default()
    };
    match call(command::MAP_UPDATE_ELEM, &mut element) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

fn absent_is_false(result: io::Result<libc::c_long>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes `count` elements in order; on error says how many were written before it.
pub(crate) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> Result<(), (u32, io::Error)> {
    let mut batch = Batch {
        map: number(map),
        keys: address(keys),
        values: address(values),
        count,
        ..Batch::default()
    };
    call(command::MAP_UPDATE_BATCH, &mut batch)
        .map(drop)
        .map_err(|error| (batch.count, error))
}

/// Removes `count` elements in order; an absent one ends it with `ENOENT`. On error says how many were removed before.
pub(crate) fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> Result<(), (u32, io::Error)> {
    let mut batch = Batch {
        map: number(map),
        keys: address(keys),
        count,
        ..Batch::default()
    };
    call(command::MAP_DELETE_BATCH, &mut batch)
        .map(drop)
        .map_err(|error| (batch.count, error))
}

/// Where a batched read goes on: a bucket number for hashes, a key for arrays and tries. As long as the longest key.
pub(crate) type Token = [u8; 64];

/// Reads up to `count` elements from `token` on; gives how many, and whether it was the last batch. The token is moved on.
pub(crate) fn lookup_batch(
    map: BorrowedFd<'_>,
    token: &mut Option<Token>,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, bool)> {
    let start = token.unwrap_or([0; 64]);
    let mut next: Token = [0; 64];
    let mut batch = Batch {
        map: number(map),
        in_token: if token.is_some() { address(&start) } else { 0 },
        out_token: address_mut(&mut next),
        keys: address_mut(keys),
        values: address_mut(values),
        count,
        ..Batch::default()
    };
    let result = call(command::MAP_LOOKUP_BATCH, &mut batch);
    *token = Some(next);
    match result {
        Ok(_) => Ok((batch.count, false)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((batch.count, true)),
        Err(error) => Err(error),
    }
}

/// Opens what is pinned at a path.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let text = path_text(path)?;
    let mut object = Object {
        path: address(text.as_bytes_with_nul()),
        ..Object::default()
    };
    call_for_fd(command::OBJ_GET, &mut object)
}

/// Pins a map, program or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let text = path_text(path)?;
    let mut object = Object {
        path: address(text.as_bytes_with_nul()),
        fd: number(fd),
        ..Object::default()
    };
    call(command::OBJ_PIN, &mut object).map(drop)
}

/// What the kernel says of a map.
pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// What the kernel says of a TCX link.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// `T` is the head of an info structure: `repr(C)`, integers only.
fn info<T: Default + Copy>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut head = MaybeUninit::new(T::default());
    let length = u32::try_from(size_of::<T>()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut question = Question {
        fd: number(fd),
        length,
        answer: head.as_mut_ptr().expose_provenance() as u64,
    };
    call(command::OBJ_GET_INFO_BY_FD, &mut question)?;
    // SAFETY: initialised with the default above; the kernel wrote at most `length` bytes over it, and every bit
    // pattern is a value of the integers `T` is made of.
    Ok(unsafe { head.assume_init() })
}

/// Attaches a loaded program to a device by index, behind the programs that are there already.
pub(crate) fn link_create(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut link = LinkCreate {
        program: number(program),
        ifindex,
        attach_type,
        ..LinkCreate::default()
    };
    call_for_fd(command::LINK_CREATE, &mut link)
}

/// Most programs a TCX hook takes (`BPF_MPROG_MAX`).
const CHAIN_MAX: usize = 64;

/// Ids of the programs on a TCX hook of a device, in the order they run; `None` when there is no such device.
pub(crate) fn chain(ifindex: u32, attach_type: u32) -> io::Result<Option<Vec<u32>>> {
    let mut ids = [0_u32; CHAIN_MAX];
    let mut query = Query {
        ifindex,
        attach_type,
        program_ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(CHAIN_MAX).unwrap_or(0),
        ..Query::default()
    };
    match call(command::PROG_QUERY, &mut query) {
        Ok(_) => {
            let count = usize::try_from(query.count).unwrap_or(0);
            Ok(Some(ids.into_iter().take(count).collect()))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        // A hook that never had a program.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Some(Vec::new())),
        Err(error) => Err(error),
    }
}

/// Attaches a loaded program to a device's XDP hook, in the mode that the flags say.
pub(crate) fn link_create_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut link = LinkCreate {
        program: number(program),
        ifindex,
        attach_type: attach_type::XDP,
        flags,
        ..LinkCreate::default()
    };
    call_for_fd(command::LINK_CREATE, &mut link)
}

/// The memory of an array that may be mapped: single bytes are read and written without a system call.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *const AtomicU8,
    length: usize,
}

// SAFETY: the memory is shared with the kernel in any case, and is reached as atomic bytes only.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole of an array made with `BPF_F_MMAPABLE`.
    pub(crate) fn of(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        // SAFETY: a new shared mapping of a descriptor we hold, placed by the kernel.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = start.cast_const().cast();
        Ok(Self { start, length })
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the mapping has this length and lives as long as we do; an atomic byte has any byte's layout.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which no reference is left.
        let _unmapped = unsafe { libc::munmap(self.start.cast_mut().cast(), self.length) };
    }
}

/// Replaces the program of a link in place: a packet meets the old one or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = LinkUpdate {
        link: number(link),
        new_program: number(program),
        ..LinkUpdate::default()
    };
    call(command::LINK_UPDATE, &mut update).map(drop)
}

/// Creates an array of one `u32`, or (with `inner`) an array of one map like `inner`.
pub(crate) fn create_array(inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut create = Create {
        kind: if inner.is_some() {
            map_type::ARRAY_OF_MAPS
        } else {
            map_type::ARRAY
        },
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        inner_map: inner.map_or(0, number),
    };
    call_for_fd(command::MAP_CREATE, &mut create)
}
