//! Frames written by hand, for the peer that lies about who it is.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_PUSH_ACK: u8 = 0x18;

/// A frame with a payload that claims to belong to a flow.
#[derive(Clone, Debug)]
pub struct Forged<'a> {
    /// MAC address of the sender.
    pub from_mac: [u8; 6],
    /// MAC address of the next hop.
    pub to_mac: [u8; 6],
    /// Source that is claimed.
    pub source: SocketAddr,
    /// Destination, of the same family.
    pub destination: SocketAddr,
    /// TCP (a data segment of a running connection), else UDP.
    pub tcp: bool,
    /// Payload.
    pub payload: &'a [u8],
}

impl Forged<'_> {
    /// The bytes on the wire. With ends of two families the result is of neither, and no host takes it.
    pub fn bytes(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut frame = [self.to_mac, self.from_mac].concat();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0];
                header.extend(length(transport.len() + 20).to_be_bytes());
                header.extend([0, 1, 0x40, 0, 64, self.protocol(), 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(&[&header]);
                header.splice(10..12, sum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length(transport.len()).to_be_bytes());
                frame.extend([self.protocol(), 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => {}
        }
        frame.extend(transport);
        frame
    }

    fn protocol(&self) -> u8 {
        if self.tcp { TCP } else { UDP }
    }

    fn transport(&self) -> Vec<u8> {
        let mut segment = self.source.port().to_be_bytes().to_vec();
        segment.extend(self.destination.port().to_be_bytes());
        let sum_at = if self.tcp {
            segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, TCP_PUSH_ACK, 0xff, 0xff, 0, 0, 0, 0]);
            16
        } else {
            segment.extend(length(self.payload.len() + 8).to_be_bytes());
            segment.extend([0, 0]);
            6
        };
        segment.extend(self.payload);
        let mut pseudo = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => [source.octets(), destination.octets()].concat(),
            (IpAddr::V6(source), IpAddr::V6(destination)) => [source.octets(), destination.octets()].concat(),
            _ => Vec::new(),
        };
        pseudo.extend([0, self.protocol()]);
        pseudo.extend(length(segment.len()).to_be_bytes());
        let sum = checksum(&[&pseudo, &segment]);
        segment.splice(sum_at..sum_at + 2, sum.to_be_bytes());
        segment
    }
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

/// The internet checksum over parts that each have an even length (but the last).
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += match pair {
                [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
                [high] => u32::from(u16::from_be_bytes([*high, 0])),
                _ => 0,
            };
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checked_header_sums_to_zero() {
        let frame = Forged {
            from_mac: [2; 6],
            to_mac: [4; 6],
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            tcp: true,
            payload: b"odd",
        }
        .bytes();
        assert_eq!(checksum(&[&frame[14..34]]), 0);
        let pseudo = [&frame[26..34], &[0, TCP, 0, 23]].concat();
        assert_eq!(checksum(&[&pseudo, &frame[34..]]), 0);
    }

    #[test]
    fn families_have_their_ether_types() {
        let forged = |source: &str, destination: &str| {
            Forged {
                from_mac: [2; 6],
                to_mac: [4; 6],
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                tcp: false,
                payload: b"x",
            }
            .bytes()
        };
        assert_eq!(forged("1.2.3.4:1", "1.2.3.5:2")[12..14], [0x08, 0x00]);
        assert_eq!(forged("[fd00::1]:1", "[fd00::2]:2")[12..14], [0x86, 0xdd]);
    }
}
