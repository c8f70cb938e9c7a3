//! The contract of `bulkhead simulate`, word by word: fields and their order, null ends, families, errors, status.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::fmt::Write as _;

use common::{bulkhead, folder, pod, simulate};

const DENY: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: a, generation: 7}\n\
                    spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}]}\n";

fn cluster() -> String {
    let mut text = String::from("# no Namespace object: it is implied\n");
    text += &pod("a/web", "app: web", &["10.0.0.1", "fd00::1"], "nodeName: n1");
    text += &pod(
        "a/db",
        "app: db",
        &["10.0.0.2", "fd00::2"],
        "containers: [{ports: [{name: sql, containerPort: 5432}]}]",
    );
    text += &pod("a/six", "app: web", &["fd00::3"], "");
    text += &pod("a/four", "app: web", &["10.0.0.4"], "");
    text += &pod("a/pending", "", &[], "");
    text += "---\napiVersion: v1\nkind: Pod\nmetadata: {name: done, namespace: a}\nstatus: {phase: Succeeded, podIP: 10.0.0.9}\n";
    text += "---\napiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: a, labels: {app: web}}\nspec: {hostNetwork: true, nodeName: n1}\n\
             status: {phase: Running, hostIP: 192.0.2.1, podIP: 192.0.2.1}\n";
    text + DENY
}

#[test]
fn lines_are_exactly_these() {
    let files = folder(&[("all.yaml", &cluster())]);
    let ran = simulate(
        files.path(),
        &[
            ("a/web", "a/db", 5432, "TCP"),
            ("a/web", "a/db", 80, "TCP"),
            ("a/web", "8.8.8.8", 53, "UDP"),
            ("8.8.8.8", "a/db", 5432, "SCTP"),
            ("a/db", "a/db", 1, "TCP"),
            ("8.8.8.8", "2.2.2.2", 1, "TCP"),
            ("10.0.0.1", "10.0.0.2", 5432, "TCP"),
            ("a/six", "a/db", 5432, "TCP"),
            ("a/host", "a/db", 5432, "TCP"),
            ("a/web", "a/host", 22, "TCP"),
        ],
    );
    let allow = r#"{"verdict":"allowed","rule":"NetworkPolicy/a/deny@7 ingress[0]"}"#;
    let deny = r#"{"verdict":"denied","rule":"NetworkPolicy/a/deny@7 ingress default-deny"}"#;
    let open = r#"{"verdict":"allowed","rule":"builtin/default-allow"}"#;
    let own = r#"{"verdict":"allowed","rule":"builtin/self"}"#;
    let line = |verdict: &str, egress: &str, ingress: &str, reason: &str| {
        format!(r#"{{"verdict":"{verdict}","egress":{egress},"ingress":{ingress},"reason":"{reason}"}}"#)
    };
    assert_eq!(
        ran.lines(),
        [
            line("allowed", open, allow, "policy-allowed"),
            line("denied", open, deny, "policy-denied"),
            line("allowed", open, "null", "policy-allowed"),
            line("denied", "null", deny, "policy-denied"),
            line("allowed", own, own, "self"),
            line("allowed", "null", "null", "neither end is a pod, so nothing judges it"),
            line("allowed", open, allow, "policy-allowed"),
            // IPv6, because that is the family both have.
            line("allowed", open, allow, "policy-allowed"),
            // On the host network it is its node, whatever its labels say.
            line("denied", "null", deny, "policy-denied"),
            line("allowed", open, "null", "policy-allowed"),
        ]
    );
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
}

#[test]
fn a_question_without_an_answer_is_an_error_in_its_place() {
    let files = folder(&[("all.yaml", &cluster())]);
    let probes = r#"[
        {"from": "a/nobody", "to": "a/db", "port": 1, "protocol": "TCP"},
        {"from": "a/web", "to": "b/db", "port": 1, "protocol": "TCP"},
        {"from": "a/web", "to": "a/db", "port": 5432, "protocol": "TCP"},
        {"from": "a/done", "to": "a/db", "port": 1, "protocol": "TCP"},
        {"from": "a/pending", "to": "a/db", "port": 1, "protocol": "TCP"},
        {"from": "a/four", "to": "a/six", "port": 1, "protocol": "TCP"},
        {"from": "a/web", "to": "a/db", "port": 0, "protocol": "TCP"},
        {"from": "a/web", "to": "a/db", "port": 65536, "protocol": "TCP"},
        {"from": "a/web", "to": "a/db", "port": "80", "protocol": "TCP"},
        {"from": "a/web", "to": "a/db", "port": 1, "protocol": "tcp"},
        {"from": "web", "to": "a/db", "port": 1, "protocol": "TCP"},
        {"from": "10.0.0.300", "to": "a/db", "port": 1, "protocol": "TCP"},
        {"from": "a/web", "to": "a/db", "protocol": "TCP"},
        {"from": "a/web", "to": "a/db", "port": 1, "prot": "UDP"},
        7
    ]"#;
    let path = files.path().to_str().unwrap();
    let ran = bulkhead(
        &["simulate", "--manifests", path, "--probes", "-", "--output", "jsonl"],
        probes,
    );
    let expected = [
        r#"{"error":"from: pod a/nobody is not in the manifests; check namespace and name"}"#,
        r#"{"error":"to: pod b/db is not in the manifests; check namespace and name"}"#,
        r#"{"verdict":"allowed","#,
        r#"{"error":"from: pod a/done has ended (phase Succeeded or Failed), so it has no address"}"#,
        r#"{"error":"from: pod a/pending has no address (status.podIPs); ask again when it runs, or add one to the manifest"}"#,
        r#"{"error":"from and to have no address of the same family"}"#,
        r#"{"error":"bad probe: port is 0; write a number from 1 to 65535"}"#,
        r#"{"error":"bad probe: port is 65536; write a number from 1 to 65535"}"#,
        r#"{"error":"bad probe: invalid type: string \"80\", expected i64"}"#,
        r#"{"error":"bad probe: protocol is \"tcp\"; write TCP, UDP or SCTP"}"#,
        r#"{"error":"bad probe: from is \"web\"; write an IP address or namespace/pod"}"#,
        r#"{"error":"bad probe: from is \"10.0.0.300\"; write an IP address or namespace/pod"}"#,
        r#"{"error":"bad probe: missing field `port`"}"#,
        r#"{"error":"bad probe: unknown field `prot`"#,
        r#"{"error":"bad probe: invalid type: integer `7`"#,
    ];
    assert_eq!(ran.lines().len(), expected.len(), "{}", ran.out);
    for (line, expected) in ran.lines().iter().zip(expected) {
        assert!(line.starts_with(expected), "{line} instead of {expected}");
    }
    assert_eq!(ran.status, 2);
}

#[test]
fn nothing_at_all_to_read_is_a_failure() {
    let files = folder(&[("all.yaml", &cluster())]);
    let path = files.path().to_str().unwrap();
    for (arguments, message) in [
        (
            ["simulate", "--manifests", "/does/not/exist", "--probes", "-"],
            "reading manifests from /does/not/exist",
        ),
        (
            ["simulate", "--manifests", path, "--probes", "/does/not/exist"],
            "reading probes from /does/not/exist",
        ),
        (["simulate", "--manifests", path, "--probes", "-"], "not a JSON array"),
    ] {
        let ran = bulkhead(&arguments, "{}");
        assert_eq!((ran.status, ran.out.as_str()), (1, ""), "{arguments:?}");
        assert!(ran.err.contains(message), "{}", ran.err);
    }
}

#[test]
fn diagnostics_go_to_standard_error_and_the_rest_is_applied() {
    let files = folder(&[
        ("sub/bad.yaml", "kind: [\n"),
        ("sub/deep/all.yaml", &cluster()),
        (".hidden/x.yaml", "kind: ["),
        ("notes.txt", "kind: ["),
    ]);
    let ran = simulate(files.path(), &[("a/web", "a/db", 80, "TCP")]);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(
        ran.err
            .contains("sub/bad.yaml document 1: document: is not YAML at line "),
        "{}",
        ran.err
    );
    assert!(ran.lines()[0].starts_with(r#"{"verdict":"denied""#), "{}", ran.out);
    assert_eq!(ran.status, 0);
}

/// Isolated pods behind frontends, some of which allow.
#[test]
fn a_service_is_judged_on_all_its_backends() {
    let service = |name: &str, ip: &str, selector: &str, target: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: a}}\nspec: {{clusterIP: {ip}, clusterIPs: [{ip}, 'fd02::{name}'], selector: {{{selector}}}, ports: [{{port: 80, targetPort: {target}}}]}}\n"
        )
    };
    let mut text = pod("a/client", "app: client", &["10.0.0.1", "fd00::1"], "");
    for (name, open, number, port) in [
        ("s1", "'yes'", 2, 8080),
        ("s2", "'yes'", 3, 8081),
        ("s3", "'no'", 4, 8080),
    ] {
        let ports = format!("containers: [{{ports: [{{name: http, containerPort: {port}}}]}}]");
        text += &pod(
            &format!("a/{name}"),
            &format!("app: s, open: {open}"),
            &[&format!("10.0.0.{number}"), &format!("fd00::{number}")],
            &ports,
        );
    }
    text += "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {podSelector: {matchLabels: {open: 'yes'}}, ingress: [{ports: [{port: http}]}]}\n";
    text += "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: q, namespace: a}\nspec: {podSelector: {matchLabels: {open: 'no'}}}\n";
    text += &service("a", "10.96.0.1", "open: 'yes'", "http");
    text += &service("b", "10.96.0.2", "open: 'no'", "http");
    text += &service("c", "10.96.0.3", "app: s", "http");
    text += &service("d", "10.96.0.4", "app: nobody", "http");
    text += &service("e", "10.96.0.5", "app: nobody", "http");
    text += "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: e-1, namespace: a, labels: {kubernetes.io/service-name: e}}\naddressType: IPv4\n\
             endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.4], conditions: {ready: false}}]\nports: [{port: 8080}]\n";
    let files = folder(&[("all.yaml", &text)]);
    let ran = simulate(
        files.path(),
        &[
            ("a/client", "10.96.0.1", 80, "TCP"),
            ("a/client", "10.96.0.2", 80, "TCP"),
            ("a/client", "10.96.0.3", 80, "TCP"),
            ("a/client", "fd02::a", 80, "TCP"),
            ("a/client", "10.96.0.4", 80, "TCP"),
            ("a/client", "10.96.0.1", 81, "TCP"),
            ("a/client", "10.96.0.5", 80, "TCP"),
            ("a/s1", "10.96.0.5", 80, "TCP"),
        ],
    );
    let expected = [
        ("allowed", "policy-allowed: service a/a: allowed by 2 backends"),
        ("denied", "policy-denied: service a/b: denied by its one backend"),
        (
            "denied",
            "policy-denied: service a/c: mixed, and so denied: 2 of 3 backends allow it",
        ),
        ("allowed", "policy-allowed: service a/a: allowed by 2 backends"),
        ("denied", "service a/d has no backend for port 80/TCP"),
        ("denied", "service a/a has no port 81/TCP"),
        ("allowed", "policy-allowed: service a/e: allowed by its one backend"),
        ("allowed", "self: service a/e: allowed by its one backend"),
    ];
    for (line, (verdict, reason)) in ran.lines().iter().zip(expected) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (line["verdict"].as_str(), line["reason"].as_str()),
            (Some(verdict), Some(reason)),
            "{line}"
        );
    }
    assert_eq!(
        (ran.lines().len(), ran.status, ran.err.as_str()),
        (expected.len(), 0, "")
    );
}

/// Without the kind, an address is an address.
#[test]
fn a_service_address_needs_the_service() {
    let text = pod("a/client", "", &["10.0.0.1"], "")
        + "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.96.0.0/12}}]}]}\n";
    let files = folder(&[("all.yaml", &text)]);
    let ran = simulate(
        files.path(),
        &[
            ("a/client", "10.96.0.1", 80, "TCP"),
            ("a/client", "10.112.0.1", 80, "TCP"),
        ],
    );
    assert!(
        ran.lines()[0]
            .contains(r#""egress":{"verdict":"allowed","rule":"NetworkPolicy/a/p egress[0]"},"ingress":null"#),
        "{}",
        ran.out
    );
    assert!(
        ran.lines()[1].contains(r#""egress":{"verdict":"denied""#),
        "{}",
        ran.out
    );
}

/// More pods than a node has slots, and the same answers.
#[test]
fn more_pods_than_a_node_holds() {
    let mut items = String::new();
    for number in 0..4_200u32 {
        let (high, low) = (number / 250, number % 250 + 1);
        write!(items, "{}{{\"metadata\":{{\"name\":\"p{number}\",\"namespace\":\"a\",\"labels\":{{\"half\":\"{}\"}}}},\"status\":{{\"podIP\":\"10.1.{high}.{low}\"}}}}", if number == 0 { "" } else { "," }, number % 2).unwrap();
    }
    let list = format!("{{\"apiVersion\":\"v1\",\"kind\":\"PodList\",\"items\":[{items}]}}");
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: a}\nspec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {half: '0'}}}]}]}\n";
    let files = folder(&[("pods.json", &list), ("policy.yaml", policy)]);
    let ran = simulate(
        files.path(),
        &[
            ("a/p0", "a/p4199", 1, "TCP"),
            ("a/p1", "a/p4199", 1, "TCP"),
            ("a/p4198", "a/p0", 1, "TCP"),
            ("a/p4199", "a/p0", 1, "TCP"),
        ],
    );
    let verdicts: Vec<_> = ran
        .lines()
        .iter()
        .map(|line| line.starts_with(r#"{"verdict":"allowed""#))
        .collect();
    assert_eq!(verdicts, [true, false, true, false], "{}", ran.out);
}

#[test]
fn the_table_says_the_same() {
    let files = folder(&[("all.yaml", &cluster())]);
    let probes = r#"[{"from": "a/web", "to": "a/db", "port": 80, "protocol": "TCP"}, {"from": "a/x", "to": "a/db", "port": 80}]"#;
    let path = files.path().to_str().unwrap();
    let ran = bulkhead(&["simulate", "--manifests", path, "--probes", "-"], probes);
    let lines = ran.lines();
    assert!(
        lines[0].starts_with("FROM   TO    PORT    VERDICT  EGRESS"),
        "{}",
        ran.out
    );
    assert!(
        lines[1].contains("denied: NetworkPolicy/a/deny@7 ingress default-deny (policy-denied)"),
        "{}",
        ran.out
    );
    assert!(
        lines[2].contains("error    from: pod a/x is not in the manifests"),
        "{}",
        ran.out
    );
}
