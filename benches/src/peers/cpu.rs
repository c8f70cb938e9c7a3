//! CPU time of a thread, of this process and of others: what it costs whatever else the machine does.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
};

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    let nanoseconds =
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0);
    Duration::from_nanos(nanoseconds)
}

/// What the calling thread was on a CPU, with the packets that the kernel handled meanwhile in its place.
pub(crate) fn of_thread() -> Duration {
    clock(ClockId::ThreadCPUTime)
}

/// The same of all threads of this process.
pub(crate) fn of_this_process() -> Duration {
    clock(ClockId::ProcessCPUTime)
}

/// The same of another process.
pub(crate) fn of(pid: u32) -> Result<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        // A thread that has just ended counts no more.
        sum += on_cpu(&task?.path().join("schedstat").to_string_lossy()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// How often threads of a process went to sleep of themselves, and so were woken.
pub(crate) fn sleeps(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}

fn on_cpu(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.split_whitespace().next()?.parse().ok()
}

/// The kernel's threads that handle packets when whoever brought them cannot.
pub(crate) struct Helpers(Vec<String>);

impl Helpers {
    /// Those of one CPU, or of all.
    pub(crate) fn new(cpu: Option<usize>) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir("/proc").context("reading /proc")? {
            let path = entry?.path();
            let Ok(name) = fs::read_to_string(path.join("comm")) else {
                continue;
            };
            let Some(number) = name.trim().strip_prefix("ksoftirqd/") else {
                continue;
            };
            if cpu.is_none_or(|cpu| number == cpu.to_string()) {
                files.push(path.join("schedstat").to_string_lossy().into_owned());
            }
        }
        Ok(Self(files))
    }

    /// What they were on a CPU.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.0.iter().filter_map(|file| on_cpu(file)).sum())
    }
}

/// Ties the calling thread to the last CPU it may use, and says which.
pub(crate) fn stay() -> Result<usize> {
    let allowed = sched_getaffinity(None).context("asking for the allowed CPUs")?;
    let cpu = (0..CpuSet::MAX_CPU)
        .rev()
        .find(|cpu| allowed.is_set(*cpu))
        .context("no CPU")?;
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one).context("staying on one CPU")?;
    Ok(cpu)
}
