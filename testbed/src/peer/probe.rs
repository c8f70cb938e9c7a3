//! The prober: tries many new connections at once and says what became of each.

use std::{
    io::{BufRead, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Options, ping, say_json};
use crate::traffic::{Outcome, Probe};

/// `probe [--timeout-ms N]`: probes as JSON lines until standard input ends, then the outcomes in the same order.
///
/// # Errors
/// When a line cannot be read.
pub fn probe(options: &Options) -> Result<()> {
    let timeout = Duration::from_millis(options.or("timeout-ms", 1000)?);
    let probes: Result<Vec<Probe>> = std::io::stdin()
        .lock()
        .lines()
        .map(|line| serde_json::from_str(&line.context("reading standard input")?).context("reading a probe"))
        .collect();
    let workers: Vec<_> = probes?
        .into_iter()
        .map(|probe| thread::spawn(move || attempt(&probe, timeout)))
        .collect();
    for worker in workers {
        say_json(&worker.join().unwrap_or(Outcome::Unreachable))?;
    }
    Ok(())
}

fn attempt(probe: &Probe, timeout: Duration) -> Outcome {
    let target = SocketAddr::new(probe.to, probe.port);
    let result = match probe.protocol.as_str() {
        "TCP" => tcp(target, timeout),
        "UDP" => udp(target, timeout),
        _ => ping::ping(probe.to, timeout),
    };
    result.unwrap_or_else(|error| outcome_of(&error))
}

pub(super) fn outcome_of(error: &std::io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Outcome::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Timeout,
        _ => Outcome::Unreachable,
    }
}

/// One request and its answer.
fn tcp(target: SocketAddr, timeout: Duration) -> std::io::Result<Outcome> {
    let mut connection = TcpStream::connect_timeout(&target, timeout)?;
    connection.set_read_timeout(Some(timeout))?;
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = [0; 12];
    connection.read_exact(&mut answer)?;
    Ok(Outcome::Open)
}

fn udp(target: SocketAddr, timeout: Duration) -> std::io::Result<Outcome> {
    let any: IpAddr = if target.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    // A connected socket is told of a closed port.
    socket.connect(target)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(b"probe")?;
    socket.recv(&mut [0; 16])?;
    Ok(Outcome::Open)
}
