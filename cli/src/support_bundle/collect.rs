//! Which parts a bundle has, and where each comes from. A part that cannot be had becomes a line of missing.txt.

use futures::{StreamExt as _, stream};
use kube::api::LogParams;
use serde_json::Value;

use super::{Arguments, archive::Archive};
use crate::cluster::{
    Cluster,
    inside::{NoAnswer, port_of, socket_of},
    object::{self, list, number, place, text},
    rollout::trouble,
};

/// Pods that are asked at the same time.
const AT_ONCE: usize = 8;
/// What is in the namespace of controller and agents. Never a Secret.
const OF_OURS: [(&str, &str, &str); 5] = [
    ("apps/v1", "Deployment", "deployments"),
    ("apps/v1", "DaemonSet", "daemonsets"),
    ("v1", "Pod", "pods"),
    ("v1", "Event", "events"),
    ("coordination.k8s.io/v1", "Lease", "leases"),
];
/// Objects of the cluster that the controller reads besides pods, and what says how it is reached.
const OF_CLUSTER: [(&str, &str, &str); 4] = [
    ("v1", "Node", "nodes"),
    ("v1", "Namespace", "namespaces"),
    (
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    ),
    (
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    ),
];
const POLICIES: [(&str, &str, &str); 5] = [
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    (
        "policy.networking.k8s.io/v1alpha2",
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
    ),
    ("bulkhead.dev/v1alpha1", "SegmentPolicy", "segmentpolicies"),
    (
        "bulkhead.dev/v1alpha1",
        "ClusterSegmentPolicy",
        "clustersegmentpolicies",
    ),
    ("bulkhead.dev/v1alpha1", "AddressGroup", "addressgroups"),
];

type Part = (String, anyhow::Result<Vec<u8>>);

/// A bundle being filled.
pub(super) struct Collection<'a> {
    cluster: &'a Cluster,
    arguments: &'a Arguments,
    archive: &'a mut Archive,
    /// Lines of the overview.
    overview: Vec<String>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

impl<'a> Collection<'a> {
    pub(super) fn new(cluster: &'a Cluster, arguments: &'a Arguments, archive: &'a mut Archive) -> Self {
        Self {
            cluster,
            arguments,
            archive,
            overview: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Collects all parts; gives how many could not be had.
    ///
    /// # Errors
    /// Only when the archive cannot be written.
    pub(super) async fn everything(mut self) -> anyhow::Result<usize> {
        self.overview.push(format!(
            "bulkhead {}, Kubernetes {}, namespace {}",
            env!("CARGO_PKG_VERSION"),
            self.cluster.version,
            self.arguments.namespace
        ));
        let namespace = self.arguments.namespace.clone();
        for (version, kind, plural) in OF_OURS {
            self.objects((version, kind), &namespace, &format!("bulkhead/{plural}.json"))
                .await?;
        }
        for (version, kind, plural) in OF_CLUSTER {
            self.objects((version, kind), "", &format!("cluster/{plural}.json"))
                .await?;
        }
        self.overview
            .push("\nPolicies and what their conditions say:".to_owned());
        for (version, kind, plural) in POLICIES {
            self.objects((version, kind), "", &format!("policies/{plural}.json"))
                .await?;
        }
        self.objects(("events.k8s.io/v1", "Event"), "", "policies/events.json")
            .await?;
        self.pods("controller").await?;
        self.pods("agent").await?;
        let missing = self.missing.len();
        if missing == 0 {
            self.missing.push("nothing is missing".to_owned());
        }
        self.archive.add("missing.txt", lines(&self.missing).as_bytes())?;
        self.archive.add("overview.txt", lines(&self.overview).as_bytes())?;
        Ok(missing)
    }

    fn put(&mut self, (name, part): Part) -> anyhow::Result<()> {
        match part {
            Ok(text) => self.archive.add(&name, &text).map(drop),
            Err(error) => {
                self.missing.push(format!("{name}: {error:#}"));
                Ok(())
            }
        }
    }

    async fn objects(&mut self, of: (&str, &str), namespace: &str, name: &str) -> anyhow::Result<()> {
        let found = self.cluster.list(of, namespace, "").await;
        let part = found.and_then(|found| {
            let mut bodies = Vec::new();
            for object in &found {
                let mut body = object::json(object)?;
                if concerns_us(of.1, namespace, &body) {
                    shorten(&mut body);
                    self.overview.extend(conditions(of.1, &body));
                    bodies.push(body);
                }
            }
            Ok(serde_json::to_vec_pretty(&bodies)?)
        });
        self.put((name.to_owned(), part))
    }

    /// Every pod of one part of ours: what it says of itself, and its log.
    async fn pods(&mut self, component: &str) -> anyhow::Result<()> {
        let (cluster, arguments) = (self.cluster, self.arguments);
        let labels = format!("app.kubernetes.io/name=bulkhead,app.kubernetes.io/component={component}");
        let pods = match cluster.list(("v1", "Pod"), &arguments.namespace, &labels).await {
            Ok(pods) => pods,
            Err(error) => return self.put((format!("{component}s"), Err(error))),
        };
        self.overview
            .push(format!("\nPods of the {component} ({}):", pods.len()));
        if pods.is_empty() {
            let none = anyhow::anyhow!("no pod with labels {labels} in namespace {}", arguments.namespace);
            self.put((format!("{component}s"), Err(none)))?;
        }
        let pods: Vec<Value> = pods.iter().filter_map(|pod| object::json(pod).ok()).collect();
        self.overview.extend(pods.iter().map(pod_line));
        let of_pods = stream::iter(&pods).map(|pod| of_pod(cluster, arguments, component, pod));
        let mut of_pods = of_pods.buffer_unordered(AT_ONCE);
        while let Some(parts) = of_pods.next().await {
            for part in parts {
                self.put(part)?;
            }
        }
        Ok(())
    }
}

fn lines(lines: &[String]) -> String {
    lines.join("\n") + "\n"
}

/// Of kinds that others use too, those of ours; of Events everywhere, those that our controller wrote.
fn concerns_us(kind: &str, namespace: &str, body: &Value) -> bool {
    match kind {
        "CustomResourceDefinition" => {
            matches!(text(body, "/spec/group"), "bulkhead.dev" | "policy.networking.k8s.io")
        }
        "Event" if namespace.is_empty() => text(body, "/reportingController").starts_with("bulkhead"),
        _ => true,
    }
}

/// Takes out what is long and says nothing.
fn shorten(body: &mut Value) {
    let mut without = |parent: &str, field: &str| {
        if let Some(parent) = body.pointer_mut(parent).and_then(Value::as_object_mut) {
            parent.remove(field);
        }
    };
    without("/metadata", "managedFields");
    // A copy of the object, with whatever was in it when it was applied.
    without(
        "/metadata/annotations",
        "kubectl.kubernetes.io/last-applied-configuration",
    );
    without("/status", "images");
    for version in body
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(version) = version.as_object_mut() {
            version.remove("schema");
        }
    }
}

/// One line for each condition of a policy.
fn conditions(kind: &str, body: &Value) -> Vec<String> {
    if !POLICIES.iter().any(|(_, policy, _)| *policy == kind) {
        return Vec::new();
    }
    let name = place(kind, text(body, "/metadata/namespace"), text(body, "/metadata/name"));
    let mut lines = vec![format!("  {name}, generation {}", number(body, "/metadata/generation"))];
    for condition in list(body, "/status/conditions") {
        lines.push(format!(
            "    {}={} (generation {}): {}",
            text(condition, "/type"),
            text(condition, "/status"),
            number(condition, "/observedGeneration"),
            text(condition, "/message")
        ));
    }
    lines
}

fn pod_line(pod: &Value) -> String {
    let state = trouble(pod).unwrap_or_else(|| "ready".to_owned());
    format!(
        "  {} on {}: {state}; {} restarts, image {}",
        text(pod, "/metadata/name"),
        text(pod, "/spec/nodeName"),
        number(pod, "/status/containerStatuses/0/restartCount"),
        text(pod, "/spec/containers/0/image")
    )
}

/// What a pod is asked: of the command line in its image, and of its ports.
async fn of_pod(cluster: &Cluster, arguments: &Arguments, component: &str, pod: &Value) -> Vec<Part> {
    let (namespace, name) = (&*arguments.namespace, text(pod, "/metadata/name"));
    let folder = match component {
        "agent" => format!("nodes/{}", text(pod, "/spec/nodeName")),
        _ => format!("controllers/{name}"),
    };
    let place = (namespace, name, component);
    let mut parts = Vec::new();
    let lines = i64::from(arguments.log_lines);
    let mut logs = vec![("log.txt", false)];
    if number(pod, "/status/containerStatuses/0/restartCount") > 0 {
        logs.push(("log-before-restart.txt", true));
    }
    for (file, previous) in logs {
        let params = LogParams {
            container: Some(component.to_owned()),
            tail_lines: Some(lines),
            previous,
            ..LogParams::default()
        };
        let log = cluster.log(namespace, name, &params).await.map(String::into_bytes);
        parts.push((format!("{folder}/{file}"), log));
    }
    let last = format!("--last={}", arguments.flows);
    let mut commands: Vec<(&str, Vec<&str>)> = vec![("status.json", vec!["bulkhead", "status", "--output=json"])];
    let mut pages = Vec::new();
    if component == "agent" {
        commands.push(("endpoints.json", vec!["bulkhead", "endpoints", "--output=json"]));
        if !arguments.without_flows {
            commands.push(("flows.jsonl", vec!["bulkhead", "flows", &last, "--output=json"]));
        }
        pages.push(("--health-listen=", "/metrics", "metrics.txt"));
    } else {
        pages.push(("--debug-listen=", "/debug/state", "state.json"));
        pages.push(("--metrics-listen=", "/metrics", "metrics.txt"));
    }
    let socket = socket_of(pod);
    // Once nothing answers in time, the rest is not waited for.
    let mut silent = false;
    for (file, mut command) in commands {
        command.extend(socket.as_deref());
        let answer = if silent {
            Err(anyhow::anyhow!("not asked, because pod {name} did not answer before"))
        } else {
            cluster.run_in(place, &command).await
        };
        silent |= answer.as_ref().is_err_and(anyhow::Error::is::<NoAnswer>);
        parts.push((format!("{folder}/{file}"), answer));
    }
    for (flag, path, file) in pages {
        let page = match port_of(pod, flag) {
            _ if silent => Err(anyhow::anyhow!("not asked, because pod {name} did not answer before")),
            Some(port) => cluster.page_of(namespace, name, port, path).await,
            None => Err(anyhow::anyhow!("pod {name} has no argument {flag}ADDRESS:PORT")),
        };
        parts.push((format!("{folder}/{file}"), page));
    }
    parts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_are_shortened_and_others_are_left_out() {
        let mut body = json!({"metadata": {"managedFields": [1], "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "x", "kept": "y"}},
            "spec": {"group": "bulkhead.dev", "versions": [{"name": "v1alpha1", "schema": {"a": 1}}]},
            "status": {"images": [1], "conditions": [2]}});
        assert!(concerns_us("CustomResourceDefinition", "", &body));
        shorten(&mut body);
        let wanted = json!({"metadata": {"annotations": {"kept": "y"}},
            "spec": {"group": "bulkhead.dev", "versions": [{"name": "v1alpha1"}]}, "status": {"conditions": [2]}});
        assert_eq!(body, wanted);
        let foreign = json!({"spec": {"group": "example.org"}, "reportingController": "kubelet"});
        assert!(!concerns_us("CustomResourceDefinition", "", &foreign));
        assert!(!concerns_us("Event", "", &foreign));
        assert!(concerns_us("Event", "bulkhead-system", &foreign));
    }

    #[test]
    fn secrets_are_no_part() {
        let all = OF_OURS.iter().chain(&OF_CLUSTER).chain(&POLICIES);
        for (_, kind, _) in all {
            assert!(!matches!(*kind, "Secret" | "ConfigMap"), "{kind}");
        }
    }

    #[test]
    fn the_overview_says_what_conditions_say() {
        let policy = json!({"metadata": {"name": "a", "namespace": "n", "generation": 2}, "status": {"conditions": [
            {"type": "Enforced", "status": "False", "observedGeneration": 1, "message": "waits for n2"}]}});
        let wanted = [
            "  SegmentPolicy n/a, generation 2",
            "    Enforced=False (generation 1): waits for n2",
        ];
        assert_eq!(conditions("SegmentPolicy", &policy), wanted);
        assert!(conditions("Pod", &policy).is_empty());
    }
}
