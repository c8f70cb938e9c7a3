//! Policies of nodes: what they cannot deny because a node is not to be lost, and when nothing of that kind is left.

use super::{Findings, place};
use crate::{
    compiler::Compiler,
    failsafe::{Failsafe, Opening},
    model::{Action, Direction, Match, Mode, PortMatch, Rule, Tier},
    program::span,
};

pub(super) fn check(compiler: &Compiler, findings: &mut Findings<'_>) {
    let policy = findings.policy;
    if policy.nodes.is_empty() {
        return;
    }
    let mut nodes = compiler.index.nodes();
    if !nodes.any(|node| policy.nodes.iter().any(|selector| selector.matches(&node.labels))) {
        findings.warning(
            "spec.subject.nodeSelector",
            "selects no node, so nothing is enforced for it; check the selector against the labels of the nodes",
        );
    }
    let failsafe = compiler.failsafe();
    for direction in failsafe.emptied() {
        findings.error(
            "spec.subject.nodeSelector",
            format_args!(
                "selects nodes while the failsafe set for {direction} is empty, so a mistake can cut a node off for good; give the \
                 controller a set, or --failsafe-accept-risk"
            ),
        );
    }
    for (direction, rules) in [
        (Direction::Ingress, &policy.ingress),
        (Direction::Egress, &policy.egress),
    ] {
        let denying = rules.iter().filter(|rule| rule.action == Action::Deny);
        for rule in denying {
            if let Some(opening) = denied(failsafe, direction, rule) {
                findings.warning(
                    place(direction, rule),
                    format_args!("denies {opening}, which stays open all the same (builtin/failsafe)"),
                );
            }
        }
        let isolates = policy.tier == Tier::NetworkPolicy && policy.isolates.contains(&direction);
        let kept = failsafe.openings(direction);
        if isolates && policy.mode == Mode::Enforce && !kept.is_empty() {
            let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
            findings.warning(
                format_args!("spec.{direction}"),
                format_args!(
                    "isolates nodes, and {} stay open to everybody all the same (builtin/failsafe)",
                    kept.join(", ")
                ),
            );
        }
    }
}

/// The first opening that a rule would close.
fn denied(failsafe: &Failsafe, direction: Direction, rule: &Rule) -> Option<Opening> {
    match &rule.ports {
        Match::Any => failsafe.openings(direction).first().copied(),
        Match::OneOf(ports) => ports.iter().find_map(|port| match port {
            PortMatch::Range { protocol, first, last } => {
                let (low, high) = span(*protocol, *first, *last);
                failsafe.overlapping(direction, low, high)
            }
            PortMatch::Named { .. } | PortMatch::Icmp { .. } => None,
        }),
    }
}
