//! The shipped programs and their maps for whoever measures them: filled by hand, run on packets without attaching
//! anything, read back. The agent uses nothing of this.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use bulkhead_policy::plan::{MapOp, MapWriter};
use bulkhead_verdict::{
    layout::{Counter, DenyEntry, DenyKey, Event, Flow, FlowKey},
    maps::Hook,
};

use super::{
    Fuse, Kernel, KernelError,
    maps::Table,
    ring::EventRing,
    sys::{self, attach_type},
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
}

impl Program {
    /// Programs of the object that the agent never loads.
    const OWN: [Self; 3] = [Self::Empty, Self::NewFlow, Self::Mutate];

    /// Its name in the object.
    const fn name(self) -> &'static str {
        match self {
            Self::Hook(Hook::FromPod) => "from_pod",
            Self::Hook(Hook::ToPod) => "to_pod",
            Self::Empty => "empty",
            Self::NewFlow => "bench_new_flow",
            Self::Mutate => "bench_mutate",
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

    /// Events not taken yet, in order.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.next()).collect()
    }
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
