//! Properties over random states and histories.

use bulkhead_policy::{
    plan::{Limits, Planner},
    state::Delta,
};
use proptest::prelude::*;

use crate::{
    bench::{Bench, Expected},
    carry::{Allowed, carry_out},
    world::{NODE, World, packets, steps, world},
};

/// The maps say what the state says, and the planner uses what it would use from scratch.
fn arrived(bench: &Bench, planner: &Planner, world: &World, expected: &Expected) {
    bench.assert_flows_are_judged_again();
    for tuple in packets() {
        assert_eq!(bench.told(&tuple), expected.told(&tuple, None), "{tuple:?}");
    }
    let mut fresh = Planner::new(NODE, Limits::default());
    fresh.plan(&world.state(), &world.local()).unwrap();
    let idle = planner.usage().rules_idle;
    let mut wanted = fresh.usage();
    wanted.rules_idle = idle;
    assert_eq!(planner.usage(), wanted, "nothing leaks");
    let (adopted, problems) = Planner::adopt(NODE, Limits::default(), &bench.dump);
    assert_eq!(problems, []);
    assert_eq!(adopted.usage(), wanted, "the maps hold what the planner thinks");
}

fn after_steps(world: &World, steps: &[crate::world::Step]) -> World {
    let mut next = world.clone();
    for step in steps {
        next.step(step);
    }
    next
}

/// Fewer cases than usual, because each is thousands of questions; `PROPTEST_CASES` says otherwise.
fn config() -> ProptestConfig {
    let usual = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        usual.cases
    } else {
        96
    };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..usual
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_write_of_a_delta_shows_old_or_new(first in world(), batches in prop::collection::vec(steps(), 1..5)) {
        let (mut bench, mut planner) = (Bench::new(), Planner::new(NODE, Limits::default()));
        let mut world = first;
        let mut expected = world.expected();
        let ops = planner.plan(&world.state(), &world.local()).unwrap();
        let allowed = Allowed::new(packets(), &bench, &[], &expected);
        carry_out(&mut bench, &ops, ops.len(), &allowed);
        arrived(&bench, &planner, &world, &expected);
        for batch in batches {
            let next = after_steps(&world, &batch);
            let new = next.expected();
            let delta = Delta::between(&world.state(), &next.state());
            let ops = planner.plan_delta(&delta, &next.local()).unwrap();
            let allowed = Allowed::new(packets(), &bench, &[&expected], &new);
            carry_out(&mut bench, &ops, ops.len(), &allowed);
            prop_assert_eq!(planner.state(), &next.state());
            (world, expected) = (next, new);
            arrived(&bench, &planner, &world, &expected);
        }
        let again = planner.plan(&world.state(), &world.local()).unwrap();
        prop_assert!(again.is_empty(), "a full plan finds what a delta missed: {again:?}");
    }

    #[test]
    fn a_plan_cut_anywhere_is_taken_up_towards_any_state(
        first in world(),
        rounds in prop::collection::vec((steps(), 0.0..1.0_f64), 1..6),
    ) {
        let (mut bench, mut planner) = (Bench::new(), Planner::new(NODE, Limits::default()));
        let mut world = first;
        let ops = planner.plan(&world.state(), &world.local()).unwrap();
        bench.write_all(&ops);
        let mut before = vec![world.expected()];
        for (batch, cut) in rounds {
            world = after_steps(&world, &batch);
            let new = world.expected();
            let (mut planner, problems) = Planner::adopt(NODE, Limits::default(), &bench.dump);
            prop_assert_eq!(problems, []);
            let ops = planner.plan(&world.state(), &world.local()).unwrap();
            let old: Vec<&Expected> = before.iter().collect();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a fraction of a list")]
            let count = (ops.len() as f64 * cut) as usize;
            let allowed = Allowed::new(packets(), &bench, &old, &new);
            carry_out(&mut bench, &ops, count, &allowed);
            before.push(new);
        }
        let expected = before.pop().unwrap();
        let (mut planner, _) = Planner::adopt(NODE, Limits::default(), &bench.dump);
        let ops = planner.plan(&world.state(), &world.local()).unwrap();
        let old: Vec<&Expected> = before.iter().chain([&expected]).collect();
        let allowed = Allowed::new(packets(), &bench, &old, &expected);
        carry_out(&mut bench, &ops, ops.len(), &allowed);
        arrived(&bench, &planner, &world, &expected);
    }

    #[test]
    fn what_does_not_fit_writes_nothing(first in world(), batches in prop::collection::vec(steps(), 1..4), squeeze in 0..9_usize) {
        let mut planner = Planner::new(NODE, Limits::default());
        let mut world = first;
        planner.plan(&world.state(), &world.local()).unwrap();
        let usage = planner.usage();
        let tight = |used: usize| u32::try_from(used).unwrap() + 1;
        let mut limits = Limits::default();
        match squeeze {
            0 => limits.rules = tight(usage.rules),
            1 => limits.ranges = usage.ranges + 1,
            2 => limits.alternatives = tight(usage.alternatives) + 1,
            3 => limits.addresses = tight(usage.addresses),
            4 => limits.networks = tight(usage.networks),
            5 => limits.endpoints = tight(usage.endpoints),
            6 => limits.configs = tight(usage.configs) + 1,
            7 => limits.devices = tight(usage.devices),
            _ => limits.interned = tight(usage.identities + usage.rulesets + usage.rules_named + usage.endpoints),
        }
        let mut tight = Planner::new(NODE, limits);
        let mut bench = Bench::new();
        tight.plan(&world.state(), &world.local()).unwrap().iter().for_each(|op| bench.write(op));
        for batch in batches {
            let next = after_steps(&world, &batch);
            let delta = Delta::between(&world.state(), &next.state());
            match tight.plan_delta(&delta, &next.local()) {
                Ok(ops) => {
                    bench.write_all(&ops);
                    world = next;
                }
                Err(error) => prop_assert!(error.to_string().contains("nothing was written"), "{error}"),
            }
            // Whatever happened, planner and maps agree.
            let expected = world.expected();
            arrived_in_limits(&bench, &mut tight, &world, &expected);
        }
    }
}

fn arrived_in_limits(bench: &Bench, planner: &mut Planner, world: &World, expected: &Expected) {
    assert_eq!(planner.state(), &world.state());
    arrived(bench, planner, world, expected);
    assert_eq!(planner.plan(&world.state(), &world.local()), Ok(Vec::new()));
}
