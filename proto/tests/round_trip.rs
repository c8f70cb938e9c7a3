//! Random revisions survive the wire, in any number of chunks; what comes back broken is an error that names its field.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

mod generate;

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use bulkhead_policy::{
    digest::Digest,
    model::{WorkloadKey, Zone},
    state::{AddressKind, Binding, Delta, PeerId, Resource, State},
};
use bulkhead_proto::{
    MESSAGE_BYTES_MAX,
    state_digest::StateDigest,
    update::{Assembler, Revision, UpdateError, encode, encode_snapshot},
    v1,
};
use generate::{delta, policy_version, port_set, state};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;

fn over_the_wire(revision: &Revision) -> Revision {
    let updates = encode(revision).unwrap();
    let mut assembler = Assembler::default();
    let last = updates.len() - 1;
    for (at, update) in updates.into_iter().enumerate() {
        let bytes = update.encode_to_vec();
        assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{} bytes", bytes.len());
        let whole = assembler.push(v1::Update::decode(bytes.as_slice()).unwrap()).unwrap();
        match whole {
            Some(whole) => {
                assert_eq!(at, last);
                return whole;
            }
            None => assert_ne!(at, last),
        }
    }
    unreachable!("encode gives at least one update")
}

/// Revision and state of a snapshot's messages.
fn read(messages: &[Vec<u8>]) -> (u64, State) {
    let mut assembler = Assembler::default();
    let (last, before) = messages.split_last().unwrap();
    let mut push = |bytes: &Vec<u8>| assembler.push(v1::Update::decode(bytes.as_slice()).unwrap()).unwrap();
    assert!(before.iter().all(|bytes| push(bytes).is_none()));
    let whole = push(last).unwrap();
    assert!(whole.snapshot);
    let mut state = State::default();
    state.apply(whole.delta).unwrap();
    assert_eq!(StateDigest::of(&state).digest(), whole.state_digest);
    (whole.revision, state)
}

proptest! {
    #[test]
    fn a_revision_comes_back(
        delta in delta(),
        policies in vec(policy_version(), 0..4),
        revision in any::<u64>(),
        snapshot in any::<bool>(),
        digest in any::<[u8; 32]>(),
    ) {
        let sent = Revision { revision, snapshot, delta, policies, state_digest: Digest(digest) };
        prop_assert_eq!(over_the_wire(&sent), sent);
    }

    #[test]
    fn a_state_comes_back_as_a_snapshot(state in state()) {
        let digest = StateDigest::of(&state).digest();
        let delta = Delta { upserts: state.resources(), removes: Vec::new() };
        let sent = Revision { revision: 1, snapshot: true, delta, policies: Vec::new(), state_digest: digest };
        let received = over_the_wire(&sent);
        let mut rebuilt = State::default();
        rebuilt.apply(received.delta).unwrap();
        prop_assert_eq!(StateDigest::of(&rebuilt).digest(), received.state_digest);
        prop_assert_eq!(&rebuilt, &state);
        let messages = encode_snapshot(1, digest, &state).unwrap();
        prop_assert_eq!(read(&messages), (1, state));
    }

    #[test]
    fn the_digest_follows_differences(old in state(), new in state()) {
        let delta = Delta::between(&old, &new);
        prop_assert_eq!(StateDigest::of(&old).after(&old, &delta), StateDigest::of(&new));
        prop_assert_eq!(StateDigest::of(&old) == StateDigest::of(&new), old == new);
        let mut applied = old;
        applied.apply(delta).unwrap();
        prop_assert_eq!(applied, new);
    }

    #[test]
    fn broken_bytes_never_panic(delta in delta(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let sent = Revision { revision: 1, snapshot: true, delta, policies: Vec::new(), state_digest: Digest([0; 32]) };
        for update in encode(&sent).unwrap() {
            let mut bytes = update.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(update) = v1::Update::decode(bytes.as_slice()) {
                drop(Assembler::default().push(update));
            }
        }
    }
}

#[test]
fn a_large_state_is_many_messages_and_its_names_are_kept_once() {
    const PODS: u32 = 20_000;
    let mut state = State::default();
    for number in 0..PODS {
        let name = Arc::new(WorkloadKey {
            namespace: "shop".to_owned(),
            name: format!("pod-{number}"),
        });
        for address in [
            IpAddr::from((0x0a00_0000 + number).to_be_bytes()),
            IpAddr::from((0xfd_u128 << 120 | u128::from(number)).to_be_bytes()),
        ] {
            let binding = Binding {
                peer: PeerId::AnyPod,
                kind: AddressKind::Pod,
                image_class: 0,
                name: Arc::clone(&name),
                node: Some("n1".into()),
            };
            state.bindings.insert((Zone(0), address), binding);
        }
    }
    let messages = encode_snapshot(7, StateDigest::of(&state).digest(), &state).unwrap();
    assert!(messages.len() > 1);
    assert!(messages.iter().all(|bytes| bytes.len() <= MESSAGE_BYTES_MAX));
    let (revision, rebuilt) = read(&messages);
    assert_eq!((revision, &rebuilt), (7, &state));
    let copies: HashSet<_> = rebuilt
        .bindings
        .values()
        .map(|binding| Arc::as_ptr(&binding.name))
        .collect();
    assert_eq!(copies.len(), usize::try_from(PODS).unwrap());
    let nodes = rebuilt.bindings.values().filter_map(|binding| binding.node.as_ref());
    let copies: HashSet<_> = nodes.map(|node| node.as_ptr()).collect();
    assert_eq!(copies.len(), 1);
}

#[test]
fn a_large_revision_is_cut_and_shares_its_port_sets() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let sets: Vec<_> = (0..50).map(|_| generate::sample(&mut runner, port_set())).collect();
    let name = |number: u32| Digest::of("test", [number.to_le_bytes().as_slice()]);
    let mut upserts = vec![Resource::Ruleset(
        name(0),
        bulkhead_policy::model::Direction::Egress,
        Vec::new(),
    )];
    for peer in 0..50_000 {
        let set = &sets[usize::try_from(peer).unwrap() % sets.len()];
        upserts.push(Resource::RulesetEntry(
            name(0),
            PeerId::Identity(name(peer)),
            Arc::clone(set),
        ));
    }
    let delta = Delta {
        upserts,
        removes: Vec::new(),
    };
    let sent = Revision {
        revision: 1,
        snapshot: true,
        delta,
        policies: Vec::new(),
        state_digest: name(1),
    };
    let updates = encode(&sent).unwrap();
    assert!(updates.len() > 2, "{} chunks", updates.len());
    assert!(
        updates.iter().all(|update| update.port_sets.len() <= sets.len()),
        "a set travels once per chunk"
    );
    let received = over_the_wire(&sent);
    assert_eq!(received, sent);
}

fn one_chunk(change: impl FnOnce(&mut v1::Update)) -> UpdateError {
    let mut update = v1::Update {
        chunks: 1,
        state_digest: vec![0; 32],
        ..v1::Update::default()
    };
    change(&mut update);
    Assembler::default().push(update).unwrap_err()
}

#[test]
fn errors_name_the_field() {
    let resource = |resource| v1::Resource {
        resource: Some(resource),
    };
    let cases: [(&str, UpdateError); 8] = [
        (
            "field state_digest: 3 bytes instead of 32",
            one_chunk(|update| update.state_digest = vec![1; 3]),
        ),
        (
            "field upserts[0].resource: missing",
            one_chunk(|update| update.upserts = vec![v1::Resource::default()]),
        ),
        ("field rules[0].builtin: 77 is not a value", {
            let rule = Some(v1::rule_name::Rule::Builtin(77));
            one_chunk(|update| update.rules = vec![v1::RuleName { rule }])
        }),
        ("field upserts[0].binding.address: missing", {
            let binding = v1::resource::Resource::Binding(v1::Binding::default());
            one_chunk(|update| update.upserts = vec![resource(binding)])
        }),
        ("field removes[0].network.length: 33 is above the limit of 32", {
            let prefix = v1::ZonedPrefix {
                zone: 0,
                address: vec![10, 0, 0, 0],
                length: 33,
            };
            let name = Some(v1::resource_name::Name::Network(prefix));
            one_chunk(|update| update.removes = vec![v1::ResourceName { name }])
        }),
        ("field removes[0].binding.zone: 256 is above the limit of 255", {
            let address = v1::ZonedAddress {
                zone: 256,
                address: vec![10, 0, 0, 0],
            };
            let name = Some(v1::resource_name::Name::Binding(address));
            one_chunk(|update| update.removes = vec![v1::ResourceName { name }])
        }),
        ("field upserts[0].ruleset_entry.port_set: index 9 into a table of 0", {
            let peer = Some(v1::PeerId {
                peer: Some(v1::peer_id::Peer::Reserved(2)),
            });
            let entry = v1::RulesetEntry {
                ruleset: vec![0; 32],
                peer,
                port_set: 9,
            };
            let entry = v1::resource::Resource::RulesetEntry(entry);
            one_chunk(|update| update.upserts = vec![resource(entry)])
        }),
        ("field port_sets[0].ranges: the ranges end before the last position", {
            one_chunk(|update| update.port_sets = vec![v1::PortSet::default()])
        }),
    ];
    for (expected, error) in cases {
        assert!(
            error.to_string().contains(expected),
            "{error} should contain {expected}"
        );
    }
}

#[test]
fn a_port_set_that_leaves_a_position_undecided_is_refused() {
    let alternative = |guard| v1::Alternative {
        guard,
        decision: 1,
        rule: 0,
        answer: 0,
        on_change: 0,
    };
    let until = Some(v1::Guard {
        guard: Some(v1::guard::Guard::Until(1)),
    });
    let range = |low, high, enforce: &[v1::Alternative]| v1::Range {
        low,
        high,
        enforce: enforce.to_vec(),
        shadow: vec![],
    };
    let whole = |enforce: &[v1::Alternative]| vec![range(0, 0x5_ffff, enforce)];
    let cases = [
        (
            "ranges[1]: ranges are not sorted",
            vec![range(0, 9, &[alternative(None)]), range(11, 0x5_ffff, &[])],
        ),
        (
            "ranges[1]: ranges are not sorted",
            vec![range(0, 9, &[alternative(None)]), range(9, 0x5_ffff, &[])],
        ),
        (
            "ranges[0]: ranges are not sorted",
            vec![range(0, 0x6_0000, &[alternative(None)])],
        ),
        ("ranges: the ranges end", vec![range(0, 9, &[alternative(None)])]),
        ("ranges[0].enforce: missing", whole(&[])),
        (
            "ranges[0].enforce.0.guard: the last alternative has a guard",
            whole(&[alternative(until)]),
        ),
        (
            "ranges[0].enforce.0.guard: an alternative without",
            whole(&[alternative(None), alternative(None)]),
        ),
    ];
    for (expected, ranges) in cases {
        let error = one_chunk(|update| {
            update.rules = vec![v1::RuleName {
                rule: Some(v1::rule_name::Rule::Builtin(1)),
            }];
            update.port_sets = vec![v1::PortSet { ranges }];
        });
        assert!(
            error.to_string().contains(expected),
            "{error} should contain {expected}"
        );
    }
}

#[test]
fn chunks_out_of_order_are_refused_and_forgotten() {
    let chunk = |revision, chunk, chunks| v1::Update {
        revision,
        chunk,
        chunks,
        state_digest: vec![0; 32],
        ..Default::default()
    };
    let mut assembler = Assembler::default();
    assert_eq!(assembler.push(chunk(5, 0, 3)).unwrap(), None);
    let error = assembler.push(chunk(5, 2, 3)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "update 5 chunk 2 of 3 came where chunk 1 of update 5 was expected"
    );
    assert_eq!(
        assembler.push(chunk(6, 0, 2)).unwrap(),
        None,
        "the broken update left nothing behind"
    );
    assert!(assembler.push(chunk(7, 1, 2)).is_err(), "a chunk of another update");
    assert!(assembler.push(chunk(7, 0, 0)).is_err(), "no chunks at all");
    assert_eq!(
        assembler
            .push(chunk(8, 0, 1))
            .unwrap()
            .map(|revision| revision.revision),
        Some(8)
    );
}
