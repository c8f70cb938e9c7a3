//! The programs: loading, and the pinned TCX links that keep them on devices.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions},
};
use bulkhead_verdict::maps::Hook;

use super::{
    KernelError,
    sys::{self, attach_type},
    uplink,
};

/// The hooks of a device, in the order they are attached.
pub(crate) const HOOKS: [Hook; 2] = [Hook::ToPod, Hook::FromPod];

/// Where a device leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leads {
    /// To a pod.
    In,
    /// Out of the node.
    Out,
}

/// Name of a hook's program in the object.
const fn program_name(leads: Leads, hook: Hook) -> &'static str {
    match (leads, hook) {
        (Leads::In, Hook::FromPod) => "from_pod",
        (Leads::In, Hook::ToPod) => "to_pod",
        (Leads::Out, Hook::FromPod) => "from_host",
        (Leads::Out, Hook::ToPod) => "to_host",
    }
}

/// Where the program of a hook sits: what a pod sends comes in by its host-side device, what the node sends goes out.
const fn place(leads: Leads, hook: Hook) -> u32 {
    match (leads, hook) {
        (Leads::In, Hook::FromPod) | (Leads::Out, Hook::ToPod) => attach_type::TCX_INGRESS,
        (Leads::In, Hook::ToPod) | (Leads::Out, Hook::FromPod) => attach_type::TCX_EGRESS,
    }
}

/// What the pins of a device that leads out of the node have in their names.
const OUT: &str = "-host-";

fn pin(links: &Path, ifindex: u32, leads: Leads, hook: Hook) -> PathBuf {
    let middle = match leads {
        Leads::In => "-",
        Leads::Out => OUT,
    };
    let side = match hook {
        Hook::FromPod => "from",
        Hook::ToPod => "to",
    };
    links.join(format!("{ifindex}{middle}{side}"))
}

/// Size of `struct __sk_buff` (uapi/linux/bpf.h), and where `ifindex` is in it.
const CONTEXT_SIZE: usize = 192;
const IFINDEX_AT: usize = 40;

/// What became of the programs that were put on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// The device is gone.
    NoDevice,
    /// One of them is not on its hook, or another program is in its link.
    Missing {
        /// The first that is not.
        program: &'static str,
    },
    /// Both are there.
    There {
        /// Ids of programs of others that run before one of ours, and could let a packet pass unjudged.
        ahead: Vec<u32>,
    },
}

/// The loaded programs.
#[derive(Debug)]
pub struct Programs {
    object: Ebpf,
}

impl Programs {
    /// Loads the programs of an object whose maps exist already.
    pub(crate) fn load(object: Ebpf) -> Result<Self, KernelError> {
        let mut programs = Self { object };
        for leads in [Leads::In, Leads::Out] {
            for hook in HOOKS {
                programs.load_one(program_name(leads, hook))?;
            }
        }
        Ok(programs)
    }

    /// Loads a program by its name in the object.
    pub(crate) fn load_one(&mut self, name: &'static str) -> Result<(), KernelError> {
        let program = self
            .object
            .program_mut(name)
            .ok_or(KernelError::MissingProgram { program: name })?;
        let program: &mut SchedClassifier = program.try_into().map_err(failed(name))?;
        program.load().map_err(failed(name))
    }

    /// The object all programs are of.
    pub(super) fn object(&self) -> &Ebpf {
        &self.object
    }

    /// The same to load a program of another kind from.
    pub(super) fn object_mut(&mut self) -> &mut Ebpf {
        &mut self.object
    }

    /// Instructions the verifier walked to accept the uplink's program, which must be loaded.
    pub fn uplink_verified_instructions(&self) -> Result<u32, KernelError> {
        uplink::verified_instructions(&self.object)
    }

    fn get(&self, name: &'static str) -> Result<&SchedClassifier, KernelError> {
        let program = self
            .object
            .program(name)
            .ok_or(KernelError::MissingProgram { program: name })?;
        program.try_into().map_err(failed(name))
    }

    /// A loaded program's descriptor.
    pub(crate) fn fd(&self, name: &'static str) -> Result<&ProgramFd, KernelError> {
        self.get(name)?.fd().map_err(failed(name))
    }

    /// Instructions the verifier walked to accept a hook's program.
    pub fn verified_instructions(&self, hook: Hook) -> Result<u32, KernelError> {
        self.verified(program_name(Leads::In, hook))
    }

    /// The same on a device that leads out of the node.
    pub fn host_verified_instructions(&self, hook: Hook) -> Result<u32, KernelError> {
        self.verified(program_name(Leads::Out, hook))
    }

    fn verified(&self, name: &'static str) -> Result<u32, KernelError> {
        let info = self.get(name)?.info().map_err(failed(name))?;
        Ok(info.verified_instruction_count().unwrap_or(0))
    }

    /// Runs a loaded program on a packet `repeat` times, as if it came by a device of this network namespace: what it
    /// returns, and the mean time of one run.
    pub(crate) fn run(
        &self,
        name: &'static str,
        ifindex: u32,
        packet: &[u8],
        repeat: u32,
    ) -> Result<(i32, Duration), KernelError> {
        let mut context = [0; CONTEXT_SIZE];
        if let Some(field) = context.get_mut(IFINDEX_AT..).and_then(<[u8]>::first_chunk_mut) {
            *field = ifindex.to_ne_bytes();
        }
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_in = Some(&context);
        options.repeat = repeat;
        let result = self.get(name)?.test_run(options).map_err(failed(name))?;
        Ok((result.return_value.cast_signed(), result.duration))
    }

    /// Whether both programs are where they were put on a device: by the pinned links, and as the hooks themselves say.
    pub(crate) fn standing(&self, links: &Path, ifindex: u32, leads: Leads) -> Result<Standing, KernelError> {
        let mut ahead = Vec::new();
        for hook in HOOKS {
            let name = program_name(leads, hook);
            let ours = self.get(name)?.info().map_err(failed(name))?.id();
            let asking = |source| KernelError::Attach {
                ifindex,
                program: name,
                source,
            };
            let Some(chain) = sys::chain(ifindex, place(leads, hook)).map_err(asking)? else {
                return Ok(Standing::NoDevice);
            };
            let link = open_link(&pin(links, ifindex, leads, hook)).map_err(asking)?;
            let info = link.map(|link| sys::link_info(link.as_fd())).transpose();
            let held = info.map_err(asking)?.is_some_and(|info| info.ifindex == ifindex);
            match chain.iter().position(|id| *id == ours) {
                Some(position) if held => ahead.extend(chain.into_iter().take(position)),
                _ => return Ok(Standing::Missing { program: name }),
            }
        }
        Ok(Standing::There { ahead })
    }

    /// Puts both programs on a device: links that are there are given the new programs in place, missing ones are made
    /// and pinned. On error what was attached stays: half a device is judged in one direction, and the caller retries.
    pub(crate) fn attach(&self, links: &Path, ifindex: u32, leads: Leads) -> Result<(), KernelError> {
        for hook in HOOKS {
            let name = program_name(leads, hook);
            let fd = self.fd(name)?;
            let path = pin(links, ifindex, leads, hook);
            attach_one(&path, fd.as_fd(), ifindex, place(leads, hook)).map_err(|source| KernelError::Attach {
                ifindex,
                program: name,
                source,
            })?;
        }
        Ok(())
    }
}

fn failed(program: &'static str) -> impl FnOnce(aya::programs::ProgramError) -> KernelError {
    move |source| KernelError::Program {
        program,
        source: Box::new(source),
    }
}

fn attach_one(path: &Path, program: BorrowedFd<'_>, ifindex: u32, place: u32) -> io::Result<()> {
    if let Some(link) = open_link(path)? {
        let info = sys::link_info(link.as_fd())?;
        if info.ifindex == ifindex && info.attach_type == place {
            return sys::link_update(link.as_fd(), program);
        }
        // The index was another device's, which is gone (index 0).
        fs::remove_file(path)?;
    }
    let link = sys::link_create(program, ifindex, place)?;
    sys::pin(link.as_fd(), path)
}

pub(super) fn open_link(path: &Path) -> io::Result<Option<OwnedFd>> {
    match sys::open(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Devices that carry one of our links and lead there, by index; pins whose device is gone are removed on the way.
pub(crate) fn attached(links: &Path, leads: Leads) -> Result<Vec<u32>, KernelError> {
    let failed = |source| KernelError::Pin {
        path: links.to_path_buf(),
        source,
    };
    let mut devices = Vec::new();
    for entry in fs::read_dir(links).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().contains(OUT) != (leads == Leads::Out) {
            continue;
        }
        let Some(link) = open_link(&path).map_err(failed)? else {
            continue;
        };
        match sys::link_info(link.as_fd()).map_err(failed)?.ifindex {
            0 => fs::remove_file(&path).map_err(failed)?,
            ifindex => devices.push(ifindex),
        }
    }
    devices.sort_unstable();
    devices.dedup();
    Ok(devices)
}

/// Takes our programs off a device, or forgets the pins of one that is gone.
pub(crate) fn detach(links: &Path, ifindex: u32, leads: Leads) -> Result<(), KernelError> {
    for hook in HOOKS {
        let path = pin(links, ifindex, leads, hook);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::Pin { path, source: error });
            }
            _ => {}
        }
    }
    Ok(())
}
