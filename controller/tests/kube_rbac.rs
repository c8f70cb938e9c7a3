//! The chart's rules are what the controller is seen to use: every right is used, and nothing is refused. The API server's own
//! audit log says what was used; kinds and verbs come from the chart as helm renders it, so a new rule needs nothing here but
//! that the controller, doing its work below, uses it.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

mod cluster;
mod process;
mod support;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cluster::{Cluster, DEADLINE, admin_policy, pod, policy};
use rustls::version::TLS13;
use serde::Deserialize as _;
use serde_json::{Value, json};
use support::{Controller, Node};

/// Namespace the chart is rendered for.
const OURS: &str = "bulkhead-system";
const USER: &str = "system:serviceaccount:bulkhead-system:bulkhead-controller";

/// Something that may be done: group, resource with its subresource, verb.
type Right = (String, String, String);

/// helm, built with the other binaries of the cluster.
fn helm() -> Option<PathBuf> {
    let beside = std::env::var_os("BULKHEAD_KUBE_TESTBED").map(|it| PathBuf::from(it).with_file_name("helm"));
    let cached = std::env::var_os("BULKHEAD_CACHE").map(|cache| PathBuf::from(cache).join("kube"));
    let built = cached.and_then(|folder| {
        let mut folders = std::fs::read_dir(folder).ok()?;
        folders.find_map(|it| Some(it.ok()?.path().join("bin/helm")).filter(|path| path.is_file()))
    });
    beside.filter(|path| path.is_file()).or(built)
}

/// The objects of a template of the chart.
fn rendered(helm: &Path, template: &str) -> Vec<Value> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/bulkhead");
    let output = Command::new(helm)
        .args(["template", "bulkhead"])
        .arg(chart)
        .args(["--namespace", OURS, "--show-only", template, "--kube-version", "1.33"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_yaml_ng::Deserializer::from_slice(&output.stdout)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

fn strings(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.map(|it| it.as_str().unwrap().to_owned()).collect()
}

/// What the rules of the controller's roles allow.
fn granted(objects: &[Value]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let roles = objects
        .iter()
        .filter(|object| matches!(object["kind"].as_str(), Some("ClusterRole" | "Role")));
    for rule in roles.flat_map(|role| role["rules"].as_array().unwrap()) {
        for group in strings(&rule["apiGroups"]) {
            for resource in strings(&rule["resources"]) {
                for verb in strings(&rule["verbs"]) {
                    assert!(
                        ![&group, &resource, &verb].iter().any(|it| *it == "*"),
                        "no wildcard: {rule}"
                    );
                    rights.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    rights
}

/// What the audit log says the controller did, and what it was refused.
fn seen(log: &Path) -> (BTreeSet<Right>, BTreeSet<Right>) {
    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for line in std::fs::read_to_string(log).unwrap_or_default().lines() {
        // The last line may be on its way.
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let about = &event["objectRef"];
        if event["user"]["username"] != USER || about["resource"].is_null() {
            continue;
        }
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = match about["subresource"].as_str() {
            Some(subresource) => format!("{}/{subresource}", word(&about["resource"])),
            None => word(&about["resource"]),
        };
        let right = (word(&about["apiGroup"]), resource, word(&event["verb"]));
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
        if code == 403 {
            refused.insert(right);
        } else {
            if code == 201 && right.2 == "patch" {
                // An apply that creates needs the right to create, and the server looks for it.
                used.insert((right.0.clone(), right.1.clone(), "create".to_owned()));
            }
            used.insert(right);
        }
    }
    (used, refused)
}

/// A kubeconfig whose user is the controller's service account.
async fn kubeconfig(cluster: &Cluster) -> PathBuf {
    let path = format!("/api/v1/namespaces/{OURS}/serviceaccounts/bulkhead-controller/token");
    let asked =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
    let answer = cluster.request("POST", &path, Some(asked)).await.unwrap();
    let text = std::fs::read_to_string(cluster.kubeconfig()).unwrap();
    let mut config: Value = serde_yaml_ng::from_str(&text).unwrap();
    config["users"][0]["user"] = json!({"token": answer["status"]["token"]});
    let path = cluster.folder().join("controller.kubeconfig");
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// Flags of an API server that writes down what the controller asks of it.
fn audited(folder: &Path) -> Vec<String> {
    let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}]});
    std::fs::write(folder.join("audit.json"), policy.to_string()).unwrap();
    vec![
        format!("--audit-policy-file={}", folder.join("audit.json").display()),
        format!("--audit-log-path={}", folder.join("audit.log").display()),
        "--audit-log-mode=blocking".to_owned(),
    ]
}

/// Waits until every right was used; fails at the first that was refused.
async fn used_up(log: &Path, granted: &BTreeSet<Right>) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
    loop {
        let (used, refused) = seen(log);
        assert_eq!(
            refused,
            BTreeSet::new(),
            "deploy/helm/bulkhead/templates/rbac.yaml lacks these"
        );
        if used == *granted {
            break;
        }
        if tokio::time::Instant::now() > deadline {
            let unused: Vec<_> = granted.difference(&used).collect();
            let more: Vec<_> = used.difference(granted).collect();
            panic!("rbac.yaml grants what is never used: {unused:?}; used and granted by other rules: {more:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_right_of_the_chart_is_used_and_none_is_missing() {
    let Some(helm) = helm() else {
        println!("SKIPPED: no helm beside the API server's binary: `cargo xtask cluster up` builds one");
        return;
    };
    let Some(cluster) = Cluster::start_with(audited).await else {
        return;
    };
    let log = cluster.folder().join("audit.log");
    cluster.namespace(OURS).await;
    cluster.namespace("shop").await;
    let objects = rendered(&helm, "templates/rbac.yaml");
    let granted = granted(&objects);
    for object in objects {
        cluster.create(object).await;
    }
    for definition in bulkhead_crds::definitions()
        .iter()
        .filter(|it| it.name.ends_with(".bulkhead.dev"))
    {
        cluster.create(definition.value.clone()).await;
    }
    for object in rendered(&helm, "templates/webhook.yaml") {
        cluster.create(object).await;
    }
    let address = process::free();
    let kubeconfig = kubeconfig(&cluster).await;
    let mut arguments = vec!["--kube".into(), "--kubeconfig".into(), kubeconfig.into_os_string()];
    arguments.extend(["--listen-tls", &address, "--webhook-listen", &process::free()].map(Into::into));

    // The controller at work: it makes its authority and the kinds it needs, says what is wrong with a policy, where another
    // one is enforced, and has a token looked at; another process of it finds all that.
    let mut controller = Controller::start_with(arguments).await;
    cluster.create(pod("web", "n1", &["10.0.1.1"])).await;
    cluster.create(policy("nobody", "web")).await;
    cluster.created_when_possible(admin_policy("web", 7), DEADLINE).await;
    for (kind, namespace) in [("SegmentPolicy", Some("shop")), ("ClusterSegmentPolicy", None)] {
        let segment = json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": kind, "metadata": {"name": "all", "namespace": namespace},
            "spec": {"subject": {}, "ingress": []}});
        cluster.created_when_possible(segment, DEADLINE).await;
    }
    let mut node = Node::connect(&controller, "n1").await;
    let authority = async {
        loop {
            if let Ok(map) = cluster.get("ConfigMap", OURS, "bulkhead-ca").await {
                return map["data"]["ca.crt"].as_str().unwrap().to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    let authority = tokio::time::timeout(DEADLINE, authority)
        .await
        .expect("what agents trust");
    // A token that is nobody's: the controller has it reviewed.
    let channel = process::channel(&address, &authority, None, &TLS13).await.unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let answer = process::issue(channel, "n1", "eyJhbGciOiJub25lIn0.e30.", process::request(&key)).await;
    assert!(answer.is_err(), "nobody's token buys nothing");
    controller.stop().await;
    controller.run().await;
    node = node.reconnect(&controller, "n1").await;
    let taking = tokio::spawn(async move {
        loop {
            node.update().await;
        }
    });

    used_up(&log, &granted).await;
    taking.abort();
}
