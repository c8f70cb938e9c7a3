//! Namespaces, Pods, Nodes, Services and endpoint slices as kubectl prints them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use bulkhead_policy::model::{NamedPort, Object, Protocol, TargetPort, Workload};
use common::{lower, messages};
use std::sync::Arc;

fn workload(text: &str) -> Workload {
    let lowered = lower(text);
    match lowered.objects.into_iter().next() {
        Some(Object::Workload(workload)) => Arc::unwrap_or_clone(workload),
        other => panic!("no workload: {other:?}"),
    }
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  uid: u-1\n  labels: {app: web}\n  \
                   annotations: {bulkhead.dev/netns: /run/netns/web, bulkhead.dev/device: veth1}\nspec:\n  nodeName: n1\n  \
                   serviceAccountName: robot\n";

#[test]
fn a_pod_has_its_facts() {
    let pod = workload(&format!(
        "{POD}status: {{phase: Running, podIP: 10.0.0.5, podIPs: [{{ip: 10.0.0.5}}, {{ip: 'fd00::5'}}], hostIP: 192.0.2.1}}\n"
    ));
    assert_eq!(pod.key.to_string(), "shop/web");
    assert_eq!(
        (pod.uid.as_str(), pod.service_account.as_str(), pod.node.as_deref()),
        ("u-1", "robot", Some("n1"))
    );
    assert_eq!(
        pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.5", "fd00::5"]
    );
    assert_eq!(pod.attachment.netns.as_deref(), Some("/run/netns/web"));
    assert_eq!(pod.attachment.device.as_deref(), Some("veth1"));
    let bare = workload("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n");
    assert_eq!(
        (bare.key.to_string().as_str(), bare.service_account.as_str()),
        ("default/a", "default")
    );
    assert!(bare.addresses.is_empty() && bare.node.is_none());
}

#[test]
fn named_ports_of_containers_and_sidecars_first_one_first() {
    let pod = workload(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  initContainers:\n  - {name: i, ports: [{name: init, containerPort: 1}]}\n  \
         - {name: s, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}, {name: web, containerPort: 81}]}\n  containers:\n  \
         - {name: c, ports: [{name: web, containerPort: 80}, {containerPort: 7}, {name: web, containerPort: 82, protocol: UDP}]}\n  \
         - {name: d, ports: [{name: web, containerPort: 83}]}\n",
    );
    let port = |name: &str, protocol, number| NamedPort {
        name: name.to_owned(),
        protocol,
        number,
    };
    assert_eq!(
        pod.named_ports,
        [
            port("web", Protocol::Tcp, 80),
            port("web", Protocol::Udp, 82),
            port("metrics", Protocol::Tcp, 9090)
        ]
    );
}

#[test]
fn pods_that_are_no_workloads() {
    let text = "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: done}\n  status: {phase: Succeeded, podIP: 10.0.0.1}\n\
                - metadata: {name: failed}\n  status: {phase: Failed}\n\
                - metadata: {name: host}\n  spec: {hostNetwork: true, nodeName: n1}\n  status: {phase: Running, hostIP: 192.0.2.1, hostIPs: [{ip: 192.0.2.1}, {ip: 'fd01::1'}], podIP: 192.0.2.1}\n";
    let lowered = lower(text);
    assert!(
        lowered.objects.is_empty() && lowered.diagnostics.is_empty(),
        "{lowered:?}"
    );
    assert_eq!(
        lowered.ended_pods.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["default/done", "default/failed"]
    );
    let host = lowered.host_pods.values().next().unwrap();
    assert_eq!(
        host.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1", "fd01::1"]
    );
    assert_eq!(
        (host.key.to_string().as_str(), host.node.as_deref()),
        ("default/host", Some("n1"))
    );
}

#[test]
fn wrong_pieces_of_a_pod_are_named_and_left_out() {
    let lowered = lower(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\nspec: {containers: [{ports: [{name: web, containerPort: 0}, {name: 'We b', containerPort: 1}]}]}\n\
         status: {podIPs: [{ip: 10.0.0.300}, {ip: 10.0.0.3}]}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: b, labels: {v: 1}}\n",
    );
    let messages = messages(&lowered);
    assert_eq!(lowered.objects.len(), 1);
    for expected in [
        "error: f.yaml document 1: Pod x/a: status.podIPs[0].ip: \"10.0.0.300\" is not an IP address and is left out",
        "error: f.yaml document 1: Pod x/a: spec.containers[0].ports[0].containerPort: is 0; write a port from 1 to 65535",
        "error: f.yaml document 1: Pod x/a: spec.containers[0].ports[1].name: is \"We b\"",
        "error: f.yaml document 2: Pod default/b: metadata.labels.v: invalid type: integer `1`, expected a string",
    ] {
        assert!(
            messages.iter().any(|it| it.starts_with(expected)),
            "{expected}: {messages:#?}"
        );
    }
}

#[test]
fn namespaces_and_nodes() {
    let lowered = lower(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {team: a, kubernetes.io/metadata.name: lie}}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {zone: z}}\nspec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}\n\
         status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: 'fd01::1'}, {type: Hostname, address: n1}]}\n",
    );
    assert!(lowered.diagnostics.is_empty(), "{:?}", messages(&lowered));
    let [Object::Namespace(namespace), Object::Node(node)] = lowered.objects.as_slice() else {
        panic!("{lowered:?}")
    };
    assert_eq!(namespace.labels["kubernetes.io/metadata.name"], "shop");
    assert_eq!(namespace.labels["team"], "a");
    assert_eq!(
        node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.0.2.1", "fd01::1"]
    );
    assert_eq!(
        node.pod_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.1.0.0/24", "fd00:1::/64"]
    );
}

#[test]
fn services_and_slices() {
    let lowered = lower(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 'fd02::1']\n  externalIPs: [8.8.8.8]\n  \
         selector: {app: web}\n  ports: [{name: http, port: 80, targetPort: http}, {name: dns, port: 53, protocol: UDP}, {name: x, port: 1, targetPort: 8080}]\n\
         status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {hostname: x}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: headless, namespace: shop}\nspec: {clusterIP: None, clusterIPs: [None], ports: []}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
         endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}}, {addresses: [10.0.0.2], conditions: {ready: false}}, {addresses: [10.0.0.3]}]\nports: [{name: http, port: 8080}]\n",
    );
    assert!(lowered.diagnostics.is_empty(), "{:?}", messages(&lowered));
    let [
        Object::Service(headless),
        Object::Service(web),
        Object::EndpointSlice(slice),
    ] = lowered.objects.as_slice()
    else {
        panic!("{:?}", lowered.objects)
    };
    assert!(headless.addresses.is_empty());
    assert_eq!(
        web.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.96.0.1", "203.0.113.1", "fd02::1"]
    );
    let targets: Vec<_> = web.ports.iter().map(|port| port.target.clone()).collect();
    assert_eq!(
        targets,
        [
            TargetPort::Name("http".to_owned()),
            TargetPort::Number(53),
            TargetPort::Number(8080)
        ]
    );
    assert_eq!(slice.service, "web");
    assert_eq!(
        slice.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.0.0.1", "10.0.0.3"]
    );
}

#[test]
fn duplicates_and_kinds_that_are_left_out_are_said_once() {
    let deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n";
    let lowered = lower(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{v: one}}}}\n{deployment}{deployment}---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{v: two}}}}\n"
    ));
    let [Object::Workload(pod)] = lowered.objects.as_slice() else {
        panic!("{lowered:?}")
    };
    assert_eq!(pod.labels["v"], "two");
    assert_eq!(
        messages(&lowered),
        [
            "warning: f.yaml document 4: Pod default/a: metadata.name: is there already, in f.yaml document 1; this one replaces it; remove one of them",
            "warning: f.yaml document 2: Deployment: Deployment (apps/v1) is no kind this version reads: 2 objects left out, this is the first",
        ]
    );
}

/// Large folders: the bound is on the work, not on the clock. 50,000 pods must come through whole.
#[test]
fn fifty_thousand_pods_come_through() {
    let pod = |number: u32| {
        let (a, b) = (number / 250, number % 250 + 1);
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p{number}\n  namespace: ns{}\n  labels: {{app: a{}}}\nspec:\n  nodeName: n1\n  containers:\n  - name: c\n    ports:\n    - {{name: http, containerPort: 80}}\nstatus:\n  phase: Running\n  podIPs:\n  - ip: 10.{}.{}.{b}\n",
            number % 50,
            number % 500,
            a / 250,
            a % 250
        )
    };
    let text = (0..50_000).map(pod).collect::<Vec<_>>().join("---\n");
    let lowered = lower(&text);
    assert_eq!((lowered.objects.len(), lowered.diagnostics.len()), (50_000, 0));
}
