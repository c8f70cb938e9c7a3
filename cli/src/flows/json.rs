//! A flow record as one JSON object. Absent and empty fields are left out; names are part of the command's contract.

use bulkhead_proto::{
    filter::flow_protocol,
    v1::{Counters, Endpoint, Flow, GuardKind, LostFlows, TrafficDirection, Verdict, layer4::Protocol},
};
use prost_types::Timestamp;
use serde_json::{Map, Value, json};

use super::line;

/// RFC 3339, UTC.
pub(super) fn time(time: Option<&Timestamp>) -> Option<String> {
    let mut time = *time?;
    // Always with a fraction of the same length, so that lines sort by their text.
    time.normalize();
    let nanoseconds = time.nanos;
    let seconds = Timestamp { nanos: 0, ..time }.to_string();
    Some(format!("{}.{nanoseconds:09}Z", seconds.trim_end_matches('Z')))
}

/// Every field the record has.
pub(super) fn flow(flow: &Flow) -> Value {
    let (source, destination) = flow.ip.as_ref().map_or(("", ""), |ip| (&*ip.source, &*ip.destination));
    let (source_port, destination_port) = ports(flow);
    let word = |text: &str, prefix: &str| text.trim_start_matches(prefix).to_lowercase();
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| {
        if !is_empty(&value) {
            object.insert(name.to_owned(), value);
        }
    };
    set("time", json!(time(flow.time.as_ref())));
    set("event", json!(word(flow.event().as_str_name(), "FLOW_EVENT_")));
    set("verdict", json!(verdict(flow.verdict())));
    set("reason", json!(flow.reason));
    set("reason_number", json!(flow.reason_number));
    set("rule", json!(flow.rule));
    if flow.verdict() == Verdict::Dropped {
        set("drop_reason_desc", json!(flow.drop_reason_desc().as_str_name()));
    }
    if flow.shadow_verdict() != Verdict::Unknown {
        set("shadow_verdict", json!(verdict(flow.shadow_verdict())));
        set("shadow_rule", json!(flow.shadow_rule));
    }
    set("source", end(flow.source.as_ref(), source, source_port));
    set(
        "destination",
        end(flow.destination.as_ref(), destination, destination_port),
    );
    set("destination_names", json!(flow.destination_names));
    set("protocol", json!(protocol(flow)));
    set("icmp", icmp(flow));
    if flow.traffic_direction() != TrafficDirection::Unknown {
        set(
            "traffic_direction",
            json!(word(flow.traffic_direction().as_str_name(), "")),
        );
    }
    set("is_reply", json!(flow.is_reply));
    set("node_name", json!(flow.node_name));
    set(
        "interface",
        flow.interface
            .as_ref()
            .map_or(Value::Null, |it| json!({"index": it.index, "name": it.name})),
    );
    set("generation", json!(flow.generation));
    set("count", json!(flow.count));
    set("first", json!(time(flow.first.as_ref())));
    set("last", json!(time(flow.last.as_ref())));
    set("forward", counters(flow.forward));
    set("backward", counters(flow.backward));
    if flow.guard() != GuardKind::None {
        set("guard", json!(word(flow.guard().as_str_name(), "GUARD_KIND_")));
    }
    if flow.close_reason != 0 {
        set(
            "close_reason",
            json!(word(flow.close_reason().as_str_name(), "CLOSE_REASON_")),
        );
    }
    if flow.flow_id != 0 {
        set("flow", json!({"cpu": flow.flow_cpu, "id": flow.flow_id}));
    }
    set("cpu", json!(flow.cpu));
    set("sequence", json!(flow.sequence));
    set("zone", json!(flow.zone));
    Value::Object(object)
}

/// Where records are missing.
pub(super) fn lost(lost: &LostFlows) -> Value {
    let place = lost
        .place()
        .as_str_name()
        .trim_start_matches("LOSS_PLACE_")
        .to_lowercase();
    json!({"lost": {
        "count": lost.count,
        "place": place,
        "first": time(lost.first.as_ref()),
        "last": time(lost.last.as_ref()),
    }})
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forwarded => "allowed",
        Verdict::Dropped => "denied",
        Verdict::Audit => "audit",
        Verdict::Error => "error",
        Verdict::Unknown => "unknown",
    }
}

fn protocol(flow: &Flow) -> Value {
    let Some(number) = flow_protocol(flow) else {
        return Value::Null;
    };
    u8::try_from(number)
        .ok()
        .and_then(line::name)
        .map_or_else(|| json!(number), |name| json!(name))
}

fn icmp(flow: &Flow) -> Value {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::IcmPv4(icmp)) => json!({"type": icmp.r#type, "code": icmp.code}),
        Some(Protocol::IcmPv6(icmp)) => json!({"type": icmp.r#type, "code": icmp.code}),
        _ => Value::Null,
    }
}

fn ports(flow: &Flow) -> (Option<u32>, Option<u32>) {
    let ports = match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(Protocol::Tcp(tcp)) => (tcp.source_port, tcp.destination_port),
        Some(Protocol::Udp(udp)) => (udp.source_port, udp.destination_port),
        Some(Protocol::Sctp(sctp)) => (sctp.source_port, sctp.destination_port),
        _ => return (None, None),
    };
    (Some(ports.0), Some(ports.1))
}

fn counters(counters: Option<Counters>) -> Value {
    counters.map_or(
        Value::Null,
        |counters| json!({"packets": counters.packets, "bytes": counters.bytes}),
    )
}

fn end(endpoint: Option<&Endpoint>, address: &str, port: Option<u32>) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| {
        if !is_empty(&value) {
            object.insert(name.to_owned(), value);
        }
    };
    set("ip", json!(address));
    set("port", json!(port));
    if let Some(endpoint) = endpoint {
        set("namespace", json!(endpoint.namespace));
        set("pod_name", json!(endpoint.pod_name));
        set("labels", json!(endpoint.labels));
        set(
            "workloads",
            json!(
                endpoint
                    .workloads
                    .iter()
                    .map(|it| format!("{}/{}", it.kind, it.name))
                    .collect::<Vec<_>>()
            ),
        );
        set("node_name", json!(endpoint.node_name));
        set("identity", json!(endpoint.identity));
        set("identity_name", json!(endpoint.identity_name));
    }
    Value::Object(object)
}
