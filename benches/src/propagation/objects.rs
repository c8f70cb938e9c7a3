//! The cluster that is measured: nodes, namespaces, pods with their status, policies; and the changes that are made to it.

use serde_json::{Value, json};

use crate::api::Write;

/// How large.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
}

/// Applications of one namespace. Each has as many pods as come out even.
const APPS: usize = 10;

impl Size {
    /// Namespaces: one for every two hundred pods.
    pub(crate) fn namespaces(self) -> usize {
        (self.pods / 200).max(1)
    }

    pub(crate) fn nodes(self) -> impl Iterator<Item = Write> {
        (0..self.nodes).map(|node| Write::create("/api/v1/nodes", node_object(node)))
    }

    pub(crate) fn node_statuses(self) -> impl Iterator<Item = Write> {
        (0..self.nodes).map(|node| {
            let address = format!("192.168.{}.{}", node >> 8, node & 255);
            let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
            Write::patch(format!("/api/v1/nodes/node-{node}/status"), status)
        })
    }

    pub(crate) fn namespace_objects(self) -> impl Iterator<Item = Write> {
        (0..self.namespaces()).map(|namespace| {
            let name = namespace_name(namespace);
            let labels = json!({"team": name, "stage": "green"});
            Write::create(
                "/api/v1/namespaces",
                json!({"metadata": {"name": name, "labels": labels}}),
            )
        })
    }

    pub(crate) fn service_accounts(self) -> impl Iterator<Item = Write> {
        (0..self.namespaces()).map(|namespace| {
            let collection = format!("/api/v1/namespaces/{}/serviceaccounts", namespace_name(namespace));
            Write::create(&collection, json!({"metadata": {"name": "default"}}))
        })
    }

    pub(crate) fn pod_objects(self) -> impl Iterator<Item = Write> {
        (0..self.pods).map(move |pod| self.pod(pod))
    }

    pub(crate) fn pod_statuses(self) -> impl Iterator<Item = Write> {
        (0..self.pods).map(move |pod| self.pod_status(pod))
    }

    /// Devices of the pods of a node, of those that will be added too.
    pub(crate) fn devices(self, node: usize, added: usize) -> Vec<String> {
        let pods = (0..self.pods + added).filter(|pod| pod % self.nodes == node);
        pods.map(device_of).collect()
    }

    pub(crate) fn policy_objects(self) -> impl Iterator<Item = Write> {
        (0..self.policies).map(move |policy| {
            let namespace = namespace_name(policy % self.namespaces());
            let collection = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies");
            let name = format!("policy-{policy}");
            Write::create(
                &collection,
                json!({"metadata": {"name": name}, "spec": self.policy_spec(policy, 8080)}),
            )
        })
    }

    /// A pod as its creator writes it.
    pub(crate) fn pod(self, pod: usize) -> Write {
        let collection = format!("/api/v1/namespaces/{}/pods", self.namespace_of(pod));
        Write::create(
            &collection,
            json!({
                "metadata": {
                    "name": format!("pod-{pod}"),
                    "labels": {"app": app_of(pod), "pod-template-hash": "6d4cf56db6", "version": "v1"},
                    "annotations": {"bulkhead.dev/device": device_of(pod)},
                },
                "spec": {
                    "nodeName": format!("node-{}", pod % self.nodes),
                    "containers": [{"name": "main", "image": "registry.example.com/app:v1",
                                    "ports": [{"name": "http", "containerPort": 8080}]}],
                }
            }),
        )
    }

    /// What the pod's kubelet would write: it runs and has its addresses.
    pub(crate) fn pod_status(self, pod: usize) -> Write {
        let (node, number) = (pod % self.nodes, pod / self.nodes + 2);
        let (v4, v6) = (
            format!("10.{}.{}.{}", node >> 5, (node & 31) << 3 | number >> 8, number & 255),
            format!("fd00:{node:x}::{number:x}"),
        );
        let status = json!({"status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}]}});
        Write::patch(format!("{}/status", self.pod_path(pod)), status)
    }

    fn namespace_of(self, pod: usize) -> String {
        // Each node has pods of many namespaces.
        namespace_name((pod / self.nodes + pod) % self.namespaces())
    }

    fn pod_path(self, pod: usize) -> String {
        format!("/api/v1/namespaces/{}/pods/pod-{pod}", self.namespace_of(pod))
    }

    /// Half of the policies say whom an application is reached by, half whom it reaches.
    fn policy_spec(self, policy: usize, port: usize) -> Value {
        let number = policy / self.namespaces();
        let app = app_name(number / 2);
        let peer = json!({"podSelector": {"matchLabels": {"app": app_name(number / 2 + 1)}}});
        let stage = json!({"namespaceSelector": {"matchLabels": {"stage": "blue"}},
                           "podSelector": {"matchLabels": {"app": app_name(number / 2 + 2)}}});
        let ports = json!([{"port": port}, {"port": "http"}]);
        let selector = json!({"matchLabels": {"app": app}});
        if number.is_multiple_of(2) {
            json!({"podSelector": selector, "policyTypes": ["Ingress"],
                   "ingress": [{"from": [peer, stage], "ports": ports}]})
        } else {
            let outside = json!({"ipBlock": {"cidr": format!("198.51.{}.0/24", policy % 100)}});
            json!({"podSelector": selector, "policyTypes": ["Egress"],
                   "egress": [{"to": [peer, stage, outside], "ports": ports}]})
        }
    }
}

fn node_object(node: usize) -> Value {
    let v4 = format!("10.{}.{}.0/21", node >> 5, (node & 31) << 3);
    json!({"metadata": {"name": format!("node-{node}"), "labels": {"kubernetes.io/os": "linux"}},
           "spec": {"podCIDR": v4, "podCIDRs": [v4, format!("fd00:{node:x}::/64")]}})
}

fn namespace_name(namespace: usize) -> String {
    format!("team-{namespace}")
}

fn app_name(app: usize) -> String {
    format!("app-{}", app % APPS)
}

fn device_of(pod: usize) -> String {
    format!("veth{pod}")
}

fn app_of(pod: usize) -> String {
    app_name(pod / 7)
}

/// What is changed, one at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// Another port of a NetworkPolicy.
    PolicyEdited,
    /// A pod of a known application gets its address.
    PodAdded,
    /// A pod becomes one of another application.
    PodRelabelled,
    /// A namespace becomes one that policies ask for, or stops being one.
    NamespaceRelabelled,
}

impl Change {
    pub(crate) const ALL: [Self; 4] = [
        Self::PolicyEdited,
        Self::PodAdded,
        Self::PodRelabelled,
        Self::NamespaceRelabelled,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PolicyEdited => "policy_edited",
            Self::PodAdded => "pod_added",
            Self::PodRelabelled => "pod_relabelled",
            Self::NamespaceRelabelled => "namespace_relabelled",
        }
    }

    /// What has to be there before, if anything: not measured.
    pub(crate) fn before(self, size: Size, round: usize) -> Option<Write> {
        (self == Self::PodAdded).then(|| size.pod(size.pods + round))
    }

    /// The change itself.
    pub(crate) fn write(self, size: Size, round: usize) -> Write {
        match self {
            Self::PolicyEdited => {
                let policy = round * 7 % size.policies;
                let namespace = namespace_name(policy % size.namespaces());
                let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/policy-{policy}");
                Write::patch(path, json!({"spec": size.policy_spec(policy, 9000 + round)}))
            }
            Self::PodAdded => size.pod_status(size.pods + round),
            Self::PodRelabelled => {
                let pod = round * 13 % size.pods;
                let app = app_name(pod / 7 + 1 + round / size.pods);
                Write::patch(size.pod_path(pod), json!({"metadata": {"labels": {"app": app}}}))
            }
            Self::NamespaceRelabelled => {
                let namespace = namespace_name(round / 2 % size.namespaces());
                let stage = if round.is_multiple_of(2) { "blue" } else { "green" };
                let path = format!("/api/v1/namespaces/{namespace}");
                Write::patch(path, json!({"metadata": {"labels": {"stage": stage}}}))
            }
        }
    }
}
