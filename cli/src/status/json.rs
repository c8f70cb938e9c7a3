//! Status for programs. Names are part of the command's contract.

use bulkhead_proto::{
    convert::digest_from_bytes,
    v1::{AgentStatus, ControllerStatus, Diagnostic, NodeStatus, PolicyKind, PolicyName, PolicyStatus, Severity},
};
use serde_json::{Value, json};

use super::Answer;

/// `{"controller": …, "agent": …}`; one that does not answer is `{"error": why}`.
pub(super) fn status(controller_answer: &Answer<ControllerStatus>, agent_answer: &Answer<AgentStatus>) -> Value {
    let error = |why: &String| json!({"error": why});
    json!({
        "controller": controller_answer.as_ref().map_or_else(error, controller),
        "agent": agent_answer.as_ref().map_or_else(error, agent),
    })
}

/// The name rules have in flow records.
pub(super) fn policy_name(name: &PolicyName) -> String {
    let kind = match name.kind() {
        PolicyKind::NetworkPolicy => "NetworkPolicy",
        PolicyKind::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        PolicyKind::SegmentPolicy => "SegmentPolicy",
        PolicyKind::ClusterSegmentPolicy => "ClusterSegmentPolicy",
        PolicyKind::Unspecified => "Policy",
    };
    match name.namespace.as_str() {
        "" => format!("{kind}/{}", name.name),
        namespace => format!("{kind}/{namespace}/{}", name.name),
    }
}

fn controller(status: &ControllerStatus) -> Value {
    let sizes = status.sizes.unwrap_or_default();
    json!({
        "version": status.version,
        "instance": status.instance,
        "started": status.started.map(|at| at.to_string()),
        "revision": status.revision,
        "source": status.source,
        "policies": status.policies.iter().map(policy).collect::<Vec<_>>(),
        "diagnostics": status.diagnostics.iter().map(diagnostic).collect::<Vec<_>>(),
        "diagnostics_left_out": status.diagnostics_left_out,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
        "sizes": {
            "namespaces": sizes.namespaces,
            "workloads": sizes.workloads,
            "nodes": sizes.nodes,
            "policies": sizes.policies,
            "services": sizes.services,
            "endpoint_slices": sizes.endpoint_slices,
            "identities": sizes.identities,
            "bindings": sizes.bindings,
            "networks": sizes.networks,
            "rulesets": sizes.rulesets,
            "ruleset_entries": sizes.ruleset_entries,
            "endpoints": sizes.endpoints,
        },
    })
}

fn policy(policy: &PolicyStatus) -> Value {
    json!({
        "policy": policy.policy.as_ref().map(policy_name),
        "generation": policy.generation,
        "accepted": policy.accepted,
        "endpoints": policy.endpoints,
        "nodes_needed": policy.nodes_needed,
        "nodes_enforced": policy.nodes_enforced,
        "nodes_waiting": policy.nodes_waiting,
        "enforced_after_ms": policy.enforced_after_ms,
        "bypassed": (!policy.bypassed.is_empty()).then_some(&policy.bypassed),
    })
}

fn diagnostic(found: &Diagnostic) -> Value {
    let severity = match found.severity() {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Unspecified => "unknown",
    };
    json!({
        "severity": severity,
        "source": found.source,
        "object": found.object,
        "field": found.field,
        "message": found.message,
    })
}

fn node(node: &NodeStatus) -> Value {
    json!({
        "node": node.node,
        "connected": node.connected,
        "agent_version": node.agent_version,
        "layout": node.layout,
        "revision_wanted": node.revision_wanted,
        "revision_held": node.revision_held,
        "last_ack": node.last_ack.map(|at| at.to_string()),
        "ack_latency_ms": node.ack_latency_ms,
        "error": node.error,
        "endpoints": node.endpoints,
        "endpoints_enforced": node.endpoints_enforced,
        "endpoints_announced": node.endpoints_announced,
        "updates": node.updates,
        "snapshots": node.snapshots,
    })
}

fn agent(status: &AgentStatus) -> Value {
    let maps = status
        .maps
        .iter()
        .map(|map| json!({"name": map.name, "used": map.used, "limit": map.limit}));
    let verdicts = status.verdicts.iter().map(|count| {
        json!({
            "hook": count.hook,
            "reason": count.reason,
            "reason_number": count.reason_number,
            "packets": count.packets,
            "bytes": count.bytes,
        })
    });
    let lost = status.lost.iter().map(|lost| {
        let place = lost
            .place()
            .as_str_name()
            .trim_start_matches("LOSS_PLACE_")
            .to_lowercase();
        json!({"count": lost.count, "place": place})
    });
    let digest = digest_from_bytes("state_digest", &status.state_digest).ok();
    json!({
        "node": status.node,
        "version": status.version,
        "layout": status.layout,
        "started": status.started.map(|at| at.to_string()),
        "controller_connected": status.controller_connected,
        "revision": status.revision,
        "state_digest": digest.map(|digest| digest.to_string()),
        "held_at": status.held_at.map(|at| at.to_string()),
        "error": status.error,
        "endpoints": status.endpoints,
        "endpoints_enforced": status.endpoints_enforced,
        "maps": maps.collect::<Vec<_>>(),
        "verdicts": verdicts.collect::<Vec<_>>(),
        "lost": lost.collect::<Vec<_>>(),
    })
}
