//! Named ports that none of the pods in question has.

use std::collections::BTreeSet;

use super::{Findings, place};
use crate::{
    atom::protocol_name,
    compiler::Compiler,
    index::WorkloadId,
    model::{Direction, Match, Peer, PortMatch, Protocol, Rule},
};

pub(super) fn check(
    compiler: &Compiler,
    findings: &mut Findings<'_>,
    (direction, rule): (Direction, &Rule),
    subjects: &BTreeSet<WorkloadId>,
) {
    let Match::OneOf(ports) = &rule.ports else { return };
    let mut named = ports.iter().filter_map(|port| match port {
        PortMatch::Named { protocol, name } => Some((*protocol, name)),
        PortMatch::Range { .. } | PortMatch::Icmp { .. } => None,
    });
    let Some(first) = named.next() else { return };
    let peers;
    let (whose, pods) = match direction {
        Direction::Ingress => ("selected pods", subjects),
        Direction::Egress => {
            peers = matched(compiler, rule);
            ("pods that its peers match", &peers)
        }
    };
    if pods.is_empty() {
        return;
    }
    for (protocol, name) in std::iter::once(first).chain(named) {
        if !pods.iter().any(|id| has(compiler, *id, protocol, name)) {
            let kind = protocol
                .map(|protocol| format!(" for {}", protocol_name(protocol)))
                .unwrap_or_default();
            findings.warning(
                place(direction, rule),
                format_args!(
                    "none of the {whose} has a container port named {name:?}{kind}, so that port matches nothing; check the \
                     name against spec.containers[].ports of the pods, or write the number"
                ),
            );
        }
    }
}

/// The pods that a rule's peers match. Blocks are left out: what is behind them may be anybody.
fn matched(compiler: &Compiler, rule: &Rule) -> BTreeSet<WorkloadId> {
    let Match::OneOf(peers) = &rule.peers else {
        return BTreeSet::new();
    };
    let pods = peers.iter().filter_map(|peer| match peer {
        Peer::Pods(pods) => Some(pods),
        Peer::Network { .. } | Peer::Nodes(_) | Peer::World | Peer::Service(_) | Peer::AddressGroup(_) => None,
    });
    pods.flat_map(|pods| compiler.index.select(pods)).collect()
}

fn has(compiler: &Compiler, id: WorkloadId, protocol: Option<Protocol>, name: &str) -> bool {
    compiler.index.workload(id).is_some_and(|workload| {
        let mut ports = workload.named_ports.iter();
        ports.any(|port| port.name == *name && protocol.is_none_or(|protocol| protocol == port.protocol))
    })
}
