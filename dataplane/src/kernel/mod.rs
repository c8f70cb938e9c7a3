//! Everything that touches the kernel's maps and programs, and the only module that names aya.
//!
//! Pins live under `<bpffs>/v<layout>/`; whoever holds a [`Kernel`] holds the lock on them, so it is the only writer.

mod barrier;
mod batch;
mod bpffs;
mod dump;
mod elements;
pub mod lab;
mod maps;
mod names;
mod programs;
mod ring;
mod sys;
mod tuning;
mod uplink;
pub mod uplink_lab;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::EbpfLoader;
use bulkhead_verdict::{address::Address, layout as l};
use thiserror::Error;

pub(crate) use self::{
    bpffs::Leftovers,
    elements::Place,
    maps::Table,
    names::{Learning, NameMaps},
    programs::{Leads, Standing},
    ring::EventRing,
    uplink::{Exception, Mode, Uplink, UplinkMaps},
    writer::Writer,
};
use self::{bpffs::Pins, maps::NetworkPrefix};
pub use self::{programs::Programs, tuning::Tuning, writer::Fuse};

/// The kernel programs, as built with this crate.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs"));

/// What went wrong between us and the kernel.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// No bpffs.
    #[error("{}: cannot mount a bpffs; the agent needs root (CAP_SYS_ADMIN, CAP_BPF, CAP_NET_ADMIN)", path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent owns the pins.
    #[error("{}: another agent is using these pins; stop it first, or give this one its own --bpffs", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of the bpffs.
    #[error("{}: cannot be used", path.display())]
    Pin {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A map of another shape.
    #[error(
        "{}: {map} has {found}, this build wants {wanted}; it was pinned by a build whose layout differs without saying \
         so. Remove the folder to start anew (devices are open until they are attached again)", place.display()
    )]
    WrongMap {
        /// Map.
        map: &'static str,
        /// Its pin, or the folder.
        place: PathBuf,
        /// What this build wants.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The object and the agent disagree about which maps there are.
    #[error(
        "map {map} is not what this agent was built with: the embedded programs are of another version; build anew"
    )]
    MissingMap {
        /// Map.
        map: &'static str,
    },
    /// The object lacks a program.
    #[error("program {program} is not in the embedded object: it is of another version; build anew")]
    MissingProgram {
        /// Program.
        program: &'static str,
    },
    /// The object cannot be loaded.
    #[error("the kernel programs' maps cannot be created; the agent needs root and Linux 6.6 or newer with BTF")]
    Load {
        /// Why.
        source: Box<aya::EbpfError>,
    },
    /// A program cannot be loaded or used.
    #[error("program {program}: the kernel refuses it")]
    Program {
        /// Program.
        program: &'static str,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// A program cannot be attached.
    #[error("device {ifindex}: {program} cannot be attached; is the device still there?")]
    Attach {
        /// Device.
        ifindex: u32,
        /// Program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A map access.
    #[error("{doing} {map} failed{}", hint(source))]
    Map {
        /// Map.
        map: &'static str,
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No way to wait for running programs.
    #[error("cannot wait for running programs (membarrier, map of maps)")]
    Barrier {
        /// Why.
        source: io::Error,
    },
    /// The event ring.
    #[error("the event ring cannot be mapped")]
    Ring {
        /// Why.
        source: Box<aya::maps::MapError>,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => ": it is full; fewer or coarser policies, or fewer pods, would fit",
        Some(libc::ENOMEM) => ": the kernel has no memory for it",
        _ => "",
    }
}

/// Handles on every map the agent reads or writes.
#[derive(Clone, Debug)]
pub(crate) struct Maps {
    pub(crate) devices: Table<u32, u32>,
    pub(crate) endpoints: Table<u32, l::EndpointWord>,
    pub(crate) configs: Table<u32, l::Config>,
    pub(crate) addresses: Table<l::AddressKey, l::AddressEntry>,
    pub(crate) own: Table<Address, u32>,
    pub(crate) networks: Table<NetworkPrefix, l::NetworkEntry>,
    pub(crate) rules: Table<l::RuleKey, l::PortSet>,
    pub(crate) ranges: Table<u32, l::Range>,
    pub(crate) alternatives: Table<u32, l::Alternative>,
    pub(crate) leases: Table<l::LeaseKey, u64>,
    pub(crate) confirmed: Table<l::FlowKey, l::Flow>,
    pub(crate) tentative: Table<l::FlowKey, l::Flow>,
    /// Openings and flows in CONFIRMED, as in [`l::Quota`].
    pub(crate) quotas: Table<u32, [u64; 2]>,
    pub(crate) denies: Table<l::DenyKey, l::DenyEntry>,
    pub(crate) stats: Table<u32, l::Counter>,
    pub(crate) epoch: Table<u32, u32>,
    pub(crate) peer_epochs: Table<u32, u32>,
    pub(crate) interned: Table<l::InternKey, l::InternEntry>,
    pub(crate) names: NameMaps,
}

/// A handle on a pinned map.
fn table<K, V>(folder: &Path, name: &'static str) -> Result<Table<K, V>, KernelError> {
    let path = folder.join(name);
    let map = sys::open(&path).map_err(|source| KernelError::Pin { path, source })?;
    Table::new(name, map, folder)
}

impl Maps {
    fn open(folder: &Path) -> Result<Self, KernelError> {
        Ok(Self {
            devices: table(folder, "BK_DEVICE")?,
            endpoints: table(folder, "BK_ENDPOINT")?,
            configs: table(folder, "BK_CONFIG")?,
            addresses: table(folder, "BK_ADDRESS")?,
            own: table(folder, "BK_OWN")?,
            networks: table(folder, "BK_NETWORK")?,
            rules: table(folder, "BK_RULE")?,
            ranges: table(folder, "BK_RANGE")?,
            alternatives: table(folder, "BK_ALT")?,
            leases: table(folder, "BK_LEASE")?,
            confirmed: table(folder, "BK_CONFIRMED")?,
            tentative: table(folder, "BK_TENTATIVE")?,
            quotas: table(folder, "BK_QUOTA")?,
            denies: table(folder, "BK_DENY")?,
            stats: table(folder, "BK_STATS")?,
            epoch: table(folder, "BK_EPOCH")?,
            peer_epochs: table(folder, "BK_PEER_EPOCH")?,
            interned: table(folder, "BK_INTERN")?,
            names: NameMaps::open(folder)?,
        })
    }
}

/// The pinned maps and links, with this build's programs loaded. Holds the lock on the pins.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) maps: Maps,
    programs: Programs,
    pins: Pins,
    /// True when the pins were there before us: what they hold is in force and is adopted.
    found_pins: bool,
}

impl Kernel {
    /// Mounts the bpffs if need be, takes the lock, checks the pins that are there, creates the missing ones and loads the
    /// programs. Nothing on any device changes yet.
    pub fn open(bpffs: &Path) -> Result<Self, KernelError> {
        Self::with_uplinks(bpffs, Tuning::default(), None)
    }

    /// The same, with room for so many entries of feeds in each of the uplink's hashes; without, whatever an agent left on
    /// uplinks is taken off.
    pub fn with_uplinks(bpffs: &Path, tuning: Tuning, entries: Option<u32>) -> Result<Self, KernelError> {
        Self::with_trie(bpffs, tuning, entries, 1)
    }

    /// The same, with so many entries in the trie that benchmarks compare with.
    fn with_trie(bpffs: &Path, tuning: Tuning, entries: Option<u32>, trie: u32) -> Result<Self, KernelError> {
        let pins = Pins::open(bpffs)?;
        let found_pins = maps::check_pins(&pins.folder)?;
        let mut loader = EbpfLoader::new();
        tuning.set(&mut loader);
        uplink::prepare(&mut loader, &pins.folder, entries, trie)?;
        for spec in &maps::MAPS {
            loader.map_pin_path(spec.name, pins.folder.join(spec.name));
        }
        let mut object = loader.load(OBJECT).map_err(|source| KernelError::Load {
            source: Box::new(source),
        })?;
        maps::check_pins(&pins.folder)?;
        let maps = Maps::open(&pins.folder)?;
        if entries.is_some() {
            uplink::load(&mut object)?;
        }
        Ok(Self {
            maps,
            programs: Programs::load(object)?,
            pins,
            found_pins,
        })
    }

    /// The loaded programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// True when the maps were there before us.
    pub fn found_pins(&self) -> bool {
        self.found_pins
    }

    /// Puts our programs on a device, or the new ones in place of the old. Those of an agent with another layout, whose maps cannot be
    /// read, go when ours are there.
    pub fn attach(&self, ifindex: u32) -> Result<(), KernelError> {
        self.programs.attach(&self.pins.links, ifindex, Leads::In)?;
        self.pins.succeed(ifindex)
    }

    /// The same on a device that leads out of the node.
    pub(crate) fn attach_out(&self, ifindex: u32) -> Result<(), KernelError> {
        self.programs.attach(&self.pins.links, ifindex, Leads::Out)
    }

    /// Takes our programs off a device, or forgets one that is gone.
    pub fn detach(&self, ifindex: u32) -> Result<(), KernelError> {
        programs::detach(&self.pins.links, ifindex, Leads::In)
    }

    /// The same on a device that leads out of the node.
    pub(crate) fn detach_out(&self, ifindex: u32) -> Result<(), KernelError> {
        programs::detach(&self.pins.links, ifindex, Leads::Out)
    }

    /// Whether our programs are where they were put on a device.
    pub(crate) fn standing(&self, ifindex: u32, leads: Leads) -> Result<Standing, KernelError> {
        self.programs.standing(&self.pins.links, ifindex, leads)
    }

    /// Pods' devices that carry our programs.
    pub fn attached(&self) -> Result<Vec<u32>, KernelError> {
        programs::attached(&self.pins.links, Leads::In)
    }

    /// Devices that lead out of the node and carry our programs.
    pub(crate) fn attached_out(&self) -> Result<Vec<u32>, KernelError> {
        programs::attached(&self.pins.links, Leads::Out)
    }

    /// The uplink's program and maps, of a kernel opened with them.
    pub(crate) fn uplink(&self) -> Result<Uplink, KernelError> {
        Uplink::open(self.programs.object(), &self.pins.folder)
    }

    /// The event ring; to be opened once.
    pub(crate) fn events(&self) -> Result<EventRing, KernelError> {
        EventRing::open(&self.pins.folder)
    }

    /// Who carries out a plan.
    pub(crate) fn writer(&self, fuse: Fuse) -> Result<Writer, KernelError> {
        Writer::new(self.maps.clone(), fuse)
    }
}
