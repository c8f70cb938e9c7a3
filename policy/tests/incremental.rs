//! Any history that ends with the same objects gives the same state, byte for byte, and each step's delta is exactly the
//! difference it made.

use bulkhead_policy::{
    compiler::Compiler,
    model::Event,
    state::{Delta, State},
    testing::{after, cluster, history, times},
};
use proptest::prelude::*;

/// Equal as values and as bytes.
fn same(left: &State, right: &State) -> Result<(), TestCaseError> {
    prop_assert_eq!(left, right);
    prop_assert_eq!(format!("{left:?}"), format!("{right:?}"));
    Ok(())
}

proptest! {
    #![proptest_config(times(2))]

    #[test]
    fn incremental_equals_from_scratch((mut objects, steps) in history()) {
        let mut compiler = Compiler::default();
        let mut mirror = State::default();
        let first = vec![Event::Resync(objects.clone())];
        for events in std::iter::once(first).chain(steps) {
            let changes = compiler.apply(&events);
            mirror.apply(changes.delta).expect("a delta fits the state it was made for");
            for event in &events {
                after(&mut objects, event);
            }
            prop_assert_eq!(&mirror, compiler.state());
            let scratch = Compiler::from_scratch(objects.clone());
            prop_assert_eq!(compiler.state(), scratch.state());
        }
        same(compiler.state(), Compiler::from_scratch(objects).state())?;
    }

    #[test]
    fn nothing_is_left_of_a_cluster_that_is_gone(objects in cluster()) {
        let mut compiler = Compiler::from_scratch(objects.clone());
        for object in &objects {
            compiler.apply(&[Event::Delete(object.key())]);
        }
        same(compiler.state(), &State::default())?;
        prop_assert!(compiler.is_empty(), "tables are left behind: {:?}", compiler);
    }

    #[test]
    fn the_order_of_objects_does_not_matter(objects in cluster(), seed in any::<u64>()) {
        let mut shuffled = objects.clone();
        shuffled.sort_by_key(|object| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            (seed, object.key()).hash(&mut hasher);
            hasher.finish()
        });
        let (one, other) = (Compiler::from_scratch(objects), Compiler::from_scratch(shuffled));
        same(one.state(), other.state())?;
        prop_assert_eq!(one.diagnostics(), other.diagnostics());
    }

    #[test]
    fn what_does_not_change_anything_changes_nothing(objects in cluster()) {
        let mut compiler = Compiler::from_scratch(objects.clone());
        let again: Vec<Event> = objects.iter().cloned().map(Event::Upsert).collect();
        prop_assert_eq!(compiler.apply(&again).delta, Delta::default());
        prop_assert_eq!(compiler.apply(&[Event::Resync(objects)]).delta, Delta::default());
    }
}
