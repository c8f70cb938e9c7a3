//! A real API server with its etcd, and a way to it that can be cut.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that meets a surprise is to fail"
)]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener as StdListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Only a failing test waits so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(150);

/// An API server of its own folder and ports.
pub(crate) struct Cluster {
    binary: PathBuf,
    directory: TempDir,
    port: u16,
    etcd_port: u16,
    flags: Vec<String>,
    up: Option<Child>,
    pub(crate) client: Client,
    cut: watch::Sender<bool>,
}

/// The binary, or why there is none.
fn binary() -> Result<PathBuf, String> {
    fn variable(name: &str) -> Option<PathBuf> {
        std::env::var_os(name).map(PathBuf::from)
    }
    let cached = || Some(variable("BULKHEAD_CACHE")?.join("kube-bin/kube-testbed"));
    let path = variable("BULKHEAD_KUBE_TESTBED")
        .or_else(cached)
        .ok_or("neither BULKHEAD_KUBE_TESTBED nor BULKHEAD_CACHE is set")?;
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} does not exist", path.display()))
    }
}

/// Two ports in a row and one alone that nobody listens on now.
fn ports() -> (u16, u16) {
    loop {
        let (alone, pair) = (
            StdListener::bind("127.0.0.1:0").unwrap(),
            StdListener::bind("127.0.0.1:0").unwrap(),
        );
        let first = pair.local_addr().unwrap().port();
        if StdListener::bind(("127.0.0.1", first + 1)).is_ok() {
            return (alone.local_addr().unwrap().port(), first);
        }
    }
}

impl Cluster {
    /// An API server, ready; `None`, and the reason printed, when it cannot be run here.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(|_| Vec::new()).await
    }

    /// One with further flags, which may name files of its folder.
    pub(crate) async fn start_with(flags: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        let binary = match binary() {
            Ok(binary) => binary,
            Err(reason) => {
                println!("SKIPPED: no API server: {reason}");
                return None;
            }
        };
        let (port, etcd_port) = ports();
        let directory = tempfile::tempdir().unwrap();
        let flags = flags(directory.path());
        let up = up(&binary, &directory, (port, etcd_port), &flags).await;
        let kubeconfig = directory.path().join("pki/admin.kubeconfig");
        let config = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
            .await
            .unwrap();
        let client = Client::try_from(config).unwrap();
        let (cut, is_cut) = watch::channel(false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let through = listener.local_addr().unwrap().port();
        tokio::spawn(forward(listener, port, is_cut));
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let server = format!("127.0.0.1:{port}");
        assert!(text.contains(&server), "{text}");
        let text = text.replace(&server, &format!("127.0.0.1:{through}"));
        std::fs::write(directory.path().join("through"), text).unwrap();
        Some(Self {
            binary,
            directory,
            port,
            etcd_port,
            flags,
            up: Some(up),
            client,
            cut,
        })
    }

    /// Folder of its state, logs and certificates.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Client port of etcd, which also serves HTTP.
    pub(crate) fn etcd(&self) -> u16 {
        self.etcd_port
    }

    /// Stops a part where it is, as a machine does that has no time for it, or lets it go on.
    pub(crate) fn pause(&self, part: &str, paused: bool) {
        let pid = std::fs::read_to_string(self.folder().join(format!("{part}.pid"))).unwrap();
        signal(if paused { "-STOP" } else { "-CONT" }, pid.trim());
    }

    /// Kills etcd as a crash does; everything else goes with it. Its data stays.
    pub(crate) fn kill_etcd(&mut self) {
        let pid = std::fs::read_to_string(self.folder().join("etcd.pid")).unwrap();
        signal("-KILL", pid.trim());
        self.up.take().unwrap().wait().unwrap();
    }

    /// The kubeconfig whose way can be cut.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("through")
    }

    /// Arguments of a controller of this cluster.
    pub(crate) fn arguments(&self) -> Vec<std::ffi::OsString> {
        vec!["--kube".into(), "--kubeconfig".into(), self.kubeconfig().into()]
    }

    /// Cuts the controller's way to the API server, or mends it.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// Kills the API server as a crash does. etcd's data stays.
    pub(crate) fn kill(&mut self) {
        let pid = std::fs::read_to_string(self.directory.path().join("kube-apiserver.pid")).unwrap();
        signal("-KILL", pid.trim());
        self.up.take().unwrap().wait().unwrap();
    }

    /// Starts it again after [`Self::kill`].
    pub(crate) async fn restart(&mut self) {
        self.up = Some(up(&self.binary, &self.directory, (self.port, self.etcd_port), &self.flags).await);
    }

    /// Any request; the answer.
    pub(crate) async fn request(&self, method: &str, path: &str, body: Option<Value>) -> kube::Result<Value> {
        let body = body.map_or_else(Vec::new, |body| serde_json::to_vec(&body).unwrap());
        let kind = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", kind)
            .body(body)
            .unwrap();
        self.client.request(request).await
    }

    /// Creates an object, with its status.
    pub(crate) async fn create(&self, object: Value) {
        let kind = word(&object, "/kind");
        let (namespace, name) = (word(&object, "/metadata/namespace"), word(&object, "/metadata/name"));
        let collection = path(&kind, &namespace);
        self.request("POST", &collection, Some(object.clone()))
            .await
            .unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
        if object.get("status").is_some() && kind != "CustomResourceDefinition" {
            let status = json!({"status": object["status"]});
            let path = format!("{collection}/{name}/status");
            self.request("PATCH", &path, Some(status)).await.unwrap();
        }
    }

    /// Creates an object of a kind whose definition may be on its way.
    pub(crate) async fn created_when_possible(&self, object: Value, within: Duration) {
        let collection = path(&word(&object, "/kind"), &word(&object, "/metadata/namespace"));
        let creating = async {
            while let Err(error) = self.request("POST", &collection, Some(object.clone())).await {
                let coming = matches!(&error, kube::Error::Api(status) if status.code == 404);
                assert!(coming, "{error}");
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(within, creating).await.expect("the kind exists");
    }

    /// Changes an object by a merge patch.
    pub(crate) async fn patch(&self, kind: &str, namespace: &str, name: &str, patch: Value) -> kube::Result<Value> {
        let path = format!("{}/{name}", path(kind, namespace));
        self.request("PATCH", &path, Some(patch)).await
    }

    /// Deletes an object at once.
    pub(crate) async fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let path = format!("{}/{name}?gracePeriodSeconds=0", path(kind, namespace));
        self.request("DELETE", &path, None).await.unwrap();
    }

    /// The object as it is now.
    pub(crate) async fn get(&self, kind: &str, namespace: &str, name: &str) -> kube::Result<Value> {
        self.request("GET", &format!("{}/{name}", path(kind, namespace)), None)
            .await
    }

    /// Objects of a kind.
    pub(crate) async fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let list = self.request("GET", &path(kind, namespace), None).await.unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// A namespace with the service account its pods need.
    pub(crate) async fn namespace(&self, name: &str) {
        self.create(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}}),
        )
        .await;
        self.create(
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}),
        )
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            signal("-TERM", &up.id().to_string());
            drop(up.wait());
        }
    }
}

async fn up(binary: &Path, directory: &TempDir, (port, etcd_port): (u16, u16), flags: &[String]) -> Child {
    let mut child = Command::new(binary)
        .arg("up")
        .arg("-dir")
        .arg(directory.path())
        .args(["-port", &port.to_string(), "-etcd-port", &etcd_port.to_string()])
        .args(["-apiserver-flags", &flags.join(" ")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        while !line.contains("ready in") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended before it was ready");
        }
    })
    .await
    .unwrap();
    child
}

fn signal(signal: &str, pid: &str) {
    let sent = Command::new("kill").arg(signal).arg(pid).status().unwrap();
    assert!(sent.success(), "kill {signal} {pid}");
}

fn word(object: &Value, path: &str) -> String {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn path(kind: &str, namespace: &str) -> String {
    let (group, plural) = match kind {
        "Namespace" => ("api/v1", "namespaces"),
        "Node" => ("api/v1", "nodes"),
        "Pod" => ("api/v1", "pods"),
        "Service" => ("api/v1", "services"),
        "ConfigMap" => ("api/v1", "configmaps"),
        "ServiceAccount" => ("api/v1", "serviceaccounts"),
        "NetworkPolicy" => ("apis/networking.k8s.io/v1", "networkpolicies"),
        "Event" => ("apis/events.k8s.io/v1", "events"),
        "Lease" => ("apis/coordination.k8s.io/v1", "leases"),
        "ClusterRole" => ("apis/rbac.authorization.k8s.io/v1", "clusterroles"),
        "ClusterRoleBinding" => ("apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
        "Role" => ("apis/rbac.authorization.k8s.io/v1", "roles"),
        "RoleBinding" => ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
        "ClusterNetworkPolicy" => ("apis/policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies"),
        "SegmentPolicy" => ("apis/bulkhead.dev/v1alpha1", "segmentpolicies"),
        "ClusterSegmentPolicy" => ("apis/bulkhead.dev/v1alpha1", "clustersegmentpolicies"),
        "ValidatingWebhookConfiguration" => (
            "apis/admissionregistration.k8s.io/v1",
            "validatingwebhookconfigurations",
        ),
        "CustomResourceDefinition" => ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
        other => panic!("{other}"),
    };
    match namespace {
        "" => format!("/{group}/{plural}"),
        namespace => format!("/{group}/namespaces/{namespace}/{plural}"),
    }
}

/// Carries connections to the API server; while cut, none.
async fn forward(listener: TcpListener, port: u16, is_cut: watch::Receiver<bool>) {
    while let Ok((mut near, _)) = listener.accept().await {
        let mut is_cut = is_cut.clone();
        if *is_cut.borrow_and_update() {
            continue;
        }
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else {
                return;
            };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = is_cut.wait_for(|cut| *cut) => {}
            }
        });
    }
}

/// A running pod.
pub(crate) fn pod(name: &str, node: &str, addresses: &[&str]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 80}]}]},
        "status": {"phase": "Running", "podIP": addresses.first(), "podIPs": ips}
    })
}

/// Whom pods labelled `app: <name>` may be reached by.
pub(crate) fn policy(name: &str, from: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": name}},
                 "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}], "ports": [{"port": 80}]}]}
    })
}

/// A ClusterNetworkPolicy that denies pods labelled `app: <name>` what they receive.
pub(crate) fn admin_policy(name: &str, priority: i32) -> Value {
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy", "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": priority,
                 "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": name}}}},
                 "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}
    })
}
