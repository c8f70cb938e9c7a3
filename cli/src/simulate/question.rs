//! A probe as the user writes it.

use bulkhead_policy::{
    fqdn::Pattern,
    model::{Protocol, WorkloadKey},
};
use bulkhead_verdict::port::protocol;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Why a question has no answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum QuestionError {
    /// The probe is not one.
    #[error("bad probe: {0}")]
    Bad(String),
    /// No such pod.
    #[error("{field}: pod {pod} is not in the manifests; check namespace and name")]
    UnknownPod {
        /// `from` or `to`.
        field: &'static str,
        /// The pod.
        pod: WorkloadKey,
    },
    /// The pod has ended.
    #[error("{field}: pod {pod} has ended (phase Succeeded or Failed), so it has no address")]
    EndedPod {
        /// `from` or `to`.
        field: &'static str,
        /// The pod.
        pod: WorkloadKey,
    },
    /// The pod has no address.
    #[error("{field}: pod {pod} has no address (status.podIPs); ask again when it runs, or add one to the manifest")]
    NoAddress {
        /// `from` or `to`.
        field: &'static str,
        /// The pod.
        pod: WorkloadKey,
    },
    /// Several pods have the address.
    #[error("{field}: address {address} is claimed by {pods}; name the pod instead")]
    Contested {
        /// `from` or `to`.
        field: &'static str,
        /// The address.
        address: std::net::IpAddr,
        /// The pods.
        pods: String,
    },
    /// No common family.
    #[error("from and to have no address of the same family")]
    NoCommonFamily,
}

/// An end of a connection as the user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    /// By its address.
    Address(std::net::IpAddr),
    /// A pod.
    Pod(WorkloadKey),
}

/// A new connection to ask about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Who opens it.
    pub from: Name,
    /// To whom.
    pub to: Name,
    /// Destination port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The DNS name the pod had the destination's address from.
    pub name: Option<Pattern>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    from: String,
    to: String,
    port: i64,
    #[serde(default = "tcp")]
    protocol: String,
    #[serde(default)]
    name: Option<String>,
}

fn tcp() -> String {
    "TCP".to_owned()
}

impl Question {
    /// Reads a probe.
    pub fn read(probe: &Value) -> Result<Self, QuestionError> {
        let Text {
            from,
            to,
            port,
            protocol,
            name,
        } = Text::deserialize(probe).map_err(|error| QuestionError::Bad(error.to_string()))?;
        Self::new(&from, &to, port, &protocol)?.by_name(name.as_deref())
    }

    /// The same question, by a DNS name that the pod had the destination's address from.
    pub fn by_name(mut self, name: Option<&str>) -> Result<Self, QuestionError> {
        let read = |text: &str| match text.parse::<Pattern>() {
            Ok(name) if !text.starts_with('*') => Ok(name),
            Ok(_) => Err(QuestionError::Bad(format!(
                "name is {text:?}, a wildcard; write one name"
            ))),
            Err(problem) => Err(QuestionError::Bad(format!("name is {text:?}: it {problem}"))),
        };
        self.name = name.map(read).transpose()?;
        Ok(self)
    }

    /// A question of the four words the user gives.
    pub fn new(from: &str, to: &str, port: i64, protocol: &str) -> Result<Self, QuestionError> {
        let bad_port = || QuestionError::Bad(format!("port is {port}; write a number from 1 to 65535"));
        Ok(Self {
            from: name(from, "from")?,
            to: name(to, "to")?,
            port: u16::try_from(port)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(bad_port)?,
            protocol: match protocol {
                "TCP" => Protocol::Tcp,
                "UDP" => Protocol::Udp,
                "SCTP" => Protocol::Sctp,
                other => {
                    return Err(QuestionError::Bad(format!(
                        "protocol is {other:?}; write TCP, UDP or SCTP"
                    )));
                }
            },
            name: None,
        })
    }
}

/// The protocol's number in the IP header.
pub(crate) fn ip_protocol(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}

fn name(text: &str, field: &str) -> Result<Name, QuestionError> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(Name::Address(address.to_canonical()));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Name::Pod(WorkloadKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }))
        }
        _ => Err(QuestionError::Bad(format!(
            "{field} is {text:?}; write an IP address or namespace/pod"
        ))),
    }
}
