//! Declared objects, and what nodes announce about them: an announcement is believed only as far as the declaration lets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_policy::model::{Event, Node, Object, ObjectKey, Workload, WorkloadKey};
use bulkhead_proto::{
    convert::{address_from_bytes, address_to_bytes},
    v1,
};

/// Own addresses one node may announce: a point-to-point CNI gives one to each pod's device.
const OWN_MAX: usize = 4096;
/// Endpoints one node may announce; the kernel's tables hold no more.
pub(crate) const ANNOUNCED_MAX: usize = 4096;
/// Addresses one endpoint may announce.
const ADDRESSES_MAX: usize = 16;

/// What a node says of a workload.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Announced {
    node: String,
    uid: String,
    addresses: BTreeSet<IpAddr>,
    /// The node's CNI gave the pod these addresses: newer than what the API shows, which learns of them later.
    assigned: bool,
}

/// Before all workloads.
const FIRST_WORKLOAD: WorkloadKey = WorkloadKey {
    namespace: String::new(),
    name: String::new(),
};

/// Everything one node announced last.
type Said = BTreeMap<WorkloadKey, v1::AnnouncedEndpoint>;

/// Declared objects that announcements are checked against.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    workloads: BTreeMap<WorkloadKey, Arc<Workload>>,
    nodes: BTreeMap<String, Node>,
    /// What nodes say are addresses of their own devices.
    own: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Who declares an address.
    declared: BTreeSet<(IpAddr, WorkloadKey)>,
    /// What nodes announce and are believed.
    announced: BTreeMap<WorkloadKey, Announced>,
    /// Whose an announced address is.
    holders: BTreeMap<IpAddr, WorkloadKey>,
    /// What nodes announce, believed or not: what is not may be as soon as an object is seen, or gone.
    said: BTreeMap<String, Said>,
    /// Node and name of what is not believed.
    doubted: BTreeSet<(String, WorkloadKey)>,
    namespaces: BTreeSet<String>,
    services: BTreeSet<WorkloadKey>,
    endpoint_slices: BTreeSet<WorkloadKey>,
}

impl Facts {
    /// Takes what a source says; the same events come back with announced addresses filled in, and with those of workloads
    /// whose addresses follow from them.
    pub(crate) fn take(&mut self, events: Vec<Event>) -> Vec<Event> {
        let mut taken = Vec::with_capacity(events.len());
        for event in events {
            match event {
                Event::Upsert(object) => {
                    let others = self.upsert(&object);
                    taken.push(Event::Upsert(self.fill_in(object)));
                    taken.extend(self.changed(others));
                }
                Event::Delete(key) => {
                    let others = self.delete(&key);
                    taken.push(Event::Delete(key));
                    taken.extend(self.changed(others));
                }
                Event::Resync(objects) => {
                    self.clear_declared();
                    for object in &objects {
                        self.upsert(object);
                    }
                    let objects = objects.into_iter().map(|object| self.fill_in(object));
                    taken.push(Event::Resync(objects.collect()));
                }
            }
        }
        taken
    }

    /// Who declares an address.
    fn declarers(&self, address: IpAddr) -> impl Iterator<Item = &WorkloadKey> {
        let first = (address, FIRST_WORKLOAD);
        let declared = self.declared.range(first..);
        declared
            .take_while(move |(other, _)| *other == address)
            .map(|(_, key)| key)
    }

    fn changed(&self, keys: BTreeSet<WorkloadKey>) -> impl Iterator<Item = Event> {
        keys.into_iter().filter_map(|key| {
            Some(Event::Upsert(Object::Workload(
                self.effective(self.workloads.get(&key)?),
            )))
        })
    }

    fn clear_declared(&mut self) {
        let before = std::mem::take(self);
        *self = Self {
            announced: before.announced,
            holders: before.holders,
            said: before.said,
            own: before.own,
            doubted: before.doubted,
            ..Self::default()
        };
    }

    fn fill_in(&self, object: Object) -> Object {
        match object {
            Object::Workload(workload) => Object::Workload(self.effective(&workload)),
            Object::Node(node) => Object::Node(self.with_own(&node)),
            other => other,
        }
    }

    /// Notes an object; gives other workloads whose addresses change by it.
    fn upsert(&mut self, object: &Object) -> BTreeSet<WorkloadKey> {
        match object {
            Object::Workload(workload) => {
                self.undeclare(&workload.key);
                for address in &workload.addresses {
                    self.declared.insert((*address, workload.key.clone()));
                }
                self.workloads.insert(workload.key.clone(), Arc::clone(workload));
                return self.believe_again(&workload.key);
            }
            Object::Node(node) => drop(self.nodes.insert(node.name.clone(), node.clone())),
            Object::Namespace(namespace) => drop(self.namespaces.insert(namespace.name.clone())),
            Object::Service(service) => drop(self.services.insert(service.key.clone())),
            Object::EndpointSlice(slice) => drop(self.endpoint_slices.insert(slice.key.clone())),
            Object::Policy(_) | Object::AddressGroup(_) => {}
        }
        BTreeSet::new()
    }

    /// Forgets a workload's declaration.
    fn undeclare(&mut self, key: &WorkloadKey) {
        let Some(workload) = self.workloads.remove(key) else {
            return;
        };
        for address in &workload.addresses {
            self.declared.remove(&(*address, key.clone()));
        }
    }

    /// An object came or went: looks again at what is not believed. Gives the workloads whose addresses change.
    fn believe_again(&mut self, about: &WorkloadKey) -> BTreeSet<WorkloadKey> {
        let mut changed = BTreeSet::new();
        for (node, key) in self.doubted.clone() {
            let Some(said) = self.said.get(&node) else { continue };
            let Some(endpoint) = said.get(&key) else { continue };
            if let Ok(announced) = self.check(&node, &key, endpoint, said) {
                self.doubted.remove(&(node, key.clone()));
                for address in &announced.addresses {
                    changed.extend(self.declarers(*address).cloned());
                }
                self.hold(key.clone(), announced);
                changed.insert(key);
            }
        }
        changed.remove(about);
        changed
    }

    fn hold(&mut self, key: WorkloadKey, announced: Announced) {
        for address in &announced.addresses {
            self.holders.insert(*address, key.clone());
        }
        self.announced.insert(key, announced);
    }

    fn let_go(&mut self, key: &WorkloadKey) {
        for address in self.announced.remove(key).into_iter().flat_map(|old| old.addresses) {
            if self.holders.get(&address) == Some(key) {
                self.holders.remove(&address);
            }
        }
    }

    fn delete(&mut self, key: &ObjectKey) -> BTreeSet<WorkloadKey> {
        match key {
            ObjectKey::Workload(key) => {
                self.undeclare(key);
                self.let_go(key);
                return self.believe_again(key);
            }
            ObjectKey::Node(name) => drop(self.nodes.remove(name)),
            ObjectKey::Namespace(name) => drop(self.namespaces.remove(name)),
            ObjectKey::Service(key) => drop(self.services.remove(key)),
            ObjectKey::EndpointSlice(key) => drop(self.endpoint_slices.remove(key)),
            ObjectKey::Policy(_) | ObjectKey::AddressGroup(_) => {}
        }
        BTreeSet::new()
    }

    /// The workload with the addresses its node announced, where these are newer than its own: the CNI gave them, or it has
    /// none. An address that its node's CNI has given to another pod since is not its own any more.
    fn effective(&self, workload: &Arc<Workload>) -> Arc<Workload> {
        let mut workload = Arc::clone(workload);
        if let Some(announced) = self.announced.get(&workload.key)
            && workload.node.as_ref() == Some(&announced.node)
            && same_uid(&workload.uid, &announced.uid)
            && (workload.addresses.is_empty() || (announced.assigned && !announced.addresses.is_empty()))
        {
            if workload.addresses != announced.addresses {
                Arc::make_mut(&mut workload).addresses.clone_from(&announced.addresses);
            }
        } else {
            let (key, node) = (&workload.key, workload.node.as_deref());
            let moved = |address: &&IpAddr| self.moved(address, key, node);
            let moved: Vec<IpAddr> = workload.addresses.iter().filter(moved).copied().collect();
            for address in moved {
                Arc::make_mut(&mut workload).addresses.remove(&address);
            }
        }
        workload
    }

    /// True when a node's CNI has given an address that a pod of that node declares to another of its pods.
    fn moved(&self, address: &IpAddr, from: &WorkloadKey, node: Option<&str>) -> bool {
        let Some(holder) = self.holders.get(address).filter(|holder| *holder != from) else {
            return false;
        };
        self.announced
            .get(holder)
            .is_some_and(|announced| announced.assigned && Some(announced.node.as_str()) == node)
    }

    /// Takes everything a node announces; gives the events that follow and what was not believed.
    pub(crate) fn announce(
        &mut self,
        node: &str,
        endpoints: Vec<v1::AnnouncedEndpoint>,
    ) -> (Vec<Event>, Vec<v1::announcement_result::Rejection>) {
        let said: Said = endpoints
            .into_iter()
            .take(ANNOUNCED_MAX)
            .map(|endpoint| (endpoint.workload.clone().unwrap_or_default().into(), endpoint))
            .collect();
        let mut rejected = Vec::new();
        let mut believed = BTreeMap::new();
        let mut doubted = BTreeSet::new();
        for (key, endpoint) in &said {
            match self.check(node, key, endpoint, &said) {
                Ok(announced) => drop(believed.insert(key.clone(), announced)),
                Err(reason) => {
                    doubted.insert((node.to_owned(), key.clone()));
                    rejected.push(v1::announcement_result::Rejection {
                        workload: Some(key.into()),
                        reason,
                    });
                }
            }
        }
        let said_before = self.said.get(node).into_iter().flatten();
        let before: BTreeMap<&WorkloadKey, &Announced> = said_before
            .filter_map(|(key, _)| self.announced.get_key_value(key).filter(|(_, old)| old.node == node))
            .collect();
        let gone: BTreeSet<WorkloadKey> = before.keys().map(|key| (*key).clone()).collect();
        let addresses = before.values().copied().chain(believed.values());
        let holders = addresses.flat_map(|announced| announced.addresses.iter().map(|at| self.declarers(*at)));
        // Everyone whose addresses may follow from this announcement.
        let touched: BTreeSet<WorkloadKey> = holders
            .flatten()
            .chain(&gone)
            .chain(believed.keys())
            .filter(|key| self.workloads.contains_key(*key))
            .cloned()
            .collect();
        let addresses_of = |facts: &Self, key: &WorkloadKey| {
            facts
                .workloads
                .get(key)
                .map(|workload| facts.effective(workload).addresses.clone())
        };
        let were: Vec<_> = touched.iter().map(|key| addresses_of(self, key)).collect();
        for key in &gone {
            self.let_go(key);
        }
        for (key, announced) in believed {
            self.hold(key, announced);
        }
        self.doubted.retain(|(by, _)| by != node);
        self.doubted.extend(doubted);
        self.said.insert(node.to_owned(), said);
        let changed = touched
            .into_iter()
            .zip(were)
            .filter(|(key, were)| addresses_of(self, key) != *were)
            .map(|(key, _)| key);
        let changed = changed.collect();
        (self.changed(changed).collect(), rejected)
    }

    /// Takes what a node says are addresses of its own devices: believed inside of its pod ranges, where they tell its bridge
    /// from a pod that is not known yet.
    pub(crate) fn announce_own(&mut self, name: &str, addresses: &[Vec<u8>]) -> Option<Event> {
        let own = addresses
            .iter()
            .take(OWN_MAX)
            .filter_map(|bytes| address_from_bytes("node_addresses", bytes).ok());
        let own: BTreeSet<IpAddr> = own.collect();
        let before = self.nodes.get(name).map(|node| self.with_own(node));
        self.own.insert(name.to_owned(), own);
        let now = self.nodes.get(name).map(|node| self.with_own(node));
        now.filter(|now| before.as_ref() != Some(now))
            .map(|node| Event::Upsert(Object::Node(node)))
    }

    /// A node with those of its own addresses that are believed. A pod that declares one later contests it.
    fn with_own(&self, node: &Node) -> Node {
        let mut node = node.clone();
        let own = self.own.get(&node.name).into_iter().flatten();
        let inside = own.filter(|address| node.pod_ranges.iter().any(|range| range.contains(**address)));
        let free =
            inside.filter(|address| self.declarers(**address).next().is_none() && !self.holders.contains_key(*address));
        let believed: Vec<IpAddr> = free.copied().collect();
        node.addresses.extend(believed);
        node
    }

    /// Who else has an address that `node` announces for `key`.
    fn owner(
        &self,
        node: &str,
        key: &WorkloadKey,
        endpoint: &v1::AnnouncedEndpoint,
        said: &Said,
        address: IpAddr,
    ) -> Option<String> {
        if let Some(other) = self.nodes.values().find(|other| other.addresses.contains(&address)) {
            return Some(format!("node {}", other.name));
        }
        if let Some(holder) = self.holders.get(&address)
            && let Some(by) = self.announced.get(holder).filter(|by| by.node != node)
        {
            return Some(format!("pod {holder}, as node {} says", by.node));
        }
        let bytes = address_to_bytes(address);
        let other = self.declarers(address).find(|other| {
            // The node's CNI has taken it from a pod of its own that it does not announce with that address.
            let moved = endpoint.assigned
                && self
                    .workloads
                    .get(*other)
                    .is_some_and(|other| other.node.as_deref() == Some(node))
                && said.get(*other).is_none_or(|said| !said.addresses.contains(&bytes));
            *other != key && !moved
        });
        other.map(|other| format!("pod {other}"))
    }

    fn check(
        &self,
        node: &str,
        key: &WorkloadKey,
        endpoint: &v1::AnnouncedEndpoint,
        said: &Said,
    ) -> Result<Announced, String> {
        let workload = self.workloads.get(key).ok_or(bulkhead_proto::NOT_DECLARED)?;
        if workload.node.as_deref() != Some(node) {
            let on = workload.node.as_deref().unwrap_or("no node");
            return Err(format!("the pod is on {on}, not on {node}"));
        }
        if !same_uid(&workload.uid, &endpoint.pod_uid) {
            return Err(format!("the pod's uid is {}, not {}", workload.uid, endpoint.pod_uid));
        }
        if endpoint.addresses.len() > ADDRESSES_MAX {
            return Err(format!(
                "{} addresses; at most {ADDRESSES_MAX} are taken",
                endpoint.addresses.len()
            ));
        }
        let addresses: BTreeSet<IpAddr> = endpoint
            .addresses
            .iter()
            .map(|bytes| address_from_bytes("addresses", bytes).map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?;
        // What a device says of itself is no news where the API has an answer; what the CNI gave is.
        let by_range = endpoint.assigned || workload.addresses.is_empty();
        for address in addresses
            .iter()
            .filter(|address| !workload.addresses.contains(*address))
        {
            if !by_range {
                let own = workload.addresses.first().map(ToString::to_string).unwrap_or_default();
                return Err(format!("{address} is not an address of the pod, which has {own}"));
            }
            if !self.in_range(node, *address) {
                return Err(format!("{address} is in none of the pod ranges of node {node}"));
            }
            if let Some(owner) = self.owner(node, key, endpoint, said, *address) {
                return Err(format!("{address} belongs to {owner}"));
            }
        }
        Ok(Announced {
            node: node.to_owned(),
            uid: endpoint.pod_uid.clone(),
            addresses,
            assigned: endpoint.assigned,
        })
    }

    /// A node that declares no ranges may announce any address.
    fn in_range(&self, node: &str, address: IpAddr) -> bool {
        self.nodes.get(node).is_none_or(|node| {
            node.pod_ranges.is_empty() || node.pod_ranges.iter().any(|range| range.contains(address))
        })
    }

    /// Endpoints the node announces and is believed.
    pub(crate) fn announced_by(&self, node: &str) -> usize {
        let said = self.said.get(node).into_iter().flatten();
        let believed = said.filter(|(key, _)| self.announced.get(*key).is_some_and(|announced| announced.node == node));
        believed.count()
    }

    /// Fills in how many objects there are.
    pub(crate) fn sizes(&self, sizes: &mut v1::IndexSizes) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        sizes.namespaces = count(self.namespaces.len());
        sizes.workloads = count(self.workloads.len());
        sizes.nodes = count(self.nodes.len());
        sizes.services = count(self.services.len());
        sizes.endpoint_slices = count(self.endpoint_slices.len());
    }
}

/// A source without uids says nothing about them.
fn same_uid(declared: &str, announced: &str) -> bool {
    declared.is_empty() || announced.is_empty() || declared == announced
}

#[cfg(test)]
mod tests;
