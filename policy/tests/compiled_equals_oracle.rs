//! What the compiler says of any connection in any cluster is what the specification's text says, rule name included.

use bulkhead_policy::{
    compiler::Compiler,
    lease::Lease,
    model::{Guard, Object, RuleName},
    oracle::{lease, oracle},
    state_lookup::evaluate,
    testing::{Draw, cluster, draw, times},
};
use proptest::{collection::vec, prelude::*};

fn agrees(objects: &[Object], compiler: &Compiler, draw: &Draw) -> Result<(), TestCaseError> {
    let probe = draw.probe(objects);
    let holding = draw.holding(objects);
    let now = draw.now();
    let state = compiler.state();
    let compiled = evaluate(state, &probe, &|direction, guard| match guard {
        Guard::Lease { profile, side, negated } => {
            Lease::of(state, &probe, direction, profile, *side).runs(now) != *negated
        }
        guard => holding.contains(guard),
    });
    let expected = oracle(objects, &probe, &|direction, guard| match guard {
        Guard::Lease { profile, side, negated } => {
            let until = lease(objects, &probe, direction, profile, *side);
            until.is_some_and(|until| until.runs(now)) != *negated
        }
        guard => holding.contains(guard),
    });
    prop_assert_eq!(
        &compiled,
        &expected,
        "\ncompiled: {}\noracle:   {}\nprobe: {:?}\nguards that hold: {:?}",
        compiled,
        expected,
        probe,
        holding
    );
    Ok(())
}

proptest! {
    #![proptest_config(times(6))]

    #[test]
    fn compiled_equals_oracle(objects in cluster(), draws in vec(draw(), 60)) {
        let compiler = Compiler::from_scratch(objects.clone());
        for draw in &draws {
            agrees(&objects, &compiler, draw)?;
        }
    }
}

/// The generator reaches what it is for: were all connections denied by one default-deny, the property above would hold
/// and say little.
#[test]
fn random_connections_reach_every_kind_of_decision() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..600 {
        let objects = cluster().new_tree(&mut runner).expect("a cluster").current();
        let compiler = Compiler::from_scratch(objects.clone());
        for _ in 0..20 {
            let draw = draw().new_tree(&mut runner).expect("a connection").current();
            let holding = draw.holding(&objects);
            let outcome = evaluate(compiler.state(), &draw.probe(&objects), &|_, guard| {
                holding.contains(guard)
            });
            for (decision, rule) in [outcome.egress, outcome.ingress].into_iter().flatten() {
                let kind = match rule {
                    RuleName::Builtin(builtin) => builtin.to_string(),
                    RuleName::Rule { policy, .. } => format!("rule of {}", policy.kind),
                    RuleName::DefaultDeny { .. } => "default-deny".to_owned(),
                };
                *seen.entry(format!("{decision:?} {kind}")).or_default() += 1;
            }
        }
    }
    for kind in [
        "Allow builtin/self",
        "Allow builtin/default-allow",
        "Allow rule of NetworkPolicy",
        "Deny rule of NetworkPolicy",
        "Deny default-deny",
        "Allow rule of ClusterNetworkPolicy",
        "Deny rule of ClusterNetworkPolicy",
        "Allow rule of SegmentPolicy",
        "Deny rule of SegmentPolicy",
        "Allow rule of ClusterSegmentPolicy",
        "Deny rule of ClusterSegmentPolicy",
        "Allow builtin/failsafe",
    ] {
        assert!(
            seen.get(kind).is_some_and(|count| *count >= 20),
            "{kind} is rare: {seen:?}"
        );
    }
    let rare = "Allow builtin/node-port";
    assert!(seen.contains_key(rare), "{rare}: {seen:?}");
}
