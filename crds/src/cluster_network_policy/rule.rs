//! Rules of a ClusterNetworkPolicy, of either direction.

use std::collections::BTreeSet;

use bulkhead_policy::model::{Action as PolicyAction, Direction, Match, Mode, Peer, PortMatch, Protocol, Rule};

use super::{
    Action, ClusterNetworkPolicyEgressPeer, ClusterNetworkPolicyEgressRule, ClusterNetworkPolicyIngressPeer,
    ClusterNetworkPolicyIngressRule, ClusterNetworkPolicyProtocol, Port, ProtocolPorts,
    lower::{Pods, namespaces_match, pods_match},
};
use crate::{
    cidr,
    facts::{is_port_name, port_number},
    read::Unknown,
    report::Report,
    selector,
};

/// How many rules, peers, protocols, networks or names the API allows in one list.
pub(super) const MAX_ITEMS: usize = 25;
/// How long the API allows a rule's name to be.
const MAX_NAME: usize = 100;

/// A rule of either direction; a source is a destination that cannot be nodes, networks or names.
pub(super) struct View {
    name: String,
    action: Action,
    peers: Vec<ClusterNetworkPolicyEgressPeer>,
    protocols: Option<Vec<ClusterNetworkPolicyProtocol>>,
}

impl From<&ClusterNetworkPolicyIngressRule> for View {
    fn from(rule: &ClusterNetworkPolicyIngressRule) -> Self {
        let peer = |peer: &ClusterNetworkPolicyIngressPeer| ClusterNetworkPolicyEgressPeer {
            namespaces: peer.namespaces.clone(),
            pods: peer.pods.clone(),
            ..Default::default()
        };
        Self {
            name: rule.name.clone(),
            action: rule.action,
            peers: rule.from.iter().map(peer).collect(),
            protocols: rule.protocols.clone(),
        }
    }
}

impl From<&ClusterNetworkPolicyEgressRule> for View {
    fn from(rule: &ClusterNetworkPolicyEgressRule) -> Self {
        Self {
            name: rule.name.clone(),
            action: rule.action,
            peers: rule.to.clone(),
            protocols: rule.protocols.clone(),
        }
    }
}

/// Lowers the rules of one direction. `restricted` rules only deny (see [`super::lower`]).
pub(super) fn lower(
    rules: impl Iterator<Item = View>,
    direction: Direction,
    restricted: bool,
    unknown: &Unknown,
    report: &mut Report<'_>,
) -> Vec<Rule> {
    (0u32..)
        .zip(rules)
        .filter_map(|(index, view)| {
            let path = format!("spec.{direction}[{index}]");
            let mut reader = Reader {
                unknown,
                report,
                direction,
            };
            let lowered = reader.rule(&view, &path);
            let (action, peers, ports) = resolve(view.action, lowered, restricted)?;
            let name = Some(view.name).filter(|name| !name.is_empty());
            Some(Rule {
                name,
                index,
                action,
                peers,
                ports,
                guard: None,
                mode: Mode::Enforce,
            })
        })
        .collect()
}

/// What a rule does after failing closed; `None` = it matches no traffic. `parts` is `None` when the rule could not be read.
fn resolve(
    action: Action,
    parts: Option<(Match<Peer>, Match<PortMatch>)>,
    restricted: bool,
) -> Option<(PolicyAction, Match<Peer>, Match<PortMatch>)> {
    let Some((peers, ports)) = parts else {
        return (action != Action::Accept).then_some((PolicyAction::Deny, Match::Any, Match::Any));
    };
    match (action, restricted) {
        (Action::Accept, true) => None,
        (Action::Accept, false) => Some((PolicyAction::Allow, peers, ports)),
        (Action::Pass, false) => Some((PolicyAction::Pass, peers, ports)),
        (Action::Deny | Action::Unknown, _) | (Action::Pass, true) => Some((PolicyAction::Deny, peers, ports)),
    }
}

struct Reader<'a, 'b> {
    unknown: &'a Unknown,
    report: &'a mut Report<'b>,
    direction: Direction,
}

impl Reader<'_, '_> {
    /// Peers and ports of a rule; `None` when a part cannot be read, which is reported with what it means.
    fn rule(&mut self, view: &View, path: &str) -> Option<(Match<Peer>, Match<PortMatch>)> {
        if view.action == Action::Unknown {
            self.report.error(
                format!("{path}.action"),
                "is none of Accept, Deny and Pass, so the rule denies what it matches; write one of them",
            );
        }
        if view.name.chars().count() > MAX_NAME {
            self.report.warning(
                format!("{path}.name"),
                format!("is longer than {MAX_NAME} characters, which the API server refuses; shorten it"),
            );
        }
        let mut good = self.no_unknown(path);
        let (peers, peers_good) = self.peers(view, path);
        let (ports, ports_good) = self.ports(view, path);
        good &= peers_good && ports_good;
        if !good {
            let closed = match view.action {
                Action::Accept => "the rule matches no traffic",
                Action::Deny | Action::Pass | Action::Unknown => "the rule denies everything",
            };
            self.report.error(
                path,
                format!("has a part that cannot be read, so {closed}; correct the fields named above"),
            );
        }
        good.then_some((peers, ports))
    }

    fn no_unknown(&mut self, path: &str) -> bool {
        let unknown = self.unknown;
        let mut none = true;
        for field in unknown.directly_in(path) {
            self.report
                .error(field, "is no field this version knows; check its spelling");
            none = false;
        }
        none
    }

    fn bad(&mut self, field: impl Into<String>, message: impl Into<String>) -> bool {
        self.report.error(field, message);
        false
    }

    fn peers(&mut self, view: &View, path: &str) -> (Match<Peer>, bool) {
        let field = match self.direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let path = format!("{path}.{field}");
        if view.peers.is_empty() {
            let good = self.bad(path, "is missing or empty; name at least one peer");
            return (Match::OneOf(Vec::new()), good);
        }
        self.warn_of_length(&path, view.peers.len());
        let mut peers = BTreeSet::new();
        let mut good = true;
        for (index, peer) in view.peers.iter().enumerate() {
            good &= self.peer(peer, &format!("{path}[{index}]"), &mut peers);
        }
        (Match::OneOf(peers.into_iter().collect()), good)
    }

    fn peer(&mut self, peer: &ClusterNetworkPolicyEgressPeer, path: &str, peers: &mut BTreeSet<Peer>) -> bool {
        let known = self.no_unknown(path);
        let ClusterNetworkPolicyEgressPeer {
            namespaces,
            pods,
            nodes,
            networks,
            domain_names,
        } = peer;
        // An empty list is as good as absent in the API's own encoding.
        let networks = networks.as_deref().filter(|list| !list.is_empty());
        let domain_names = domain_names.as_deref().filter(|list| !list.is_empty());
        let unknown = self.unknown;
        let good = match (namespaces, pods, nodes, networks, domain_names) {
            (Some(namespaces), None, None, None, None) => {
                let Pods { pods, exact } =
                    namespaces_match(namespaces, &format!("{path}.namespaces"), unknown, self.report);
                peers.insert(Peer::Pods(pods));
                exact
            }
            (None, Some(pods), None, None, None) => {
                let Pods { pods, exact } = pods_match(pods, &format!("{path}.pods"), unknown, self.report);
                peers.insert(Peer::Pods(pods));
                exact
            }
            (None, None, Some(nodes), None, None) => {
                let lowered = selector::lower(nodes, &format!("{path}.nodes"), unknown, self.report);
                peers.insert(Peer::Nodes(lowered.selector));
                lowered.exact
            }
            (None, None, None, Some(networks), None) => self.networks(networks, &format!("{path}.networks"), peers),
            (None, None, None, None, Some(_)) => self.bad(
                format!("{path}.domainNames"),
                "is not enforced by this version; use networks, or leave the rule out",
            ),
            (None, None, None, None, None) if !known => false,
            (None, None, None, None, None) => self.bad(
                path,
                "has no field this version knows; set exactly one of the known ones",
            ),
            _ => self.bad(path, "has more than one field; make a peer of each"),
        };
        known && good
    }

    fn networks(&mut self, networks: &[super::Cidr], path: &str, peers: &mut BTreeSet<Peer>) -> bool {
        self.warn_of_length(path, networks.len());
        let mut good = true;
        for (index, network) in networks.iter().enumerate() {
            let field = format!("{path}[{index}]");
            match cidr::parse(&network.0, &field, self.report) {
                Ok(cidr) => {
                    peers.insert(Peer::Network {
                        cidr,
                        except: BTreeSet::new(),
                    });
                }
                Err(problem) => good = self.bad(field, problem),
            }
        }
        good
    }

    fn ports(&mut self, view: &View, path: &str) -> (Match<PortMatch>, bool) {
        let Some(protocols) = &view.protocols else {
            return (Match::Any, true);
        };
        let path = format!("{path}.protocols");
        if protocols.is_empty() {
            let good = self.bad(path, "is empty; remove it to match all traffic, or name a protocol");
            return (Match::OneOf(Vec::new()), good);
        }
        self.warn_of_length(&path, protocols.len());
        let named = protocols
            .iter()
            .any(|protocol| !protocol.destination_named_port.is_empty());
        let podless = |peer: &ClusterNetworkPolicyEgressPeer| peer.nodes.is_some() || peer.networks.is_some();
        if named && view.peers.iter().any(podless) {
            self.report.warning(path.clone(), "has a named port, which no node or outside address has, and the API server refuses it with nodes and networks; make a rule of its own for them");
        }
        let mut ports = Vec::new();
        let mut good = true;
        for (index, protocol) in protocols.iter().enumerate() {
            match self.protocol(protocol, &format!("{path}[{index}]")) {
                Some(port) => ports.push(port),
                None => good = false,
            }
        }
        (Match::OneOf(ports), good)
    }

    fn protocol(&mut self, protocol: &ClusterNetworkPolicyProtocol, path: &str) -> Option<PortMatch> {
        let known = self.no_unknown(path);
        let ClusterNetworkPolicyProtocol {
            tcp,
            udp,
            sctp,
            destination_named_port: name,
        } = protocol;
        let port = match (tcp, udp, sctp, name.as_str()) {
            (Some(ports), None, None, "") => self.ports_of(Protocol::Tcp, ports, &format!("{path}.tcp")),
            (None, Some(ports), None, "") => self.ports_of(Protocol::Udp, ports, &format!("{path}.udp")),
            (None, None, Some(ports), "") => self.ports_of(Protocol::Sctp, ports, &format!("{path}.sctp")),
            (None, None, None, "") => {
                if known {
                    self.bad(
                        path,
                        "has no field this version knows; set exactly one of tcp, udp, sctp and destinationNamedPort",
                    );
                }
                None
            }
            (None, None, None, name) => match is_port_name(name) {
                Ok(()) => Some(PortMatch::Named {
                    protocol: None,
                    name: name.to_owned(),
                }),
                Err(problem) => {
                    self.bad(format!("{path}.destinationNamedPort"), problem);
                    None
                }
            },
            _ => {
                self.bad(path, "has more than one field; make a protocol of each");
                None
            }
        };
        port.filter(|_| known)
    }

    fn ports_of(&mut self, protocol: Protocol, ports: &ProtocolPorts, path: &str) -> Option<PortMatch> {
        let known = self.no_unknown(path);
        let path = format!("{path}.destinationPort");
        let Some(port) = &ports.destination_port else {
            if known {
                self.bad(path, "is missing; name the port");
            }
            return None;
        };
        let known = known & self.no_unknown(&path) & self.no_unknown(&format!("{path}.range"));
        let (first, last) = match self.bounds(port, &path) {
            Ok(bounds) => bounds,
            Err((field, problem)) => {
                self.bad(format!("{path}{field}"), problem);
                return None;
            }
        };
        known.then_some(PortMatch::Range { protocol, first, last })
    }

    fn bounds(&mut self, port: &Port, path: &str) -> Result<(u16, u16), (&'static str, String)> {
        match (port.number, &port.range) {
            (Some(number), None) => {
                let number = port_number(i64::from(number)).map_err(|problem| (".number", problem))?;
                Ok((number, number))
            }
            (None, Some(range)) => {
                let first = port_number(i64::from(range.start)).map_err(|problem| (".range.start", problem))?;
                let last = port_number(i64::from(range.end)).map_err(|problem| (".range.end", problem))?;
                if last < first {
                    return Err((".range.end", format!("{last} is smaller than start {first}; swap them")));
                }
                if last == first {
                    self.report.warning(
                        format!("{path}.range"),
                        format!("is the one port {first}, which the API server refuses; write number: {first}"),
                    );
                }
                Ok((first, last))
            }
            (None, None) => Err(("", "has no field this version knows; set number or range".to_owned())),
            (Some(_), Some(_)) => Err(("", "has both number and range; keep one".to_owned())),
        }
    }

    fn warn_of_length(&mut self, path: &str, length: usize) {
        if length > MAX_ITEMS {
            self.report.warning(
                path,
                format!("has {length} entries and the API server allows {MAX_ITEMS}; split the rule"),
            );
        }
    }
}
