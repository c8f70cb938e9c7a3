//! Which flow records a reader wants: the filters of `GetFlows`, checked once and then asked per record.

use std::net::IpAddr;

use bulkhead_verdict::port::protocol;
use ipnetwork::IpNetwork;
use thiserror::Error;

use crate::v1::{Endpoint, Flow, FlowFilter, GetFlowsRequest, Verdict, layer4::Protocol};

/// Filters one request may have.
pub const FILTERS_MAX: usize = 64;

/// A filter that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FilterError {
    /// An end that is none of the forms.
    #[error("{field} {text:?}: expected namespace/pod, namespace/, an address, a prefix, or a label key=value")]
    End {
        /// `source` or `destination`.
        field: &'static str,
        /// What it said.
        text: String,
    },
    /// A protocol that is no name and no number.
    #[error("protocol {0:?}: expected tcp, udp, sctp, icmp, icmpv6 or a number from 0 to 255")]
    Protocol(String),
    /// A port above 65535.
    #[error("port {0}: ports end at 65535")]
    Port(u32),
    /// A verdict this version does not know.
    #[error("verdict {0}: not a value this version knows")]
    Verdict(i32),
    /// Too many filters.
    #[error("{0} filters: at most {FILTERS_MAX} are allowed")]
    TooMany(usize),
}

/// One end of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
enum End {
    Pod { namespace: String, name: String },
    Namespace(String),
    Network(IpNetwork),
    Label(String),
}

impl End {
    fn parse(field: &'static str, text: &str) -> Result<Option<Self>, FilterError> {
        let error = || FilterError::End {
            field,
            text: text.to_owned(),
        };
        if text.is_empty() {
            return Ok(None);
        }
        // A label's value cannot hold a slash, but its key may (`app.kubernetes.io/name=web`), and a prefix has one.
        if text.contains('=') {
            return Ok(Some(Self::Label(text.to_owned())));
        }
        if let Ok(network) = text.parse::<IpNetwork>() {
            return Ok(Some(Self::Network(network)));
        }
        match text.split_once('/') {
            Some((namespace, name)) if is_namespace(namespace) && !name.contains('/') => Ok(Some(match name {
                "" => Self::Namespace(namespace.to_owned()),
                name => Self::Pod {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                },
            })),
            _ => Err(error()),
        }
    }

    fn matches(&self, endpoint: Option<&Endpoint>, address: &str) -> bool {
        match self {
            Self::Pod { namespace, name } => {
                endpoint.is_some_and(|end| end.namespace == *namespace && end.pod_name == *name)
            }
            Self::Namespace(namespace) => endpoint.is_some_and(|end| end.namespace == *namespace),
            Self::Label(label) => endpoint.is_some_and(|end| end.labels.contains(label)),
            Self::Network(network) => address.parse::<IpAddr>().is_ok_and(|address| network.contains(address)),
        }
    }
}

/// A namespace's name has no dots, so a mistyped prefix is not taken for one.
fn is_namespace(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Filter {
    source: Option<End>,
    destination: Option<End>,
    verdict: Option<Verdict>,
    policy: String,
    port: Option<u32>,
    protocol: Option<u8>,
}

impl Filter {
    fn parse(wire: &FlowFilter) -> Result<Self, FilterError> {
        let verdict = match Verdict::try_from(wire.verdict) {
            Ok(Verdict::Unknown) => None,
            Ok(verdict) => Some(verdict),
            Err(_) => return Err(FilterError::Verdict(wire.verdict)),
        };
        if wire.port > u32::from(u16::MAX) {
            return Err(FilterError::Port(wire.port));
        }
        Ok(Self {
            source: End::parse("source", &wire.source)?,
            destination: End::parse("destination", &wire.destination)?,
            verdict,
            policy: wire.policy.clone(),
            port: (wire.port != 0).then_some(wire.port),
            protocol: parse_protocol(&wire.protocol)?,
        })
    }

    fn matches(&self, flow: &Flow) -> bool {
        let (source, destination) = flow.ip.as_ref().map_or(("", ""), |ip| (&*ip.source, &*ip.destination));
        self.source
            .as_ref()
            .is_none_or(|end| end.matches(flow.source.as_ref(), source))
            && self
                .destination
                .as_ref()
                .is_none_or(|end| end.matches(flow.destination.as_ref(), destination))
            && self.verdict.is_none_or(|verdict| flow.verdict() == verdict)
            && (flow.rule.contains(&self.policy) || flow.shadow_rule.contains(&self.policy))
            && self.port.is_none_or(|port| destination_port(flow) == Some(port))
            && self
                .protocol
                .is_none_or(|protocol| flow_protocol(flow) == Some(u32::from(protocol)))
    }
}

fn parse_protocol(text: &str) -> Result<Option<u8>, FilterError> {
    Ok(Some(match text.to_ascii_lowercase().as_str() {
        "" => return Ok(None),
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "sctp" => protocol::SCTP,
        "icmp" | "icmpv4" => protocol::ICMP,
        "icmpv6" => protocol::ICMPV6,
        number => number.parse().map_err(|_| FilterError::Protocol(text.to_owned()))?,
    }))
}

/// Destination port of a flow that has one.
#[must_use]
pub fn destination_port(flow: &Flow) -> Option<u32> {
    match flow.l4.as_ref()?.protocol.as_ref()? {
        Protocol::Tcp(tcp) => Some(tcp.destination_port),
        Protocol::Udp(udp) => Some(udp.destination_port),
        Protocol::Sctp(sctp) => Some(sctp.destination_port),
        Protocol::IcmPv4(_) | Protocol::IcmPv6(_) => None,
    }
}

/// IP protocol number of a flow; `None` when it is not known.
#[must_use]
pub fn flow_protocol(flow: &Flow) -> Option<u32> {
    let known = match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(_)) => protocol::TCP,
        Some(Protocol::Udp(_)) => protocol::UDP,
        Some(Protocol::Sctp(_)) => protocol::SCTP,
        Some(Protocol::IcmPv4(_)) => protocol::ICMP,
        Some(Protocol::IcmPv6(_)) => protocol::ICMPV6,
        None => return (flow.protocol != 0).then_some(flow.protocol),
    };
    Some(u32::from(known))
}

/// The filters of a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filters(Vec<Filter>);

impl Filters {
    /// Checks the filters of a request.
    pub fn parse(request: &GetFlowsRequest) -> Result<Self, FilterError> {
        if request.filters.len() > FILTERS_MAX {
            return Err(FilterError::TooMany(request.filters.len()));
        }
        request
            .filters
            .iter()
            .map(Filter::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// True when the reader wants this record: it matches any filter, or there are none.
    pub fn matches(&self, flow: &Flow) -> bool {
        self.0.is_empty() || self.0.iter().any(|filter| filter.matches(flow))
    }
}

#[cfg(test)]
#[path = "filter/tests.rs"]
mod tests;
