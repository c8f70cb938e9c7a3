//! Namespaces, Pods, Nodes, Services and endpoint slices to facts.
//!
//! The types here have only what a fact is made of: a node holds tens of thousands of pods in memory for a moment when a large
//! folder is read, and whatever else a pod says is none of the compiler's business.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_policy::model::{Labels, Namespace, Node, Protocol};
use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::Value;

use crate::{cidr, read::read_part, report::Report};

mod claims;
mod pod;
mod service;

pub use pod::HostPod;
pub(crate) use pod::Pod;
pub(crate) use pod::lower as lower_pod;
pub(crate) use service::{lower_endpoint_slice, lower_service};

/// The label every namespace has.
pub(crate) const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The part of `metadata` that facts are made of.
#[derive(Deserialize, Debug, Default)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) labels: Option<Labels>,
    pub(crate) annotations: Option<Labels>,
}

impl Metadata {
    /// The name, or a report that there is none.
    pub(crate) fn name(&self, report: &mut Report<'_>) -> Option<String> {
        let name = self.name.clone().filter(|name| !name.is_empty());
        if name.is_none() {
            report.error("metadata.name", "is missing, so the object is left out; give it a name");
        }
        name
    }

    /// The namespace; `default` when the text says none, as kubectl applies it.
    pub(crate) fn namespace(&self) -> String {
        self.namespace
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned())
    }
}

/// Reads a type, or reports that the object is left out and why.
pub(crate) fn read_fact<T: serde::de::DeserializeOwned>(value: &Value, report: &mut Report<'_>) -> Option<T> {
    match read_part::<T>(value) {
        Ok(fact) => Some(fact),
        Err(misfit) => {
            report.error(
                misfit.field,
                format!("{}, so the object is left out; correct the field", misfit.message),
            );
            None
        }
    }
}

/// A protocol's name; absent means TCP.
pub(crate) fn parse_protocol(name: &str) -> Result<Protocol, String> {
    match name {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(format!("is {other:?}; write TCP, UDP or SCTP")),
    }
}

/// A port number.
pub(crate) fn port_number(number: i64) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|number| *number != 0)
        .ok_or_else(|| format!("is {number}; write a port from 1 to 65535"))
}

/// A port name: at most 15 lower-case letters, digits and single inner dashes, one letter at least.
pub(crate) fn is_port_name(name: &str) -> Result<(), String> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (1..=15).contains(&name.len())
        && name.starts_with(letters)
        && name.ends_with(letters)
        && name.chars().all(|c| letters(c) || c == '-')
        && name.chars().any(|c| c.is_ascii_lowercase())
        && !name.contains("--");
    if good {
        return Ok(());
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) && !name.is_empty() {
        return Err(format!("is the text {name:?}; write the number without quotes"));
    }
    Err(format!(
        "is {name:?}, which is not a port name; write a number, or a name of at most 15 lower-case letters, digits and '-'"
    ))
}

/// An address; IPv4 in IPv6 clothes is the IPv4 address.
pub(crate) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Addresses of a list of `(field, text)`; empty texts say nothing, wrong ones are reported and left out.
pub(crate) fn addresses<'a>(
    texts: impl IntoIterator<Item = (String, &'a str)>,
    report: &mut Report<'_>,
) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    for (field, text) in texts {
        match parse_address(text) {
            Some(address) => {
                found.insert(address);
            }
            None if text.is_empty() => {}
            None => report.error(
                field,
                format!("{text:?} is not an IP address and is left out; correct it"),
            ),
        }
    }
    found
}

/// A Namespace.
pub(crate) fn lower_namespace(value: &Value, report: &mut Report<'_>) -> Option<Namespace> {
    #[derive(Deserialize)]
    struct Text {
        #[serde(default)]
        metadata: Metadata,
    }
    let metadata = read_fact::<Text>(value, report)?.metadata;
    let name = metadata.name(report)?;
    let mut labels = metadata.labels.unwrap_or_default();
    // The API server sets it and lets nobody change it.
    labels.insert(NAMESPACE_NAME.to_owned(), name.clone());
    Some(Namespace { name, labels })
}

#[derive(Deserialize)]
struct NodeText {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Deserialize)]
struct NodeAddress {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    address: String,
}

/// A Node: those of its addresses that are IP addresses, and its pods' ranges.
pub(crate) fn lower_node(value: &Value, report: &mut Report<'_>) -> Option<Node> {
    let NodeText { metadata, spec, status } = read_fact(value, report)?;
    let name = metadata.name(report)?;
    let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
    let mut found = BTreeSet::new();
    for (index, entry) in status.addresses.iter().flatten().enumerate() {
        match (parse_address(&entry.address), entry.kind.as_str()) {
            (Some(address), _) => {
                found.insert(address);
            }
            // Names are addresses of a node too, and none of ours.
            (None, "Hostname" | "InternalDNS" | "ExternalDNS") => {}
            (None, _) => report.error(
                format!("status.addresses[{index}].address"),
                format!("{:?} is not an IP address and is left out; correct it", entry.address),
            ),
        }
    }
    let ranges = spec
        .pod_cidrs
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, text)| (format!("spec.podCIDRs[{index}]"), text));
    let range = spec
        .pod_cidr
        .iter()
        .filter(|text| !text.is_empty())
        .map(|text| ("spec.podCIDR".to_owned(), text));
    let mut pod_ranges: BTreeSet<IpNetwork> = BTreeSet::new();
    for (field, text) in ranges.chain(range) {
        match cidr::parse(text, &field, report) {
            Ok(block) => {
                pod_ranges.insert(block);
            }
            Err(problem) => report.error(field, format!("{problem}; it is left out")),
        }
    }
    Some(Node {
        name,
        labels: metadata.labels.unwrap_or_default(),
        addresses: found,
        pod_ranges,
    })
}
