//! ClusterNetworkPolicy to a policy of the Admin or Baseline tier, failing closed on what cannot be read.
//!
//! Upstream's words on a peer without a known field are taken for every part of a rule, because the reasons are the same:
//!
//! | what cannot be read | what the rule or policy becomes |
//! |---|---|
//! | a peer, protocol or port of an Accept rule | the rule matches no traffic |
//! | a peer, protocol or port of a Deny or Pass rule | the rule denies everything in its direction |
//! | an action | a Deny of what the rule matches |
//! | tier, priority, or a part of the subject | the policy is *restricted*: its Accept rules match nothing, its Pass rules deny, its Deny rules stay; an unknown tier is Admin, an unreadable requirement of the subject is left out (so the subject is every pod that the rest selects) |
//! | `domainNames`, which is not enforced yet | as a peer that cannot be read |

use bulkhead_policy::model::{
    Direction, LabelSelector, Match, Mode, NamespaceMatch, PodMatch, Policy, PolicyKey, PolicyKind, Tier as PolicyTier,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as KubernetesSelector, ObjectMeta};
use serde_json::{Value, json};

use super::{
    ClusterNetworkPolicy, ClusterNetworkPolicyEgressRule, ClusterNetworkPolicyIngressRule, ClusterNetworkPolicySpec,
    ClusterNetworkPolicySubject, NamespacedPod, Tier, rule,
};
use crate::{
    manner,
    read::{Misfit, Unknown, join, read},
    report::Report,
    selector,
};

/// Priorities the API knows.
const PRIORITIES: std::ops::RangeInclusive<i32> = 0..=1000;

/// Lowers a ClusterNetworkPolicy of an API server.
pub fn lower(policy: &ClusterNetworkPolicy, report: &mut Report<'_>) -> Option<Policy> {
    lower_known(policy, &Unknown::default(), report)
}

/// Reads and lowers a ClusterNetworkPolicy from a tree of values; `None` when the object is no policy at all.
pub(crate) fn lower_value(value: &Value, report: &mut Report<'_>) -> Option<Policy> {
    match read::<ClusterNetworkPolicy>(value) {
        Ok((policy, unknown)) => lower_known(&policy, &unknown, report),
        Err(misfit) => {
            let salvaged = salvage(value, &misfit, report)?;
            match read::<ClusterNetworkPolicy>(&salvaged) {
                Ok((policy, unknown)) => lower_known(&policy, &unknown, report),
                Err(misfit) => {
                    not_applied(&misfit, report);
                    None
                }
            }
        }
    }
}

fn not_applied(misfit: &Misfit, report: &mut Report<'_>) {
    report.error(
        misfit.field.clone(),
        format!("{}, so the policy is not applied; correct the field", misfit.message),
    );
}

fn lower_known(policy: &ClusterNetworkPolicy, unknown: &Unknown, report: &mut Report<'_>) -> Option<Policy> {
    let Some(name) = policy.metadata.name.clone().filter(|name| !name.is_empty()) else {
        report.error(
            "metadata.name",
            "is missing, so the policy is not applied; give it a name",
        );
        return None;
    };
    let spec = &policy.spec;
    let manner = manner::of(policy.metadata.annotations.as_ref(), report);
    let Head {
        tier,
        priority,
        subject,
        restricted,
    } = head(spec, unknown, report);
    let ingress = spec.ingress.iter().map(rule::View::from);
    let ingress = rule::lower(ingress, Direction::Ingress, restricted, unknown, report);
    let egress = spec.egress.iter().map(rule::View::from);
    let egress = rule::lower(egress, Direction::Egress, restricted, unknown, report);
    for (field, length) in [("spec.ingress", spec.ingress.len()), ("spec.egress", spec.egress.len())] {
        if length > rule::MAX_ITEMS {
            let message = format!(
                "has {length} rules and the API server allows {}; make two policies of it",
                rule::MAX_ITEMS
            );
            report.warning(field, message);
        }
    }
    Some(Policy {
        key: PolicyKey {
            kind: PolicyKind::ClusterNetworkPolicy,
            namespace: String::new(),
            name,
        },
        uid: policy.metadata.uid.clone().unwrap_or_default(),
        generation: policy.metadata.generation.unwrap_or_default(),
        tier,
        priority,
        subject: vec![subject],
        nodes: Vec::new(),
        isolates: std::collections::BTreeSet::new(),
        mode: Mode::Enforce,
        manner,
        ingress,
        egress,
    })
}

/// What a policy says before its rules.
struct Head {
    tier: PolicyTier,
    priority: u32,
    subject: PodMatch,
    /// A part of it could not be read, so the policy only denies.
    restricted: bool,
}

fn head(spec: &ClusterNetworkPolicySpec, unknown: &Unknown, report: &mut Report<'_>) -> Head {
    for field in unknown.directly_in("spec") {
        report.error(
            field,
            "is no field of a ClusterNetworkPolicy and is left out; check its spelling",
        );
    }
    let subject = subject(&spec.subject, unknown, report);
    let mut restricted = !subject.exact;
    let tier = match spec.tier {
        Tier::Admin => PolicyTier::Admin,
        Tier::Baseline => PolicyTier::Baseline,
        Tier::Unknown => {
            report.error("spec.tier", "is neither Admin nor Baseline; write one of them");
            restricted = true;
            PolicyTier::Admin
        }
    };
    let priority = spec
        .priority
        .filter(|priority| PRIORITIES.contains(priority))
        .unwrap_or_else(|| {
            let found = spec
                .priority
                .map_or("missing".to_owned(), |priority| priority.to_string());
            report.error("spec.priority", format!("is {found}; write a number from 0 to 1000"));
            restricted = true;
            0
        });
    if restricted {
        report.error(
            "spec",
            "cannot be read whole, so the policy only denies: its Accept rules match nothing and its Pass rules deny; correct the fields named above",
        );
    }
    Head {
        tier,
        priority: u32::try_from(priority).unwrap_or_default(),
        subject: subject.pods,
        restricted,
    }
}

/// Pods of a selector; not exact when it selects more than it should because a part could not be read.
pub(super) struct Pods {
    pub(super) pods: PodMatch,
    pub(super) exact: bool,
}

fn subject(subject: &ClusterNetworkPolicySubject, unknown: &Unknown, report: &mut Report<'_>) -> Pods {
    let path = "spec.subject";
    for field in unknown.directly_in(path) {
        report.error(field, "is no subject this version knows; use namespaces or pods");
    }
    let known = unknown.directly_in(path).next().is_none();
    match (&subject.namespaces, &subject.pods) {
        (Some(namespaces), None) if known => {
            namespaces_match(namespaces, &format!("{path}.namespaces"), unknown, report)
        }
        (None, Some(pods)) if known => pods_match(pods, &format!("{path}.pods"), unknown, report),
        _ => {
            report.error(
                path,
                "must have exactly one of namespaces and pods; until then it stands for every pod",
            );
            let every = NamespaceMatch::Labels(LabelSelector::default());
            Pods {
                pods: PodMatch {
                    namespaces: every,
                    pods: LabelSelector::default(),
                    service_accounts: Match::Any,
                },
                exact: false,
            }
        }
    }
}

/// All pods of namespaces with these labels.
pub(super) fn namespaces_match(
    namespaces: &KubernetesSelector,
    path: &str,
    unknown: &Unknown,
    report: &mut Report<'_>,
) -> Pods {
    let lowered = selector::lower(namespaces, path, unknown, report);
    let pods = PodMatch {
        namespaces: NamespaceMatch::Labels(lowered.selector),
        pods: LabelSelector::default(),
        service_accounts: Match::Any,
    };
    Pods {
        pods,
        exact: lowered.exact,
    }
}

/// Pods by the labels of their namespace and their own.
pub(super) fn pods_match(pods: &NamespacedPod, path: &str, unknown: &Unknown, report: &mut Report<'_>) -> Pods {
    let mut exact = true;
    for field in unknown.directly_in(path) {
        report.error(
            field,
            "is no field of a pod selection; use namespaceSelector and podSelector",
        );
        exact = false;
    }
    let namespaces = selector::lower(
        &pods.namespace_selector,
        &format!("{path}.namespaceSelector"),
        unknown,
        report,
    );
    let field = format!("{path}.podSelector");
    let own = if let Some(own) = &pods.pod_selector {
        selector::lower(own, &field, unknown, report)
    } else {
        report.error(field, "is missing; write {} for all pods of the namespaces");
        selector::Lowered {
            selector: LabelSelector::default(),
            exact: false,
        }
    };
    Pods {
        exact: exact && namespaces.exact && own.exact,
        pods: PodMatch {
            namespaces: NamespaceMatch::Labels(namespaces.selector),
            pods: own.selector,
            service_accounts: Match::Any,
        },
    }
}

/// Replaces what does not fit its type by something that is read as "not known", so that failing closed stays with the part it
/// concerns.
fn salvage(value: &Value, whole: &Misfit, report: &mut Report<'_>) -> Option<Value> {
    let mut policy = value.clone();
    let metadata_fits = read::<ObjectMeta>(policy.get("metadata").unwrap_or(&Value::Null)).is_ok();
    let Some(spec) = policy
        .get_mut("spec")
        .and_then(Value::as_object_mut)
        .filter(|_| metadata_fits)
    else {
        not_applied(whole, report);
        return None;
    };
    for (field, fits) in [
        (
            "tier",
            read::<Option<String>> as fn(&Value) -> Result<(Option<String>, Unknown), Misfit>,
        ),
        ("priority", |value| {
            read::<Option<i32>>(value).map(|(_, unknown)| (None, unknown))
        }),
        ("subject", |value| {
            read::<ClusterNetworkPolicySubject>(value).map(|(_, unknown)| (None, unknown))
        }),
    ] {
        if let Some(Err(misfit)) = spec.get(field).map(fits) {
            report.error(
                join(&format!("spec.{field}"), &misfit.field),
                format!("{}; correct the field", misfit.message),
            );
            spec.remove(field);
        }
    }
    for direction in ["ingress", "egress"] {
        let Some(rules) = spec.get_mut(direction) else { continue };
        let path = format!("spec.{direction}");
        if rules.is_null() {
            *rules = json!([]);
        }
        let Some(list) = rules.as_array_mut() else {
            report.error(
                path,
                "is not a list, so it denies everything; write each rule with a leading '-'",
            );
            *rules = json!([{"action": "Deny"}]);
            continue;
        };
        for (index, rule) in list.iter_mut().enumerate() {
            if let Err(misfit) = fits(direction, rule) {
                report.error(
                    join(&format!("{path}[{index}]"), &misfit.field),
                    format!("{}; correct the field", misfit.message),
                );
                // Without peers a rule cannot be read, whatever else it says; its action says what failing closed means.
                *rule = json!({"action": rule.get("action").and_then(Value::as_str).unwrap_or("Deny"),
                               "name": rule.get("name").and_then(Value::as_str).unwrap_or_default()});
            }
        }
    }
    if let Some(object) = policy.as_object_mut() {
        object.remove("status");
    }
    Some(policy)
}

fn fits(direction: &str, rule: &Value) -> Result<(), Misfit> {
    match direction {
        "ingress" => read::<ClusterNetworkPolicyIngressRule>(rule).map(|_| ()),
        _ => read::<ClusterNetworkPolicyEgressRule>(rule).map(|_| ()),
    }
}
