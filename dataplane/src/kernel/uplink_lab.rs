//! The uplink's program and tables for whoever measures them, beside a longest-prefix trie. The agent uses nothing of this.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    maps::lpm_trie::{Key, LpmTrie},
    programs::{TestRun, TestRunOptions},
};
use bulkhead_verdict::uplink::layout::{Settings, flag};

use super::{Kernel, KernelError, Tuning, Uplink, sys, uplink};
use crate::uplink::measured::{Held, lines_of};

/// A program that can be run on a frame; each gives it another source first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Program {
    /// That and nothing else.
    Source,
    /// The shipped uplink's decision.
    Uplink,
    /// A lookup in a trie.
    Trie,
}

impl Program {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Source, Self::Uplink, Self::Trie];

    const fn name(self) -> &'static str {
        match self {
            Self::Source => "bench_source",
            Self::Uplink => "bench_uplink",
            Self::Trie => "bench_trie",
        }
    }
}

/// Loaded programs with tables of their own.
pub struct UplinkLab {
    kernel: Kernel,
    uplink: Uplink,
    held: Held,
}

impl UplinkLab {
    /// Loads everything, with room for so many prefixes. `bpffs` must be a folder of the caller's own.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn open(bpffs: &Path, room: u32) -> Result<Self, KernelError> {
        let mut kernel = Kernel::with_trie(bpffs, Tuning::default(), Some(room), room)?;
        for program in Program::ALL {
            uplink::load_one(kernel.programs.object_mut(), program.name())?;
        }
        let uplink = kernel.uplink()?;
        let settings = Settings {
            flags: flag::FEEDS,
            ..Settings::default()
        };
        uplink.set_settings(&settings, [1, 2])?;
        Ok(Self {
            kernel,
            uplink,
            held: Held::default(),
        })
    }

    /// Brings the tables to this feed as the agent does: how long reading the text took, how long the writes, how many those were.
    ///
    /// # Errors
    /// A table that is full.
    pub fn feed(&mut self, text: &str) -> Result<(Duration, Duration, u64), KernelError> {
        let begin = Instant::now();
        let next = lines_of(text);
        let read = begin.elapsed();
        let begin = Instant::now();
        let writes = self.held.change(&self.uplink.maps, Arc::new(next))?;
        Ok((read, begin.elapsed(), writes))
    }

    /// Fills the trie with prefixes (address and length): how long that took.
    ///
    /// # Errors
    /// A trie that is full.
    pub fn trie(&mut self, prefixes: &[(u32, u8)]) -> Result<Duration, KernelError> {
        let failed = |source: aya::maps::MapError| KernelError::Ring {
            source: Box::new(source),
        };
        let map = self.kernel.programs.object_mut().map_mut(uplink::BENCH);
        let map = map.ok_or(KernelError::MissingMap { map: uplink::BENCH })?;
        let mut trie = LpmTrie::<_, u32, u32>::try_from(map).map_err(failed)?;
        let begin = Instant::now();
        for (address, length) in prefixes {
            let key = Key::new(u32::from(*length), address.to_be());
            trie.insert(&key, 1, 0).map_err(failed)?;
        }
        Ok(begin.elapsed())
    }

    /// Runs a program on a frame so many times: what it returned the last time, and the mean time of one run.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn run(&self, program: Program, frame: &[u8], repeat: u32) -> Result<(u32, Duration), KernelError> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = repeat;
        let run = uplink::get(self.kernel.programs.object(), program.name())?.test_run(options);
        let run = run.map_err(|source| KernelError::Program {
            program: program.name(),
            source: Box::new(source),
        })?;
        Ok((run.return_value, run.duration))
    }

    /// Bytes that the kernel says the uplink's maps take, and the trie.
    ///
    /// # Errors
    /// When a map cannot be asked.
    pub fn memory(&self) -> Result<(u64, u64), KernelError> {
        let mut ours = 0;
        for spec in &uplink::MAPS {
            let path = self.kernel.pins.folder.join(spec.name);
            let map = sys::open(&path).map_err(|source| KernelError::Pin { path, source })?;
            ours += memory_of(map.as_fd());
        }
        let trie = match self.kernel.programs.object().map(uplink::BENCH) {
            Some(aya::maps::Map::LpmTrie(map)) => memory_of(map.fd().as_fd()),
            _ => 0,
        };
        Ok((ours, trie))
    }
}

/// `memlock` of a map's description; 0 when it has none.
fn memory_of(map: BorrowedFd<'_>) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap_or_default();
    let bytes = text
        .lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    bytes.unwrap_or(0)
}
