//! The liar and its witness: frames with somebody else's addresses, and a sniffer that tells whether one arrived.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Options, ended, say, say_json, watch_input};
use crate::{frame::Forged, sys::PacketSocket, traffic::CountReport};

/// `spoof --from A:P --to A:P --mac MAC [--protocol tcp|udp] [--rate N] --marker TEXT`: frames out of eth0 as if from
/// another pod, until standard input ends. `--mac` is the MAC address the frames come from.
///
/// # Errors
/// When the device is missing.
pub fn spoof(options: &Options) -> Result<()> {
    let socket = PacketSocket::open("eth0").context("opening a packet socket on eth0")?;
    let source: SocketAddr = options.required("from")?;
    let marker: String = options.required("marker")?;
    let frame = Forged {
        from_mac: mac(&options.required::<String>("mac")?)?,
        to_mac: [2, 0, 0, 0, 0, 0xfe],
        source,
        destination: options.target()?,
        tcp: options.or("protocol", "tcp".to_owned())? == "tcp",
        payload: marker.as_bytes(),
    }
    .bytes();
    let interval = Duration::from_secs(1) / options.or("rate", 50_u32)?.max(1);
    watch_input();
    say("ready")?;
    let mut frames = 0;
    let mut next = Instant::now();
    while !ended() {
        socket.send(&frame).context("sending a forged frame")?;
        frames += 1;
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    say_json(&CountReport { frames })
}

/// `sniff --marker TEXT`: counts frames on eth0 that carry the marker, until standard input ends; `seen` at the
/// first one.
///
/// # Errors
/// When the device is missing.
pub fn sniff(options: &Options) -> Result<()> {
    let marker: String = options.required("marker")?;
    let socket = PacketSocket::open("eth0").context("opening a packet socket on eth0")?;
    watch_input();
    say("ready")?;
    let mut frames = 0;
    let mut buffer = [0; 2048];
    while !ended() {
        let length = socket.receive(&mut buffer).context("receiving")?;
        let frame = buffer.get(..length).unwrap_or_default();
        let mut parts = frame.windows(marker.len().max(1));
        let found = parts.any(|part| part == marker.as_bytes());
        if found && frames == 0 {
            say("seen")?;
        }
        frames += u64::from(found);
    }
    say_json(&CountReport { frames })
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    bytes
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .with_context(|| format!("{text} is no MAC address"))
}
