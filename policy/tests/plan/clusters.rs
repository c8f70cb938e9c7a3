//! The same promises for what the compiler really makes: random clusters and their histories, on one of their nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_policy::{
    compiler::Compiler,
    model::Event,
    plan::{Limits, LocalEndpoint, LocalEndpoints, MapOp, Planner},
    state::{Delta, State},
    testing::{history, times},
};
use proptest::prelude::*;

use crate::{
    bench::{Bench, Expected, Tuple, ZONE, tuples},
    carry::{Allowed, carry_out},
};

/// One of the generator's nodes.
const NODE: &str = "n";
/// Positions at and beside the generator's ports.
const POSITIONS: [u32; 7] = [53, 80, 81, 8080, 0x1_0035, 0x2_0050, 0x5_002f];
/// Addresses nobody is bound to.
const OTHERS: [&str; 6] = [
    "10.0.0.77",
    "10.0.3.1",
    "8.8.8.8",
    "fd00::77",
    "2001:db8::1",
    "192.168.0.77",
];

/// A device for every pod of the zone, always the same for the same one. Nodes are judged by programs of their own.
fn devices(state: &State, known: &mut Vec<String>) -> LocalEndpoints {
    let here = state
        .endpoints
        .iter()
        .filter(|(key, endpoint)| endpoint.zone == ZONE && !key.is_node());
    here.map(|(key, _)| {
        let name = key.to_string();
        let at = known.iter().position(|other| *other == name).unwrap_or_else(|| {
            known.push(name);
            known.len() - 1
        });
        (
            key.clone(),
            LocalEndpoint {
                ifindex: u32::try_from(at).unwrap() + 1,
                ..LocalEndpoint::default()
            },
        )
    })
    .collect()
}

/// Packets between the devices of two states and everybody they know.
fn packets(states: [&Expected; 2], bound: &[&State]) -> Vec<Tuple> {
    let mut devices: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
    for (ifindex, addresses) in states.iter().flat_map(|state| state.devices()) {
        devices.entry(ifindex).or_default().extend(addresses);
    }
    let bound = bound.iter().flat_map(|state| state.bindings.keys());
    let mut peers: BTreeSet<IpAddr> = bound
        .filter(|(zone, _)| *zone == ZONE)
        .map(|(_, address)| *address)
        .collect();
    peers.extend(OTHERS.iter().map(|address| address.parse::<IpAddr>().unwrap()));
    tuples(&devices, &peers.into_iter().collect::<Vec<_>>(), &POSITIONS)
}

/// Where only endpoints and rulesets change, only endpoints that are not as they were get a new word: the compiler keeps
/// its promise that a ruleset's name is its meaning.
fn flips_are_needed(planner_old: &State, new: &State, old: &LocalEndpoints, ops: &[MapOp]) {
    if planner_old.bindings == new.bindings && planner_old.networks == new.networks {
        let words = ops.iter().filter(|op| matches!(op, MapOp::Endpoint(..))).count();
        let keys: BTreeSet<_> = planner_old.endpoints.keys().chain(new.endpoints.keys()).collect();
        let differ = keys.iter().filter(|key| {
            let [was, is] = [planner_old, new].map(|state| state.endpoints.get(**key));
            was != is && (old.contains_key(**key) || is.is_some_and(|endpoint| endpoint.zone == ZONE))
        });
        assert!(words <= differ.count(), "{ops:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: times(1).cases / 8, ..times(1) })]

    #[test]
    fn every_write_shows_what_the_compiler_said_before_or_says_now((objects, steps) in history()) {
        let (mut bench, mut planner) = (Bench::new(), Planner::new(NODE, Limits::default()));
        let (mut compiler, mut known) = (Compiler::default(), Vec::new());
        let mut state = State::default();
        let mut local = LocalEndpoints::new();
        let mut expected = Expected::new(state.clone(), &local);
        planner.plan(&state, &local).unwrap().iter().for_each(|op| bench.write(op));
        for events in std::iter::once(vec![Event::Resync(objects)]).chain(steps) {
            compiler.apply(&events);
            let new = compiler.state().for_node(NODE);
            let new_local = devices(&new, &mut known);
            let next = Expected::new(new.clone(), &new_local);
            let packets = packets([&expected, &next], &[&state, &new]);
            let ops = planner.plan_delta(&Delta::between(&state, &new), &new_local).unwrap();
            flips_are_needed(&state, &new, &local, &ops);
            let allowed = Allowed::new(packets.clone(), &bench, &[&expected], &next);
            carry_out(&mut bench, &ops, ops.len(), &allowed);
            bench.assert_flows_are_judged_again();
            for tuple in &packets {
                prop_assert_eq!(bench.told(tuple), next.told(tuple, None), "{:?}", tuple);
            }
            (state, local, expected) = (new, new_local, next);
            let (mut successor, problems) = Planner::adopt(NODE, Limits::default(), &bench.dump);
            prop_assert_eq!(problems, []);
            let again = successor.plan(&state, &local).unwrap();
            prop_assert_eq!(again, [MapOp::Epoch, MapOp::Barrier], "adopting what was planned changes nothing");
        }
    }
}
