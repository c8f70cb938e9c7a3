//! Waiting for a Deployment or DaemonSet, and the reason when it does not come.

use std::time::Duration;

use serde_json::Value;

use super::{
    Cluster,
    object::{json, list, number, text},
};

/// A workload's pods: how many it wants, and how many are as they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rollout {
    pub(crate) wanted: i64,
    pub(crate) ready: i64,
    current: bool,
}

impl Rollout {
    /// Reads a Deployment's or DaemonSet's status.
    pub(crate) fn of(object: &Value) -> Self {
        let daemons = text(object, "/kind") == "DaemonSet";
        let status = |deployment: &str, daemon: &str| {
            number(
                object,
                &format!("/status/{}", if daemons { daemon } else { deployment }),
            )
        };
        let wanted = if daemons {
            number(object, "/status/desiredNumberScheduled")
        } else {
            number(object, "/spec/replicas")
        };
        let observed = number(object, "/status/observedGeneration") >= number(object, "/metadata/generation");
        let updated = status("updatedReplicas", "updatedNumberScheduled") >= wanted;
        Self {
            wanted,
            ready: status("availableReplicas", "numberAvailable"),
            current: observed && updated,
        }
    }

    /// True when all of them run the newest template.
    pub(crate) fn done(self) -> bool {
        self.current && self.ready >= self.wanted
    }
}

impl Cluster {
    /// Waits for all pods of a workload; `progress` is told whenever the count changes.
    pub(crate) async fn rolled_out(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        within: Duration,
        mut progress: impl FnMut(Rollout),
    ) -> anyhow::Result<Rollout> {
        let mut before = None;
        let waited = self
            .wait(within, async || {
                let Some(object) = self.find(("apps/v1", kind), namespace, name).await? else {
                    return Ok(Err(format!("{kind} {namespace}/{name} does not exist")));
                };
                let rollout = Rollout::of(&json(&object)?);
                if before != Some(rollout) {
                    progress(rollout);
                    before = Some(rollout);
                }
                Ok(if rollout.done() {
                    Ok(rollout)
                } else {
                    Err(format!(
                        "{kind} {namespace}/{name}: {} of {} pods are ready",
                        rollout.ready, rollout.wanted
                    ))
                })
            })
            .await;
        match waited {
            Ok(rollout) => Ok(rollout),
            Err(error) => {
                let why = self.why_not_ready(namespace, name).await;
                Err(error.context(format!("{kind} {namespace}/{name} is not ready{why}")))
            }
        }
    }

    /// One line for each pod of a workload that is not ready, with the reason kubelet or scheduler gives.
    pub(crate) async fn why_not_ready(&self, namespace: &str, prefix: &str) -> String {
        let Ok(pods) = self.list(("v1", "Pod"), namespace, "").await else {
            return String::new();
        };
        let mut said = String::new();
        for pod in pods.iter().filter_map(|pod| json(pod).ok()) {
            let name = text(&pod, "/metadata/name");
            if name.starts_with(prefix)
                && let Some(why) = trouble(&pod)
            {
                said.extend(["\n  pod ", name, " on ", node(&pod), ": ", &why]);
                if let Some(event) = self.last_warning(namespace, name).await {
                    said.extend(["\n    ", &event]);
                }
            }
        }
        said
    }

    /// What was last complained of about a pod: kubelet says some things only there, such as why its network is refused.
    async fn last_warning(&self, namespace: &str, pod: &str) -> Option<String> {
        let events = self.list(("v1", "Event"), namespace, "").await.ok()?;
        let events = events.iter().filter_map(|event| json(event).ok());
        let of_pod = events.filter(|event| {
            text(event, "/involvedObject/kind") == "Pod"
                && text(event, "/involvedObject/name") == pod
                && text(event, "/type") == "Warning"
        });
        let last = of_pod.max_by_key(|event| text(event, "/lastTimestamp").to_owned())?;
        Some(format!("{}: {}", text(&last, "/reason"), text(&last, "/message")))
    }
}

fn node(pod: &Value) -> &str {
    match text(pod, "/spec/nodeName") {
        "" => "no node",
        node => node,
    }
}

/// Why a pod is not ready; `None` when it is.
pub(crate) fn trouble(pod: &Value) -> Option<String> {
    let conditions = list(pod, "/status/conditions");
    let is = |kind: &str| conditions.iter().find(|condition| text(condition, "/type") == kind);
    if is("Ready").is_some_and(|condition| text(condition, "/status") == "True") {
        return None;
    }
    let containers = list(pod, "/status/initContainerStatuses")
        .iter()
        .chain(list(pod, "/status/containerStatuses"));
    for status in containers {
        for state in ["/state/waiting", "/state/terminated", "/lastState/terminated"] {
            let (reason, message) = (
                text(status, &format!("{state}/reason")),
                text(status, &format!("{state}/message")),
            );
            if !reason.is_empty() && reason != "Completed" && reason != "PodInitializing" {
                let fix = match reason {
                    "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" => {
                        "; is the image at --image-repository, with --image-tag?"
                    }
                    "CrashLoopBackOff" | "Error" => "; its log says more: kubectl logs",
                    _ => "",
                };
                return Some(format!("container {}: {reason} {message}{fix}", text(status, "/name")));
            }
        }
    }
    let unmet = ["PodScheduled", "Ready"].into_iter().filter_map(is);
    let mut unmet =
        unmet.filter(|condition| text(condition, "/status") != "True" && !text(condition, "/message").is_empty());
    Some(unmet.next().map_or_else(
        || format!("phase {}", text(pod, "/status/phase")),
        |condition| text(condition, "/message").to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rollout_is_done_when_the_newest_template_runs_everywhere() {
        let set = |observed: i64, updated: i64, available: i64| {
            Rollout::of(&json!({"kind": "DaemonSet", "metadata": {"generation": 2}, "status": {
                "observedGeneration": observed, "desiredNumberScheduled": 2, "updatedNumberScheduled": updated,
                "numberAvailable": available}}))
        };
        assert!(set(2, 2, 2).done());
        for (observed, updated, available) in [(1, 2, 2), (2, 1, 2), (2, 2, 1)] {
            assert!(!set(observed, updated, available).done());
        }
    }

    #[test]
    fn a_pod_says_why_it_is_not_ready() {
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        assert_eq!(trouble(&ready), None);
        let pull = json!({"status": {"containerStatuses": [{"name": "agent", "state": {"waiting": {
            "reason": "ErrImagePull", "message": "no such host"}}}]}});
        let said = trouble(&pull).unwrap();
        assert!(
            said.contains("container agent: ErrImagePull no such host") && said.contains("--image-repository"),
            "{said}"
        );
        let unscheduled = json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
            "message": "0/2 nodes are available"}]}});
        assert_eq!(trouble(&unscheduled).unwrap(), "0/2 nodes are available");
    }
}
