//! What the compiler takes: facts about workloads, and policies lowered from whatever kind the user wrote. Values without
//! behaviour to speak of; Kubernetes types stop in the `crds` crate.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    fqdn::Names,
    lease::{Claims, Profile},
};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Name of a workload: one pod; or, where the namespace is empty, of a node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct WorkloadKey {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
}

impl WorkloadKey {
    /// What a node is called among workloads: its name, in no namespace.
    pub fn of_node(name: &str) -> Self {
        Self {
            namespace: String::new(),
            name: name.to_owned(),
        }
    }

    /// True for a node.
    pub const fn is_node(&self) -> bool {
        self.namespace.is_empty()
    }
}

impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A transport protocol a rule may name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
}

/// The network an address belongs to; 0 is the primary one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Zone(pub u8);

/// A named container port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NamedPort {
    /// Name.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number, 1..=65535.
    pub number: u16,
}

/// Facts about a namespace. A namespace nobody declared is implied, with its `kubernetes.io/metadata.name` label.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels, the `kubernetes.io/metadata.name` one included (lowering adds it as the API server does).
    pub labels: Labels,
}

/// How an agent finds the device of a workload when no CNI tells it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Attachment {
    /// Path of the network namespace (annotation `bulkhead.dev/netns`); the agent finds the peer of its `eth0`.
    pub netns: Option<String>,
    /// Name of the host-side device (annotation `bulkhead.dev/device`).
    pub device: Option<String>,
}

/// Facts about a pod that has, or may get, an address of its own. Host-network pods and pods that have ended are not
/// workloads: lowering leaves them out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// Name.
    pub key: WorkloadKey,
    /// `metadata.uid`; empty when the source has none. A pod of the same name and another uid is another workload.
    pub uid: String,
    /// Labels.
    pub labels: Labels,
    /// Service account (`default` when absent).
    pub service_account: String,
    /// Node it runs on, when known.
    pub node: Option<String>,
    /// Its addresses, both families.
    pub addresses: BTreeSet<IpAddr>,
    /// Zone of the addresses.
    pub zone: Zone,
    /// Named container ports; if a name is declared twice for one protocol, the first counts (as kubelet resolves it).
    pub named_ports: Vec<NamedPort>,
    /// Where its device is.
    pub attachment: Attachment,
    /// Number of the set of image digests and what is claimed of it; 0 where nothing is. No part of its identity.
    pub image_class: u32,
    /// The profiles its images satisfy, and until when.
    pub claims: Claims,
}

/// Facts about a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` that are IP addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_ranges: BTreeSet<IpNetwork>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name, empty for the only port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the frontend.
    pub port: u16,
    /// Port of a backend: number, or named per pod.
    pub target: TargetPort,
    /// Port that every node takes connections for it on.
    pub node_port: Option<u16>,
}

/// `targetPort`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The container port of that name.
    Name(String),
}

/// Facts about a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Name (namespace/name, as for a workload).
    pub key: WorkloadKey,
    /// Cluster addresses (and external and load-balancer ones); none for a headless one.
    pub addresses: BTreeSet<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Pod selector; `None` = backends come from endpoint slices alone.
    pub selector: Option<Labels>,
    /// TCP port on which a node tells load balancers whether it has backends.
    pub health_check_port: Option<u16>,
}

impl Service {
    /// Ports of the nodes that are the Service's.
    pub fn node_ports(&self) -> impl Iterator<Item = (Protocol, u16)> {
        let ports = self
            .ports
            .iter()
            .filter_map(|port| Some((port.protocol, port.node_port?)));
        ports.chain(self.health_check_port.map(|port| (Protocol::Tcp, port)))
    }
}

/// Facts of an endpoint slice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Name.
    pub key: WorkloadKey,
    /// Service it belongs to (label `kubernetes.io/service-name`), same namespace.
    pub service: String,
    /// Ready addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Port name → number and protocol.
    pub ports: Vec<NamedPort>,
}

/// An operator of a label selector.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Operator {
    /// The label exists and its value is one of these.
    In(BTreeSet<String>),
    /// The label does not exist, or its value is none of these.
    NotIn(BTreeSet<String>),
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

/// One requirement of a label selector.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Operator and values.
    pub operator: Operator,
}

/// A label selector: all requirements hold. Empty selects everything (`matchLabels` is lowered to `In` with one value).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct LabelSelector(pub BTreeSet<Requirement>);

/// Which namespaces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum NamespaceMatch {
    /// The one of that name (a policy's own).
    Name(String),
    /// Those whose labels match.
    Labels(LabelSelector),
}

/// Pods by namespace and labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PodMatch {
    /// Namespaces.
    pub namespaces: NamespaceMatch,
    /// Pods in them.
    pub pods: LabelSelector,
    /// Their service accounts, by name.
    pub service_accounts: Match<String>,
}

/// The other end of a connection.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Peer {
    /// Pods.
    Pods(PodMatch),
    /// Every address in `cidr` and in none of `except`, whatever is behind it: pod, node, outside.
    Network {
        /// The block; host bits are zero.
        cidr: IpNetwork,
        /// Blocks taken out of it.
        except: BTreeSet<IpNetwork>,
    },
    /// Addresses of the nodes whose labels match.
    Nodes(LabelSelector),
    /// Every address that is no pod's, no node's and in no pod range.
    World,
    /// What is behind a Service: the pods its selector matches, ready or not; without a selector, the addresses of its endpoint
    /// slices. Nobody while there is no such Service.
    Service(WorkloadKey),
    /// The blocks of an [`AddressGroup`]. Of one that is not there or cannot be read whole, the rest is not known: an Allow rule
    /// matches what is known of it, a Deny rule everybody, and a Pass rule denies everybody.
    AddressGroup(String),
}

/// `Any` and an empty list differ: an absent list matches everything, an empty one (after dropping what cannot match) nothing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Match<T> {
    /// No condition.
    Any,
    /// At least one of these.
    OneOf(Vec<T>),
}

/// A version of ICMP.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum IcmpVersion {
    /// For IPv4.
    #[serde(rename = "ICMP")]
    V4,
    /// For IPv6.
    #[serde(rename = "ICMPv6")]
    V6,
}

/// Types and codes of ICMP messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum IcmpMessage {
    /// Every message.
    Any,
    /// Every code of a type.
    Type(u8),
    /// A code of a type.
    Code(u8, u8),
}

/// A condition on protocol and destination port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PortMatch {
    /// Destination ports `first..=last` of a protocol; all of them with 0..=65535.
    Range {
        /// Protocol.
        protocol: Protocol,
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// The destination pod's container port of this name; `None` = whatever its protocol. Matches no address that is not a pod.
    Named {
        /// Protocol.
        protocol: Option<Protocol>,
        /// Port name.
        name: String,
    },
    /// Messages of ICMP that begin something. Errors about a flow follow the flow, whatever rules say.
    Icmp {
        /// Version.
        version: IcmpVersion,
        /// Which messages.
        message: IcmpMessage,
    },
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Action {
    /// Allow, and look no further.
    Allow,
    /// Deny, and look no further.
    Deny,
    /// Leave the tier and go on with the next one.
    Pass,
}

/// The condition on a rule beside peers and ports. Not allowed on `Pass` rules (an alternative list could not express it).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Guard {
    /// A lease of this profile for the image class of one side runs (or, negated, does not).
    Lease {
        /// What the images must satisfy.
        profile: Profile,
        /// Whose image class.
        side: Side,
        /// Holds while the lease does not.
        negated: bool,
    },
    /// Until the expiry of this number.
    Until(u32),
    /// While the peer's address is learned for one of these names.
    Name(Names),
}

/// An end of a connection, seen from the endpoint whose rules are evaluated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Side {
    /// The endpoint itself.
    Subject,
    /// The other end.
    Peer,
}

/// Whether a rule's verdict is enforced or only recorded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Mode {
    /// Enforced (and part of the shadow verdict too).
    #[default]
    Enforce,
    /// Only part of the shadow verdict.
    Shadow,
}

/// One rule of a policy.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// The user's name for it.
    pub name: Option<String>,
    /// Its place in the list the user wrote, from 0. Lowering may drop or split rules, so this is not the position in `Policy::rules`.
    pub index: u32,
    /// What it does.
    pub action: Action,
    /// Other ends it matches.
    pub peers: Match<Peer>,
    /// Protocols and destination ports it matches.
    pub ports: Match<PortMatch>,
    /// Its condition.
    pub guard: Option<Guard>,
    /// Enforced or shadow.
    pub mode: Mode,
}

/// What the sender of a packet that a Deny drops is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing.
    #[default]
    Drop,
    /// TCP gets a reset, UDP and ICMP queries "administratively prohibited"; some per second and endpoint.
    Reject,
}

/// What becomes of a live connection that is no longer allowed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub enum OnChange {
    /// Its next packet cuts it.
    #[default]
    Reevaluate,
    /// It may end by itself within [`bulkhead_verdict::connection::DRAIN_TIME`], then it is cut.
    Drain,
    /// It may go on as long as it lives.
    Keep,
}

/// How the verdicts of a policy are carried out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Manner {
    /// What who is denied is told.
    pub answer: Answer,
    /// What becomes of live connections. It holds for what the policy denies; and for what it had allowed and is now denied by
    /// nothing but the lack of a rule that allows it.
    pub on_change: OnChange,
}

/// A direction, from the selected pod's view.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What the pod sends.
    Egress,
    /// What the pod receives.
    Ingress,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subject => "subject",
            Self::Peer => "peer",
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        })
    }
}

/// The kinds of policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterNetworkPolicy,
    /// `bulkhead.dev/v1alpha1` SegmentPolicy.
    SegmentPolicy,
    /// `bulkhead.dev/v1alpha1` ClusterSegmentPolicy.
    ClusterSegmentPolicy,
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::SegmentPolicy => "SegmentPolicy",
            Self::ClusterSegmentPolicy => "ClusterSegmentPolicy",
        })
    }
}

/// Blocks of addresses under a name, for policies to refer to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressGroup {
    /// Name.
    pub name: String,
    /// The blocks.
    pub blocks: BTreeSet<IpNetwork>,
    /// False when some of it could not be read, so that it may have more blocks than these.
    pub complete: bool,
}

/// Name of a policy. Its order is the tie-break of the total order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PolicyKey {
    /// Kind.
    pub kind: PolicyKind,
    /// Namespace; empty for a cluster-scoped kind.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{}/{}", self.kind, self.name),
            namespace => write!(f, "{}/{namespace}/{}", self.kind, self.name),
        }
    }
}

/// Tiers in order of evaluation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Tier {
    /// Cannot be overridden.
    Admin,
    /// NetworkPolicy: denies, then the union of allows, then default-deny for whom any policy selects.
    NetworkPolicy,
    /// Applies where no NetworkPolicy selected the pod.
    Baseline,
}

/// A policy. In the Admin and Baseline tiers, priority (lower first), then key, then rule order decide; in the NetworkPolicy tier denies
/// go before the union of allows, whatever their order, and a policy that is `Enforce` isolates what it selects.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Name.
    pub key: PolicyKey,
    /// `metadata.uid`; empty when the source has none.
    pub uid: String,
    /// `metadata.generation`; 0 when the source has none. Part of rule names shown to people.
    pub generation: i64,
    /// Tier.
    pub tier: Tier,
    /// 0..=1000, lower first; 0 in the NetworkPolicy tier.
    pub priority: u32,
    /// The pods it applies to; several = any of them.
    pub subject: Vec<PodMatch>,
    /// The nodes it applies to; several = any of them. Whoever applies to nodes applies to no pods.
    pub nodes: Vec<LabelSelector>,
    /// NetworkPolicy tier: directions in which the selected pods are isolated (`policyTypes` after defaulting).
    pub isolates: BTreeSet<Direction>,
    /// Whether the isolation itself is enforced or shadow.
    pub mode: Mode,
    /// How its verdicts are carried out.
    pub manner: Manner,
    /// Rules for what the pods receive.
    pub ingress: Vec<Rule>,
    /// Rules for what the pods send.
    pub egress: Vec<Rule>,
}

/// What a name in a flow record or a CLI line stands for: the thing that decided.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum RuleName {
    /// `builtin/self`, `builtin/node` and so on.
    Builtin(Builtin),
    /// A rule of a policy: `NetworkPolicy/shop/db ingress[0]`, with `(name)` appended when the user named it.
    Rule {
        /// Policy.
        policy: PolicyKey,
        /// Its generation; shown as `@7` when not 0.
        generation: i64,
        /// Direction.
        direction: Direction,
        /// Place in the user's list.
        index: u32,
        /// The user's name for it.
        name: Option<String>,
    },
    /// The default-deny of an isolating policy; of several, the first in order is named.
    DefaultDeny {
        /// Policy.
        policy: PolicyKey,
        /// Its generation.
        generation: i64,
        /// Direction.
        direction: Direction,
    },
}

/// Builtin rules: few, named, visible in flows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Builtin {
    /// A pod reaches itself.
    #[serde(rename = "self")]
    SelfTraffic,
    /// A local socket of the node reaches local pods.
    Node,
    /// No policy decided.
    DefaultAllow,
    /// The control plane's own traffic.
    Control,
    /// The endpoint is not managed (yet).
    Unmanaged,
    /// Some backends of the Service are allowed and others not, and the one that will be chosen is not known.
    MixedBackends,
    /// What a node sends on for others under its own address, which was judged at their devices.
    Forwarded,
    /// What a node needs to stay reachable; no policy overrides it.
    Failsafe,
    /// A Service's port on a node: what comes to it is judged at the backend.
    NodePort,
}

impl fmt::Display for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SelfTraffic => "builtin/self",
            Self::Node => "builtin/node",
            Self::DefaultAllow => "builtin/default-allow",
            Self::Control => "builtin/control",
            Self::Unmanaged => "builtin/unmanaged",
            Self::MixedBackends => "builtin/mixed-backends",
            Self::Forwarded => "builtin/forwarded",
            Self::Failsafe => "builtin/failsafe",
            Self::NodePort => "builtin/node-port",
        })
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = |f: &mut fmt::Formatter<'_>, number: &i64| match number {
            0 => Ok(()),
            number => write!(f, "@{number}"),
        };
        match self {
            Self::Builtin(builtin) => builtin.fmt(f),
            Self::Rule {
                policy,
                generation: number,
                direction,
                index,
                name,
            } => {
                write!(f, "{policy}")?;
                generation(f, number)?;
                write!(f, " {direction}[{index}]")?;
                name.as_ref().map_or(Ok(()), |name| write!(f, "({name})"))
            }
            Self::DefaultDeny {
                policy,
                generation: number,
                direction,
            } => {
                write!(f, "{policy}")?;
                generation(f, number)?;
                write!(f, " {direction} default-deny")
            }
        }
    }
}

/// An object of the cluster, lowered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod with an address of its own. Shared: there are many, and several tables keep them.
    Workload(Arc<Workload>),
    /// A node.
    Node(Node),
    /// A policy of any kind.
    Policy(Policy),
    /// A service.
    Service(Service),
    /// Endpoints of a service.
    EndpointSlice(EndpointSlice),
    /// Blocks under a name.
    AddressGroup(AddressGroup),
}

/// Name of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectKey {
    /// A namespace.
    Namespace(String),
    /// A pod.
    Workload(WorkloadKey),
    /// A node.
    Node(String),
    /// A policy.
    Policy(PolicyKey),
    /// A service.
    Service(WorkloadKey),
    /// Endpoints of a service.
    EndpointSlice(WorkloadKey),
    /// Blocks under a name.
    AddressGroup(String),
}

impl Object {
    /// The object's name.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Self::Workload(workload) => ObjectKey::Workload(workload.key.clone()),
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
            Self::Policy(policy) => ObjectKey::Policy(policy.key.clone()),
            Self::Service(service) => ObjectKey::Service(service.key.clone()),
            Self::EndpointSlice(slice) => ObjectKey::EndpointSlice(slice.key.clone()),
            Self::AddressGroup(group) => ObjectKey::AddressGroup(group.name.clone()),
        }
    }
}

/// One event of a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The object is now this.
    Upsert(Object),
    /// The object is gone.
    Delete(ObjectKey),
    /// These are all the objects there are; what is not among them is gone.
    Resync(Vec<Object>),
}
