//! Nodes as subjects: a node that a policy selects is an endpoint of its own, and its rules let through first what it needs to
//! stay reachable and what is judged elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{Compiler, EndpointParts};
use crate::{
    failsafe::Failsafe,
    identity::Bearer,
    index::{Claimant, Dirty},
    model::{Attachment, Builtin, Direction, Node, Protocol, RuleName, Service, WorkloadKey, Zone},
    program::{CompiledPolicy, Part, span},
    rulesets::{Openings, Program, SubjectPorts},
    state::Endpoint,
};

/// What is known for nodes as subjects.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    pub(super) failsafe: Failsafe,
    /// Services by their ports on nodes.
    node_ports: BTreeSet<(Protocol, u16, WorkloadKey)>,
    of_service: BTreeMap<WorkloadKey, Vec<(Protocol, u16)>>,
    /// The ports are others than at the last step.
    moved: bool,
}

impl Hosts {
    pub(super) fn is_empty(&self) -> bool {
        self.node_ports.is_empty() && self.of_service.is_empty()
    }

    /// Takes a Service as it is now.
    pub(super) fn set_service(&mut self, key: &WorkloadKey, new: Option<&Service>) {
        let ports: Vec<(Protocol, u16)> = new.into_iter().flat_map(Service::node_ports).collect();
        let old = if ports.is_empty() {
            self.of_service.remove(key)
        } else {
            self.of_service.insert(key.clone(), ports.clone())
        };
        let old = old.unwrap_or_default();
        if old == ports {
            return;
        }
        self.moved = true;
        for (protocol, port) in old {
            self.node_ports.remove(&(protocol, port, key.clone()));
        }
        let entries = ports.into_iter().map(|(protocol, port)| (protocol, port, key.clone()));
        self.node_ports.extend(entries);
    }

    /// What a node's rules allow before any policy has a say.
    fn openings(&self, direction: Direction) -> Vec<Openings> {
        let opening = |rule, spans: Vec<(u32, u32)>| Openings {
            rule: RuleName::Builtin(rule),
            spans,
        };
        let mut openings = vec![opening(Builtin::Failsafe, self.failsafe.spans(direction))];
        if direction == Direction::Ingress {
            let spans: BTreeSet<(u32, u32)> = self
                .node_ports
                .iter()
                .map(|(protocol, port, _)| span(*protocol, *port, *port))
                .collect();
            openings.push(opening(Builtin::NodePort, spans.into_iter().collect()));
        }
        openings.retain(|opening| !opening.spans.is_empty());
        openings
    }
}

impl Compiler {
    /// Makes anew the endpoints of the nodes that a step touched.
    pub(super) fn settle_hosts(&mut self, dirty: &mut Dirty) {
        let moved = std::mem::take(&mut self.hosts.moved);
        let any = self.endpoints.keys().next().is_some_and(WorkloadKey::is_node);
        if !any && !self.policies.any_of_nodes() {
            return;
        }
        for place in &dirty.places {
            let owners = self.index.claimants(*place).filter_map(|claimant| match claimant {
                Claimant::Node(name) => Some(name.clone()),
                Claimant::Pod(_) => None,
            });
            dirty.nodes.extend(owners);
        }
        if moved {
            let nodes = self.index.nodes().map(|node| node.name.clone());
            dirty.nodes.extend(nodes);
        }
        for name in std::mem::take(&mut dirty.nodes) {
            let key = WorkloadKey::of_node(&name);
            let old = self.endpoints.remove(&key);
            let new = self.index.node(&name).cloned().and_then(|node| self.host(&node));
            let (endpoint, parts) = new.unzip();
            self.output.set_endpoint(&key, endpoint);
            self.endpoints.extend(parts.map(|parts| (key, parts)));
            if let Some(old) = old {
                self.identities.shed(old.identity);
                old.rulesets
                    .into_iter()
                    .for_each(|ruleset| self.rulesets.release(ruleset));
            }
        }
    }

    /// The endpoint of a node; `None` where no policy selects it, and nothing of it is judged.
    fn host(&mut self, node: &Node) -> Option<(Endpoint, EndpointParts)> {
        let selecting = self.policies.selecting_node(&node.labels);
        if selecting.is_empty() {
            return None;
        }
        let parts = |part: fn(&CompiledPolicy) -> Option<&Arc<Part>>| {
            let parts = selecting.iter().filter_map(|policy| part(policy));
            parts.map(Arc::clone).collect()
        };
        let program = |direction, parts| Program {
            direction,
            parts,
            subject_ports: SubjectPorts::new(),
            control: false,
            openings: self.hosts.openings(direction),
        };
        let programs = [
            program(Direction::Egress, parts(|policy| policy.egress.as_ref())),
            program(Direction::Ingress, parts(|policy| policy.ingress.as_ref())),
        ];
        let mut facts = Vec::new();
        self.questions.of_node(&node.labels, &mut facts);
        if let Some(first) = node.addresses.first() {
            self.questions.of_address(*first, &mut facts);
        }
        let (identity_id, identity) = self.bear(Bearer::Node, facts);
        let [egress, ingress] = programs.map(|program| self.rulesets.hold(program, &self.identities));
        let endpoint = Endpoint {
            uid: String::new(),
            node: Some(node.name.clone()),
            identity,
            image_class: 0,
            addresses: node.addresses.clone(),
            zone: Zone::default(),
            egress: egress.1,
            ingress: ingress.1,
            attachment: Attachment::default(),
        };
        let parts = EndpointParts {
            identity: identity_id,
            rulesets: [egress.0, ingress.0],
        };
        Some((endpoint, parts))
    }
}
