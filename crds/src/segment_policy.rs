//! `bulkhead.dev/v1alpha1` SegmentPolicy and ClusterSegmentPolicy: the types, from which their custom resource definitions are
//! generated. What an object means, also one that no API server has looked at, is said in [`lower`].
//!
//! | where | order |
//! |---|---|
//! | no `tier` | with the NetworkPolicies: a Deny goes before every Allow of any of them, and what none allows is denied |
//! | `tier: Admin` or `Baseline` | with the ClusterNetworkPolicies: by priority, then name; the first rule that matches decides |
//!
//! Only a ClusterSegmentPolicy may name a tier: who may write policies in a namespace is not who may overrule the cluster's.

use k8s_openapi::apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString};
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod lower;
mod rule;
mod trust;

pub(crate) use lower::{Kind, lower_value};

use crate::{cluster_network_policy::ClusterNetworkPolicyStatus as PolicyStatus, schema};

/// What a SegmentPolicy says: who may talk with pods of its namespace.
#[derive(CustomResource, Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bulkhead.dev",
    version = "v1alpha1",
    kind = "SegmentPolicy",
    plural = "segmentpolicies",
    namespaced,
    status = "PolicyStatus",
    shortname = "segpol",
    category = "bulkhead",
    doc = "A network policy for pods of a namespace.",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Enforced","type":"string","jsonPath":".status.conditions[?(@.type==\"Enforced\")].status"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Enforced\")].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    crates(kube_core = "::kube_core")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": schema::SOME_DIRECTION, "message": schema::SOME_DIRECTION_MESSAGE},
    {"rule": schema::NO_PASS, "message": "Pass is for rules of tier Admin, which a ClusterSegmentPolicy has"},
]))]
pub struct SegmentPolicySpec {
    /// Whether its rules, and the isolation of what it selects, are enforced or only recorded as what would have happened.
    pub mode: Mode,
    /// What who is denied by it is told, by its Deny rules and by its isolation: nothing, or that it is not allowed.
    pub deny: Denial,
    /// What becomes of live connections that it denies, or that it had allowed and no rule allows any more.
    pub on_change: OnChange,
    /// The pods of the namespace it applies to; absent or empty means all of them.
    pub subject: SegmentSubject,
    /// Rules for what the pods receive. Present, even if empty: what no policy allows them to receive is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub ingress: Option<Vec<SegmentIngressRule>>,
    /// Rules for what the pods send. Present, even if empty: what no policy allows them to send is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub egress: Option<Vec<SegmentEgressRule>>,
}

/// What a ClusterSegmentPolicy says: who may talk with pods of any namespace.
#[derive(CustomResource, Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bulkhead.dev",
    version = "v1alpha1",
    kind = "ClusterSegmentPolicy",
    plural = "clustersegmentpolicies",
    status = "PolicyStatus",
    shortname = "csegpol",
    category = "bulkhead",
    doc = "A network policy for pods of any namespace.",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Tier","type":"string","jsonPath":".spec.tier"}"#,
    printcolumn = r#"{"name":"Priority","type":"integer","jsonPath":".spec.priority"}"#,
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Enforced","type":"string","jsonPath":".status.conditions[?(@.type==\"Enforced\")].status"}"#,
    printcolumn = r#"{"name":"Nodes","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type==\"Enforced\")].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    crates(kube_core = "::kube_core")
)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["subject"]))]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": schema::SOME_DIRECTION, "message": schema::SOME_DIRECTION_MESSAGE},
    {"rule": "has(self.tier) == has(self.priority)", "message": "tier and priority go together: set both, or none to be with the NetworkPolicies"},
    {"rule": schema::PASS_ONLY_IN_ADMIN, "message": "Pass is for rules of tier Admin: below it there is nothing to pass to"},
]))]
pub struct ClusterSegmentPolicySpec {
    /// Admin: before every NetworkPolicy, and no such policy overrides it. Baseline: for pods no NetworkPolicy isolates. Absent:
    /// with the NetworkPolicies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Order within the tier, lower first, shared with ClusterNetworkPolicies. Two policies of one priority are ordered by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub priority: Option<i32>,
    /// Whether its rules, and the isolation of what it selects, are enforced or only recorded as what would have happened.
    pub mode: Mode,
    /// What who is denied by it is told, by its Deny rules and by its isolation: nothing, or that it is not allowed.
    pub deny: Denial,
    /// What becomes of live connections that it denies, or that it had allowed and no rule allows any more.
    pub on_change: OnChange,
    /// The pods it applies to; empty means every pod.
    pub subject: ClusterSegmentSubject,
    /// Rules for what the pods receive. Without a tier, and present even if empty: what no policy allows them to receive is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub ingress: Option<Vec<SegmentIngressRule>>,
    /// Rules for what the pods send. Without a tier, and present even if empty: what no policy allows them to send is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 50))]
    pub egress: Option<Vec<SegmentEgressRule>>,
}

/// A tier by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Tier {
    /// Before every NetworkPolicy.
    Admin,
    /// Where no NetworkPolicy isolates the pod.
    Baseline,
}

/// Whether something is enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Mode {
    /// It decides.
    #[default]
    Enforce,
    /// It decides nothing; what it would have decided is recorded.
    Shadow,
}

/// What who is denied is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Denial {
    /// Nothing: a client waits until it gives up.
    #[default]
    Drop,
    /// That it is not allowed, at once: TCP by a reset, UDP and ping by ICMP; at most 100 per second, pod and direction.
    Reject,
}

/// What becomes of live connections that are no longer allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnChange {
    /// They are cut at their next packet.
    #[default]
    Reevaluate,
    /// They have five minutes to end by themselves.
    Drain,
    /// They may go on until they end.
    Keep,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Action {
    /// Let it through.
    #[default]
    Allow,
    /// Drop it.
    Deny,
    /// Leave it to the NetworkPolicies; tier Admin only.
    Pass,
}

/// Pods of the policy's namespace; conditions that are set hold together.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SegmentSubject {
    /// Labels of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
    /// Service accounts of the pods, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub service_accounts: Option<Vec<String>>,
}

/// Pods of any namespace, conditions that are set hold together; or nodes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": schema::PODS_OR_NODES, "message": schema::PODS_OR_NODES_MESSAGE}]))]
pub struct ClusterSegmentSubject {
    /// Labels of their namespaces; absent or empty means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
    /// Service accounts of the pods, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub service_accounts: Option<Vec<String>>,
    /// Labels of nodes, empty means every node: the policy is for the nodes themselves, where packets enter and leave them, and
    /// for no pod. What a node needs to stay reachable stays open whatever it says (the controller's `--failsafe-inbound` and
    /// `--failsafe-outbound`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub node_selector: Option<LabelSelector>,
}

/// A rule for what the pods receive.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": schema::NO_FQDNS, "message": schema::NO_FQDNS_MESSAGE},
    {"rule": schema::TRUST_ALLOW, "message": schema::TRUST_ALLOW_MESSAGE},
]))]
pub struct SegmentIngressRule {
    /// A name for people; it is shown wherever the rule decides.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100))]
    pub name: String,
    /// What to do with matching traffic.
    pub action: Action,
    /// Shadow takes this rule alone out of enforcement.
    pub mode: Mode,
    /// Sources; absent means everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub from: Option<Vec<SegmentPeer>>,
    /// Protocols and ports; absent means all traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub ports: Option<Vec<SegmentPort>>,
    /// A condition on the images of one end, in Allow rules only: the rule holds while a lease of the profile runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustClause>,
}

/// A rule for what the pods send.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": schema::FQDNS_ALLOW, "message": schema::FQDNS_ALLOW_MESSAGE},
    {"rule": schema::TRUST_ALLOW, "message": schema::TRUST_ALLOW_MESSAGE},
    {"rule": schema::TRUST_OR_FQDNS, "message": schema::TRUST_OR_FQDNS_MESSAGE},
]))]
pub struct SegmentEgressRule {
    /// A name for people; it is shown wherever the rule decides.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100))]
    pub name: String,
    /// What to do with matching traffic.
    pub action: Action,
    /// Shadow takes this rule alone out of enforcement.
    pub mode: Mode,
    /// Destinations; absent means everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub to: Option<Vec<SegmentPeer>>,
    /// Protocols and ports; absent means all traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub ports: Option<Vec<SegmentPort>>,
    /// A condition on the images of one end, in Allow rules only: the rule holds while a lease of the profile runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustClause>,
}

/// A condition on images: those that run in the pods of one end satisfy a profile, and the time until which they do is not over. The
/// time is compared on every packet: when it is over, the rule allows nothing, and the next rule decides.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustClause {
    /// What the images must satisfy. For now a pod says so itself, in its annotation `trust.bulkhead.dev/claims`.
    #[schemars(schema_with = "schema::profile")]
    pub profile: String,
    /// Whose images.
    #[serde(default)]
    pub of: TrustOf,
}

/// Whose images a condition on trust is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TrustOf {
    /// The other end's: only a pod has any.
    #[default]
    Peer,
    /// The selected pod's own.
    Subject,
}

/// Another end: pods (`namespaceSelector`, `podSelector` and `serviceAccounts`, which hold together), or exactly one of the others.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": schema::ONE_KIND_OF_PEER, "message": schema::ONE_KIND_OF_PEER_MESSAGE}]))]
pub struct SegmentPeer {
    /// Labels of the pods' namespaces; empty means all. Absent means the policy's own, or all in a ClusterSegmentPolicy.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub namespace_selector: Option<LabelSelector>,
    /// Labels of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
    /// Service accounts of the pods, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub service_accounts: Option<Vec<String>>,
    /// What is behind a Service: the pods its selector matches, ready or not; without a selector, the addresses of its endpoints.
    /// The rule's ports are those of the backends, and say themselves which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
    /// A block of addresses, whatever is behind them: pods and nodes too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// The blocks of the AddressGroup of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub address_group: Option<String>,
    /// A party that needs no selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity: Option<Entity>,
    /// DNS names, in Allow rules of egress only: `api.example.com` is that name, `*.example.com` every name with one label more, and
    /// `**.example.com` every name with one or more; no wildcard matches `example.com` itself. Matches addresses that are no pod's and
    /// no node's, from when the pod is told of them by a server its rules let it ask on port 53, as long as the answer says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::fqdns")]
    pub fqdns: Option<Vec<String>>,
}

/// A party that needs no selector.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Entity {
    /// Every node.
    Node,
    /// What is behind the Service `default/kubernetes`.
    KubeApiserver,
    /// Every address that is no pod's, no node's and in no pod range.
    World,
}

/// A Service by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReference {
    /// Its namespace; absent means the policy's own. A ClusterSegmentPolicy must name it.
    // The default says to the schema as well that it may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::name")]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(schema_with = "schema::name")]
    pub name: String,
}

/// A block of addresses with holes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.except) || !isCIDR(self.cidr) || self.except.all(hole, !isCIDR(hole) || cidr(self.cidr).containsCIDR(hole))",
    "message": "except must lie inside cidr"
}]))]
pub struct Network {
    /// The block, such as `10.0.0.0/8` or `fd00::/8`.
    #[schemars(schema_with = "schema::cidr")]
    pub cidr: String,
    /// Smaller blocks taken out of it.
    // The default says to the schema as well that it may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::holes")]
    pub except: Option<Vec<String>>,
}

/// A condition on protocol and destination port, or on messages of ICMP.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(self.port) || type(self.port) != int || (self.port >= 1 && self.port <= 65535)",
     "message": "a port is a number from 1 to 65535, or the name of a container port"},
    {"rule": "!has(self.endPort) || (has(self.port) && type(self.port) == int && self.endPort >= self.port)",
     "message": "endPort is the last port of a range: set port to the first one, as a number"},
    {"rule": "self.protocol in ['ICMP', 'ICMPv6'] ? !has(self.port) : !has(self.icmpType)",
     "message": "port is for TCP, UDP and SCTP, icmpType for ICMP and ICMPv6"},
    {"rule": "!has(self.icmpCode) || has(self.icmpType)", "message": "icmpCode needs icmpType"},
]))]
pub struct SegmentPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Destination port: a number, or the name of a container port of the destination pod. Absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub port: Option<IntOrString>,
    /// Last port of a range that begins with `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub end_port: Option<i32>,
    /// Type of ICMP messages, such as 8 for an echo request (128 in ICMPv6). Absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub icmp_type: Option<i32>,
    /// Code of ICMP messages of that type. Absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub icmp_code: Option<i32>,
}

/// Protocols a rule may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
    /// SCTP.
    #[serde(rename = "SCTP")]
    Sctp,
    /// ICMP of IPv4.
    #[serde(rename = "ICMP")]
    Icmp,
    /// ICMP of IPv6.
    #[serde(rename = "ICMPv6")]
    Icmpv6,
}
