//! Objects of any kind: what they are called, applying and deleting them with errors that name object, field and fix.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kube::{
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PropagationPolicy},
    core::Status,
};
use serde_json::Value;

use super::{Cluster, MANAGER};

/// Longest time the definition of a kind may take to be served.
const SERVED_WITHIN: Duration = Duration::from_secs(30);

/// The group of our own kinds.
const GROUP: &str = "bulkhead.dev";

/// The resource of a kind, as the API names it.
pub(crate) fn kind_of(version: &str, kind: &str) -> ApiResource {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// An object's name for people.
pub(crate) fn place(kind: &str, namespace: &str, name: &str) -> String {
    match namespace {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}

/// A text field of an object, empty when it is not there.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A number of an object, zero when it is not there.
pub(crate) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The elements of a list, none when it is not there.
pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// True for the definitions of our own kinds, and for upstream's where it came with us: others may use that too.
pub(crate) fn is_our_definition(definition: &Value) -> bool {
    let managers = list(definition, "/metadata/managedFields");
    text(definition, "/spec/group") == GROUP
        || text(definition, "/metadata/labels/app.kubernetes.io~1part-of") == "bulkhead"
        // The API server itself manages the status of every definition, and our controller none.
        || managers
            .iter()
            .any(|entry| text(entry, "/manager").starts_with("bulkhead") && text(entry, "/subresource").is_empty())
}

/// A manifest that can be applied.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) body: Value,
}

impl Manifest {
    /// Reads what an object says of itself.
    pub(crate) fn new(body: Value) -> anyhow::Result<Self> {
        let manifest = Self {
            version: text(&body, "/apiVersion").to_owned(),
            kind: text(&body, "/kind").to_owned(),
            namespace: text(&body, "/metadata/namespace").to_owned(),
            name: text(&body, "/metadata/name").to_owned(),
            body,
        };
        if manifest.version.is_empty() || manifest.kind.is_empty() || manifest.name.is_empty() {
            return Err(anyhow!(
                "an object without apiVersion, kind or metadata.name: {}",
                manifest.body
            ));
        }
        Ok(manifest)
    }

    /// Its name for people.
    pub(crate) fn place(&self) -> String {
        place(&self.kind, &self.namespace, &self.name)
    }
}

/// What applying did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Applied {
    /// It was not there.
    Created,
    /// It was other than the manifest.
    Changed,
    /// Nothing was to be done.
    Same,
}

impl Cluster {
    /// Applies a manifest on the server; fields that others hold are taken over only with `force`.
    pub(crate) async fn apply(&self, manifest: &Manifest, force: bool) -> anyhow::Result<Applied> {
        let api = self.api(&kind_of(&manifest.version, &manifest.kind), &manifest.namespace);
        let before = api
            .get_opt(&manifest.name)
            .await
            .map_err(|error| explain(&manifest.place(), "reading", error))?;
        let mut params = PatchParams::apply(MANAGER);
        params.force = force;
        let begin = tokio::time::Instant::now();
        let after = loop {
            match api.patch(&manifest.name, &params, &Patch::Apply(&manifest.body)).await {
                // The definition of the kind was applied a moment ago.
                Err(kube::Error::Api(status)) if kind_is_new(&status) && begin.elapsed() < SERVED_WITHIN => {
                    tokio::time::sleep(super::LOOK).await;
                }
                answer => break answer.map_err(|error| explain(&manifest.place(), "applying", error))?,
            }
        };
        Ok(match before {
            None => Applied::Created,
            Some(before) if before.metadata.resource_version == after.metadata.resource_version => Applied::Same,
            Some(_) => Applied::Changed,
        })
    }

    /// Changes some fields of an object.
    pub(crate) async fn merge(
        &self,
        (version, kind): (&str, &str),
        namespace: &str,
        name: &str,
        fields: &Value,
    ) -> anyhow::Result<()> {
        let api = self.api(&kind_of(version, kind), namespace);
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let answer = api.patch(name, &params, &Patch::Merge(fields)).await;
        answer.map_err(|error| explain(&place(kind, namespace, name), "changing", error))?;
        Ok(())
    }

    /// Deletes an object; false when it was not there.
    pub(crate) async fn remove(
        &self,
        (version, kind): (&str, &str),
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<bool> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match self.api(&kind_of(version, kind), namespace).delete(name, &params).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(explain(&place(kind, namespace, name), "deleting", error)),
        }
    }

    /// Waits until an object is gone.
    pub(crate) async fn gone(
        &self,
        of: (&str, &str),
        namespace: &str,
        name: &str,
        within: Duration,
    ) -> anyhow::Result<()> {
        let place = place(of.1, namespace, name);
        self.wait(within, async || {
            let there = self.find(of, namespace, name).await?;
            Ok(match there {
                None => Ok(()),
                Some(object) => Err(format!("{place} is still there{}", finalizers(&object))),
            })
        })
        .await
    }
}

fn finalizers(object: &DynamicObject) -> String {
    match object.metadata.finalizers.as_deref() {
        None | Some([]) => String::new(),
        Some(names) => format!("; it waits for its finalizers {}", names.join(", ")),
    }
}

fn kind_is_new(status: &Status) -> bool {
    status.code == 404 && (status.details.as_ref().is_none_or(|details| details.name.is_empty()))
}

/// An API server's refusal in words: which fields, and what to do.
pub(crate) fn explain(place: &str, doing: &str, error: kube::Error) -> anyhow::Error {
    let kube::Error::Api(status) = &error else {
        return anyhow::Error::new(error).context(format!("{doing} {place}"));
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let fields: Vec<String> = causes
        .filter(|cause| !cause.field.is_empty())
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect();
    let said = if fields.is_empty() {
        status.message.clone()
    } else {
        fields.join("; ")
    };
    let fix = match status.code {
        401 => "the credentials of the kubeconfig are not accepted: renew them",
        403 => "ask for that right, or use a kubeconfig of a cluster administrator",
        409 => "another tool manages these fields: let it go on doing so, or take them over with --force",
        404 => "does the namespace exist, and does this cluster serve the kind?",
        422 => "correct the value; --dry-run prints what is applied",
        _ => "",
    };
    let fix = if fix.is_empty() {
        String::new()
    } else {
        format!(" ({fix})")
    };
    anyhow!("{doing} {place}: {said}{fix}")
}

/// The object as plain JSON.
pub(crate) fn json(object: &DynamicObject) -> anyhow::Result<Value> {
    serde_json::to_value(object).context("writing an object as JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_names_object_field_and_fix() {
        let status = |code: u16, details: Value| {
            let status = json!({"status": "Failure", "code": code, "message": "no", "reason": "r", "details": details});
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        let field = json!({"causes": [{"field": "spec.port", "message": "is 0", "reason": "x"}]});
        let said = explain("Service a/b", "applying", status(422, field)).to_string();
        assert_eq!(
            said,
            "applying Service a/b: spec.port: is 0 (correct the value; --dry-run prints what is applied)"
        );
        let said = explain("Node objects", "listing", status(403, json!({}))).to_string();
        assert_eq!(
            said,
            "listing Node objects: no (ask for that right, or use a kubeconfig of a cluster administrator)"
        );
    }

    #[test]
    fn upstreams_definition_is_ours_only_when_it_came_with_us() {
        let of = |group: &str, labels: Value, manager: &str, subresource: &str| {
            is_our_definition(&json!({"spec": {"group": group}, "metadata": {"labels": labels,
                "managedFields": [{"manager": manager, "subresource": subresource}]}}))
        };
        assert!(of("bulkhead.dev", json!({}), "helm", ""));
        let upstream = "policy.networking.k8s.io";
        assert!(of(
            upstream,
            json!({"app.kubernetes.io/part-of": "bulkhead"}),
            "helm",
            ""
        ));
        assert!(of(upstream, json!({}), "bulkhead-controller", ""));
        assert!(!of(upstream, json!({}), "bulkhead-controller", "status"));
        assert!(!of(upstream, json!({}), "kubectl", ""));
    }
}
