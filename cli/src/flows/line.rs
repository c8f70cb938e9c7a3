//! A flow record as one line for people.

use bulkhead_proto::{
    filter::{destination_port, flow_protocol},
    v1::{CloseReason, Endpoint, Flow, FlowEvent, LossPlace, LostFlows, Verdict, layer4::Protocol},
};
use bulkhead_verdict::port::protocol;

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const FAINT: &str = "\x1b[2m";
const END: &str = "\x1b[0m";

fn colour(text: &str, code: &str, coloured: bool) -> String {
    if coloured {
        format!("{code}{text}{END}")
    } else {
        text.to_owned()
    }
}

/// Time, verdict, event, from → to:port/protocol, reason, rule.
pub(super) fn flow(flow: &Flow, coloured: bool) -> String {
    let (verdict, code) = match flow.verdict() {
        Verdict::Forwarded => ("allowed", GREEN),
        Verdict::Dropped => ("denied", RED),
        Verdict::Audit => ("audit", YELLOW),
        Verdict::Unknown | Verdict::Error => ("unknown", YELLOW),
    };
    let (source, destination) = flow
        .ip
        .as_ref()
        .map_or(("?", "?"), |ip| (&*ip.source, &*ip.destination));
    let ends = format!(
        "{} → {}{}",
        end(flow.source.as_ref(), source),
        end(flow.destination.as_ref(), destination),
        service(flow)
    );
    let mut line = format!(
        "{}  {}  {:<8}  {ends:<52}  {}",
        colour(&time(flow), FAINT, coloured),
        colour(&format!("{verdict:<7}"), code, coloured),
        event(flow),
        flow.reason,
    );
    if !flow.rule.is_empty() {
        line.push_str("  ");
        line.push_str(&flow.rule);
    }
    if !flow.destination_names.is_empty() {
        let names = format!("  (learned for {})", flow.destination_names.join(", "));
        line.push_str(&colour(&names, FAINT, coloured));
    }
    if flow.count > 1 {
        line.push_str(&colour(&format!("  ×{}", flow.count), YELLOW, coloured));
    }
    if flow.shadow_verdict() != Verdict::Unknown && flow.shadow_verdict() != flow.verdict() {
        let shadow = if flow.shadow_verdict() == Verdict::Dropped {
            "denied"
        } else {
            "allowed"
        };
        line.push_str(&colour(
            &format!("  (shadow: {shadow} by {})", flow.shadow_rule),
            YELLOW,
            coloured,
        ));
    }
    line
}

/// Records that are missing here.
pub(super) fn lost(lost: &LostFlows, coloured: bool) -> String {
    let place = match lost.place() {
        LossPlace::KernelRing => "the kernel's event ring was full",
        LossPlace::DenyTable => "the table of denials was full",
        LossPlace::History => "the agent's history is shorter",
        LossPlace::Subscriber => "this reader was too slow",
        LossPlace::Unspecified => "the agent does not say where",
    };
    colour(
        &format!("{} records are missing here: {place}", lost.count),
        YELLOW,
        coloured,
    )
}

/// Hours to milliseconds, UTC.
fn time(flow: &Flow) -> String {
    let text = super::json::time(flow.time.as_ref()).unwrap_or_default();
    text.get(11..23).unwrap_or("--:--:--.---").to_owned()
}

fn event(flow: &Flow) -> &'static str {
    match flow.event() {
        FlowEvent::Open => "open",
        FlowEvent::Deny => "deny",
        FlowEvent::Cut => "cut",
        FlowEvent::Interval => "open…",
        FlowEvent::Unspecified => "-",
        FlowEvent::Close => match flow.close_reason() {
            CloseReason::Reset => "reset",
            CloseReason::Idle => "idle",
            _ => "close",
        },
    }
}

/// The pod, the Service, the node, or the bare address.
fn end(endpoint: Option<&Endpoint>, address: &str) -> String {
    let service = |end: &Endpoint| {
        end.workloads
            .iter()
            .find(|it| it.kind == "Service")
            .map(|it| it.name.clone())
    };
    match endpoint {
        Some(end) if service(end).is_some() => {
            format!("service {}/{}", end.namespace, service(end).unwrap_or_default())
        }
        Some(end) if !end.pod_name.is_empty() => format!("{}/{}", end.namespace, end.pod_name),
        Some(end) if !end.node_name.is_empty() => format!("node {} ({address})", end.node_name),
        _ if address.contains(':') => format!("[{address}]"),
        _ => address.to_owned(),
    }
}

/// `:443/tcp`, `/icmp 8.0`, `/47`.
fn service(flow: &Flow) -> String {
    let number = flow_protocol(flow);
    let name = number.and_then(|number| u8::try_from(number).ok()).and_then(name);
    match (
        flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()),
        destination_port(flow),
    ) {
        (_, Some(port)) => format!(":{port}/{}", name.unwrap_or("?")),
        (Some(Protocol::IcmPv4(icmp)), None) => format!("/icmp {}.{}", icmp.r#type, icmp.code),
        (Some(Protocol::IcmPv6(icmp)), None) => format!("/icmpv6 {}.{}", icmp.r#type, icmp.code),
        _ => number.map_or_else(String::new, |number| format!("/{number}")),
    }
}

/// Name of a protocol people know.
pub(super) fn name(number: u8) -> Option<&'static str> {
    Some(match number {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::SCTP => "sctp",
        protocol::ICMP => "icmp",
        protocol::ICMPV6 => "icmpv6",
        _ => return None,
    })
}
