//! The custom resource definition of ClusterNetworkPolicy, generated from the type.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Value, json};

use super::{Cidr, ClusterNetworkPolicySpec, ClusterNetworkPolicyStatus, DomainName};

/// What the API accepts as the type of a condition.
pub(super) const CONDITION_TYPE: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";
/// What the API accepts as the reason of a condition.
pub(super) const CONDITION_REASON: &str = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$";
/// What the API accepts as a domain name (the `A-z` is upstream's).
const DOMAIN_NAME: &str =
    r"^(\*\.)?([a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$";

/// Schema of a label selector.
pub(super) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "description": "Labels with exactly these values; all must be there.",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "matchExpressions": {
                "description": "Conditions on labels; all must hold.",
                "type": "array",
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"description": "Label key.", "type": "string"},
                        "operator": {"description": "In, NotIn, Exists or DoesNotExist.", "type": "string"},
                        "values": {
                            "description": "Values for In and NotIn; empty for the others.",
                            "type": "array",
                            "x-kubernetes-list-type": "atomic",
                            "items": {"type": "string"},
                        },
                    },
                },
            },
        },
        "x-kubernetes-map-type": "atomic",
    })
}

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

/// The custom resource definition as YAML, with keys in alphabetical order.
///
/// # Errors
/// When the schema cannot be written as YAML; the types above give none that cannot.
pub fn crd_yaml() -> Result<String, serde_yaml_ng::Error> {
    let yaml = serde_yaml_ng::to_string(&crd())?;
    Ok(format!(
        "# Generated from crds/src/cluster_network_policy.rs by its test; do not edit.\n{yaml}"
    ))
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
                        "spec": schema_of::<ClusterNetworkPolicySpec>(),
                        "status": schema_of::<ClusterNetworkPolicyStatus>(),
                    },
                }},
            }],
        },
    })
}

/// The schema of a type as the API server wants it: everything in place, nothing that is not structural.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    make_structural(&mut schema);
    schema
}

/// Takes out what the generator adds for Rust's sake: titles, defaults (the type's, not the API's) and `nullable` (an optional
/// field is absent, not null).
fn make_structural(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let is_schema = map.contains_key("type");
            if is_schema {
                for key in ["$schema", "title", "default", "nullable"] {
                    map.remove(key);
                }
            }
            map.values_mut().for_each(make_structural);
        }
        Value::Array(list) => list.iter_mut().for_each(make_structural),
        _ => {}
    }
}
