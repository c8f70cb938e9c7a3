//! `networking.k8s.io/v1` NetworkPolicy to a policy, with the API server's defaults.
//!
//! What the API server would refuse has a closed meaning here: a peer or port that cannot be read matches nothing, and a
//! policy whose pod selector cannot be read isolates at least the pods it means and allows them nothing.

use std::collections::BTreeSet;

use bulkhead_policy::model::{
    Action, Direction, LabelSelector, Match, Mode, NamespaceMatch, Peer, PodMatch, Policy, PolicyKey, PolicyKind,
    PortMatch, Protocol, Rule, Tier,
};
use ipnetwork::IpNetwork;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector as KubernetesSelector, util::intstr::IntOrString},
};
use serde_json::Value;

mod parts;

use parts::{Parts, RuleParts};

use crate::{
    cidr,
    facts::{is_port_name, parse_protocol, port_number},
    manner,
    read::{Unknown, read},
    report::Report,
    selector,
};

/// Lowers a NetworkPolicy of an API server.
pub fn lower(policy: &NetworkPolicy, report: &mut Report<'_>) -> Option<Policy> {
    lower_parts(&Parts::of(policy.clone()), &Unknown::default(), report)
}

/// Reads and lowers a NetworkPolicy from a tree of values; `None` when the object is no policy at all.
pub(crate) fn lower_value(value: &Value, report: &mut Report<'_>) -> Option<Policy> {
    let (parts, unknown) = match read::<NetworkPolicy>(value) {
        Ok((policy, unknown)) => (Parts::of(policy), unknown),
        Err(misfit) => parts::salvage(value, misfit, report)?,
    };
    lower_parts(&parts, &unknown, report)
}

fn lower_parts(parts: &Parts, unknown: &Unknown, report: &mut Report<'_>) -> Option<Policy> {
    let Some(name) = parts.metadata.name.clone().filter(|name| !name.is_empty()) else {
        report.error(
            "metadata.name",
            "is missing, so the policy is not applied; give it a name",
        );
        return None;
    };
    let namespace = parts
        .metadata
        .namespace
        .clone()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "default".to_owned());
    for field in unknown.directly_in("spec") {
        report.error(
            field,
            "is no field of a NetworkPolicy and is left out; check its spelling",
        );
    }
    let isolates = isolates(parts, report);
    let manner = manner::of(parts.metadata.annotations.as_ref(), report);
    let subject = subject(parts, unknown, report);
    let context = Context {
        namespace: &namespace,
        unknown,
    };
    let mut rules = |rules: &Option<Vec<Option<RuleParts>>>, direction: Direction| {
        let applies = subject.exact && isolates.contains(&direction);
        if applies {
            context.rules(rules.as_deref().unwrap_or_default(), direction, report)
        } else {
            Vec::new()
        }
    };
    Some(Policy {
        ingress: rules(&parts.ingress, Direction::Ingress),
        egress: rules(&parts.egress, Direction::Egress),
        key: PolicyKey {
            kind: PolicyKind::NetworkPolicy,
            namespace: namespace.clone(),
            name,
        },
        uid: parts.metadata.uid.clone().unwrap_or_default(),
        generation: parts.metadata.generation.unwrap_or_default(),
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: vec![PodMatch {
            namespaces: NamespaceMatch::Name(namespace.clone()),
            pods: subject.selector,
            service_accounts: Match::Any,
        }],
        nodes: Vec::new(),
        isolates,
        mode: Mode::Enforce,
        manner,
    })
}

/// The selector of the pods; not exact when it selects more than it should because a part could not be read.
fn subject(parts: &Parts, unknown: &Unknown, report: &mut Report<'_>) -> selector::Lowered {
    let subject = match &parts.selector {
        Ok(Some(selector)) => selector::lower(selector, "spec.podSelector", unknown, report),
        Ok(None) => {
            return selector::Lowered {
                selector: LabelSelector::default(),
                exact: true,
            };
        }
        Err(()) => selector::Lowered {
            selector: LabelSelector::default(),
            exact: false,
        },
    };
    if !subject.exact {
        report.error(
            "spec.podSelector",
            "cannot be read whole, so every pod that its readable part selects is isolated and this policy allows it nothing; \
             correct the selector",
        );
    }
    subject
}

/// `policyTypes` after defaulting: absent or empty means ingress, and egress if the policy has egress rules.
fn isolates(parts: &Parts, report: &mut Report<'_>) -> BTreeSet<Direction> {
    let types = parts.types.as_deref().unwrap_or_default();
    let has_egress = parts.egress.as_ref().is_some_and(|rules| !rules.is_empty());
    let has_ingress = parts.ingress.as_ref().is_some_and(|rules| !rules.is_empty());
    let mut isolates = BTreeSet::new();
    if types.is_empty() {
        isolates.insert(Direction::Ingress);
        if has_egress {
            isolates.insert(Direction::Egress);
        } else if parts.egress.is_some() {
            report.warning("spec.egress", "is empty and policyTypes is absent, so egress stays open; write policyTypes: [Ingress, Egress] to deny it");
        }
        return isolates;
    }
    for (index, name) in types.iter().enumerate() {
        match name.as_str() {
            "Ingress" => isolates.insert(Direction::Ingress),
            "Egress" => isolates.insert(Direction::Egress),
            _ => {
                report.error(
                    format!("spec.policyTypes[{index}]"),
                    format!("is {name:?}, so both directions are isolated; write Ingress or Egress"),
                );
                isolates.extend([Direction::Ingress, Direction::Egress]);
                false
            }
        };
    }
    for (direction, has_rules) in [(Direction::Ingress, has_ingress), (Direction::Egress, has_egress)] {
        if has_rules && !isolates.contains(&direction) {
            report.warning(
                format!("spec.{direction}"),
                "has no effect, because policyTypes does not name this direction; add it there or remove the rules",
            );
        }
    }
    isolates
}

/// What the parts of a policy need to know of it.
struct Context<'a> {
    namespace: &'a str,
    unknown: &'a Unknown,
}

impl Context<'_> {
    fn rules(&self, parts: &[Option<RuleParts>], direction: Direction, report: &mut Report<'_>) -> Vec<Rule> {
        let peers_field = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let mut rules = Vec::new();
        for (index, rule) in (0u32..).zip(parts) {
            let Some(RuleParts { peers, ports }) = rule else {
                continue;
            };
            let path = format!("spec.{direction}[{index}]");
            let mut known = true;
            for field in self.unknown.directly_in(&path) {
                report.error(
                    field,
                    "is no field of a rule, so the rule allows nothing; check its spelling",
                );
                known = false;
            }
            let peers = any_or(peers, |at, peer| {
                self.peer(peer, &format!("{path}.{peers_field}[{at}]"), report)
            });
            let ports = any_or(ports, |at, port| {
                self.port(port, &format!("{path}.ports[{at}]"), report)
            });
            if known && !matches_nothing(&peers) && !matches_nothing(&ports) {
                rules.push(Rule {
                    name: None,
                    index,
                    action: Action::Allow,
                    peers,
                    ports,
                    guard: None,
                    mode: Mode::Enforce,
                });
            }
        }
        rules
    }

    /// `None` = matches nothing, and the report says why.
    fn peer(&self, peer: &NetworkPolicyPeer, path: &str, report: &mut Report<'_>) -> Option<Peer> {
        let NetworkPolicyPeer {
            ip_block,
            namespace_selector,
            pod_selector,
        } = peer;
        let mut known = true;
        for field in self.unknown.directly_in(path) {
            report.error(
                field,
                "is no field of a peer, so the peer matches nothing; check its spelling",
            );
            known = false;
        }
        if !known {
            return None;
        }
        if let Some(block) = ip_block {
            if namespace_selector.is_some() || pod_selector.is_some() {
                report.error(
                    path,
                    "has an ipBlock and a selector, so it matches nothing; make two peers of them",
                );
                return None;
            }
            return self.network(block, &format!("{path}.ipBlock"), report);
        }
        if namespace_selector.is_none() && pod_selector.is_none() {
            report.error(path, "has none of podSelector, namespaceSelector and ipBlock, so it matches nothing; set one, or remove the peer");
            return None;
        }
        let namespaces = match namespace_selector {
            Some(selector) => {
                let field = format!("{path}.namespaceSelector");
                NamespaceMatch::Labels(self.exact_selector(selector, &field, report)?)
            }
            None => NamespaceMatch::Name(self.namespace.to_owned()),
        };
        let pods = match pod_selector {
            Some(selector) => self.exact_selector(selector, &format!("{path}.podSelector"), report)?,
            None => LabelSelector::default(),
        };
        Some(Peer::Pods(PodMatch {
            namespaces,
            pods,
            service_accounts: Match::Any,
        }))
    }

    fn exact_selector(
        &self,
        selector: &KubernetesSelector,
        path: &str,
        report: &mut Report<'_>,
    ) -> Option<LabelSelector> {
        let lowered = selector::lower(selector, path, self.unknown, report);
        if !lowered.exact {
            report.error(
                path,
                "cannot be read, so the peer matches nothing; correct the selector",
            );
        }
        lowered.exact.then_some(lowered.selector)
    }

    fn network(&self, block: &IPBlock, path: &str, report: &mut Report<'_>) -> Option<Peer> {
        let mut good = true;
        for field in self.unknown.under(path) {
            report.error(
                field,
                "is no field of an ipBlock, so the peer matches nothing; check its spelling",
            );
            good = false;
        }
        let field = format!("{path}.cidr");
        let cidr = cidr::parse(&block.cidr, &field, report)
            .map_err(|problem| report.error(field, format!("{problem}; the peer matches nothing")))
            .ok()?;
        let mut except: Vec<IpNetwork> = Vec::new();
        for (index, text) in block.except.iter().flatten().enumerate() {
            let field = format!("{path}.except[{index}]");
            match cidr::parse(text, &field, report) {
                Ok(hole) if cidr::strictly_inside(hole, cidr) => except.push(hole),
                Ok(hole) => {
                    report.error(field, format!("{hole} is not a smaller block inside {cidr}, so the peer matches nothing; correct one of the two"));
                    good = false;
                }
                Err(problem) => {
                    report.error(field, format!("{problem}; the peer matches nothing"));
                    good = false;
                }
            }
        }
        cidr::warn_of_overlap(&except, &format!("{path}.except"), report);
        good.then(|| Peer::Network {
            cidr,
            except: except.into_iter().collect(),
        })
    }

    fn port(&self, port: &NetworkPolicyPort, path: &str, report: &mut Report<'_>) -> Option<PortMatch> {
        let mut known = true;
        for field in self.unknown.under(path) {
            report.error(
                field,
                "is no field of a port, so the port matches nothing; check its spelling",
            );
            known = false;
        }
        let matched = port_match(port)
            .map_err(|(field, problem)| {
                report.error(
                    format!("{path}.{field}"),
                    format!("{problem}; the port matches nothing"),
                );
            })
            .ok()?;
        known.then_some(matched)
    }
}

/// What a port means; the error names its field.
pub(crate) fn port_match(port: &NetworkPolicyPort) -> Result<PortMatch, (&'static str, String)> {
    let protocol = match port.protocol.as_deref() {
        None | Some("") => Protocol::Tcp,
        Some(name) => parse_protocol(name).map_err(|problem| ("protocol", problem))?,
    };
    match (&port.port, port.end_port) {
        (None, None) => Ok(PortMatch::Range {
            protocol,
            first: 0,
            last: u16::MAX,
        }),
        (None, Some(_)) => Err((
            "endPort",
            "is set without port; set port to the first port of the range".to_owned(),
        )),
        (Some(IntOrString::String(_)), Some(_)) => Err((
            "endPort",
            "is set with a named port; write the first port as a number".to_owned(),
        )),
        (Some(IntOrString::String(name)), None) => {
            is_port_name(name).map_err(|problem| ("port", problem))?;
            Ok(PortMatch::Named {
                protocol: Some(protocol),
                name: name.clone(),
            })
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = port_number(i64::from(*first)).map_err(|problem| ("port", problem))?;
            let last = end
                .map_or(Ok(first), |end| port_number(i64::from(end)))
                .map_err(|problem| ("endPort", problem))?;
            if last < first {
                return Err(("endPort", format!("{last} is smaller than port {first}; swap them")));
            }
            Ok(PortMatch::Range { protocol, first, last })
        }
    }
}

/// An absent or empty list has no condition; otherwise what can be read of it, which may be nothing.
fn any_or<T, U>(items: &[T], mut read: impl FnMut(usize, &T) -> Option<U>) -> Match<U> {
    if items.is_empty() {
        return Match::Any;
    }
    Match::OneOf(
        items
            .iter()
            .enumerate()
            .filter_map(|(at, item)| read(at, item))
            .collect(),
    )
}

fn matches_nothing<T>(items: &Match<T>) -> bool {
    matches!(items, Match::OneOf(list) if list.is_empty())
}
