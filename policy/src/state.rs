//! What the compiler gives: everything a node has to know to judge packets, as one value of named resources, and the
//! difference of two such values. Nothing here says in which order to write it; that is the planner's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    lease::Claims,
    model::{Attachment, Direction, Guard, Manner, RuleName, WorkloadKey, Zone},
    table::Table,
};

/// Who the other end is, as rulesets ask it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PeerId {
    /// An address inside pod ranges that is not bound: allowed only where every pod would be.
    UnknownPod,
    /// Any pod whose identity has no entry of its own.
    AnyPod,
    /// Any node whose identity has no entry of its own.
    AnyNode,
    /// Any address; every ruleset has this entry.
    AnyAddress,
    /// The identity of this name.
    Identity(Digest),
}

/// What kind of thing an address is bound to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum AddressKind {
    /// A pod's.
    Pod,
    /// A node's.
    Node,
    /// A Service's frontend: what is behind it has addresses of its own.
    Service,
}

/// Who an address is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Binding {
    /// Its identity; `UnknownPod` when two workloads claim the address.
    pub peer: PeerId,
    /// Pod, node or Service.
    pub kind: AddressKind,
    /// Image class, for leases on the peer's side.
    pub image_class: u32,
    /// What a flow record calls it: the workload, the Service, or the node's name with an empty namespace. Addresses of one
    /// workload share it.
    pub name: Arc<WorkloadKey>,
    /// The node it is on, or that it is.
    pub node: Option<Arc<str>>,
}

/// Who an address without a binding is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Identity of the set of policy CIDRs (and, inside pod ranges, of "some pod") that cover it.
    pub peer: PeerId,
    /// Inside a pod range.
    pub pod_range: bool,
}

/// An identity: the questions that policies ask and that hold. Kept for people (`endpoints`, `explain`); the kernel knows its number only.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The atoms in order, as text: `namespace=shop`, `label app in (web)`, `cidr 10.0.0.0/8`.
    pub atoms: Vec<String>,
}

/// What an alternative does; `Pass` is gone after flattening.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Decision {
    /// The flow may live.
    Allow,
    /// It may not.
    Deny,
}

/// One alternative of a range.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Alternative {
    /// Its condition; `None` on the last one, and only there.
    pub guard: Option<Guard>,
    /// What it does.
    pub decision: Decision,
    /// How.
    pub manner: Manner,
    /// The rule it comes from.
    pub rule: RuleName,
}

/// An interval of positions (`verdict::port::Position`) and what decides there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Range {
    /// First position.
    pub low: u32,
    /// Last position.
    pub high: u32,
    /// Enforced alternatives; the first whose guard holds decides.
    pub enforce: Vec<Alternative>,
    /// The same with shadow rules; empty = the same as `enforce`.
    pub shadow: Vec<Alternative>,
}

/// What a ruleset says of one peer: ranges that are sorted, disjoint and cover every position.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PortSet {
    /// The ranges.
    pub ranges: Vec<Range>,
}

/// The rules of one direction for all endpoints that the same policies select.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ruleset {
    /// Direction.
    pub direction: Direction,
    /// Policies it was compiled from, in order, as text.
    pub policies: Vec<String>,
    /// What it says of whom.
    pub entries: BTreeMap<PeerId, Arc<PortSet>>,
}

/// An endpoint: a workload of a node and its rulesets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// `metadata.uid`.
    pub uid: String,
    /// Node it is on.
    pub node: Option<String>,
    /// Its identity as a subject (the identity of its first address).
    pub identity: PeerId,
    /// Image class.
    pub image_class: u32,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Zone.
    pub zone: Zone,
    /// Name of the ruleset for what it sends.
    pub egress: Digest,
    /// Name of the ruleset for what it receives.
    pub ingress: Digest,
    /// Where its device is.
    pub attachment: Attachment,
}

/// Everything compiled. Of the whole cluster, or one node's part of it ([`State::for_node`]).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Identities by name.
    pub identities: Table<Digest, Arc<Identity>>,
    /// Who an address is.
    pub bindings: Table<(Zone, IpAddr), Binding>,
    /// Who an address without a binding is: longest match.
    pub networks: Table<(Zone, IpNetwork), Network>,
    /// Rulesets by name.
    pub rulesets: Table<Digest, Arc<Ruleset>>,
    /// Endpoints.
    pub endpoints: Table<WorkloadKey, Arc<Endpoint>>,
    /// Until when the images of a class satisfy which profiles.
    pub leases: Table<u32, Arc<Claims>>,
}

impl State {
    /// The part a node has to know: all identities, bindings, networks and leases, its own endpoints and their rulesets.
    #[must_use]
    pub fn for_node(&self, node: &str) -> Self {
        let endpoints: Table<_, _> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.node.as_deref() == Some(node))
            .map(|(key, endpoint)| (key.clone(), endpoint.clone()))
            .collect();
        let rulesets = endpoints
            .values()
            .flat_map(|endpoint| [endpoint.egress, endpoint.ingress])
            .filter_map(|name| Some((name, self.rulesets.get(&name)?.clone())))
            .collect();
        Self {
            rulesets,
            endpoints,
            ..self.clone()
        }
    }
}

/// Name of a resource of a state.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ResourceName {
    /// An identity.
    Identity(Digest),
    /// A binding.
    Binding(Zone, IpAddr),
    /// A network.
    Network(Zone, IpNetwork),
    /// A ruleset without its entries (they are resources of their own, so that one new peer is one new resource).
    Ruleset(Digest),
    /// An entry of a ruleset.
    RulesetEntry(Digest, PeerId),
    /// An endpoint.
    Endpoint(WorkloadKey),
    /// The leases of an image class.
    Leases(u32),
}

/// A resource of a state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Resource {
    /// An identity.
    Identity(Digest, Arc<Identity>),
    /// A binding.
    Binding(Zone, IpAddr, Binding),
    /// A network.
    Network(Zone, IpNetwork, Network),
    /// A ruleset: direction and policies; entries follow as their own resources.
    Ruleset(Digest, Direction, Vec<String>),
    /// An entry of a ruleset.
    RulesetEntry(Digest, PeerId, Arc<PortSet>),
    /// An endpoint.
    Endpoint(WorkloadKey, Arc<Endpoint>),
    /// The leases of an image class.
    Leases(u32, Arc<Claims>),
}

/// The difference between two states. Removing a ruleset removes its entries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Delta {
    /// Resources that are new or changed.
    pub upserts: Vec<Resource>,
    /// Resources that are gone.
    pub removes: Vec<ResourceName>,
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPod => f.write_str("reserved:unknown-pod"),
            Self::AnyPod => f.write_str("reserved:any-pod"),
            Self::AnyNode => f.write_str("reserved:any-node"),
            Self::AnyAddress => f.write_str("reserved:any-address"),
            Self::Identity(digest) => write!(f, "{}", digest.short()),
        }
    }
}
