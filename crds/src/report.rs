//! Where lowering says what it finds: diagnostics with source, object and field already filled in.

use bulkhead_policy::diagnostic::{Diagnostic, Severity};

/// Collects the diagnostics of one object.
#[derive(Debug)]
pub struct Report<'a> {
    source: &'a str,
    object: String,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl<'a> Report<'a> {
    /// A report on `object` (`Kind namespace/name`), read from `source` (`file.yaml document 2`).
    pub fn new(source: &'a str, object: String, diagnostics: &'a mut Vec<Diagnostic>) -> Self {
        Self {
            source,
            object,
            diagnostics,
        }
    }

    /// The object, or this part of it, cannot be applied as written; the message says what is in force instead.
    pub fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Error, field.into(), message.into());
    }

    /// Legal and suspicious.
    pub fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, field.into(), message.into());
    }

    fn add(&mut self, severity: Severity, field: String, message: String) {
        self.diagnostics.push(Diagnostic {
            severity,
            source: self.source.to_owned(),
            object: self.object.clone(),
            field,
            message,
        });
    }
}
