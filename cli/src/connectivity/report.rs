//! What the test found, for people and programs.

use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::table::line;

/// What was observed of a connection that the client has not tried since the policies changed.
pub(super) const NO_ROUND: &str = "no answer from the client's pod";
/// Failures of a step that people are shown.
const SHOWN_MAX: usize = 12;

/// A connection that was other than expected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    /// Who: namespace/pod.
    pub(super) from: String,
    /// Where to, for people.
    pub(super) to: String,
    /// What may stand for it in a flow record.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) expected: bool,
    pub(super) observed: String,
    /// What agents have recorded of it, one for each device that judged it.
    pub(super) why: Vec<String>,
}

/// One step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct StepReport {
    pub(super) title: &'static str,
    /// Why it was not run.
    pub(super) skipped: Option<&'static str>,
    /// Connections that were looked at.
    pub(super) checked: usize,
    pub(super) failures: Vec<Failure>,
    /// What else was wrong: a policy that is not enforced.
    pub(super) notes: Vec<String>,
    /// Until all was as expected.
    pub(super) took: Duration,
}

/// The whole test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Report {
    pub(super) nodes: Vec<String>,
    /// What is wrong with the agents of these nodes; no failure of itself.
    pub(super) warnings: Vec<String>,
    pub(super) steps: Vec<StepReport>,
}

impl StepReport {
    pub(super) fn skipped(title: &'static str, why: &'static str) -> Self {
        Self {
            title,
            skipped: Some(why),
            checked: 0,
            failures: Vec::new(),
            notes: Vec::new(),
            took: Duration::ZERO,
        }
    }

    pub(super) fn passed(&self) -> bool {
        self.failures.is_empty() && self.notes.is_empty()
    }

    /// Its line, and one for each connection that failed.
    pub(super) fn line(&self) -> String {
        if let Some(why) = self.skipped {
            return format!("SKIPPED  {}: {why}\n", self.title);
        }
        let word = if self.passed() { "passed " } else { "FAILED " };
        let good = self.checked.saturating_sub(self.failures.len());
        let mut text = format!(
            "{word}  {:<48} {good} of {} connections as expected, {:.1} s\n",
            self.title,
            self.checked,
            self.took.as_secs_f64()
        );
        for failure in self.failures.iter().take(SHOWN_MAX) {
            let expected = if failure.expected { "open" } else { "denied" };
            let Failure { from, to, observed, .. } = failure;
            line(
                &mut text,
                format_args!("         {from} → {to}: expected {expected}, observed {observed}"),
            );
            for why in &failure.why {
                line(&mut text, format_args!("           {why}"));
            }
        }
        if self.failures.len() > SHOWN_MAX {
            let more = self.failures.len() - SHOWN_MAX;
            line(
                &mut text,
                format_args!("         … and {more} more, which -o json names"),
            );
        }
        for note in &self.notes {
            line(&mut text, format_args!("         {note}"));
        }
        text
    }
}

impl Report {
    /// True when something was tested and nothing failed.
    pub(super) fn passed(&self) -> bool {
        self.steps.iter().any(|step| step.checked > 0) && self.steps.iter().all(StepReport::passed)
    }

    /// What comes after the steps' lines.
    pub(super) fn text(&self) -> String {
        let count = |of: fn(&StepReport) -> bool| self.steps.iter().filter(|step| of(step)).count();
        let skipped = count(|step| step.skipped.is_some());
        let failed = count(|step| !step.passed());
        let mut text = format!(
            "{} steps passed, {failed} failed, {skipped} skipped\n",
            self.steps.len() - skipped - failed
        );
        if self.nodes.len() < 2 {
            text.push_str("only one node takes pods: connections across nodes were not tested\n");
        }
        if failed > 0 {
            text.push_str(
                "more of it: bulkhead status; kubectl -n bulkhead-system exec ds/bulkhead-agent -- bulkhead flows; bulkhead support-bundle\n",
            );
        }
        text
    }

    /// The same for programs.
    pub(super) fn json(&self) -> Value {
        let steps = self.steps.iter().map(|step| {
            let failures = step.failures.iter().map(|failure| {
                json!({"from": failure.from, "to": failure.to,
                    "expected": if failure.expected { "open" } else { "denied" }, "observed": failure.observed,
                    "why": failure.why})
            });
            json!({"step": step.title, "passed": step.passed() && step.skipped.is_none(), "skipped": step.skipped,
                "connections": step.checked, "failures": failures.collect::<Vec<_>>(), "notes": step.notes,
                "seconds": step.took.as_secs_f64()})
        });
        json!({"passed": self.passed(), "nodes": self.nodes, "warnings": self.warnings, "steps": steps.collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_tested_is_no_success_and_a_failure_is_named() {
        let mut report = Report {
            nodes: vec!["n1".into()],
            warnings: Vec::new(),
            steps: vec![StepReport::skipped("a", "why")],
        };
        assert!(!report.passed());
        let good = StepReport {
            checked: 4,
            skipped: None,
            ..StepReport::skipped("b", "")
        };
        report.steps.push(good.clone());
        assert!(report.passed());
        assert!(
            report
                .text()
                .starts_with("1 steps passed, 0 failed, 1 skipped\nonly one node")
        );
        let failure = Failure {
            from: "t-far/far".into(),
            to: "pod".into(),
            addresses: Vec::new(),
            why: vec!["allowed at ingress by builtin/default-allow (policy-allowed) on n1".into()],
            expected: false,
            observed: "open".into(),
        };
        report.steps.push(StepReport {
            failures: vec![failure],
            ..good
        });
        assert!(!report.passed());
        assert!(
            report.steps[2]
                .line()
                .contains("t-far/far → pod: expected denied, observed open\n           allowed at ingress by")
        );
        assert_eq!(report.json()["steps"][2]["passed"], false);
    }
}
