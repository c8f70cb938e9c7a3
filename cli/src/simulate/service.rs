//! Services: what is behind a frontend, and one answer for all of it.

use std::sync::Arc;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bulkhead_policy::model::{
    EndpointSlice, Object, Protocol, Service, ServicePort, TargetPort, Workload, WorkloadKey,
};

use super::answer::{Answer, Verdict};

/// The Services of a cluster.
#[derive(Default)]
pub(super) struct Services {
    all: Vec<Service>,
    frontends: BTreeMap<IpAddr, usize>,
    slices: BTreeMap<WorkloadKey, Vec<EndpointSlice>>,
    workloads: BTreeMap<String, Vec<Arc<Workload>>>,
}

/// An address and port behind a frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Backend {
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl Services {
    pub(super) fn new(objects: &[Object]) -> Self {
        let mut services = Self::default();
        for object in objects {
            match object {
                Object::Service(service) => {
                    let frontends = service.addresses.iter().map(|address| (*address, services.all.len()));
                    services.frontends.extend(frontends);
                    services.all.push(service.clone());
                }
                Object::EndpointSlice(slice) => {
                    let service = WorkloadKey {
                        namespace: slice.key.namespace.clone(),
                        name: slice.service.clone(),
                    };
                    services.slices.entry(service).or_default().push(slice.clone());
                }
                _ => {}
            }
        }
        // Pods are looked up by a Service's selector only, and in its namespace.
        let namespaces: BTreeSet<&str> = services.all.iter().map(|it| it.key.namespace.as_str()).collect();
        let mut workloads: BTreeMap<String, Vec<Arc<Workload>>> = BTreeMap::new();
        for object in objects {
            if let Object::Workload(workload) = object
                && namespaces.contains(workload.key.namespace.as_str())
            {
                workloads
                    .entry(workload.key.namespace.clone())
                    .or_default()
                    .push(Arc::clone(workload));
            }
        }
        Self { workloads, ..services }
    }

    /// The Service whose frontend has the address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Service> {
        self.frontends.get(&address).and_then(|index| self.all.get(*index))
    }

    /// What is behind a port of a frontend: the Service's `EndpointSlice`s where there are any, else the pods it selects. `Err` says why a
    /// connection leads nowhere.
    pub(super) fn backends(
        &self,
        service: &Service,
        v4: bool,
        port: u16,
        protocol: Protocol,
    ) -> Result<Vec<Backend>, String> {
        let key = &service.key;
        let Some(frontend) = service
            .ports
            .iter()
            .find(|it| it.port == port && it.protocol == protocol)
        else {
            return Err(format!("service {key} has no port {port}/{}", word(protocol)));
        };
        let backends = match self.slices.get(key) {
            Some(slices) => from_slices(slices, frontend),
            None => self.selected(service, frontend),
        };
        let backends: Vec<Backend> = backends
            .into_iter()
            .filter(|backend| backend.address.is_ipv4() == v4)
            .collect();
        if backends.is_empty() {
            return Err(format!(
                "service {key} has no backend for port {port}/{}",
                word(protocol)
            ));
        }
        Ok(backends)
    }

    fn selected(&self, service: &Service, frontend: &ServicePort) -> BTreeSet<Backend> {
        let Some(selector) = &service.selector else {
            return BTreeSet::new();
        };
        let pods = self.workloads.get(&service.key.namespace).into_iter().flatten();
        let chosen = pods.filter(|pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)));
        chosen
            .filter_map(|pod| Some((pod, target(pod, frontend)?)))
            .flat_map(|(pod, port)| {
                pod.addresses.iter().map(move |address| Backend {
                    address: *address,
                    port,
                })
            })
            .collect()
    }
}

fn target(pod: &Workload, frontend: &ServicePort) -> Option<u16> {
    match &frontend.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            let named = pod
                .named_ports
                .iter()
                .find(|port| port.name == *name && port.protocol == frontend.protocol);
            named.map(|port| port.number)
        }
    }
}

fn from_slices(slices: &[EndpointSlice], frontend: &ServicePort) -> BTreeSet<Backend> {
    let of_slice = |slice: &EndpointSlice| {
        let port = slice
            .ports
            .iter()
            .find(|port| port.name == frontend.name && port.protocol == frontend.protocol);
        let port = port.map(|port| port.number);
        slice
            .addresses
            .clone()
            .into_iter()
            .filter_map(move |address| Some(Backend { address, port: port? }))
    };
    slices.iter().flat_map(of_slice).collect()
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// One answer for all backends: allowed only if all are, because the sender does not choose.
pub(super) fn together(service: &WorkloadKey, answers: impl Iterator<Item = Answer>) -> Answer {
    let answers: Vec<Answer> = answers.collect();
    let allowed = answers
        .iter()
        .filter(|answer| answer.verdict == Verdict::Allowed)
        .count();
    let total = answers.len();
    let decisive = answers
        .iter()
        .find(|answer| answer.verdict == Verdict::Denied)
        .or_else(|| answers.first());
    let Some(decisive) = decisive.cloned() else {
        return denied(&format!("service {service} has no backend"));
    };
    let backends = if total == 1 {
        "its one backend".to_owned()
    } else {
        format!("{total} backends")
    };
    let words = match allowed {
        0 => format!("denied by {backends}"),
        _ if allowed == total => format!("allowed by {backends}"),
        _ => format!("mixed, and so denied: {allowed} of {backends} allow it"),
    };
    Answer {
        reason: format!("{}: service {service}: {words}", decisive.reason),
        ..decisive
    }
}

/// A connection that leads nowhere.
pub(super) fn denied(problem: &str) -> Answer {
    Answer {
        verdict: Verdict::Denied,
        egress: None,
        ingress: None,
        reason: problem.to_owned(),
    }
}
