//! Rules of a SegmentPolicy or ClusterSegmentPolicy, of either direction.

use std::collections::BTreeSet;

use bulkhead_policy::{
    fqdn::{Names, Pattern},
    model::{
        self, Direction, Guard, IcmpMessage, IcmpVersion, LabelSelector, Match, NamespaceMatch, Peer, PodMatch,
        PortMatch, Rule, Tier as PolicyTier, WorkloadKey,
    },
};
use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use serde_json::Value;

use super::{Action, Entity, Mode, Network, Protocol, SegmentPeer, SegmentPort, ServiceReference, lower::Reader};
use crate::{cidr, network_policy::port_match};

/// How many peers or ports the API allows in one list.
const ITEMS_MAX: usize = 25;
/// How long the API allows a rule's name to be.
const NAME_MAX: usize = 100;

/// What stands for a rule of which nothing can be read.
pub(super) fn deny_all(index: u32) -> Rule {
    Rule {
        name: None,
        index,
        action: model::Action::Deny,
        peers: Match::Any,
        ports: Match::Any,
        guard: None,
        mode: model::Mode::Enforce,
    }
}

/// What an entry of a list of peers is.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Peer(Peer),
    Names(BTreeSet<Pattern>),
}

/// What could be read of a list, and whether that is all of it.
#[derive(Clone)]
struct Items<T> {
    items: Match<T>,
    whole: bool,
}

impl Reader<'_, '_> {
    /// A rule; none when it matches nothing, which is reported unless the rule says so itself. Its names become a rule of their own,
    /// because they are a condition beside peers and ports.
    pub(super) fn rule(&mut self, value: &Value, index: u32, direction: Direction) -> Vec<Rule> {
        let path = format!("spec.{direction}[{index}]");
        let Some(map) = value.as_object() else {
            self.report
                .error(path, "is no object, so it denies everything; write its fields");
            return vec![deny_all(index)];
        };
        let peers_field = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let mut good = true;
        for field in map
            .keys()
            .filter(|field| !["name", "action", "mode", "ports", "trust", peers_field].contains(&field.as_str()))
        {
            self.report.error(
                format!("{path}.{field}"),
                "is no field of this rule that this version knows; check its spelling",
            );
            good = false;
        }
        let name = self
            .optional::<String>(map, &path, "name")
            .unwrap_or_default()
            .filter(|name| !name.is_empty());
        if name.as_ref().is_some_and(|name| name.chars().count() > NAME_MAX) {
            let message = format!("is longer than {NAME_MAX} characters, which the API server refuses; shorten it");
            self.report.warning(format!("{path}.name"), message);
        }
        let action = self.optional::<Action>(map, &path, "action");
        let action = self.action(action, &path);
        let mode = self.optional::<Mode>(map, &path, "mode");
        good &= mode.is_ok();
        let targets = self.items(map.get(peers_field), &format!("{path}.{peers_field}"), Self::target);
        let (peers, names) = self.divide(targets, action, direction, &path);
        let trust = self.trust(map, &path, action, !names.is_empty());
        good &= trust.is_ok();
        let ports = self.items(map.get("ports"), &format!("{path}.ports"), Self::port);
        let whole = good && peers.whole && ports.whole;
        let world = (!names.is_empty()).then(|| Items {
            items: Match::OneOf(vec![Peer::World]),
            whole: true,
        });
        let named = world.and_then(|world| self.resolve(action, good, world, ports.clone()));
        let resolved = self.resolve(action, good, peers, ports);
        if !whole {
            self.closed(path, action, resolved.as_ref().or(named.as_ref()).is_some());
        }
        let mode = match mode {
            Ok(Some(Mode::Shadow)) if !self.restricted => model::Mode::Shadow,
            _ => model::Mode::Enforce,
        };
        let guard = Guard::Name(Names::new(names));
        [(resolved, trust.unwrap_or_default()), (named, Some(guard))]
            .into_iter()
            .filter_map(|(resolved, guard)| Some((resolved?, guard)))
            .map(|((action, peers, ports), guard)| Rule {
                name: name.clone(),
                index,
                action,
                peers,
                ports,
                guard,
                mode,
            })
            .collect()
    }

    /// Says what becomes of a rule of which not all could be read.
    fn closed(&mut self, path: String, action: Action, any: bool) {
        let closed = match (any, action) {
            (false, _) => "the rule matches nothing",
            (true, Action::Allow) => "that part of it matches nothing",
            (true, Action::Deny | Action::Pass) => "the rule denies whatever that part could have meant",
        };
        self.report.error(
            path,
            format!("has a part that cannot be read, so {closed}; correct the fields named above"),
        );
    }

    /// The names of a rule apart from its peers. Only what a pod opens can be allowed by name.
    fn divide(
        &mut self,
        targets: Items<Target>,
        action: Action,
        direction: Direction,
        path: &str,
    ) -> (Items<Peer>, BTreeSet<Pattern>) {
        let Items { items, mut whole } = targets;
        let Match::OneOf(list) = items else {
            let items = Match::Any;
            return (Items { items, whole }, BTreeSet::new());
        };
        let (mut peers, mut names) = (Vec::new(), BTreeSet::new());
        for target in list {
            match target {
                Target::Peer(peer) => peers.push(peer),
                Target::Names(patterns) => names.extend(patterns),
            }
        }
        let why = match (direction, action) {
            (Direction::Egress, Action::Allow) => None,
            (Direction::Ingress, _) => Some("names fqdns, which only egress rules may; name pods or networks instead"),
            (Direction::Egress, _) => Some(
                "names fqdns, which only Allow rules may: a pod that learned the address elsewhere would not be denied; name networks \
                 instead",
            ),
        };
        if let Some(why) = why.filter(|_| !names.is_empty()) {
            self.report.error(path, why);
            names.clear();
            whole = false;
        }
        let items = Match::OneOf(peers);
        (Items { items, whole }, names)
    }

    fn action(&mut self, read: Result<Option<Action>, ()>, path: &str) -> Action {
        match read {
            Ok(Some(Action::Pass)) if self.tier != PolicyTier::Admin => {
                let message = "is Pass, which only rules of tier Admin may, so the rule denies; write Allow or Deny";
                self.report.error(format!("{path}.action"), message);
                Action::Deny
            }
            Ok(action) => action.unwrap_or_default(),
            Err(()) => {
                self.report.error(
                    path,
                    "has an action that cannot be read, so it denies what it matches; write Allow or Deny",
                );
                Action::Deny
            }
        }
    }

    /// What a rule does after failing closed; `None` = it matches nothing. `good` is false when something of the rule beside its
    /// peers and ports could not be read.
    fn resolve(
        &self,
        action: Action,
        good: bool,
        peers: Items<Peer>,
        ports: Items<PortMatch>,
    ) -> Option<(model::Action, Match<Peer>, Match<PortMatch>)> {
        let nobody = |items: &Match<_>| matches!(items, Match::OneOf(list) if list.is_empty());
        let no_port = matches!(&ports.items, Match::OneOf(list) if list.is_empty());
        match action {
            Action::Allow if self.restricted || !good || nobody(&peers.items) || no_port => None,
            Action::Allow => Some((model::Action::Allow, peers.items, ports.items)),
            Action::Pass if !self.restricted && good && peers.whole && ports.whole => {
                Some((model::Action::Pass, peers.items, ports.items))
            }
            Action::Deny | Action::Pass => {
                let peers = if peers.whole { peers.items } else { Match::Any };
                let ports = if ports.whole { ports.items } else { Match::Any };
                Some((model::Action::Deny, peers, ports))
            }
        }
    }

    /// The items of a list; absent means any.
    fn items<T: Ord>(
        &mut self,
        value: Option<&Value>,
        path: &str,
        read: fn(&mut Self, &Value, &str) -> Option<T>,
    ) -> Items<T> {
        let unreadable = Items {
            items: Match::OneOf(Vec::new()),
            whole: false,
        };
        let list = match value {
            None | Some(Value::Null) => {
                return Items {
                    items: Match::Any,
                    whole: true,
                };
            }
            Some(Value::Array(list)) => list,
            Some(_) => {
                self.report
                    .error(path, "is not a list; write each entry with a leading '-'");
                return unreadable;
            }
        };
        if list.is_empty() {
            self.report
                .error(path, "is empty; remove it to match all, or name at least one");
            return unreadable;
        }
        if list.len() > ITEMS_MAX {
            let message = format!(
                "has {} entries and the API server allows {ITEMS_MAX}; split the rule",
                list.len()
            );
            self.report.warning(path, message);
        }
        let mut items = BTreeSet::new();
        let mut whole = true;
        for (index, item) in list.iter().enumerate() {
            match read(self, item, &format!("{path}[{index}]")) {
                Some(item) => drop(items.insert(item)),
                None => whole = false,
            }
        }
        Items {
            items: Match::OneOf(items.into_iter().collect()),
            whole,
        }
    }

    fn bad<T>(&mut self, field: impl Into<String>, message: impl Into<String>) -> Option<T> {
        self.report.error(field, message);
        None
    }

    /// `None` when it cannot be read, which is reported.
    fn target(&mut self, value: &Value, path: &str) -> Option<Target> {
        if value.get("fqdns").is_none_or(Value::is_null) {
            return self.peer(value, path).map(Target::Peer);
        }
        let (peer, unknown) = self.read::<SegmentPeer>(value, path)?;
        let known = self.known(&unknown, path);
        let texts = peer.fqdns.clone().unwrap_or_default();
        let alone = SegmentPeer {
            fqdns: peer.fqdns.clone(),
            ..SegmentPeer::default()
        };
        if peer != alone {
            return self.bad(path, "has fields of several peers; make a peer of each");
        }
        if texts.is_empty() {
            return self.bad(
                format!("{path}.fqdns"),
                "is empty; write a name such as api.example.com",
            );
        }
        let mut patterns = BTreeSet::new();
        for (index, text) in texts.iter().enumerate() {
            match text.parse::<Pattern>() {
                Ok(pattern) => drop(patterns.insert(pattern)),
                Err(problem) => {
                    self.report.error(
                        format!("{path}.fqdns[{index}]"),
                        format!("{text:?} {problem}; it matches nothing"),
                    );
                }
            }
        }
        (known && !patterns.is_empty()).then_some(Target::Names(patterns))
    }

    /// `None` when it cannot be read, which is reported.
    fn peer(&mut self, value: &Value, path: &str) -> Option<Peer> {
        let (peer, unknown) = self.read::<SegmentPeer>(value, path)?;
        let known = self.known(&unknown, path)
            & self.known(&unknown, &format!("{path}.service"))
            & self.known(&unknown, &format!("{path}.network"));
        let SegmentPeer {
            namespace_selector,
            pod_selector,
            service_accounts,
            service,
            network,
            address_group,
            entity,
            fqdns: _,
        } = peer;
        let selects = namespace_selector.is_some() || pod_selector.is_some() || service_accounts.is_some();
        let lowered = match (selects, service, network, address_group, entity) {
            (true, None, None, None, None) => {
                let (namespaces, first) =
                    self.selector(namespace_selector.as_ref(), &format!("{path}.namespaceSelector"), &unknown);
                let (pods, second) = self.selector(pod_selector.as_ref(), &format!("{path}.podSelector"), &unknown);
                let (service_accounts, third) = self.accounts(service_accounts, &format!("{path}.serviceAccounts"));
                let own = self.namespace.filter(|_| namespace_selector.is_none());
                let namespaces = own.map_or(NamespaceMatch::Labels(namespaces), |name| NamespaceMatch::Name(name.to_owned()));
                (first && second && third).then_some(Peer::Pods(PodMatch {
                    namespaces,
                    pods,
                    service_accounts,
                }))
            }
            (false, Some(service), None, None, None) => self.service(service, path),
            (false, None, Some(network), None, None) => self.network(&network, &format!("{path}.network")),
            (false, None, None, Some(name), None) if !name.is_empty() => Some(Peer::AddressGroup(name)),
            (false, None, None, Some(_), None) => self.bad(format!("{path}.addressGroup"), "is empty; name an AddressGroup"),
            (false, None, None, None, Some(entity)) => Some(party(entity)),
            (false, None, None, None, None) if !known => None,
            (false, None, None, None, None) => self.bad(
                path,
                "has no field this version knows; set namespaceSelector, podSelector or serviceAccounts, or one of service, network, \
                 addressGroup, entity and fqdns",
            ),
            _ => self.bad(path, "has fields of several peers; make a peer of each"),
        };
        lowered.filter(|_| known)
    }

    fn service(&mut self, service: ServiceReference, path: &str) -> Option<Peer> {
        let namespace = service.namespace.filter(|name| !name.is_empty());
        let Some(namespace) = namespace.or_else(|| self.namespace.map(str::to_owned)) else {
            return self.bad(
                format!("{path}.service.namespace"),
                "is missing, and a ClusterSegmentPolicy has no namespace of its own; name it",
            );
        };
        if service.name.is_empty() {
            return self.bad(format!("{path}.service.name"), "is empty; name a Service");
        }
        Some(Peer::Service(WorkloadKey {
            namespace,
            name: service.name,
        }))
    }

    fn network(&mut self, network: &Network, path: &str) -> Option<Peer> {
        let field = format!("{path}.cidr");
        let cidr = match cidr::parse(&network.cidr, &field, self.report) {
            Ok(cidr) => cidr,
            Err(problem) => return self.bad(field, problem),
        };
        let mut except = Vec::new();
        let mut good = true;
        for (index, text) in network.except.iter().flatten().enumerate() {
            let field = format!("{path}.except[{index}]");
            let problem = match cidr::parse(text, &field, self.report) {
                Ok(hole) if cidr::strictly_inside(hole, cidr) => {
                    except.push(hole);
                    continue;
                }
                Ok(hole) => format!("{hole} is not a smaller block inside {cidr}; correct one of the two"),
                Err(problem) => problem,
            };
            self.report.error(field, problem);
            good = false;
        }
        cidr::warn_of_overlap(&except, &format!("{path}.except"), self.report);
        good.then(|| Peer::Network {
            cidr,
            except: except.into_iter().collect(),
        })
    }

    /// `None` when it cannot be read, which is reported.
    fn port(&mut self, value: &Value, path: &str) -> Option<PortMatch> {
        let (port, unknown) = self.read::<SegmentPort>(value, path)?;
        let known = self.known(&unknown, path);
        match matched(port) {
            Ok(port) => known.then_some(port),
            Err((field, problem)) => self.bad(format!("{path}.{field}"), problem),
        }
    }
}

fn party(entity: Entity) -> Peer {
    match entity {
        Entity::Node => Peer::Nodes(LabelSelector::default()),
        Entity::World => Peer::World,
        Entity::KubeApiserver => Peer::Service(WorkloadKey {
            namespace: "default".to_owned(),
            name: "kubernetes".to_owned(),
        }),
    }
}

fn matched(port: SegmentPort) -> Result<PortMatch, (&'static str, String)> {
    let version = match port.protocol {
        Protocol::Icmp => IcmpVersion::V4,
        Protocol::Icmpv6 => IcmpVersion::V6,
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            for (field, given) in [("icmpType", port.icmp_type), ("icmpCode", port.icmp_code)] {
                if given.is_some() {
                    return Err((field, "is for protocol ICMP and ICMPv6 only; remove it".to_owned()));
                }
            }
            let name = match port.protocol {
                Protocol::Udp => "UDP",
                Protocol::Sctp => "SCTP",
                _ => "TCP",
            };
            return port_match(&NetworkPolicyPort {
                protocol: Some(name.to_owned()),
                port: port.port,
                end_port: port.end_port,
            });
        }
    };
    if port.port.is_some() || port.end_port.is_some() {
        return Err((
            "port",
            "is for protocol TCP, UDP and SCTP only; remove it, or name icmpType".to_owned(),
        ));
    }
    let byte = |field: &'static str, number: i32| {
        u8::try_from(number).map_err(|_| (field, format!("is {number}; write a number from 0 to 255")))
    };
    let message = match (port.icmp_type, port.icmp_code) {
        (None, None) => IcmpMessage::Any,
        (None, Some(_)) => return Err(("icmpCode", "is set without icmpType; name the type".to_owned())),
        (Some(kind), None) => IcmpMessage::Type(byte("icmpType", kind)?),
        (Some(kind), Some(code)) => IcmpMessage::Code(byte("icmpType", kind)?, byte("icmpCode", code)?),
    };
    Ok(PortMatch::Icmp { version, message })
}
