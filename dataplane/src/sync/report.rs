//! What the node holds, in the words of the stream and of `GetEndpoints`.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError},
};

use bulkhead_policy::{
    digest::Digest,
    model::WorkloadKey,
    state::{Endpoint, PeerId, State},
};
use bulkhead_proto::{
    convert::address_to_bytes,
    v1::{AnnouncedEndpoint, EndpointGeneration, EndpointStatus, WorkloadName},
};

use super::{Sync, mirror::Live};
use crate::endpoints::{Device, Pod};

impl Sync {
    /// Tells the stream and the status what is so now.
    pub(super) fn publish(&mut self) {
        for (_, device) in self.endpoints.devices() {
            self.shared.devices.learn(device.ifindex, &device.name);
        }
        for (ifindex, name) in self.endpoints.leading_out() {
            self.shared.devices.learn(*ifindex, name);
        }
        self.holding.generations = self.generations();
        self.holding.announced = self.announced();
        self.holding.own = self.endpoints.own_addresses().collect();
        self.holding.unmanaged = self.unmanaged();
        self.holding.trial = self.confirm.trial.as_ref().map(|trial| trial.number);
        self.holding.reverted = self.confirm.reverted();
        self.answer_waiters();
        let holding = &self.holding;
        self.shared.holding.send_if_modified(|old| {
            let changed = old != holding;
            if changed {
                old.clone_from(holding);
            }
            changed
        });
        *self.shared.usage.lock().unwrap_or_else(PoisonError::into_inner) = self.planner.usage();
    }

    fn generations(&self) -> Vec<EndpointGeneration> {
        let one = |(key, endpoint): (&WorkloadKey, &Arc<Endpoint>)| {
            let (live, why) = self.live(key);
            let past = self.past(key);
            EndpointGeneration {
                workload: Some(workload(key)),
                pod_uid: endpoint.uid.clone(),
                generation: live.map_or(0, |live| live.generation),
                enforced: live.is_some() && past.is_none(),
                bypassed: past.is_some(),
                why: past.unwrap_or(why),
            }
        };
        self.planner.state().endpoints.iter().map(one).collect()
    }

    /// An endpoint's place in the kernel when it is enforced, else why it is not.
    pub(super) fn live(&self, key: &WorkloadKey) -> (Option<Live>, String) {
        if key.is_node() {
            return self.live_host();
        }
        match self.endpoints.device(key) {
            None => (None, "not wanted on this node".to_owned()),
            Some(Err(why)) => (None, why.to_owned()),
            Some(Ok(device)) if !self.attached.contains(&device.ifindex) => {
                (None, format!("device {}: programs are not attached", device.name))
            }
            Some(Ok(device)) => match self.mirror.of_device(device.ifindex) {
                Some(live) => (Some(live), String::new()),
                None => (
                    None,
                    format!("device {}: has no configuration in the kernel", device.name),
                ),
            },
        }
    }

    /// Why packets of an endpoint are not judged although its device has our programs; `None` = they are, as far as is seen.
    fn past(&self, key: &WorkloadKey) -> Option<String> {
        let device = self.endpoints.device(key)?.ok()?;
        self.canary.past(device.ifindex, &device.name)
    }

    /// Everyone who is here: pods that the runtime or the CNI plugin named, wanted or not, and devices that annotations named.
    fn announced(&self) -> Vec<AnnouncedEndpoint> {
        let pods = self.endpoints.pods();
        let of_pod = |pod: &Pod| {
            let device = self.endpoints.device(&pod.key).and_then(Result::ok);
            AnnouncedEndpoint {
                workload: Some(workload(&pod.key)),
                pod_uid: pod.uid.clone(),
                addresses: pod.place.addresses.iter().map(|ip| address_to_bytes(*ip)).collect(),
                device: device.map_or_else(String::new, |device| device.name.clone()),
                ifindex: device.map_or(0, |device| device.ifindex),
                image_digests: pod.images.iter().cloned().collect(),
                assigned: true,
            }
        };
        let endpoints = &self.planner.state().endpoints;
        let of_device = |(key, device): (&WorkloadKey, &Device)| AnnouncedEndpoint {
            workload: Some(workload(key)),
            pod_uid: endpoints
                .get(key)
                .map_or_else(String::new, |endpoint| endpoint.uid.clone()),
            // Link-local ones mean something on the device only; no pod declares them.
            addresses: device
                .addresses
                .iter()
                .filter(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()))
                .map(|ip| address_to_bytes(*ip))
                .collect(),
            device: device.name.clone(),
            ifindex: device.ifindex,
            image_digests: Vec::new(),
            assigned: false,
        };
        let named = self.endpoints.devices().filter(|(key, _)| pods.get(key).is_none());
        pods.iter().map(of_pod).chain(named.map(of_device)).collect()
    }

    pub(super) fn describe(&self) -> Vec<EndpointStatus> {
        let state = self.planner.state();
        let policies = |name: &Digest| {
            state
                .rulesets
                .get(name)
                .map(|ruleset| ruleset.policies.clone())
                .unwrap_or_default()
        };
        let one = |(key, endpoint): (&WorkloadKey, &Arc<Endpoint>)| {
            let (live, error) = self.live(key);
            let device = self.endpoints.device(key).and_then(Result::ok);
            let leading_out = self.endpoints.leading_out().filter(|_| key.is_node());
            let names: Vec<&str> = leading_out.map(|(_, name)| name.as_str()).collect();
            let identity = live.map_or(0, |live| live.identity);
            let past = self.past(key);
            EndpointStatus {
                workload: Some(workload(key)),
                pod_uid: endpoint.uid.clone(),
                addresses: endpoint.addresses.iter().map(ToString::to_string).collect(),
                device: device.map_or_else(|| names.join(","), |device| device.name.clone()),
                ifindex: device.map_or(0, |device| device.ifindex),
                slot: live.map_or(0, |live| live.slot),
                identity,
                identity_name: endpoint.identity.to_string(),
                identity_atoms: atoms(state, endpoint),
                egress_ruleset: endpoint.egress.short(),
                ingress_ruleset: endpoint.ingress.short(),
                egress_policies: policies(&endpoint.egress),
                ingress_policies: policies(&endpoint.ingress),
                generation: live.map_or(0, |live| live.generation),
                enforced: live.is_some() && past.is_none(),
                error: past.unwrap_or(error),
            }
        };
        state.endpoints.iter().map(one).collect()
    }
}

fn atoms(state: &State, endpoint: &Endpoint) -> Vec<String> {
    match endpoint.identity {
        PeerId::Identity(digest) => state
            .identities
            .get(&digest)
            .map(|identity| identity.atoms.clone())
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

fn workload(key: &WorkloadKey) -> WorkloadName {
    WorkloadName {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}
