//! What the tests of lowering share.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "each test file uses some of it")]

use bulkhead_crds::{Lowered, Manifests};
use bulkhead_policy::model::{Guard, Match, Object, Peer, Policy, PortMatch, Rule};

/// Lowers a text named `f.yaml`.
pub(crate) fn lower(text: &str) -> Lowered {
    let mut manifests = Manifests::default();
    manifests.add(text, "f.yaml");
    manifests.finish()
}

/// The only policy of a text.
pub(crate) fn policy(lowered: &Lowered) -> &Policy {
    let mut policies = lowered.objects.iter().filter_map(|object| match object {
        Object::Policy(policy) => Some(policy),
        _ => None,
    });
    let policy = policies.next().expect("a policy");
    assert!(policies.next().is_none());
    policy
}

/// Diagnostics as a person sees them.
pub(crate) fn messages(lowered: &Lowered) -> Vec<String> {
    lowered.diagnostics.iter().map(ToString::to_string).collect()
}

/// A rule in few words.
pub(crate) fn show(rule: &Rule) -> String {
    let peers = match &rule.peers {
        Match::Any => "anyone".to_owned(),
        Match::OneOf(peers) => peers.iter().map(show_peer).collect::<Vec<_>>().join(", "),
    };
    let ports = match &rule.ports {
        Match::Any => "any port".to_owned(),
        Match::OneOf(ports) => ports.iter().map(show_port).collect::<Vec<_>>().join(", "),
    };
    let guard = match &rule.guard {
        Some(Guard::Name(names)) => format!(" if {names}"),
        Some(Guard::Lease { profile, side, .. }) => format!(" while {side} is {profile}"),
        _ => String::new(),
    };
    format!("[{}] {:?} {peers}: {ports}{guard}", rule.index, rule.action)
}

fn show_peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods(pods) => format!("pods {}", pod_match(pods)),
        Peer::Network { cidr, except } if except.is_empty() => cidr.to_string(),
        Peer::Network { cidr, except } => {
            format!(
                "{cidr} without {}",
                except.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            )
        }
        Peer::Nodes(selector) => format!("nodes {}", selector_text(selector)),
        Peer::World => "the world".to_owned(),
        Peer::Service(key) => format!("service {key}"),
        Peer::AddressGroup(name) => format!("group {name}"),
    }
}

/// Namespaces and pods in few words.
pub(crate) fn pod_match(pods: &bulkhead_policy::model::PodMatch) -> String {
    use bulkhead_policy::model::NamespaceMatch;
    let namespaces = match &pods.namespaces {
        NamespaceMatch::Name(name) => format!("={name}"),
        NamespaceMatch::Labels(selector) => selector_text(selector),
    };
    let accounts = match &pods.service_accounts {
        Match::Any => String::new(),
        Match::OneOf(names) => format!("@{}", names.join(",")),
    };
    format!("{namespaces}/{}{accounts}", selector_text(&pods.pods))
}

fn selector_text(selector: &bulkhead_policy::model::LabelSelector) -> String {
    use bulkhead_policy::model::Operator;
    let requirement = |it: &bulkhead_policy::model::Requirement| match &it.operator {
        Operator::In(values) => format!("{} in {values:?}", it.key),
        Operator::NotIn(values) => format!("{} not in {values:?}", it.key),
        Operator::Exists => it.key.clone(),
        Operator::DoesNotExist => format!("!{}", it.key),
    };
    format!(
        "({})",
        selector.0.iter().map(requirement).collect::<Vec<_>>().join(" & ")
    )
}

fn show_port(port: &PortMatch) -> String {
    match port {
        PortMatch::Range { protocol, first, last } if first == last => format!("{protocol:?} {first}"),
        PortMatch::Range { protocol, first, last } => format!("{protocol:?} {first}-{last}"),
        PortMatch::Named {
            protocol: Some(protocol),
            name,
        } => format!("{protocol:?} {name}"),
        PortMatch::Named { protocol: None, name } => format!("named {name}"),
        PortMatch::Icmp { version, message } => format!("ICMP {version:?} {message:?}"),
    }
}
