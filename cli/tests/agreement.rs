//! Simulate against the specification: random clusters go through the whole of it (compile, plan, maps, verdict), and the oracle says
//! what the answer should have been.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use bulkhead_cli::simulate::{Name, Question, Verdict, World};
use bulkhead_crds::Lowered;
use bulkhead_policy::{
    compiler::Compiler,
    model::{Mode, Object, Policy, Protocol, Zone},
    oracle::oracle,
    probe::{End, Probe},
    state::Decision,
    testing,
};
use proptest::prelude::*;
use std::sync::Arc;

/// Manifests have no guards and no shadow mode yet.
fn as_manifests_say(object: Object) -> Object {
    let plain = |mut policy: Policy| {
        policy.mode = Mode::Enforce;
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress) {
            rule.guard = None;
            rule.mode = Mode::Enforce;
        }
        policy
    };
    match object {
        Object::Policy(policy) => Object::Policy(plain(policy)),
        // Manifests know one network.
        Object::Workload(mut workload) => {
            Arc::make_mut(&mut workload).zone = Zone::default();
            Object::Workload(workload)
        }
        other => other,
    }
}

fn question(probe: &Probe) -> Option<Question> {
    let name = |end: &End| match &end.workload {
        Some(key) => Name::Pod(key.clone()),
        None => Name::Address(end.address),
    };
    let protocol = match probe.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    };
    let port = probe.port;
    (port != 0).then(|| Question {
        from: name(&probe.from),
        to: name(&probe.to),
        port,
        protocol,
        name: None,
    })
}

/// Two pods claim one address and one of them talks to it: at its own device that is the pod itself, whoever was meant.
fn is_its_own(objects: &[Object], probe: &Probe) -> bool {
    let owns = |end: &End, address| {
        objects.iter().any(|object| match object {
            Object::Workload(it) => Some(&it.key) == end.workload.as_ref() && it.addresses.contains(&address),
            _ => false,
        })
    };
    probe.from.workload != probe.to.workload
        && (owns(&probe.from, probe.to.address) || owns(&probe.to, probe.from.address))
}

/// The oracle's question for what simulate understood: the addresses it chose.
fn asked(world: &World, question: &Question, probe: &Probe) -> Option<Probe> {
    let path = world.path(question).ok()?;
    let end = |workload, address| End { workload, address };
    let (from, to) = (end(path.from, path.source), end(path.to, path.destination));
    Some(Probe {
        from,
        to,
        // Manifests know one network.
        zone: Zone::default(),
        mode: Mode::Enforce,
        ..probe.clone()
    })
}

proptest! {
    #![proptest_config(testing::times(1))]

    #[test]
    fn simulate_is_what_the_oracle_says(objects in testing::cluster(), draws in proptest::collection::vec(testing::draw(), 24)) {
        let objects: Vec<Object> = objects.into_iter().map(as_manifests_say).collect();
        let compiler = Compiler::from_scratch(objects.clone());
        let lowered = Lowered { objects: objects.clone(), ..Lowered::default() };
        let world = World::new(lowered, compiler.state()).unwrap();
        for probe in draws.iter().map(|draw| draw.probe(&objects)) {
            let Some(question) = question(&probe) else { continue };
            let Some(probe) = asked(&world, &question, &probe) else { continue };
            if is_its_own(&objects, &probe) {
                continue;
            }
            let answer = world.ask(&question).unwrap();
            let outcome = oracle(&objects, &probe, &|_, _| true);
            for (said, expected) in [(&answer.egress, &outcome.egress), (&answer.ingress, &outcome.ingress)] {
                let said = said.as_ref().map(|end| (end.verdict == Verdict::Allowed, end.rule.clone()));
                let expected = expected.as_ref().map(|(decision, rule)| (*decision == Decision::Allow, rule.to_string()));
                prop_assert_eq!(said, expected, "{:?}", probe);
            }
            prop_assert_eq!(answer.verdict == Verdict::Allowed, outcome.is_allowed());
        }
    }
}
