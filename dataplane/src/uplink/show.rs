//! `bulkhead-agent uplinks [ADDRESS]`: what a person reads.

use std::{
    io::{self, Write},
    net::IpAddr,
};

use bulkhead_proto::v1::UplinkStatus;

/// Writes the status; of an address first, which is what was asked for.
pub(crate) fn write(out: &mut impl Write, address: Option<IpAddr>, status: &UplinkStatus) -> io::Result<()> {
    if let Some(ip) = address {
        answer(out, ip, status)?;
    }
    for device in &status.devices {
        match device.error.as_str() {
            "" => writeln!(out, "uplink {}: {}", device.name, device.mode)?,
            error => writeln!(out, "uplink {}: NOT IN FORCE: {error}", device.name)?,
        }
    }
    if status.devices.is_empty() {
        writeln!(out, "no uplink: no device has a default route; name them with --uplink")?;
    }
    for feed in &status.feeds {
        let took = format!("{} packets taken away", feed.packets);
        writeln!(
            out,
            "feed {} ({}): {} lines in force, {took}",
            feed.name, feed.source, feed.lines
        )?;
        if feed.wrong_lines > 0 {
            writeln!(out, "    {} wrong lines; {}", feed.wrong_lines, feed.told.join("; "))?;
        }
        if !feed.error.is_empty() {
            writeln!(
                out,
                "    could not be had: {}; the last good list is in force",
                feed.error
            )?;
        }
    }
    if !status.error.is_empty() {
        writeln!(out, "the feeds are only partly in force: {}", status.error)?;
    }
    for verdict in &status.verdicts {
        writeln!(out, "{:>12} packets  {}", verdict.packets, verdict.reason)?;
    }
    if !status.drops.is_empty() {
        writeln!(out, "sources with the most packets taken away:")?;
    }
    for drops in &status.drops {
        let feed = if drops.feed.is_empty() {
            String::new()
        } else {
            format!(" {}", drops.feed)
        };
        writeln!(
            out,
            "{:>12} packets  {}  {}{feed}",
            drops.packets, drops.source, drops.reason
        )?;
    }
    Ok(())
}

fn answer(out: &mut impl Write, ip: IpAddr, status: &UplinkStatus) -> io::Result<()> {
    for found in &status.matches {
        writeln!(out, "{ip} is in feed {}: {}", found.feed, found.prefix)?;
    }
    match (status.matches.is_empty(), status.spared_by.as_str()) {
        (true, _) => writeln!(out, "{ip} is in no feed"),
        (false, "") => writeln!(out, "what comes from {ip} by an uplink is dropped"),
        (false, why) => writeln!(out, "it is not dropped: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::{FeedMatch, FeedStatus};

    use super::*;

    #[test]
    fn an_address_is_answered_first() {
        let ip: IpAddr = "192.0.2.7".parse().unwrap();
        let mut status = UplinkStatus {
            feeds: vec![FeedStatus {
                name: "drop".into(),
                source: "/etc/drop.txt".into(),
                lines: 3,
                error: "No such file".into(),
                ..FeedStatus::default()
            }],
            ..UplinkStatus::default()
        };
        let text = |status: &UplinkStatus| {
            let mut out = Vec::new();
            write(&mut out, Some(ip), status).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(
            text(&status).starts_with("192.0.2.7 is in no feed\nno uplink: "),
            "{}",
            text(&status)
        );
        assert!(text(&status).contains("could not be had: No such file; the last good list is in force"));
        status.matches = vec![FeedMatch {
            feed: "drop".into(),
            prefix: "192.0.2.0/24".into(),
        }];
        assert!(
            text(&status).contains("is in feed drop: 192.0.2.0/24\nwhat comes from 192.0.2.7 by an uplink is dropped")
        );
        status.spared_by = "--feed-except 192.0.0.0/16".into();
        assert!(text(&status).contains("it is not dropped: --feed-except"));
    }
}
