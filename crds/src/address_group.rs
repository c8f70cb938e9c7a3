//! `bulkhead.dev/v1alpha1` AddressGroup: blocks of addresses under a name, for our policies to refer to.
//!
//! A block that cannot be read is left out, and the group is *incomplete*: what an Allow rule that names it does not match is
//! what could not be read, and a Deny rule matches everybody.

use bulkhead_policy::model;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{cidr, report::Report, schema};

/// Blocks one group may have.
const BLOCKS_MAX: usize = 1_000;

/// What an AddressGroup is.
#[derive(CustomResource, Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "bulkhead.dev",
    version = "v1alpha1",
    kind = "AddressGroup",
    plural = "addressgroups",
    shortname = "addrgrp",
    category = "bulkhead",
    doc = "Blocks of addresses under a name, for SegmentPolicies and ClusterSegmentPolicies to refer to.",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Networks","type":"string","jsonPath":".spec.networks"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    crates(kube_core = "::kube_core")
)]
#[serde(rename_all = "camelCase")]
pub struct AddressGroupSpec {
    /// Blocks such as `10.0.0.0/8` or `fd00::/8`; an empty list is nobody.
    #[schemars(schema_with = "networks")]
    pub networks: Vec<String>,
}

fn networks(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "maxItems": BLOCKS_MAX, "x-kubernetes-list-type": "set", "items": schema::cidr(generator)
    })
}

/// Reads and lowers an AddressGroup from a tree of values; `None` when it has no name.
pub(crate) fn lower_value(value: &Value, report: &mut Report<'_>) -> Option<model::AddressGroup> {
    let name = value
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if name.is_empty() {
        report.error(
            "metadata.name",
            "is missing, so nothing can refer to the group; give it a name",
        );
        return None;
    }
    let mut group = model::AddressGroup {
        name: name.to_owned(),
        blocks: std::collections::BTreeSet::new(),
        complete: true,
    };
    for field in value
        .get("spec")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
    {
        if field != "networks" {
            report.error(
                format!("spec.{field}"),
                "is no field of an AddressGroup; check its spelling",
            );
            group.complete = false;
        }
    }
    let Some(blocks) = value.pointer("/spec/networks").and_then(Value::as_array) else {
        report.error(
            "spec.networks",
            "is missing or no list; write each block with a leading '-'",
        );
        group.complete = false;
        return Some(group);
    };
    if blocks.len() > BLOCKS_MAX {
        let message = format!(
            "has {} blocks and the API server allows {BLOCKS_MAX}; make two groups of it",
            blocks.len()
        );
        report.warning("spec.networks", message);
    }
    for (index, block) in blocks.iter().enumerate() {
        let field = format!("spec.networks[{index}]");
        let read = block
            .as_str()
            .ok_or_else(|| format!("is {block}, which is no text"))
            .and_then(|text| cidr::parse(text, &field, report));
        match read {
            Ok(block) => drop(group.blocks.insert(block)),
            Err(problem) => {
                report.error(
                    field,
                    format!("{problem}; it is left out, and Deny rules that name the group deny everybody"),
                );
                group.complete = false;
            }
        }
    }
    Some(group)
}
