//! Bad input and broken surroundings: said clearly, the rest applied, what was in force stays, nothing opens.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use bulkhead_testbed::{
    Running, Stack, Testnet, manifests,
    stack::{errors, example},
};

use common::{reaches, serve_everywhere, shop, skipped};

fn start() -> (Testnet, Vec<Running>, Stack) {
    let net = Testnet::create(shop()).unwrap();
    let servers = serve_everywhere(&net);
    let mut stack = Stack::start(&net).unwrap();
    stack
        .apply("shop.yaml", &example("03-three-tier-shop.yaml").unwrap())
        .unwrap();
    (net, servers, stack)
}

/// Waits until the controller complains about a file.
fn complaint(stack: &Stack, file: &str) -> Vec<String> {
    let about = |found: &[String]| found.iter().any(|text| text.contains(file));
    stack
        .wait_for(|status| {
            about(&errors(status))
                .then_some(())
                .ok_or_else(|| format!("no error names {file}"))
        })
        .unwrap();
    errors(&stack.controller().unwrap().controller_status().unwrap())
}

#[test]
fn a_file_that_cannot_be_read_changes_nothing() {
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    let (web, db) = (net.pod("web").address(false), net.pod("db").address(true));
    manifests::write(
        &stack.manifests(),
        "shop.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: [NetworkPolicy\n",
    )
    .unwrap();
    complaint(&stack, "shop.yaml");
    assert!(
        reaches(&net, "client", web, "TCP", 8080, true),
        "what was allowed still is"
    );
    assert!(
        !reaches(&net, "intruder", db, "TCP", 5432, false),
        "what was denied still is"
    );
    // The other files go on being applied.
    let dns = example("02-allow-dns.yaml").unwrap();
    let coredns = net.pod("coredns").address(false);
    assert!(!reaches(&net, "db", coredns, "UDP", 53, false), "not opened yet");
    stack.write("dns.yaml", &dns).unwrap();
    let opened = bulkhead_testbed::process::until(common::SOON, || {
        reaches(&net, "db", coredns, "UDP", 53, false).then_some(())
    });
    assert!(opened.is_some(), "a good file beside a broken one is applied");
    stack
        .apply("shop.yaml", &example("03-three-tier-shop.yaml").unwrap())
        .unwrap();
    assert!(
        errors(&stack.controller().unwrap().controller_status().unwrap()).is_empty(),
        "repaired"
    );
}

#[test]
fn bad_fields_are_named_and_fail_closed() {
    if skipped() {
        return;
    }
    let (net, _servers, stack) = start();
    let bad = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: bad, namespace: warehouse }
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
    - from: [{ podSelector: { matchExpressions: [{ key: app, operator: Like, values: [x] }] } }]
    - ports: [{ port: 0 }]
    - ports: [{ port: 90, endPort: 80 }]
    - from: [{ ipBlock: { cidr: 10.0.0.0/8, except: [192.168.0.0/16] } }]
";
    manifests::write(&stack.manifests(), "bad.yaml", bad).unwrap();
    let found = complaint(&stack, "bad.yaml");
    for field in ["operator", "port", "endPort", "except"] {
        assert!(
            found.iter().any(|text| text.contains(field)),
            "no error names {field}: {found:#?}"
        );
    }
    let web = net.pod("web").address(false);
    assert!(reaches(&net, "client", web, "TCP", 8080, true), "the rest is applied");
}

#[test]
fn a_pod_whose_namespace_is_missing_is_reported_and_the_others_are_enforced() {
    if skipped() {
        return;
    }
    let (net, _servers, stack) = start();
    let cluster = manifests::cluster(&net).unwrap();
    let ghost = "
apiVersion: v1
kind: Pod
metadata: { name: ghost, namespace: shop, uid: ghost, annotations: { bulkhead.dev/netns: /run/netns/bh-no-such } }
spec: { nodeName: node-1, containers: [{ name: main }] }
status: { phase: Running, podIP: 10.77.0.99, podIPs: [{ ip: 10.77.0.99 }] }
";
    manifests::write(&stack.manifests(), "cluster.yaml", &format!("{cluster}---{ghost}")).unwrap();
    let agent = stack.agent(0).unwrap();
    let told = bulkhead_testbed::process::until(common::SOON, || {
        let endpoints = agent.endpoints().ok()?;
        let of = |name: &str| {
            endpoints
                .iter()
                .find(|endpoint| endpoint.workload.as_ref().is_some_and(|w| w.name == name))
        };
        let ghost = of("ghost")?;
        (!ghost.enforced && ghost.error.contains("bh-no-such") && of("web")?.enforced).then_some(())
    });
    assert!(
        told.is_some(),
        "the agent says what is wrong with ghost: {:?}",
        agent.endpoints()
    );
    let (web, db) = (net.pod("web").address(false), net.pod("db").address(false));
    assert!(
        reaches(&net, "client", web, "TCP", 8080, true),
        "the others are as they were"
    );
    assert!(
        !reaches(&net, "intruder", db, "TCP", 5432, false),
        "the others are as they were"
    );
}

#[test]
fn two_pods_with_one_address_are_reported_and_neither_is_believed() {
    if skipped() {
        return;
    }
    let (net, _servers, stack) = start();
    let cluster = manifests::cluster(&net).unwrap();
    let client = net.pod("client").v4;
    // Says it has client's address, which may reach web.
    let twin = format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: twin, namespace: bank, uid: twin }}
spec: {{ nodeName: node-2, containers: [{{ name: main }}] }}
status: {{ phase: Running, podIP: {client}, podIPs: [{{ ip: {client} }}] }}
"
    );
    manifests::write(&stack.manifests(), "cluster.yaml", &format!("{cluster}---{twin}")).unwrap();
    let client = client.to_string();
    stack
        .wait_for(|status| {
            let found = status
                .diagnostics
                .iter()
                .any(|diagnostic| diagnostic.message.contains(&client));
            found
                .then_some(())
                .ok_or_else(|| "no diagnostic names the address".to_owned())
        })
        .unwrap();
    let closed = bulkhead_testbed::process::until(common::SOON, || {
        (!reaches(&net, "client", net.pod("web").address(false), "TCP", 8080, false)).then_some(())
    });
    assert!(closed.is_some(), "an address that two pods claim is an unknown pod's");
    assert!(
        reaches(&net, "client", net.pod("web").address(true), "TCP", 8080, true),
        "the other family is not in doubt"
    );
}

#[test]
fn a_device_that_goes_away_takes_nothing_with_it() {
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    let stock = net.pod("stock");
    net.nodes[0].netns.ip(&format!("link del {}\n", stock.device)).unwrap();
    let agent = stack.agent(0).unwrap();
    let told = bulkhead_testbed::process::until(common::SOON, || {
        let endpoints = agent.endpoints().ok()?;
        let gone = endpoints
            .iter()
            .find(|endpoint| endpoint.workload.as_ref().is_some_and(|w| w.name == "stock"));
        gone.is_none_or(|endpoint| !endpoint.enforced).then_some(())
    });
    assert!(told.is_some(), "the agent noticed");
    let web = net.pod("web").address(false);
    assert!(
        reaches(&net, "client", web, "TCP", 8080, true),
        "the others are as they were"
    );
    // Policies can still be changed for them.
    stack
        .write("shop.yaml", &example("01-default-deny.yaml").unwrap())
        .unwrap();
    let closed = bulkhead_testbed::process::until(common::SOON, || {
        (!reaches(&net, "client", web, "TCP", 8080, false)).then_some(())
    });
    assert!(closed.is_some(), "a change reaches the others");
}
