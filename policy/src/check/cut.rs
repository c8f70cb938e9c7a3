//! Rules that were cut off because more conditional rules apply at once than the kernel follows.

use bulkhead_verdict::layout::MAX_ALTERNATIVES;

use super::object;
use crate::{
    compiler::Compiler,
    diagnostic::{Diagnostic, Severity},
    model::{Direction, RuleName},
    state::Alternative,
};

/// All there are now, as the compiled state tells.
pub(super) fn all(compiler: &Compiler) -> impl Iterator<Item = Diagnostic> {
    let port_sets = compiler
        .state()
        .rulesets
        .values()
        .flat_map(|ruleset| ruleset.entries.values());
    let lists = port_sets
        .flat_map(|ports| &ports.ranges)
        .flat_map(|range| [&range.enforce, &range.shadow]);
    lists.filter_map(|list| cut_off(compiler, list)).map(diagnostic)
}

/// The first rule cut off from a list: one that has a guard, and yet stands at the end without.
fn cut_off<'a>(compiler: &Compiler, list: &'a [Alternative]) -> Option<&'a RuleName> {
    let full = u32::try_from(list.len()).is_ok_and(|length| length == MAX_ALTERNATIVES);
    let rule = &list.last().filter(|_| full)?.rule;
    let RuleName::Rule {
        policy,
        direction,
        index,
        ..
    } = rule
    else {
        return None;
    };
    let policy = &compiler.policies.get(policy)?.policy;
    let rules = match direction {
        Direction::Egress => &policy.egress,
        Direction::Ingress => &policy.ingress,
    };
    rules
        .iter()
        .any(|rule| rule.index == *index && rule.guard.is_some())
        .then_some(rule)
}

pub(super) fn diagnostic(rule: &RuleName) -> Diagnostic {
    let (object, field) = match rule {
        RuleName::Rule {
            policy,
            direction,
            index,
            ..
        } => (object(policy), format!("spec.{direction}[{index}]")),
        RuleName::DefaultDeny { policy, direction, .. } => (object(policy), format!("spec.{direction}")),
        RuleName::Builtin(builtin) => (builtin.to_string(), String::new()),
    };
    Diagnostic {
        severity: Severity::Error,
        source: String::new(),
        object,
        field,
        message: format!(
            "more than {} rules with conditions apply to the same peer and port; this rule and those after it are not \
             evaluated there, and what the earlier ones do not allow is denied; merge or remove some",
            MAX_ALTERNATIVES - 1
        ),
    }
}
