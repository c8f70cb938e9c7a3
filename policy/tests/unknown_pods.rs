//! An address of which we only know that some pod has it may do no more than any pod whatever could do there.

use bulkhead_policy::{
    compiler::Compiler,
    model::{Object, WorkloadKey},
    oracle::oracle,
    state::AddressKind,
    state_lookup::{chain, evaluate},
    testing::{Draw, cluster, draw, times},
};
use bulkhead_policy::{probe::Probe, state::PeerId};
use proptest::{collection::vec, prelude::*};
use std::sync::Arc;

/// The cluster in which this workload alone has the address.
fn given_to(objects: &[Object], owner: &WorkloadKey, probe: &Probe, address: std::net::IpAddr) -> Vec<Object> {
    let mut objects = objects.to_vec();
    for object in &mut objects {
        match object {
            Object::Workload(workload) if workload.key == *owner => {
                let workload = Arc::make_mut(workload);
                workload.zone = probe.zone;
                workload.addresses.insert(address);
            }
            Object::Workload(workload) => drop(Arc::make_mut(workload).addresses.remove(&address)),
            Object::Node(node) => drop(node.addresses.remove(&address)),
            _ => {}
        }
    }
    objects
}

/// Is the peer of this end somebody, we do not know whom?
fn is_unknown(compiler: &Compiler, probe: &Probe, address: std::net::IpAddr) -> bool {
    let contested = compiler
        .state()
        .bindings
        .get(&(probe.zone, address))
        .is_some_and(|binding| binding.peer == PeerId::UnknownPod && binding.kind == AddressKind::Pod);
    let bound = compiler.state().bindings.contains_key(&(probe.zone, address));
    contested || (!bound && chain(compiler.state(), probe.zone, address).contains(&Some(PeerId::UnknownPod)))
}

fn sound(objects: &[Object], compiler: &Compiler, draw: &Draw) -> Result<u32, TestCaseError> {
    let probe = draw.probe(objects);
    let holding = draw.holding(objects);
    let guards = |_, guard: &_| holding.contains(guard);
    let Some(subject) = probe.from.workload.clone() else {
        return Ok(0);
    };
    if !is_unknown(compiler, &probe, probe.to.address) {
        return Ok(0);
    }
    let mut probe = probe;
    probe.to.workload = None;
    let Some((decision, rule)) = evaluate(compiler.state(), &probe, &guards).egress else {
        return Ok(0);
    };
    if decision == bulkhead_policy::state::Decision::Deny {
        return Ok(0);
    }
    let owners = objects.iter().filter_map(|object| match object {
        Object::Workload(workload) if workload.key != subject => Some(&workload.key),
        _ => None,
    });
    let mut checked = 0;
    for owner in owners {
        let known = given_to(objects, owner, &probe, probe.to.address);
        let verdict = oracle(&known, &probe, &guards).egress.map(|(decision, _)| decision);
        prop_assert_eq!(
            verdict,
            Some(decision),
            "{} would not be allowed what {} allows: {:?}",
            owner,
            rule,
            probe
        );
        checked += 1;
    }
    Ok(checked)
}

proptest! {
    #![proptest_config(times(4))]

    #[test]
    fn what_an_unknown_pod_may_every_pod_may(objects in cluster(), draws in vec(draw(), 60)) {
        let compiler = Compiler::from_scratch(objects.clone());
        for draw in &draws {
            sound(&objects, &compiler, draw)?;
        }
    }
}

/// The property above is about something: there are such connections.
#[test]
fn there_are_unknown_pods_that_may_something() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut checked = 0;
    for _ in 0..200 {
        let objects = cluster().new_tree(&mut runner).expect("a cluster").current();
        let compiler = Compiler::from_scratch(objects.clone());
        for _ in 0..20 {
            let draw = draw().new_tree(&mut runner).expect("a connection").current();
            checked += sound(&objects, &compiler, &draw).expect("sound");
        }
    }
    assert!(checked > 100, "only {checked} were checked");
}
