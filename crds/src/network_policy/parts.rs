//! A NetworkPolicy taken apart, so that one rule of a wrong shape does not take the whole policy out of force.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    read::{Misfit, Unknown, join, read},
    report::Report,
};

/// A NetworkPolicy as far as it could be read.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) metadata: ObjectMeta,
    /// `Err` = it could not be read.
    pub(super) selector: Result<Option<LabelSelector>, ()>,
    pub(super) types: Option<Vec<String>>,
    /// `None` in the place of a rule that could not be read: it allows nothing, and the others keep their numbers.
    pub(super) ingress: Option<Vec<Option<RuleParts>>>,
    pub(super) egress: Option<Vec<Option<RuleParts>>>,
}

/// A rule of either direction.
#[derive(Debug)]
pub(super) struct RuleParts {
    pub(super) peers: Vec<NetworkPolicyPeer>,
    pub(super) ports: Vec<NetworkPolicyPort>,
}

impl From<NetworkPolicyIngressRule> for RuleParts {
    fn from(rule: NetworkPolicyIngressRule) -> Self {
        Self {
            peers: rule.from.unwrap_or_default(),
            ports: rule.ports.unwrap_or_default(),
        }
    }
}

impl From<NetworkPolicyEgressRule> for RuleParts {
    fn from(rule: NetworkPolicyEgressRule) -> Self {
        Self {
            peers: rule.to.unwrap_or_default(),
            ports: rule.ports.unwrap_or_default(),
        }
    }
}

impl Parts {
    /// The parts of a policy that was read whole.
    pub(super) fn of(policy: NetworkPolicy) -> Self {
        let spec = policy.spec.unwrap_or_default();
        Self {
            metadata: policy.metadata,
            selector: Ok(spec.pod_selector),
            types: spec.policy_types,
            ingress: spec
                .ingress
                .map(|rules| rules.into_iter().map(|rule| Some(rule.into())).collect()),
            egress: spec
                .egress
                .map(|rules| rules.into_iter().map(|rule| Some(rule.into())).collect()),
        }
    }
}

/// Reads what can be read of a policy that does not fit its type; `None` when it cannot be known what it would select.
pub(super) fn salvage(value: &Value, whole: Misfit, report: &mut Report<'_>) -> Option<(Parts, Unknown)> {
    let metadata = read::<ObjectMeta>(value.get("metadata").unwrap_or(&Value::Null));
    let (Some(spec), Ok((metadata, _))) = (value.get("spec").and_then(Value::as_object), metadata) else {
        report.error(
            whole.field,
            format!("{}, so the policy is not applied; correct the field", whole.message),
        );
        return None;
    };
    let at = |name: &str| spec.get(name).unwrap_or(&Value::Null);
    let mut unknown = Unknown::default();
    let selector = match read::<Option<LabelSelector>>(at("podSelector")) {
        Ok((selector, fields)) => {
            unknown.add_part("spec.podSelector", fields);
            Ok(selector)
        }
        Err(misfit) => {
            report.error(
                join("spec.podSelector", &misfit.field),
                format!("{}; correct the field", misfit.message),
            );
            Err(())
        }
    };
    let types = match read::<Option<Vec<String>>>(at("policyTypes")) {
        Ok((types, _)) => types,
        Err(misfit) => {
            let message = format!(
                "{}, so both directions are isolated; write a list of Ingress and Egress",
                misfit.message
            );
            report.error(join("spec.policyTypes", &misfit.field), message);
            Some(vec!["Ingress".to_owned(), "Egress".to_owned()])
        }
    };
    let ingress = rules::<NetworkPolicyIngressRule>(at("ingress"), "spec.ingress", &mut unknown, report);
    let egress = rules::<NetworkPolicyEgressRule>(at("egress"), "spec.egress", &mut unknown, report);
    Some((
        Parts {
            metadata,
            selector,
            types,
            ingress,
            egress,
        },
        unknown,
    ))
}

fn rules<T: DeserializeOwned + Into<RuleParts>>(
    value: &Value,
    path: &str,
    unknown: &mut Unknown,
    report: &mut Report<'_>,
) -> Option<Vec<Option<RuleParts>>> {
    match value {
        Value::Null => None,
        Value::Array(rules) => {
            let read_one = |(index, rule): (usize, &Value)| {
                let path = format!("{path}[{index}]");
                match read::<T>(rule) {
                    Ok((rule, fields)) => {
                        unknown.add_part(&path, fields);
                        Some(rule.into())
                    }
                    Err(misfit) => {
                        let message = format!("{}, so the rule allows nothing; correct the field", misfit.message);
                        report.error(join(&path, &misfit.field), message);
                        None
                    }
                }
            };
            Some(rules.iter().enumerate().map(read_one).collect())
        }
        _ => {
            report.error(
                path,
                "is not a list, so nothing is allowed; write each rule with a leading '-'",
            );
            Some(vec![None])
        }
    }
}
