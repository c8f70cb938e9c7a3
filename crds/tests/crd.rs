//! The generated custom resource definition is up to date, and has the fields upstream's has.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use bulkhead_crds::{Definition, definitions};
use expect_test::expect_file;
use serde_json::Value;

/// What a line of the field list says beside path and type, in its order.
const DEMANDS: &[&str] = &[
    "format",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "pattern",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
];

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn words(list: &Value) -> String {
    list.as_array().unwrap().iter().map(word).collect::<Vec<_>>().join("|")
}

fn fields(path: &str, schema: &Value, required: bool, found: &mut Vec<String>) {
    let mut line = vec![
        if path.is_empty() { "." } else { path }.to_owned(),
        word(&schema["type"]),
    ];
    if required {
        line.push("required".to_owned());
    }
    line.extend(
        DEMANDS
            .iter()
            .filter_map(|key| Some(format!("{key}={}", word(schema.get(*key)?)))),
    );
    if let Some(list) = schema.get("enum") {
        line.push(format!("enum={}", words(list)));
    }
    if let Some(list) = schema.get("x-kubernetes-list-map-keys") {
        line.push(format!("x-kubernetes-list-map-keys={}", words(list)));
    }
    if let Some(list) = schema.get("x-kubernetes-validations") {
        line.push(format!("validations={}", list.as_array().unwrap().len()));
    }
    found.push(line.join(" "));
    let required = schema
        .get("required")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    for (name, property) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let path = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        fields(&path, property, required.iter().any(|it| it == name), found);
    }
    if let Some(items) = schema.get("items") {
        fields(&format!("{path}[]"), items, false, found);
    }
    if let Some(values) = schema.get("additionalProperties") {
        fields(&format!("{path}{{}}"), values, false, found);
    }
}

fn upstream() -> Definition {
    let mut all = definitions().into_iter();
    all.find(|definition| definition.kind == "ClusterNetworkPolicy")
        .unwrap()
}

#[test]
fn the_yaml_is_up_to_date() {
    let committed = [
        expect_file!["../yaml/policy.networking.k8s.io_clusternetworkpolicies.yaml"],
        expect_file!["../yaml/bulkhead.dev_segmentpolicies.yaml"],
        expect_file!["../yaml/bulkhead.dev_clustersegmentpolicies.yaml"],
        expect_file!["../yaml/bulkhead.dev_addressgroups.yaml"],
    ];
    let all = definitions();
    assert_eq!(all.len(), committed.len());
    for (definition, committed) in all.iter().zip(committed) {
        committed.assert_eq(&definition.yaml().unwrap());
    }
    // The chart installs the same text: upstream's only where there is none (its folder crds), ours with every upgrade.
    for definition in all {
        let folder = if definition.name.ends_with(".bulkhead.dev") {
            "files/crds"
        } else {
            "crds"
        };
        let path = format!("../../deploy/helm/bulkhead/{folder}/{}", definition.file);
        expect_test::ExpectFile {
            path: path.into(),
            position: file!(),
        }
        .assert_eq(&definition.yaml().unwrap());
    }
}

#[test]
fn every_field_and_demand_of_upstream_is_there_and_no_other() {
    let definition = upstream().value;
    let version = &definition["spec"]["versions"][0];
    let mut ours = Vec::new();
    fields("", &version["schema"]["openAPIV3Schema"], false, &mut ours);
    ours.sort();
    let theirs: Vec<&str> = include_str!("data/clusternetworkpolicy-v1alpha2.fields")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert!(
        theirs.len() > 100,
        "the list of upstream's fields is cut: {} lines",
        theirs.len()
    );
    let missing: Vec<_> = theirs
        .iter()
        .filter(|line| !ours.iter().any(|our| our == *line))
        .collect();
    let extra: Vec<_> = ours.iter().filter(|line| !theirs.contains(&line.as_str())).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "missing: {missing:#?}\nextra: {extra:#?}"
    );
}

/// A structural schema says the type of every node and has none of the keywords the API server refuses in one.
#[test]
fn the_schema_is_structural() {
    fn check(path: &str, schema: &Value) {
        let map = schema
            .as_object()
            .unwrap_or_else(|| panic!("{path}: not a schema: {schema}"));
        assert!(map.contains_key("type"), "{path}: no type: {schema}");
        for refused in [
            "$ref",
            "$schema",
            "definitions",
            "oneOf",
            "anyOf",
            "allOf",
            "nullable",
            "default",
            "title",
        ] {
            assert!(!map.contains_key(refused), "{path}: {refused}");
        }
        for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            check(&format!("{path}.{name}"), property);
        }
        for part in ["items", "additionalProperties"] {
            if let Some(schema) = map.get(part) {
                check(&format!("{path}.{part}"), schema);
            }
        }
    }
    check(
        "",
        &upstream().value["spec"]["versions"][0]["schema"]["openAPIV3Schema"],
    );
}
