//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy: the type, with every field of the upstream one.
//!
//! Everything that the API requires (and the schema says so) may be absent here, and enumerations know an `Unknown` value: an object of a newer API must be
//! readable, because what it means then is to fail closed (see [`lower`]), and that can only be done with an object that was read.

use std::borrow::Cow;

use k8s_openapi::{
    ClusterResourceScope,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

mod lower;
mod rule;
mod schema;

pub use lower::lower;
pub(crate) use lower::lower_value;
pub use schema::crd;

/// A network policy for the whole cluster, in the tier above or below the namespaces' own policies.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNetworkPolicy {
    /// Name, uid, generation and so on.
    pub metadata: ObjectMeta,
    /// What the policy says.
    pub spec: ClusterNetworkPolicySpec,
    /// What the implementation says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ClusterNetworkPolicyStatus>,
}

impl k8s_openapi::Resource for ClusterNetworkPolicy {
    type Scope = ClusterResourceScope;
    const API_VERSION: &'static str = "policy.networking.k8s.io/v1alpha2";
    const GROUP: &'static str = "policy.networking.k8s.io";
    const KIND: &'static str = "ClusterNetworkPolicy";
    const VERSION: &'static str = "v1alpha2";
    const URL_PATH_SEGMENT: &'static str = "clusternetworkpolicies";
}

impl k8s_openapi::Metadata for ClusterNetworkPolicy {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What a ClusterNetworkPolicy says.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["tier", "priority", "subject"]))]
pub struct ClusterNetworkPolicySpec {
    /// Tier the rules are evaluated in. Admin comes before every NetworkPolicy and cannot be overridden by one; Baseline applies
    /// to pods that no NetworkPolicy selects.
    pub tier: Tier,
    /// Order within the tier, lower first. Two policies of one priority are ordered by name.
    #[schemars(range(min = 0, max = 1000))]
    pub priority: Option<i32>,
    /// The pods the policy applies to.
    pub subject: ClusterNetworkPolicySubject,
    /// Rules for what the pods receive, in order; the first that matches decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 25))]
    pub ingress: Vec<ClusterNetworkPolicyIngressRule>,
    /// Rules for what the pods send, in order; the first that matches decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 25))]
    pub egress: Vec<ClusterNetworkPolicyEgressRule>,
}

/// The tiers a ClusterNetworkPolicy can be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Tier {
    /// Before every NetworkPolicy.
    Admin,
    /// Where no NetworkPolicy selects the pod.
    Baseline,
    /// Absent, or of a newer API.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a rule does with the traffic it matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Action {
    /// Let it through; no later rule or tier is asked.
    Accept,
    /// Drop it; no later rule or tier is asked.
    Deny,
    /// Leave the decision to the next tier.
    Pass,
    /// Absent, or of a newer API.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Schema of an enumeration of words.
macro_rules! words {
    ($type:ident, $description:literal, [$($word:literal),*]) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "description": $description, "type": "string", "enum": [$($word),*] })
            }
        }
    };
}

words!(Tier, "Tier of a policy.", ["Admin", "Baseline"]);
words!(
    Action,
    "Accept, Deny, or Pass to the next tier.",
    ["Accept", "Deny", "Pass"]
);

/// The pods a policy applies to: exactly one field is set. Pods on the host network are never among them.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct ClusterNetworkPolicySubject {
    /// All pods of the namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub namespaces: Option<LabelSelector>,
    /// Pods by namespace and labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// A rule for what the pods receive.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["action", "from"]))]
pub struct ClusterNetworkPolicyIngressRule {
    /// A name for people; it is shown wherever the rule decides.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100))]
    pub name: String,
    /// What to do with matching traffic.
    pub action: Action,
    /// Sources; the rule matches if one of them does.
    #[schemars(length(min = 1, max = 25))]
    pub from: Vec<ClusterNetworkPolicyIngressPeer>,
    /// Protocols and ports; absent means all traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub protocols: Option<Vec<ClusterNetworkPolicyProtocol>>,
}

/// A rule for what the pods send.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.protocols) || !self.protocols.exists(it, has(it.destinationNamedPort)) || \
             self.to.all(it, !has(it.networks) && !has(it.nodes) && !has(it.domainNames))",
    "message": "a named port belongs to a pod: use it with namespaces and pods only"
}]))]
#[schemars(extend("required" = ["action", "to"]))]
pub struct ClusterNetworkPolicyEgressRule {
    /// A name for people; it is shown wherever the rule decides.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 100))]
    pub name: String,
    /// What to do with matching traffic.
    pub action: Action,
    /// Destinations; the rule matches if one of them does.
    #[schemars(length(min = 1, max = 25))]
    pub to: Vec<ClusterNetworkPolicyEgressPeer>,
    /// Protocols and ports; absent means all traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25))]
    pub protocols: Option<Vec<ClusterNetworkPolicyProtocol>>,
}

/// A source: exactly one field is set. One without a known field is of a newer API, and its rule fails closed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct ClusterNetworkPolicyIngressPeer {
    /// All pods of the namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub namespaces: Option<LabelSelector>,
    /// Pods by namespace and labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
}

/// A destination: exactly one field is set. One without a known field is of a newer API, and its rule fails closed.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct ClusterNetworkPolicyEgressPeer {
    /// All pods of the namespaces with these labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub namespaces: Option<LabelSelector>,
    /// Pods by namespace and labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<NamespacedPod>,
    /// Addresses of the nodes with these labels; empty selects all nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub nodes: Option<LabelSelector>,
    /// Blocks of addresses, whatever is behind them: pods and nodes too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25), inner(length(max = 43)), extend("x-kubernetes-list-type" = "set"))]
    pub networks: Option<Vec<Cidr>>,
    /// DNS names, for Accept rules only; `*.` in front stands for one or more labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 25), extend("x-kubernetes-list-type" = "set"))]
    pub domain_names: Option<Vec<DomainName>>,
}

/// A block of addresses such as `10.0.0.0/8` or `fd00::/8`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cidr(pub String);

/// A DNS name, or `*.` and a name for everything below it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomainName(pub String);

/// Pods by the labels of their namespace and their own.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["podSelector"]))]
pub struct NamespacedPod {
    /// Namespaces; absent or empty selects all.
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub namespace_selector: LabelSelector,
    /// Pods in them; empty selects all.
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
}

/// A condition on protocol and port: exactly one field is set.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct ClusterNetworkPolicyProtocol {
    /// TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<ProtocolPorts>,
    /// UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<ProtocolPorts>,
    /// SCTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sctp: Option<ProtocolPorts>,
    /// The destination pod's container port of this name, whatever its protocol.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination_named_port: String,
}

/// Ports of one protocol.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1))]
pub struct ProtocolPorts {
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<Port>,
}

/// A port or a range: exactly one field is set.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct Port {
    /// One port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub number: Option<i32>,
    /// Several ports in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PortRange>,
}

/// Ports from `start` to `end`, both included.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.end > self.start",
    "message": "end must be greater than start"
}]))]
#[schemars(extend("required" = ["start", "end"]))]
pub struct PortRange {
    /// First port.
    #[schemars(range(min = 1, max = 65535))]
    pub start: i32,
    /// Last port.
    #[schemars(range(min = 1, max = 65535))]
    pub end: i32,
}

/// What the implementation says of a policy.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["conditions"]))]
pub struct ClusterNetworkPolicyStatus {
    /// Conditions, one of each type.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// One aspect of an object's state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["type", "status", "lastTransitionTime", "reason", "message"]))]
pub struct Condition {
    /// Which aspect.
    #[schemars(length(max = 316),
        regex(pattern = schema::CONDITION_TYPE)
    )]
    pub r#type: String,
    /// True, False or Unknown.
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// Generation of the spec this was said of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// When `status` last changed, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, as one word for programs.
    #[schemars(length(min = 1, max = 1024), regex(pattern = schema::CONDITION_REASON))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 32768))]
    pub message: String,
}
