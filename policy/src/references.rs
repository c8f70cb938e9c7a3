//! What rules refer to by name: Services and groups of addresses. Before a policy is compiled, a reference is replaced by what it
//! stands for, so that nothing behind this knows of references; what it stood for changes, and the policy is compiled again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use crate::{
    frontends::Frontends,
    model::{
        Action, AddressGroup, LabelSelector, Match, NamespaceMatch, Operator, Peer, PodMatch, Policy, PolicyKey,
        Requirement, Rule, WorkloadKey,
    },
};

/// Something a rule may refer to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reference {
    /// A Service.
    Service(WorkloadKey),
    /// A group of addresses.
    AddressGroup(String),
}

impl Reference {
    /// What a peer refers to.
    fn of(peer: &Peer) -> Option<Self> {
        match peer {
            Peer::Service(key) => Some(Self::Service(key.clone())),
            Peer::AddressGroup(name) => Some(Self::AddressGroup(name.clone())),
            Peer::Pods(_) | Peer::Network { .. } | Peer::Nodes(_) | Peer::World => None,
        }
    }
}

/// Groups of addresses, and who refers to what.
#[derive(Debug, Default)]
pub(crate) struct References {
    groups: BTreeMap<String, AddressGroup>,
    users: BTreeMap<Reference, BTreeSet<PolicyKey>>,
    changed: BTreeSet<Reference>,
}

impl References {
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.users.is_empty()
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = &String> {
        self.groups.keys()
    }

    pub(crate) fn group(&self, name: &str) -> Option<&AddressGroup> {
        self.groups.get(name)
    }

    /// The policies that refer to it.
    pub(crate) fn users(&self, reference: &Reference) -> impl Iterator<Item = &PolicyKey> {
        self.users.get(reference).into_iter().flatten()
    }

    /// Takes a group as it is now.
    pub(crate) fn set_group(&mut self, name: &str, new: Option<&AddressGroup>) {
        if self.groups.get(name) == new {
            return;
        }
        self.groups.remove(name);
        self.groups.extend(new.map(|group| (name.to_owned(), group.clone())));
        self.touch(Reference::AddressGroup(name.to_owned()));
    }

    /// Notes that what is behind a Service may have changed.
    pub(crate) fn touch_service(&mut self, key: &WorkloadKey) {
        self.touch(Reference::Service(key.clone()));
    }

    fn touch(&mut self, reference: Reference) {
        if self.users.contains_key(&reference) {
            self.changed.insert(reference);
        }
    }

    /// Policies that refer to something that changed since this was asked last.
    pub(crate) fn take_concerned(&mut self) -> BTreeSet<PolicyKey> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .iter()
            .filter_map(|reference| self.users.get(reference))
            .flatten()
            .cloned()
            .collect()
    }

    /// Files a policy under what it refers to, in the place of its older self.
    pub(crate) fn set_policy(&mut self, key: &PolicyKey, old: Option<&Policy>, new: Option<&Policy>) {
        for reference in old.into_iter().flat_map(references) {
            if let Some(users) = self.users.get_mut(&reference) {
                users.remove(key);
                if users.is_empty() {
                    self.users.remove(&reference);
                }
            }
        }
        for reference in new.into_iter().flat_map(references) {
            self.users.entry(reference).or_default().insert(key.clone());
        }
    }

    /// The policy with what it refers to written out; `None` when it refers to nothing.
    pub(crate) fn written_out(&self, policy: &Policy, frontends: &Frontends) -> Option<Policy> {
        references(policy).next()?;
        let write = |rule: &Rule| self.rule(rule, frontends);
        let (ingress, egress) = (
            policy.ingress.iter().map(write).collect(),
            policy.egress.iter().map(write).collect(),
        );
        Some(Policy {
            ingress,
            egress,
            ..policy.clone()
        })
    }

    fn rule(&self, rule: &Rule, frontends: &Frontends) -> Rule {
        let mut written = rule.clone();
        let Match::OneOf(peers) = &rule.peers else {
            return written;
        };
        let mut plain = BTreeSet::new();
        for peer in peers {
            match peer {
                Peer::Service(key) => plain.extend(backends(key, frontends)),
                Peer::AddressGroup(name) => {
                    let group = self.groups.get(name);
                    plain.extend(
                        group
                            .iter()
                            .flat_map(|group| &group.blocks)
                            .map(|block| network(*block)),
                    );
                    if group.is_none_or(|group| !group.complete) && rule.action != Action::Allow {
                        written.action = Action::Deny;
                        written.peers = Match::Any;
                        return written;
                    }
                }
                other => drop(plain.insert(other.clone())),
            }
        }
        written.peers = Match::OneOf(plain.into_iter().collect());
        written
    }
}

fn references(policy: &Policy) -> impl Iterator<Item = Reference> {
    let rules = policy.ingress.iter().chain(&policy.egress);
    let peers = rules.filter_map(|rule| match &rule.peers {
        Match::Any => None,
        Match::OneOf(peers) => Some(peers),
    });
    peers.flatten().filter_map(Reference::of)
}

/// What is behind a Service.
fn backends(key: &WorkloadKey, frontends: &Frontends) -> Vec<Peer> {
    let Some(service) = frontends.service(key) else {
        return Vec::new();
    };
    let Some(selector) = &service.selector else {
        return frontends.backends(key).map(|address| network(address.into())).collect();
    };
    let requirement = |(key, value): (&String, &String)| Requirement {
        key: key.clone(),
        operator: Operator::In(BTreeSet::from([value.clone()])),
    };
    vec![Peer::Pods(PodMatch {
        namespaces: NamespaceMatch::Name(key.namespace.clone()),
        pods: LabelSelector(selector.iter().map(requirement).collect()),
        service_accounts: Match::Any,
    })]
}

fn network(cidr: IpNetwork) -> Peer {
    Peer::Network {
        cidr,
        except: BTreeSet::new(),
    }
}

impl Frontends {
    /// Addresses in the slices of a Service.
    fn backends(&self, key: &WorkloadKey) -> impl Iterator<Item = IpAddr> {
        let addresses: BTreeSet<IpAddr> = self
            .slices_of(key)
            .flat_map(|slice| slice.addresses.iter().copied())
            .collect();
        addresses.into_iter()
    }
}
