//! Any bytes as chunks of updates: no panic, and what is accepted says the same when it is sent again.
#![no_main]

use bulkhead_policy::state::State;
use bulkhead_proto::{
    state_digest::StateDigest,
    update::{Assembler, encode},
    v1,
};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    // Two messages: a length, the first one's bytes, the second one's.
    let Some((length, rest)) = bytes.split_first() else { return };
    let (first, second) = rest.split_at(usize::from(*length).min(rest.len()));
    let mut assembler = Assembler::default();
    let mut state = State::default();
    for bytes in [first, second] {
        let Ok(update) = v1::Update::decode(bytes) else { continue };
        let Ok(Some(revision)) = assembler.push(update) else { continue };
        let updates = encode(&revision).expect("what came in messages fits messages");
        let mut again = Assembler::default();
        let mut whole = None;
        for update in updates {
            whole = again.push(update).expect("what we send can be read");
        }
        assert_eq!(whole.as_ref(), Some(&revision));
        let before = state.clone();
        let digest = StateDigest::of(&before).after(&before, &revision.delta);
        if state.apply(revision.delta.clone()).is_ok() && is_a_difference(&revision.delta) {
            assert_eq!(digest, StateDigest::of(&state));
        }
    }
});

/// A name occurs once: what a controller sends. The digest of anything else means nothing.
fn is_a_difference(delta: &bulkhead_policy::state::Delta) -> bool {
    let names: Vec<_> =
        delta.upserts.iter().map(bulkhead_policy::state::Resource::name).chain(delta.removes.iter().cloned()).collect();
    let rulesets: std::collections::BTreeSet<_> = delta
        .removes
        .iter()
        .filter_map(|name| match name {
            bulkhead_policy::state::ResourceName::Ruleset(name) => Some(*name),
            _ => None,
        })
        .collect();
    let mut sorted = names.clone();
    sorted.sort();
    sorted.dedup();
    let entry_of_removed = names.iter().any(|name| match name {
        bulkhead_policy::state::ResourceName::RulesetEntry(name, _) => rulesets.contains(name),
        _ => false,
    });
    sorted.len() == names.len() && !entry_of_removed
}
