//! Random policies: every operator, kind of peer, port match, action, tier, guard and mode; empty and absent lists.

use std::collections::BTreeSet;

use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

use super::{ACCOUNTS, BLOCKS, GROUPS, NAMESPACES, PORT_NAMES, PORTS, PROTOCOLS, block, service_key, text};
use crate::{
    fqdn::Names,
    lease::Profile,
    model::{
        Action, Answer, Direction, Guard, IcmpMessage, IcmpVersion, LabelSelector, Manner, Match, Mode, NamespaceMatch,
        OnChange, Operator, Peer, PodMatch, Policy, PolicyKey, PolicyKind, PortMatch, Requirement, Rule, Side, Tier,
    },
};

fn selector(keys: &'static [&'static str]) -> impl Strategy<Value = LabelSelector> {
    let values = || btree_set(text(&["x", "y", "z"]), 1..3);
    let operator = prop_oneof![
        10 => values().prop_map(Operator::In),
        6 => values().prop_map(Operator::NotIn),
        4 => Just(Operator::Exists),
        4 => Just(Operator::DoesNotExist),
        1 => Just(Operator::In(BTreeSet::new())),
        1 => Just(Operator::NotIn(BTreeSet::new())),
    ];
    let requirement = (text(keys), operator).prop_map(|(key, operator)| Requirement { key, operator });
    prop_oneof![1 => Just(LabelSelector::default()), 1 => btree_set(requirement, 1..3).prop_map(LabelSelector)]
}

fn pods() -> impl Strategy<Value = PodMatch> {
    let namespaces = prop_oneof![
        2 => text(&NAMESPACES).prop_map(NamespaceMatch::Name),
        2 => selector(&["team", "env", "kubernetes.io/metadata.name"]).prop_map(NamespaceMatch::Labels),
    ];
    (namespaces, selector(&["app", "tier"]), accounts()).prop_map(|(namespaces, pods, service_accounts)| PodMatch {
        namespaces,
        pods,
        service_accounts,
    })
}

fn accounts() -> impl Strategy<Value = Match<String>> {
    let some = vec(text(&ACCOUNTS), 0..3).prop_map(Match::OneOf);
    prop_oneof![4 => Just(Match::Any), 1 => some]
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        4 => pods().prop_map(Peer::Pods),
        3 => (block(&BLOCKS), btree_set(block(&BLOCKS), 0..3)).prop_map(|(cidr, except)| Peer::Network { cidr, except }),
        1 => selector(&["zone", "role"]).prop_map(Peer::Nodes),
        1 => Just(Peer::World),
        1 => service_key().prop_map(Peer::Service),
        1 => text(&GROUPS).prop_map(Peer::AddressGroup),
    ]
}

fn port() -> impl Strategy<Value = PortMatch> {
    let range = (
        select(&PROTOCOLS[..]),
        select(&PORTS[..]),
        select(&[0u16, 0, 0, 1, 400][..]),
    );
    prop_oneof![
        3 => range.prop_map(|(protocol, first, more)| PortMatch::Range { protocol, first, last: first.saturating_add(more) }),
        1 => select(&PROTOCOLS[..]).prop_map(|protocol| PortMatch::Range { protocol, first: 0, last: u16::MAX }),
        1 => (any::<bool>(), option::of((select(&[0u8, 0, 1, 31][..]), option::of(select(&[53u8, 80, 187][..]))))).prop_map(icmp),
        2 => (option::of(select(&PROTOCOLS[..])), text(&PORT_NAMES)).prop_map(|(protocol, name)| PortMatch::Named { protocol, name }),
    ]
}

fn icmp((v6, message): (bool, Option<(u8, Option<u8>)>)) -> PortMatch {
    PortMatch::Icmp {
        version: if v6 { IcmpVersion::V6 } else { IcmpVersion::V4 },
        message: match message {
            None => IcmpMessage::Any,
            Some((kind, None)) => IcmpMessage::Type(kind),
            Some((kind, Some(code))) => IcmpMessage::Code(kind, code),
        },
    }
}

/// Absent, empty, or some.
fn list<T: std::fmt::Debug + Clone>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Match<T>> {
    prop_oneof![3 => Just(Match::Any), 7 => vec(item, 0..3).prop_map(Match::OneOf)]
}

fn guard() -> impl Strategy<Value = Guard> {
    let lease = (profile(), any::<bool>(), any::<bool>());
    prop_oneof![
        lease.prop_map(|(profile, subject, negated)| Guard::Lease {
            profile,
            side: if subject { Side::Subject } else { Side::Peer },
            negated
        }),
        (0u32..3).prop_map(Guard::Until),
        (0u32..3).prop_map(|number| Guard::Name(names(number))),
    ]
}

/// One of three profiles.
pub(super) fn profile() -> impl Strategy<Value = Profile> {
    select(&["p0", "p1", "p2"][..]).prop_filter_map("a profile", |name| name.parse().ok())
}

/// Sets that overlap.
fn names(number: u32) -> Names {
    let patterns = [format!("n{number}.test"), "*.wide.test".to_owned()];
    Names::new(patterns.iter().filter_map(|text| text.parse().ok()).collect())
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![4 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)]
}

fn manner() -> impl Strategy<Value = Manner> {
    let answer = select(&[Answer::Drop, Answer::Reject][..]);
    let on_change = select(
        &[
            OnChange::Reevaluate,
            OnChange::Reevaluate,
            OnChange::Drain,
            OnChange::Keep,
        ][..],
    );
    (answer, on_change).prop_map(|(answer, on_change)| Manner { answer, on_change })
}

fn rules(tier: Tier) -> impl Strategy<Value = Vec<Rule>> {
    let action = match tier {
        Tier::NetworkPolicy => select(&[Action::Allow, Action::Allow, Action::Allow, Action::Allow, Action::Deny][..]),
        Tier::Admin | Tier::Baseline => select(&[Action::Allow, Action::Deny, Action::Deny, Action::Pass][..]),
    };
    let rule = (
        action,
        list(peer()),
        list(port()),
        option::weighted(0.3, guard()),
        mode(),
    );
    vec(rule, 0..5).prop_map(|rules| {
        (0..)
            .zip(rules)
            .map(|(index, (action, peers, ports, guard, mode))| Rule {
                name: (index == 1).then(|| "second".to_owned()),
                index,
                action,
                peers,
                ports,
                guard: guard.filter(|_| action != Action::Pass),
                mode,
            })
            .collect()
    })
}

/// Both directions more often than one or none.
fn directions() -> impl Strategy<Value = BTreeSet<Direction>> {
    select(&[0b11u8, 0b11, 0b01, 0b10, 0b00][..]).prop_map(|bits| {
        let all = [(0b01, Direction::Egress), (0b10, Direction::Ingress)];
        all.into_iter()
            .filter(|(bit, _)| bits & bit != 0)
            .map(|(_, direction)| direction)
            .collect()
    })
}

fn kind(in_tier: bool, ours: bool) -> PolicyKind {
    match (in_tier, ours) {
        (true, false) => PolicyKind::NetworkPolicy,
        (true, true) => PolicyKind::SegmentPolicy,
        (false, false) => PolicyKind::ClusterNetworkPolicy,
        (false, true) => PolicyKind::ClusterSegmentPolicy,
    }
}

/// A policy of any kind.
pub fn policy() -> impl Strategy<Value = Policy> {
    let tier = prop_oneof![
        Just(Tier::Admin),
        Just(Tier::NetworkPolicy),
        Just(Tier::NetworkPolicy),
        Just(Tier::Baseline)
    ];
    tier.prop_flat_map(|tier| {
        let head = (
            text(&["one", "two", "three", "four"]),
            text(&NAMESPACES),
            0i64..2,
            select(&[0u32, 5, 5, 1000][..]),
            mode(),
            any::<bool>(),
            manner(),
        );
        (
            head,
            pods(),
            vec(pods(), 0..2),
            (selector(&["app", "tier"]), accounts()),
            (directions(), option::weighted(0.15, selector(&["zone", "role"]))),
            rules(tier),
            rules(tier),
        )
            .prop_map(
                move |(
                    (name, namespace, generation, priority, mode, ours, manner),
                    pods,
                    more,
                    (own, accounts),
                    (isolates, nodes),
                    ingress,
                    egress,
                )| {
                    let in_tier = tier == Tier::NetworkPolicy;
                    let wide = !in_tier || nodes.is_some();
                    let key = PolicyKey {
                        kind: kind(!wide, ours || nodes.is_some()),
                        namespace: if wide { String::new() } else { namespace.clone() },
                        name,
                    };
                    let own = PodMatch {
                        namespaces: NamespaceMatch::Name(namespace),
                        pods: own,
                        service_accounts: accounts,
                    };
                    let subject = match (&nodes, in_tier) {
                        (Some(_), _) => Vec::new(),
                        (None, true) => vec![own],
                        (None, false) => [pods].into_iter().chain(more).collect(),
                    };
                    Policy {
                        key,
                        uid: String::new(),
                        generation,
                        tier,
                        priority: if in_tier { 0 } else { priority },
                        subject,
                        nodes: nodes.into_iter().collect(),
                        isolates: if in_tier { isolates } else { BTreeSet::new() },
                        mode,
                        manner,
                        ingress,
                        egress,
                    }
                },
            )
    })
}
