//! The node itself as an endpoint: its devices are those that lead out of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_policy::{model::WorkloadKey, plan::LocalEndpoint};

use super::Endpoints;

/// What is known of the node as an endpoint.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) key: WorkloadKey,
    /// Names by index.
    devices: BTreeMap<u32, String>,
    /// End of the adoption window given to its devices.
    pub(super) adopt_until: u64,
}

impl Host {
    /// What the planner is to know; `None` while no device is found.
    pub(super) fn local(&self) -> Option<(WorkloadKey, LocalEndpoint)> {
        let (first, _) = self.devices.first_key_value()?;
        let local = LocalEndpoint {
            ifindex: *first,
            more: self.devices.keys().copied().filter(|device| device != first).collect(),
            adopt_until: self.adopt_until,
            ..LocalEndpoint::default()
        };
        Some((self.key.clone(), local))
    }
}

impl Endpoints {
    /// The state has the node as an endpoint.
    pub(super) fn want_host(&mut self, key: &WorkloadKey) {
        if self.host.as_ref().is_some_and(|host| host.key == *key) {
            return;
        }
        self.host = Some(Host {
            key: key.clone(),
            devices: BTreeMap::new(),
            adopt_until: 0,
        });
        self.read_own();
        self.look_host();
    }

    /// Looks which devices lead out; true when they are others than before.
    pub(super) fn look_host(&mut self) -> bool {
        let Some(host) = &mut self.host else { return false };
        match self.here.leading_out() {
            Ok(found) => {
                let changed = host.devices != found;
                host.devices = found;
                changed
            }
            Err(error) => {
                tracing::warn!("looking which devices lead out of the node: {error}");
                false
            }
        }
    }

    /// Devices that lead out, while the node is an endpoint.
    pub(crate) fn leading_out(&self) -> impl Iterator<Item = (&u32, &String)> {
        self.host.iter().flat_map(|host| &host.devices)
    }

    /// Who the node is as an endpoint.
    pub(crate) fn host(&self) -> Option<&WorkloadKey> {
        self.host.as_ref().map(|host| &host.key)
    }

    /// Every address of the node's own devices but loopback's, while it is an endpoint; else none.
    pub(crate) fn host_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.host.iter().flat_map(|_| self.all_own.iter().copied())
    }

    /// Opens the adoption window where a device that leads out is not judged yet: its connections are older than our flows.
    pub(crate) fn open_host_adoption(&mut self, until: u64, known: &BTreeSet<u32>) {
        if let Some(host) = &mut self.host
            && host.devices.keys().any(|device| !known.contains(device))
        {
            host.adopt_until = until;
        }
    }
}
