//! Status for people: what is wrong first of all.

use bulkhead_proto::v1::{AgentStatus, ControllerStatus, Diagnostic, LossPlace, NodeStatus, PolicyStatus, Severity};

use super::{Answer, json::policy_name};
use crate::table::{self, line};

/// Share of a table from which on it is pointed at, in percent.
const NEARLY_FULL: u64 = 80;

pub(super) fn status(controller: &Answer<ControllerStatus>, agent: &Answer<AgentStatus>) -> String {
    let mut text = String::new();
    match controller {
        Ok(controller) => write_controller(&mut text, controller),
        Err(why) => line(&mut text, format_args!("Controller: not reachable: {why}")),
    }
    text.push('\n');
    match agent {
        Ok(agent) => write_agent(&mut text, agent),
        Err(why) => line(&mut text, format_args!("Agent: not reachable: {why}")),
    }
    text
}

fn write_controller(text: &mut String, status: &ControllerStatus) {
    let ControllerStatus {
        version,
        revision,
        source,
        ..
    } = status;
    line(
        text,
        format_args!("Controller {version}: revision {revision}, from {source}"),
    );
    if let Some(sizes) = &status.sizes {
        line(
            text,
            format_args!(
                "  {} pods, {} nodes, {} policies → {} identities, {} addresses, {} networks, {} rulesets with {} entries",
                sizes.workloads,
                sizes.nodes,
                sizes.policies,
                sizes.identities,
                sizes.bindings,
                sizes.networks,
                sizes.rulesets,
                sizes.ruleset_entries
            ),
        );
    }
    for found in &status.diagnostics {
        line(text, format_args!("  {}", diagnostic(found)));
    }
    if status.diagnostics_left_out > 0 {
        line(
            text,
            format_args!("  … and {} more findings", status.diagnostics_left_out),
        );
    }
    let policies = status.policies.iter().map(|policy| {
        [
            policy.policy.as_ref().map(policy_name).unwrap_or_default(),
            policy.generation.to_string(),
            policy.endpoints.to_string(),
            format!("{} of {} nodes", policy.nodes_enforced, policy.nodes_needed),
            policy
                .enforced_after_ms
                .map(|after| format!("{after} ms"))
                .unwrap_or_default(),
            policy_state(policy),
        ]
    });
    let nodes = status.nodes.iter().map(|node| {
        [
            node.node.clone(),
            node_state(node),
            format!("{} of {revision}", node.revision_held),
            format!("{} ms", node.ack_latency_ms),
            node.endpoints.to_string(),
            node.endpoints_enforced.to_string(),
            node.agent_version.clone(),
        ]
    });
    write_table(
        text,
        ["POLICY", "GEN", "PODS", "ENFORCED ON", "AFTER", "STATE"],
        policies,
    );
    write_table(
        text,
        ["NODE", "STATE", "REVISION", "ACK", "PODS", "ENFORCED", "AGENT"],
        nodes,
    );
}

fn diagnostic(found: &Diagnostic) -> String {
    let severity = match found.severity() {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Unspecified => "finding",
    };
    let parts = [&found.source, &found.object, &found.field, &found.message];
    let parts: Vec<&str> = parts
        .into_iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    format!("{severity}: {}", parts.join(": "))
}

fn policy_state(policy: &PolicyStatus) -> String {
    if !policy.accepted {
        "has errors".to_owned()
    } else if policy.nodes_needed == 0 {
        "selects no pod".to_owned()
    } else if !policy.bypassed.is_empty() {
        format!("BYPASSED: {}", policy.bypassed)
    } else if policy.nodes_enforced == policy.nodes_needed {
        "enforced".to_owned()
    } else {
        format!("waits for {}", policy.nodes_waiting.join(", "))
    }
}

fn node_state(node: &NodeStatus) -> String {
    match (node.connected, node.error.as_str()) {
        (false, _) => "gone".to_owned(),
        (true, "") if node.revision_held < node.revision_wanted => "behind".to_owned(),
        (true, "") => "connected".to_owned(),
        (true, error) => error.to_owned(),
    }
}

fn write_agent(text: &mut String, status: &AgentStatus) {
    let connected = if status.controller_connected {
        "connected to the controller"
    } else {
        "WITHOUT its controller"
    };
    let AgentStatus {
        node,
        version,
        revision,
        endpoints,
        endpoints_enforced,
        ..
    } = status;
    line(
        text,
        format_args!(
            "Agent {version} of node {node}: {connected}, holds revision {revision}, {endpoints_enforced} of {endpoints} pods \
             enforced"
        ),
    );
    if !status.error.is_empty() {
        line(text, format_args!("  error: {}", status.error));
    }
    for lost in &status.lost {
        let place = match lost.place() {
            LossPlace::KernelRing => "the kernel's event ring",
            LossPlace::DenyTable => "the table of denials",
            LossPlace::History => "the history",
            LossPlace::Subscriber => "readers' queues",
            LossPlace::Unspecified => "a place this version does not know",
        };
        line(text, format_args!("  lost: {} flow records in {place}", lost.count));
    }
    let maps = status.maps.iter().map(|map| {
        let percent = map.used.saturating_mul(100).checked_div(map.limit).unwrap_or_default();
        let note = if percent >= NEARLY_FULL {
            format!("{percent} % full")
        } else {
            format!("{percent} %")
        };
        [map.name.clone(), map.used.to_string(), map.limit.to_string(), note]
    });
    write_table(text, ["TABLE", "USED", "LIMIT", ""], maps);
    let happened = status.verdicts.iter().filter(|verdict| verdict.packets > 0);
    let verdicts = happened.map(|verdict| {
        let (packets, bytes) = (verdict.packets.to_string(), verdict.bytes.to_string());
        [verdict.hook.clone(), verdict.reason.clone(), packets, bytes]
    });
    write_table(text, ["HOOK", "REASON", "PACKETS", "BYTES"], verdicts);
}

/// A table after an empty line; nothing when there are no rows. An empty cell is a dash.
pub(super) fn write_table<const N: usize>(
    text: &mut String,
    heading: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) {
    let dash = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
    let rows: Vec<[String; N]> = rows.map(|row| row.map(dash)).collect();
    if rows.is_empty() {
        return;
    }
    let mut bytes = Vec::new();
    // Writing to a vector does not fail.
    drop(table::write(&mut bytes, heading, &rows));
    line(text, format_args!("\n{}", String::from_utf8_lossy(&bytes).trim_end()));
}
