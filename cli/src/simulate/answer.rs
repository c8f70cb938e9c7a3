//! What simulate says of a connection.

use std::fmt;

use serde::Serialize;

/// One line of output. The order of the fields is part of the contract.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// What becomes of the connection.
    Answer(Answer),
    /// Why the probe could not be answered.
    Error {
        /// What is wrong with it, and what to do.
        error: String,
    },
}

/// What becomes of a connection.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answer {
    /// Allowed only if every end that is a pod allows it.
    pub verdict: Verdict,
    /// What the sender's egress rules say; `null` when the sender is no pod.
    pub egress: Option<EndAnswer>,
    /// What the receiver's ingress rules say; `null` when the receiver is no pod.
    pub ingress: Option<EndAnswer>,
    /// The reason of the end that decided: its word from the verdict, and more where a Service was asked for.
    pub reason: String,
}

/// What one end says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EndAnswer {
    /// Its verdict.
    pub verdict: Verdict,
    /// The rule that decided: `NetworkPolicy/shop/db ingress[0]`.
    pub rule: String,
    /// The verdict's reason.
    #[serde(skip)]
    pub reason: &'static str,
}

/// Allowed or denied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The packet passes.
    Allowed,
    /// It is dropped.
    Denied,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
        })
    }
}

impl Answer {
    /// Both ends together.
    pub(super) fn of(egress: Option<EndAnswer>, ingress: Option<EndAnswer>) -> Self {
        let ends = || [&egress, &ingress].into_iter().flatten();
        let denied = ends().find(|end| end.verdict == Verdict::Denied);
        // The receiver has the last word on what is allowed.
        let decided = denied.or_else(|| ends().last());
        Self {
            verdict: if denied.is_some() {
                Verdict::Denied
            } else {
                Verdict::Allowed
            },
            reason: decided
                .map_or("neither end is a pod, so nothing judges it", |end| end.reason)
                .to_owned(),
            egress,
            ingress,
        }
    }
}
