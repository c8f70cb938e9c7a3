//! Declared objects, and what nodes announce about them: an announcement is believed only as far as the declaration lets it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_policy::model::{Event, Node, Object, ObjectKey, Workload, WorkloadKey};
use bulkhead_proto::{convert::address_from_bytes, v1};

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
}

/// Declared objects that announcements are checked against.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    workloads: BTreeMap<WorkloadKey, Workload>,
    nodes: BTreeMap<String, Node>,
    announced: BTreeMap<WorkloadKey, Announced>,
    namespaces: BTreeSet<String>,
    services: BTreeSet<WorkloadKey>,
    endpoint_slices: BTreeSet<WorkloadKey>,
}

impl Facts {
    /// Takes what a source says; the same events come back with announced addresses filled in.
    pub(crate) fn take(&mut self, events: Vec<Event>) -> Vec<Event> {
        events
            .into_iter()
            .map(|event| match event {
                Event::Upsert(object) => Event::Upsert(self.upsert(object)),
                Event::Delete(key) => {
                    self.delete(&key);
                    Event::Delete(key)
                }
                Event::Resync(objects) => {
                    self.clear_declared();
                    Event::Resync(objects.into_iter().map(|object| self.upsert(object)).collect())
                }
            })
            .collect()
    }

    fn clear_declared(&mut self) {
        let announced = std::mem::take(&mut self.announced);
        *self = Self {
            announced,
            ..Self::default()
        };
    }

    fn upsert(&mut self, object: Object) -> Object {
        match &object {
            Object::Workload(workload) => {
                self.workloads.insert(workload.key.clone(), workload.clone());
                return Object::Workload(self.effective(workload));
            }
            Object::Node(node) => drop(self.nodes.insert(node.name.clone(), node.clone())),
            Object::Namespace(namespace) => drop(self.namespaces.insert(namespace.name.clone())),
            Object::Service(service) => drop(self.services.insert(service.key.clone())),
            Object::EndpointSlice(slice) => drop(self.endpoint_slices.insert(slice.key.clone())),
            Object::Policy(_) => {}
        }
        object
    }

    fn delete(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Workload(key) => {
                self.workloads.remove(key);
                self.announced.remove(key);
            }
            ObjectKey::Node(name) => drop(self.nodes.remove(name)),
            ObjectKey::Namespace(name) => drop(self.namespaces.remove(name)),
            ObjectKey::Service(key) => drop(self.services.remove(key)),
            ObjectKey::EndpointSlice(key) => drop(self.endpoint_slices.remove(key)),
            ObjectKey::Policy(_) => {}
        }
    }

    /// The workload with the addresses its node announced, where it has none of its own.
    fn effective(&self, workload: &Workload) -> Workload {
        let mut workload = workload.clone();
        if workload.addresses.is_empty()
            && let Some(announced) = self.announced.get(&workload.key)
            && workload.node.as_ref() == Some(&announced.node)
            && same_uid(&workload.uid, &announced.uid)
        {
            workload.addresses.clone_from(&announced.addresses);
        }
        workload
    }

    /// Takes everything a node announces; gives the events that follow and what was not believed.
    pub(crate) fn announce(
        &mut self,
        node: &str,
        endpoints: Vec<v1::AnnouncedEndpoint>,
    ) -> (Vec<Event>, Vec<v1::announcement_result::Rejection>) {
        let mut rejected = Vec::new();
        let mut believed = BTreeMap::new();
        let owners = self.owners(node);
        for endpoint in endpoints.into_iter().take(ANNOUNCED_MAX) {
            let key: WorkloadKey = endpoint.workload.clone().unwrap_or_default().into();
            match self.check(node, &key, &endpoint, &owners) {
                Ok(addresses) => {
                    let announced = Announced {
                        node: node.to_owned(),
                        uid: endpoint.pod_uid,
                        addresses,
                    };
                    believed.insert(key, announced);
                }
                Err(reason) => {
                    rejected.push(v1::announcement_result::Rejection {
                        workload: Some((&key).into()),
                        reason,
                    });
                }
            }
        }
        let before: Vec<WorkloadKey> = self
            .announced
            .iter()
            .filter(|(_, old)| old.node == node)
            .map(|(key, _)| key.clone())
            .collect();
        let mut touched: BTreeMap<WorkloadKey, Option<Announced>> = before
            .into_iter()
            .map(|key| (key.clone(), self.announced.remove(&key)))
            .collect();
        for (key, announced) in believed {
            let old = self.announced.insert(key.clone(), announced);
            touched.entry(key).or_insert(old);
        }
        let changed = touched
            .into_iter()
            .filter(|(key, old)| self.announced.get(key) != old.as_ref());
        let events = changed.filter_map(|(key, _)| {
            let workload = self.workloads.get(&key)?;
            workload
                .addresses
                .is_empty()
                .then(|| Event::Upsert(Object::Workload(self.effective(workload))))
        });
        (events.collect(), rejected)
    }

    /// Who has an address, but for what `node` itself announced.
    fn owners(&self, node: &str) -> BTreeMap<IpAddr, String> {
        let declared = self.workloads.values().flat_map(|workload| {
            workload
                .addresses
                .iter()
                .map(|address| (*address, format!("pod {}", workload.key)))
        });
        let nodes = self
            .nodes
            .values()
            .flat_map(|node| node.addresses.iter().map(|at| (*at, format!("node {}", node.name))));
        let announced = self
            .announced
            .iter()
            .filter(|(_, by)| by.node != node)
            .flat_map(|(key, by)| {
                by.addresses
                    .iter()
                    .map(move |address| (*address, format!("pod {key}, as node {} says", by.node)))
            });
        declared.chain(nodes).chain(announced).collect()
    }

    fn check(
        &self,
        node: &str,
        key: &WorkloadKey,
        endpoint: &v1::AnnouncedEndpoint,
        owners: &BTreeMap<IpAddr, String>,
    ) -> Result<BTreeSet<IpAddr>, String> {
        let workload = self.workloads.get(key).ok_or("no such pod is declared")?;
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
        let foreign = |address: &&IpAddr| {
            if workload.addresses.is_empty() {
                !self.in_range(node, **address)
            } else {
                !workload.addresses.contains(address)
            }
        };
        if let Some(address) = addresses.iter().find(foreign) {
            return Err(match workload.addresses.first() {
                Some(own) => format!("{address} is not an address of the pod, which has {own}"),
                None => format!("{address} is in none of the pod ranges of node {node}"),
            });
        }
        if workload.addresses.is_empty()
            && let Some((address, owner)) = addresses
                .iter()
                .find_map(|address| Some((address, owners.get(address)?)))
        {
            return Err(format!("{address} belongs to {owner}"));
        }
        Ok(addresses)
    }

    /// A node that declares no ranges may announce any address.
    fn in_range(&self, node: &str, address: IpAddr) -> bool {
        self.nodes.get(node).is_none_or(|node| {
            node.pod_ranges.is_empty() || node.pod_ranges.iter().any(|range| range.contains(address))
        })
    }

    /// Endpoints the node announces and is believed.
    pub(crate) fn announced_by(&self, node: &str) -> usize {
        self.announced
            .values()
            .filter(|announced| announced.node == node)
            .count()
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
