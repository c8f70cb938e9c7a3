//! What is wrong, or suspicious, with what users wrote: diagnostics for status conditions, Events and the CLI. Nothing
//! here changes what is compiled.

mod cut;
mod dns;
mod hosts;
mod peers;
mod ports;

use std::{collections::BTreeSet, fmt};

use crate::{
    compiler::Compiler,
    diagnostic::{Diagnostic, Severity},
    index::{Claimant, Place, WorkloadId},
    model::{Action, Direction, Policy, PolicyKey, Rule, Tier},
    rulesets::Cut,
};

impl Compiler {
    /// Everything that is wrong with what is there now, in order. Walks all policies: for `check` and for a start, not
    /// for every event.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let policies = self.policies.iter().flat_map(|policy| of_policy(self, &policy.policy));
        let contested = self.index.places().filter_map(|place| contested(self, place));
        let mut all: Vec<Diagnostic> = policies.chain(contested).chain(cut::all(self)).collect();
        sorted(&mut all);
        all
    }
}

/// What is wrong with what a step touched.
pub(crate) fn changed(
    compiler: &Compiler,
    places: &BTreeSet<Place>,
    written: &BTreeSet<PolicyKey>,
    cut: &Cut,
) -> Vec<Diagnostic> {
    let policies = written.iter().filter_map(|key| compiler.policies.get(key));
    let mut all: Vec<Diagnostic> = policies
        .flat_map(|policy| of_policy(compiler, &policy.policy))
        .collect();
    all.extend(places.iter().filter_map(|place| contested(compiler, *place)));
    all.extend(cut.iter().map(cut::diagnostic));
    sorted(&mut all);
    all
}

fn sorted(all: &mut Vec<Diagnostic>) {
    all.sort();
    all.dedup();
}

fn of_policy(compiler: &Compiler, policy: &Policy) -> Vec<Diagnostic> {
    let mut findings = Findings {
        policy,
        list: Vec::new(),
    };
    let subjects = policy.subject.iter().flat_map(|subject| compiler.index.select(subject));
    let selected: BTreeSet<WorkloadId> = subjects.collect();
    if selected.is_empty() && policy.nodes.is_empty() {
        findings.warning(
            "spec",
            "selects no pod, so nothing is enforced for it; check the selector against the labels of the pods and namespaces",
        );
    }
    let control = selected.iter().filter_map(|id| compiler.index.workload(*id));
    if let Some(pod) = control
        .filter(|pod| compiler.is_control(pod))
        .min_by_key(|pod| &pod.key)
    {
        findings.warning(
            "spec",
            format!(
                "selects {} of the control plane, where no policy has a say (builtin/control)",
                pod.key
            ),
        );
    }
    for (direction, rules) in [
        (Direction::Ingress, &policy.ingress),
        (Direction::Egress, &policy.egress),
    ] {
        for rule in rules {
            actions(&mut findings, direction, rule);
            peers::check(compiler, &mut findings, direction, rule);
            ports::check(compiler, &mut findings, (direction, rule), &selected);
        }
    }
    hosts::check(compiler, &mut findings);
    dns::check(compiler, &mut findings, &selected);
    same_priority(compiler, &mut findings, &selected);
    findings.list
}

/// The findings about one policy.
struct Findings<'a> {
    policy: &'a Policy,
    list: Vec<Diagnostic>,
}

impl Findings<'_> {
    fn warning(&mut self, field: impl fmt::Display, message: impl fmt::Display) {
        self.add(Severity::Warning, field, message);
    }

    fn error(&mut self, field: impl fmt::Display, message: impl fmt::Display) {
        self.add(Severity::Error, field, message);
    }

    fn add(&mut self, severity: Severity, field: impl fmt::Display, message: impl fmt::Display) {
        self.list.push(Diagnostic {
            severity,
            source: String::new(),
            object: object(&self.policy.key),
            field: field.to_string(),
            message: message.to_string(),
        });
    }
}

/// `Kind namespace/name`.
fn object(key: &PolicyKey) -> String {
    match key.namespace.as_str() {
        "" => format!("{} {}", key.kind, key.name),
        namespace => format!("{} {namespace}/{}", key.kind, key.name),
    }
}

fn place(direction: Direction, rule: &Rule) -> String {
    format!("spec.{direction}[{}]", rule.index)
}

/// Actions that the rule's tier or guard does not allow. Lowering makes none of these.
fn actions(findings: &mut Findings<'_>, direction: Direction, rule: &Rule) {
    let field = place(direction, rule);
    match (findings.policy.tier, rule.action) {
        (Tier::NetworkPolicy, Action::Pass) => findings.error(
            field,
            "passes in the NetworkPolicy tier, which has no next rule; the rule is ignored; remove it",
        ),
        (Tier::Admin | Tier::Baseline, Action::Pass) if rule.guard.is_some() => findings.error(
            field,
            "is a Pass rule with a condition; only what both the rules after it and the next tier allow is allowed; \
             remove the condition",
        ),
        _ => {}
    }
}

/// Policies of an ordered tier with the same priority: their names decide, which nobody means.
fn same_priority(compiler: &Compiler, findings: &mut Findings<'_>, selected: &BTreeSet<WorkloadId>) {
    let policy = findings.policy;
    if policy.tier == Tier::NetworkPolicy {
        return;
    }
    let rivals = compiler.policies.iter().map(|other| &other.policy).filter(|other| {
        other.tier == policy.tier
            && other.priority == policy.priority
            && other.key != policy.key
            && (!other.ingress.is_empty() && !policy.ingress.is_empty()
                || !other.egress.is_empty() && !policy.egress.is_empty())
    });
    let mut common = rivals.filter_map(|other| {
        let also = |id: &&WorkloadId| {
            other
                .subject
                .iter()
                .any(|subject| compiler.index.matches(subject, **id))
        };
        // By name, because numbers of workloads depend on the order in which they came.
        let pods = selected
            .iter()
            .filter(also)
            .filter_map(|id| compiler.index.workload_key(*id));
        Some((other, pods.min()?))
    });
    if let Some((other, pod)) = common.next() {
        findings.warning(
            "spec.priority",
            format_args!(
                "is {}, as that of {}, and both select pod {pod}; the one whose name comes first in the alphabet goes first; \
                 give them different priorities",
                policy.priority,
                object(&other.key),
            ),
        );
    }
}

/// Several claim one address.
fn contested(compiler: &Compiler, place: Place) -> Option<Diagnostic> {
    let claimants = compiler.index.claimants(place).filter_map(|claimant| match claimant {
        Claimant::Pod(id) => compiler.index.workload_key(*id).map(|key| format!("Pod {key}")),
        Claimant::Node(name) => Some(format!("Node {name}")),
    });
    let mut claimants: Vec<String> = claimants.collect();
    // Numbers of workloads depend on the order in which they came, names do not.
    claimants.sort_by_key(|name| (name.starts_with("Node "), name.clone()));
    let [first, _, ..] = claimants.as_slice() else {
        return None;
    };
    let field = if first.starts_with("Pod ") {
        "status.podIPs"
    } else {
        "status.addresses"
    };
    Some(Diagnostic {
        severity: Severity::Error,
        source: String::new(),
        object: first.clone(),
        field: field.to_owned(),
        message: format!(
            "{} claim the address {}; until one of them gives it up, it is treated as an unknown pod, which may do only what \
             every pod may; delete the stale object or fix the address ranges",
            claimants.join(" and "),
            place.1,
        ),
    })
}
