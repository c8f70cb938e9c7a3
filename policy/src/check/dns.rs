//! Egress that is opened for something but not for name resolution: the most common mistake with egress policies.

use std::collections::BTreeSet;

use super::Findings;
use crate::{
    compiler::Compiler,
    index::WorkloadId,
    model::{Action, Direction, Match, Mode, Policy, PortMatch, Protocol, Rule, Tier},
};

const DNS: u16 = 53;

pub(super) fn check(compiler: &Compiler, findings: &mut Findings<'_>, selected: &BTreeSet<WorkloadId>) {
    let policy = findings.policy;
    let isolates = policy.tier == Tier::NetworkPolicy
        && policy.mode == Mode::Enforce
        && policy.isolates.contains(&Direction::Egress);
    // A policy that allows no egress at all means it.
    let allows = policy.egress.iter().any(|rule| rule.action == Action::Allow);
    if !isolates || !allows {
        return;
    }
    let without = selected.iter().filter(|id| !resolves(compiler, **id));
    // By name, because numbers of workloads depend on the order in which they came.
    if let Some(pod) = without.filter_map(|id| compiler.index.workload_key(*id)).min() {
        findings.warning(
            "spec.egress",
            format_args!(
                "isolates egress, and no policy that selects pod {pod} allows port 53, so it cannot resolve names; allow UDP and \
                 TCP 53 to the cluster's DNS pods, unless it needs no names"
            ),
        );
    }
}

/// Some policy that selects the workload allows port 53 to somebody.
fn resolves(compiler: &Compiler, id: WorkloadId) -> bool {
    let Some(workload) = compiler.index.workload(id) else {
        return true;
    };
    let Some(labels) = compiler.index.namespace_labels(&workload.key.namespace) else {
        return true;
    };
    let policies = compiler.policies.selecting(workload, labels);
    policies.iter().any(|policy| allows_dns(&policy.policy))
}

fn allows_dns(policy: &Policy) -> bool {
    policy
        .egress
        .iter()
        .any(|rule| rule.action == Action::Allow && covers_dns(rule))
}

fn covers_dns(rule: &Rule) -> bool {
    match &rule.ports {
        Match::Any => true,
        Match::OneOf(ports) => ports.iter().any(|port| match port {
            PortMatch::Range { protocol, first, last } => {
                *protocol != Protocol::Sctp && (*first..=*last).contains(&DNS)
            }
            PortMatch::Icmp { .. } => false,
            // Which number it is depends on the pod; by its name it is meant for this.
            PortMatch::Named { name, .. } => name.contains("dns"),
        }),
    }
}
