//! The server: answers HTTP, echoes lines of other TCP connections, and echoes datagrams.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{Options, ended, say, watch_input};

const IDLE_MAX: Duration = Duration::from_mins(2);

/// `serve --name NAME [--tcp PORT]… [--udp PORT]…`, on all addresses of both families.
///
/// # Errors
/// When a port is taken.
pub fn serve(options: &Options) -> Result<()> {
    let name: String = options.or("name", "peer".to_owned())?;
    for port in options.all::<u16>("tcp")? {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("TCP port {port}"))?;
        let name = name.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let name = name.clone();
                thread::spawn(move || answer(&connection, &name));
            }
        });
    }
    for port in options.all::<u16>("udp")? {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("UDP port {port}"))?;
        thread::spawn(move || echo_datagrams(&socket));
    }
    watch_input();
    say("ready")?;
    while !ended() {
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// One connection: an HTTP request gets one answer, other lines get themselves back. A broken connection just ends.
fn answer(connection: &TcpStream, name: &str) -> Option<()> {
    connection.set_read_timeout(Some(IDLE_MAX)).ok()?;
    connection.set_nodelay(true).ok()?;
    let mut output = connection;
    let mut lines = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.starts_with("GET ") {
            while line.trim_end() != "" {
                line.clear();
                if lines.read_line(&mut line).ok()? == 0 {
                    break;
                }
            }
            let body = format!("hello from {name}\n");
            let length = body.len();
            return output
                .write_all(format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())
                .ok();
        }
        output.write_all(line.as_bytes()).ok()?;
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        // An error is about one earlier datagram (its port was closed meanwhile); the next one is another matter.
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && let Some(datagram) = buffer.get(..length)
        {
            drop(socket.send_to(datagram, from));
        }
    }
}
