//! From a policy's standing to its conditions.

use std::time::Duration;

use bulkhead_crds::cluster_network_policy::Condition;
use bulkhead_policy::diagnostic::{Diagnostic, Severity};

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
    match (standing.error(), standing.findings.first()) {
        (Some(_), _) => {
            let errors = standing
                .findings
                .iter()
                .filter(|found| found.severity == Severity::Error);
            (false, "Invalid", errors.map(said).collect::<Vec<_>>().join("; "))
        }
        (None, Some(warning)) => (
            true,
            "Suspicious",
            format!("every part of it can be applied, but {}", said(warning)),
        ),
        (None, None) => (true, "Accepted", "every part of it can be applied".to_owned()),
    }
}

/// A finding about an object as people read it on the object; the webhook says the same.
pub(crate) fn said(found: &Diagnostic) -> String {
    let field = if found.field.is_empty() { "it" } else { &found.field };
    format!("{field} {}", found.message)
}

fn enforced(standing: &Standing) -> (bool, &'static str, String) {
    let enforcement = &standing.enforcement;
    let of = format!("enforced on {} of {} nodes", enforcement.enforced, enforcement.needed);
    if let Some(reverted) = &enforcement.reverted {
        return (false, "Reverted", format!("{of}; {reverted}"));
    }
    if !enforcement.complete() {
        let named = enforcement.enforced + enforcement.waiting.len();
        let more = enforcement.needed.saturating_sub(named);
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
    if let Some(bypassed) = &enforcement.bypassed {
        return (
            false,
            "Bypassed",
            format!("{of}, but not all packets are judged: {bypassed}"),
        );
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

#[cfg(test)]
mod tests {

    use super::*;
    use crate::progress::Enforcement;

    fn standing(needed: usize, latencies: &[u64]) -> Standing {
        let enforcement = Enforcement {
            needed,
            enforced: latencies.len(),
            waiting: (latencies.len()..needed.min(10 + latencies.len()))
                .map(|n| format!("n{n}"))
                .collect(),
            latencies: latencies.iter().map(|ms| Duration::from_millis(*ms)).collect(),
            ..Enforcement::default()
        };
        Standing {
            generation: 3,
            enforcement,
            ..Standing::default()
        }
    }

    fn said(standing: &Standing, kind: &str) -> String {
        let all = conditions(standing);
        let found = all.iter().find(|condition| condition.r#type == kind).unwrap();
        assert_eq!(found.observed_generation, Some(3));
        format!("{} {}: {}", found.status, found.reason, found.message)
    }

    #[test]
    fn enforced_is_true_only_when_every_node_that_needs_it_holds_it() {
        let table = [
            (
                standing(2, &[12, 41]),
                "True Enforced: enforced on 2 of 2 nodes, p99 41 ms",
            ),
            (
                standing(2, &[12]),
                "False Pending: enforced on 1 of 2 nodes; waiting for n1",
            ),
            (
                standing(0, &[]),
                "True NothingSelected: no node has a pod that it selects",
            ),
        ];
        for (standing, wanted) in table {
            assert_eq!(said(&standing, "Enforced"), wanted);
        }
        let many = said(&standing(14, &[1]), "Enforced");
        assert!(many.ends_with("n10 and 3 more"), "{many}");
        let latencies: Vec<u64> = (1..=200).collect();
        let p99 = said(&standing(200, &latencies), "Enforced");
        assert!(p99.ends_with("p99 198 ms"), "{p99}");
    }

    #[test]
    fn what_packets_go_past_is_not_enforced() {
        let mut standing = standing(2, &[12, 41]);
        standing.enforcement.bypassed = Some("node n1: shop/web: packets reach the pod past device v1".into());
        let text = said(&standing, "Enforced");
        assert!(
            text.starts_with("False Bypassed: enforced on 2 of 2 nodes, but"),
            "{text}"
        );
        assert!(text.contains("shop/web"), "{text}");
    }

    #[test]
    fn what_cannot_be_read_is_neither_accepted_nor_enforced() {
        let mut standing = standing(1, &[5]);
        let finding = |severity, field: &str| Diagnostic {
            severity,
            source: String::new(),
            object: "ClusterNetworkPolicy a".into(),
            field: field.into(),
            message: "is wrong; correct it".into(),
        };
        standing.findings = vec![finding(Severity::Warning, "spec.a")];
        assert!(
            said(&standing, "Accepted").starts_with("True"),
            "a warning refuses nothing"
        );
        standing.findings.push(finding(Severity::Error, "spec.tier"));
        assert_eq!(
            said(&standing, "Accepted"),
            "False Invalid: spec.tier is wrong; correct it"
        );
        assert!(said(&standing, "Enforced").starts_with("False Invalid"));
        assert!(said(&standing, "Degraded").starts_with("False"));
        standing.enforcement.trouble = Some("node n1 is not connected".into());
        assert!(said(&standing, "Degraded").starts_with("True NodeTrouble: node n1"));
    }
}
