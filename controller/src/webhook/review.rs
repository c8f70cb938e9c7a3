//! One question of the API server: is this object to be stored?

use std::sync::Arc;

use axum::{Json, body::Bytes, extract::State, http::StatusCode};
use bulkhead_crds::{Meaning, lower_document};
use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    model::Object,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use super::DEADLINE;
use crate::{engine::Input, kube_status::conditions::said, world::World};

/// Warnings of one answer; the API server shows few and cuts long ones.
const WARNINGS_MAX: usize = 10;
/// Bytes of all warnings; of more, the API server leaves some out.
const WARNING_BYTES_MAX: usize = 4_000;

/// Whom questions are put to.
#[derive(Clone)]
pub(super) struct Reviewer {
    pub(super) engine: mpsc::Sender<Input>,
    pub(super) worlds: watch::Receiver<Arc<World>>,
    pub(super) places: Arc<Semaphore>,
}

#[derive(Deserialize)]
struct AdmissionReview {
    request: AdmissionRequest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionRequest {
    uid: String,
    kind: GroupVersionKind,
    #[serde(default)]
    object: Value,
    #[serde(default)]
    old_object: Value,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    #[serde(default)]
    group: String,
    version: String,
    kind: String,
}

/// The answer to a question, or why it is none.
pub(super) async fn validate(
    State(reviewer): State<Reviewer>,
    body: Bytes,
) -> Result<Json<Value>, (StatusCode, String)> {
    let AdmissionReview { request } = serde_json::from_slice(&body)
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("not an AdmissionReview: {error}\n")))?;
    let found = if request.object.get("spec") == request.old_object.get("spec") {
        // Labels, finalizers: nothing of it is ours, and who takes a finalizer off a bad object must be able to.
        Vec::new()
    } else {
        reviewer.review(&request).await
    };
    Ok(Json(json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": answer(&request.uid, &found),
    })))
}

impl Reviewer {
    /// What is wrong or suspicious with the object.
    async fn review(&self, request: &AdmissionRequest) -> Vec<Diagnostic> {
        let GroupVersionKind { group, version, kind } = &request.kind;
        let api_version = if group.is_empty() {
            version.clone()
        } else {
            format!("{group}/{version}")
        };
        let mut found = Vec::new();
        let meaning = lower_document(&api_version, kind, &request.object, "", &mut found);
        let refused = found.iter().any(|found| found.severity == Severity::Error);
        if let (Meaning::Object(object), false) = (meaning, refused) {
            let compiled = self.compile(object).await;
            found.extend(compiled.unwrap_or_else(|reason| {
                vec![Diagnostic {
                    severity: Severity::Warning,
                    source: String::new(),
                    object: String::new(),
                    field: String::new(),
                    message: format!(
                        "is stored without being compared with the cluster, because {reason}; see its status"
                    ),
                }]
            }));
        }
        // As in a status.
        found.sort();
        found
    }

    async fn compile(&self, object: Box<Object>) -> Result<Vec<Diagnostic>, &'static str> {
        if self.worlds.borrow().revision == 0 {
            return Err("the controller has not read the cluster yet");
        }
        let Ok(_place) = self.places.try_acquire() else {
            return Err("too many policies are written at once");
        };
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.engine.send(Input::Review { object, answer }).await.ok()?;
            answered.await.ok()
        };
        match timeout(DEADLINE, asking).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err("the controller is shutting down"),
            Err(_) => Err("the controller is busy"),
        }
    }
}

fn answer(uid: &str, found: &[Diagnostic]) -> Value {
    let mut left = WARNING_BYTES_MAX;
    let mut warnings = Vec::new();
    for warning in found
        .iter()
        .filter(|found| found.severity == Severity::Warning)
        .take(WARNINGS_MAX)
    {
        let text = text(warning);
        let Some(rest) = left.checked_sub(text.len()) else {
            break;
        };
        left = rest;
        warnings.push(text);
    }
    let errors: Vec<String> = found
        .iter()
        .filter(|found| found.severity == Severity::Error)
        .map(text)
        .collect();
    if errors.is_empty() {
        return json!({"uid": uid, "allowed": true, "warnings": warnings});
    }
    json!({
        "uid": uid,
        "allowed": false,
        "warnings": warnings,
        "status": {"code": 422, "reason": "Invalid", "message": errors.join("; ")},
    })
}

/// In the words of the object's own status; what is said of another object names it.
fn text(found: &Diagnostic) -> String {
    if found.object.starts_with("Node ") {
        format!("{} {}", found.object, found.message)
    } else {
        said(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, field: &str, message: &str) -> Diagnostic {
        Diagnostic {
            severity,
            source: String::new(),
            object: "SegmentPolicy shop/db".to_owned(),
            field: field.to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn errors_refuse_and_warnings_do_not() {
        let warning = finding(Severity::Warning, "spec", "selects no pod");
        let allowed = answer("7", std::slice::from_ref(&warning));
        assert_eq!(
            allowed,
            json!({"uid": "7", "allowed": true, "warnings": ["spec selects no pod"]})
        );
        let error = finding(Severity::Error, "spec.tier", "is wrong");
        let refused = answer("7", &[warning, error]);
        assert_eq!(refused["allowed"], false);
        assert_eq!(refused["status"]["message"], "spec.tier is wrong");
    }

    #[test]
    fn warnings_are_bounded() {
        let long = finding(Severity::Warning, "spec", &"x".repeat(1_500));
        let answer = answer("7", &vec![long; 30]);
        assert_eq!(answer["warnings"].as_array().map(Vec::len), Some(2));
    }
}
