//! Atoms: the positive questions that policies ask of whoever is at the other end. A negative operator asks the positive
//! question and wants "no".

use std::{collections::BTreeSet, fmt};

use ipnetwork::IpNetwork;

use crate::{digest::Digest, model::Protocol};

/// A positive question about one label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum LabelTest {
    /// The label exists and its value is one of these.
    In(BTreeSet<String>),
    /// The label exists.
    Exists,
}

/// A question. All but the last are answered by yes or no.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Atom {
    /// Is it a pod of this namespace?
    Namespace(String),
    /// Is it a pod of a namespace with such a label?
    NamespaceLabel(String, LabelTest),
    /// Is it a pod with such a label?
    PodLabel(String, LabelTest),
    /// Is it a pod with one of these service accounts?
    ServiceAccount(BTreeSet<String>),
    /// Is it a node with such a label?
    NodeLabel(String, LabelTest),
    /// Is its address in this block (canonical)?
    Cidr(IpNetwork),
    /// Is it a pod with a container port of this name, and which number?
    NamedPort(String, Protocol),
}

impl Atom {
    /// The atom as people read it; `number` is the answer to a [`Atom::NamedPort`].
    pub(crate) fn text(&self, number: u16) -> String {
        match self {
            Self::NamedPort(..) => format!("{self} = {number}"),
            _ => self.to_string(),
        }
    }

    /// Digest of the question, from which those of identities are made.
    pub(crate) fn digest(&self) -> Digest {
        let (tag, fields): (&str, Vec<&str>) = match self {
            Self::Namespace(name) => ("namespace", vec![name]),
            Self::NamespaceLabel(key, test) => ("namespace label", test.fields(key)),
            Self::PodLabel(key, test) => ("pod label", test.fields(key)),
            Self::ServiceAccount(names) => ("service account", names.iter().map(String::as_str).collect()),
            Self::NodeLabel(key, test) => ("node label", test.fields(key)),
            Self::Cidr(cidr) => return Digest::of("atom", [b"cidr".as_slice(), cidr.to_string().as_bytes()]),
            Self::NamedPort(name, protocol) => ("named port", vec![name, protocol_name(*protocol)]),
        };
        Digest::of("atom", std::iter::once(tag).chain(fields).map(str::as_bytes))
    }
}

impl LabelTest {
    /// Unambiguous fields: "exists" has one, "in" has two or more.
    fn fields<'a>(&'a self, key: &'a str) -> Vec<&'a str> {
        match self {
            Self::Exists => vec![key],
            Self::In(values) => [key, "in"]
                .into_iter()
                .chain(values.iter().map(String::as_str))
                .collect(),
        }
    }
}

/// The protocol's name as Kubernetes writes it.
pub(crate) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = |f: &mut fmt::Formatter<'_>, what: &str, key: &str, test: &LabelTest| match test {
            LabelTest::Exists => write!(f, "{what}label {key} exists"),
            LabelTest::In(values) => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                write!(f, "{what}label {key} in ({})", values.join(", "))
            }
        };
        match self {
            Self::Namespace(name) => write!(f, "namespace={name}"),
            Self::NamespaceLabel(key, test) => label(f, "namespace ", key, test),
            Self::PodLabel(key, test) => label(f, "", key, test),
            Self::ServiceAccount(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                write!(f, "service account in ({})", names.join(", "))
            }
            Self::NodeLabel(key, test) => label(f, "node ", key, test),
            Self::Cidr(cidr) => write!(f, "cidr {cidr}"),
            Self::NamedPort(name, protocol) => write!(f, "port {name}/{}", protocol_name(*protocol)),
        }
    }
}
