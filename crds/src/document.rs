//! One object, of a file or of an API server, to what it means: every kind to its lowering.

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::{Object, WorkloadKey},
};
use serde_json::Value;
use std::sync::Arc;

use crate::{
    address_group, cluster_network_policy,
    facts::{self, HostPod, Pod},
    network_policy,
    report::Report,
    segment_policy::{self, Kind},
};

/// Kinds of policy that this version does not read: leaving one of them out leaves something open, so it is an error.
const POLICIES_NOT_READ: &[&str] = &[
    "NetworkPolicy",
    "ClusterNetworkPolicy",
    "AdminNetworkPolicy",
    "BaselineAdminNetworkPolicy",
    "SegmentPolicy",
    "ClusterSegmentPolicy",
    "AddressGroup",
];

/// What an object means to the compiler.
#[derive(Clone, PartialEq, Debug)]
pub enum Meaning {
    /// A fact or a policy.
    Object(Box<Object>),
    /// A pod on the host network: not a workload, but people name it.
    HostPod(HostPod),
    /// A pod that has ended: it has no address any more.
    EndedPod(WorkloadKey),
    /// Legal, and nothing to the compiler (an endpoint slice of no Service).
    Nothing,
    /// It cannot be known what it means; a diagnostic of severity Error says why.
    Unreadable,
    /// This version does not read the kind.
    UnknownKind,
}

/// Lowers one object. Whatever `value` is, this gives a meaning; what is wrong with it is added to `diagnostics`, under
/// `source` (a place in a file; empty for an API server).
pub fn lower_document(
    api_version: &str,
    kind: &str,
    value: &Value,
    source: &str,
    diagnostics: &mut Vec<Diagnostic>,
) -> Meaning {
    let before = diagnostics.len();
    let mut report = Report::new(source, name_of(kind, value), diagnostics);
    let lowered = match (api_version, kind) {
        ("v1", "Namespace") => facts::lower_namespace(value, &mut report).map(Object::Namespace),
        ("v1", "Node") => facts::lower_node(value, &mut report).map(Object::Node),
        ("v1", "Service") => facts::lower_service(value, &mut report).map(Object::Service),
        ("v1", "Pod") => match facts::lower_pod(value, &mut report) {
            Some(Pod::Workload(workload)) => Some(Object::Workload(Arc::new(workload))),
            Some(Pod::Host(pod)) => return Meaning::HostPod(pod),
            Some(Pod::Ended(key)) => return Meaning::EndedPod(key),
            None => None,
        },
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            facts::lower_endpoint_slice(value, &mut report).map(Object::EndpointSlice)
        }
        ("networking.k8s.io/v1", "NetworkPolicy") => {
            network_policy::lower_value(value, &mut report).map(Object::Policy)
        }
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
            cluster_network_policy::lower_value(value, &mut report).map(Object::Policy)
        }
        ("bulkhead.dev/v1alpha1", "SegmentPolicy") => {
            segment_policy::lower_value(Kind::Namespaced, value, &mut report).map(Object::Policy)
        }
        ("bulkhead.dev/v1alpha1", "ClusterSegmentPolicy") => {
            segment_policy::lower_value(Kind::Cluster, value, &mut report).map(Object::Policy)
        }
        ("bulkhead.dev/v1alpha1", "AddressGroup") => {
            address_group::lower_value(value, &mut report).map(Object::AddressGroup)
        }
        _ if POLICIES_NOT_READ.contains(&kind) => {
            let message = format!(
                "{api_version} of {kind} is not read, so the policy is not applied; convert it to networking.k8s.io/v1 NetworkPolicy, policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy or a kind of bulkhead.dev/v1alpha1"
            );
            report.error("apiVersion", message);
            return Meaning::Unreadable;
        }
        _ => return Meaning::UnknownKind,
    };
    let said = diagnostics.get(before..).unwrap_or_default();
    match lowered {
        Some(object) => Meaning::Object(Box::new(object)),
        None if said.iter().any(|found| found.severity == Severity::Error) => Meaning::Unreadable,
        None => Meaning::Nothing,
    }
}

/// `Kind namespace/name`, as far as the object says it.
pub(crate) fn name_of(kind: &str, value: &Value) -> String {
    let word = |path| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let cluster_scoped = matches!(
        kind,
        "Namespace"
            | "Node"
            | "ClusterNetworkPolicy"
            | "AdminNetworkPolicy"
            | "BaselineAdminNetworkPolicy"
            | "ClusterSegmentPolicy"
            | "AddressGroup"
    );
    match (word("/metadata/namespace"), word("/metadata/name")) {
        (_, "") => format!("{kind} without a name"),
        (_, name) if cluster_scoped => format!("{kind} {name}"),
        ("", name) => format!("{kind} default/{name}"),
        (namespace, name) => format!("{kind} {namespace}/{name}"),
    }
}
