//! What the test's pods do: answer connections, or try them and print what happened.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read as _, Write as _, stdout},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

/// Longest time for a connection to be made, and for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Between rounds.
const PAUSE: Duration = Duration::from_millis(300);
/// What a server says.
const GREETING: &[u8] = b"bulkhead\n";
/// A question for the name server's own name space: type NS, name `.`, as RFC 1035 writes it.
const DNS_QUESTION: [u8; 17] = [0x62, 0x6b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// Arguments of the server.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct Serve {
    /// TCP ports.
    #[arg(long = "port", required = true)]
    pub ports: Vec<u16>,
}

/// Arguments of the client.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct Probe {
    /// What to try: NAME=tcp://ADDRESS:PORT, or NAME=dns://ADDRESS:PORT for a question over UDP.
    #[arg(long = "target", required = true, value_parser = target)]
    pub targets: Vec<Target>,
}

/// Something to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its name in the answers.
    pub name: String,
    /// True for a DNS question, false for a TCP connection.
    pub dns: bool,
    /// Where.
    pub address: SocketAddr,
}

/// One line of a client's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Round {
    /// From 1.
    pub(super) round: u64,
    /// By target: `open`, or why not.
    pub(super) results: BTreeMap<String, String>,
}

/// What a result says when a connection was made.
pub(super) const OPEN: &str = "open";

fn target(text: &str) -> Result<Target, String> {
    let wrong = || format!("{text}: not NAME=tcp://ADDRESS:PORT or NAME=dns://ADDRESS:PORT");
    let (name, place) = text.split_once('=').ok_or_else(wrong)?;
    let (scheme, address) = place.split_once("://").ok_or_else(wrong)?;
    let dns = match scheme {
        "tcp" => false,
        "dns" => true,
        _ => return Err(wrong()),
    };
    let address = address.parse().map_err(|_| wrong())?;
    Ok(Target {
        name: name.to_owned(),
        dns,
        address,
    })
}

/// Answers connections until it is ended.
pub(super) fn serve(arguments: &Serve) -> anyhow::Result<ExitCode> {
    let mut threads = Vec::new();
    for port in &arguments.ports {
        // Both families, where the node has both.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, *port))
            .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)))
            .with_context(|| format!("listening on port {port}"))?;
        println!("listening on {}", listener.local_addr()?);
        threads.push(thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                // A client that hangs up early has seen what it wanted to see.
                drop(connection.write_all(GREETING));
            }
        }));
    }
    for thread in threads {
        if thread.join().is_err() {
            anyhow::bail!("a listener ended");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tries all targets at once, again and again.
pub(super) fn probe(arguments: &Probe) -> anyhow::Result<ExitCode> {
    let mut round = 0;
    loop {
        round += 1;
        let results = thread::scope(|scope| {
            let tries: Vec<_> = arguments
                .targets
                .iter()
                .map(|target| (target, scope.spawn(|| attempt(target))))
                .collect();
            let ended = tries.into_iter().map(|(target, attempt)| {
                (
                    target.name.clone(),
                    attempt.join().unwrap_or_else(|_| "the probe panicked".to_owned()),
                )
            });
            ended.collect()
        });
        let mut out = stdout().lock();
        serde_json::to_writer(&mut out, &Round { round, results })?;
        writeln!(out)?;
        drop(out);
        thread::sleep(PAUSE);
    }
}

fn attempt(target: &Target) -> String {
    let tried = if target.dns {
        ask(target.address)
    } else {
        connect(target.address)
    };
    match tried {
        Ok(()) => OPEN.to_owned(),
        Err(error) => match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout".to_owned(),
            ErrorKind::ConnectionRefused => "refused".to_owned(),
            _ => error.to_string(),
        },
    }
}

fn connect(address: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    connection.set_read_timeout(Some(ANSWER_WITHIN))?;
    // A connection that a proxy accepts is not one that the server has answered.
    connection.read_exact(&mut [0; GREETING.len()])
}

fn ask(address: SocketAddr) -> std::io::Result<()> {
    let any = match address.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    socket.send(&DNS_QUESTION)?;
    socket.recv(&mut [0; 1232]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        let wanted = Target {
            name: "a".to_owned(),
            dns: true,
            address: "[fd00::1]:53".parse().unwrap(),
        };
        assert_eq!(target("a=dns://[fd00::1]:53"), Ok(wanted));
        for wrong in [
            "a",
            "a=1.2.3.4:5",
            "a=udp://1.2.3.4:5",
            "a=tcp://host:5",
            "a=tcp://1.2.3.4",
        ] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn open_is_what_a_server_answers_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let tried = Target {
            name: String::new(),
            dns: false,
            address,
        };
        let server = thread::spawn(move || listener.accept().unwrap().0.write_all(GREETING).unwrap());
        assert_eq!(attempt(&tried), OPEN);
        server.join().unwrap();
        assert_eq!(attempt(&tried), "refused", "the listener is gone");
    }
}
