//! Peers that match nobody, and blocks that do not say what was meant.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use super::{Findings, place};
use crate::{
    compiler::Compiler,
    model::{Action, Direction, LabelSelector, Match, NamespaceMatch, Operator, Peer, Requirement, Rule},
    prefix::canonical,
};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn check(compiler: &Compiler, findings: &mut Findings<'_>, direction: Direction, rule: &Rule) {
    let Match::OneOf(peers) = &rule.peers else { return };
    let field = place(direction, rule);
    for peer in peers {
        match peer {
            Peer::Pods(pods) => {
                if let NamespaceMatch::Labels(selector) = &pods.namespaces {
                    namespaces(compiler, findings, &field, selector);
                }
            }
            Peer::Network { cidr, except } => block(findings, &field, *cidr, except),
            Peer::Service(key) => {
                if compiler.frontends.service(key).is_none() {
                    findings.warning(
                        &field,
                        format_args!(
                            "names Service {key}, which is not there, so that peer matches nobody; create the Service or check \
                             the spelling"
                        ),
                    );
                }
            }
            Peer::AddressGroup(name) => group(compiler, findings, &field, rule.action, name),
            Peer::Nodes(_) | Peer::World => {}
        }
    }
}

/// A group of which not everything is known: what that means depends on what the rule does.
fn group(compiler: &Compiler, findings: &mut Findings<'_>, field: &str, action: Action, name: &str) {
    let (problem, advice) = match compiler.references.group(name) {
        Some(group) if group.complete => return,
        Some(_) => ("cannot be read whole", "correct the group"),
        None => ("is not there", "create the group or check the spelling"),
    };
    let meaning = match action {
        Action::Allow => "that peer matches only what is known of it",
        Action::Deny => "the rule denies everybody",
        Action::Pass => "the rule denies everybody instead of passing",
    };
    findings.warning(
        field,
        format_args!("names AddressGroup {name}, which {problem}; until it is, {meaning}; {advice}"),
    );
}

/// A requirement that no namespace there is fulfils, so that the peer matches nobody.
fn namespaces(compiler: &Compiler, findings: &mut Findings<'_>, field: &str, selector: &LabelSelector) {
    for requirement in &selector.0 {
        let asks_for_a_label = matches!(requirement.operator, Operator::In(_) | Operator::Exists);
        let mut labels = compiler.index.namespaces().map(|(_, labels)| labels);
        if asks_for_a_label && !labels.any(|labels| requirement.matches(labels)) {
            findings.warning(
                field,
                format_args!(
                    "its namespaceSelector matches no namespace, because {}; until there is one the peer matches nobody; \
                     check the spelling",
                    wanted(requirement)
                ),
            );
        }
    }
}

fn wanted(requirement: &Requirement) -> String {
    match &requirement.operator {
        Operator::In(values) if requirement.key == NAME_LABEL => format!("none is named {}", join(values)),
        Operator::In(values) => format!("none has the label {} = {}", requirement.key, join(values)),
        _ => format!("none has the label {}", requirement.key),
    }
}

fn join(values: &BTreeSet<String>) -> String {
    values.iter().map(String::as_str).collect::<Vec<_>>().join(" or ")
}

fn block(findings: &mut Findings<'_>, field: &str, cidr: IpNetwork, except: &BTreeSet<IpNetwork>) {
    let cidr = canonical(cidr);
    let except: BTreeSet<IpNetwork> = except.iter().copied().map(canonical).collect();
    for inner in &except {
        if contains(*inner, cidr) {
            findings.warning(
                field,
                format_args!("its except {inner} covers all of {cidr}, so the peer matches nothing; remove the peer or shrink the except"),
            );
        } else if !contains(cidr, *inner) {
            findings.warning(
                field,
                format_args!("its except {inner} is not inside {cidr} and takes nothing away; correct one of the two"),
            );
        } else if let Some(outer) = except.iter().find(|outer| *outer != inner && contains(**outer, *inner)) {
            findings.warning(
                field,
                format_args!("its except {inner} lies inside its except {outer} and adds nothing; remove it"),
            );
        }
    }
}

fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}
