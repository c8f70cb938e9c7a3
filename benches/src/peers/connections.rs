//! What a connection costs: connect, a byte there and back, close. CPU time of both ends and of the kernel's threads that carry packets.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use crate::{
    bed::{ALLOWED_TCP, Bed, Judge},
    cpu::{self, Helpers},
    report::{Bar, Table},
};

/// How many clients there are at a time.
const CLIENTS: [u32; 2] = [1, 8];
/// Batches of a round, connections of each.
const BATCHES: u32 = 6;
const CONNECTIONS: u32 = 400;
/// What ours may cost, as a multiple of no policy, with the most clients.
const BAR: f64 = 1.05;

/// Answers connections on a socket for as long as the process lives.
pub(crate) fn serve(listener: &TcpListener) -> Result<()> {
    for _ in CLIENTS.iter().copied().max().into_iter().flat_map(|count| 0..count) {
        let listener = listener.try_clone().context("sharing the listener")?;
        thread::spawn(move || {
            let mut byte = [0];
            while let Ok((mut stream, _)) = listener.accept() {
                // A client that breaks off counts it as a failure.
                if matches!(stream.read(&mut byte), Ok(1)) && stream.write_all(&byte).is_ok() {
                    let _end = stream.read(&mut byte);
                }
            }
        });
    }
    Ok(())
}

fn one(to: &SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to)?;
    let mut byte = [1];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(())
}

/// What came of the batches of a round.
#[derive(Default)]
struct Round {
    /// Microseconds of CPU per connection.
    cpu: Vec<f64>,
    /// The agent's, which is not in `cpu`.
    agent: Vec<f64>,
    /// Median time of a connection, microseconds.
    latency: Vec<f64>,
}

fn measure(bed: &Bed, judge: Judge, clients: u32) -> Result<Round> {
    let [client, web] = bed.pods(judge)?;
    let to = SocketAddr::new(web.v4.into(), ALLOWED_TCP);
    let helpers = Helpers::new(None)?;
    let agent = bed.agent(judge)?;
    let agent_time = || agent.map(cpu::of).transpose().map(Option::unwrap_or_default);
    let mut round = Round::default();
    let share = CONNECTIONS / clients;
    let done = f64::from(share * clients);
    for _ in 0..BATCHES {
        let before = (agent_time()?, helpers.time(), cpu::of_this_process());
        let latencies = client.netns.inside(|| run(&to, clients, share))??;
        let ends = cpu::of_this_process().saturating_sub(before.2);
        let spent = ends + helpers.time().saturating_sub(before.1);
        round.cpu.push(spent.as_secs_f64() * 1e6 / done);
        let spent = agent_time()?.saturating_sub(before.0);
        round.agent.push(spent.as_secs_f64() * 1e6 / done);
        round.latency.extend(latencies.get(latencies.len() / 2));
    }
    Ok(round)
}

/// Connections of so many clients at once; how long each took, sorted, microseconds.
fn run(to: &SocketAddr, clients: u32, share: u32) -> Result<Vec<f64>> {
    let times: Result<Vec<Vec<f64>>> = thread::scope(|scope| {
        let client = || {
            (0..share)
                .map(|_| {
                    let begin = Instant::now();
                    one(to)?;
                    Ok(begin.elapsed().as_secs_f64() * 1e6)
                })
                .collect::<Result<Vec<f64>>>()
        };
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        clients
            .into_iter()
            .map(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
            .collect()
    });
    let mut times = times?.concat();
    ensure!(!times.is_empty(), "no connection");
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// All rounds of all judges, in turn.
pub(crate) fn bench(bed: &mut Bed, judges: &[Judge], rounds: u16) -> Vec<Table> {
    let mut tables = Vec::new();
    for clients in CLIENTS {
        let title = format!("connection_c{clients}: connect, a byte there and back, close; {clients} at a time");
        let latency =
            format!("latency_c{clients}: how long that took, median of a batch (wall time: a busy machine's)");
        let agent = format!("agent_c{clients}: what the agent took meanwhile, its reader of events included");
        tables.push([
            Table::new("connections", &title, "µs of CPU per connection"),
            Table::new("connections", &latency, "µs"),
            Table::new("connections", &agent, "µs of CPU per connection"),
        ]);
    }
    for _ in 0..rounds {
        for judge in judges {
            let installed = bed.install(*judge);
            let name = judge.name();
            for (clients, [cpu, latency, agent]) in CLIENTS.into_iter().zip(&mut tables) {
                let measured = match &installed {
                    Ok(()) => measure(bed, *judge, clients),
                    Err(error) => Err(anyhow::anyhow!("{error:#}")),
                };
                match measured {
                    Ok(round) => {
                        cpu.add(&name, Ok(round.cpu));
                        latency.add(&name, Ok(round.latency));
                        if judge.is_ours() {
                            agent.add(&name, Ok(round.agent));
                        }
                    }
                    Err(error) => cpu.add(&name, Err(error)),
                }
            }
        }
    }
    let names = Judge::ALL.map(Judge::name);
    if let (Some([cpu, ..]), Some(nothing)) = (tables.last_mut(), names.first()) {
        for judge in judges.iter().filter(|judge| judge.is_ours()) {
            let base = cpu.min(nothing);
            cpu.bar(&judge.name(), base.map(|base| Bar::times(base, BAR, "no policy")));
        }
    }
    tables.into_iter().flatten().collect()
}
