//! The chart as it was rendered when this program was built, with its open values filled in.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use serde::Deserialize as _;
use serde_json::Value;

use crate::cluster::object::Manifest;

const TEMPLATE: &str = include_str!("../../../deploy/manifests/bulkhead.yaml");
const DEFAULTS: &str = include_str!("../../../deploy/helm/bulkhead/values.yaml");
const SCHEMA: &str = include_str!("../../../deploy/helm/bulkhead/values.schema.json");
/// The one value that has a place of its own: the chart computes with it.
const REPLICAS: &str = "controller.replicas";

/// Values by their names, as `--set` writes them.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Values(BTreeMap<String, Value>);

impl Values {
    /// Those of the chart that are one string or number each.
    pub(crate) fn default_ones() -> anyhow::Result<Self> {
        let chart: Value = serde_yaml_ng::from_str(DEFAULTS).context("the chart's values")?;
        let mut values = BTreeMap::new();
        flatten(&chart, "", &mut values);
        values.retain(|name, _| name == REPLICAS || TEMPLATE.contains(&placeholder(name)));
        if let Some(tag) = values.get_mut("image.tag").filter(|tag| tag.as_str() == Some("")) {
            *tag = env!("CARGO_PKG_VERSION").into();
        }
        Ok(Self(values))
    }

    /// Takes `KEY=VALUE`.
    pub(crate) fn set_pair(&mut self, pair: &str) -> anyhow::Result<()> {
        let Some((name, value)) = pair.split_once('=') else {
            bail!("--set {pair}: not KEY=VALUE, as in --set logLevel=debug");
        };
        self.set(name, value)
    }

    /// Sets one; refused when the chart's schema refuses it.
    pub(crate) fn set(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        let Some(value) = self.0.get_mut(name) else {
            let known: Vec<&str> = self.0.keys().map(String::as_str).collect();
            bail!(
                "--set {name}: not a value that can be set here; known are {}. The Helm chart has all of them",
                known.join(", ")
            );
        };
        let schema: Value = serde_json::from_str(SCHEMA).context("the chart's schema")?;
        let fresh = if value.is_number() {
            let number: u64 = text
                .parse()
                .with_context(|| format!("--set {name}={text}: not a whole number"))?;
            number.into()
        } else {
            Value::from(text)
        };
        check(&schema, name, &fresh)?;
        *value = fresh;
        Ok(())
    }
}

/// What the schema says about one value, as far as such values are limited at all.
fn check(schema: &Value, name: &str, value: &Value) -> anyhow::Result<()> {
    let pointer = format!("/properties/{}", name.replace('.', "/properties/"));
    let mut rule = schema.pointer(&pointer);
    if let Some(reference) = rule.and_then(|rule| rule.get("$ref")).and_then(Value::as_str) {
        rule = schema.pointer(reference.trim_start_matches('#'));
    }
    let Some(rule) = rule else {
        return Ok(());
    };
    if let Some(allowed) = rule.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
        bail!("--set {name}: {value} is not one of {}", allowed.join(", "));
    }
    if let Some(number) = value.as_u64() {
        let limit = |name: &str| rule.get(name).and_then(Value::as_u64);
        let (low, high) = (limit("minimum").unwrap_or(0), limit("maximum").unwrap_or(u64::MAX));
        if number < low || number > high {
            bail!("--set {name}: {number} is not from {low} to {high}");
        }
    }
    if rule.get("minLength").is_some() && value.as_str() == Some("") {
        bail!("--set {name}: must not be empty");
    }
    if rule.get("pattern").and_then(Value::as_str) == Some("^/")
        && !value.as_str().is_some_and(|path| path.starts_with('/'))
    {
        bail!("--set {name}: {value} is not an absolute path");
    }
    Ok(())
}

fn flatten(value: &Value, prefix: &str, found: &mut BTreeMap<String, Value>) {
    let Some(object) = value.as_object() else {
        if value.is_string() || value.is_number() {
            found.insert(prefix.to_owned(), value.clone());
        }
        return;
    };
    for (name, value) in object {
        let name = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        flatten(value, &name, found);
    }
}

fn placeholder(name: &str) -> String {
    format!("__{name}__")
}

/// The objects to apply, in order.
pub(crate) fn manifests(values: &Values, namespace: &str) -> anyhow::Result<Vec<Manifest>> {
    let fill: Vec<(String, &Value)> = values
        .0
        .iter()
        .map(|(name, value)| (placeholder(name), value))
        .collect();
    let namespace = Value::from(namespace);
    let mut manifests = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(TEMPLATE) {
        let mut body = Value::deserialize(document).context("the embedded manifests")?;
        if body.is_null() {
            continue;
        }
        let all = fill.iter().map(|(name, value)| (name.as_str(), *value));
        substitute(
            &mut body,
            &all.chain([("__namespace__", &namespace)]).collect::<Vec<_>>(),
        );
        let mut manifest = Manifest::new(body)?;
        if manifest.kind == "Deployment"
            && let (Some(wanted), Some(replicas)) =
                (values.0.get(REPLICAS), manifest.body.pointer_mut("/spec/replicas"))
        {
            replicas.clone_from(wanted);
        }
        manifests.push(manifest);
    }
    // With one replica it would keep a node from being drained.
    if values.0.get(REPLICAS).and_then(Value::as_u64) == Some(1) {
        manifests.retain(|manifest| manifest.kind != "PodDisruptionBudget");
    }
    Ok(manifests)
}

/// In every string; a string that is nothing but the placeholder becomes the value itself, be it a number. Values go into strings of
/// parsed objects, so none of them can add to the YAML.
fn substitute(value: &mut Value, fill: &[(&str, &Value)]) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|value| substitute(value, fill)),
        Value::Array(items) => items.iter_mut().for_each(|value| substitute(value, fill)),
        Value::String(text) if text.contains("__") => {
            for (name, with) in fill {
                if text == name {
                    *value = (*with).clone();
                    return;
                }
                if text.contains(name) {
                    let with = with.as_str().map_or_else(|| with.to_string(), str::to_owned);
                    *text = text.replace(name, &with);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_open_value_is_filled_in_and_numbers_stay_numbers() {
        let mut values = Values::default_ones().unwrap();
        for pair in [
            "controller.port=5000",
            "image.tag=t",
            "image.repository=r",
            "controller.replicas=1",
        ] {
            values.set_pair(pair).unwrap();
        }
        let manifests = manifests(&values, "ns").unwrap();
        for manifest in &manifests {
            assert!(!manifest.body.to_string().contains("__"), "{}", manifest.body);
        }
        let find = |kind: &str, name: &str| {
            let found = manifests
                .iter()
                .find(|manifest| manifest.kind == kind && manifest.name == name);
            &found.unwrap_or_else(|| panic!("no {kind} {name}")).body
        };
        let service = find("Service", "bulkhead-controller");
        assert_eq!(service["spec"]["ports"][0]["port"], 5000);
        assert_eq!(service["metadata"]["namespace"], "ns");
        let deployment = find("Deployment", "bulkhead-controller");
        assert_eq!(deployment["spec"]["replicas"], 1);
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "r/bulkhead-controller:t");
        assert!(container["args"].to_string().contains("0.0.0.0:5000"));
        assert!(!manifests.iter().any(|manifest| manifest.kind == "PodDisruptionBudget"));
        let token = &find("DaemonSet", "bulkhead-agent")["spec"]["template"]["spec"]["volumes"];
        let modes: Vec<&Value> = token
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|it| it.pointer("/projected/defaultMode"))
            .collect();
        assert_eq!(modes, [&Value::from(0o400)], "a number, whatever reads the YAML");
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        let mut values = Values::default_ones().unwrap();
        let table = [
            ("nothing=1", "known are"),
            ("controller.port=x", "whole number"),
            ("controller.port=70000", "from 1 to 65535"),
            ("agent.startGate=ajar", "one of \"open\", \"strict\""),
            ("agent.stateDir=x", "absolute path"),
            ("logLevel", "KEY=VALUE"),
        ];
        for (pair, wanted) in table {
            let error = format!("{:#}", values.set_pair(pair).unwrap_err());
            assert!(error.contains(wanted), "{pair}: {error}");
        }
        assert_eq!(values, Values::default_ones().unwrap(), "nothing was taken over");
    }

    #[test]
    fn a_value_cannot_add_yaml() {
        let mut values = Values::default_ones().unwrap();
        values.set("logLevel", "a\nevil: true").unwrap();
        let manifests = manifests(&values, "ns").unwrap();
        assert!(manifests.iter().all(|manifest| manifest.body.get("evil").is_none()));
    }
}
