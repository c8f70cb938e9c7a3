//! Filters against one flow: each condition alone decides.

use super::*;
use crate::v1::{Ip, Layer4, Tcp};

fn flow() -> Flow {
    let end = |namespace: &str, pod: &str, label: &str| Endpoint {
        namespace: namespace.into(),
        pod_name: pod.into(),
        labels: vec![label.into()],
        ..Endpoint::default()
    };
    let tcp = Tcp {
        source_port: 40000,
        destination_port: 5432,
        flags: None,
    };
    Flow {
        verdict: Verdict::Dropped.into(),
        ip: Some(Ip {
            source: "10.0.0.5".into(),
            destination: "fd00::9".into(),
            ip_version: 0,
        }),
        l4: Some(Layer4 {
            protocol: Some(Protocol::Tcp(tcp)),
        }),
        source: Some(end("shop", "web-1", "app.kubernetes.io/name=web")),
        destination: Some(end("data", "db-0", "app=db")),
        rule: "NetworkPolicy/data/db@3 ingress default-deny".into(),
        ..Flow::default()
    }
}

fn matches(filter: FlowFilter) -> bool {
    let request = GetFlowsRequest {
        filters: vec![filter],
        ..GetFlowsRequest::default()
    };
    Filters::parse(&request).unwrap().matches(&flow())
}

#[test]
fn ends_in_every_form() {
    let cases = [
        ("shop/web-1", true),
        ("shop/web", false),
        ("shop/", true),
        ("data/", false),
        ("10.0.0.5", true),
        ("10.0.0.0/24", true),
        ("10.0.1.0/24", false),
        ("app.kubernetes.io/name=web", true),
        ("app.kubernetes.io/name=we", false),
    ];
    for (text, expected) in cases {
        let filter = FlowFilter {
            source: text.into(),
            ..FlowFilter::default()
        };
        assert_eq!(matches(filter), expected, "source {text}");
    }
    assert!(matches(FlowFilter {
        destination: "fd00::/8".into(),
        ..FlowFilter::default()
    }));
    assert!(!matches(FlowFilter {
        destination: "10.0.0.5".into(),
        ..FlowFilter::default()
    }));
}

#[test]
fn the_other_conditions() {
    let with = |change: &dyn Fn(&mut FlowFilter)| {
        let mut filter = FlowFilter::default();
        change(&mut filter);
        matches(filter)
    };
    assert!(with(&|filter| filter.port = 5432));
    assert!(!with(&|filter| filter.port = 40000));
    assert!(with(&|filter| filter.protocol = "TCP".into()));
    assert!(with(&|filter| filter.protocol = "6".into()));
    assert!(!with(&|filter| filter.protocol = "udp".into()));
    assert!(with(&|filter| filter.policy = "data/db".into()));
    assert!(!with(&|filter| filter.policy = "shop".into()));
    assert!(with(&|filter| filter.set_verdict(Verdict::Dropped)));
    assert!(!with(&|filter| filter.set_verdict(Verdict::Forwarded)));
}

#[test]
fn any_filter_is_enough_and_all_its_conditions_are_needed() {
    let both = FlowFilter {
        source: "shop/".into(),
        port: 1,
        ..FlowFilter::default()
    };
    let port = FlowFilter {
        port: 5432,
        ..FlowFilter::default()
    };
    assert!(!matches(both.clone()));
    let request = GetFlowsRequest {
        filters: vec![both, port],
        ..GetFlowsRequest::default()
    };
    assert!(Filters::parse(&request).unwrap().matches(&flow()));
    assert!(Filters::default().matches(&flow()), "no filter wants everything");
}

#[test]
fn what_is_not_understood_is_said() {
    let parse = |filter: FlowFilter| {
        let request = GetFlowsRequest {
            filters: vec![filter],
            ..GetFlowsRequest::default()
        };
        Filters::parse(&request).unwrap_err().to_string()
    };
    for text in ["web", "/web", "a/b/c", "10.0.0.0/33"] {
        let error = parse(FlowFilter {
            destination: text.into(),
            ..FlowFilter::default()
        });
        // `10.0.0.0/33` has the form of namespace/pod only if dots were allowed in namespaces; they are not.
        assert!(error.contains("destination") && error.contains(text), "{error}");
    }
    assert!(
        parse(FlowFilter {
            protocol: "quic".into(),
            ..FlowFilter::default()
        })
        .contains("quic")
    );
    assert!(
        parse(FlowFilter {
            port: 70000,
            ..FlowFilter::default()
        })
        .contains("70000")
    );
    assert!(
        parse(FlowFilter {
            verdict: 99,
            ..FlowFilter::default()
        })
        .contains("99")
    );
    let many = GetFlowsRequest {
        filters: vec![FlowFilter::default(); FILTERS_MAX + 1],
        ..Default::default()
    };
    assert_eq!(Filters::parse(&many), Err(FilterError::TooMany(FILTERS_MAX + 1)));
}
