//! The uplink's program and maps: made when somebody wants them, kept by pins of their own, taken away when nobody does.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

use aya::{Ebpf, EbpfLoader, programs::Xdp};
use bulkhead_verdict::{
    address::Address,
    layout::Counter,
    uplink::layout::{CELLS, DropEntry, DropKey, Hosts, MARKS, Prefix, PrefixKey, Settings, WIDE, WIDE_MARKS},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    KernelError,
    maps::{Spec, Table, spec},
    programs::open_link,
    sys::{self, Mapping, map_type},
};

/// The program's name in the object.
const PROGRAM: &str = "uplink";
/// Folder of pinned links inside a layout's folder: not among those of pods' devices, which older agents read.
pub(super) const LINKS: &str = "uplinks";

/// Maps of the uplink's program.
pub(super) const MAPS: [Spec; 16] = [
    spec::<u32, Settings>("BK_UP_SETTINGS", map_type::ARRAY),
    spec::<u32, [u8; CELLS]>("BK_UP_CELL", map_type::ARRAY),
    spec::<u32, [u8; MARKS]>("BK_UP_MARK", map_type::ARRAY),
    spec::<u32, [u8; WIDE_MARKS]>("BK_UP_WIDE", map_type::ARRAY),
    spec::<u32, Hosts>("BK_UP_HOSTS", map_type::HASH),
    spec::<u32, Prefix>("BK_UP_ROOT", map_type::ARRAY),
    spec::<PrefixKey, Prefix>("BK_UP_PREFIX", map_type::HASH),
    spec::<Exception, u32>("BK_UP_EXCEPT", map_type::LPM_TRIE),
    spec::<Address, u64>("BK_UP_SOURCE", map_type::LRU_HASH),
    spec::<u32, u64>("BK_UP_IDENTITY", map_type::LRU_HASH),
    spec::<u32, u64>("BK_UP_TARGET", map_type::ARRAY),
    spec::<Address, u64>("BK_UP_KNOWN", map_type::LRU_HASH),
    spec::<DropKey, DropEntry>("BK_UP_DROP", map_type::LRU_HASH),
    spec::<u32, u64>("BK_UP_PACE", map_type::PERCPU_ARRAY),
    spec::<u32, Counter>("BK_UP_STATS", map_type::PERCPU_ARRAY),
    spec::<u32, Counter>("BK_UP_FEED", map_type::PERCPU_ARRAY),
];
/// Those whose size the person chooses.
const SIZED: [&str; 2] = ["BK_UP_HOSTS", "BK_UP_PREFIX"];
/// Only benchmarks use it.
pub(super) const BENCH: &str = "BENCH_LPM";

/// Key of `BK_UP_EXCEPT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Exception {
    /// Significant bits of `address`, in which IPv4 addresses begin at bit 96.
    pub(crate) bits: u32,
    /// The prefix.
    pub(crate) address: Address,
}

/// How a program sits on a device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub(crate) enum Mode {
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the stack, for every device.
    Generic,
}

impl Mode {
    /// The word in pins, metrics and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// `XDP_FLAGS_*_MODE`.
    const fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }
}

/// Handles on the maps.
#[derive(Debug)]
pub(crate) struct UplinkMaps {
    pub(crate) settings: Table<u32, Settings>,
    pub(crate) hosts: Table<u32, Hosts>,
    pub(crate) roots: Table<u32, Prefix>,
    pub(crate) prefixes: Table<PrefixKey, Prefix>,
    pub(crate) exceptions: Table<Exception, u32>,
    pub(crate) drops: Table<DropKey, DropEntry>,
    pub(crate) stats: Table<u32, Counter>,
    pub(crate) feeds: Table<u32, Counter>,
    cells: Mapping,
    marks: Mapping,
    wide: Mapping,
}

impl UplinkMaps {
    fn open(folder: &Path) -> Result<Self, KernelError> {
        fn pinned(folder: &Path, name: &str) -> Result<OwnedFd, KernelError> {
            let path = folder.join(name);
            sys::open(&path).map_err(|source| KernelError::Pin { path, source })
        }
        fn table<K, V>(folder: &Path, name: &'static str) -> Result<Table<K, V>, KernelError> {
            Table::new(name, pinned(folder, name)?, folder)
        }
        let mapping = |map: &'static str, length: usize| {
            let fd = pinned(folder, map)?;
            Mapping::of(fd.as_fd(), length).map_err(|source| KernelError::Map {
                map,
                doing: "mapping",
                source,
            })
        };
        let wide = usize::try_from(WIDE).unwrap_or(usize::MAX);
        Ok(Self {
            settings: table(folder, "BK_UP_SETTINGS")?,
            hosts: table(folder, "BK_UP_HOSTS")?,
            roots: table(folder, "BK_UP_ROOT")?,
            prefixes: table(folder, "BK_UP_PREFIX")?,
            exceptions: table(folder, "BK_UP_EXCEPT")?,
            drops: table(folder, "BK_UP_DROP")?,
            stats: table(folder, "BK_UP_STATS")?,
            feeds: table(folder, "BK_UP_FEED")?,
            cells: mapping("BK_UP_CELL", CELLS * wide)?,
            marks: mapping("BK_UP_MARK", MARKS * wide)?,
            wide: mapping("BK_UP_WIDE", WIDE_MARKS)?,
        })
    }

    /// Byte of an IPv4 /24 (address >> 8).
    pub(crate) fn cell(&self, network: u32) -> u8 {
        at(&self.cells, network).map_or(0, |byte| byte.load(Ordering::Relaxed))
    }

    /// Sets it, and then the bits that lead to it.
    pub(crate) fn set_cell(&self, network: u32, byte: u8) {
        if let Some(cell) = at(&self.cells, network) {
            cell.store(byte, Ordering::Release);
        }
        self.set_marks(network, byte != 0);
    }

    fn set_marks(&self, network: u32, listed: bool) {
        bit(&self.marks, network, listed);
        let high = network >> 8;
        let marks = (0..32).map(|index| at(&self.marks, high << 5 | index));
        let any = listed || marks.flatten().any(|byte| byte.load(Ordering::Relaxed) != 0);
        bit(&self.wide, high, any);
    }

    /// IPv4 /24s of which anything is listed; on the way their bits are made to say so, and those of the others not.
    pub(crate) fn listed(&self) -> Vec<u32> {
        let mut listed = Vec::new();
        for (network, byte) in (0..).zip(self.cells.bytes()) {
            let any = byte.load(Ordering::Relaxed) != 0;
            if any {
                listed.push(network);
            }
            if marked(&self.marks, network) != any || any && !marked(&self.wide, network >> 8) {
                self.set_marks(network, any);
            }
        }
        listed
    }
}

fn at(mapping: &Mapping, index: u32) -> Option<&AtomicU8> {
    mapping.bytes().get(usize::try_from(index).ok()?)
}

fn marked(mapping: &Mapping, number: u32) -> bool {
    at(mapping, number >> 3).is_some_and(|byte| byte.load(Ordering::Relaxed) & 1 << (number & 7) != 0)
}

/// Sets or clears a bit of a mapping that only we write.
fn bit(mapping: &Mapping, number: u32, set: bool) {
    let Some(byte) = at(mapping, number >> 3) else { return };
    if set {
        byte.fetch_or(1 << (number & 7), Ordering::Release);
    } else {
        byte.fetch_and(!(1 << (number & 7)), Ordering::Release);
    }
}

/// The loaded program and its maps.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) maps: UplinkMaps,
    program: OwnedFd,
    links: PathBuf,
}

/// Says what becomes of the uplink's maps, and how large the trie of benchmarks is, while the object is loaded. Without `entries` they are as small as can be and
/// pinned nowhere; what an earlier agent pinned goes.
pub(super) fn prepare(
    loader: &mut EbpfLoader<'_>,
    folder: &Path,
    entries: Option<u32>,
    trie: u32,
) -> Result<(), KernelError> {
    loader.map_max_entries(BENCH, trie);
    let Some(entries) = entries else {
        remove(folder)?;
        for spec in &MAPS {
            loader.map_max_entries(spec.name, 1);
        }
        return Ok(());
    };
    let links = folder.join(LINKS);
    fs::create_dir_all(&links).map_err(|source| KernelError::Pin { path: links, source })?;
    for spec in &MAPS {
        let path = folder.join(spec.name);
        let sized = SIZED.contains(&spec.name);
        if let Some(map) = open_link(&path).map_err(failed(&path))? {
            let other = sized && sys::map_info(map.as_fd()).map_err(failed(&path))?.max_entries != entries;
            // The attached program keeps the old map until it is replaced, which happens when the new one is filled.
            if other || spec.check(map.as_fd(), &path).is_err() {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        if sized {
            loader.map_max_entries(spec.name, entries);
        }
        loader.map_pin_path(spec.name, path);
    }
    Ok(())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> KernelError {
    move |source| KernelError::Pin {
        path: path.to_path_buf(),
        source,
    }
}

/// Removes what an agent with uplinks left: links first, which takes the program off its devices. The devices it was on.
pub(super) fn remove(folder: &Path) -> Result<(usize, usize), KernelError> {
    let links = folder.join(LINKS);
    let (mut devices, mut pins) = (0, 0);
    if links.is_dir() {
        for entry in fs::read_dir(&links).map_err(failed(&links))? {
            let path = entry.map_err(failed(&links))?.path();
            fs::remove_file(&path).map_err(failed(&path))?;
            devices += 1;
            pins += 1;
        }
        fs::remove_dir(&links).map_err(failed(&links))?;
    }
    for spec in &MAPS {
        let path = folder.join(spec.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => {
                result.map_err(failed(&path))?;
                pins += 1;
            }
        }
    }
    Ok((devices, pins))
}

/// Loads the program of an object.
pub(super) fn load(object: &mut Ebpf) -> Result<(), KernelError> {
    load_one(object, PROGRAM)
}

pub(super) fn load_one(object: &mut Ebpf, name: &'static str) -> Result<(), KernelError> {
    let program = object
        .program_mut(name)
        .ok_or(KernelError::MissingProgram { program: name })?;
    let refused = |source| KernelError::Program {
        program: name,
        source: Box::new(source),
    };
    let program: &mut Xdp = program.try_into().map_err(refused)?;
    program.load().map_err(refused)
}

pub(super) fn get<'a>(object: &'a Ebpf, name: &'static str) -> Result<&'a Xdp, KernelError> {
    let program = object
        .program(name)
        .ok_or(KernelError::MissingProgram { program: name })?;
    program.try_into().map_err(|source| KernelError::Program {
        program: name,
        source: Box::new(source),
    })
}

/// Instructions the verifier walked to accept the program.
pub(super) fn verified_instructions(object: &Ebpf) -> Result<u32, KernelError> {
    let info = get(object, PROGRAM)?.info().map_err(|source| KernelError::Program {
        program: PROGRAM,
        source: Box::new(source),
    })?;
    Ok(info.verified_instruction_count().unwrap_or(0))
}

impl Uplink {
    /// Of an object that is loaded and whose maps are pinned in a folder.
    pub(super) fn open(object: &Ebpf, folder: &Path) -> Result<Self, KernelError> {
        let program = get(object, PROGRAM)?.fd().map_err(|source| KernelError::Program {
            program: PROGRAM,
            source: Box::new(source),
        })?;
        Ok(Self {
            maps: UplinkMaps::open(folder)?,
            program: program.as_fd().try_clone_to_owned().map_err(failed(folder))?,
            links: folder.join(LINKS),
        })
    }

    /// Publishes what is to be done, with a fresh secret; that of a predecessor stays, so that sources it challenged can answer.
    pub(crate) fn set_settings(&self, wanted: &Settings, fresh: [u64; 2]) -> Result<(), KernelError> {
        let mut secret = self.maps.settings.get(&0)?.map_or([0; 2], |held| held.secret);
        if secret == [0; 2] {
            secret = fresh;
        }
        self.maps.settings.set(&0, &Settings { secret, ..*wanted })
    }

    /// Lets the counters of feeds begin anew.
    pub(crate) fn forget_feed_counts(&self) -> Result<(), KernelError> {
        self.maps.feeds.clear()
    }

    fn pin(&self, ifindex: u32, mode: Mode) -> PathBuf {
        self.links.join(format!("{ifindex}-{}", mode.name()))
    }

    /// Puts the program on a device in the first of these modes that works, or in place of our own that is there.
    pub(crate) fn attach(&self, ifindex: u32, modes: &[Mode]) -> Result<Mode, KernelError> {
        let failed = |source| KernelError::Attach {
            ifindex,
            program: PROGRAM,
            source,
        };
        for mode in [Mode::Native, Mode::Generic] {
            let path = self.pin(ifindex, mode);
            let Some(link) = open_link(&path).map_err(failed)? else {
                continue;
            };
            if modes.contains(&mode) && sys::link_info(link.as_fd()).map_err(failed)?.ifindex == ifindex {
                sys::link_update(link.as_fd(), self.program.as_fd()).map_err(failed)?;
                return Ok(mode);
            }
            // Another mode is wanted, or the index was another device's.
            fs::remove_file(&path).map_err(failed)?;
        }
        let mut error = io::Error::from(io::ErrorKind::Unsupported);
        for mode in modes {
            match sys::link_create_xdp(self.program.as_fd(), ifindex, mode.flags()) {
                Ok(link) => {
                    sys::pin(link.as_fd(), &self.pin(ifindex, *mode)).map_err(failed)?;
                    return Ok(*mode);
                }
                Err(refused) => error = refused,
            }
        }
        Err(failed(error))
    }

    /// Takes the program off every device but these, and forgets devices that are gone.
    pub(crate) fn keep_only(&self, wanted: &[u32]) -> Result<(), KernelError> {
        for entry in fs::read_dir(&self.links).map_err(failed(&self.links))? {
            let path = entry.map_err(failed(&self.links))?.path();
            let ifindex = match open_link(&path).map_err(failed(&path))? {
                Some(link) => sys::link_info(link.as_fd()).map_err(failed(&path))?.ifindex,
                None => continue,
            };
            if !wanted.contains(&ifindex) {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
        }
        Ok(())
    }
}
