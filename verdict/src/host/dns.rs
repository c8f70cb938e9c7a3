//! Writes DNS messages, right ones and wrong ones, for tests, vectors and fuzzers.

use std::net::IpAddr;

use super::frame::Frame;

/// Flags of an answer without an error.
pub const ANSWER: u16 = 0x8180;
/// Type of a query for IPv4 addresses.
pub const A: u16 = 1;
/// Type of a query for IPv6 addresses.
pub const AAAA: u16 = 28;

/// A message with one question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Id.
    pub id: u16,
    /// Flags; 0x0100 is a query.
    pub flags: u16,
    /// How many questions the header says.
    pub questions: u16,
    /// Name that is asked.
    pub name: String,
    /// Type that is asked.
    pub kind: u16,
    /// Class that is asked.
    pub class: u16,
    /// How many answers the header says; `None` = as many as there are.
    pub stated: Option<u16>,
    /// Answers.
    pub answers: Vec<Record>,
}

/// A record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Owner; empty = a pointer to the question.
    pub owner: String,
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    /// TTL.
    pub ttl: u32,
    /// Data.
    pub data: Vec<u8>,
}

impl Record {
    /// An address of the question's name.
    pub fn address(address: IpAddr, ttl: u32) -> Self {
        let (kind, data) = match address {
            IpAddr::V4(v4) => (A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AAAA, v6.octets().to_vec()),
        };
        Self {
            owner: String::new(),
            kind,
            class: 1,
            ttl,
            data,
        }
    }

    /// An alias.
    pub fn alias(owner: &str, target: &str, ttl: u32) -> Self {
        Self {
            owner: owner.to_owned(),
            kind: 5,
            class: 1,
            ttl,
            data: wire(target),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = if self.owner.is_empty() {
            vec![0xc0, 12]
        } else {
            wire(&self.owner)
        };
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(self.class.to_be_bytes());
        bytes.extend(self.ttl.to_be_bytes());
        bytes.extend(u16::try_from(self.data.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(&self.data);
        bytes
    }
}

/// A name as messages have it.
pub fn wire(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap_or(63));
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

impl Message {
    /// A query for addresses of a family.
    pub fn query(id: u16, name: &str, kind: u16) -> Self {
        Self {
            id,
            flags: 0x0100,
            questions: 1,
            name: name.to_owned(),
            kind,
            class: 1,
            stated: None,
            answers: Vec::new(),
        }
    }

    /// The answer to it.
    #[must_use]
    pub fn answer(&self, answers: Vec<Record>) -> Self {
        Self {
            flags: ANSWER,
            answers,
            ..self.clone()
        }
    }

    /// As it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        let stated = self
            .stated
            .unwrap_or(u16::try_from(self.answers.len()).unwrap_or(u16::MAX));
        let mut bytes = Vec::new();
        for half in [self.id, self.flags, self.questions, stated, 0, 0] {
            bytes.extend(half.to_be_bytes());
        }
        bytes.extend(wire(&self.name));
        bytes.extend(self.kind.to_be_bytes());
        bytes.extend(self.class.to_be_bytes());
        bytes.extend(self.answers.iter().flat_map(Record::bytes));
        bytes
    }

    /// As the payload of a frame.
    pub fn in_frame(&self, frame: Frame) -> Vec<u8> {
        payload(frame, &self.bytes())
    }

    /// As the payload of a TCP segment: its length goes in front.
    pub fn in_segment(&self, frame: Frame) -> Vec<u8> {
        payload(frame, &self.with_length())
    }

    /// As it is in a TCP stream.
    pub fn with_length(&self) -> Vec<u8> {
        let bytes = self.bytes();
        let mut stream = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
        stream.extend(bytes);
        stream
    }
}

/// A frame with these bytes behind its transport header.
pub fn payload(frame: Frame, bytes: &[u8]) -> Vec<u8> {
    let mut packet = frame.payload(bytes.len()).build();
    let start = packet.len().saturating_sub(bytes.len());
    if let Some(place) = packet.get_mut(start..) {
        place.copy_from_slice(bytes);
    }
    packet
}
