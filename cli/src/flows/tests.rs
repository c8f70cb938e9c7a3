//! What is asked of the agent, and how its records look.

use bulkhead_proto::v1::{
    Counters, DropReason, Endpoint, Flow, FlowEvent, IcmPv4, Ip, Layer4, LossPlace, LostFlows, Tcp, layer4::Protocol,
};
use clap::Parser;
use prost_types::Timestamp;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    flows: Arguments,
}

fn request(line: &str) -> GetFlowsRequest {
    Line::try_parse_from(std::iter::once("flows").chain(line.split_whitespace()))
        .unwrap()
        .flows
        .request()
}

#[test]
fn flags_become_one_filter() {
    assert_eq!(request(""), GetFlowsRequest::default());
    let all = request(
        "-f --last 3 --from shop/web --to 10.0.0.0/8 --verdict denied --policy NetworkPolicy/shop --port 53 --protocol udp",
    );
    assert_eq!((all.follow, all.last, all.filters.len()), (true, 3, 1));
    let filter = &all.filters[0];
    assert_eq!((&*filter.source, &*filter.destination), ("shop/web", "10.0.0.0/8"));
    assert_eq!(
        (filter.verdict(), filter.port, &*filter.protocol),
        (Verdict::Dropped, 53, "udp")
    );
    assert_eq!(filter.policy, "NetworkPolicy/shop");
    assert_eq!(request("-f").last, 20, "some context, not all of history");
    assert!(Line::try_parse_from(["flows", "--port", "70000"]).is_err());
}

fn denied() -> Flow {
    let web = Endpoint {
        namespace: "shop".into(),
        pod_name: "web".into(),
        labels: vec!["app=web".into()],
        identity: 300,
        ..Endpoint::default()
    };
    let mut flow = Flow {
        time: Some(Timestamp {
            seconds: 1_795_392_000,
            nanos: 5_000_000,
        }),
        ip: Some(Ip {
            source: "10.0.1.1".into(),
            destination: "fd00::9".into(),
            ip_version: 0,
        }),
        l4: Some(Layer4 {
            protocol: Some(Protocol::Tcp(Tcp {
                source_port: 40000,
                destination_port: 5432,
                flags: None,
            })),
        }),
        source: Some(web),
        rule: "NetworkPolicy/shop/db@3 ingress default-deny".into(),
        reason: "policy-denied".into(),
        reason_number: 64,
        count: 7,
        forward: Some(Counters { packets: 7, bytes: 420 }),
        ..Flow::default()
    };
    flow.set_verdict(Verdict::Dropped);
    flow.set_event(FlowEvent::Deny);
    flow.set_drop_reason_desc(DropReason::PolicyDenied);
    flow
}

#[test]
fn a_line_names_ends_reason_and_rule() {
    assert_eq!(
        line::flow(&denied(), false),
        "00:00:00.005  denied   deny      shop/web → [fd00::9]:5432/tcp                         policy-denied  \
         NetworkPolicy/shop/db@3 ingress default-deny  ×7"
    );
    let coloured = line::flow(&denied(), true);
    assert!(coloured.contains("\x1b[31mdenied "), "{coloured:?}");
    let mut ping = denied();
    ping.l4 = Some(Layer4 {
        protocol: Some(Protocol::IcmPv4(IcmPv4 { r#type: 8, code: 0 })),
    });
    ping.set_verdict(Verdict::Forwarded);
    ping.set_shadow_verdict(Verdict::Dropped);
    ping.shadow_rule = "r".into();
    let text = line::flow(&ping, false);
    assert!(
        text.contains("allowed") && text.contains("/icmp 8.0") && text.ends_with("(shadow: denied by r)"),
        "{text}"
    );
    assert!(
        line::flow(&Flow::default(), false).contains("? → ?"),
        "an empty record does not hide"
    );
}

#[test]
fn json_has_what_the_record_has() {
    let value = json::flow(&denied());
    assert_eq!(value["time"], "2026-11-23T00:00:00.005000000Z");
    assert_eq!(value["verdict"], "denied");
    assert_eq!(value["event"], "deny");
    assert_eq!(value["drop_reason_desc"], "POLICY_DENIED");
    assert_eq!(value["source"]["pod_name"], "web");
    assert_eq!(value["source"]["port"], 40000);
    assert_eq!(value["destination"]["ip"], "fd00::9");
    assert_eq!(value["protocol"], "tcp");
    assert_eq!(value["count"], 7);
    assert_eq!(value["forward"]["bytes"], 420);
    assert!(
        value.get("shadow_rule").is_none() && value.get("is_reply").is_none(),
        "{value}"
    );
    assert!(!value.to_string().contains('\n'));
}

#[test]
fn loss_is_said() {
    let mut lost = LostFlows {
        count: 12,
        ..LostFlows::default()
    };
    lost.set_place(LossPlace::KernelRing);
    assert_eq!(
        line::lost(&lost, false),
        "12 records are missing here: the kernel's event ring was full"
    );
    assert_eq!(json::lost(&lost)["lost"]["place"], "kernel_ring");
}
