//! The oracle's view of the cluster: who an address is, and does a selector, a block or a port match. By walking lists.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;

use super::{Judge, Subject};
use crate::{
    model::{
        Action, AddressGroup, Direction, IcmpMessage, IcmpVersion, LabelSelector, Labels, Match, NamespaceMatch, Node,
        Object, ObjectKey, Operator, Peer, PodMatch, Policy, PortMatch, Protocol, Rule, Service, Workload, WorkloadKey,
        Zone,
    },
    probe::End,
};

/// Does it match? Of an address that some pod has, we do not know which, the answer may be open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Matches {
    /// No.
    No,
    /// If it is one of some pods.
    Perhaps,
    /// Yes.
    Yes,
}

/// Who is at an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Who<'a> {
    Pod(&'a Workload, IpAddr),
    Node(&'a Node, IpAddr),
    /// Nobody we know, inside a pod range.
    SomePod(IpAddr),
    /// Several say it is theirs. Not even what the address says of them is believed.
    Contested,
    Outside(IpAddr),
}

pub(super) struct World<'a>(BTreeMap<ObjectKey, &'a Object>);

impl<'a> World<'a> {
    pub(super) fn new(objects: &'a [Object]) -> Self {
        Self(objects.iter().map(|object| (object.key(), object)).collect())
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &'a Policy> {
        self.0.values().filter_map(|object| match object {
            Object::Policy(policy) => Some(policy),
            _ => None,
        })
    }

    pub(super) fn workloads(&self) -> impl Iterator<Item = &'a Workload> {
        self.0.values().filter_map(|object| match object {
            Object::Workload(workload) => Some(workload.as_ref()),
            _ => None,
        })
    }

    pub(super) fn services(&self) -> impl Iterator<Item = &'a Service> {
        self.0.values().filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        })
    }

    fn nodes(&self) -> impl Iterator<Item = &'a Node> {
        self.0.values().filter_map(|object| match object {
            Object::Node(node) => Some(node),
            _ => None,
        })
    }

    fn workload(&self, key: &WorkloadKey) -> Option<&'a Workload> {
        self.workloads().find(|workload| workload.key == *key)
    }

    pub(super) fn subject(&self, zone: Zone, end: &End) -> Option<Subject<'a>> {
        match (&end.workload, self.who(zone, end.address)) {
            (Some(key), _) => self.workload(key).map(Subject::Pod),
            (None, Who::Pod(workload, _)) => Some(Subject::Pod(workload)),
            (None, Who::Node(node, _)) => {
                let judged = self.policies().any(|policy| self.selects(policy, Subject::Node(node)));
                judged.then_some(Subject::Node(node))
            }
            (None, _) => None,
        }
    }

    pub(super) fn who(&self, zone: Zone, address: IpAddr) -> Who<'a> {
        let pods = self
            .workloads()
            .filter(|it| it.zone == zone && it.addresses.contains(&address));
        let mut found: Vec<Who<'a>> = pods.map(|workload| Who::Pod(workload, address)).collect();
        if zone == Zone(0) {
            let nodes = self.nodes().filter(|node| node.addresses.contains(&address));
            found.extend(nodes.map(|node| Who::Node(node, address)));
        }
        match found.as_slice() {
            [one] => *one,
            [] if zone == Zone(0)
                && self
                    .nodes()
                    .any(|node| node.pod_ranges.iter().any(|range| in_block(address, *range))) =>
            {
                Who::SomePod(address)
            }
            [] => Who::Outside(address),
            _ => Who::Contested,
        }
    }

    fn namespace_labels(&self, name: &str) -> Labels {
        match self.0.get(&ObjectKey::Namespace(name.to_owned())) {
            Some(Object::Namespace(namespace)) => namespace.labels.clone(),
            _ => Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]),
        }
    }

    pub(super) fn selects(&self, policy: &Policy, subject: Subject<'_>) -> bool {
        match subject {
            Subject::Pod(workload) => policy.subject.iter().any(|pods| self.pod_matches(pods, workload)),
            Subject::Node(node) => policy.nodes.iter().any(|nodes| selected(nodes, &node.labels)),
        }
    }

    fn pod_matches(&self, pods: &PodMatch, workload: &Workload) -> bool {
        let namespace = match &pods.namespaces {
            NamespaceMatch::Name(name) => *name == workload.key.namespace,
            NamespaceMatch::Labels(selector) => selected(selector, &self.namespace_labels(&workload.key.namespace)),
        };
        let account = match &pods.service_accounts {
            Match::Any => true,
            Match::OneOf(names) => names.contains(&workload.service_account),
        };
        namespace && account && selected(&pods.pods, &workload.labels)
    }

    // --- rules ----------------------------------------------------------------------------------------------------

    pub(super) fn matches(&self, rule: &Rule, judge: &Judge<'_>) -> Matches {
        let peers = match &rule.peers {
            Match::Any => Matches::Yes,
            Match::OneOf(_) if rule.action != Action::Allow && self.names_the_unknown(rule) => Matches::Yes,
            Match::OneOf(peers) => peers
                .iter()
                .map(|peer| self.peer_matches(peer, &judge.peer))
                .max()
                .unwrap_or(Matches::No),
        };
        let ports = match &rule.ports {
            Match::Any => Matches::Yes,
            Match::OneOf(ports) => ports
                .iter()
                .map(|port| port_matches(port, judge))
                .max()
                .unwrap_or(Matches::No),
        };
        peers.min(ports)
    }

    /// What a rule does: to leave the tier for peers of whom nobody knows who they are would be to open it, so it is denied.
    pub(super) fn action(&self, rule: &Rule) -> Action {
        match rule.action {
            Action::Pass if self.names_the_unknown(rule) => Action::Deny,
            action => action,
        }
    }

    /// The rule names a group of addresses of which not everything is known.
    fn names_the_unknown(&self, rule: &Rule) -> bool {
        let Match::OneOf(peers) = &rule.peers else { return false };
        peers.iter().any(|peer| match peer {
            Peer::AddressGroup(name) => self.group(name).is_none_or(|group| !group.complete),
            _ => false,
        })
    }

    fn group(&self, name: &str) -> Option<&'a AddressGroup> {
        match self.0.get(&ObjectKey::AddressGroup(name.to_owned())) {
            Some(Object::AddressGroup(group)) => Some(group),
            _ => None,
        }
    }

    /// Is it behind the Service?
    fn behind(&self, key: &WorkloadKey, who: &Who<'_>) -> Matches {
        let Some(Object::Service(service)) = self.0.get(&ObjectKey::Service(key.clone())) else {
            return Matches::No;
        };
        if let Some(selector) = &service.selector {
            return match who {
                Who::Pod(workload, _) => {
                    let labels = &workload.labels;
                    let chosen = selector.iter().all(|(key, value)| labels.get(key) == Some(value));
                    known(workload.key.namespace == key.namespace && chosen)
                }
                Who::SomePod(_) | Who::Contested => Matches::Perhaps,
                Who::Node(..) | Who::Outside(_) => Matches::No,
            };
        }
        let slices = self.0.values().filter_map(|object| match object {
            Object::EndpointSlice(slice) if slice.key.namespace == key.namespace && slice.service == key.name => {
                Some(slice)
            }
            _ => None,
        });
        let mut addresses = slices.flat_map(|slice| &slice.addresses);
        match who {
            Who::Pod(_, address) | Who::Node(_, address) | Who::SomePod(address) | Who::Outside(address) => {
                known(addresses.any(|one| one == address))
            }
            Who::Contested => known(addresses.next().is_some()).min(Matches::Perhaps),
        }
    }

    fn peer_matches(&self, peer: &Peer, who: &Who<'_>) -> Matches {
        match (peer, who) {
            (Peer::Service(key), who) => self.behind(key, who),
            (Peer::AddressGroup(name), who) => {
                let blocks = self.group(name).map(|group| &group.blocks);
                let in_one = |block: &IpNetwork| {
                    let (cidr, except) = (*block, std::collections::BTreeSet::new());
                    self.peer_matches(&Peer::Network { cidr, except }, who)
                };
                blocks.into_iter().flatten().map(in_one).max().unwrap_or(Matches::No)
            }
            (Peer::World, Who::Outside(_)) => Matches::Yes,
            (Peer::Pods(pods), Who::Pod(workload, _)) => known(self.pod_matches(pods, workload)),
            (Peer::Pods(pods), Who::SomePod(_) | Who::Contested) => {
                let namespaces = match &pods.namespaces {
                    NamespaceMatch::Name(_) => Matches::Perhaps,
                    NamespaceMatch::Labels(selector) => of_anybody(selector),
                };
                let accounts = match &pods.service_accounts {
                    Match::Any => Matches::Yes,
                    Match::OneOf(names) if names.is_empty() => Matches::No,
                    Match::OneOf(_) => Matches::Perhaps,
                };
                namespaces.min(of_anybody(&pods.pods)).min(accounts)
            }
            (Peer::Nodes(selector), Who::Node(node, _)) => known(selected(selector, &node.labels)),
            (Peer::Nodes(selector), Who::Contested) => of_anybody(selector).min(Matches::Perhaps),
            (Peer::World | Peer::Network { .. }, Who::Contested) => Matches::Perhaps,
            (
                Peer::Network { cidr, except },
                Who::Pod(_, address) | Who::Node(_, address) | Who::SomePod(address) | Who::Outside(address),
            ) => known(in_block(*address, *cidr) && !except.iter().any(|block| in_block(*address, *block))),
            (Peer::World, Who::Pod(..) | Who::Node(..) | Who::SomePod(_))
            | (Peer::Pods(_), Who::Node(..) | Who::Outside(_))
            | (Peer::Nodes(_), Who::Pod(..) | Who::SomePod(_) | Who::Outside(_)) => Matches::No,
        }
    }
}

fn known(matches: bool) -> Matches {
    if matches { Matches::Yes } else { Matches::No }
}

fn selected(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.0.iter().all(
        |requirement| match (&requirement.operator, labels.get(&requirement.key)) {
            (Operator::In(values), Some(value)) => values.contains(value),
            (Operator::NotIn(values), Some(value)) => !values.contains(value),
            (Operator::Exists, Some(_)) | (Operator::NotIn(_) | Operator::DoesNotExist, None) => true,
            (Operator::DoesNotExist, Some(_)) | (Operator::In(_) | Operator::Exists, None) => false,
        },
    )
}

/// Whether a selector matches every object, none, or some.
fn of_anybody(selector: &LabelSelector) -> Matches {
    let each = selector.0.iter().map(|requirement| match &requirement.operator {
        Operator::In(values) if values.is_empty() => Matches::No,
        Operator::NotIn(values) if values.is_empty() => Matches::Yes,
        _ => Matches::Perhaps,
    });
    each.min().unwrap_or(Matches::Yes)
}

fn port_matches(port: &PortMatch, judge: &Judge<'_>) -> Matches {
    let (number, asked) = (judge.probe.port, judge.probe.protocol);
    if let PortMatch::Icmp { version, message } = port {
        let protocol = match version {
            IcmpVersion::V4 => 1,
            IcmpVersion::V6 => 58,
        };
        let [kind, code] = number.to_be_bytes();
        let same = match message {
            IcmpMessage::Any => true,
            IcmpMessage::Type(wanted) => *wanted == kind,
            IcmpMessage::Code(wanted, wanted_code) => (*wanted, *wanted_code) == (kind, code),
        };
        return known(asked == protocol && same);
    }
    let protocol = match asked {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return Matches::No,
    };
    match port {
        PortMatch::Range {
            protocol: wanted,
            first,
            last,
        } => known(*wanted == protocol && *first <= number && number <= *last),
        PortMatch::Icmp { .. } => Matches::No,
        PortMatch::Named {
            protocol: Some(wanted), ..
        } if *wanted != protocol => Matches::No,
        PortMatch::Named { name, .. } => {
            let destination = match (judge.direction, &judge.peer) {
                (Direction::Ingress, _) => match judge.subject {
                    Subject::Pod(workload) => workload,
                    Subject::Node(_) => return Matches::No,
                },
                (Direction::Egress, Who::Pod(workload, _)) => workload,
                (Direction::Egress, Who::SomePod(_) | Who::Contested) => {
                    return if number == 0 { Matches::No } else { Matches::Perhaps };
                }
                (Direction::Egress, Who::Node(..) | Who::Outside(_)) => return Matches::No,
            };
            let declared = destination
                .named_ports
                .iter()
                .find(|it| it.name == *name && it.protocol == protocol);
            known(declared.is_some_and(|declared| declared.number == number))
        }
    }
}

fn in_block(address: IpAddr, block: IpNetwork) -> bool {
    let mapped_length = |length: u8| length.saturating_sub(96);
    match (address, block.ip(), block.prefix()) {
        (IpAddr::V4(address), IpAddr::V4(base), length) => same_start(
            u128::from(address.to_bits()) << 96,
            u128::from(base.to_bits()) << 96,
            length,
        ),
        (IpAddr::V6(address), IpAddr::V6(base), length) => same_start(address.to_bits(), base.to_bits(), length),
        (IpAddr::V4(address), IpAddr::V6(base), length) if length >= 96 => match base.to_ipv4_mapped() {
            Some(base) => {
                let (address, base) = (u128::from(address.to_bits()) << 96, u128::from(base.to_bits()) << 96);
                same_start(address, base, mapped_length(length))
            }
            None => false,
        },
        _ => false,
    }
}

/// Do the first `length` of 128 bits agree?
fn same_start(one: u128, other: u128, length: u8) -> bool {
    length == 0 || (one ^ other).checked_shr(128 - u32::from(length)).unwrap_or(0) == 0
}
