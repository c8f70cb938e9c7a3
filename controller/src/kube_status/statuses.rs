//! Writes conditions to the status of objects, by server-side apply: of a status we own our three conditions and nothing else.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bulkhead_crds::cluster_network_policy::Condition;
use bulkhead_policy::model::PolicyKey;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::{ApiResource, DynamicObject},
};
use serde_json::json;

use super::{MANAGER, conditions::conditions};
use crate::progress::{Standing, Standings};

/// First wait after a write that failed; doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);

/// What an object's status says, as far as it is ours.
#[derive(Clone, Debug, Default)]
struct Written {
    uid: String,
    /// Empty until the object was read.
    conditions: Vec<Condition>,
    failures: u32,
    not_before: Option<Instant>,
}

/// The statuses of all objects of kinds that have one.
pub(super) struct Statuses {
    client: Client,
    written: BTreeMap<PolicyKey, Written>,
}

impl Statuses {
    pub(super) fn new(client: Client) -> Self {
        let written = BTreeMap::new();
        Self { client, written }
    }

    /// Remembers nothing: each object is read before it is written.
    pub(super) fn forgotten(self) -> Self {
        Self::new(self.client)
    }

    /// Forgets objects that are gone.
    pub(super) fn retain(&mut self, standings: &Standings) {
        self.written
            .retain(|key, written| standings.get(key).is_some_and(|standing| standing.uid == written.uid));
    }

    /// True when something is to be written now.
    pub(super) fn lacks(&self, key: &PolicyKey, standing: &Standing) -> bool {
        let Some(written) = self.written.get(key) else {
            return true;
        };
        written.not_before.is_none_or(|at| Instant::now() >= at) && !same(&written.conditions, &conditions(standing))
    }

    /// Writes what the object's status lacks.
    pub(super) async fn write(
        &mut self,
        resource: &ApiResource,
        key: &PolicyKey,
        standing: &Standing,
    ) -> kube::Result<()> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let mut written = self.written.get(key).cloned().unwrap_or_default();
        written.uid.clone_from(&standing.uid);
        let result = bring(&api, resource, key, standing, &mut written.conditions).await;
        if result.is_ok() {
            (written.failures, written.not_before) = (0, None);
        } else {
            let wait = RETRY.saturating_mul(1 << written.failures.min(6)).min(RETRY_MAX);
            written.failures = written.failures.saturating_add(1);
            written.not_before = Some(Instant::now() + wait);
            // Who knows what got through.
            written.conditions.clear();
        }
        self.written.insert(key.clone(), written);
        result
    }
}

/// Brings the object's status to what it should be; `known` is what it says.
async fn bring(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    key: &PolicyKey,
    standing: &Standing,
    known: &mut Vec<Condition>,
) -> kube::Result<()> {
    if known.is_empty() {
        let Some(object) = api.get_opt(&key.name).await? else {
            // Gone; the watch will say so.
            *known = conditions(standing).to_vec();
            return Ok(());
        };
        let listed = object.data.pointer("/status/conditions").cloned().unwrap_or_default();
        *known = serde_json::from_value(listed).unwrap_or_default();
    }
    let mut wanted = conditions(standing);
    if same(known, &wanted) {
        return Ok(());
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for condition in &mut wanted {
        let before = known
            .iter()
            .find(|before| before.r#type == condition.r#type && before.status == condition.status);
        condition.last_transition_time =
            before.map_or_else(|| now.clone(), |before| before.last_transition_time.clone());
    }
    let patch = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        // Another object of the same name is not this one.
        "metadata": {"name": key.name, "uid": standing.uid},
        "status": {"conditions": wanted},
    });
    let parameters = PatchParams::apply(MANAGER).force();
    match api.patch_status(&key.name, &parameters, &Patch::Apply(&patch)).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
            // Deleted, or deleted and made again: the watch will say so.
        }
        Err(error) => return Err(error),
    }
    *known = wanted.to_vec();
    Ok(())
}

/// The wanted conditions are there, whenever they came to be.
fn same(known: &[Condition], wanted: &[Condition]) -> bool {
    wanted.iter().all(|wanted| {
        known.iter().any(|known| {
            known.r#type == wanted.r#type
                && known.status == wanted.status
                && known.reason == wanted.reason
                && known.message == wanted.message
                && known.observed_generation == wanted.observed_generation
        })
    })
}
