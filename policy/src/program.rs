//! A policy with its questions numbered, so that "does this rule match that identity?" is a look at a few numbers.

use std::{
    collections::BTreeSet,
    hash::{Hash, Hasher},
    sync::Arc,
};

use bulkhead_verdict::port::{Position, protocol};

use crate::{
    atom::{Atom, LabelTest},
    digest::Digest,
    identity::Bearer,
    model::{
        Action, Direction, Guard, IcmpMessage, IcmpVersion, LabelSelector, Manner, Match, Mode, NamespaceMatch,
        Operator, Peer, Policy, PortMatch, Protocol, Rule, RuleName, Tier,
    },
    prefix::canonical,
    questions::{AtomId, Fact},
};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Does a peer match?
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Certainty {
    Never,
    /// Some of the pods this may be match, perhaps.
    Maybe,
    Always,
}

/// A policy, ready to be evaluated.
#[derive(Debug)]
pub(crate) struct CompiledPolicy {
    pub(crate) policy: Arc<Policy>,
    /// Every atom it asks, each once.
    pub(crate) atoms: BTreeSet<AtomId>,
    pub(crate) egress: Option<Arc<Part>>,
    pub(crate) ingress: Option<Arc<Part>>,
}

/// What a policy says in one direction.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) tier: Tier,
    pub(crate) mode: Mode,
    pub(crate) manner: Manner,
    pub(crate) rules: Vec<CompiledRule>,
    /// Name of its default-deny; `None` outside the NetworkPolicy tier.
    pub(crate) isolation: Option<RuleName>,
    /// The atoms its peers and ports ask, each once.
    pub(crate) atoms: BTreeSet<AtomId>,
    /// Asks for addresses or nodes, so that an unbound pod's address matters.
    pub(crate) asks_addresses: bool,
    /// Names of ports that its ingress rules ask of the subject.
    pub(crate) subject_ports: BTreeSet<String>,
    /// Of everything above, and of the policy's name and generation.
    pub(crate) digest: Digest,
    /// The policy's name.
    pub(crate) text: String,
}

#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) name: RuleName,
    pub(crate) action: Action,
    pub(crate) guard: Option<Guard>,
    /// Shadow when the rule or its policy is.
    pub(crate) mode: Mode,
    pub(crate) peers: Option<Vec<CompiledPeer>>,
    /// Positions it matches whatever the ends are.
    pub(crate) spans: Vec<(u32, u32)>,
    pub(crate) named: Vec<NamedMatch>,
}

/// A named port of one protocol.
#[derive(Debug)]
pub(crate) struct NamedMatch {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    /// Egress: the question for the peer's number. Ingress asks the subject instead.
    pub(crate) atom: Option<AtomId>,
}

#[derive(Debug)]
pub(crate) enum CompiledPeer {
    Pods(Conditions),
    Nodes(Conditions),
    Network { cidr: AtomId, except: Vec<AtomId> },
    World,
}

/// Atoms that must hold and atoms that must not.
#[derive(Debug, Default)]
pub(crate) struct Conditions {
    yes: Vec<AtomId>,
    no: Vec<AtomId>,
    /// Has a requirement nothing fulfils (`In` without values).
    impossible: bool,
}

/// Whoever is at the other end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) bearer: Bearer,
    /// Sorted by atom.
    pub(crate) facts: &'a [Fact],
}

impl View<'_> {
    pub(crate) fn number(&self, atom: AtomId) -> Option<u16> {
        let at = self.facts.binary_search_by_key(&atom, |(atom, _)| *atom).ok()?;
        self.facts.get(at).map(|(_, number)| *number)
    }

    fn holds(&self, atom: AtomId) -> bool {
        self.number(atom).is_some()
    }
}

// === matching ===

impl CompiledRule {
    pub(crate) fn certainty(&self, view: &View<'_>) -> Certainty {
        match &self.peers {
            None => Certainty::Always,
            Some(peers) => peers
                .iter()
                .map(|peer| peer.certainty(view))
                .max()
                .unwrap_or(Certainty::Never),
        }
    }
}

impl CompiledRule {
    /// Adds atoms of which every identity bears at least one that the rule treats otherwise than a bearer without any
    /// atom. Of atoms that must hold together one is enough: the rarest, by `count`.
    pub(crate) fn triggers(&self, count: &dyn Fn(AtomId) -> usize, triggers: &mut BTreeSet<AtomId>) {
        let mut matches_the_bare = self.peers.is_none();
        for peer in self.peers.iter().flatten() {
            match peer {
                CompiledPeer::Pods(conditions) | CompiledPeer::Nodes(conditions) => {
                    if let Some(rarest) = conditions.yes.iter().min_by_key(|atom| count(**atom)) {
                        triggers.insert(*rarest);
                    } else {
                        triggers.extend(&conditions.no);
                        matches_the_bare = true;
                    }
                }
                CompiledPeer::Network { cidr, .. } => drop(triggers.insert(*cidr)),
                // It asks nothing but what kind of bearer it is, which every fallback answers.
                CompiledPeer::World => {}
            }
        }
        if matches_the_bare {
            triggers.extend(self.named.iter().filter_map(|named| named.atom));
        }
    }
}

impl CompiledPeer {
    fn certainty(&self, view: &View<'_>) -> Certainty {
        let sure = |holds: bool| if holds { Certainty::Always } else { Certainty::Never };
        match (self, view.bearer) {
            (Self::Pods(conditions), Bearer::Pod) | (Self::Nodes(conditions), Bearer::Node) => {
                sure(conditions.hold(view))
            }
            (Self::Pods(conditions), Bearer::UnboundPod | Bearer::Unknown) => conditions.may_hold(),
            // Whether even the claim to be a pod is true is not known of a contested address.
            (Self::Nodes(conditions), Bearer::Unknown) => conditions.may_hold().min(Certainty::Maybe),
            (Self::Network { .. } | Self::World, Bearer::Unknown) => Certainty::Maybe,
            (Self::World, bearer) => sure(bearer == Bearer::Outside),
            (Self::Network { cidr, except }, _) => {
                sure(view.holds(*cidr) && !except.iter().any(|block| view.holds(*block)))
            }
            (Self::Pods(_), Bearer::Node | Bearer::Outside)
            | (Self::Nodes(_), Bearer::Pod | Bearer::Outside | Bearer::UnboundPod) => Certainty::Never,
        }
    }
}

impl Conditions {
    fn hold(&self, view: &View<'_>) -> bool {
        !self.impossible
            && self.yes.iter().all(|atom| view.holds(*atom))
            && !self.no.iter().any(|atom| view.holds(*atom))
    }

    fn may_hold(&self) -> Certainty {
        match (self.impossible, self.yes.is_empty() && self.no.is_empty()) {
            (true, _) => Certainty::Never,
            (false, true) => Certainty::Always,
            (false, false) => Certainty::Maybe,
        }
    }
}

// === compiling ===

/// Numbers the questions of a policy with `ask`, which is called once for each mention of an atom. `written_out` is the policy
/// with what it refers to in the references' place.
pub(crate) fn compile(
    policy: Arc<Policy>,
    written_out: &Policy,
    ask: &mut dyn FnMut(Atom) -> AtomId,
) -> CompiledPolicy {
    let egress = Compiling::new(written_out, Direction::Egress, ask).part().map(Arc::new);
    let ingress = Compiling::new(written_out, Direction::Ingress, ask)
        .part()
        .map(Arc::new);
    let atoms = [&egress, &ingress]
        .into_iter()
        .flatten()
        .flat_map(|part| part.atoms.iter().copied())
        .collect();
    CompiledPolicy {
        policy,
        atoms,
        egress,
        ingress,
    }
}

struct Compiling<'a> {
    policy: &'a Policy,
    direction: Direction,
    ask: &'a mut dyn FnMut(Atom) -> AtomId,
    atoms: BTreeSet<AtomId>,
    asks_addresses: bool,
}

impl<'a> Compiling<'a> {
    fn new(policy: &'a Policy, direction: Direction, ask: &'a mut dyn FnMut(Atom) -> AtomId) -> Self {
        Self {
            policy,
            direction,
            ask,
            atoms: BTreeSet::new(),
            asks_addresses: false,
        }
    }

    /// `None` when the policy says nothing in this direction.
    fn part(mut self) -> Option<Part> {
        let policy = self.policy;
        let rules = match self.direction {
            Direction::Egress => &policy.egress,
            Direction::Ingress => &policy.ingress,
        };
        let isolation = match policy.tier {
            Tier::NetworkPolicy if policy.isolates.contains(&self.direction) => Some(RuleName::DefaultDeny {
                policy: policy.key.clone(),
                generation: policy.generation,
                direction: self.direction,
            }),
            // A NetworkPolicy has no say in a direction it does not list in its policyTypes.
            Tier::NetworkPolicy => return None,
            Tier::Admin | Tier::Baseline if rules.is_empty() => return None,
            Tier::Admin | Tier::Baseline => None,
        };
        let compiled: Vec<CompiledRule> = rules.iter().map(|rule| self.rule(rule)).collect();
        let named = compiled
            .iter()
            .flat_map(|rule| &rule.named)
            .map(|named| named.name.clone());
        let subject_ports = if self.direction == Direction::Ingress {
            named.collect()
        } else {
            BTreeSet::new()
        };
        Some(Part {
            tier: policy.tier,
            mode: policy.mode,
            manner: policy.manner,
            isolation,
            atoms: self.atoms,
            asks_addresses: self.asks_addresses,
            subject_ports,
            digest: part_digest(policy, self.direction, rules),
            text: policy.key.to_string(),
            rules: compiled,
        })
    }

    fn rule(&mut self, rule: &Rule) -> CompiledRule {
        let shadow = self.policy.mode == Mode::Shadow || rule.mode == Mode::Shadow;
        let peers = match &rule.peers {
            Match::Any => None,
            Match::OneOf(peers) => Some(peers.iter().filter_map(|peer| self.peer(peer)).collect()),
        };
        let mut spans = Vec::new();
        let mut named = Vec::new();
        match &rule.ports {
            Match::Any => spans.push((Position::FIRST.0, Position::LAST.0)),
            Match::OneOf(ports) => ports.iter().for_each(|port| self.port(port, &mut spans, &mut named)),
        }
        CompiledRule {
            name: RuleName::Rule {
                policy: self.policy.key.clone(),
                generation: self.policy.generation,
                direction: self.direction,
                index: rule.index,
                name: rule.name.clone(),
            },
            action: rule.action,
            guard: rule.guard.clone(),
            mode: if shadow { Mode::Shadow } else { Mode::Enforce },
            peers,
            spans,
            named,
        }
    }

    fn peer(&mut self, peer: &Peer) -> Option<CompiledPeer> {
        Some(match peer {
            Peer::Pods(pods) => {
                let mut conditions = Conditions::default();
                match &pods.namespaces {
                    NamespaceMatch::Name(name) => conditions.yes.push(self.ask(Atom::Namespace(name.clone()))),
                    NamespaceMatch::Labels(selector) => self.labels(selector, Atom::NamespaceLabel, &mut conditions),
                }
                self.labels(&pods.pods, Atom::PodLabel, &mut conditions);
                if let Match::OneOf(names) = &pods.service_accounts {
                    let names: BTreeSet<String> = names.iter().cloned().collect();
                    conditions.impossible |= names.is_empty();
                    if !names.is_empty() {
                        conditions.yes.push(self.ask(Atom::ServiceAccount(names)));
                    }
                }
                CompiledPeer::Pods(conditions)
            }
            Peer::Nodes(selector) => {
                self.asks_addresses = true;
                let mut conditions = Conditions::default();
                self.labels(selector, Atom::NodeLabel, &mut conditions);
                CompiledPeer::Nodes(conditions)
            }
            Peer::World => {
                self.asks_addresses = true;
                CompiledPeer::World
            }
            Peer::Network { cidr, except } => {
                self.asks_addresses = true;
                let except = except
                    .iter()
                    .map(|block| self.ask(Atom::Cidr(canonical(*block))))
                    .collect();
                CompiledPeer::Network {
                    cidr: self.ask(Atom::Cidr(canonical(*cidr))),
                    except,
                }
            }
            // Written out before, see `references`.
            Peer::Service(_) | Peer::AddressGroup(_) => return None,
        })
    }

    fn labels(&mut self, selector: &LabelSelector, atom: fn(String, LabelTest) -> Atom, conditions: &mut Conditions) {
        for requirement in &selector.0 {
            let mut ask = |test: LabelTest| self.ask(atom(requirement.key.clone(), test));
            match &requirement.operator {
                Operator::In(values) if values.is_empty() => conditions.impossible = true,
                Operator::NotIn(values) if values.is_empty() => {}
                Operator::In(values) => conditions.yes.push(ask(LabelTest::In(values.clone()))),
                Operator::NotIn(values) => conditions.no.push(ask(LabelTest::In(values.clone()))),
                Operator::Exists => conditions.yes.push(ask(LabelTest::Exists)),
                Operator::DoesNotExist => conditions.no.push(ask(LabelTest::Exists)),
            }
        }
    }

    fn port(&mut self, port: &PortMatch, spans: &mut Vec<(u32, u32)>, named: &mut Vec<NamedMatch>) {
        match port {
            PortMatch::Range { protocol, first, last } => {
                if first <= last {
                    spans.push(span(*protocol, *first, *last));
                }
            }
            PortMatch::Icmp { version, message } => spans.push(icmp(*version, *message)),
            PortMatch::Named { protocol, name } => {
                for protocol in PROTOCOLS
                    .into_iter()
                    .filter(|each| protocol.is_none_or(|wanted| wanted == *each))
                {
                    let asks_peer = self.direction == Direction::Egress;
                    let atom = asks_peer.then(|| self.ask(Atom::NamedPort(name.clone(), protocol)));
                    named.push(NamedMatch {
                        name: name.clone(),
                        protocol,
                        atom,
                    });
                }
            }
        }
    }

    fn ask(&mut self, atom: Atom) -> AtomId {
        let id = (self.ask)(atom);
        self.atoms.insert(id);
        id
    }
}

/// Ports of a protocol as positions.
pub(crate) fn span(protocol: Protocol, first: u16, last: u16) -> (u32, u32) {
    let number = match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    };
    (Position::new(number, first).0, Position::new(number, last).0)
}

/// Messages of ICMP as positions.
fn icmp(version: IcmpVersion, message: IcmpMessage) -> (u32, u32) {
    let number = match version {
        IcmpVersion::V4 => protocol::ICMP,
        IcmpVersion::V6 => protocol::ICMPV6,
    };
    let (first, last) = match message {
        IcmpMessage::Any => (0, u16::MAX),
        IcmpMessage::Type(kind) => (u16::from_be_bytes([kind, 0]), u16::from_be_bytes([kind, u8::MAX])),
        IcmpMessage::Code(kind, code) => {
            let value = u16::from_be_bytes([kind, code]);
            (value, value)
        }
    };
    (Position::new(number, first).0, Position::new(number, last).0)
}

/// Digest of all that decides what the part says: two parts with the same digest are the same function.
fn part_digest(policy: &Policy, direction: Direction, rules: &[Rule]) -> Digest {
    let mut fields = Fields::default();
    (
        &policy.key,
        &policy.uid,
        policy.generation,
        policy.tier,
        policy.priority,
        policy.mode,
        policy.manner,
    )
        .hash(&mut fields);
    (direction, rules).hash(&mut fields);
    Digest::of("policy part", [fields.0.as_slice()])
}

/// Collects what `Hash` feeds it, the same bytes on every machine: the derived `Hash` of a value names its variants and
/// lengths, so different values give different bytes.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Hasher for Fields {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write(&u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes());
    }

    fn write_i64(&mut self, number: i64) {
        self.write(&number.to_le_bytes());
    }

    fn write_isize(&mut self, number: isize) {
        self.write(&i64::try_from(number).unwrap_or(i64::MAX).to_le_bytes());
    }

    fn finish(&self) -> u64 {
        // Nobody asks for the short form: the bytes go into a Digest.
        0
    }
}
