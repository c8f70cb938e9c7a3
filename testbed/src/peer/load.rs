//! The load generator: so many new connections each second, every one counted.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Options, ended, say, say_json, watch_input};
use crate::traffic::LoadReport;

/// Long enough that one lost SYN (retried after a second) is told apart from a slow machine: a retry counts as failed.
const ANSWER_MAX: Duration = Duration::from_millis(900);
const IN_FLIGHT_MAX: u64 = 2000;

/// `load --to ADDRESS:PORT [--rate N]`: until standard input ends.
///
/// # Errors
/// When standard output is gone.
pub fn load(options: &Options) -> Result<()> {
    let target = options.target()?;
    let rate: u32 = options.or("rate", 200)?;
    let answer_max = Duration::from_millis(options.or("timeout-ms", u64::try_from(ANSWER_MAX.as_millis())?)?);
    let interval = Duration::from_secs(1) / rate.max(1);
    let (ok, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let done = || ok.load(Ordering::Acquire) + failed.load(Ordering::Acquire);
    let mut attempts = 0_u64;
    let mut next = Instant::now();
    watch_input();
    say("ready")?;
    while !ended() {
        if attempts - done() < IN_FLIGHT_MAX {
            attempts += 1;
            let (ok, failed) = (Arc::clone(&ok), Arc::clone(&failed));
            thread::spawn(move || {
                let counter = if request(target, answer_max).is_ok() {
                    ok
                } else {
                    failed
                };
                counter.fetch_add(1, Ordering::AcqRel);
            });
        }
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    while done() < attempts {
        thread::sleep(Duration::from_millis(5));
    }
    say_json(&LoadReport {
        attempts,
        ok: ok.load(Ordering::Acquire),
        failed: failed.load(Ordering::Acquire),
    })
}

fn request(target: SocketAddr, within: Duration) -> std::io::Result<()> {
    let mut connection = TcpStream::connect_timeout(&target, within)?;
    connection.set_read_timeout(Some(within))?;
    connection.set_write_timeout(Some(within))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    connection.read_exact(&mut [0; 12])
}
