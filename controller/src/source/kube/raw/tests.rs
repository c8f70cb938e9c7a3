//! What decoding keeps of a real pod.

use kube::core::ObjectList;
use serde_json::json;

use super::*;

/// A pod as an API server gives it: some 4 KiB, most of it of no interest.
fn pod(number: usize) -> Value {
    let (app, node) = (number % 500, number % 1_000);
    let (high, middle, low) = (number >> 16, (number >> 8) & 255, number & 255);
    let address = format!("10.{high}.{middle}.{low}");
    let name = format!("app-{app}-6d4cf56db6-{number:05}");
    let variables: Vec<Value> = (0..30)
        .map(|n| json!({"name": format!("VARIABLE_{n}"), "value": format!("a value of some length {n}")}))
        .collect();
    let fields: serde_json::Map<String, Value> = (0..40)
        .map(|n| (format!("f:field{n}"), json!({"f:type": {}, "f:status": {}})))
        .collect();
    json!({
        "metadata": {
            "name": name, "generateName": format!("app-{app}-6d4cf56db6-"), "namespace": format!("team-{}", app % 50),
            "uid": format!("5f0a2b52-0000-4000-8000-{number:012}"), "resourceVersion": number.to_string(),
            "creationTimestamp": "2026-11-22T00:00:00Z",
            "labels": {"app": format!("app-{app}"), "pod-template-hash": "6d4cf56db6", "version": "v1"},
            "annotations": {"example.com/checksum": "a".repeat(64)},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsV1": fields}]
        },
        "spec": {
            "nodeName": format!("node-{node}"), "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "registry.example.com/app:v1", "env": variables,
                            "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]
        },
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}, {"ip": format!("fd00::{middle:x}:{low:x}:{high:x}")}],
            "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-22T00:00:00Z"}]
        }
    })
}

/// A page as the API server sends it: items of a list have no kind of their own.
fn page(from: usize, to: usize) -> String {
    let items: Vec<Value> = (from..to).map(pod).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": items}).to_string()
}

#[test]
fn of_a_page_the_facts_stay() {
    let list: ObjectList<Raw<Pod>> = serde_json::from_str(&page(0, 2)).unwrap();
    assert_eq!(list.items.len(), 2);
    let raw = &list.items[1];
    let Meaning::Object(object) = &raw.item.meaning else {
        panic!("{raw:?}")
    };
    let bulkhead_policy::model::Object::Workload(workload) = &**object else {
        panic!("{raw:?}")
    };
    assert_eq!(workload.addresses.len(), 2);
    assert_eq!(workload.node.as_deref(), Some("node-1"));
    assert_eq!(workload.named_ports[0].number, 8080);
    assert_eq!(raw.meta.resource_version.as_deref(), Some("1"));
    assert!(raw.meta.managed_fields.is_none() && raw.meta.labels.is_none());
}
