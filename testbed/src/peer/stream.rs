//! Long-lived traffic: a held TCP connection, and a stream of numbered datagrams.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Options, ended, say, say_json, watch_input};
use crate::traffic::{HoldEvent, StreamReport};

const ECHO_EVERY: Duration = Duration::from_millis(20);
const STALLED_AFTER: Duration = Duration::from_millis(400);
/// After the last datagram, how long a late echo may take.
const LAST_ECHO_MAX: Duration = Duration::from_secs(2);

/// `hold --to ADDRESS:PORT`: one connection that says something all the time, and tells when no echo comes back.
///
/// # Errors
/// When it cannot connect.
pub fn hold(options: &Options) -> Result<()> {
    let target = options.target()?;
    let mut connection = TcpStream::connect_timeout(&target, Duration::from_secs(5))
        .with_context(|| format!("connecting to {target}"))?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(ECHO_EVERY))?;
    let port = connection.local_addr()?.port();
    watch_input();
    let (mut echoes, mut last, mut stalled) = (0_u64, Instant::now(), false);
    let mut next = Instant::now();
    while !ended() {
        if Instant::now() >= next && !stalled {
            next += ECHO_EVERY;
            // When the buffers are full the echo is missing too, which is what is reported.
            drop(connection.write_all(b"x\n"));
        }
        match connection.read(&mut [0; 256]) {
            Ok(0) => return say_json(&HoldEvent::Closed { echoes }),
            Ok(_) => {
                if echoes == 0 {
                    say_json(&HoldEvent::Alive { port })?;
                } else if stalled {
                    say_json(&HoldEvent::Resumed)?;
                    next = Instant::now();
                }
                echoes += 1;
                last = Instant::now();
                stalled = false;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if !stalled && last.elapsed() > STALLED_AFTER {
                    stalled = true;
                    say_json(&HoldEvent::Stalled { echoes })?;
                }
            }
            Err(_) => return say_json(&HoldEvent::Closed { echoes }),
        }
    }
    Ok(())
}

/// `stream --to ADDRESS:PORT [--interval-ms N] [--from-port P]`: numbered datagrams, each echoed, none to be lost.
///
/// # Errors
/// When the socket cannot be made.
pub fn stream(options: &Options) -> Result<()> {
    let target = options.target()?;
    let interval = Duration::from_millis(options.or("interval-ms", 5)?);
    let any: IpAddr = if target.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, options.or("from-port", 0)?)).context("binding")?;
    socket
        .connect(target)
        .with_context(|| format!("connecting to {target}"))?;
    let receiver = socket.try_clone()?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    watch_input();
    let echoes = thread::spawn(move || receive(&receiver));
    let mut sent = 0_u64;
    let mut next = Instant::now();
    say("ready")?;
    while !ended() {
        // A refusal (ICMP) is reported by a later call; the missing echo is what counts.
        drop(socket.send(&sent.to_be_bytes()));
        sent += 1;
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let (numbers, silence) = echoes
        .join()
        .map_err(|_| anyhow::anyhow!("the receiving thread panicked"))?;
    let echoed = u64::try_from(numbers.len())?;
    let missing = sent.saturating_sub(echoed);
    let longest_silence_ms = u64::try_from(silence.as_millis())?;
    say_json(&StreamReport {
        sent,
        echoed,
        missing,
        longest_silence_ms,
    })
}

/// Numbers that came back, and the longest time in which none did.
fn receive(socket: &UdpSocket) -> (BTreeSet<u64>, Duration) {
    let mut numbers = BTreeSet::new();
    let (mut last, mut silence) = (Instant::now(), Duration::ZERO);
    let mut over: Option<Instant> = None;
    while over.is_none_or(|deadline| Instant::now() < deadline) {
        let mut number = [0; 8];
        if matches!(socket.recv(&mut number), Ok(8)) {
            numbers.insert(u64::from_be_bytes(number));
            silence = silence.max(last.elapsed());
            last = Instant::now();
        }
        // Gone quiet after the end: nothing more will come.
        if ended() && over.is_none() {
            over = Some(Instant::now() + LAST_ECHO_MAX);
        }
    }
    (numbers, silence)
}
