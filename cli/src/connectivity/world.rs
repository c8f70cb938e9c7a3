//! The pods and Services of the test: starting them, reading what clients see, and taking all of it away.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, bail};
use kube::api::LogParams;
use serde_json::{Value, json};

use super::{
    matrix::{CLUSTER_POLICIES, Client, Goal, PORTS, far},
    roles::Round,
    why::addresses_of,
};
use crate::cluster::{
    Cluster, MANAGED_BY,
    object::{self, Manifest, list, text},
};

/// Who made the test's objects: an earlier test's leftovers are known by it, and nobody else's namespace is taken.
const OWNER: &str = "bulkhead-connectivity-test";
/// Longest time for what is deleted to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(90);
const CLUSTER_POLICY: (&str, &str) = ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy");
/// Lines of a client's log that are read: rounds are a second apart at most.
const LINES: i64 = 12;

/// Where a name of a client's results leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub(super) goal: Goal,
    /// For people: `pod on same node, 10.0.0.1:8080`.
    pub(super) said: String,
    /// What may stand for it in a flow record: the address tried, and of a Service the pods behind it.
    pub(super) addresses: Vec<SocketAddr>,
}

/// The running test.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) namespace: String,
    pub(super) image: String,
    /// Longest time for pods to start.
    pub(super) start_within: Duration,
    /// Longest time for a step to become as expected.
    pub(super) within: Duration,
    /// Nodes of the pair: one or two.
    pub(super) nodes: Vec<String>,
    /// What clients try, by name.
    pub(super) ways: BTreeMap<String, Way>,
}

impl World {
    /// Starts all pods; clients are probing when this returns.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        self.take_namespaces().await?;
        for (number, node) in self.nodes.clone().iter().enumerate() {
            let ports: Vec<String> = PORTS.iter().map(|port| format!("--port={port}")).collect();
            let name = format!("server-{}", number + 1);
            self.make(self.pod(&self.namespace, &name, "server", node, "serve", &ports))
                .await?;
            self.make(self.service(&name)).await?;
        }
        let mut targets = Vec::new();
        for number in 1..=self.nodes.len() {
            self.targets_of(number, &mut targets).await?;
        }
        self.dns(&mut targets).await?;
        let node = self.nodes.first().cloned().unwrap_or_default();
        for client in Client::ALL {
            let namespace = self.namespace_of(client);
            self.make(self.pod(&namespace, client.name(), client.name(), &node, "probe", &targets))
                .await?;
        }
        for client in Client::ALL {
            self.running(&self.namespace_of(client), client.name()).await?;
        }
        Ok(())
    }

    pub(super) fn namespace_of(&self, client: Client) -> String {
        match client {
            Client::Far => far(&self.namespace),
            Client::Friend | Client::Stranger => self.namespace.clone(),
        }
    }

    async fn take_namespaces(&self) -> anyhow::Result<()> {
        for name in [self.namespace.clone(), far(&self.namespace)] {
            let Some(found) = self.cluster.find(("v1", "Namespace"), "", &name).await? else {
                continue;
            };
            if found
                .metadata
                .labels
                .unwrap_or_default()
                .get(MANAGED_BY)
                .is_none_or(|by| by != OWNER)
            {
                bail!("Namespace {name} exists and is not of an earlier test: give another --namespace");
            }
        }
        self.clean().await?;
        for name in [self.namespace.clone(), far(&self.namespace)] {
            self.make(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {MANAGED_BY: OWNER}}}))
                .await?;
        }
        for name in [self.namespace.clone(), far(&self.namespace)] {
            // A pod is refused until the controller manager has made it.
            self.cluster
                .wait(self.start_within, async || {
                    let found = self.cluster.find(("v1", "ServiceAccount"), &name, "default").await?;
                    Ok(found
                        .map(drop)
                        .ok_or_else(|| format!("Namespace {name} gets no ServiceAccount default")))
                })
                .await?;
        }
        Ok(())
    }

    /// One or two nodes that take ordinary pods.
    pub(super) async fn choose_nodes(&self) -> anyhow::Result<Vec<String>> {
        let mut names = Vec::new();
        for node in self.cluster.list(("v1", "Node"), "", "").await? {
            let node = object::json(&node)?;
            let ready = list(&node, "/status/conditions")
                .iter()
                .any(|condition| text(condition, "/type") == "Ready" && text(condition, "/status") == "True");
            let taints = list(&node, "/spec/taints").iter();
            let mut closed = taints.filter(|taint| text(taint, "/effect") != "PreferNoSchedule");
            if ready && node.pointer("/spec/unschedulable") != Some(&Value::Bool(true)) && closed.next().is_none() {
                names.push(text(&node, "/metadata/name").to_owned());
            }
        }
        names.truncate(2);
        if names.is_empty() {
            bail!("no node is Ready and takes ordinary pods: kubectl get nodes");
        }
        Ok(names)
    }

    async fn make(&self, body: Value) -> anyhow::Result<()> {
        self.cluster.apply(&Manifest::new(body)?, true).await.map(drop)
    }

    fn pod(&self, namespace: &str, name: &str, app: &str, node: &str, role: &str, arguments: &[String]) -> Value {
        let mut all = vec!["connectivity".to_owned(), role.to_owned()];
        all.extend_from_slice(arguments);
        json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app, "server": name, MANAGED_BY: OWNER}},
        "spec": {
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 1, "enableServiceLinks": false,
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}}},
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": role, "image": self.image, "args": all,
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]}}}],
        }})
    }

    fn service(&self, name: &str) -> Value {
        let ports = PORTS.map(|port| json!({"name": format!("p{port}"), "port": port}));
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"selector": {"server": name}, "ipFamilyPolicy": "PreferDualStack", "ports": ports}})
    }

    /// Waits until a pod runs; gives it as it is then.
    async fn running(&self, namespace: &str, name: &str) -> anyhow::Result<Value> {
        let started = self.cluster.wait(self.start_within, async || {
            let Some(pod) = self.cluster.find(("v1", "Pod"), namespace, name).await? else {
                return Ok(Err(format!("pod {namespace}/{name} is gone")));
            };
            let pod = object::json(&pod)?;
            let here = text(&pod, "/status/phase") == "Running" && !list(&pod, "/status/podIPs").is_empty();
            Ok(if here {
                Ok(pod)
            } else {
                Err(format!("pod {namespace}/{name} does not run"))
            })
        });
        match started.await {
            Ok(pod) => Ok(pod),
            Err(error) => {
                let why = self.cluster.why_not_ready(namespace, name).await;
                Err(error.context(format!(
                    "the test cannot begin with image {}; --image names another{why}",
                    self.image
                )))
            }
        }
    }

    /// Every address of a server and of its Service, with every port.
    async fn targets_of(&mut self, number: usize, targets: &mut Vec<String>) -> anyhow::Result<()> {
        let name = format!("server-{number}");
        let place = if number == 1 { "same node" } else { "other node" };
        let pod = self.running(&self.namespace, &name).await?;
        let service = self.cluster.find(("v1", "Service"), &self.namespace, &name).await?;
        let service = object::json(&service.with_context(|| format!("Service {name} is gone"))?)?;
        let of_pod = list(&pod, "/status/podIPs")
            .iter()
            .map(|address| ("pod", text(address, "/ip")));
        let of_service = list(&service, "/spec/clusterIPs")
            .iter()
            .filter_map(Value::as_str)
            .map(|address| ("Service", address));
        let behind = addresses_of(std::slice::from_ref(&pod));
        for (kind, address) in of_pod.chain(of_service) {
            let address: IpAddr = address.parse().with_context(|| format!("address of {kind} {name}"))?;
            for port in PORTS {
                let addresses = if kind == "pod" { &[][..] } else { &behind };
                let addresses = addresses.iter().chain([&address]);
                let way = Way {
                    goal: Goal::Port(port),
                    addresses: addresses.map(|address| SocketAddr::new(*address, port)).collect(),
                    said: format!("{kind} on {place}, {}", SocketAddr::new(address, port)),
                };
                let address = SocketAddr::new(address, port);
                self.add(way, &format!("tcp://{address}"), targets);
            }
        }
        Ok(())
    }

    /// The cluster's DNS, where it has one by the usual name.
    async fn dns(&mut self, targets: &mut Vec<String>) -> anyhow::Result<()> {
        let found = self
            .cluster
            .list(("v1", "Service"), "kube-system", "k8s-app=kube-dns")
            .await?;
        let Some(service) = found.first() else {
            return Ok(());
        };
        let mut pods = Vec::new();
        for pod in self
            .cluster
            .list(("v1", "Pod"), "kube-system", "k8s-app=kube-dns")
            .await?
        {
            pods.push(object::json(&pod)?);
        }
        let behind = addresses_of(&pods);
        for address in list(&object::json(service)?, "/spec/clusterIPs")
            .iter()
            .filter_map(Value::as_str)
        {
            let address = SocketAddr::new(address.parse().context("address of the DNS Service")?, 53);
            let pods = behind.iter().map(|address| SocketAddr::new(*address, 53));
            let way = Way {
                goal: Goal::Dns,
                addresses: pods.chain([address]).collect(),
                said: format!("DNS, {address}"),
            };
            self.add(way, &format!("dns://{address}"), targets);
        }
        Ok(())
    }

    fn add(&mut self, way: Way, place: &str, targets: &mut Vec<String>) {
        let name = format!("t{}", self.ways.len());
        targets.push(format!("--target={name}={place}"));
        self.ways.insert(name, way);
    }

    /// The last rounds a client has printed.
    pub(super) async fn rounds(&self, client: Client) -> anyhow::Result<Vec<Round>> {
        let params = LogParams {
            tail_lines: Some(LINES),
            ..LogParams::default()
        };
        let text = self
            .cluster
            .log(&self.namespace_of(client), client.name(), &params)
            .await?;
        // The last line may be on its way.
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// Makes the policies exactly these. Gives the names of ClusterNetworkPolicies among them.
    pub(super) async fn set_policies(&self, before: &[Value], now: &[Value]) -> anyhow::Result<Vec<String>> {
        let mut clusters = Vec::new();
        for policy in now {
            self.make(policy.clone()).await?;
            if text(policy, "/kind") == CLUSTER_POLICY.1 {
                clusters.push(text(policy, "/metadata/name").to_owned());
            }
        }
        for policy in before
            .iter()
            .filter(|policy| !now.iter().any(|kept| same_object(policy, kept)))
        {
            let of = (text(policy, "/apiVersion"), text(policy, "/kind"));
            self.cluster
                .remove(of, text(policy, "/metadata/namespace"), text(policy, "/metadata/name"))
                .await?;
        }
        Ok(clusters)
    }

    /// Waits until a ClusterNetworkPolicy says that it is enforced.
    pub(super) async fn enforced(&self, name: &str) -> anyhow::Result<()> {
        self.cluster
            .wait(self.within, async || {
                let Some(policy) = self.cluster.find(CLUSTER_POLICY, "", name).await? else {
                    return Ok(Err(format!("ClusterNetworkPolicy {name} is gone")));
                };
                let policy = object::json(&policy)?;
                let condition = list(&policy, "/status/conditions")
                    .iter()
                    .find(|it| text(it, "/type") == "Enforced");
                let Some(condition) = condition else {
                    return Ok(Err(format!(
                        "ClusterNetworkPolicy {name} has no condition Enforced: does a controller run?"
                    )));
                };
                let current = condition.get("observedGeneration") == policy.pointer("/metadata/generation");
                Ok(if current && text(condition, "/status") == "True" {
                    Ok(())
                } else {
                    Err(format!(
                        "ClusterNetworkPolicy {name} is not enforced: {}",
                        text(condition, "/message")
                    ))
                })
            })
            .await
    }

    /// True when the cluster has the kind ClusterNetworkPolicy in the version we use.
    pub(super) async fn has_cluster_policies(&self) -> bool {
        self.cluster
            .api(&object::kind_of(CLUSTER_POLICY.0, CLUSTER_POLICY.1), "")
            .list(&kube::api::ListParams::default())
            .await
            .is_ok()
    }

    /// Deletes everything of the test, and waits until it is gone.
    pub(super) async fn clean(&self) -> anyhow::Result<()> {
        for name in CLUSTER_POLICIES {
            self.cluster.remove(CLUSTER_POLICY, "", name).await?;
        }
        let namespaces = [self.namespace.clone(), far(&self.namespace)];
        for name in &namespaces {
            self.cluster.remove(("v1", "Namespace"), "", name).await?;
        }
        for name in &namespaces {
            self.cluster.gone(("v1", "Namespace"), "", name, GONE_WITHIN).await?;
        }
        Ok(())
    }
}

/// True for two manifests of one object.
fn same_object(one: &Value, other: &Value) -> bool {
    ["/kind", "/metadata/namespace", "/metadata/name"]
        .iter()
        .all(|field| one.pointer(field) == other.pointer(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connectivity::matrix::steps;

    #[test]
    fn a_policy_that_changes_from_one_step_to_the_next_is_the_same_object() {
        let steps = steps("t");
        let changed = steps.windows(2).any(|pair| {
            let [before, after] = pair else { unreachable!() };
            let both = before
                .policies
                .iter()
                .flat_map(|one| after.policies.iter().map(move |other| (one, other)));
            both.into_iter()
                .any(|(one, other)| one != other && same_object(one, other))
        });
        assert!(
            changed,
            "the matrix has such a step: it must not delete what it has just changed"
        );
        let [first, ..] = &steps[1].policies[..] else {
            panic!("no policy")
        };
        assert!(!same_object(first, &steps[2].policies[1]));
    }
}
