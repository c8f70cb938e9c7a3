//! `check` and `explain`, and what bad manifests are answered with: file, document, object, field, and what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use common::{bulkhead, examples, folder, pod};

const BAD: &[(&str, &str, &str)] = &[
    (
        "unreadable YAML",
        "a: [1\n",
        "document 1: document: error: is not YAML at line 2: ",
    ),
    (
        "unreadable JSON",
        "{\"kind\": \"Pod\",}",
        "document 1: document: error: is not JSON at line 1: ",
    ),
    (
        "a duplicate key",
        "apiVersion: v1\nkind: Pod\nkind: Pod\n",
        "document 1: document: error: is not YAML at line 1: the key \"kind\" is there twice; keep one of them",
    ),
    (
        "an unknown kind",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
        "document 1: Deployment: warning: Deployment (apps/v1) is no kind this version reads: 1 object left out",
    ),
    (
        "a selector with a bad operator",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {ingress: [{from: [{podSelector: {matchExpressions: [{key: k, operator: Has}]}}]}]}\n",
        "document 1: NetworkPolicy a/p: error: spec.ingress[0].from[0].podSelector.matchExpressions[0].operator: is \"Has\"; write In, NotIn, Exists or DoesNotExist",
    ),
    (
        "an overlapping except",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.1.2.0/24]}}]}]}\n",
        "document 1: NetworkPolicy a/p: warning: spec.ingress[0].from[0].ipBlock.except[1]: 10.1.2.0/24 lies inside 10.1.0.0/16, so it changes nothing; remove one of them",
    ),
    (
        "port 0",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {ingress: [{ports: [{port: 0}]}]}\n",
        "document 1: NetworkPolicy a/p: error: spec.ingress[0].ports[0].port: is 0; write a port from 1 to 65535; the port matches nothing",
    ),
    (
        "endPort smaller than port",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {ingress: [{ports: [{port: 9, endPort: 8}]}]}\n",
        "document 1: NetworkPolicy a/p: error: spec.ingress[0].ports[0].endPort: 8 is smaller than port 9; swap them; the port matches nothing",
    ),
    (
        "two pods with one IP",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: a}\nstatus: {podIP: 10.0.0.1}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: y, namespace: a}\nstatus: {podIP: 10.0.0.1}\n",
        "document 1: Pod a/x: error: status.podIPs: Pod a/x and Pod a/y claim the address 10.0.0.1",
    ),
    (
        "domain names",
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{domainNames: [example.com]}]}]}\n",
        "document 1: ClusterNetworkPolicy c: error: spec.egress[0].to[0].domainNames: is not enforced by this version; use networks, or leave the rule out",
    ),
];

#[test]
fn bad_input_is_named_with_file_document_object_field_and_fix() {
    for (what, text, expected) in BAD {
        let files = folder(&[("bad.yaml", text), ("good.yaml", &pod("z/good", "", &["10.9.9.9"], ""))]);
        let path = files.path().to_str().unwrap();
        let ran = bulkhead(&["check", path], "");
        // As people read it: a heading of file, document and object, then severity, field and message.
        let (place, rest) = expected.split_once(": error: ").map_or_else(
            || (expected.split_once(": warning: ").unwrap(), "warning"),
            |parts| (parts, "error  "),
        );
        let heading = format!("{}/bad.yaml {}", files.path().display(), place.0);
        let at = ran
            .out
            .find(&heading)
            .unwrap_or_else(|| panic!("{what}: no {heading:?} in {}", ran.out));
        assert!(
            ran.out[at..].contains(&format!("{rest}  {}", place.1)),
            "{what}: {}",
            ran.out
        );
        assert_eq!(ran.status, i32::from(rest != "warning"), "{what}: {}", ran.out);
        // The rest is applied.
        assert!(ran.out.contains("pod"), "{what}: {}", ran.out);
        let probes = r#"[{"from": "z/good", "to": "z/good", "port": 1, "protocol": "TCP"}]"#;
        let simulated = bulkhead(
            &["simulate", "--manifests", path, "--probes", "-", "-o", "jsonl"],
            probes,
        );
        assert!(
            simulated.out.starts_with(r#"{"verdict":"allowed""#),
            "{what}: {} {}",
            simulated.out,
            simulated.err
        );
        let severity = if rest == "warning" { "warning: " } else { "error: " };
        assert!(
            simulated.err.starts_with(severity) && simulated.err.contains("bad.yaml document 1"),
            "{what}: {}",
            simulated.err
        );
    }
}

#[test]
fn a_file_that_is_no_text_is_said_and_left_out() {
    let files = folder(&[("good.yaml", &pod("z/good", "", &["10.9.9.9"], ""))]);
    std::fs::write(files.path().join("bad.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let ran = bulkhead(&["check", files.path().to_str().unwrap()], "");
    assert!(
        ran.out
            .contains("bad.yaml: file\n  error    cannot be read: invalid utf-8"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.ends_with("0 policies, 1 pod: 1 error, 0 warnings\n"),
        "{}",
        ran.out
    );
    assert_eq!(ran.status, 1);
}

/// Whoever claims an address that another claims gains nothing by it.
#[test]
fn a_contested_address_opens_nothing() {
    let text = pod("a/web", "app: web", &["10.0.0.1"], "")
        + &pod("a/liar", "app: liar", &["10.0.0.1"], "")
        + &pod("a/db", "app: db", &["10.0.0.2"], "")
        + "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}\n";
    let files = folder(&[("all.yaml", &text)]);
    let probes = [
        ("a/web", "a/db", 1, "TCP"),
        ("a/liar", "a/db", 1, "TCP"),
        ("10.0.0.1", "a/db", 1, "TCP"),
    ];
    let ran = common::simulate(files.path(), &probes);
    assert!(ran.lines()[0].starts_with(r#"{"verdict":"denied""#), "{}", ran.out);
    assert!(ran.lines()[1].starts_with(r#"{"verdict":"denied""#), "{}", ran.out);
    assert_eq!(
        ran.lines()[2],
        r#"{"error":"from: address 10.0.0.1 is claimed by a/liar and a/web; name the pod instead"}"#
    );
    assert_eq!(ran.status, 2);
}

#[test]
fn check_as_json() {
    let files = folder(&[("bad.yaml", BAD[6].1)]);
    let ran = bulkhead(&["check", "-o", "json", files.path().to_str().unwrap()], "");
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (report["errors"].as_u64(), report["policies"].as_u64(), ran.status),
        (Some(1), Some(1), 1)
    );
    let finding = &report["diagnostics"][0];
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["object"], "NetworkPolicy a/p");
    assert_eq!(finding["field"], "spec.ingress[0].ports[0].port");
    assert!(finding["source"].as_str().unwrap().ends_with("bad.yaml document 1"));
}

#[test]
fn the_examples_have_no_errors() {
    let ran = bulkhead(&["check", examples().to_str().unwrap()], "");
    assert_eq!(ran.status, 0, "{}", ran.out);
    assert!(ran.out.contains(" 0 errors, "), "{}", ran.out);
}

#[test]
fn explain_shows_the_ladder_and_agrees_with_the_verdict() {
    let (shop, policies) = (examples().join("shop"), examples().join("03-three-tier-shop.yaml"));
    let admin = examples().join("07-admin-deny.yaml");
    let manifests = [&shop, &policies, &admin].map(|path| path.to_str().unwrap());
    let ask = |from: &str, to: &str, port: &str| {
        let mut arguments = vec!["explain", "--manifests"];
        arguments.extend(manifests);
        arguments.extend(["--from", from, "--to", to, "--port", port]);
        bulkhead(&arguments, "")
    };
    let ran = ask("shop/client", "shop/db", "5432");
    assert_eq!(ran.status, 0, "{}", ran.err);
    for expected in [
        "denied: policy-denied\n",
        "from 10.244.1.10 (pod shop/client)",
        "egress of shop/client: denied by NetworkPolicy/shop/client egress default-deny",
        "ClusterNetworkPolicy/no-cloud-metadata",
        "ingress of shop/db: denied by NetworkPolicy/shop/closed ingress default-deny",
        "baseline tier: no policy has a say",
    ] {
        assert!(ran.out.contains(expected), "{expected:?}: {}", ran.out);
    }
    assert!(!ran.out.contains("WARNING"), "{}", ran.out);
    let ran = ask("shop/client", "10.96.0.11", "80");
    assert!(
        ran.out.contains("service shop/web, backend 10.244.1.11 port 8080"),
        "{}",
        ran.out
    );
    let ran = ask("shop/web", "shop/web", "80");
    assert!(ran.out.contains("a pod reaches itself (builtin/self)"), "{}", ran.out);
    let ran = ask("shop/nobody", "shop/web", "80");
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("from: pod shop/nobody is not in the manifests"),
        "{}",
        ran.err
    );
}
