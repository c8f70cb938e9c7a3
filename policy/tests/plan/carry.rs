//! Carries plans out, one write at a time, with every promise checked after each.

use bulkhead_policy::plan::MapOp;

use crate::bench::{Bench, Expected, Told, Tuple};

/// What a packet may be told while a plan runs from one state of affairs to another.
pub(crate) struct Allowed {
    tuples: Vec<Tuple>,
    told: Vec<Vec<Told>>,
}

impl Allowed {
    /// What the maps say now, or what the new state says. `old` is the state the maps came from, where there is one: an
    /// image class that changes with the binding may be seen first, as a change of its own.
    pub(crate) fn new(tuples: Vec<Tuple>, bench: &Bench, old: &[&Expected], new: &Expected) -> Self {
        let told = tuples.iter().map(|tuple| {
            let mut told = vec![bench.told(tuple), new.told(tuple, None)];
            let classes = [bench.class(tuple.peer), new.class(tuple.peer)];
            if classes[0] != classes[1] {
                for class in [classes[0], classes[1], 0] {
                    told.extend([bench.told_of(tuple, Some(class)), new.told(tuple, Some(class))]);
                }
            }
            if old
                .iter()
                .any(|old| old.owner(tuple.ifindex) != new.owner(tuple.ifindex))
            {
                told.push(Told::NoEndpoint);
            }
            told
        });
        let told = told.collect();
        Self { tuples, told }
    }

    /// `turn` picks the tuples about which the verdict itself is asked too: another few each time.
    fn check(&self, bench: &Bench, turn: usize, after: &dyn Fn() -> String) {
        for ((at, tuple), allowed) in self.tuples.iter().enumerate().zip(&self.told) {
            let told = bench.told(tuple);
            if (at + turn * 7).is_multiple_of(61) {
                assert_eq!(bench.judged(tuple), told, "{tuple:?}");
            }
            assert!(
                allowed.contains(&told),
                "{}\n{tuple:?} is told {told:?}, may be told {allowed:?}",
                after()
            );
        }
    }
}

/// Writes that can change what a packet is told.
fn is_visible(op: &MapOp) -> bool {
    !matches!(
        op,
        MapOp::Intern(..) | MapOp::Barrier | MapOp::Epoch | MapOp::PeerEpoch(_)
    )
}

/// Carries out the first `count` writes, with every promise checked after each.
pub(crate) fn carry_out(bench: &mut Bench, ops: &[MapOp], count: usize, allowed: &Allowed) {
    for (at, op) in ops.iter().take(count).enumerate() {
        bench.write(op);
        if is_visible(op) {
            allowed.check(bench, at, &|| format!("after write {at} of {}: {op:?}", ops.len()));
        }
    }
}
