//! Service frontends: who an address that stands for many backends is. A frontend's identity is what is behind each of its
//! ports; what a ruleset says of it is what the ruleset says of all backends.
//!
//! The hook that judges what a pod sends sees the frontend's address, before it is translated, and cannot know which backend
//! will be chosen. So a port is allowed when every backend is, denied when none is, and denied by
//! `builtin/mixed-backends` when they differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bulkhead_verdict::port::Position;

use crate::{
    digest::Digest,
    flatten::certain,
    index::Place,
    model::{Builtin, Direction, EndpointSlice, Guard, Manner, RuleName, Service, Side, WorkloadKey, Zone},
    program::span,
    recorder::Recorder,
    state::{AddressKind, Alternative, Binding, Decision, Identity, PeerId, PortSet, Range, Ruleset, State},
    state_lookup::{chain_of, range, unbound},
};

/// Who a backend is to a ruleset, from exact to wide, and the position it is reached at.
type Target = ([Option<PeerId>; 3], u32);

/// What is behind each position of a frontend that leads somewhere.
type Content = BTreeMap<u32, BTreeSet<Target>>;

/// The alternatives of one position, enforced and shadow.
type Here = (Vec<Alternative>, Vec<Alternative>);

/// All Services, and the frontends they make.
#[derive(Debug, Default)]
pub(crate) struct Frontends {
    services: BTreeMap<WorkloadKey, Service>,
    /// By Service.
    slices: BTreeMap<WorkloadKey, BTreeMap<WorkloadKey, EndpointSlice>>,
    /// Slice → Service.
    slice_of: BTreeMap<WorkloadKey, WorkloadKey>,
    /// Frontend address → Services that have it.
    at: BTreeMap<IpAddr, BTreeSet<WorkloadKey>>,
    /// Backend address → Services it is behind; counted, since slices may repeat an address.
    behind: BTreeMap<IpAddr, BTreeMap<WorkloadKey, u32>>,
    bound: BTreeMap<IpAddr, Digest>,
    identities: BTreeMap<Digest, Frontend>,
    dirty: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Frontend {
    content: Content,
    addresses: u32,
}

/// Identities of frontends that came and went in a step.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    born: BTreeSet<Digest>,
    died: BTreeSet<Digest>,
}

impl Frontends {
    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty()
            && self.slices.is_empty()
            && self.slice_of.is_empty()
            && self.at.is_empty()
            && self.behind.is_empty()
            && self.bound.is_empty()
            && self.identities.is_empty()
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &WorkloadKey> {
        self.services.keys()
    }

    pub(crate) fn slices(&self) -> impl Iterator<Item = &WorkloadKey> {
        self.slice_of.keys()
    }

    pub(crate) fn service(&self, key: &WorkloadKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// The slices of a Service.
    pub(crate) fn slices_of(&self, service: &WorkloadKey) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The Service a slice belongs to.
    pub(crate) fn service_of(&self, slice: &WorkloadKey) -> Option<&WorkloadKey> {
        self.slice_of.get(slice)
    }

    pub(crate) fn set_service(&mut self, key: &WorkloadKey, new: Option<&Service>) {
        if self.services.get(key) == new {
            return;
        }
        if let Some(old) = self.services.remove(key) {
            for address in old.addresses {
                self.dirty.insert(address);
                if let Some(services) = self.at.get_mut(&address) {
                    services.remove(key);
                    if services.is_empty() {
                        self.at.remove(&address);
                    }
                }
            }
        }
        if let Some(new) = new {
            for address in &new.addresses {
                self.dirty.insert(*address);
                self.at.entry(*address).or_default().insert(key.clone());
            }
            self.services.insert(key.clone(), new.clone());
        }
    }

    pub(crate) fn set_slice(&mut self, key: &WorkloadKey, new: Option<&EndpointSlice>) {
        if let Some(service) = self.slice_of.remove(key) {
            let old = self.slices.get_mut(&service).and_then(|slices| slices.remove(key));
            if self.slices.get(&service).is_some_and(BTreeMap::is_empty) {
                self.slices.remove(&service);
            }
            for address in old.into_iter().flat_map(|old| old.addresses) {
                self.count_behind(address, &service, false);
            }
            self.touch(&service);
        }
        if let Some(new) = new {
            let service = WorkloadKey {
                namespace: key.namespace.clone(),
                name: new.service.clone(),
            };
            for address in &new.addresses {
                self.count_behind(*address, &service, true);
            }
            self.touch(&service);
            self.slices
                .entry(service.clone())
                .or_default()
                .insert(key.clone(), new.clone());
            self.slice_of.insert(key.clone(), service);
        }
    }

    fn count_behind(&mut self, address: IpAddr, service: &WorkloadKey, more: bool) {
        let services = self.behind.entry(address).or_default();
        let count = services.entry(service.clone()).or_default();
        *count = if more {
            count.saturating_add(1)
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            services.remove(service);
        }
        if services.is_empty() {
            self.behind.remove(&address);
        }
    }

    fn touch(&mut self, service: &WorkloadKey) {
        let addresses = self
            .services
            .get(service)
            .into_iter()
            .flat_map(|service| &service.addresses);
        self.dirty.extend(addresses);
    }

    /// Notes that who an address is may have changed: as a backend, or because somebody else claims a frontend's.
    pub(crate) fn rebound(&mut self, (zone, address): Place) {
        if zone != Zone::default() {
            return;
        }
        if self.at.contains_key(&address) {
            self.dirty.insert(address);
        }
        let services: Vec<WorkloadKey> = self
            .behind
            .get(&address)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .cloned()
            .collect();
        for service in &services {
            self.touch(service);
        }
    }

    /// Notes that who the addresses without a binding are may have changed.
    pub(crate) fn networks_changed(&mut self, state: &State) {
        let unbound = |address: &IpAddr| bound_elsewhere(state, *address).is_none();
        let concerned = self.behind.iter().filter(|(address, _)| unbound(address));
        let services: BTreeSet<WorkloadKey> = concerned.flat_map(|(_, services)| services.keys().cloned()).collect();
        for service in &services {
            self.touch(service);
        }
    }

    /// Binds the frontends that changed. `claimed` tells an address that is a pod's or a node's, which it then stays.
    pub(crate) fn bind(&mut self, claimed: impl Fn(Place) -> bool, output: &mut Recorder) -> Turnover {
        let mut turnover = Turnover::default();
        for address in std::mem::take(&mut self.dirty) {
            let place = (Zone::default(), address);
            let free = !claimed(place);
            let named = self
                .at
                .get(&address)
                .and_then(BTreeSet::first)
                .filter(|_| free)
                .cloned();
            let new = named.map(|name| (name, self.content(address, output.state())));
            let old = self.bound.remove(&address);
            if let Some((name, content)) = new {
                let digest = name_of(&content);
                self.hold(digest, content, &mut turnover, output);
                self.bound.insert(address, digest);
                output.set_binding(place, Some(binding(name, digest)));
            } else if free {
                output.set_binding(place, None);
            }
            if let Some(old) = old {
                self.release(old, &mut turnover);
            }
        }
        for digest in &turnover.died {
            self.identities.remove(digest);
            output.set_identity(*digest, None);
        }
        turnover
    }

    fn hold(&mut self, digest: Digest, content: Content, turnover: &mut Turnover, output: &mut Recorder) {
        if let Some(frontend) = self.identities.get_mut(&digest) {
            frontend.addresses = frontend.addresses.saturating_add(1);
            turnover.died.remove(&digest);
            return;
        }
        output.set_identity(
            digest,
            Some(Identity {
                atoms: describe(&content),
            }),
        );
        self.identities.insert(digest, Frontend { content, addresses: 1 });
        turnover.born.insert(digest);
    }

    fn release(&mut self, digest: Digest, turnover: &mut Turnover) {
        let Some(frontend) = self.identities.get_mut(&digest) else {
            return;
        };
        frontend.addresses = frontend.addresses.saturating_sub(1);
        if frontend.addresses == 0 {
            turnover.born.remove(&digest);
            turnover.died.insert(digest);
        }
    }

    /// What is behind the ports of an address. Services that share one share their backends, where ports coincide.
    fn content(&self, address: IpAddr, state: &State) -> Content {
        let mut content = Content::new();
        for key in self.at.get(&address).into_iter().flatten() {
            let Some(service) = self.services.get(key) else {
                continue;
            };
            let slices = self.slices.get(key);
            for frontend in &service.ports {
                for slice in slices.into_iter().flat_map(BTreeMap::values) {
                    let port = slice
                        .ports
                        .iter()
                        .find(|port| port.name == frontend.name && port.protocol == frontend.protocol);
                    let Some(port) = port else { continue };
                    let (position, _) = span(frontend.protocol, frontend.port, frontend.port);
                    let (target, _) = span(port.protocol, port.number, port.number);
                    let backends = slice.addresses.iter().filter(|it| it.is_ipv4() == address.is_ipv4());
                    let targets = backends.map(|backend| (who(state, *backend), target));
                    content.entry(position).or_default().extend(targets);
                }
            }
        }
        content.retain(|_, targets| !targets.is_empty());
        content
    }

    /// Writes what rulesets say of the frontends that came, forgets those that went, and tells new rulesets of all.
    pub(crate) fn write(&self, turnover: &Turnover, output: &mut Recorder) {
        let fresh: BTreeSet<Digest> = output.new_rulesets().collect();
        let mut entries = Vec::new();
        for (name, ruleset) in &output.state().rulesets {
            if ruleset.direction != Direction::Egress {
                continue;
            }
            if fresh.contains(name) {
                let all = self.identities.iter();
                entries.extend(
                    all.filter_map(|(frontend, it)| Some((*name, *frontend, Some(entry(ruleset, &it.content)?)))),
                );
                continue;
            }
            let gone = turnover.died.iter();
            entries.extend(gone.map(|frontend| (*name, *frontend, None)));
            let born = turnover
                .born
                .iter()
                .filter_map(|frontend| self.identities.get_key_value(frontend));
            entries
                .extend(born.filter_map(|(frontend, it)| Some((*name, *frontend, Some(entry(ruleset, &it.content)?)))));
        }
        for (ruleset, frontend, ports) in entries {
            output.set_entry(ruleset, PeerId::Identity(frontend), ports.map(Arc::new));
        }
    }
}

/// The binding of a backend that is a pod or a node. A frontend behind a frontend is an address like any other.
fn bound_elsewhere(state: &State, address: IpAddr) -> Option<&Binding> {
    let binding = state.bindings.get(&(Zone::default(), address));
    binding.filter(|binding| binding.kind != AddressKind::Service)
}

/// Who a backend is.
fn who(state: &State, address: IpAddr) -> [Option<PeerId>; 3] {
    bound_elsewhere(state, address).map_or_else(|| unbound(state, Zone::default(), address), chain_of)
}

fn binding(name: WorkloadKey, digest: Digest) -> Binding {
    Binding {
        peer: PeerId::Identity(digest),
        kind: AddressKind::Service,
        image_class: 0,
        name: Arc::new(name),
        node: None,
    }
}

/// Content name of a frontend's identity: two with the same backends behind the same ports are one.
fn name_of(content: &Content) -> Digest {
    let mut bytes = Vec::new();
    for (position, targets) in content {
        bytes.extend(position.to_le_bytes());
        bytes.extend(u64::try_from(targets.len()).unwrap_or(u64::MAX).to_le_bytes());
        for (peers, target) in targets {
            bytes.extend(target.to_le_bytes());
            for peer in peers {
                match peer {
                    None => bytes.push(0),
                    Some(PeerId::UnknownPod) => bytes.push(1),
                    Some(PeerId::AnyPod) => bytes.push(2),
                    Some(PeerId::AnyNode) => bytes.push(3),
                    Some(PeerId::AnyAddress) => bytes.push(4),
                    Some(PeerId::Identity(digest)) => {
                        bytes.push(5);
                        bytes.extend(digest.0);
                    }
                }
            }
        }
    }
    Digest::of("frontend", [bytes.as_slice()])
}

/// The identity in words, one for each port and kind of backend.
fn describe(content: &Content) -> Vec<String> {
    let place = |position: u32| {
        let (protocol, port) = (position >> 16, position & 0xffff);
        let protocol = ["TCP", "UDP", "SCTP"]
            .get(usize::try_from(protocol).unwrap_or(usize::MAX))
            .unwrap_or(&"?");
        format!("{protocol}/{port}")
    };
    let one = |(position, targets): (&u32, &BTreeSet<Target>)| {
        let targets: Vec<String> = targets
            .iter()
            .filter_map(|(peers, target)| Some(format!("{} at {}", peers.iter().flatten().next()?, place(*target))))
            .collect();
        format!("frontend {} of {}", place(*position), targets.join(", "))
    };
    content.iter().map(one).collect()
}

/// What a ruleset says of a frontend, if anything else than of any address.
fn entry(ruleset: &Ruleset, content: &Content) -> Option<PortSet> {
    let any = ruleset.entries.get(&PeerId::AnyAddress)?;
    let overlay: BTreeMap<u32, Here> = content
        .iter()
        .map(|(position, targets)| (*position, all_of(ruleset, targets)))
        .collect();
    let ports = overlaid(any, &overlay);
    (ports != **any).then_some(ports)
}

/// What is certain whichever backend is chosen.
fn all_of(ruleset: &Ruleset, targets: &BTreeSet<Target>) -> Here {
    let each = targets.iter().map(|(peers, position)| {
        let ports = peers.iter().flatten().find_map(|peer| ruleset.entries.get(peer));
        let range = ports.and_then(|ports| range(ports, Position(*position)));
        let enforce = range.map(|range| range.enforce.as_slice()).unwrap_or_default();
        let shadow = range
            .map(|range| range.shadow.as_slice())
            .filter(|list| !list.is_empty());
        (enforce, shadow.unwrap_or(enforce))
    });
    let (enforce, shadow): (Vec<_>, Vec<_>) = each.unzip();
    (together(&enforce), together(&shadow))
}

/// One list of alternatives for several that might be asked.
fn together(lists: &[&[Alternative]]) -> Vec<Alternative> {
    // A lease of the peer is about one backend's image, and a learned name about its address: a frontend has neither.
    let of_peer = |alternative: &Alternative| {
        matches!(
            alternative.guard,
            Some(Guard::Lease { side: Side::Peer, .. } | Guard::Name(_))
        )
    };
    if let Some((first, rest)) = lists.split_first()
        && rest.iter().all(|list| list == first)
        && !first.is_empty()
        && !first.iter().any(of_peer)
    {
        return first.to_vec();
    }
    let certainly: Vec<Alternative> = lists.iter().filter_map(|list| certain(list)).collect();
    let allowed = certainly.iter().filter(|it| it.decision == Decision::Allow).count();
    let mixed = || Alternative {
        guard: None,
        decision: Decision::Deny,
        manner: Manner::default(),
        rule: RuleName::Builtin(Builtin::MixedBackends),
    };
    // Equal verdicts by different rules: the first rule in order lends its name.
    let first = certainly.iter().min_by(|one, other| one.rule.cmp(&other.rule)).cloned();
    let decided = first.filter(|_| certainly.len() == lists.len() && (allowed == 0 || allowed == lists.len()));
    vec![decided.unwrap_or_else(mixed)]
}

/// A port set with other alternatives at some positions.
fn overlaid(base: &PortSet, overlay: &BTreeMap<u32, Here>) -> PortSet {
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |range: Range| match ranges.last_mut() {
        Some(last) if last.enforce == range.enforce && last.shadow == range.shadow => last.high = range.high,
        _ => ranges.push(range),
    };
    for range in &base.ranges {
        let mut low = range.low;
        for (position, (enforce, shadow)) in overlay.range(range.low..=range.high) {
            if low < *position {
                push(Range {
                    low,
                    high: position.saturating_sub(1),
                    ..range.clone()
                });
            }
            let shadow = if shadow == enforce { Vec::new() } else { shadow.clone() };
            push(Range {
                low: *position,
                high: *position,
                enforce: enforce.clone(),
                shadow,
            });
            low = position.saturating_add(1);
        }
        if low <= range.high {
            push(Range { low, ..range.clone() });
        }
    }
    PortSet { ranges }
}
