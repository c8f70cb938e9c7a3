//! What is wrong, or suspicious, with a user's input: values that travel beside the result and end as CLI output, status
//! conditions and Events. A diagnostic never hides the rest of the input.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Legal and suspicious: a policy that selects nothing, a named port nobody has.
    Warning,
    /// The object, or this part of it, cannot be applied as written. What is in force instead is said in the message.
    Error,
}

/// One finding. `source`, `object` and `field` are as exact as the finder knows; empty means not known.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where the text came from: `file.yaml document 2`; empty for objects of an API server.
    pub source: String,
    /// `Kind namespace/name`.
    pub object: String,
    /// Path of the field: `spec.ingress[0].ports[1].endPort`.
    pub field: String,
    /// What is wrong, what happens now, and what to do: one sentence each.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: ")?;
        for part in [&self.source, &self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}
