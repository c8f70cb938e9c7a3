//! What is wrong, or suspicious, with what users wrote: diagnostics for status conditions, Events and the CLI.

use std::collections::BTreeSet;

use crate::{
    compiler::Compiler,
    diagnostic::{Diagnostic, Severity},
    index::{Claimant, Place},
    model::PolicyKey,
    rulesets::Cut,
};

/// What is wrong with what a step touched, in order.
pub(crate) fn changed(
    compiler: &Compiler,
    places: &BTreeSet<Place>,
    _policies: &BTreeSet<PolicyKey>,
    _cut: &Cut,
) -> Vec<Diagnostic> {
    places.iter().filter_map(|place| contested(compiler, *place)).collect()
}

/// Several claim one address.
fn contested(compiler: &Compiler, place: Place) -> Option<Diagnostic> {
    let mut claimants: Vec<String> = compiler
        .index
        .claimants(place)
        .filter_map(|claimant| match claimant {
            Claimant::Pod(id) => compiler.index.workload_key(*id).map(|key| format!("Pod {key}")),
            Claimant::Node(name) => Some(format!("Node {name}")),
        })
        .collect();
    claimants.sort();
    let first = claimants.first()?.clone();
    (claimants.len() > 1).then(|| Diagnostic {
        severity: Severity::Error,
        source: String::new(),
        object: first,
        field: "status.podIPs".to_owned(),
        message: format!(
            "{} claim the address {}. It is treated as an unknown pod until one of them gives it up: only what every pod \
             may do is allowed. Delete the stale object, or fix the address ranges of the nodes.",
            claimants.join(" and "),
            place.1,
        ),
    })
}
