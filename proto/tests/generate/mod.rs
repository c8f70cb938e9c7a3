//! Random states and deltas. Port sets have the shape the compiler promises: whole, sorted, each list ending unguarded.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bulkhead_policy::{
    digest::Digest,
    fqdn::Names,
    lease::{Claims, Deadline, Profile},
    model::{
        Answer, Attachment, Builtin, Direction, Guard, Manner, OnChange, PolicyKey, PolicyKind, RuleName, Side,
        WorkloadKey, Zone,
    },
    state::{
        AddressKind, Alternative, Binding, Decision, Delta, Endpoint, Identity, Network, PeerId, PortSet, Range,
        Resource, ResourceName, Ruleset, State,
    },
};
use bulkhead_proto::update::PolicyVersion;
use ipnetwork::IpNetwork;
use proptest::{
    collection, collection::vec, option, prelude::*, sample::select, strategy::ValueTree as _, test_runner::TestRunner,
};

pub(crate) fn sample<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).unwrap().current()
}

/// From few values, so that names meet.
fn digest() -> impl Strategy<Value = Digest> {
    (0..6u8).prop_map(|number| Digest::of("test", [[number].as_slice()]))
}

fn text() -> impl Strategy<Value = String> {
    "[a-z0-9-]{0,6}"
}

fn key() -> impl Strategy<Value = WorkloadKey> {
    ("[ab]?", "[a-c]").prop_map(|(namespace, name)| WorkloadKey { namespace, name })
}

fn zone() -> impl Strategy<Value = Zone> {
    select(vec![0, 1, 255]).prop_map(Zone)
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4u8).prop_map(|last| [10, 0, 0, last].into()),
        any::<[u8; 16]>().prop_map(IpAddr::from)
    ]
}

fn prefix() -> impl Strategy<Value = IpNetwork> {
    (address(), 0..=128u8).prop_map(|(address, length)| {
        let length = if address.is_ipv4() { length % 33 } else { length };
        IpNetwork::new(address, length).unwrap()
    })
}

fn peer() -> impl Strategy<Value = PeerId> {
    let reserved = select(vec![
        PeerId::UnknownPod,
        PeerId::AnyPod,
        PeerId::AnyNode,
        PeerId::AnyAddress,
    ]);
    prop_oneof![reserved, digest().prop_map(PeerId::Identity)]
}

fn direction() -> impl Strategy<Value = Direction> {
    select(vec![Direction::Egress, Direction::Ingress])
}

fn policy() -> impl Strategy<Value = PolicyKey> {
    let kind = select(vec![
        PolicyKind::NetworkPolicy,
        PolicyKind::ClusterNetworkPolicy,
        PolicyKind::SegmentPolicy,
        PolicyKind::ClusterSegmentPolicy,
    ]);
    (kind, text(), text()).prop_map(|(kind, namespace, name)| PolicyKey { kind, namespace, name })
}

pub(crate) fn policy_version() -> impl Strategy<Value = PolicyVersion> {
    (policy(), any::<i64>(), digest()).prop_map(|(policy, generation, spec_digest)| PolicyVersion {
        policy,
        generation,
        spec_digest,
    })
}

fn rule() -> impl Strategy<Value = RuleName> {
    let builtins = [
        Builtin::SelfTraffic,
        Builtin::Node,
        Builtin::DefaultAllow,
        Builtin::Control,
        Builtin::Unmanaged,
        Builtin::MixedBackends,
        Builtin::Forwarded,
        Builtin::Failsafe,
        Builtin::NodePort,
    ];
    prop_oneof![
        select(builtins.to_vec()).prop_map(RuleName::Builtin),
        (policy(), any::<i64>(), direction(), any::<u32>(), option::of(text())).prop_map(
            |(policy, generation, direction, index, name)| RuleName::Rule {
                policy,
                generation,
                direction,
                index,
                name
            }
        ),
        (policy(), any::<i64>(), direction()).prop_map(|(policy, generation, direction)| RuleName::DefaultDeny {
            policy,
            generation,
            direction
        }),
    ]
}

fn profile() -> impl Strategy<Value = Profile> {
    "[a-z]{1,5}(-[a-z]{1,5})?".prop_map(|name| name.parse().unwrap())
}

fn claims() -> impl Strategy<Value = Arc<Claims>> {
    collection::btree_map(profile(), any::<u64>().prop_map(Deadline), 1..3).prop_map(Arc::new)
}

fn guard() -> impl Strategy<Value = Guard> {
    prop_oneof![
        (profile(), select(vec![Side::Subject, Side::Peer]), any::<bool>())
            .prop_map(|(profile, side, negated)| Guard::Lease { profile, side, negated }),
        any::<u32>().prop_map(Guard::Until),
        "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}".prop_map(|name| {
            let texts = [format!("*.{name}"), name];
            Guard::Name(Names::new(texts.iter().map(|text| text.parse().unwrap()).collect()))
        }),
    ]
}

fn manner() -> impl Strategy<Value = Manner> {
    let answer = select(vec![Answer::Drop, Answer::Reject]);
    let on_change = select(vec![OnChange::Reevaluate, OnChange::Drain, OnChange::Keep]);
    (answer, on_change).prop_map(|(answer, on_change)| Manner { answer, on_change })
}

fn alternatives() -> impl Strategy<Value = Vec<Alternative>> {
    let decision = || select(vec![Decision::Allow, Decision::Deny]);
    let guarded = (guard(), decision(), rule(), manner());
    (vec(guarded, 0..3), decision(), rule(), manner()).prop_map(|(guarded, decision, rule, manner)| {
        let mut list: Vec<_> = guarded
            .into_iter()
            .map(|(guard, decision, rule, manner)| Alternative {
                guard: Some(guard),
                decision,
                manner,
                rule,
            })
            .collect();
        list.push(Alternative {
            guard: None,
            decision,
            manner,
            rule,
        });
        list
    })
}

pub(crate) fn port_set() -> impl Strategy<Value = Arc<PortSet>> {
    let shadow = option::of(alternatives()).prop_map(Option::unwrap_or_default);
    let lists = vec((alternatives(), shadow), 5);
    (collection::btree_set(0..0x5_ffffu32, 0..5), lists).prop_map(|(ends, lists)| {
        let mut low = 0;
        let ends = ends.into_iter().chain([0x5_ffff]);
        let ranges = ends.zip(lists).map(|(high, (enforce, shadow))| {
            let range = Range {
                low,
                high,
                enforce,
                shadow,
            };
            low = high + 1;
            range
        });
        Arc::new(PortSet {
            ranges: ranges.collect(),
        })
    })
}

fn binding() -> impl Strategy<Value = Binding> {
    let kind = select(vec![AddressKind::Pod, AddressKind::Node, AddressKind::Service]);
    (peer(), kind, any::<u32>(), key(), option::of(text())).prop_map(|(peer, kind, image_class, name, node)| Binding {
        peer,
        kind,
        image_class,
        name: Arc::new(name),
        node: node.map(Arc::from),
    })
}

fn network() -> impl Strategy<Value = Network> {
    (peer(), any::<bool>()).prop_map(|(peer, pod_range)| Network { peer, pod_range })
}

fn identity() -> impl Strategy<Value = Arc<Identity>> {
    vec(text(), 0..3).prop_map(|atoms| Arc::new(Identity { atoms }))
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let attachment = (option::of(text()), option::of(text())).prop_map(|(netns, device)| Attachment { netns, device });
    let rulesets = (digest(), digest());
    let addresses = collection::btree_set(address(), 0..3);
    (
        text(),
        option::of(text()),
        peer(),
        any::<u32>(),
        addresses,
        zone(),
        rulesets,
        attachment,
    )
        .prop_map(
            |(uid, node, identity, image_class, addresses, zone, (egress, ingress), attachment)| Endpoint {
                uid,
                node,
                identity,
                image_class,
                addresses,
                zone,
                egress,
                ingress,
                attachment,
            },
        )
}

fn ruleset() -> impl Strategy<Value = Arc<Ruleset>> {
    let entries = collection::btree_map(peer(), port_set(), 0..3);
    (direction(), vec(text(), 0..3), entries).prop_map(|(direction, policies, entries)| {
        Arc::new(Ruleset {
            direction,
            policies,
            entries,
        })
    })
}

pub(crate) fn state() -> impl Strategy<Value = State> {
    fn map<K: Ord + std::fmt::Debug, V: std::fmt::Debug>(
        key: impl Strategy<Value = K>,
        value: impl Strategy<Value = V>,
    ) -> impl Strategy<Value = BTreeMap<K, V>> {
        collection::btree_map(key, value, 0..4)
    }
    let addresses = map((zone(), address()), binding());
    let networks = map((zone(), prefix()), network());
    (
        map(digest(), identity()),
        addresses,
        networks,
        map(digest(), ruleset()),
        map(key(), endpoint()),
        map(any::<u32>(), claims()),
    )
        .prop_map(|(identities, bindings, networks, rulesets, endpoints, leases)| State {
            leases: leases.into_iter().collect(),
            identities: identities.into_iter().collect(),
            bindings: bindings.into_iter().collect(),
            networks: networks.into_iter().collect(),
            rulesets: rulesets.into_iter().collect(),
            endpoints: endpoints
                .into_iter()
                .map(|(key, endpoint)| (key, Arc::new(endpoint)))
                .collect(),
        })
}

/// Any resources in any order: what the wire carries, whether it fits a state or not.
pub(crate) fn delta() -> impl Strategy<Value = Delta> {
    let resource = prop_oneof![
        (digest(), identity()).prop_map(|(name, identity)| Resource::Identity(name, identity)),
        (zone(), address(), binding()).prop_map(|(zone, address, binding)| Resource::Binding(zone, address, binding)),
        (zone(), prefix(), network()).prop_map(|(zone, prefix, network)| Resource::Network(zone, prefix, network)),
        (digest(), direction(), vec(text(), 0..3))
            .prop_map(|(name, direction, texts)| Resource::Ruleset(name, direction, texts)),
        (digest(), peer(), port_set()).prop_map(|(name, peer, set)| Resource::RulesetEntry(name, peer, set)),
        (key(), endpoint()).prop_map(|(key, endpoint)| Resource::Endpoint(key, Arc::new(endpoint))),
        (any::<u32>(), claims()).prop_map(|(class, claims)| Resource::Leases(class, claims)),
    ];
    let upserts = vec(resource, 0..12);
    let removes = vec(resource_name(), 0..6);
    (upserts, removes).prop_map(|(upserts, removes)| Delta { upserts, removes })
}

fn resource_name() -> impl Strategy<Value = ResourceName> {
    prop_oneof![
        digest().prop_map(ResourceName::Identity),
        (zone(), address()).prop_map(|(zone, address)| ResourceName::Binding(zone, address)),
        (zone(), prefix()).prop_map(|(zone, prefix)| ResourceName::Network(zone, prefix)),
        digest().prop_map(ResourceName::Ruleset),
        (digest(), peer()).prop_map(|(name, peer)| ResourceName::RulesetEntry(name, peer)),
        key().prop_map(ResourceName::Endpoint),
        any::<u32>().prop_map(ResourceName::Leases),
    ]
}
