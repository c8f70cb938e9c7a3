//! Writes findings as Events on objects: all of them where the kind has no status, errors where it has one. An Event's name is made
//! of what it says, so that it is there once whoever writes it, and again only after the API server has dropped it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bulkhead_policy::{
    diagnostic::{Diagnostic, Severity},
    digest::Digest,
    model::{PolicyKey, PolicyKind},
};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};

use crate::progress::Standing;

/// An API server keeps Events for an hour by default; what is still wrong then is said again.
const KEPT: Duration = Duration::from_mins(61);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(30);
/// Findings of one object that become Events.
const PER_OBJECT_MAX: usize = 5;
/// Events remembered; of more it is not said that they are there.
const REMEMBERED_MAX: usize = 20_000;
/// Bytes of a note and characters of an object's name in the Event's.
const NOTE_MAX: usize = 1_000;
const NAME_MAX: usize = 200;

/// Events that are there already.
pub(super) struct Events {
    client: Client,
    identity: String,
    /// Namespace and name, and when to look again.
    said: BTreeMap<(String, String), Instant>,
}

impl Events {
    pub(super) fn new(client: Client, identity: String) -> Self {
        let said = BTreeMap::new();
        Self { client, identity, said }
    }

    /// Forgets Events that the API server has dropped.
    pub(super) fn forget_old(&mut self) {
        let now = Instant::now();
        self.said.retain(|_, until| *until > now);
    }

    /// True when something is to be said.
    pub(super) fn lacks(&self, key: &PolicyKey, standing: &Standing) -> bool {
        self.said.len() < REMEMBERED_MAX && self.missing(key, standing).next().is_some()
    }

    fn missing<'a>(
        &'a self,
        key: &'a PolicyKey,
        standing: &'a Standing,
    ) -> impl Iterator<Item = (String, &'a Diagnostic)> {
        // A warning is in the condition Accepted.
        let errors_only = super::status_of(key.kind).is_some();
        let findings = standing.findings.iter();
        let named = findings
            .filter(move |found| !errors_only || found.severity == Severity::Error)
            .take(PER_OBJECT_MAX)
            .map(|found| (name(key, standing, found), found));
        named.filter(|(name, _)| !self.said.contains_key(&(namespace(key).to_owned(), name.clone())))
    }

    /// Says what has not been said.
    pub(super) async fn write(&mut self, key: &PolicyKey, standing: &Standing) -> kube::Result<()> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace(key));
        let missing: Vec<(String, Diagnostic)> = self
            .missing(key, standing)
            .map(|(name, found)| (name, found.clone()))
            .collect();
        let mut result = Ok(());
        for (name, found) in missing {
            let event = event(&name, key, standing, &found, &self.identity);
            let again = match api.create(&PostParams::default(), &event).await {
                Ok(_) => KEPT,
                Err(kube::Error::Api(status)) if status.is_already_exists() => KEPT,
                // The namespace is gone or going.
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_forbidden() => RETRY,
                Err(error) => {
                    result = Err(error);
                    RETRY
                }
            };
            self.said
                .insert((namespace(key).to_owned(), name), Instant::now() + again);
        }
        result
    }
}

/// Where Events of an object are: those of cluster-wide ones where everybody's are.
fn namespace(key: &PolicyKey) -> &str {
    match key.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    }
}

fn name(key: &PolicyKey, standing: &Standing, found: &Diagnostic) -> String {
    let generation = standing.generation.to_be_bytes();
    let parts = [
        standing.uid.as_bytes(),
        &generation,
        found.field.as_bytes(),
        found.message.as_bytes(),
    ];
    let object: String = key.name.chars().take(NAME_MAX).collect();
    format!("{object}.{}", Digest::of("bulkhead.dev/event/v1", parts).short())
}

fn event(name: &str, key: &PolicyKey, standing: &Standing, found: &Diagnostic, identity: &str) -> Event {
    let api_version = match key.kind {
        PolicyKind::NetworkPolicy => "networking.k8s.io/v1",
        PolicyKind::ClusterNetworkPolicy => "policy.networking.k8s.io/v1alpha2",
        PolicyKind::SegmentPolicy | PolicyKind::ClusterSegmentPolicy => "bulkhead.dev/v1alpha1",
    };
    let field = if found.field.is_empty() {
        String::new()
    } else {
        format!("{}: ", found.field)
    };
    let mut note = format!("{field}{}", found.message);
    while note.len() > NOTE_MAX {
        note.pop();
    }
    let reason = match found.severity {
        Severity::Error => "Invalid",
        Severity::Warning => "Suspicious",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace(key).to_owned()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(key.kind.to_string()),
            namespace: Some(key.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(key.name.clone()),
            uid: Some(standing.uid.clone()),
            ..ObjectReference::default()
        }),
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        action: Some("Compile".to_owned()),
        note: Some(note),
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some("bulkhead.dev/controller".to_owned()),
        reporting_instance: Some(identity.to_owned()),
        ..Event::default()
    }
}
