//! How the verdicts of Kubernetes' own policy kinds are carried out: two annotations, as these kinds have no field for it.

use std::collections::BTreeMap;

use bulkhead_policy::model::{Answer, Manner, OnChange};

use crate::report::Report;

/// `Drop` or `Reject`: what `deny` is to a SegmentPolicy.
const DENY: &str = "policy.bulkhead.dev/deny";
/// `Reevaluate`, `Drain` or `Keep`: what `onChange` is to a SegmentPolicy.
const ON_CHANGE: &str = "policy.bulkhead.dev/on-change";

/// What the annotations say; a word that is none of those stands for the stricter, which is the default.
pub(crate) fn of(annotations: Option<&BTreeMap<String, String>>, report: &mut Report<'_>) -> Manner {
    let mut word = |key: &str, words: &str| {
        let value = annotations?.get(key)?.as_str();
        if words.split(", ").all(|known| known != value) {
            report.error(
                format!("metadata.annotations[{key}]"),
                format!("is {value:?} and is left out; write one of {words}"),
            );
        }
        Some(value)
    };
    Manner {
        answer: match word(DENY, "Drop, Reject") {
            Some("Reject") => Answer::Reject,
            _ => Answer::Drop,
        },
        on_change: match word(ON_CHANGE, "Reevaluate, Drain, Keep") {
            Some("Drain") => OnChange::Drain,
            Some("Keep") => OnChange::Keep,
            _ => OnChange::Reevaluate,
        },
    }
}
