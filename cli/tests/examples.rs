//! What each example's header promises, simulated on the shop.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use common::{bulkhead, examples, simulate};

/// Copies the shop and one policy file into a folder and asks.
fn check(policy: &str, expected: &[(&str, &str, i64, &str, bool)]) {
    let folder = tempfile::tempdir().unwrap();
    for file in ["shop/cluster.yaml", "shop/pods.yaml", "shop/services.yaml", policy] {
        let from = examples().join(file);
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    let probes: Vec<_> = expected
        .iter()
        .map(|(from, to, port, protocol, _)| (*from, *to, *port, *protocol))
        .collect();
    let ran = simulate(folder.path(), &probes);
    assert_eq!(ran.status, 0, "{policy}: {}", ran.err);
    assert!(!ran.err.contains("error: "), "{policy}: {}", ran.err);
    assert_eq!(ran.lines().len(), expected.len());
    for (line, (from, to, port, protocol, allowed)) in ran.lines().iter().zip(expected) {
        let verdict = if *allowed { "allowed" } else { "denied" };
        assert!(
            line.starts_with(&format!(r#"{{"verdict":"{verdict}""#)),
            "{policy}: {from} to {to} {port}/{protocol} should be {verdict}: {line}"
        );
    }
}

#[test]
fn default_deny() {
    check(
        "01-default-deny.yaml",
        &[
            ("shop/client", "shop/web", 8080, "TCP", false),
            ("shop/web", "8.8.8.8", 53, "UDP", false),
            ("8.8.8.8", "shop/web", 8080, "TCP", false),
            ("shop/web", "shop/web", 8080, "TCP", true),
            ("bank/intruder", "warehouse/stock", 8080, "TCP", true),
        ],
    );
}

#[test]
fn allow_dns() {
    check(
        "02-allow-dns.yaml",
        &[
            ("shop/web", "kube-system/coredns", 53, "UDP", true),
            ("shop/web", "10.96.0.10", 53, "UDP", true),
            ("shop/web", "10.96.0.10", 53, "TCP", true),
            ("shop/web", "fd00:96::10", 53, "UDP", true),
            ("shop/web", "kube-system/coredns", 54, "UDP", false),
            ("shop/web", "8.8.8.8", 53, "UDP", false),
            ("bank/intruder", "shop/web", 8080, "TCP", true),
        ],
    );
}

#[test]
fn three_tier_shop() {
    check(
        "03-three-tier-shop.yaml",
        &[
            ("shop/client", "shop/web", 8080, "TCP", true),
            ("shop/client", "10.96.0.11", 80, "TCP", true),
            ("shop/web", "shop/api", 8081, "TCP", true),
            ("shop/api", "shop/db", 5432, "TCP", true),
            ("shop/client", "shop/api", 8081, "TCP", false),
            ("shop/client", "shop/db", 5432, "TCP", false),
            ("shop/web", "shop/db", 5432, "TCP", false),
            ("shop/web", "shop/api", 8080, "TCP", false),
            ("shop/db", "shop/api", 8081, "TCP", false),
            // Its labels say web, its namespace does not.
            ("bank/intruder", "shop/api", 8081, "TCP", false),
        ],
    );
}

#[test]
fn namespace_isolation() {
    check(
        "04-namespace-isolation.yaml",
        &[
            ("shop/client", "shop/db", 5432, "TCP", true),
            ("warehouse/stock", "shop/db", 5432, "TCP", false),
            ("monitoring/prometheus", "shop/web", 9090, "TCP", false),
            ("shop/web", "warehouse/stock", 8080, "TCP", true),
        ],
    );
}

#[test]
fn monitoring_scrape() {
    check(
        "05-monitoring-scrape.yaml",
        &[
            ("monitoring/prometheus", "shop/web", 9090, "TCP", true),
            ("monitoring/prometheus", "shop/api", 9091, "TCP", true),
            ("monitoring/prometheus", "shop/api", 9090, "TCP", false),
            ("monitoring/prometheus", "shop/db", 5432, "TCP", false),
            ("monitoring/node-exporter", "shop/web", 9090, "TCP", false),
            ("shop/client", "shop/web", 9090, "TCP", false),
        ],
    );
}

#[test]
fn egress_cidr_except() {
    check(
        "06-egress-cidr-except.yaml",
        &[
            ("shop/api", "203.0.113.63", 443, "TCP", true),
            ("shop/api", "203.0.113.64", 443, "TCP", false),
            ("shop/api", "203.0.113.127", 443, "TCP", false),
            ("shop/api", "203.0.113.128", 443, "TCP", true),
            ("shop/api", "2001:db8:700::1", 443, "TCP", true),
            ("shop/api", "2001:db8:701::1", 443, "TCP", false),
            ("shop/api", "203.0.113.1", 80, "TCP", false),
            ("shop/web", "203.0.113.64", 443, "TCP", true),
        ],
    );
}

#[test]
fn admin_deny() {
    check(
        "07-admin-deny.yaml",
        &[
            ("shop/web", "169.254.169.254", 80, "TCP", false),
            ("shop/web", "fd00:ec2::254", 80, "TCP", false),
            ("kube-system/coredns", "169.254.169.254", 80, "TCP", true),
            ("shop/web", "169.254.169.253", 80, "TCP", true),
        ],
    );
}

#[test]
fn admin_pass() {
    check(
        "08-admin-pass.yaml",
        &[
            ("monitoring/prometheus", "shop/web", 9090, "TCP", true),
            ("monitoring/prometheus", "shop/web", 8080, "TCP", false),
            ("bank/intruder", "shop/web", 8080, "TCP", false),
            ("bank/intruder", "warehouse/stock", 8080, "TCP", true),
            ("warehouse/stock", "shop/web", 8080, "TCP", true),
            ("shop/web", "bank/intruder", 80, "TCP", true),
        ],
    );
}

#[test]
fn baseline_default_deny() {
    check(
        "09-baseline-default-deny.yaml",
        &[
            ("shop/web", "kube-system/coredns", 53, "UDP", true),
            ("shop/web", "kube-system/coredns", 80, "TCP", false),
            ("shop/client", "shop/web", 8080, "TCP", false),
            ("shop/web", "2001:db8::99", 443, "TCP", false),
            ("kube-system/coredns", "8.8.8.8", 53, "UDP", true),
            ("8.8.8.8", "shop/web", 8080, "TCP", true),
        ],
    );
}

#[test]
fn ingress_controller() {
    check(
        "10-ingress-controller.yaml",
        &[
            ("ingress-nginx/controller", "shop/web", 8080, "TCP", true),
            ("ingress-nginx/controller", "shop/web", 9090, "TCP", false),
            ("shop/client", "shop/web", 8080, "TCP", false),
            ("shop/client", "shop/api", 8081, "TCP", true),
        ],
    );
}

#[test]
fn service_account() {
    check(
        "11-service-account.yaml",
        &[
            ("monitoring/prometheus", "shop/web", 9090, "TCP", true),
            ("monitoring/prometheus", "shop/api", 9091, "TCP", true),
            ("monitoring/prometheus", "shop/web", 8080, "TCP", false),
            ("shop/client", "shop/web", 9090, "TCP", false),
            ("bank/intruder", "warehouse/stock", 8080, "TCP", true),
        ],
    );
}

#[test]
fn service_and_partners() {
    check(
        "12-service-and-partners.yaml",
        &[
            ("shop/api", "shop/web", 8080, "TCP", true),
            ("shop/api", "10.96.0.11", 80, "TCP", true),
            ("shop/api", "shop/web", 9090, "TCP", false),
            ("shop/api", "kube-system/coredns", 53, "UDP", true),
            ("shop/api", "203.0.113.10", 443, "TCP", true),
            ("shop/api", "203.0.113.65", 443, "TCP", false),
            ("shop/api", "203.0.113.10", 80, "TCP", false),
            ("shop/api", "2001:db8:700::1", 443, "TCP", true),
            ("shop/web", "8.8.8.8", 443, "TCP", true),
        ],
    );
}

#[test]
fn cluster_segment() {
    check(
        "13-cluster-segment.yaml",
        &[
            ("shop/api", "8.8.8.8", 443, "TCP", false),
            ("shop/api", "8.8.8.8", 53, "UDP", true),
            ("shop/web", "8.8.8.8", 443, "TCP", true),
            ("shop/api", "192.0.2.1", 443, "TCP", true),
            ("shop/api", "shop/db", 5432, "TCP", true),
            ("kube-system/coredns", "8.8.8.8", 443, "TCP", true),
        ],
    );
}

#[test]
fn reject_and_drain() {
    check(
        "14-reject-and-drain.yaml",
        &[
            ("shop/api", "shop/db", 5432, "TCP", true),
            ("shop/api", "shop/db", 5433, "TCP", false),
            ("shop/web", "shop/db", 5432, "TCP", false),
            ("shop/db", "shop/web", 8080, "TCP", true),
        ],
    );
}

/// A name opens what was learned for it; `explain` and the kernel's verdict agree with and without one.
#[test]
fn names() {
    check(
        "15-names.yaml",
        &[
            ("shop/api", "kube-system/coredns", 53, "UDP", true),
            ("shop/api", "8.8.8.8", 53, "UDP", false),
            ("shop/api", "203.0.113.10", 443, "TCP", false),
            ("shop/web", "203.0.113.10", 443, "TCP", true),
        ],
    );
    let shop = examples().join("shop");
    let policy = examples().join("15-names.yaml");
    for (to, name, port, allowed) in [
        ("203.0.113.10", "api.example.com", "443", true),
        ("2001:db8:700::1", "API.example.com", "443", true),
        ("203.0.113.10", "www.shop.test", "443", true),
        ("203.0.113.10", "a.b.deep.test", "443", true),
        ("203.0.113.10", "a.b.shop.test", "443", false),
        ("203.0.113.10", "shop.test", "443", false),
        ("203.0.113.10", "api.example.com", "80", false),
        // No name opens a pod.
        ("shop/db", "api.example.com", "443", false),
    ] {
        let arguments = [
            "explain",
            "--manifests",
            shop.to_str().unwrap(),
            policy.to_str().unwrap(),
        ];
        let question = ["--from", "shop/api", "--to", to, "--port", port, "--name", name];
        let ran = bulkhead(&[arguments.as_slice(), &question].concat(), "");
        assert_eq!(ran.status, 0, "{name}: {}{}", ran.out, ran.err);
        let verdict = if allowed { "allowed" } else { "denied" };
        assert!(ran.out.starts_with(verdict), "{name} at {to} port {port}: {}", ran.out);
        let learned = "the address is learned for one of api.example.com, **.deep.test, *.shop.test";
        assert!(ran.out.contains(learned), "{}", ran.out);
        let mentioned = !["a.b.shop.test", "shop.test"].contains(&name);
        assert_eq!(ran.out.contains("which it is not"), !mentioned, "{}", ran.out);
    }
}

/// Who claims the profile is allowed, who does not is not, and `explain` says until when.
#[test]
fn trust_gated() {
    check(
        "16-trust-gated.yaml",
        &[
            ("shop/api", "shop/db", 5432, "TCP", true),
            ("shop/api", "shop/db", 5433, "TCP", false),
            ("shop/web", "shop/db", 5432, "TCP", false),
            ("shop/client", "shop/db", 5432, "TCP", false),
        ],
    );
    let shop = examples().join("shop");
    let policy = examples().join("16-trust-gated.yaml");
    for (from, verdict, runs, until) in [
        ("shop/api", "allowed", "runs", "runs until 2099-12-31T23:59:59Z"),
        ("shop/web", "denied", "does not run", "there is none"),
    ] {
        let manifests = [
            "explain",
            "--manifests",
            shop.to_str().unwrap(),
            policy.to_str().unwrap(),
        ];
        let question = ["--from", from, "--to", "shop/db", "--port", "5432"];
        let ran = bulkhead(&[manifests.as_slice(), &question].concat(), "");
        assert_eq!(ran.status, 0, "{from}: {}{}", ran.out, ran.err);
        assert!(ran.out.starts_with(verdict), "{from}: {}", ran.out);
        let rule = format!("the lease of profile production for the peer's images {runs}");
        assert!(ran.out.contains(&rule), "{from}: {}", ran.out);
        let lease = format!("lease of profile production for the peer {from}, image class ");
        let line = ran.out.lines().find(|line| line.contains(&lease)).unwrap();
        assert!(line.contains(until), "{line}");
    }
}

/// A node's own rules are asked of what comes from outside it, and not of its own pods.
#[test]
fn nodes() {
    check(
        "17-nodes.yaml",
        &[
            ("8.8.8.8", "192.0.2.1", 443, "TCP", true),
            ("8.8.8.8", "192.0.2.1", 8080, "TCP", false),
            ("2a00::1", "2001:db8::2", 8080, "TCP", false),
            // It stays open whatever the policy says.
            ("8.8.8.8", "192.0.2.1", 22, "TCP", true),
            ("8.8.8.8", "192.0.2.1", 22, "UDP", false),
            ("192.0.2.2", "192.0.2.1", 8080, "TCP", true),
            ("shop/db", "192.0.2.1", 8080, "TCP", true),
            ("shop/web", "192.0.2.1", 8080, "TCP", true),
            ("192.0.2.1", "8.8.8.8", 9999, "TCP", true),
            ("8.8.8.8", "shop/web", 8080, "TCP", true),
        ],
    );
    let shop = examples().join("shop");
    let policy = examples().join("17-nodes.yaml");
    let (shop, policy) = (shop.to_str().unwrap(), policy.to_str().unwrap());
    for (port, rule) in [
        ("22", "builtin/failsafe"),
        ("8080", "ClusterSegmentPolicy/nodes ingress default-deny"),
    ] {
        let question = ["--from", "8.8.8.8", "--to", "192.0.2.1", "--port", port];
        let ran = bulkhead(
            &[["explain", "--manifests", shop, policy].as_slice(), &question].concat(),
            "",
        );
        assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
        assert!(ran.out.contains(rule), "{}", ran.out);
    }
}
