//! The facts as they are now, with the inverted indexes that find whom a change concerns.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::{
    atom::Atom,
    model::{Labels, Namespace, NamespaceMatch, Node, PodMatch, Workload, WorkloadKey, Zone},
    postings::Postings,
    slab::Slab,
};

/// Number of a workload, its own until the end of the step in which it goes.
pub(crate) type WorkloadId = u32;

/// An address in its network.
pub(crate) type Place = (Zone, IpAddr);

/// Who says an address is theirs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Claimant {
    Pod(WorkloadId),
    Node(String),
}

/// What a step has to look at again.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Workloads of which other atoms may hold.
    pub(crate) identities: BTreeSet<WorkloadId>,
    /// Workloads that other policies may select, or whose own facts changed.
    pub(crate) selections: BTreeSet<WorkloadId>,
    /// Addresses whose binding may change.
    pub(crate) places: BTreeSet<Place>,
    /// Nodes that other policies may select, or whose own facts changed.
    pub(crate) nodes: BTreeSet<String>,
}

#[derive(Debug)]
struct Slot {
    key: WorkloadKey,
    workload: Option<Arc<Workload>>,
}

#[derive(Debug)]
struct NamespaceEntry {
    declared: bool,
    labels: Labels,
    workloads: BTreeSet<WorkloadId>,
}

/// All facts.
#[derive(Debug, Default)]
pub(crate) struct Index {
    namespaces: BTreeMap<String, NamespaceEntry>,
    namespaces_by_label: Postings<String>,
    slots: Slab<Slot>,
    ids: BTreeMap<WorkloadKey, WorkloadId>,
    retired: BTreeSet<WorkloadId>,
    pods_by_label: Postings<WorkloadId>,
    pods_by_port: HashMap<String, BTreeSet<WorkloadId>>,
    pods_by_account: HashMap<String, BTreeSet<WorkloadId>>,
    nodes: BTreeMap<String, Arc<Node>>,
    nodes_by_label: Postings<String>,
    /// One entry each: nearly every address has one claimant, and a set of its own would be ten times as large.
    claims: BTreeSet<(Place, Claimant)>,
    pub(crate) dirty: Dirty,
}

impl Index {
    // --- changes --------------------------------------------------------------------------------------------------

    /// Takes a workload as it is now. Returns what it was before.
    pub(crate) fn set_workload(&mut self, key: &WorkloadKey, new: Option<Arc<Workload>>) -> Option<Arc<Workload>> {
        let id = match (self.ids.get(key), &new) {
            (Some(id), _) => *id,
            (None, None) => return None,
            (None, Some(_)) => {
                let id = self.slots.insert(Slot {
                    key: key.clone(),
                    workload: None,
                });
                self.ids.insert(key.clone(), id);
                id
            }
        };
        let old = self.slots.get_mut(id)?.workload.take();
        if old != new {
            self.dirty.selections.insert(id);
            self.dirty.identities.insert(id);
            if let Some(old) = &old {
                self.unfile_workload(id, old);
            }
            match &new {
                Some(new) => self.file_workload(id, new),
                None => drop(self.retired.insert(id)),
            }
        }
        self.slots.get_mut(id)?.workload = new;
        old
    }

    fn file_workload(&mut self, id: WorkloadId, workload: &Workload) {
        self.retired.remove(&id);
        self.pods_by_label.insert(&workload.labels, &id);
        for port in &workload.named_ports {
            self.pods_by_port.entry(port.name.clone()).or_default().insert(id);
        }
        let account = workload.service_account.clone();
        self.pods_by_account.entry(account).or_default().insert(id);
        for address in &workload.addresses {
            self.claim((workload.zone, *address), Claimant::Pod(id));
        }
        let name = &workload.key.namespace;
        if !self.namespaces.contains_key(name) {
            self.declare(name, implied_labels(name), false);
        }
        if let Some(namespace) = self.namespaces.get_mut(name) {
            namespace.workloads.insert(id);
        }
    }

    fn unfile_workload(&mut self, id: WorkloadId, workload: &Workload) {
        self.pods_by_label.remove(&workload.labels, &id);
        for port in &workload.named_ports {
            unfile(&mut self.pods_by_port, &port.name, id);
        }
        unfile(&mut self.pods_by_account, &workload.service_account, id);
        for address in &workload.addresses {
            self.disclaim((workload.zone, *address), &Claimant::Pod(id));
        }
        if let Some(namespace) = self.namespaces.get_mut(&workload.key.namespace) {
            namespace.workloads.remove(&id);
            if namespace.workloads.is_empty() && !namespace.declared {
                self.undeclare(&workload.key.namespace);
            }
        }
    }

    /// Takes a namespace as it is now; `None` when it is gone (which leaves an implied one while it has workloads).
    pub(crate) fn set_namespace(&mut self, name: &str, new: Option<&Namespace>) {
        let declared = new.is_some();
        let labels = new.map_or_else(|| implied_labels(name), |new| new.labels.clone());
        let Some(entry) = self.namespaces.get_mut(name) else {
            if declared {
                self.declare(name, labels, true);
            }
            return;
        };
        entry.declared = declared;
        if entry.labels != labels {
            let old = std::mem::replace(&mut entry.labels, labels.clone());
            self.dirty.selections.extend(&entry.workloads);
            self.dirty.identities.extend(&entry.workloads);
            self.namespaces_by_label.remove(&old, &name.to_owned());
            self.namespaces_by_label.insert(&labels, &name.to_owned());
        }
        if !declared
            && self
                .namespaces
                .get(name)
                .is_some_and(|entry| entry.workloads.is_empty())
        {
            self.undeclare(name);
        }
    }

    fn declare(&mut self, name: &str, labels: Labels, declared: bool) {
        self.namespaces_by_label.insert(&labels, &name.to_owned());
        self.namespaces.insert(
            name.to_owned(),
            NamespaceEntry {
                declared,
                labels,
                workloads: BTreeSet::new(),
            },
        );
    }

    fn undeclare(&mut self, name: &str) {
        if let Some(entry) = self.namespaces.remove(name) {
            self.namespaces_by_label.remove(&entry.labels, &name.to_owned());
        }
    }

    /// Takes a node as it is now. Returns what it was before.
    pub(crate) fn set_node(&mut self, name: &str, new: Option<Arc<Node>>) -> Option<Arc<Node>> {
        let old = self.nodes.remove(name);
        if old == new {
            self.nodes.extend(new.map(|node| (name.to_owned(), node)));
            return old;
        }
        self.dirty.nodes.insert(name.to_owned());
        let claimant = Claimant::Node(name.to_owned());
        if let Some(old) = &old {
            self.nodes_by_label.remove(&old.labels, &name.to_owned());
            old.addresses
                .iter()
                .for_each(|address| self.disclaim((Zone::default(), *address), &claimant));
        }
        if let Some(new) = new {
            self.nodes_by_label.insert(&new.labels, &name.to_owned());
            new.addresses
                .iter()
                .for_each(|address| self.claim((Zone::default(), *address), claimant.clone()));
            self.nodes.insert(name.to_owned(), new);
        }
        old
    }

    fn claim(&mut self, place: Place, claimant: Claimant) {
        self.dirty.places.insert(place);
        self.claims.insert((place, claimant));
    }

    fn disclaim(&mut self, place: Place, claimant: &Claimant) {
        self.dirty.places.insert(place);
        self.claims.remove(&(place, claimant.clone()));
    }

    /// Marks everybody of whom the atom holds: it is asked for the first time, or for the last.
    pub(crate) fn touch_holders(&mut self, atom: &Atom) {
        let dirty = &mut self.dirty;
        match atom {
            Atom::Namespace(name) => {
                dirty
                    .identities
                    .extend(self.namespaces.get(name).into_iter().flat_map(|entry| &entry.workloads));
            }
            Atom::NamespaceLabel(key, test) => {
                let namespaces = self.namespaces_by_label.holding(key, test);
                let entries = namespaces.filter_map(|name| self.namespaces.get(name));
                dirty.identities.extend(entries.flat_map(|entry| &entry.workloads));
            }
            Atom::PodLabel(key, test) => dirty.identities.extend(self.pods_by_label.holding(key, test)),
            Atom::NamedPort(name, _) => dirty
                .identities
                .extend(self.pods_by_port.get(name).into_iter().flatten()),
            Atom::ServiceAccount(names) => {
                let filed = names.iter().filter_map(|name| self.pods_by_account.get(name));
                dirty.identities.extend(filed.flatten());
            }
            Atom::NodeLabel(key, test) => {
                let nodes: Vec<&Arc<Node>> = self
                    .nodes_by_label
                    .holding(key, test)
                    .filter_map(|name| self.nodes.get(name))
                    .collect();
                dirty.nodes.extend(nodes.iter().map(|node| node.name.clone()));
                dirty.places.extend(
                    nodes
                        .iter()
                        .flat_map(|node| &node.addresses)
                        .map(|address| (Zone::default(), *address)),
                );
            }
            Atom::Cidr(cidr) => self.touch_places(*cidr),
        }
    }

    fn touch_places(&mut self, cidr: IpNetwork) {
        let zones: BTreeSet<Zone> = self.zones().collect();
        for zone in zones {
            let last = (zone, cidr.broadcast());
            let inside = self.claims.range(((zone, cidr.network()), FIRST_CLAIMANT)..);
            for (place, claimant) in inside.take_while(|(place, _)| *place <= last) {
                self.dirty.places.insert(*place);
                // The endpoint's own identity is that of its first address.
                if let Claimant::Pod(id) = claimant {
                    self.dirty.identities.insert(*id);
                }
            }
        }
    }

    /// Ends a step: numbers of workloads that are gone may be used again. Returns what the step left to look at.
    pub(crate) fn retire(&mut self) {
        for id in std::mem::take(&mut self.retired) {
            if let Some(slot) = self.slots.remove(id) {
                self.ids.remove(&slot.key);
            }
        }
    }

    /// True when there are no facts, and no posting is left of any.
    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
            && self.namespaces.is_empty()
            && self.nodes.is_empty()
            && self.claims.is_empty()
            && self.pods_by_port.is_empty()
            && self.pods_by_account.is_empty()
            && self.pods_by_label.is_empty()
            && self.namespaces_by_label.is_empty()
            && self.nodes_by_label.is_empty()
    }

    // --- questions ------------------------------------------------------------------------------------------------

    pub(crate) fn workload(&self, id: WorkloadId) -> Option<&Arc<Workload>> {
        self.slots.get(id)?.workload.as_ref()
    }

    pub(crate) fn workload_key(&self, id: WorkloadId) -> Option<&WorkloadKey> {
        self.slots.get(id).map(|slot| &slot.key)
    }

    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.ids.values().filter_map(|id| self.workload(*id))
    }

    pub(crate) fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// Names of the namespaces somebody declared.
    pub(crate) fn declared_namespaces(&self) -> impl Iterator<Item = &String> {
        self.namespaces
            .iter()
            .filter(|(_, entry)| entry.declared)
            .map(|(name, _)| name)
    }

    /// Labels of a namespace, implied ones when nobody declared it; `None` when there is no such namespace.
    pub(crate) fn namespace_labels(&self, name: &str) -> Option<&Labels> {
        self.namespaces.get(name).map(|entry| &entry.labels)
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&String, &Labels)> {
        self.namespaces.iter().map(|(name, entry)| (name, &entry.labels))
    }

    pub(crate) fn claimants(&self, place: Place) -> impl Iterator<Item = &Claimant> {
        let claims = self.claims.range((place, FIRST_CLAIMANT)..);
        claims
            .take_while(move |(other, _)| *other == place)
            .map(|(_, claimant)| claimant)
    }

    /// Addresses that somebody claims, each once.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        let mut last = None;
        let places = self.claims.iter().map(|(place, _)| *place);
        places.filter(move |place| last.replace(*place) != Some(*place))
    }

    /// Zones somebody has an address in, in order.
    pub(crate) fn zones(&self) -> impl Iterator<Item = Zone> {
        let mut from = Some(Zone(0));
        std::iter::from_fn(move || {
            let first = ((from?, FIRST_ADDRESS), FIRST_CLAIMANT);
            let ((zone, _), _) = self.claims.range(first..).next()?;
            from = zone.0.checked_add(1).map(Zone);
            Some(*zone)
        })
    }

    /// The workloads a selector matches.
    pub(crate) fn select(&self, selector: &PodMatch) -> Vec<WorkloadId> {
        let matches = |id: &WorkloadId| self.matches(selector, *id);
        let by_label = self.pods_by_label.candidates(&selector.pods);
        let namespaces: Option<Vec<&NamespaceEntry>> = match &selector.namespaces {
            NamespaceMatch::Name(name) => Some(self.namespaces.get(name).into_iter().collect()),
            NamespaceMatch::Labels(labels) => {
                let names = self.namespaces_by_label.candidates(labels);
                names.map(|names| names.into_iter().filter_map(|name| self.namespaces.get(name)).collect())
            }
        };
        let in_namespaces = namespaces
            .as_ref()
            .map(|list| list.iter().map(|entry| entry.workloads.len()).sum());
        match (by_label, namespaces) {
            (Some(pods), _) if in_namespaces.is_none_or(|count: usize| pods.len() <= count) => {
                pods.into_iter().copied().filter(matches).collect()
            }
            (_, Some(list)) => list
                .iter()
                .flat_map(|entry| &entry.workloads)
                .copied()
                .filter(matches)
                .collect(),
            (_, None) => self.ids.values().copied().filter(matches).collect(),
        }
    }

    /// True when the selector matches the workload.
    pub(crate) fn matches(&self, selector: &PodMatch, id: WorkloadId) -> bool {
        self.workload(id).is_some_and(|workload| {
            let namespace = &workload.key.namespace;
            let labels = self.namespace_labels(namespace);
            labels.is_some_and(|labels| selector.matches(labels, workload))
        })
    }
}

fn unfile(filed: &mut HashMap<String, BTreeSet<WorkloadId>>, name: &str, id: WorkloadId) {
    if let Some(ids) = filed.get_mut(name) {
        ids.remove(&id);
        if ids.is_empty() {
            filed.remove(name);
        }
    }
}

/// Before all addresses.
const FIRST_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
/// Before all claimants.
const FIRST_CLAIMANT: Claimant = Claimant::Pod(0);

/// Labels of a namespace nobody declared: the one the API server gives to every namespace.
pub(crate) fn implied_labels(name: &str) -> Labels {
    Labels::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())])
}
