//! What the generated custom resource definitions share: pieces of schema, the rules of several types, the way to a structural
//! schema, and the list of all definitions.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::Value;

use crate::{
    address_group::AddressGroup,
    cluster_network_policy,
    segment_policy::{ClusterSegmentPolicy, SegmentPolicy},
};

pub(crate) const SOME_DIRECTION: &str = "has(self.ingress) || has(self.egress)";
pub(crate) const SOME_DIRECTION_MESSAGE: &str =
    "set ingress, egress or both; an empty list denies everything in its direction";
pub(crate) const NO_PASS: &str = "(!has(self.ingress) || self.ingress.all(rule, rule.action != 'Pass')) && \
     (!has(self.egress) || self.egress.all(rule, rule.action != 'Pass'))";
pub(crate) const PASS_ONLY_IN_ADMIN: &str = "(has(self.tier) && self.tier == 'Admin') || \
     ((!has(self.ingress) || self.ingress.all(rule, rule.action != 'Pass')) && \
      (!has(self.egress) || self.egress.all(rule, rule.action != 'Pass')))";
pub(crate) const ONE_KIND_OF_PEER: &str = "[has(self.namespaceSelector) || has(self.podSelector) || \
     has(self.serviceAccounts), has(self.service), has(self.network), has(self.addressGroup), has(self.entity), \
     has(self.fqdns)]\
     .filter(kind, kind).size() == 1";
pub(crate) const ONE_KIND_OF_PEER_MESSAGE: &str = "a peer is pods (namespaceSelector, podSelector, serviceAccounts), or one of \
     service, network, addressGroup, entity and fqdns";

pub(crate) const PODS_OR_NODES: &str =
    "!has(self.nodeSelector) || !(has(self.namespaceSelector) || has(self.podSelector) || has(self.serviceAccounts))";
pub(crate) const PODS_OR_NODES_MESSAGE: &str =
    "a policy is for nodes (nodeSelector) or for pods (namespaceSelector, podSelector, serviceAccounts)";

/// A custom resource definition, and the name of its file.
#[derive(Clone, Debug)]
pub struct Definition {
    /// Name of the definition: `<plural>.<group>`.
    pub name: &'static str,
    /// Name of its file under `crds/yaml`.
    pub file: &'static str,
    /// Kind it defines.
    pub kind: &'static str,
    /// The definition.
    pub value: Value,
}

impl Definition {
    /// Its file's text, with keys in alphabetical order.
    ///
    /// # Errors
    /// When it cannot be written as YAML; there is none that cannot.
    pub fn yaml(&self) -> Result<String, serde_yaml_ng::Error> {
        let yaml = serde_yaml_ng::to_string(&self.value)?;
        Ok(format!(
            "# Generated from the types in crds/src by their test; do not edit.\n{yaml}"
        ))
    }
}

/// All definitions: upstream's first, then ours.
pub fn definitions() -> Vec<Definition> {
    vec![
        Definition {
            name: "clusternetworkpolicies.policy.networking.k8s.io",
            file: "policy.networking.k8s.io_clusternetworkpolicies.yaml",
            kind: "ClusterNetworkPolicy",
            value: cluster_network_policy::crd(),
        },
        ours::<SegmentPolicy>(
            "segmentpolicies.bulkhead.dev",
            "bulkhead.dev_segmentpolicies.yaml",
            "SegmentPolicy",
        ),
        ours::<ClusterSegmentPolicy>(
            "clustersegmentpolicies.bulkhead.dev",
            "bulkhead.dev_clustersegmentpolicies.yaml",
            "ClusterSegmentPolicy",
        ),
        ours::<AddressGroup>(
            "addressgroups.bulkhead.dev",
            "bulkhead.dev_addressgroups.yaml",
            "AddressGroup",
        ),
    ]
}

fn ours<K: CustomResourceExt>(name: &'static str, file: &'static str, kind: &'static str) -> Definition {
    let definition: CustomResourceDefinition = K::crd();
    // Our own types are always written as JSON.
    let mut value = serde_json::to_value(definition).unwrap_or_default();
    for version in value
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            make_structural(schema, Defaults::Words);
            // The API server knows metadata.
            if let Some(required) = schema.get_mut("required") {
                *required = Value::from(["spec"].map(str::to_owned).to_vec());
            }
        }
    }
    Definition {
        name,
        file,
        kind,
        value,
    }
}

/// Which defaults stay in a schema.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defaults {
    /// None: the generator's are Rust's.
    None,
    /// Those of enumerations: they are the API's as well.
    Words,
}

/// The schema of a type as the API server wants it: everything in place, nothing that is not structural.
pub(crate) fn schema_of<T: JsonSchema>(defaults: Defaults) -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    make_structural(&mut schema, defaults);
    schema
}

/// Takes out what the generator adds for Rust's sake: titles, defaults (but for those asked for), formats and `nullable` (an
/// optional field is absent, not null).
pub(crate) fn make_structural(schema: &mut Value, defaults: Defaults) {
    match schema {
        Value::Object(map) => {
            let is_schema = map.contains_key("type") || map.contains_key("x-kubernetes-int-or-string");
            if is_schema {
                for key in ["$schema", "title", "nullable"] {
                    map.remove(key);
                }
                let kept = defaults == Defaults::Words
                    && map.contains_key("enum")
                    && map
                        .get("default")
                        .and_then(Value::as_str)
                        .is_some_and(|word| !word.is_empty());
                if !kept {
                    map.remove("default");
                }
            }
            map.values_mut().for_each(|value| make_structural(value, defaults));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| make_structural(value, defaults)),
        _ => {}
    }
}

/// Schema of a label selector.
pub(crate) fn label_selector(_: &mut SchemaGenerator) -> Schema {
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

/// Schema of the name of an object.
pub(crate) fn name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"})
}

/// Names are for what pods open, and for Allow rules only: a name somebody has not asked for is not known.
pub(crate) const NO_FQDNS: &str = "!has(self.from) || !self.from.exists(peer, has(peer.fqdns))";
pub(crate) const NO_FQDNS_MESSAGE: &str = "fqdns are for egress rules only";
pub(crate) const FQDNS_ALLOW: &str =
    "!has(self.to) || !self.to.exists(peer, has(peer.fqdns)) || !has(self.action) || self.action == 'Allow'";
pub(crate) const FQDNS_ALLOW_MESSAGE: &str =
    "fqdns are for Allow rules only: whoever asks another server would not be denied";

/// A lapsed lease must take away, never open: so leases guard what is allowed. A rule has one condition.
pub(crate) const TRUST_ALLOW: &str = "!has(self.trust) || !has(self.action) || self.action == 'Allow'";
pub(crate) const TRUST_ALLOW_MESSAGE: &str =
    "trust is for Allow rules only: what a Deny rule denies would be open when its lease ends";
pub(crate) const TRUST_OR_FQDNS: &str = "!has(self.trust) || !has(self.to) || !self.to.exists(peer, has(peer.fqdns))";
pub(crate) const TRUST_OR_FQDNS_MESSAGE: &str = "trust and fqdns are conditions of one rule each: make two rules";

/// Schema of the name of a trust profile.
pub(crate) fn profile(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
}

/// Schema of a list of DNS names and wildcards.
pub(crate) fn fqdns(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 100, "x-kubernetes-list-type": "set", "items": {
        "type": "string", "minLength": 1, "maxLength": 253,
        "pattern": r"^(\*\*?\.)?([A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?$",
    }})
}

/// Schema of a list of names.
pub(crate) fn names(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "maxItems": 25, "x-kubernetes-list-type": "set", "items": name(generator)})
}

/// Schema of a block of addresses.
pub(crate) fn cidr(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 43,
        "x-kubernetes-validations": [{
            "rule": "isCIDR(self)",
            "message": "not a block of addresses such as 10.0.0.0/8 or fd00::/8",
        }],
    })
}

/// Schema of the holes of a block.
pub(crate) fn holes(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 25, "x-kubernetes-list-type": "set", "items": cidr(generator)})
}

/// Schema of a port, by number or name. Its limits are a rule of the object around it: one written here costs, in the API server's
/// estimate, as much as the longest string a request can have, and the definition is refused.
pub(crate) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true})
}
