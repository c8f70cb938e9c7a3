//! SegmentPolicy and ClusterSegmentPolicy to a policy, failing closed on what cannot be read.
//!
//! Every part is read on its own, so that what cannot be read concerns the part it is in:
//!
//! | what cannot be read | what the rule or policy becomes |
//! |---|---|
//! | a peer or port of an Allow rule | that peer or port matches nothing |
//! | a peer or port of a Deny or Pass rule | the rule denies every peer, or every port |
//! | an action | a Deny of what the rule matches |
//! | `deny`, `onChange` | `Drop`, `Reevaluate` |
//! | a rule's mode, or a field nobody knows | an Allow rule matches nothing, a Pass rule denies, a Deny rule is enforced |
//! | tier, priority, mode, a part of the subject, or a field of `spec` nobody knows | the policy is *restricted*: its Allow rules match nothing, its Pass rules deny, its Deny rules stay; it is enforced; an unreadable tier is Admin; an unreadable requirement of the subject is left out (so the subject is every pod that the rest selects) |

use std::collections::BTreeSet;

use bulkhead_policy::model::{
    self, Answer, Direction, LabelSelector, Manner, Match, NamespaceMatch, PodMatch, Policy, PolicyKey, PolicyKind,
    Rule, Tier as PolicyTier,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as KubernetesSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ClusterSegmentSubject, Denial, Mode, OnChange, Tier};
use crate::{
    read::{Unknown, join, read, read_part},
    report::Report,
    selector,
};

/// Priorities the API knows.
const PRIORITIES: std::ops::RangeInclusive<i32> = 0..=1000;
/// How many rules the API allows in one direction.
const RULES_MAX: usize = 50;

/// One of the two kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `SegmentPolicy`.
    Namespaced,
    /// `ClusterSegmentPolicy`.
    Cluster,
}

impl Kind {
    /// Fields of `spec`.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Namespaced => &["mode", "deny", "onChange", "subject", "ingress", "egress"],
            Self::Cluster => &[
                "mode", "deny", "onChange", "subject", "ingress", "egress", "tier", "priority",
            ],
        }
    }
}

/// Reads and lowers a policy from a tree of values; `None` when the object is no policy at all.
pub(crate) fn lower_value(kind: Kind, value: &Value, report: &mut Report<'_>) -> Option<Policy> {
    let metadata = metadata(value, report)?;
    let Some(spec) = value.get("spec").and_then(Value::as_object) else {
        report.error(
            "spec",
            "is missing or no object, so the policy is not applied; write what it says",
        );
        return None;
    };
    let namespace = match kind {
        Kind::Namespaced => Some(
            metadata
                .namespace
                .filter(|it| !it.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
        ),
        Kind::Cluster => None,
    };
    let mut reader = Reader {
        report,
        namespace: namespace.as_deref(),
        tier: PolicyTier::NetworkPolicy,
        restricted: false,
    };
    let head = reader.head(kind, spec);
    let (ingress, egress) = (
        reader.rules(spec, Direction::Ingress),
        reader.rules(spec, Direction::Egress),
    );
    let tier = reader.tier;
    if ingress.is_none() && egress.is_none() {
        reader.report.error(
            "spec",
            "has neither ingress nor egress; until it has, both directions are isolated where it has no tier; \
             set one of them, an empty list denies everything",
        );
    }
    let nothing_said = ingress.is_none() && egress.is_none();
    let isolated = [
        (Direction::Ingress, ingress.is_some()),
        (Direction::Egress, egress.is_some()),
    ];
    let isolates = isolated
        .into_iter()
        .filter(|(_, said)| tier == PolicyTier::NetworkPolicy && (*said || nothing_said));
    Some(Policy {
        isolates: isolates.map(|(direction, _)| direction).collect(),
        key: PolicyKey {
            kind: match kind {
                Kind::Namespaced => PolicyKind::SegmentPolicy,
                Kind::Cluster => PolicyKind::ClusterSegmentPolicy,
            },
            namespace: namespace.clone().unwrap_or_default(),
            name: metadata.name.unwrap_or_default(),
        },
        uid: metadata.uid.unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        tier,
        priority: head.priority,
        subject: head.subject.into_iter().collect(),
        nodes: head.nodes.into_iter().collect(),
        mode: head.mode,
        manner: head.manner,
        ingress: ingress.unwrap_or_default(),
        egress: egress.unwrap_or_default(),
    })
}

/// The policy's metadata, which has a name; otherwise nothing, and the report says why.
fn metadata(value: &Value, report: &mut Report<'_>) -> Option<ObjectMeta> {
    let metadata = match read_part::<ObjectMeta>(value.get("metadata").unwrap_or(&Value::Null)) {
        Ok(metadata) => metadata,
        Err(misfit) => {
            let message = format!("{}, so the policy is not applied; correct the field", misfit.message);
            report.error(join("metadata", &misfit.field), message);
            return None;
        }
    };
    if metadata.name.as_ref().is_none_or(String::is_empty) {
        report.error(
            "metadata.name",
            "is missing, so the policy is not applied; give it a name",
        );
        return None;
    }
    Some(metadata)
}

/// What a policy says before its rules.
struct Head {
    priority: u32,
    mode: model::Mode,
    manner: Manner,
    /// Its pods; `None` where it applies to nodes.
    subject: Option<PodMatch>,
    nodes: Option<LabelSelector>,
}

/// What the parts of a policy need to know of it.
pub(super) struct Reader<'a, 'b> {
    pub(super) report: &'a mut Report<'b>,
    /// Of a namespaced policy.
    pub(super) namespace: Option<&'a str>,
    pub(super) tier: PolicyTier,
    /// A part of its head could not be read, so the policy only denies.
    pub(super) restricted: bool,
}

impl Reader<'_, '_> {
    fn head(&mut self, kind: Kind, spec: &Map<String, Value>) -> Head {
        let mut good = true;
        for field in spec.keys().filter(|field| !kind.fields().contains(&field.as_str())) {
            self.report.error(
                format!("spec.{field}"),
                "is no field this version knows; check its spelling",
            );
            good = false;
        }
        let tier = match self.optional::<Tier>(spec, "spec", "tier") {
            _ if kind == Kind::Namespaced => PolicyTier::NetworkPolicy,
            Ok(None) => PolicyTier::NetworkPolicy,
            Ok(Some(Tier::Baseline)) => PolicyTier::Baseline,
            Ok(Some(Tier::Admin)) => PolicyTier::Admin,
            Err(()) => {
                good = false;
                PolicyTier::Admin
            }
        };
        let priority = self.optional::<i32>(spec, "spec", "priority");
        let priority = match (priority, tier) {
            (Err(()), _) => None,
            (Ok(_), _) if kind == Kind::Namespaced => Some(0),
            (Ok(None), PolicyTier::NetworkPolicy) => Some(0),
            (Ok(Some(_)), PolicyTier::NetworkPolicy) => {
                self.report.error(
                    "spec.priority",
                    "is set without a tier, in which alone it has a meaning; set tier, or remove it",
                );
                None
            }
            (Ok(None), _) => {
                self.report
                    .error("spec.priority", "is missing; write a number from 0 to 1000");
                None
            }
            (Ok(Some(number)), _) => {
                let known = Some(number)
                    .filter(|number| PRIORITIES.contains(number))
                    .and_then(|it| u32::try_from(it).ok());
                if known.is_none() {
                    self.report
                        .error("spec.priority", format!("is {number}; write a number from 0 to 1000"));
                }
                known
            }
        };
        let mode = self.optional::<Mode>(spec, "spec", "mode");
        let manner = self.manner(spec);
        let (subject, nodes, exact) = self.subjects(kind, spec);
        good &= priority.is_some() && mode.is_ok() && exact;
        if !good {
            self.report.error(
                "spec",
                "cannot be read whole, so the policy only denies: its Allow rules match nothing and its Pass rules deny; correct the \
                 fields named above",
            );
        }
        (self.tier, self.restricted) = (tier, !good);
        let shadow = good && mode == Ok(Some(Mode::Shadow));
        Head {
            priority: priority.unwrap_or_default(),
            mode: if shadow {
                model::Mode::Shadow
            } else {
                model::Mode::Enforce
            },
            manner,
            subject,
            nodes,
        }
    }

    /// The pods or the nodes it applies to, and whether all of that could be read.
    fn subjects(&mut self, kind: Kind, spec: &Map<String, Value>) -> (Option<PodMatch>, Option<LabelSelector>, bool) {
        let (nodes, exact) = self.nodes(kind, spec);
        if nodes.is_some() {
            return (None, nodes, exact);
        }
        let (pods, pods_are_exact) = self.subject(kind, spec.get("subject"));
        (Some(pods), None, exact && pods_are_exact)
    }

    /// The nodes it applies to, and whether that could be read; `None` where it applies to pods.
    fn nodes(&mut self, kind: Kind, spec: &Map<String, Value>) -> (Option<LabelSelector>, bool) {
        let path = "spec.subject.nodeSelector";
        let subject = spec.get("subject").and_then(Value::as_object);
        let value = subject.and_then(|subject| subject.get("nodeSelector"));
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return (None, true);
        };
        if kind == Kind::Namespaced {
            self.report.error(
                path,
                "is no field of a SegmentPolicy, which is for pods of its own namespace; make it a ClusterSegmentPolicy",
            );
            return (None, false);
        }
        let Some((subject, unknown)) =
            self.read::<ClusterSegmentSubject>(&Value::Object(subject.cloned().unwrap_or_default()), "spec.subject")
        else {
            // Who wrote a nodeSelector means nodes: all of them, as long as it cannot be read which.
            return (Some(LabelSelector::default()), false);
        };
        let mut good = self.known(&unknown, "spec.subject") && value.is_object();
        if subject.namespace_selector.is_some() || subject.pod_selector.is_some() || subject.service_accounts.is_some()
        {
            self.report.error(
                path,
                "stands beside a selector of pods; a policy applies to nodes or to pods: make two policies of it",
            );
            good = false;
        }
        for (direction, field) in [("ingress", "from"), ("egress", "to")] {
            good &= self.no_names(spec, direction, field);
        }
        let (nodes, exact) = self.selector(subject.node_selector.as_ref(), path, &unknown);
        (Some(nodes), good && exact)
    }

    /// Whether no rule of a direction names peers by `fqdns`: what a node asks resolvers is not looked at, because what pods ask
    /// passes the same devices.
    fn no_names(&mut self, spec: &Map<String, Value>, direction: &str, field: &str) -> bool {
        let rules = spec.get(direction).and_then(Value::as_array).into_iter().flatten();
        let mut good = true;
        for (index, rule) in rules.enumerate() {
            let peers = rule.get(field).and_then(Value::as_array).into_iter().flatten();
            for (at, peer) in peers.enumerate() {
                if peer.get("fqdns").is_some_and(|names| !names.is_null()) {
                    self.report.error(
                        format!("spec.{direction}[{index}].{field}[{at}].fqdns"),
                        "is not for policies of nodes, which learn no names; write the addresses as a network",
                    );
                    good = false;
                }
            }
        }
        good
    }

    /// How its verdicts are carried out; what cannot be read of it stands for the stricter, which is the default.
    fn manner(&mut self, spec: &Map<String, Value>) -> Manner {
        let answer = match self.optional::<Denial>(spec, "spec", "deny") {
            Ok(Some(Denial::Reject)) => Answer::Reject,
            Ok(Some(Denial::Drop) | None) | Err(()) => Answer::Drop,
        };
        let on_change = match self.optional::<OnChange>(spec, "spec", "onChange") {
            Ok(Some(OnChange::Keep)) => model::OnChange::Keep,
            Ok(Some(OnChange::Drain)) => model::OnChange::Drain,
            Ok(Some(OnChange::Reevaluate) | None) | Err(()) => model::OnChange::Reevaluate,
        };
        Manner { answer, on_change }
    }

    /// The pods it applies to, and whether all of it could be read.
    fn subject(&mut self, kind: Kind, value: Option<&Value>) -> (PodMatch, bool) {
        let path = "spec.subject";
        let own = self.namespace.map(|name| NamespaceMatch::Name(name.to_owned()));
        let every = || PodMatch {
            namespaces: own
                .clone()
                .unwrap_or_else(|| NamespaceMatch::Labels(LabelSelector::default())),
            pods: LabelSelector::default(),
            service_accounts: Match::Any,
        };
        let value = match (value.filter(|value| !value.is_null()), kind) {
            (Some(value), _) => value,
            (None, Kind::Namespaced) => return (every(), true),
            (None, Kind::Cluster) => {
                self.report.error(
                    path,
                    "is missing, and stands for every pod until then; write {} if that is meant",
                );
                return (every(), false);
            }
        };
        let Some((subject, unknown)) = self.read::<ClusterSegmentSubject>(value, path) else {
            return (every(), false);
        };
        let mut good = self.known(&unknown, path);
        if kind == Kind::Namespaced && subject.namespace_selector.is_some() {
            self.report.error(
                format!("{path}.namespaceSelector"),
                "is no field of a SegmentPolicy, which is for its own namespace; make it a ClusterSegmentPolicy",
            );
            good = false;
        }
        let ClusterSegmentSubject {
            namespace_selector,
            pod_selector,
            service_accounts,
            node_selector: _,
        } = subject;
        let (namespaces, first) = self.selector(
            namespace_selector.as_ref(),
            &format!("{path}.namespaceSelector"),
            &unknown,
        );
        let (pods, second) = self.selector(pod_selector.as_ref(), &format!("{path}.podSelector"), &unknown);
        let (service_accounts, third) = self.accounts(service_accounts, &format!("{path}.serviceAccounts"));
        let pods = PodMatch {
            namespaces: own.unwrap_or(NamespaceMatch::Labels(namespaces)),
            pods,
            // Of a list that cannot be read it is not known who is missing.
            service_accounts: if third { service_accounts } else { Match::Any },
        };
        (pods, good && first && second && third)
    }

    /// The rules of a direction; `None` when it is not mentioned.
    fn rules(&mut self, spec: &Map<String, Value>, direction: Direction) -> Option<Vec<Rule>> {
        let value = spec.get(&direction.to_string()).filter(|value| !value.is_null())?;
        let path = format!("spec.{direction}");
        let Some(rules) = value.as_array() else {
            self.report.error(
                path,
                "is not a list, so it denies everything; write each rule with a leading '-'",
            );
            return Some(vec![super::rule::deny_all(0)]);
        };
        if rules.len() > RULES_MAX {
            let message = format!(
                "has {} rules and the API server allows {RULES_MAX}; make two policies of it",
                rules.len()
            );
            self.report.warning(path, message);
        }
        Some(
            (0u32..)
                .zip(rules)
                .flat_map(|(index, rule)| self.rule(rule, index, direction))
                .collect(),
        )
    }

    // --- parts ----------------------------------------------------------------------------------------------------

    /// A part read as a type, with the fields the type does not have.
    pub(super) fn read<T: DeserializeOwned>(&mut self, value: &Value, path: &str) -> Option<(T, Unknown)> {
        match read::<T>(value) {
            Ok((part, fields)) => {
                let mut unknown = Unknown::default();
                unknown.add_part(path, fields);
                Some((part, unknown))
            }
            Err(misfit) => {
                self.report.error(
                    join(path, &misfit.field),
                    format!("{}; correct the field", misfit.message),
                );
                None
            }
        }
    }

    /// A field that may be absent.
    pub(super) fn optional<T: DeserializeOwned>(
        &mut self,
        map: &Map<String, Value>,
        path: &str,
        field: &str,
    ) -> Result<Option<T>, ()> {
        let value = map.get(field).unwrap_or(&Value::Null);
        self.read::<Option<T>>(value, &format!("{path}.{field}"))
            .map(|(read, _)| read)
            .ok_or(())
    }

    /// False when a field directly in the part is not known, which is reported.
    pub(super) fn known(&mut self, unknown: &Unknown, path: &str) -> bool {
        let mut none = true;
        for field in unknown.directly_in(path) {
            self.report
                .error(field, "is no field this version knows; check its spelling");
            none = false;
        }
        none
    }

    /// A selector; an absent one selects everything.
    pub(super) fn selector(
        &mut self,
        selector: Option<&KubernetesSelector>,
        path: &str,
        unknown: &Unknown,
    ) -> (LabelSelector, bool) {
        let Some(selector) = selector else {
            return (LabelSelector::default(), true);
        };
        let lowered = selector::lower(selector, path, unknown, self.report);
        (lowered.selector, lowered.exact)
    }

    /// Service accounts; absent means any.
    pub(super) fn accounts(&mut self, names: Option<Vec<String>>, path: &str) -> (Match<String>, bool) {
        let Some(names) = names else { return (Match::Any, true) };
        if names.is_empty() {
            self.report
                .error(path, "is empty; name a service account, or remove the field for all");
            return (Match::OneOf(Vec::new()), false);
        }
        let mut good = true;
        for (index, name) in names.iter().enumerate() {
            if name.is_empty() || name.contains([':', '/', '*']) {
                let message = format!("is {name:?}, which is no name of a service account; write its name alone");
                self.report.error(format!("{path}[{index}]"), message);
                good = false;
            }
        }
        let names: BTreeSet<String> = names.into_iter().collect();
        (Match::OneOf(names.into_iter().collect()), good)
    }
}
