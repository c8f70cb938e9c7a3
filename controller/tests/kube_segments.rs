//! Our own kinds on a real API server: what their definitions refuse, what becomes of an object, and what the webhook says of it before it
//! is stored.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

mod cluster;
mod support;

use std::{
    ffi::OsString,
    io::Write as _,
    net::TcpListener,
    process::{Command, Stdio},
};

use cluster::{Cluster, DEADLINE, pod};
use serde_json::{Value, json};
use support::{Controller, Node};

/// Runs kubectl with this on its standard input; whether it went well, and all it said.
fn kubectl(cluster: &Cluster, arguments: &[&str], input: &Value) -> (bool, String) {
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Runs kubectl until it says something.
async fn until(cluster: &Cluster, arguments: &[&str], input: &Value, wanted: &str) -> (bool, String) {
    let mut last = (false, String::new());
    let asking = async {
        loop {
            last = kubectl(cluster, arguments, input);
            if last.1.contains(wanted) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, asking).await.is_ok();
    assert!(found, "never {wanted:?}: {}", last.1);
    last
}

const APPLY: &[&str] = &["apply", "-f", "-"];
const DRY: &[&str] = &["apply", "--dry-run=server", "-f", "-"];

/// An API server with our definitions; `None`, and the reason printed, where it cannot be run.
async fn start() -> Option<Cluster> {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        println!("SKIPPED: no kubectl");
        return None;
    }
    let cluster = Cluster::start().await?;
    for definition in bulkhead_crds::definitions() {
        let (good, said) = kubectl(&cluster, APPLY, &definition.value);
        assert!(good, "{}: {said}", definition.name);
        let name = format!("crd/{}", definition.name);
        let (good, said) = kubectl(
            &cluster,
            &["wait", "--for=condition=Established", &name, "--timeout=60s"],
            &Value::Null,
        );
        assert!(good, "{said}");
    }
    cluster.namespace("shop").await;
    Some(cluster)
}

fn segment(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "SegmentPolicy", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn wide(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "ClusterSegmentPolicy", "metadata": {"name": name}, "spec": spec})
}

fn group(networks: &Value) -> Value {
    json!({"apiVersion": "bulkhead.dev/v1alpha1", "kind": "AddressGroup", "metadata": {"name": "g"}, "spec": {"networks": networks}})
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a table of objects")]
async fn definitions_take_what_is_good_and_say_what_is_not() {
    let Some(cluster) = start().await else { return };
    for good in [
        segment("a", &json!({"ingress": []})),
        segment(
            "b",
            &json!({"mode": "Shadow", "subject": {"podSelector": {"matchLabels": {"app": "db"}}, "serviceAccounts": ["db"]},
            "ingress": [{"from": [{"podSelector": {}, "serviceAccounts": ["web"]}, {"entity": "World"}, {"addressGroup": "g"},
                                  {"service": {"name": "s"}}, {"network": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                         "ports": [{"port": 80, "endPort": 90}, {"port": "http"}, {"protocol": "ICMP", "icmpType": 8, "icmpCode": 0}]}],
            "egress": [{"action": "Deny", "mode": "Shadow"}]}),
        ),
        wide("c", &json!({"subject": {}, "egress": []})),
        wide(
            "d",
            &json!({"tier": "Admin", "priority": 0, "subject": {"namespaceSelector": {}}, "ingress": [{"action": "Pass"}]}),
        ),
        segment(
            "e",
            &json!({"egress": [{"to": [{"fqdns": ["api.example.com", "*.example.com", "**.A_b.test"]}, {"entity": "Node"}]}]}),
        ),
        group(&json!(["10.0.0.0/8", "fd00::/8"])),
    ] {
        let (went_well, said) = kubectl(&cluster, APPLY, &good);
        assert!(went_well, "{good}: {said}");
    }
    let (_, defaulted) = kubectl(
        &cluster,
        &[
            "get",
            "segpol",
            "-n",
            "shop",
            "b",
            "-o",
            "jsonpath={.spec.ingress[0].action} {.spec.ingress[0].ports[0].protocol} {.spec.ingress[0].mode}",
        ],
        &Value::Null,
    );
    assert_eq!(defaulted, "Allow TCP Enforce");
    let (_, all) = kubectl(&cluster, &["get", "bulkhead", "-A"], &Value::Null);
    for name in [
        "segmentpolicy.bulkhead.dev/a",
        "clustersegmentpolicy.bulkhead.dev/d",
        "addressgroup.bulkhead.dev/g",
    ] {
        assert!(all.contains(name), "{all}");
    }
    let peer = |peer: Value| segment("bad", &json!({"ingress": [{"from": [peer]}]}));
    let port = |port: Value| segment("bad", &json!({"ingress": [{"ports": [port]}]}));
    for (bad, message) in [
        (segment("bad", &json!({})), "set ingress, egress or both"),
        (
            segment("bad", &json!({"ingress": [{"action": "Pass"}]})),
            "Pass is for rules of tier Admin",
        ),
        (
            segment("bad", &json!({"ingress": [{"action": "Reject"}]})),
            "supported values",
        ),
        (
            segment("bad", &json!({"mode": "Dream", "ingress": []})),
            "supported values",
        ),
        (peer(json!({})), "a peer is pods"),
        (peer(json!({"entity": "World", "addressGroup": "g"})), "a peer is pods"),
        (peer(json!({"network": {"cidr": "ten"}})), "not a block of addresses"),
        (
            peer(json!({"network": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}})),
            "except must lie inside cidr",
        ),
        (
            peer(json!({"fqdns": ["api.example.com"]})),
            "fqdns are for egress rules only",
        ),
        (
            segment(
                "bad",
                &json!({"egress": [{"action": "Deny", "to": [{"fqdns": ["api.example.com"]}]}]}),
            ),
            "fqdns are for Allow rules only",
        ),
        (
            segment("bad", &json!({"egress": [{"to": [{"fqdns": ["x*.example.com"]}]}]})),
            "should match",
        ),
        (
            segment(
                "bad",
                &json!({"egress": [{"to": [{"fqdns": ["a.test"], "entity": "World"}]}]}),
            ),
            "a peer is pods",
        ),
        (port(json!({"port": 0})), "a port is a number from 1 to 65535"),
        (
            port(json!({"port": "http", "endPort": 90})),
            "endPort is the last port of a range",
        ),
        (
            port(json!({"port": 90, "endPort": 80})),
            "endPort is the last port of a range",
        ),
        (
            port(json!({"protocol": "ICMP", "port": 80})),
            "port is for TCP, UDP and SCTP",
        ),
        (
            port(json!({"protocol": "ICMP", "icmpCode": 0})),
            "icmpCode needs icmpType",
        ),
        (
            wide("bad", &json!({"tier": "Admin", "subject": {}, "ingress": []})),
            "tier and priority go together",
        ),
        (
            wide(
                "bad",
                &json!({"tier": "Baseline", "priority": 1, "subject": {}, "ingress": [{"action": "Pass"}]}),
            ),
            "Pass is for rules of tier Admin",
        ),
        (wide("bad", &json!({"ingress": []})), "spec.subject: Required value"),
        (
            wide(
                "bad",
                &json!({"subject": {"nodeSelector": {}, "podSelector": {}}, "ingress": []}),
            ),
            "a policy is for nodes (nodeSelector) or for pods",
        ),
        (group(&json!(["ten"])), "not a block of addresses"),
    ] {
        let (went_well, said) = kubectl(&cluster, APPLY, &bad);
        let said_so = said.to_lowercase().contains(&message.to_lowercase());
        assert!(!went_well && said_so, "{bad}\nwanted {message:?}: {said}");
    }
}

/// The node was told of a policy.
fn knows(policy: &'static str) -> impl Fn(&Node) -> bool {
    move |node: &Node| {
        let mut rulesets = node.state.rulesets.values();
        rulesets.any(|ruleset| ruleset.policies.iter().any(|other| other == policy))
    }
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .into_iter()
        .find(|condition| condition["type"] == kind)
        .unwrap_or_default()
}

async fn when(cluster: &Cluster, kind: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let namespace = if kind == "SegmentPolicy" { "shop" } else { "" };
    let mut last = Value::Null;
    let reading = async {
        loop {
            last = cluster.get(kind, namespace, name).await.unwrap();
            if wanted(&last) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, reading).await.is_ok();
    assert!(found, "never as wanted: {last:#}");
    last
}

fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn webhook(address: &str) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "bulkhead"},
        "webhooks": [{"name": "policies.bulkhead.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 3,
            "failurePolicy": "Ignore", "clientConfig": {"url": format!("https://{address}/validate")},
            "rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": ["networking.k8s.io", "bulkhead.dev"], "apiVersions": ["*"],
                       "resources": ["networkpolicies", "segmentpolicies", "clustersegmentpolicies", "addressgroups"]}]}]})
}

/// Passes the definition, and cannot be applied: no label has such a value.
fn unacceptable(name: &str) -> Value {
    segment(
        name,
        &json!({"subject": {"podSelector": {"matchLabels": {"app": "-x"}}}, "ingress": [{"from": [{"entity": "Node"}]}]}),
    )
}

const UNACCEPTABLE: &str = "spec.subject.podSelector.matchLabels[app] \"-x\" is not a label value";

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "the life of an object, in order")]
async fn an_object_is_asked_about_stored_enforced_and_its_status_says_so() {
    let Some(cluster) = start().await else { return };
    cluster.create(pod("web", "n1", &["10.0.1.1"])).await;
    cluster.create(pod("db", "n1", &["10.0.1.2"])).await;
    let address = free();
    let mut arguments: Vec<OsString> = cluster.arguments();
    arguments.extend(
        [
            "--namespace",
            "shop",
            "--webhook-listen",
            &address,
            "--webhook-name",
            "127.0.0.1",
        ]
        .map(Into::into),
    );
    let mut controller = Controller::start_with(arguments).await;
    cluster.create(webhook(&address)).await;
    controller.status_within(DEADLINE, |status| status.revision != 0).await;

    // Refused, in the words that a status would have.
    let (went_well, said) = until(&cluster, DRY, &unacceptable("bad"), UNACCEPTABLE).await;
    assert!(!went_well, "{said}");
    // Stored, with a warning.
    let selecting = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
    for (suspicious, warning) in [
        (
            segment("w", &json!({"subject": selecting("nobody"), "ingress": []})),
            "selects no pod",
        ),
        (
            segment(
                "w",
                &json!({"subject": selecting("db"), "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "moon"}}}]}]}),
            ),
            "none has the label team = moon",
        ),
        (
            segment(
                "w",
                &json!({"subject": selecting("db"), "ingress": [{"ports": [{"port": "gopher"}]}]}),
            ),
            "has a container port named \"gopher\"",
        ),
        (
            segment(
                "w",
                &json!({"subject": selecting("db"), "egress": [{"ports": [{"port": 443}]}]}),
            ),
            "cannot resolve names",
        ),
        (
            segment(
                "w",
                &json!({"subject": selecting("db"), "ingress": [{"from": [{"addressGroup": "g"}]}]}),
            ),
            "names AddressGroup g, which is not there",
        ),
        (
            segment(
                "w",
                &json!({"subject": selecting("db"), "ingress": [{"from": [{"service": {"name": "s"}}]}]}),
            ),
            "names Service shop/s, which is not there",
        ),
    ] {
        let (went_well, said) = kubectl(&cluster, DRY, &suspicious);
        assert!(
            went_well && said.contains("Warning: spec") && said.contains(warning),
            "wanted {warning:?}: {said}"
        );
    }
    let (went_well, said) = kubectl(&cluster, DRY, &group(&json!(["10.0.0.0/8"])));
    assert!(went_well && !said.contains("Warning"), "{said}");
    let status = controller.status().await;
    assert!(
        status.policies.is_empty(),
        "a question changes nothing: {:?}",
        status.policies
    );

    let good = segment(
        "db",
        &json!({"subject": selecting("db"), "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]}),
    );
    let (went_well, said) = kubectl(&cluster, APPLY, &good);
    assert!(went_well && !said.contains("Warning"), "{said}");
    let mut node = Node::connect(&controller, "n1").await;
    node.update_until(knows("SegmentPolicy/shop/db")).await;
    let (went_well, said) = kubectl(
        &cluster,
        &[
            "wait",
            "-n",
            "shop",
            "--for=condition=Enforced",
            "segpol/db",
            "--timeout=60s",
        ],
        &Value::Null,
    );
    assert!(went_well, "{said}");
    let object = when(&cluster, "SegmentPolicy", "db", |object| {
        condition(object, "Accepted")["status"] == "True"
    })
    .await;
    assert_eq!(condition(&object, "Enforced")["observedGeneration"], 1);
    let (_, columns) = kubectl(
        &cluster,
        &["get", "segpol", "-n", "shop", "db", "-o", "wide"],
        &Value::Null,
    );
    assert!(
        columns.contains("ENFORCED") && columns.contains("enforced on 1 of 1 nodes, p99"),
        "{columns}"
    );

    // A group's blocks are a part of the policies that name it.
    let (went_well, said) = kubectl(&cluster, APPLY, &group(&json!(["10.9.0.0/16"])));
    assert!(went_well, "{said}");
    let (went_well, said) = kubectl(
        &cluster,
        APPLY,
        &wide(
            "all",
            &json!({"tier": "Admin", "priority": 3, "subject": {},
        "ingress": [{"action": "Deny", "from": [{"addressGroup": "g"}]}]}),
        ),
    );
    assert!(went_well, "{said}");
    node.update_until(|node| {
        node.state
            .networks
            .keys()
            .any(|(_, block)| block.to_string() == "10.9.0.0/16")
    })
    .await;
    let (went_well, said) = kubectl(&cluster, APPLY, &group(&json!(["10.8.0.0/16"])));
    assert!(went_well, "{said}");
    node.update_until(|node| {
        node.state
            .networks
            .keys()
            .any(|(_, block)| block.to_string() == "10.8.0.0/16")
    })
    .await;
    when(&cluster, "ClusterSegmentPolicy", "all", |object| {
        condition(object, "Enforced")["status"] == "True"
    })
    .await;

    // Without the controller everything is stored; its status says what is wrong when it is back.
    controller.stop().await;
    let (went_well, said) = kubectl(&cluster, APPLY, &unacceptable("bad"));
    assert!(went_well, "{said}");
    controller.run().await;
    let object = when(&cluster, "SegmentPolicy", "bad", |object| {
        condition(object, "Accepted")["status"] == "False"
    })
    .await;
    let message = condition(&object, "Accepted")["message"]
        .to_string()
        .replace("\\\"", "\"");
    assert!(message.contains(UNACCEPTABLE), "{message}");
    controller.stop().await;
}
