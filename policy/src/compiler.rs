//! The compiler as a state machine: events in, the difference of the compiled state out. What an event costs depends on
//! what it changes, not on how much there is.

mod hosts;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    atom::Atom,
    check,
    diagnostic::Diagnostic,
    failsafe::Failsafe,
    frontends::Frontends,
    identity::{Bearer, Identities, IdentityId, describe},
    index::{Claimant, Dirty, Index, Place, WorkloadId},
    lease::Classes,
    model::{
        Direction, EndpointSlice, Event, Labels, NamedPort, Object, ObjectKey, Policy, PolicyKey, Service, Workload,
        WorkloadKey, Zone,
    },
    networks::Networks,
    policies::Policies,
    program::{CompiledPolicy, Part, compile},
    questions::{AtomId, Fact, Questions},
    recorder::Recorder,
    references::{Reference, References},
    rulesets::{Program, RulesetId, Rulesets, SubjectPorts},
    state::{AddressKind, Binding, Delta, Endpoint, Network, PeerId, State},
};

use hosts::Hosts;

/// What a batch of events did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// The difference of the compiled state: apply it to the state before and you get the state after.
    pub delta: Delta,
    /// What is wrong with what the batch touched, in order. [`Compiler::diagnostics`] gives all there is.
    pub diagnostics: Vec<Diagnostic>,
}

/// How much a step looked at: what a change costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Addresses of which the binding was made anew.
    pub addresses: usize,
    /// Endpoints that were made anew.
    pub endpoints: usize,
    /// Rulesets that were compiled, in whole or in part.
    pub rulesets: usize,
}

/// Objects in, compiled state out.
///
/// The state depends on the objects that are there, not on the events by which they came: any history that ends with the
/// same objects gives the same state, byte for byte.
#[derive(Debug, Default)]
pub struct Compiler {
    pub(crate) index: Index,
    pub(crate) policies: Policies,
    questions: Questions,
    /// Atoms nobody asks any more, since the step began; some may be asked again before it ends.
    unasked: BTreeSet<AtomId>,
    identities: Identities,
    networks: Networks,
    rulesets: Rulesets,
    pub(crate) frontends: Frontends,
    pub(crate) references: References,
    bound: BTreeMap<Place, IdentityId>,
    network_identities: BTreeMap<(Zone, ipnetwork::IpNetwork), IdentityId>,
    endpoints: BTreeMap<WorkloadKey, EndpointParts>,
    classes: Classes,
    output: Recorder,
    /// Policies written in this step.
    written: BTreeSet<PolicyKey>,
    work: Work,
    control: Option<ControlPlane>,
    hosts: Hosts,
}

/// Whose pods run the control plane: they reach and are reached whatever policies say (`builtin/control`), or a policy that
/// cuts them off could never be taken back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlPlane {
    /// Namespace of the pods.
    pub namespace: String,
    /// Their service account. Who may give it to a pod is the API server's to decide.
    pub service_account: String,
}

impl ControlPlane {
    pub(crate) fn has(&self, workload: &Workload) -> bool {
        workload.key.namespace == self.namespace && workload.service_account == self.service_account
    }
}

#[derive(Debug)]
struct EndpointParts {
    identity: IdentityId,
    rulesets: [RulesetId; 2],
}

impl Compiler {
    /// A compiler that has seen these objects.
    pub fn from_scratch(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut compiler = Self::default();
        let events: Vec<Event> = objects.into_iter().map(Event::Upsert).collect();
        compiler.apply(&events);
        compiler
    }

    /// An empty compiler that lets the control plane's own pods through.
    #[must_use]
    pub fn with_control(control: ControlPlane) -> Self {
        Self {
            control: Some(control),
            ..Self::default()
        }
    }

    /// The same with other ports that policies of nodes leave open.
    #[must_use]
    pub fn with_failsafe(mut self, failsafe: Failsafe) -> Self {
        self.hosts.failsafe = failsafe;
        self
    }

    /// What policies of nodes leave open.
    pub const fn failsafe(&self) -> &Failsafe {
        &self.hosts.failsafe
    }

    /// True for a pod of the control plane.
    pub(crate) fn is_control(&self, workload: &Workload) -> bool {
        self.control.as_ref().is_some_and(|control| control.has(workload))
    }

    /// The compiled state.
    pub fn state(&self) -> &State {
        self.output.state()
    }

    /// The policies that refer to something by name.
    pub fn users(&self, reference: &Reference) -> impl Iterator<Item = &PolicyKey> {
        self.references.users(reference)
    }

    /// What the last step looked at.
    pub fn work(&self) -> Work {
        self.work
    }

    /// True when nothing is left in any table: no object, question, identity, ruleset.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
            && self.policies.is_empty()
            && self.questions.is_empty()
            && self.identities.is_empty()
            && self.rulesets.is_empty()
            && self.frontends.is_empty()
            && self.references.is_empty()
            && self.bound.is_empty()
            && self.network_identities.is_empty()
            && self.endpoints.is_empty()
            && self.classes.is_empty()
            && self.hosts.is_empty()
    }

    /// Takes events, all of them as one step, and says what they changed.
    pub fn apply(&mut self, events: &[Event]) -> Changes {
        for event in events {
            match event {
                Event::Upsert(object) => self.upsert(object),
                Event::Delete(key) => self.delete(key),
                Event::Resync(objects) => self.resync(objects),
            }
        }
        self.settle()
    }

    fn resync(&mut self, objects: &[Object]) {
        let present: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
        let namespaces = self.index.declared_namespaces().cloned().map(ObjectKey::Namespace);
        let workloads = self
            .index
            .workloads()
            .map(|workload| ObjectKey::Workload(workload.key.clone()));
        let nodes = self.index.nodes().map(|node| ObjectKey::Node(node.name.clone()));
        let policies = self
            .policies
            .iter()
            .map(|policy| ObjectKey::Policy(policy.policy.key.clone()));
        let services = self.frontends.services().cloned().map(ObjectKey::Service);
        let slices = self.frontends.slices().cloned().map(ObjectKey::EndpointSlice);
        let known = namespaces.chain(workloads).chain(nodes).chain(policies);
        let groups = self.references.groups().cloned().map(ObjectKey::AddressGroup);
        let known = known.chain(services).chain(slices).chain(groups);
        let absent: Vec<ObjectKey> = known.filter(|key| !present.contains(key)).collect();
        for key in &absent {
            self.delete(key);
        }
        for object in objects {
            self.upsert(object);
        }
    }

    fn upsert(&mut self, object: &Object) {
        match object {
            Object::Namespace(namespace) => self.index.set_namespace(&namespace.name, Some(namespace)),
            Object::Workload(workload) => {
                self.set_workload(&workload.key, Some(workload));
            }
            Object::Node(node) => self.set_node(&node.name, Some(Arc::new(node.clone()))),
            Object::Policy(policy) => self.set_policy(&policy.key, Some(policy)),
            Object::Service(service) => self.set_service(&service.key, Some(service)),
            Object::EndpointSlice(slice) => self.set_slice(&slice.key, Some(slice)),
            Object::AddressGroup(group) => self.references.set_group(&group.name, Some(group)),
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        match key {
            ObjectKey::Namespace(name) => self.index.set_namespace(name, None),
            ObjectKey::Workload(key) => self.set_workload(key, None),
            ObjectKey::Node(name) => self.set_node(name, None),
            ObjectKey::Policy(key) => self.set_policy(key, None),
            ObjectKey::Service(key) => self.set_service(key, None),
            ObjectKey::EndpointSlice(key) => self.set_slice(key, None),
            ObjectKey::AddressGroup(name) => self.references.set_group(name, None),
        }
    }

    fn set_workload(&mut self, key: &WorkloadKey, new: Option<&Arc<Workload>>) {
        // The new claims first: a class that only changes hands is not forgotten in between.
        if let Some(new) = new {
            self.classes.add(new.image_class, &new.claims);
        }
        if let Some(old) = self.index.set_workload(key, new.cloned()) {
            self.classes.remove(old.image_class, &old.claims);
        }
    }

    fn set_node(&mut self, name: &str, new: Option<Arc<crate::model::Node>>) {
        let ranges = |node: Option<Arc<crate::model::Node>>| node.into_iter().flat_map(|node| node.pod_ranges.clone());
        let added: Vec<_> = ranges(new.clone()).collect();
        let removed = ranges(self.index.set_node(name, new));
        for range in added {
            self.networks.add_range(range);
        }
        removed.for_each(|range| self.networks.remove_range(range));
    }

    fn set_service(&mut self, key: &WorkloadKey, new: Option<&Service>) {
        self.hosts.set_service(key, new);
        self.frontends.set_service(key, new);
        self.references.touch_service(key);
    }

    fn set_slice(&mut self, key: &WorkloadKey, new: Option<&EndpointSlice>) {
        let touch = |compiler: &mut Self| {
            if let Some(service) = compiler.frontends.service_of(key) {
                compiler.references.touch_service(service);
            }
        };
        touch(self);
        self.frontends.set_slice(key, new);
        touch(self);
    }

    /// Compiles policies again that refer to something that changed.
    fn refresh(&mut self) {
        for key in self.references.take_concerned() {
            let policy = self.policies.get(&key).map(|compiled| Arc::clone(&compiled.policy));
            if let Some(policy) = policy {
                self.replace_policy(&key, Some(&policy));
            }
        }
    }

    fn set_policy(&mut self, key: &PolicyKey, new: Option<&Policy>) {
        self.written.insert(key.clone());
        if self.policies.get(key).map(|old| old.policy.as_ref()) != new {
            self.replace_policy(key, new);
        }
    }

    fn replace_policy(&mut self, key: &PolicyKey, new: Option<&Policy>) {
        self.written.insert(key.clone());
        // New questions are asked before the old ones are dropped, so that those in both keep their numbers.
        let new = new.map(|policy| Arc::new(self.compile(policy)));
        let selected: Vec<_> = new.iter().flat_map(|new| new.policy.subject.iter()).cloned().collect();
        let written = new.as_ref().map(|new| Arc::clone(&new.policy));
        let old = self.policies.set(key, new);
        self.references
            .set_policy(key, old.as_ref().map(|old| old.policy.as_ref()), written.as_deref());
        if let Some(old) = &old {
            let unasked = old.atoms.iter().filter(|atom| self.questions.release(**atom));
            self.unasked.extend(unasked);
        }
        let nodes = written.iter().chain(old.iter().map(|old| &old.policy));
        for selector in nodes.flat_map(|policy| &policy.nodes) {
            let nodes = self.index.nodes().filter(|node| selector.matches(&node.labels));
            let names: Vec<String> = nodes.map(|node| node.name.clone()).collect();
            self.index.dirty.nodes.extend(names);
        }
        for subject in selected.iter().chain(old.iter().flat_map(|old| &old.policy.subject)) {
            let workloads = self.index.select(subject);
            self.index.dirty.selections.extend(workloads);
        }
    }

    fn compile(&mut self, policy: &Policy) -> CompiledPolicy {
        let mut asked = BTreeSet::new();
        let mut ask = |atom: Atom| {
            let (id, first) = self.questions.ask(&atom);
            if !asked.insert(id) {
                self.questions.release(id);
            } else if first {
                self.index.touch_holders(&atom);
                if let Atom::Cidr(cidr) = &atom {
                    self.networks.set_block(*cidr, true);
                }
            }
            id
        };
        let written_out = self.references.written_out(policy, &self.frontends);
        let policy = Arc::new(policy.clone());
        compile(Arc::clone(&policy), written_out.as_ref().unwrap_or(&policy), &mut ask)
    }

    // === the end of a step ===

    fn settle(&mut self) -> Changes {
        self.refresh();
        let forgotten = self.forget_questions();
        let mut dirty = std::mem::take(&mut self.index.dirty);
        for id in &dirty.identities {
            let workload = self.index.workload(*id).into_iter();
            dirty.places.extend(
                workload.flat_map(|workload| workload.addresses.iter().map(|address| (workload.zone, *address))),
            );
        }
        dirty.places.iter().for_each(|place| self.bind(*place));
        self.settle_networks();
        dirty.places.iter().for_each(|place| self.frontends.rebound(*place));
        let index = &self.index;
        let claimed = |place: Place| index.claimants(place).next().is_some();
        let turnover = self.frontends.bind(claimed, &mut self.output);
        self.settle_endpoints(&dirty);
        self.settle_hosts(&mut dirty);
        for (class, leases) in self.classes.settle() {
            self.output.set_leases(class, leases);
        }

        let identities = self.identities.settle();
        for id in &identities.born {
            if let Some(entry) = self.identities.get(*id) {
                self.output
                    .set_identity(entry.digest, Some(describe(entry, &self.questions)));
            }
        }
        let cut = self.rulesets.settle(&self.identities, &identities, &mut self.output);
        self.work = Work {
            addresses: dirty.places.len(),
            endpoints: dirty.selections.union(&dirty.identities).count(),
            rulesets: self.rulesets.looked_at(),
        };
        self.frontends.write(&turnover, &mut self.output);
        for id in identities.died {
            if let Some(digest) = self.identities.digest(id) {
                self.output.set_identity(digest, None);
            }
            self.identities.free(id);
        }
        for atom in forgotten {
            self.questions.free(atom);
        }
        self.index.retire();
        let written = std::mem::take(&mut self.written);
        let diagnostics = check::changed(self, &dirty.places, &written, &cut);
        Changes {
            delta: self.output.settle(),
            diagnostics,
        }
    }

    /// Forgets the questions nobody asks any more, and marks whom they held of.
    fn forget_questions(&mut self) -> Vec<AtomId> {
        let mut forgotten = Vec::new();
        for id in std::mem::take(&mut self.unasked) {
            if let Some(atom) = self.questions.unused(id) {
                self.index.touch_holders(atom);
                if let Atom::Cidr(cidr) = atom {
                    self.networks.set_block(*cidr, false);
                }
                self.questions.forget(id);
                forgotten.push(id);
            }
        }
        forgotten
    }

    fn bind(&mut self, place: Place) {
        let claimants: Vec<Claimant> = self.index.claimants(place).cloned().collect();
        let (binding, identity) = match claimants.as_slice() {
            [] => (None, None),
            [Claimant::Pod(id)] => self.bind_pod(*id, place).unzip(),
            [Claimant::Node(name)] => self.bind_node(name, place).unzip(),
            _ => (self.contested(&claimants), None),
        };
        self.output.set_binding(place, binding);
        let old = match identity {
            Some(identity) => self.bound.insert(place, identity),
            None => self.bound.remove(&place),
        };
        if let Some(old) = old {
            self.identities.shed(old);
        }
    }

    fn bind_pod(&mut self, id: WorkloadId, place: Place) -> Option<(Binding, IdentityId)> {
        let workload = Arc::clone(self.index.workload(id)?);
        let mut facts = self.pod_facts(&workload);
        self.questions.of_address(place.1, &mut facts);
        let (identity, peer) = self.bear(Bearer::Pod, facts);
        let (name, node) = self.named(&workload, place);
        let binding = Binding {
            peer,
            kind: AddressKind::Pod,
            image_class: workload.image_class,
            name,
            node,
        };
        Some((binding, identity))
    }

    /// What a binding calls a workload and its node: as another of its addresses does, so that there is one copy of it.
    fn named(&self, workload: &Workload, place: Place) -> (Arc<WorkloadKey>, Option<Arc<str>>) {
        let bindings = &self.output.state().bindings;
        let mut others = workload.addresses.iter().filter(|address| **address != place.1);
        let other = others.find_map(|address| bindings.get(&(place.0, *address)));
        match other.filter(|other| *other.name == workload.key && other.node.as_deref() == workload.node.as_deref()) {
            Some(other) => (Arc::clone(&other.name), other.node.clone()),
            None => (Arc::new(workload.key.clone()), workload.node.as_deref().map(Arc::from)),
        }
    }

    fn bind_node(&mut self, name: &str, place: Place) -> Option<(Binding, IdentityId)> {
        let mut facts = Vec::new();
        self.questions.of_node(&self.index.node(name)?.labels, &mut facts);
        self.questions.of_address(place.1, &mut facts);
        let (identity, peer) = self.bear(Bearer::Node, facts);
        let binding = Binding {
            peer,
            kind: AddressKind::Node,
            image_class: 0,
            name: Arc::new(WorkloadKey::of_node(name)),
            node: Some(Arc::from(name)),
        };
        Some((binding, identity))
    }

    /// Several claim the address: nobody is believed. The first in order of their names lends it a name.
    fn contested(&self, claimants: &[Claimant]) -> Option<Binding> {
        let named = claimants.iter().filter_map(|claimant| match claimant {
            Claimant::Pod(id) => {
                let workload = self.index.workload(*id)?;
                Some((AddressKind::Pod, workload.key.clone(), workload.node.clone()))
            }
            Claimant::Node(name) => Some((AddressKind::Node, WorkloadKey::of_node(name), Some(name.clone()))),
        });
        let (kind, name, node) = named.min()?;
        Some(Binding {
            peer: PeerId::UnknownPod,
            kind,
            image_class: 0,
            name: Arc::new(name),
            node: node.map(Arc::from),
        })
    }

    fn pod_facts(&self, workload: &Workload) -> Vec<Fact> {
        let mut facts = Vec::new();
        let none = Labels::new();
        let labels = self.index.namespace_labels(&workload.key.namespace).unwrap_or(&none);
        self.questions.of_pod(labels, workload, &mut facts);
        facts
    }

    fn bear(&mut self, bearer: Bearer, facts: Vec<Fact>) -> (IdentityId, PeerId) {
        let id = self.identities.bear(bearer, facts, &self.questions);
        // The identity was entered on the line above.
        (
            id,
            self.identities.digest(id).map_or(PeerId::UnknownPod, PeerId::Identity),
        )
    }

    fn settle_networks(&mut self) {
        let zones = self.index.zones().chain([Zone::default()]).collect();
        let changed = self.networks.settle(zones);
        let any = !changed.is_empty();
        for key in changed {
            let (network, identity) = self.network(key);
            self.output.set_network(key, network);
            let old = match identity {
                Some(identity) => self.network_identities.insert(key, identity),
                None => self.network_identities.remove(&key),
            };
            if let Some(old) = old {
                self.identities.shed(old);
            }
        }
        if any {
            self.frontends.networks_changed(self.output.state());
        }
    }

    fn network(&mut self, (zone, prefix): (Zone, ipnetwork::IpNetwork)) -> (Option<Network>, Option<IdentityId>) {
        if !self.networks.has(zone, prefix) {
            return (None, None);
        }
        let mut facts = Vec::new();
        self.questions.of_prefix(prefix, &mut facts);
        let pod_range = self.networks.is_pod_range(zone, prefix);
        if facts.is_empty() && !pod_range {
            return (
                Some(Network {
                    peer: PeerId::AnyAddress,
                    pod_range,
                }),
                None,
            );
        }
        let bearer = if pod_range { Bearer::UnboundPod } else { Bearer::Outside };
        let (identity, peer) = self.bear(bearer, facts);
        (Some(Network { peer, pod_range }), Some(identity))
    }

    fn settle_endpoints(&mut self, dirty: &Dirty) {
        for id in dirty.selections.union(&dirty.identities) {
            let Some(key) = self.index.workload_key(*id).cloned() else {
                continue;
            };
            let old = self.endpoints.remove(&key);
            let new = self.index.workload(*id).cloned().map(|workload| {
                let kept = if dirty.selections.contains(id) {
                    None
                } else {
                    old.as_ref()
                };
                self.endpoint(&workload, kept)
            });
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

    /// An endpoint, with the rulesets it had when nothing that selects them changed.
    fn endpoint(&mut self, workload: &Workload, kept: Option<&EndpointParts>) -> (Endpoint, EndpointParts) {
        let mut facts = self.pod_facts(workload);
        if let Some(first) = workload.addresses.first() {
            self.questions.of_address(*first, &mut facts);
        }
        let (identity_id, identity) = self.bear(Bearer::Pod, facts);
        let kept = kept.and_then(|kept| self.rulesets.hold_again(kept.rulesets));
        let [egress, ingress] = kept.unwrap_or_else(|| {
            let [egress, ingress] = self.programs(workload);
            [egress, ingress].map(|program| self.rulesets.hold(program, &self.identities))
        });
        let endpoint = Endpoint {
            uid: workload.uid.clone(),
            node: workload.node.clone(),
            identity,
            image_class: workload.image_class,
            addresses: workload.addresses.clone(),
            zone: workload.zone,
            egress: egress.1,
            ingress: ingress.1,
            attachment: workload.attachment.clone(),
        };
        (
            endpoint,
            EndpointParts {
                identity: identity_id,
                rulesets: [egress.0, ingress.0],
            },
        )
    }

    /// What selects the workload, egress and ingress.
    fn programs(&self, workload: &Workload) -> [Program; 2] {
        let none = Labels::new();
        let labels = self.index.namespace_labels(&workload.key.namespace).unwrap_or(&none);
        let control = self.is_control(workload);
        let selecting = if control {
            Vec::new()
        } else {
            self.policies.selecting(workload, labels)
        };
        let parts = |part: fn(&CompiledPolicy) -> Option<&Arc<Part>>| -> Vec<Arc<Part>> {
            selecting
                .iter()
                .filter_map(|policy| part(policy))
                .map(Arc::clone)
                .collect()
        };
        let (egress, ingress) = (
            parts(|policy| policy.egress.as_ref()),
            parts(|policy| policy.ingress.as_ref()),
        );
        let asked: BTreeSet<&String> = ingress.iter().flat_map(|part| &part.subject_ports).collect();
        let mut subject_ports = SubjectPorts::new();
        for NamedPort { name, protocol, number } in &workload.named_ports {
            if asked.contains(name) {
                subject_ports.entry((name.clone(), *protocol)).or_insert(*number);
            }
        }
        [
            Program {
                direction: Direction::Egress,
                parts: egress,
                subject_ports: SubjectPorts::new(),
                control,
                openings: Vec::new(),
            },
            Program {
                direction: Direction::Ingress,
                parts: ingress,
                subject_ports,
                control,
                openings: Vec::new(),
            },
        ]
    }
}
