//! From a policy's standing to its conditions.

use std::time::Duration;

use bulkhead_crds::cluster_network_policy::Condition;

use crate::progress::Standing;

/// Longest message of ours; the API takes more.
const MESSAGE_MAX: usize = 2_048;

/// Accepted, Enforced and Degraded. `last_transition_time` is left empty: who writes knows what was there before.
pub(super) fn conditions(standing: &Standing) -> [Condition; 3] {
    let condition = |kind: &str, (status, reason, message): (bool, &str, String)| Condition {
        r#type: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        observed_generation: Some(standing.generation),
        last_transition_time: String::new(),
        reason: reason.to_owned(),
        message: message.chars().take(MESSAGE_MAX).collect(),
    };
    [
        condition("Accepted", accepted(standing)),
        condition("Enforced", enforced(standing)),
        condition("Degraded", degraded(standing)),
    ]
}

fn accepted(standing: &Standing) -> (bool, &'static str, String) {
    match standing.error() {
        None => (true, "Accepted", "every part of it can be applied".to_owned()),
        Some(error) => {
            let field = if error.field.is_empty() { "it" } else { &error.field };
            (false, "Invalid", format!("{field} {}", error.message))
        }
    }
}

fn enforced(standing: &Standing) -> (bool, &'static str, String) {
    let enforcement = &standing.enforcement;
    let of = format!("enforced on {} of {} nodes", enforcement.enforced, enforcement.needed);
    if !enforcement.complete() {
        let more = enforcement.needed - enforcement.enforced - enforcement.waiting.len().min(enforcement.needed);
        let and_more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        let waiting = enforcement.waiting.join(", ");
        return (false, "Pending", format!("{of}; waiting for {waiting}{and_more}"));
    }
    if standing.error().is_some() {
        let message = format!("{of}, but only as far as it could be read; see Accepted");
        return (false, "Invalid", message);
    }
    if enforcement.needed == 0 {
        let message = "no node has a pod that it selects".to_owned();
        return (true, "NothingSelected", message);
    }
    let took = enforcement
        .p99()
        .map_or(String::new(), |p99| format!(", p99 {}", text(p99)));
    (true, "Enforced", format!("{of}{took}"))
}

fn degraded(standing: &Standing) -> (bool, &'static str, String) {
    match &standing.enforcement.trouble {
        None => (
            false,
            "AsExpected",
            "every node that needs it is connected and well".to_owned(),
        ),
        Some(trouble) => (true, "NodeTrouble", trouble.clone()),
    }
}

fn text(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
