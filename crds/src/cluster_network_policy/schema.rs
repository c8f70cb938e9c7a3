//! The custom resource definition of ClusterNetworkPolicy, generated from the type.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{Cidr, ClusterNetworkPolicySpec, ClusterNetworkPolicyStatus, DomainName};
use crate::schema::{Defaults, schema_of};

/// What the API accepts as the type of a condition.
pub(super) const CONDITION_TYPE: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";
/// What the API accepts as the reason of a condition.
pub(super) const CONDITION_REASON: &str = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$";
/// What the API accepts as a domain name (the `A-z` is upstream's).
const DOMAIN_NAME: &str =
    r"^(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$";

impl JsonSchema for Cidr {
    fn schema_name() -> Cow<'static, str> {
        "Cidr".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 43,
            "x-kubernetes-validations": [{
                "rule": "isCIDR(self)",
                "message": "not a block of addresses such as 10.0.0.0/8 or fd00::/8",
            }],
        })
    }
}

impl JsonSchema for DomainName {
    fn schema_name() -> Cow<'static, str> {
        "DomainName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": DOMAIN_NAME })
    }
}

/// The custom resource definition.
pub fn crd() -> Value {
    let printed = |name, kind, path| json!({"name": name, "type": kind, "jsonPath": path});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "clusternetworkpolicies.policy.networking.k8s.io",
            // Groups under k8s.io need it; the API server refuses the definition without.
            "annotations": {
                "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/347",
                "policy.networking.k8s.io/bundle-version": "v0.2.0",
                "policy.networking.k8s.io/channel": "experimental",
            },
            // Says that it came with us, however it was installed: uninstalling takes it away again, and leaves another's alone.
            "labels": {"app.kubernetes.io/part-of": "bulkhead"},
        },
        "spec": {
            "group": "policy.networking.k8s.io",
            "names": {
                "kind": "ClusterNetworkPolicy",
                "listKind": "ClusterNetworkPolicyList",
                "plural": "clusternetworkpolicies",
                "shortNames": ["cnp"],
                "singular": "clusternetworkpolicy",
            },
            "scope": "Cluster",
            "versions": [{
                "name": "v1alpha2",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    printed("Tier", "string", ".spec.tier"),
                    printed("Priority", "string", ".spec.priority"),
                    printed("Age", "date", ".metadata.creationTimestamp"),
                ],
                "schema": {"openAPIV3Schema": {
                    "description": "A network policy for the whole cluster.",
                    "type": "object",
                    "required": ["metadata", "spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": schema_of::<ClusterNetworkPolicySpec>(Defaults::None),
                        "status": schema_of::<ClusterNetworkPolicyStatus>(Defaults::None),
                    },
                }},
            }],
        },
    })
}
