//! The maps of nodes, written as an agent writes them: planned from the compiled state, carried out in memory.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
};

use bulkhead_policy::{
    lease::{LeaseTables, asked},
    model::WorkloadKey,
    plan::{Limits, LocalEndpoint, LocalEndpoints, MapWriter as _, Names, PlanError, Planner},
    state::State,
    table::Table,
};
use bulkhead_verdict::{
    host::{MemMaps, Probe},
    layout::{LeaseKey, NameKey},
    maps::Hook,
};
use thiserror::Error;

use super::answer::{EndAnswer, Verdict};

/// Why the maps could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorldError {
    /// The planner refused.
    #[error("the policies do not fit a node that has pod {pod}")]
    Plan {
        /// A pod of the node.
        pod: String,
        /// Why.
        #[source]
        cause: PlanError,
    },
}

/// A node's maps, and what the numbers in them mean.
pub(super) struct Node {
    maps: RefCell<MemMaps>,
    names: Names,
}

/// Where a pod is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seat {
    /// Index of the node.
    pub(super) node: usize,
    /// Its device there.
    ifindex: u32,
}

/// The nodes, and which pod is on which.
#[derive(Default)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    seats: BTreeMap<WorkloadKey, Seat>,
}

impl Nodes {
    /// Puts all endpoints on as few nodes as hold them. Which node a pod is on makes no difference to what its rules say, so
    /// pods that are not scheduled can be asked for too, and a cluster of small nodes costs one set of maps. Leases are as they are
    /// at `now`, wall nanoseconds.
    pub(super) fn new(state: &State, now: u64) -> Result<Self, WorldError> {
        let mut nodes = Self::default();
        let limits = Limits::default();
        let mut rest = share_out(state, limits);
        rest.reverse();
        while let Some(mut part) = rest.pop() {
            match node(state, &part, limits, now) {
                Ok(node) => nodes.add(node, &part),
                // The node does not hold them all: two nodes do, or say which pod alone is too much.
                Err(PlanError::Capacity(_)) if part.len() > 1 => {
                    let second = part.split_off(part.len() / 2);
                    rest.extend([second, part]);
                }
                Err(cause) => {
                    let pod = part.first().map_or_else(String::new, ToString::to_string);
                    return Err(WorldError::Plan { pod, cause });
                }
            }
        }
        Ok(nodes)
    }

    fn add(&mut self, node: Node, pods: &[&WorkloadKey]) {
        let index = self.nodes.len();
        self.seats.extend(
            (1..)
                .zip(pods)
                .map(|(ifindex, pod)| ((*pod).clone(), Seat { node: index, ifindex })),
        );
        self.nodes.push(node);
    }

    /// Judges a connection's first packet at a pod's device, its destination learned for these sets of names; `None` when there is
    /// no such pod.
    pub(super) fn judge(&self, hook: Hook, pod: &WorkloadKey, probe: &Probe, sets: &[u32]) -> Option<EndAnswer> {
        let seat = self.seats.get(pod)?;
        let node = self.nodes.get(seat.node)?;
        let mut maps = node.maps.borrow_mut();
        maps.names = sets
            .iter()
            .map(|set| {
                let address = probe.destination.into();
                (NameKey { address, name: *set }, u64::MAX)
            })
            .collect();
        let verdict = maps.probe(hook, seat.ifindex, probe);
        Some(EndAnswer {
            verdict: if verdict.reason.passes() {
                Verdict::Allowed
            } else {
                Verdict::Denied
            },
            rule: node.names.rule(verdict.rule).into_owned(),
            reason: verdict.reason.name(),
        })
    }
}

/// Shares endpoints out to nodes by what is known before planning: slots, and entries of rulesets. Pods of one ruleset
/// go together, so that it is written once.
fn share_out(state: &State, limits: Limits) -> Vec<Vec<&WorkloadKey>> {
    let slots = usize::try_from(limits.endpoints).unwrap_or(usize::MAX);
    let room = usize::try_from(limits.rules).unwrap_or(usize::MAX);
    let mut order: Vec<_> = state.endpoints.iter().collect();
    order.sort_by_key(|(key, endpoint)| (endpoint.ingress, endpoint.egress, *key));
    let mut parts: Vec<Vec<&WorkloadKey>> = Vec::new();
    let (mut here, mut entries) = (BTreeSet::new(), 0usize);
    for (key, endpoint) in order {
        let cost = |here: &BTreeSet<_>| -> usize {
            let rulesets = BTreeSet::from([endpoint.egress, endpoint.ingress]);
            let new = rulesets.difference(here).filter_map(|name| state.rulesets.get(name));
            new.map(|ruleset| ruleset.entries.len()).sum()
        };
        let more = entries.saturating_add(cost(&here));
        match parts.last_mut() {
            Some(part) if part.len() < slots && more <= room => {
                part.push(key);
                entries = more;
            }
            _ => {
                here.clear();
                entries = cost(&here);
                parts.push(vec![key]);
            }
        }
        here.extend([endpoint.egress, endpoint.ingress]);
    }
    parts
}

/// A node that has these pods.
fn node(state: &State, pods: &[&WorkloadKey], limits: Limits, now: u64) -> Result<Node, PlanError> {
    let mut local = LocalEndpoints::new();
    for (ifindex, pod) in (1u32..).zip(pods) {
        let [_, a, b, c] = ifindex.to_be_bytes();
        let endpoint = LocalEndpoint {
            ifindex,
            mac: [2, 0, 0, a, b, c],
            ..LocalEndpoint::default()
        };
        local.insert((*pod).clone(), endpoint);
    }
    let endpoints: Table<_, _> = state
        .endpoints
        .iter()
        .filter(|(key, _)| local.contains_key(*key))
        .map(|(key, endpoint)| (key.clone(), endpoint.clone()))
        .collect();
    let named: BTreeSet<_> = endpoints
        .values()
        .flat_map(|endpoint| [endpoint.egress, endpoint.ingress])
        .collect();
    let rulesets = state.rulesets.iter().filter(|(name, _)| named.contains(*name));
    let part = State {
        rulesets: rulesets.map(|(name, ruleset)| (*name, ruleset.clone())).collect(),
        identities: state.identities.clone(),
        bindings: state.bindings.clone(),
        networks: state.networks.clone(),
        leases: state.leases.clone(),
        endpoints,
    };
    let ops = Planner::new("simulate", limits).plan(&part, &local)?;
    let (mut maps, mut names) = (MemMaps::default(), Names::default());
    for op in &ops {
        names.observe(op);
    }
    maps.apply(&ops).unwrap_or_else(|never: Infallible| match never {});
    // The maps' own clock stands still at the moment that is asked about.
    let asked = part.rulesets.values().flat_map(|ruleset| asked(ruleset)).collect();
    let leases = LeaseTables::of(&asked, &part.leases).leases.into_iter();
    maps.leases = leases
        .filter(|(_, deadline)| deadline.runs(now))
        .map(|((profile, image_class), _)| (LeaseKey { profile, image_class }, u64::MAX))
        .collect();
    let maps = RefCell::new(maps);
    Ok(Node { maps, names })
}

/// The connection's first packet.
pub(super) fn first_packet(source: IpAddr, destination: IpAddr, protocol: u8, port: u16) -> Probe {
    Probe {
        source,
        destination,
        protocol,
        port,
        socket: false,
    }
}
