//! What the flow log costs: the packet that a record is written for, and the agent that reads it; and whether what is lost is counted.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bulkhead_dataplane::kernel::lab::{Lab, Program, Records};
use bulkhead_proto::v1::LossPlace;
use bulkhead_testbed::{client::Client, frame::Forged, process::until, sys};

use crate::{
    bed::{ALLOWED_TCP, Bed, Judge},
    cpu,
    report::{Bar, Table},
};

/// Records per run of the program: fewer than the ring holds.
const RUN: u32 = 20_000;
/// Records that fill the ring.
const FULL: u32 = 100_000;
/// Records per second that the agent is offered.
const RATES: [u32; 4] = [50_000, 200_000, 500_000, 1_000_000];
/// How long, and in which steps.
const TIME: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(1);
/// Most records at once, for whoever was not scheduled for a while.
const BURST_MAX: u32 = 20_000;
/// The agent reads what is left.
const SOON: Duration = Duration::from_secs(20);
/// Records at once that the ring cannot hold.
const TOO_MANY: u32 = 200_000;
/// What a record may cost a packet, nanoseconds.
const BAR: f64 = 40.0;

const OURS: Judge = Judge::Ours(10);

/// All of it.
pub(crate) fn bench(rounds: u16) -> Result<Vec<Table>> {
    let bed = Bed::ours(10)?;
    let frame = frame(&bed)?;
    let mut tables = vec![in_the_packet(&bed, &frame, rounds)?];
    tables.extend(read(&bed, &frame, rounds)?);
    Ok(tables)
}

/// A packet of the client's to web.
fn frame(bed: &Bed) -> Result<Vec<u8>> {
    let [client, web] = bed.pods(OURS)?;
    Ok(Forged {
        from_mac: client.mac,
        to_mac: [2, 0, 0, 0, 0, 0xfe],
        source: SocketAddr::new(client.v4.into(), 40_000),
        destination: SocketAddr::new(web.v4.into(), ALLOWED_TCP),
        tcp: false,
        payload: b"seen",
    }
    .bytes())
}

/// What a record adds to a packet, as the kernel's own watch says.
fn in_the_packet(bed: &Bed, frame: &[u8], rounds: u16) -> Result<Table> {
    let bpffs = bed.folder().join("bpf-lab");
    std::fs::create_dir_all(&bpffs)?;
    sys::mount_bpffs(&bpffs).context("mounting a bpf file system")?;
    let table = thread::scope(|scope| {
        let work = || {
            cpu::stay()?;
            let mut lab = Lab::open(&bpffs)?;
            Ok::<_, anyhow::Error>(costs(&mut lab, frame, rounds))
        };
        scope.spawn(work).join().map_err(|_| anyhow::anyhow!("panicked"))
    });
    sys::unmount(&bpffs).context("unmounting the bpf file system")?;
    table?
}

fn costs(lab: &mut Lab, frame: &[u8], rounds: u16) -> Table {
    let title = "event: what the record of a flow costs its packet, above reading headers";
    let mut table = Table::new("flowlog", title, "ns");
    for _ in 0..rounds.saturating_mul(2) {
        table.add("headers, no record", run(lab, Program::Headers, frame, 0, 0));
        table.add("record, ring with room", run(lab, Program::Event, frame, RUN, 0));
        let filled = lab.run(Program::Event, 1, frame, FULL);
        let full = filled.map_err(Into::into).and_then(|_| {
            let begin = lab.lost()?;
            ensure!(begin > 0, "{FULL} records do not fill the ring");
            run(lab, Program::Event, frame, 0, RUN)
        });
        table.add("record, ring full", full);
        lab.events();
    }
    let base = table.min("headers, no record");
    let bar = base.map(|base| Bar::over(base, BAR, "headers"));
    table.bar("record, ring with room", bar);
    table
}

/// One run, after which so many records must be in the ring, or so many must have found it full.
fn run(lab: &mut Lab, program: Program, frame: &[u8], written: u32, refused: u32) -> Result<Vec<f64>> {
    let before = lab.lost()?;
    let time = lab.run(program, 1, frame, RUN)?.each;
    let lost = lab.lost()? - before;
    ensure!(lost == u64::from(refused), "{lost} records were refused, not {refused}");
    if refused == 0 {
        let found = lab.events().len();
        ensure!(found == usize::try_from(written)?, "{found} records, not {written}");
    }
    Ok(vec![time.as_secs_f64() * 1e9])
}

/// What the agent says that it has read, and that it has missed.
fn account(client: &Client) -> Result<[u64; 2]> {
    let status = client.agent_status()?;
    let lost = status.lost.iter().filter(|lost| lost.place() == LossPlace::KernelRing);
    Ok([status.events_read, lost.map(|lost| lost.count).sum()])
}

/// One rate offered to the agent for a while.
struct Offer {
    made: u64,
    lost: u64,
    /// The agent's CPU time.
    cpu: Duration,
    /// How often it went to sleep, above what it does without records.
    sleeps: f64,
    time: Duration,
}

struct Agent<'a> {
    client: Client,
    records: Records,
    frame: &'a [u8],
    pid: u32,
    /// Sleeps per second without records.
    idle: f64,
}

impl Agent<'_> {
    /// A rate, or as many at once as the ring cannot hold.
    fn offer(&self, rate: Option<u32>) -> Result<Offer> {
        let [read, lost] = account(&self.client)?;
        let refused = self.records.lost()?;
        let (used, sleeps) = (cpu::of(self.pid)?, cpu::sleeps(self.pid)?);
        let begin = Instant::now();
        let mut made = u64::from(match rate {
            Some(rate) => self.keep_up(rate)?,
            None => self.records.write(self.frame, TOO_MANY).map(|()| TOO_MANY)?,
        });
        let time = begin.elapsed();
        // A gap shows with the record behind it.
        let mut now = [0; 2];
        let all = until(SOON, || {
            now = account(&self.client).ok()?;
            let [more, missed] = [now[0] - read, now[1] - lost];
            if more + missed == made {
                return Some(missed);
            }
            self.records.write(self.frame, 1).ok()?;
            made += 1;
            thread::sleep(TICK * 20);
            None
        });
        let used = cpu::of(self.pid)?.saturating_sub(used);
        let slept = cpu::sleeps(self.pid)? - sleeps;
        let missed = all.with_context(|| {
            format!(
                "{made} records written, {now:?} read and missed, from {:?}",
                [read, lost]
            )
        })?;
        let refused = self.records.lost()? - refused;
        ensure!(
            missed == refused,
            "the agent counts {missed} lost, the programs {refused}"
        );
        let whole_time = begin.elapsed();
        let slept = f64::from(u32::try_from(slept)?) - self.idle * whole_time.as_secs_f64();
        Ok(Offer {
            made,
            lost: missed,
            cpu: used,
            sleeps: slept.max(0.0),
            time,
        })
    }

    /// Writes at a rate for a while; how many.
    fn keep_up(&self, rate: u32) -> Result<u32> {
        let (begin, mut made) = (Instant::now(), 0);
        while begin.elapsed() < TIME {
            let due = begin.elapsed().as_secs_f64() * f64::from(rate);
            let more = whole(due).saturating_sub(made).min(BURST_MAX);
            if more > 0 {
                self.records.write(self.frame, more)?;
            }
            made += more;
            thread::sleep(TICK);
        }
        Ok(made)
    }
}

/// The whole part, for a count of records due.
fn whole(number: f64) -> u32 {
    // Below BURST_MAX times the ticks of a run, so well within range; as text it needs no lossy cast.
    format!("{number:.0}").parse().unwrap_or(0)
}

fn read(bed: &Bed, frame: &[u8], rounds: u16) -> Result<[Table; 3]> {
    let stack = bed.stack(OURS)?;
    let pid = stack.agent_pid(0)?;
    thread::scope(|scope| {
        let work = || {
            cpu::stay()?;
            let begin = (Instant::now(), cpu::sleeps(pid)?);
            thread::sleep(TIME);
            let slept = cpu::sleeps(pid)? - begin.1;
            let agent = Agent {
                client: stack.agent(0)?,
                records: Records::beside(&stack.bpffs(0))?,
                frame,
                pid,
                idle: f64::from(u32::try_from(slept)?) / begin.0.elapsed().as_secs_f64(),
            };
            Ok(offers(&agent, rounds))
        };
        scope.spawn(work).join().map_err(|_| anyhow::anyhow!("panicked"))?
    })
}

fn offers(agent: &Agent<'_>, rounds: u16) -> [Table; 3] {
    let mut lost = Table::new(
        "flowlog",
        "lost: records that found the ring full, each of them counted by the agent",
        "% of those offered",
    );
    let mut cpu = Table::new(
        "flowlog",
        "reader: what the agent takes for a record, to its history",
        "ns of CPU",
    );
    let mut woken = Table::new(
        "flowlog",
        "wakeups: how often the agent went to sleep, above what it does without records",
        "per record",
    );
    // Of what is lost the worst round counts, not the best.
    let mut worst = BTreeMap::new();
    for _ in 0..rounds {
        for rate in RATES.map(Some).into_iter().chain([None]) {
            let name = name(rate);
            match agent.offer(rate) {
                Ok(offer) => {
                    let made = float(offer.made);
                    let share = float(offer.lost) * 100.0 / made;
                    let most = worst.entry(name.clone()).or_insert(share);
                    *most = share.max(*most);
                    let read = float(offer.made - offer.lost);
                    cpu.add(&name, Ok(vec![offer.cpu.as_secs_f64() * 1e9 / read]));
                    woken.add(&name, Ok(vec![offer.sleeps / made]));
                    if rate.is_some() {
                        let rate = made / offer.time.as_secs_f64();
                        lost.note(&name, &format!("{rate:.0} were made per second"));
                    }
                }
                Err(error) => lost.add(&name, Err(error)),
            }
        }
    }
    for (name, share) in worst {
        lost.add(&name, Ok(vec![share]));
    }
    for rate in RATES {
        lost.bar(&name(Some(rate)), Some(Bar::most(0.0)));
        // One in a hundred is no wakeup per flow.
        woken.bar(&name(Some(rate)), Some(Bar::most(0.01)));
    }
    [lost, cpu, woken]
}

fn name(rate: Option<u32>) -> String {
    rate.map_or_else(|| format!("{TOO_MANY} at once"), |rate| format!("{rate} per second"))
}

fn float(number: u64) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}
