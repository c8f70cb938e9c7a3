//! One ICMP echo and its reply.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    process,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use crate::{frame::checksum, sys, traffic::Outcome};

/// Sends an echo request and waits for its reply.
pub(super) fn ping(to: IpAddr, timeout: Duration) -> io::Result<Outcome> {
    static SEQUENCE: AtomicU16 = AtomicU16::new(1);
    let (request_type, reply_type, header) = if to.is_ipv6() { (128, 129, 0) } else { (8, 0, 20) };
    let socket = sys::icmp_socket(to.is_ipv6())?;
    let [.., high, low] = process::id().to_be_bytes();
    let [sequence_high, sequence_low] = SEQUENCE.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    // The sequence is part of the id as well: concurrent pings of one process must be flows of their own.
    let (id, sequence) = (
        [high ^ sequence_high, low ^ sequence_low],
        [sequence_high, sequence_low],
    );
    let mut message = [&[request_type, 0, 0, 0][..], &id, &sequence, b"bulkhead"].concat();
    if !to.is_ipv6() {
        // The kernel writes the checksum of ICMPv6 only.
        let sum = checksum(&[&message]);
        message.splice(2..4, sum.to_be_bytes());
    }
    socket.send_to(&message, SocketAddr::new(to, 0))?;
    let deadline = Instant::now() + timeout;
    let mut buffer = [0; 512];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Outcome::Timeout);
        }
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        let reply = buffer.get(header..length).unwrap_or_default();
        let ours = reply.first() == Some(&reply_type) && reply.get(4..8) == Some(&[id, sequence].concat());
        if ours && from.ip() == to {
            return Ok(Outcome::Open);
        }
    }
}
