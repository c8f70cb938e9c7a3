//! What a compiled state says of a connection: the lookups of the kernel's verdict, on the state itself. For tests, and
//! for tools that explain; packets are judged by `verdict::decide` alone.

use std::net::IpAddr;

use bulkhead_verdict::port::Position;

use crate::{
    model::{Builtin, Direction, Mode, RuleName, WorkloadKey, Zone},
    probe::{End, Holding, Outcome, Probe},
    state::{AddressKind, Alternative, Binding, Decision, Endpoint, PeerId, PortSet, Range, Ruleset, State},
};

/// Judges a new connection at both ends. `None` from a part that is missing or broken is a denial in the verdict; here it
/// is left out, so that a test that compares sees it.
pub fn evaluate(state: &State, probe: &Probe, holding: Holding<'_>) -> Outcome {
    let ends = [&probe.from, &probe.to].map(|end| workload(state, probe.zone, end));
    if let [Some(from), Some(to)] = &ends
        && from == to
        && !from.is_node()
    {
        let own = Some((Decision::Allow, RuleName::Builtin(Builtin::SelfTraffic)));
        return Outcome {
            egress: own.clone(),
            ingress: own,
        };
    }
    let [from, to] = ends.map(|key| key.and_then(|key| Some((key, state.endpoints.get(key)?.as_ref()))));
    let position = Position::new(probe.protocol, probe.port);
    let judge = |(key, endpoint): (&WorkloadKey, &Endpoint), direction: Direction| {
        let (ruleset, peer) = match direction {
            Direction::Egress => (endpoint.egress, probe.to.address),
            Direction::Ingress => (endpoint.ingress, probe.from.address),
        };
        if key.is_node() && is_inside(state, probe.zone, peer, &key.name) {
            return None;
        }
        let range = range(entry(state, state.rulesets.get(&ruleset)?, probe.zone, peer)?, position)?;
        let list = match probe.mode {
            Mode::Shadow if !range.shadow.is_empty() => &range.shadow,
            Mode::Shadow | Mode::Enforce => &range.enforce,
        };
        decide(list, direction, holding)
    };
    Outcome {
        egress: from.and_then(|endpoint| judge(endpoint, Direction::Egress)),
        ingress: to.and_then(|endpoint| judge(endpoint, Direction::Ingress)),
    }
}

/// The workload an end is; a node where it is an endpoint.
pub fn workload<'a>(state: &'a State, zone: Zone, end: &'a End) -> Option<&'a WorkloadKey> {
    end.workload.as_ref().or_else(|| {
        let binding = state.bindings.get(&(zone, end.address))?;
        let known = match binding.kind {
            AddressKind::Pod => true,
            AddressKind::Node => state.endpoints.contains_key(&binding.name),
            AddressKind::Service => false,
        };
        (known && binding.peer != PeerId::UnknownPod).then(|| binding.name.as_ref())
    })
}

/// True for a pod of that node, and for the node: what they say to it never passes where its own rules are asked.
pub fn is_inside(state: &State, zone: Zone, address: IpAddr, node: &str) -> bool {
    state.bindings.get(&(zone, address)).is_some_and(|binding| {
        binding.kind != AddressKind::Service
            && binding.peer != PeerId::UnknownPod
            && binding.node.as_deref() == Some(node)
    })
}

/// The entry of a ruleset that decides about a peer: the first in the chain of its address.
pub fn entry<'a>(state: &State, ruleset: &'a Ruleset, zone: Zone, peer: IpAddr) -> Option<&'a PortSet> {
    chain(state, zone, peer)
        .into_iter()
        .flatten()
        .find_map(|peer| ruleset.entries.get(&peer))
        .map(AsRef::as_ref)
}

/// Who an address is, from exact to wide.
pub fn chain(state: &State, zone: Zone, address: IpAddr) -> [Option<PeerId>; 3] {
    let binding = state.bindings.get(&(zone, address));
    binding.map_or_else(|| unbound(state, zone, address), chain_of)
}

/// Who a bound address is.
pub fn chain_of(binding: &Binding) -> [Option<PeerId>; 3] {
    let class = match binding.kind {
        _ if binding.peer == PeerId::UnknownPod => None,
        AddressKind::Pod => Some(PeerId::AnyPod),
        AddressKind::Node => Some(PeerId::AnyNode),
        AddressKind::Service => None,
    };
    [Some(binding.peer), class, Some(PeerId::AnyAddress)]
}

/// Who an address without a binding is.
pub fn unbound(state: &State, zone: Zone, address: IpAddr) -> [Option<PeerId>; 3] {
    let networks = state
        .networks
        .iter()
        .filter(|((of, prefix), _)| *of == zone && prefix.contains(address));
    let network = networks
        .max_by_key(|((_, prefix), _)| prefix.prefix())
        .map(|(_, network)| network);
    let class = network.filter(|network| network.pod_range).map(|_| PeerId::UnknownPod);
    [network.map(|network| network.peer), class, Some(PeerId::AnyAddress)]
}

/// The range a position lies in.
pub fn range(ports: &PortSet, position: Position) -> Option<&Range> {
    let at = ports.ranges.partition_point(|range| range.high < position.0);
    ports.ranges.get(at).filter(|range| range.low <= position.0)
}

/// The first alternative whose guard holds.
fn decide(list: &[Alternative], direction: Direction, holding: Holding<'_>) -> Option<(Decision, RuleName)> {
    let holds = |guard: &_| holding(direction, guard);
    let first = list
        .iter()
        .find(|alternative| alternative.guard.as_ref().is_none_or(holds))?;
    Some((first.decision, first.rule.clone()))
}
