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

/// Nodes have so long to come back to a controller that starts, before it says of a policy that it is not enforced any more.
const COMING_BACK: Duration = Duration::from_secs(30);

/// What an object's status says, as far as it is ours.
#[derive(Clone, Debug, Default)]
struct Written {
    uid: String,
    /// Empty until the object was read.
    conditions: Vec<Condition>,
    /// This process said so, not one before it.
    ours: bool,
    failures: u32,
    not_before: Option<Instant>,
}

/// The statuses of all objects of kinds that have one.
pub(super) struct Statuses {
    client: Client,
    started: Instant,
    written: BTreeMap<PolicyKey, Written>,
}

impl Statuses {
    /// Nothing is remembered; `started` is when this process did.
    pub(super) fn new(client: Client, started: Instant) -> Self {
        Self {
            client,
            started,
            written: BTreeMap::new(),
        }
    }

    /// Remembers nothing: each object is read before it is written.
    pub(super) fn forgotten(self) -> Self {
        Self::new(self.client, self.started)
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
        let wanted = conditions(standing);
        written.not_before.is_none_or(|at| Instant::now() >= at)
            && !same(&written.conditions, &wanted)
            && !self.too_early(written, &wanted)
    }

    /// An earlier process knew that this generation is enforced, and the nodes that would say so again are on their way.
    fn too_early(&self, written: &Written, wanted: &[Condition]) -> bool {
        let (Some(known), Some(wanted)) = (find(&written.conditions, "Enforced"), find(wanted, "Enforced")) else {
            return false;
        };
        !written.ours
            && self.started.elapsed() < COMING_BACK
            && known.status == "True"
            && wanted.reason == "Pending"
            && known.observed_generation == wanted.observed_generation
    }

    /// Writes what the object's status lacks.
    pub(super) async fn write(
        &mut self,
        resource: &ApiResource,
        key: &PolicyKey,
        standing: &Standing,
    ) -> kube::Result<()> {
        let client = self.client.clone();
        let api: Api<DynamicObject> = match key.namespace.as_str() {
            "" => Api::all_with(client, resource),
            namespace => Api::namespaced_with(client, namespace, resource),
        };
        let mut written = self.written.get(key).cloned().unwrap_or_default();
        written.uid.clone_from(&standing.uid);
        let result = match read(&api, key, standing, &mut written.conditions).await {
            Ok(()) if self.too_early(&written, &conditions(standing)) => Ok(()),
            Ok(()) => {
                written.ours = true;
                bring(&api, resource, key, standing, &mut written.conditions).await
            }
            Err(error) => Err(error),
        };
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

/// Reads what the object's status says, where it is not known.
async fn read(
    api: &Api<DynamicObject>,
    key: &PolicyKey,
    standing: &Standing,
    known: &mut Vec<Condition>,
) -> kube::Result<()> {
    if known.is_empty() {
        *known = match api.get_opt(&key.name).await? {
            Some(object) => {
                let listed = object.data.pointer("/status/conditions").cloned().unwrap_or_default();
                serde_json::from_value(listed).unwrap_or_default()
            }
            // Gone; the watch will say so.
            None => conditions(standing).to_vec(),
        };
    }
    Ok(())
}

/// Brings the object's status to what it should be; `known` is what it says.
async fn bring(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    key: &PolicyKey,
    standing: &Standing,
    known: &mut Vec<Condition>,
) -> kube::Result<()> {
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

/// A condition of a list.
fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.r#type == kind)
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
