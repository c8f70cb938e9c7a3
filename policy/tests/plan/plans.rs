//! Plans for cases worth a name, on a node of a few thousand pods.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bulkhead_policy::{
    digest::Digest,
    intern::Name,
    model::{Attachment, Builtin, Direction, Guard, Manner, PolicyKey, PolicyKind, RuleName, WorkloadKey},
    plan::{
        Capacity, Limits, LocalEndpoint, LocalEndpoints, MapDump, MapOp, MapWriter, PlanError, Planner, Problem, Usage,
    },
    state::{
        AddressKind, Alternative, Binding, Decision, Delta, Endpoint, Identity, PeerId, PortSet, Range, Resource,
        ResourceName, Ruleset, State,
    },
    table::Table,
};
use bulkhead_verdict::layout::{EndpointWord, InternKey, RuleKey, config_flag, intern_kind};

use crate::bench::ZONE;

const NODE: &str = "here";
const PODS: usize = 3_000;
const LOCAL: usize = 30;
const IDENTITIES: usize = 200;
const RULESETS: usize = 40;

fn digest(kind: &str, number: usize) -> Digest {
    Digest::of(kind, [number.to_le_bytes().as_slice()])
}

fn peer(number: usize) -> PeerId {
    PeerId::Identity(digest("identity", number))
}

fn key(number: usize) -> WorkloadKey {
    WorkloadKey {
        namespace: "ns".into(),
        name: format!("pod-{number}"),
    }
}

fn address(number: usize) -> IpAddr {
    IpAddr::from([
        10,
        0,
        u8::try_from(number / 256).unwrap(),
        u8::try_from(number % 256).unwrap(),
    ])
}

fn rule(name: &str, index: u32) -> RuleName {
    let policy = PolicyKey {
        kind: PolicyKind::NetworkPolicy,
        namespace: "ns".into(),
        name: name.into(),
    };
    RuleName::Rule {
        policy,
        generation: 0,
        direction: Direction::Ingress,
        index,
        name: None,
    }
}

fn ports(rule: RuleName, decision: Decision) -> Arc<PortSet> {
    let enforce = vec![Alternative {
        guard: None,
        decision,
        manner: Manner::default(),
        rule,
    }];
    Arc::new(PortSet {
        ranges: vec![Range {
            low: 0,
            high: 0x5_ffff,
            enforce,
            shadow: Vec::new(),
        }],
    })
}

fn ruleset(number: usize) -> Arc<Ruleset> {
    let direction = if number.is_multiple_of(2) {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let mut entries = BTreeMap::from([(PeerId::AnyAddress, ports(rule("deny", 0), Decision::Deny))]);
    for identity in 0..IDENTITIES {
        let index = u32::try_from((number + identity) % 3).unwrap();
        entries.insert(peer(identity), ports(rule("allow", index), Decision::Allow));
    }
    Arc::new(Ruleset {
        direction,
        policies: vec![format!("NetworkPolicy/ns/p{number}")],
        entries,
    })
}

fn binding(number: usize, identity: usize) -> Binding {
    let node = if number < LOCAL { NODE } else { "there" };
    let kind = AddressKind::Pod;
    Binding {
        peer: peer(identity),
        kind,
        image_class: 0,
        name: Arc::new(key(number)),
        node: Some(node.into()),
    }
}

fn endpoint(number: usize) -> Endpoint {
    let pair = number % (RULESETS / 2) * 2;
    Endpoint {
        uid: format!("uid-{number}"),
        node: Some(NODE.into()),
        identity: peer(number % IDENTITIES),
        image_class: 0,
        addresses: [address(number)].into(),
        zone: ZONE,
        egress: digest("ruleset", pair),
        ingress: digest("ruleset", pair + 1),
        attachment: Attachment::default(),
    }
}

fn device(number: usize) -> LocalEndpoint {
    LocalEndpoint {
        ifindex: u32::try_from(number + 1).unwrap(),
        ..LocalEndpoint::default()
    }
}

/// A node with local endpoints `0..LOCAL`.
fn node() -> (State, LocalEndpoints) {
    let identity = |number: usize| {
        Arc::new(Identity {
            atoms: vec![format!("atom {number}")],
        })
    };
    let state = State {
        identities: (0..IDENTITIES)
            .map(|number| (digest("identity", number), identity(number)))
            .collect(),
        bindings: (0..PODS)
            .map(|number| ((ZONE, address(number)), binding(number, number % IDENTITIES)))
            .collect(),
        networks: Table::default(),
        leases: Table::default(),
        rulesets: (0..RULESETS)
            .map(|number| (digest("ruleset", number), ruleset(number)))
            .collect(),
        endpoints: (0..LOCAL)
            .map(|number| (key(number), Arc::new(endpoint(number))))
            .collect(),
    };
    (state, (0..LOCAL).map(|number| (key(number), device(number))).collect())
}

fn planned() -> (Planner, MapDump, State, LocalEndpoints) {
    let (state, local) = node();
    let mut planner = Planner::new(NODE, Limits::default());
    let mut dump = MapDump::default();
    let ops = planner.plan(&state, &local).unwrap();
    dump.apply(&ops).unwrap();
    (planner, dump, state, local)
}

fn upsert(resources: impl IntoIterator<Item = Resource>) -> Delta {
    Delta {
        upserts: resources.into_iter().collect(),
        removes: Vec::new(),
    }
}

/// Writes by kind, as `Address 1, PeerEpoch 1`.
fn counts(ops: &[MapOp]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for op in ops {
        let text = format!("{op:?}");
        let kind = text.split('(').next().unwrap_or_default().to_owned();
        *counts.entry(kind).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn equal_port_sets_are_stored_once() {
    let (planner, dump, ..) = planned();
    assert_eq!(planner.usage().rules, RULESETS * (IDENTITIES + 1));
    assert_eq!(
        (planner.usage().ranges, planner.usage().alternatives),
        (4, 4),
        "three allows and a deny"
    );
    assert_eq!(
        (dump.ranges.len(), dump.alternatives.len()),
        (4, 5),
        "index 0 of ALTERNATIVES stays empty"
    );
}

#[test]
fn a_remote_pod_of_a_known_identity_is_one_binding() {
    let (mut planner, _, _, local) = planned();
    let delta = upsert([Resource::Binding(ZONE, address(PODS), binding(PODS, 3))]);
    let ops = planner.plan_delta(&delta, &local).unwrap();
    assert_eq!(counts(&ops), "Address 1, PeerEpoch 1");
    let delta = Delta {
        upserts: Vec::new(),
        removes: vec![ResourceName::Binding(ZONE, address(PODS))],
    };
    let ops = planner.plan_delta(&delta, &local).unwrap();
    assert_eq!(counts(&ops), "PeerEpoch 1, RemoveAddress 1");
}

#[test]
fn a_new_identity_is_one_entry_per_ruleset_before_its_first_binding() {
    let (mut planner, mut dump, _, local) = planned();
    let new = IDENTITIES;
    let identity = Resource::Identity(
        digest("identity", new),
        Arc::new(Identity {
            atoms: vec!["new".into()],
        }),
    );
    let allow = ports(rule("allow", 1), Decision::Allow);
    let entries = (0..RULESETS).map(|at| Resource::RulesetEntry(digest("ruleset", at), peer(new), Arc::clone(&allow)));
    let bound = Resource::Binding(ZONE, address(PODS), binding(PODS, new));
    let ops = planner
        .plan_delta(&upsert([identity].into_iter().chain(entries).chain([bound])), &local)
        .unwrap();
    assert_eq!(
        counts(&ops),
        "Address 1, Intern 1, PeerEpoch 1, Rule 40",
        "no endpoint flips, no port set is written"
    );
    let at = |wanted: fn(&MapOp) -> bool| ops.iter().rposition(wanted).unwrap();
    assert!(at(|op| matches!(op, MapOp::Rule(..))) < at(|op| matches!(op, MapOp::Address(..))));
    dump.apply(&ops).unwrap();

    let mut removes = vec![
        ResourceName::Binding(ZONE, address(PODS)),
        ResourceName::Identity(digest("identity", new)),
    ];
    removes.extend((0..RULESETS).map(|at| ResourceName::RulesetEntry(digest("ruleset", at), peer(new))));
    let ops = planner
        .plan_delta(
            &Delta {
                upserts: Vec::new(),
                removes,
            },
            &local,
        )
        .unwrap();
    assert_eq!(
        counts(&ops),
        "Barrier 1, PeerEpoch 1, RemoveAddress 1, RemoveIntern 1, RemoveRule 40"
    );
    let at = |wanted: fn(&MapOp) -> bool| ops.iter().position(wanted).unwrap();
    assert!(at(|op| matches!(op, MapOp::RemoveAddress(..))) < at(|op| matches!(op, MapOp::Barrier)));
    assert!(at(|op| matches!(op, MapOp::Barrier)) < at(|op| matches!(op, MapOp::RemoveRule(..))));
}

#[test]
fn a_local_pod_goes_live_last() {
    let (mut planner, _, _, mut local) = planned();
    let number = LOCAL;
    let wanted = upsert([Resource::Endpoint(key(number), Arc::new(endpoint(number)))]);
    let ops = planner.plan_delta(&wanted, &local).unwrap();
    assert_eq!(ops, [], "without a device it has no slot");
    local.insert(key(number), device(number));
    let ops = planner.plan_delta(&Delta::default(), &local).unwrap();
    assert_eq!(
        counts(&ops),
        "Address 1, Config 1, Device 1, Endpoint 1, Intern 1, PeerEpoch 1"
    );
    let slot = u32::try_from(LOCAL).unwrap();
    assert!(
        matches!(ops.last(), Some(MapOp::Device(_, live)) if *live == slot),
        "{ops:?}"
    );
    assert!(
        ops.iter()
            .any(|op| matches!(op, MapOp::Address(_, entry) if entry.slot == slot)),
        "{ops:?}"
    );
    local.remove(&key(number));
    let ops = planner.plan_delta(&Delta::default(), &local).unwrap();
    let down = "Address 1, Barrier 1, Endpoint 1, PeerEpoch 1, RemoveDevice 1, RemoveIntern 1";
    assert_eq!(counts(&ops), down);
}

#[test]
fn a_policy_change_flips_its_endpoints_and_no_other() {
    let (mut planner, _, state, local) = planned();
    // Pods 0 and 20 share the rulesets that change.
    let mut changed = (*ruleset(1)).clone();
    changed.entries.insert(peer(7), ports(rule("deny", 1), Decision::Deny));
    let mut new = state.clone();
    new.rulesets.remove(&digest("ruleset", 1));
    new.rulesets.insert(digest("changed", 1), Arc::new(changed));
    for (key, endpoint) in &state.endpoints {
        if endpoint.ingress == digest("ruleset", 1) {
            let ingress = digest("changed", 1);
            new.endpoints.insert(
                key.clone(),
                Arc::new(Endpoint {
                    ingress,
                    ..Endpoint::clone(endpoint)
                }),
            );
        }
    }
    let ops = planner.plan_delta(&Delta::between(&state, &new), &local).unwrap();
    let expected =
        "Alternative 1, Barrier 1, Config 2, Endpoint 2, Intern 2, Range 1, RemoveIntern 1, RemoveRule 201, Rule 201";
    assert_eq!(counts(&ops), expected);
    let back = planner.plan_delta(&Delta::between(&new, &state), &local).unwrap();
    let reused = back
        .iter()
        .any(|op| matches!(op, MapOp::Intern(key, _) if key.kind == intern_kind::RULE));
    assert!(!reused, "no rule is named anew, and the idle one keeps its number");
    assert_eq!(planner.usage().rules_idle, 1);
}

/// The compiler never does this; a compiler of another version may.
#[test]
fn a_ruleset_that_changes_its_meaning_gets_a_new_number() {
    let (mut planner, dump, _, local) = planned();
    let (name, bound) = (digest("ruleset", 1), peer(7));
    let number = |dump: &MapDump| dump.configs.iter().map(|config| config.ingress).max();
    let before = number(&dump);
    let entry = ResourceName::RulesetEntry(name, bound);
    let changed = Resource::RulesetEntry(name, bound, ports(rule("deny", 1), Decision::Deny));
    let changes = [
        Delta {
            upserts: Vec::new(),
            removes: vec![entry],
        },
        upsert([Resource::RulesetEntry(
            name,
            bound,
            ports(rule("allow", 2), Decision::Allow),
        )]),
        upsert([changed]),
    ];
    let mut dump = dump;
    for change in changes {
        let ops = planner.plan_delta(&change, &local).unwrap();
        assert_eq!(
            ops.iter().filter(|op| matches!(op, MapOp::Endpoint(..))).count(),
            2,
            "{ops:?}"
        );
        dump.apply(&ops).unwrap();
    }
    assert!(number(&dump) > before);
    let head = Resource::Ruleset(name, Direction::Ingress, vec!["NetworkPolicy/ns/renamed".into()]);
    assert_eq!(
        counts(&planner.plan_delta(&upsert([head]), &local).unwrap()),
        "Intern 1",
        "a text is not a meaning"
    );
}

#[test]
fn idle_rules_are_forgotten_oldest_first_and_the_highest_number_never() {
    let (state, local) = node();
    let limits = Limits {
        idle_rules: 4,
        ..Limits::default()
    };
    let mut planner = Planner::new(NODE, limits);
    let mut dump = MapDump::default();
    dump.apply(&planner.plan(&state, &local).unwrap()).unwrap();
    let name = digest("ruleset", 1);
    for round in 0..20 {
        let ports = ports(rule("round", round), Decision::Deny);
        let delta = upsert([Resource::RulesetEntry(name, PeerId::AnyAddress, ports)]);
        dump.apply(&planner.plan_delta(&delta, &local).unwrap()).unwrap();
        assert!(planner.usage().rules_idle <= 5, "{:?}", planner.usage());
    }
    let rules = dump
        .interned
        .keys()
        .filter(|key| key.kind == intern_kind::RULE)
        .map(|key| key.number);
    let highest = rules.max().unwrap();
    let (mut successor, _) = Planner::adopt(NODE, limits, &dump);
    let delta = Delta::between(&State::default(), planner.state());
    let mut wanted = State::default();
    wanted.apply(delta).unwrap();
    let mut changed = (*wanted.rulesets[&name]).clone();
    changed
        .entries
        .insert(PeerId::AnyAddress, ports(rule("later", 0), Decision::Deny));
    wanted.rulesets.insert(name, Arc::new(changed));
    let ops = successor.plan(&wanted, &local).unwrap();
    let new = ops.iter().filter_map(|op| match op {
        MapOp::Intern(key, _) if key.kind == intern_kind::RULE => Some(key.number),
        _ => None,
    });
    assert_eq!(new.collect::<Vec<_>>(), [highest + 1], "a successor goes on counting");
}

#[test]
fn a_pod_of_the_same_name_is_another_endpoint() {
    let (mut planner, mut dump, _, local) = planned();
    let mut replaced = endpoint(3);
    replaced.uid = "another".into();
    let generation = |dump: &MapDump| dump.endpoints.iter().map(|word| word.generation).max().unwrap();
    let (before, old_slot) = (generation(&dump), dump.devices[&4]);
    let ops = planner
        .plan_delta(&upsert([Resource::Endpoint(key(3), Arc::new(replaced))]), &local)
        .unwrap();
    dump.apply(&ops).unwrap();
    assert_eq!(
        dump.endpoints[usize::try_from(old_slot).unwrap()].config,
        0,
        "the old slot is dead"
    );
    assert_eq!(
        dump.devices[&4],
        u32::try_from(LOCAL).unwrap(),
        "its device leads to the new one"
    );
    assert_eq!(generation(&dump), before + 2, "one to take down, one to go live");
    let (mut successor, _) = Planner::adopt(NODE, Limits::default(), &dump);
    let mut local = local;
    local.remove(&key(5));
    let state = planner.state().clone();
    successor.plan(&state, &local).unwrap().iter().for_each(|op| {
        if let MapOp::Endpoint(_, word) = op {
            assert!(
                word.generation > before + 2,
                "generations go on rising behind an adoption: {op:?}"
            );
        }
    });
}

#[test]
fn a_device_of_another_pod_is_not_the_endpoints() {
    let (mut planner, _, _, mut local) = planned();
    local.insert(
        key(LOCAL),
        LocalEndpoint {
            uid: Some("old".into()),
            ..device(LOCAL)
        },
    );
    let ops = planner
        .plan_delta(
            &upsert([Resource::Endpoint(key(LOCAL), Arc::new(endpoint(LOCAL)))]),
            &local,
        )
        .unwrap();
    assert_eq!(ops, []);
    local.insert(
        key(LOCAL),
        LocalEndpoint {
            uid: Some(format!("uid-{LOCAL}")),
            ..device(LOCAL)
        },
    );
    let ops = planner.plan_delta(&Delta::default(), &local).unwrap();
    assert!(matches!(ops.last(), Some(MapOp::Device(..))), "{ops:?}");
}

#[test]
fn of_a_devices_addresses_only_link_local_ones_are_believed() {
    let (mut planner, _, _, mut local) = planned();
    let seen = ["fe80::1", "10.0.0.77", "fd00::1", "169.254.1.1"].map(|text| text.parse().unwrap());
    local.insert(
        key(0),
        LocalEndpoint {
            addresses: seen.into(),
            ..device(0)
        },
    );
    let ops = planner.plan_delta(&Delta::default(), &local).unwrap();
    let config = ops.iter().find_map(|op| match op {
        MapOp::Config(_, config) => Some(config),
        _ => None,
    });
    let config = config.unwrap();
    assert_eq!(config.address_count, 2);
    assert_eq!(
        config.addresses[..2],
        [address(0).into(), "fe80::1".parse::<IpAddr>().unwrap().into()]
    );
}

#[test]
fn errors_say_what_is_missing_and_change_nothing() {
    let (mut planner, _, state, local) = planned();
    let usage = planner.usage();
    let mut homeless = endpoint(0);
    homeless.egress = digest("nowhere", 0);
    let error = planner
        .plan_delta(&upsert([Resource::Endpoint(key(0), Arc::new(homeless))]), &local)
        .unwrap_err();
    assert!(
        error.to_string().starts_with("endpoint ns/pod-0: its ruleset "),
        "{error}"
    );

    let guarded = Alternative {
        guard: Some(Guard::Until(1)),
        decision: Decision::Allow,
        manner: Manner::default(),
        rule: rule("x", 0),
    };
    let range = |list: Vec<Alternative>, high| Range {
        low: 0,
        high,
        enforce: list,
        shadow: Vec::new(),
    };
    let endless = PortSet {
        ranges: vec![range(vec![guarded], 0x5_ffff)],
    };
    let last = Alternative {
        guard: None,
        decision: Decision::Allow,
        manner: Manner::default(),
        rule: RuleName::Builtin(Builtin::DefaultAllow),
    };
    let gap = PortSet {
        ranges: vec![range(vec![last], 80)],
    };
    for (broken, words) in [
        (endless, "has a guard"),
        (gap, "do not reach"),
        (PortSet { ranges: Vec::new() }, "not reach"),
    ] {
        let entry = Resource::RulesetEntry(digest("ruleset", 0), peer(0), Arc::new(broken));
        let error = planner.plan_delta(&upsert([entry]), &local).unwrap_err();
        assert!(
            matches!(error, PlanError::BrokenPortSet { .. }) && error.to_string().contains(words),
            "{error}"
        );
    }

    let orphan = Resource::RulesetEntry(digest("nowhere", 0), peer(0), ports(rule("x", 0), Decision::Allow));
    assert!(matches!(
        planner.plan_delta(&upsert([orphan]), &local),
        Err(PlanError::Delta(_))
    ));

    unchanged(&mut planner, &state, usage, &local);
}

/// A plan that failed left no trace.
fn unchanged(planner: &mut Planner, state: &State, usage: Usage, local: &LocalEndpoints) {
    assert_eq!((planner.state(), planner.usage()), (state, usage));
    assert_eq!(planner.plan(state, local), Ok(Vec::new()));
}

#[test]
fn what_does_not_fit_is_said_with_its_numbers() {
    let (planner, dump, state, local) = planned();
    let limits = Limits {
        rules: 8_050,
        ..Limits::default()
    };
    let (mut tight, _) = Planner::adopt(NODE, limits, &dump);
    tight.plan(&state, &local).unwrap();
    let mut more = state.clone();
    more.rulesets.insert(digest("ruleset", RULESETS), ruleset(RULESETS));
    let error = tight.plan_delta(&Delta::between(&state, &more), &local).unwrap_err();
    assert_eq!(
        error,
        PlanError::Capacity(Capacity {
            map: "RULES",
            needed: 8_241,
            limit: 8_050
        })
    );

    unchanged(&mut tight, &state, planner.usage(), &local);
}

#[test]
fn broken_maps_are_reported_and_cured() {
    let (_, good, state, local) = planned();
    let mut dump = good.clone();
    let identity = |dump: &MapDump, name: Digest| {
        let found = dump
            .interned
            .iter()
            .find(|(_, entry)| Name::read(entry).is_some_and(|read| read.digest == name));
        *found.unwrap().0
    };
    let broken_name = identity(&dump, digest("identity", 9));
    dump.interned.get_mut(&broken_name).unwrap().length = 9_999;
    let lost_name = identity(&dump, digest("ruleset", 5));
    dump.interned.remove(&lost_name);
    let torn = identity(&dump, digest("ruleset", 2)).number;
    dump.rules.get_mut(&RuleKey { ruleset: torn, peer: 4 }).unwrap().first = 999_999;
    dump.endpoints[7].config = dump.endpoints[8].config;
    dump.endpoints[9].config = 8_000;
    dump.endpoints[10] = EndpointWord {
        config: 0,
        generation: 0,
    };
    dump.interned.remove(&InternKey {
        kind: intern_kind::ENDPOINT,
        number: 11,
    });
    dump.devices.insert(4_242, 4_000);

    let (mut planner, problems) = Planner::adopt(NODE, Limits::default(), &dump);
    let found = |wanted: &dyn Fn(&Problem) -> bool| assert!(problems.iter().any(wanted), "{problems:?}");
    found(&|problem| matches!(problem, Problem::Name { number, .. } if *number == broken_name.number));
    found(
        &|problem| matches!(problem, Problem::NamelessNumber { kind: "identity", number } if *number == broken_name.number),
    );
    found(
        &|problem| matches!(problem, Problem::NamelessNumber { kind: "ruleset", number } if *number == lost_name.number),
    );
    found(&|problem| matches!(problem, Problem::PortSet { ruleset, peer: 4, .. } if *ruleset == torn));
    found(&|problem| {
        matches!(
            problem,
            Problem::SharedConfig {
                first: 7,
                second: 8,
                ..
            }
        )
    });
    found(&|problem| matches!(problem, Problem::Config { slot: 9, config: 8_000 }));
    found(&|problem| matches!(problem, Problem::NamelessEndpoint { slot: 11 }));
    assert!(problems.iter().all(|problem| !problem.to_string().is_empty()));

    let ops = planner.plan(&state, &local).unwrap();
    assert_eq!(
        ops.first(),
        Some(&MapOp::Epoch),
        "at adoption everything is judged again first"
    );
    dump.apply(&ops).unwrap();
    let (mut cured, problems) = Planner::adopt(NODE, Limits::default(), &dump);
    assert_eq!(problems, []);
    let mut fresh = Planner::new(NODE, Limits::default());
    fresh.plan(&state, &local).unwrap();
    assert_eq!(cured.usage(), fresh.usage());
    assert_eq!(cured.plan(&state, &local), Ok(vec![MapOp::Epoch, MapOp::Barrier]));
}

/// A node has one configuration, whatever leads out of it, and none of the addresses a pod has.
#[test]
fn a_nodes_devices_share_a_slot() {
    let (mut state, mut local) = node();
    let host = WorkloadKey::of_node(NODE);
    state.endpoints.insert(host.clone(), Arc::new(endpoint(0)));
    let devices = |more: &[u32]| LocalEndpoint {
        ifindex: 900,
        more: more.iter().copied().collect(),
        ..LocalEndpoint::default()
    };
    local.insert(host.clone(), devices(&[901, 902]));
    let mut planner = Planner::new(NODE, Limits::default());
    let mut maps = MapDump::default();
    maps.apply(&planner.plan(&state, &local).unwrap()).unwrap();
    let slot = maps.devices[&900];
    assert_eq!((maps.devices[&901], maps.devices[&902]), (slot, slot));
    let word = maps.endpoints[usize::try_from(slot).unwrap()];
    let config = maps.configs[usize::try_from(word.config).unwrap()];
    assert_eq!(config.flags, config_flag::ENFORCE | config_flag::HOST);
    assert_eq!(config.address_count, 0);

    local.insert(host, devices(&[902]));
    let ops = planner.plan_delta(&Delta::default(), &local).unwrap();
    assert_eq!(ops, [MapOp::RemoveDevice(901)]);
}
