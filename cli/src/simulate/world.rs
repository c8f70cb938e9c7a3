//! A cluster to ask questions about.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use bulkhead_crds::{HostPod, Lowered};
use bulkhead_policy::{
    fqdn::{Names, Pattern},
    lease::{Lease, Profile},
    model::{Direction, Guard, Object, Side, Workload, WorkloadKey, Zone},
    probe::{End as ProbeEnd, Probe},
    state::State,
    state_lookup,
};
use bulkhead_verdict::maps::Hook;

use super::{
    answer::Answer,
    node::{Nodes, WorldError, first_packet},
    question::{Name, Question, QuestionError, ip_protocol},
    service::{Backend, Services},
};

/// A cluster: its maps on one side, what people call things on the other.
pub struct World {
    nodes: Nodes,
    pods: BTreeMap<WorkloadKey, BTreeSet<IpAddr>>,
    owners: BTreeMap<IpAddr, Vec<WorkloadKey>>,
    host_pods: BTreeMap<WorkloadKey, HostPod>,
    node_addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    ended: BTreeSet<WorkloadKey>,
    services: Services,
    /// Sets of DNS names that rules ask for.
    names: BTreeSet<Names>,
    state: State,
    /// The moment asked about, wall nanoseconds.
    now: u64,
}

/// An end that was found.
struct End {
    pod: Option<WorkloadKey>,
    addresses: BTreeSet<IpAddr>,
}

/// A way a connection takes: from one address to another, and the pods that have them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// Source.
    pub source: IpAddr,
    /// The pod that sends; `None` when the source is no pod.
    pub from: Option<WorkloadKey>,
    /// Destination.
    pub destination: IpAddr,
    /// The pod that receives; `None` when the destination is no pod.
    pub to: Option<WorkloadKey>,
    /// Destination port, after a Service's mapping.
    pub port: u16,
}

/// Where a question leads.
pub(crate) enum Route {
    /// To one destination.
    Direct(Path),
    /// To a Service: one path for each backend, or why there is none.
    Service {
        /// `namespace/name`.
        service: WorkloadKey,
        paths: Result<Vec<Path>, String>,
    },
}

impl World {
    /// Writes the maps for a compiled state of these manifests, as they are now: leases that are over are over.
    ///
    /// # Errors
    /// When the policies do not fit the maps of a node.
    pub fn new(lowered: Lowered, state: &State) -> Result<Self, WorldError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let nodes = Nodes::new(state, now)?;
        let services = Services::new(&lowered.objects);
        let mut world = Self {
            nodes,
            pods: BTreeMap::new(),
            owners: BTreeMap::new(),
            host_pods: lowered.host_pods,
            node_addresses: BTreeMap::new(),
            ended: lowered.ended_pods,
            services,
            names: names_of(&lowered.objects),
            state: state.clone(),
            now,
        };
        for object in lowered.objects {
            match object {
                Object::Workload(workload) => world.add(&workload),
                Object::Node(node) => drop(world.node_addresses.insert(node.name, node.addresses)),
                _ => {}
            }
        }
        Ok(world)
    }

    fn add(&mut self, workload: &Workload) {
        for address in &workload.addresses {
            self.owners.entry(*address).or_default().push(workload.key.clone());
        }
        self.pods.insert(workload.key.clone(), workload.addresses.clone());
    }

    /// Judges a new connection.
    ///
    /// # Errors
    /// When an end is not known, has no address, or the ends have no family in common.
    pub fn ask(&self, question: &Question) -> Result<Answer, QuestionError> {
        Ok(match self.route(question)? {
            Route::Direct(path) => self.judge(&path, question),
            Route::Service { service, paths } => match paths {
                Ok(paths) => super::service::together(&service, paths.iter().map(|path| self.judge(path, question))),
                Err(problem) => super::service::denied(&problem),
            },
        })
    }

    /// The lease that rules of a direction ask for, and whether it runs.
    pub(crate) fn lease(&self, probe: &Probe, direction: Direction, profile: &Profile, side: Side) -> (Lease, bool) {
        let lease = Lease::of(&self.state, probe, direction, profile, side);
        let runs = lease.runs(self.now);
        (lease, runs)
    }

    /// Judges a connection on its way.
    pub(crate) fn judge(&self, path: &Path, question: &Question) -> Answer {
        let probe = first_packet(path.source, path.destination, ip_protocol(question.protocol), path.port);
        let known = |name: &Pattern| {
            self.names
                .iter()
                .filter(|set| set.has(name))
                .map(Names::number)
                .collect()
        };
        let sets: Vec<u32> = question.name.as_ref().map(known).unwrap_or_default();
        let at = |hook, subject: Option<WorkloadKey>| self.nodes.judge(hook, &subject?, &probe, &sets);
        let (source, destination) = (path.source, path.destination);
        Answer::of(
            at(Hook::FromPod, self.subject(path.from.as_ref(), source, destination)),
            at(Hook::ToPod, self.subject(path.to.as_ref(), destination, source)),
        )
    }

    /// Whose rules are asked at an end: the pod's; a node's where it is an endpoint and the other end is neither it nor a pod of its own.
    fn subject(&self, pod: Option<&WorkloadKey>, own: IpAddr, other: IpAddr) -> Option<WorkloadKey> {
        if pod.is_some() {
            return pod.cloned();
        }
        let own = ProbeEnd::address(own);
        let node = state_lookup::workload(&self.state, Zone::default(), &own).filter(|key| key.is_node())?;
        let inside = state_lookup::is_inside(&self.state, Zone::default(), other, &node.name);
        (!inside).then(|| node.clone())
    }

    /// The way a connection takes that does not go through a Service.
    ///
    /// # Errors
    /// As [`World::ask`]; also when the destination is a Service's address.
    pub fn path(&self, question: &Question) -> Result<Path, QuestionError> {
        match self.route(question)? {
            Route::Direct(path) => Ok(path),
            Route::Service { service, .. } => {
                Err(QuestionError::Bad(format!("{service} is a Service: it has many paths")))
            }
        }
    }

    /// Where a question leads.
    pub(crate) fn route(&self, question: &Question) -> Result<Route, QuestionError> {
        let from = self.end(&question.from, "from")?;
        let to = self.end(&question.to, "to")?;
        let (source, destination) = common_family(&from.addresses, &to.addresses)?;
        let frontend = if to.pod.is_none() {
            self.services.at(destination)
        } else {
            None
        };
        let Some(service) = frontend else {
            let port = question.port;
            return Ok(Route::Direct(Path {
                source,
                from: from.pod,
                destination,
                to: to.pod,
                port,
            }));
        };
        let backends = self
            .services
            .backends(service, destination.is_ipv4(), question.port, question.protocol);
        let path = |Backend { address, port }: Backend| Path {
            source,
            from: from.pod.clone(),
            destination: address,
            to: self.owners.get(&address).and_then(|owners| owners.first()).cloned(),
            port,
        };
        let paths = backends.map(|backends| backends.into_iter().map(path).collect());
        Ok(Route::Service {
            service: service.key.clone(),
            paths,
        })
    }

    fn end(&self, name: &Name, field: &'static str) -> Result<End, QuestionError> {
        match name {
            Name::Address(address) => {
                let owners = self.owners.get(address).map(Vec::as_slice).unwrap_or_default();
                let pod = match owners {
                    [] => None,
                    [owner] => Some(owner.clone()),
                    several => {
                        let pods = several
                            .iter()
                            .map(ToString::to_string)
                            .collect::<Vec<_>>()
                            .join(" and ");
                        return Err(QuestionError::Contested {
                            field,
                            address: *address,
                            pods,
                        });
                    }
                };
                Ok(End {
                    pod,
                    addresses: BTreeSet::from([*address]),
                })
            }
            Name::Pod(pod) => self.pod(pod, field),
        }
    }

    fn pod(&self, pod: &WorkloadKey, field: &'static str) -> Result<End, QuestionError> {
        let end = if let Some(addresses) = self.pods.get(pod) {
            End {
                pod: Some(pod.clone()),
                addresses: addresses.clone(),
            }
        } else if let Some(host) = self.host_pods.get(pod) {
            let of_node = || {
                host.node
                    .as_ref()
                    .and_then(|node| self.node_addresses.get(node))
                    .cloned()
            };
            let addresses = if host.addresses.is_empty() {
                of_node().unwrap_or_default()
            } else {
                host.addresses.clone()
            };
            End { pod: None, addresses }
        } else if self.ended.contains(pod) {
            return Err(QuestionError::EndedPod {
                field,
                pod: pod.clone(),
            });
        } else {
            return Err(QuestionError::UnknownPod {
                field,
                pod: pod.clone(),
            });
        };
        if end.addresses.is_empty() {
            return Err(QuestionError::NoAddress {
                field,
                pod: pod.clone(),
            });
        }
        Ok(end)
    }
}

/// The sets of DNS names in policies.
fn names_of(objects: &[Object]) -> BTreeSet<Names> {
    let policies = objects.iter().filter_map(|object| match object {
        Object::Policy(policy) => Some(policy),
        _ => None,
    });
    let rules = policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
    rules
        .filter_map(|rule| match &rule.guard {
            Some(Guard::Name(names)) => Some(names.clone()),
            _ => None,
        })
        .collect()
}

/// Addresses of the family both ends have, IPv4 first.
fn common_family(from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>) -> Result<(IpAddr, IpAddr), QuestionError> {
    let pair = |v4: bool| {
        let of_family = |all: &BTreeSet<IpAddr>| all.iter().find(|address| address.is_ipv4() == v4).copied();
        of_family(from).zip(of_family(to))
    };
    pair(true).or_else(|| pair(false)).ok_or(QuestionError::NoCommonFamily)
}
