//! The shipped programs and their maps for whoever measures them: filled by hand, run on packets without attaching
//! anything, read back. The agent uses nothing of this.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use aya::EbpfLoader;
use bulkhead_policy::plan::{MapOp, MapWriter};
use bulkhead_verdict::{
    layout::{Counter, DenyEntry, DenyKey, Event, Flow, FlowKey, LAYOUT, stat},
    maps::Hook,
};

use super::{
    Fuse, Kernel, KernelError, Maps, OBJECT, Programs,
    maps::{MAPS, Table},
    ring::EventRing,
    sys::{self, attach_type},
    uplink,
    writer::Writer,
};

/// What can be run on a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// What the agent attaches.
    Hook(Hook),
    /// A program that does nothing.
    Empty,
    /// What the agent attaches to [`Hook::FromPod`], behind a change of the source port at each run.
    NewFlow,
    /// That change alone.
    Mutate,
    /// Reads a packet's headers.
    Headers,
    /// The same, and writes the record of a flow.
    Event,
}

impl Program {
    /// Programs of the object that the agent never loads.
    const OWN: [Self; 5] = [Self::Empty, Self::NewFlow, Self::Mutate, Self::Headers, Self::Event];

    /// Its name in the object.
    const fn name(self) -> &'static str {
        match self {
            Self::Hook(Hook::FromPod) => "from_pod",
            Self::Hook(Hook::ToPod) => "to_pod",
            Self::Empty => "empty",
            Self::NewFlow => "bench_new_flow",
            Self::Mutate => "bench_mutate",
            Self::Headers => "bench_headers",
            Self::Event => "bench_event",
        }
    }
}

/// What came of running a program on a packet some times.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// What it returned the last time: -1 = go on, 2 = drop.
    pub returned: i32,
    /// Mean time of one run as the kernel measured it, in whole nanoseconds.
    pub each: Duration,
}

/// Loaded programs with maps of their own.
pub struct Lab {
    kernel: Kernel,
    writer: Writer,
    events: EventRing,
}

impl Lab {
    /// Loads everything. The maps are pinned at `bpffs`, which must be a folder of the caller's own: an agent's pins would
    /// be adopted as they are.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn open(bpffs: &Path) -> Result<Self, KernelError> {
        let mut kernel = Kernel::open(bpffs)?;
        for program in Program::OWN {
            kernel.programs.load_one(program.name())?;
        }
        let writer = kernel.writer(Fuse::default())?;
        let events = kernel.events()?;
        Ok(Self { kernel, writer, events })
    }

    /// Carries out writes in order.
    ///
    /// # Errors
    /// A map that is full, or has no such element.
    pub fn write(&mut self, ops: &[MapOp]) -> Result<(), KernelError> {
        self.writer.apply(ops)
    }

    /// Runs a program on a packet `repeat` times, as if it came by a device of this network namespace.
    ///
    /// # Errors
    /// No such device; a packet shorter than an Ethernet header.
    pub fn run(&self, program: Program, ifindex: u32, packet: &[u8], repeat: u32) -> Result<Run, KernelError> {
        let (returned, each) = self.kernel.programs.run(program.name(), ifindex, packet, repeat)?;
        Ok(Run { returned, each })
    }

    /// Puts the program that does nothing on both hooks of a device of this network namespace, until the links are dropped: what
    /// calling any program costs. They outlive the lab.
    ///
    /// # Errors
    /// No such device.
    pub fn attach_empty(&self, ifindex: u32) -> Result<[OwnedFd; 2], KernelError> {
        let name = Program::Empty.name();
        let fd = self.kernel.programs.fd(name)?;
        let link = |place| {
            sys::link_create(fd.as_fd(), ifindex, place).map_err(|source| KernelError::Attach {
                ifindex,
                program: name,
                source,
            })
        };
        Ok([link(attach_type::TCX_INGRESS)?, link(attach_type::TCX_EGRESS)?])
    }

    /// Forgets all flows, denials and events.
    ///
    /// # Errors
    /// A map that cannot be read or written.
    pub fn forget(&mut self) -> Result<(), KernelError> {
        let maps = &self.kernel.maps;
        clear(&maps.confirmed)?;
        clear(&maps.tentative)?;
        clear(&maps.denies)?;
        for slot in 0..maps.quotas.limit() {
            maps.quotas.set(&slot, &[0; 2])?;
        }
        self.events();
        Ok(())
    }

    /// The counters of STATS, summed over CPUs, by index.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn stats(&self) -> Result<Vec<Counter>, KernelError> {
        self.kernel.maps.stats.sums()
    }

    /// Records that found the ring full.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn lost(&self) -> Result<u64, KernelError> {
        Ok(lost(&self.stats()?))
    }

    /// Flows of CONFIRMED.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn confirmed(&self) -> Result<Vec<(FlowKey, Flow)>, KernelError> {
        all(&self.kernel.maps.confirmed)
    }

    /// Flows of TENTATIVE.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn tentative(&self) -> Result<Vec<(FlowKey, Flow)>, KernelError> {
        all(&self.kernel.maps.tentative)
    }

    /// Aggregated denials.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn denials(&self) -> Result<Vec<(DenyKey, DenyEntry)>, KernelError> {
        all(&self.kernel.maps.denies)
    }

    /// How many entries RULES holds.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn rules(&self) -> Result<usize, KernelError> {
        Ok(all(&self.kernel.maps.rules)?.len())
    }

    /// How many entries ADDRESSES holds.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn addresses(&self) -> Result<usize, KernelError> {
        Ok(all(&self.kernel.maps.addresses)?.len())
    }

    /// Events not taken yet, in order.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.next()).collect()
    }
}

/// Writes records into the ring of an agent that is running, which reads them as its own.
pub struct Records {
    programs: Programs,
    stats: Table<u32, Counter>,
}

impl Records {
    /// Loads the program that writes them over the maps an agent has pinned. It must be one without uplinks.
    ///
    /// # Errors
    /// No such pins; programs that the kernel refuses.
    pub fn beside(bpffs: &Path) -> Result<Self, KernelError> {
        let folder = bpffs.join(format!("v{}", LAYOUT.replace('.', "-")));
        let mut loader = EbpfLoader::new();
        uplink::prepare(&mut loader, &folder, None, 1)?;
        for spec in &MAPS {
            loader.map_pin_path(spec.name, folder.join(spec.name));
        }
        let object = loader.load(OBJECT).map_err(|source| KernelError::Load {
            source: Box::new(source),
        })?;
        let mut programs = Programs::load(object)?;
        programs.load_one(Program::Event.name())?;
        Ok(Self {
            programs,
            stats: Maps::open(&folder)?.stats,
        })
    }

    /// Writes so many, of flows opened by a packet.
    ///
    /// # Errors
    /// A packet without headers.
    pub fn write(&self, packet: &[u8], count: u32) -> Result<(), KernelError> {
        self.programs.run(Program::Event.name(), 1, packet, count).map(drop)
    }

    /// How many found the ring full, as the programs counted since the maps were made.
    ///
    /// # Errors
    /// A map that cannot be read.
    pub fn lost(&self) -> Result<u64, KernelError> {
        Ok(lost(&self.stats.sums()?))
    }
}

/// Records that found the ring full.
fn lost(sums: &[Counter]) -> u64 {
    let of = |hook: Hook| {
        let index = usize::from(hook as u8) << 8 | usize::from(stat::LOST_EVENT);
        sums.get(index).map_or(0, |counter| counter.packets)
    };
    of(Hook::FromPod).wrapping_add(of(Hook::ToPod))
}

fn all<K: zerocopy::FromBytes, V: zerocopy::FromBytes>(table: &Table<K, V>) -> Result<Vec<(K, V)>, KernelError> {
    let mut elements = Vec::new();
    table.for_each(|key, value| elements.push((key, value)))?;
    Ok(elements)
}

fn clear<K, V>(table: &Table<K, V>) -> Result<(), KernelError>
where
    K: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable + Clone,
    V: zerocopy::FromBytes,
{
    let keys: Vec<K> = all(table)?.into_iter().map(|(key, _)| key).collect();
    table.remove_all(&keys)
}
