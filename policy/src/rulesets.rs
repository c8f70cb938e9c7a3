//! Rulesets in use: named by what they are made of, counted by endpoints, written out for the identities that exist.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    digest::Digest,
    flatten::{Flattened, Isolation, LiveRule, Span, flatten, uniform},
    identity::{Bearer, Identities, IdentityId, Settled},
    model::{Action, Builtin, Direction, Manner, Mode, Protocol, RuleName, Tier},
    program::{Certainty, CompiledRule, Part, View, span},
    questions::AtomId,
    recorder::Recorder,
    slab::Slab,
    state::{Decision, PeerId, PortSet, Ruleset},
};

/// Number of a ruleset in use.
pub(crate) type RulesetId = u32;

/// The subject's own container ports, as far as ingress rules ask for them by name.
pub(crate) type SubjectPorts = BTreeMap<(String, Protocol), u16>;

/// A direction's policies for a subject: what a ruleset is compiled from and named after.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) direction: Direction,
    /// In order: tier, priority, policy.
    pub(crate) parts: Vec<Arc<Part>>,
    pub(crate) subject_ports: SubjectPorts,
    /// Of the control plane's own pods: everything is allowed, and no policy has a say.
    pub(crate) control: bool,
    /// What is allowed before any policy has a say: a node's.
    pub(crate) openings: Vec<Openings>,
}

/// Positions that a builtin rule allows before every policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Openings {
    pub(crate) rule: RuleName,
    /// In order.
    pub(crate) spans: Vec<(u32, u32)>,
}

/// Port sets already flattened, by what of the peer mattered.
type Memo = HashMap<Vec<u32>, Arc<PortSet>>;

/// A rule that was cut off because its list of alternatives was too long.
pub(crate) type Cut = BTreeSet<RuleName>;

#[derive(Debug)]
struct Entry {
    name: Digest,
    program: Program,
    /// Atoms it is filed under: who bears none of them gets what the reserved peers get.
    triggers: BTreeSet<AtomId>,
    endpoints: u32,
    fresh: bool,
    defaults: Option<Defaults>,
}

/// What the reserved peers get; an identity gets an entry only where it differs.
#[derive(Debug)]
struct Defaults {
    pod: Arc<PortSet>,
    node: Arc<PortSet>,
    address: Arc<PortSet>,
    unknown: Arc<PortSet>,
}

/// All rulesets in use.
#[derive(Debug, Default)]
pub(crate) struct Rulesets {
    entries: Slab<Entry>,
    ids: HashMap<Digest, RulesetId>,
    by_atom: HashMap<AtomId, BTreeSet<RulesetId>>,
    /// Those that ask for addresses or nodes.
    address_askers: BTreeSet<RulesetId>,
    touched: BTreeSet<RulesetId>,
    /// How many the last step compiled, in whole or in part.
    looked_at: usize,
}

impl Program {
    /// Content name: policies in order, and what the subject's own named ports are.
    fn name(&self) -> Digest {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).to_le_bytes();
        let mut bytes = vec![u8::from(self.direction == Direction::Ingress) | u8::from(self.control) << 1];
        bytes.extend(count(self.parts.len()));
        self.parts.iter().for_each(|part| bytes.extend(part.digest.0));
        for ((name, protocol), number) in &self.subject_ports {
            bytes.extend(count(name.len()));
            bytes.extend(name.as_bytes());
            bytes.push(match protocol {
                Protocol::Tcp => 0,
                Protocol::Udp => 1,
                Protocol::Sctp => 2,
            });
            bytes.extend(number.to_le_bytes());
        }
        for Openings { rule, spans } in &self.openings {
            bytes.extend(rule.to_string().as_bytes());
            bytes.extend(count(spans.len()));
            for (low, high) in spans {
                bytes.extend(low.to_le_bytes());
                bytes.extend(high.to_le_bytes());
            }
        }
        Digest::of("ruleset", [bytes.as_slice()])
    }

    /// See [`CompiledRule::triggers`].
    fn triggers(&self, identities: &Identities) -> BTreeSet<AtomId> {
        let mut triggers = BTreeSet::new();
        let count = |atom| identities.count(atom);
        self.rules().for_each(|(_, rule)| rule.triggers(&count, &mut triggers));
        triggers
    }

    fn isolation(&self) -> Isolation<'_> {
        let first = |enforced_only: bool| {
            let mut parts = self
                .parts
                .iter()
                .filter(move |part| !enforced_only || part.mode == Mode::Enforce);
            parts.find_map(|part| Some((part.isolation.as_ref()?, part.manner)))
        };
        Isolation {
            enforce: first(true),
            shadow: first(false),
        }
    }

    fn rules(&self) -> impl Iterator<Item = (&Part, &CompiledRule)> {
        self.parts
            .iter()
            .flat_map(|part| part.rules.iter().map(move |rule| (part.as_ref(), rule)))
    }

    /// What the ruleset says of a peer.
    fn port_set(&self, view: &View<'_>, memo: &mut Memo, cut: &mut Cut) -> Arc<PortSet> {
        if self.control {
            return Arc::new(uniform(Decision::Allow, RuleName::Builtin(Builtin::Control)));
        }
        let mut key = Vec::new();
        let mut rules = Vec::new();
        for (part, rule) in self.rules() {
            let certainty = rule.certainty(view);
            key.push(match certainty {
                Certainty::Never => 0,
                Certainty::Maybe => 1,
                Certainty::Always => 2,
            });
            if certainty == Certainty::Never {
                continue;
            }
            for named in &rule.named {
                key.push(
                    self.answer(named, view)
                        .map_or(NO_PORT, |(first, _, certain)| first << 1 | u32::from(certain)),
                );
            }
            rules.push((part, rule, certainty));
        }
        if let Some(known) = memo.get(&key) {
            return Arc::clone(known);
        }
        let openings = self.openings.iter().map(Openings::live);
        let live: Vec<LiveRule<'_>> = openings
            .chain(
                rules
                    .into_iter()
                    .map(|(part, rule, certainty)| self.live(part, rule, certainty, view)),
            )
            .collect();
        let Flattened { ports, cut: new } = flatten(&live, self.isolation());
        cut.extend(new);
        let ports = Arc::new(ports);
        memo.insert(key, Arc::clone(&ports));
        ports
    }

    fn live<'a>(&self, part: &Part, rule: &'a CompiledRule, certainty: Certainty, view: &View<'_>) -> LiveRule<'a> {
        let sure = certainty == Certainty::Always;
        let fixed = rule.spans.iter().map(|(low, high)| Span {
            low: *low,
            high: *high,
            certain: sure,
        });
        let named = rule.named.iter().filter_map(|named| {
            let (low, high, certain) = self.answer(named, view)?;
            Some(Span {
                low,
                high,
                certain: certain && sure,
            })
        });
        LiveRule {
            tier: part.tier,
            action: rule.action,
            guard: rule.guard.clone(),
            mode: rule.mode,
            manner: part.manner,
            name: &rule.name,
            spans: fixed.chain(named).collect(),
        }
    }

    /// The positions a named port stands for, and whether that is certain.
    fn answer(&self, named: &crate::program::NamedMatch, view: &View<'_>) -> Option<(u32, u32, bool)> {
        let number = match (named.atom, view.bearer) {
            (None, _) => self.subject_ports.get(&(named.name.clone(), named.protocol)).copied(),
            (Some(atom), Bearer::Pod) => view.number(atom),
            (Some(_), Bearer::UnboundPod | Bearer::Unknown) => {
                let (low, high) = span(named.protocol, 1, u16::MAX);
                return Some((low, high, false));
            }
            (Some(_), Bearer::Node | Bearer::Outside) => None,
        };
        let (low, high) = span(named.protocol, number?, number?);
        Some((low, high, true))
    }
}

impl Openings {
    /// As the first rules there are.
    fn live(&self) -> LiveRule<'_> {
        let span = |(low, high): &(u32, u32)| Span {
            low: *low,
            high: *high,
            certain: true,
        };
        LiveRule {
            tier: Tier::Admin,
            action: Action::Allow,
            guard: None,
            mode: Mode::Enforce,
            manner: Manner::default(),
            name: &self.rule,
            spans: self.spans.iter().map(span).collect(),
        }
    }
}

/// Marks, in a memo's key, a named port the peer does not have; no position is that large.
const NO_PORT: u32 = u32::MAX;

impl Rulesets {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.values().next().is_none()
            && self.ids.is_empty()
            && self.by_atom.is_empty()
            && self.address_askers.is_empty()
    }

    /// How many the last step compiled, in whole or in part.
    pub(crate) fn looked_at(&self) -> usize {
        self.looked_at
    }

    /// Counts one more endpoint that has these rules.
    pub(crate) fn hold(&mut self, program: Program, identities: &Identities) -> (RulesetId, Digest) {
        let name = program.name();
        if let Some(id) = self.ids.get(&name).copied() {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.endpoints += 1;
            }
            return (id, name);
        }
        let triggers = program.triggers(identities);
        let asks = program.parts.iter().any(|part| part.asks_addresses);
        let id = self.entries.insert(Entry {
            name,
            program,
            triggers: triggers.clone(),
            endpoints: 1,
            fresh: true,
            defaults: None,
        });
        for atom in triggers {
            self.by_atom.entry(atom).or_default().insert(id);
        }
        if asks {
            self.address_askers.insert(id);
        }
        self.ids.insert(name, id);
        self.touched.insert(id);
        (id, name)
    }

    /// Counts one more endpoint for rulesets that are in use.
    pub(crate) fn hold_again(&mut self, ids: [RulesetId; 2]) -> Option<[(RulesetId, Digest); 2]> {
        let [first, second] = ids.map(|id| self.entries.get(id).map(|entry| (id, entry.name)));
        let held = [first?, second?];
        for (id, _) in held {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.endpoints += 1;
            }
        }
        Some(held)
    }

    /// Counts one endpoint less.
    pub(crate) fn release(&mut self, id: RulesetId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.endpoints = entry.endpoints.saturating_sub(1);
            if entry.endpoints == 0 {
                self.touched.insert(id);
            }
        }
    }

    /// Ends a step: new rulesets are written out, unused ones removed, and the others learn of new identities and forget
    /// those that are gone.
    pub(crate) fn settle(&mut self, identities: &Identities, changed: &Settled, output: &mut Recorder) -> Cut {
        let mut cut = Cut::new();
        let fresh = self.settle_own(output);
        let concerned = self.concerned(identities, changed, &fresh);
        self.looked_at = fresh.len() + concerned.len();
        for (ruleset, (born, died)) in concerned {
            let Some(entry) = self.entries.get(ruleset) else {
                continue;
            };
            for digest in died.into_iter().filter_map(|id| identities.digest(id)) {
                output.set_entry(entry.name, PeerId::Identity(digest), None);
            }
            let mut memo = Memo::new();
            for (peer, ports) in born
                .into_iter()
                .filter_map(|id| entry.identity(identities, id, &mut memo, &mut cut))
            {
                output.set_entry(entry.name, peer, Some(ports));
            }
        }
        for ruleset in fresh {
            let atoms = self
                .entries
                .get(ruleset)
                .map(|entry| entry.triggers.clone())
                .unwrap_or_default();
            let mut peers: BTreeSet<IdentityId> = atoms.iter().flat_map(|atom| identities.with_atom(*atom)).collect();
            if self.address_askers.contains(&ruleset) {
                peers.extend(identities.unbound_pods());
            }
            let Some(entry) = self.entries.get_mut(ruleset) else {
                continue;
            };
            output.set_ruleset(entry.name, Some(entry.write_out(identities, peers, &mut cut)));
        }
        cut
    }

    /// Removes the unused; returns the new.
    fn settle_own(&mut self, output: &mut Recorder) -> BTreeSet<RulesetId> {
        let mut new = BTreeSet::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(entry) = self.entries.get_mut(id) else {
                continue;
            };
            let fresh = std::mem::replace(&mut entry.fresh, false);
            if entry.endpoints > 0 {
                if fresh {
                    new.insert(id);
                }
                continue;
            }
            let name = entry.name;
            if !fresh {
                output.set_ruleset(name, None);
            }
            self.remove(id);
        }
        new
    }

    fn remove(&mut self, id: RulesetId) {
        let Some(entry) = self.entries.remove(id) else { return };
        for atom in entry.triggers {
            if let Some(ids) = self.by_atom.get_mut(&atom) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_atom.remove(&atom);
                }
            }
        }
        self.address_askers.remove(&id);
        self.ids.remove(&entry.name);
    }

    /// Which of the older rulesets ask something that holds of an identity that came or went.
    fn concerned(
        &self,
        identities: &Identities,
        changed: &Settled,
        fresh: &BTreeSet<RulesetId>,
    ) -> BTreeMap<RulesetId, (Vec<IdentityId>, Vec<IdentityId>)> {
        let mut concerned: BTreeMap<RulesetId, (Vec<IdentityId>, Vec<IdentityId>)> = BTreeMap::new();
        let askers = |id: IdentityId| {
            let entry = identities.get(id);
            let facts = entry.into_iter().flat_map(|entry| entry.facts.iter());
            let mut rulesets: BTreeSet<RulesetId> = facts
                .filter_map(|(atom, _)| self.by_atom.get(atom))
                .flatten()
                .copied()
                .collect();
            if entry.is_some_and(|entry| entry.bearer == Bearer::UnboundPod) {
                rulesets.extend(&self.address_askers);
            }
            rulesets.into_iter().filter(|ruleset| !fresh.contains(ruleset))
        };
        for id in &changed.born {
            askers(*id).for_each(|ruleset| concerned.entry(ruleset).or_default().0.push(*id));
        }
        for id in &changed.died {
            askers(*id).for_each(|ruleset| concerned.entry(ruleset).or_default().1.push(*id));
        }
        concerned
    }
}

impl Entry {
    /// The whole ruleset: reserved peers, then the given identities.
    fn write_out(&mut self, identities: &Identities, peers: BTreeSet<IdentityId>, cut: &mut Cut) -> Ruleset {
        let mut memo = Memo::new();
        let mut reserved = |bearer| self.program.port_set(&View { bearer, facts: &[] }, &mut memo, cut);
        let defaults = Defaults {
            pod: reserved(Bearer::Pod),
            node: reserved(Bearer::Node),
            address: reserved(Bearer::Outside),
            unknown: reserved(Bearer::Unknown),
        };
        let mut entries = BTreeMap::from([(PeerId::AnyAddress, Arc::clone(&defaults.address))]);
        for (peer, ports) in [(PeerId::AnyPod, &defaults.pod), (PeerId::AnyNode, &defaults.node)] {
            if *ports != defaults.address {
                entries.insert(peer, Arc::clone(ports));
            }
        }
        // A contested address is bound, as a pod or as a node, so the entry must be there where either of their
        // fallbacks differs, not only where any address does.
        if [&defaults.address, &defaults.pod, &defaults.node]
            .iter()
            .any(|ports| **ports != defaults.unknown)
        {
            entries.insert(PeerId::UnknownPod, Arc::clone(&defaults.unknown));
        }
        self.defaults = Some(defaults);
        entries.extend(
            peers
                .into_iter()
                .filter_map(|id| self.identity(identities, id, &mut memo, cut)),
        );
        let policies = self.program.parts.iter().map(|part| part.text.clone()).collect();
        Ruleset {
            direction: self.program.direction,
            policies,
            entries,
        }
    }

    /// The entry of an identity, if it says anything else than the fallback.
    fn identity(
        &self,
        identities: &Identities,
        id: IdentityId,
        memo: &mut Memo,
        cut: &mut Cut,
    ) -> Option<(PeerId, Arc<PortSet>)> {
        let (identity, defaults) = (identities.get(id)?, self.defaults.as_ref()?);
        let view = View {
            bearer: identity.bearer,
            facts: &identity.facts,
        };
        let ports = self.program.port_set(&view, memo, cut);
        let fallback = match identity.bearer {
            Bearer::Pod => &defaults.pod,
            Bearer::Node => &defaults.node,
            Bearer::Outside => &defaults.address,
            Bearer::UnboundPod | Bearer::Unknown => &defaults.unknown,
        };
        (ports != *fallback).then_some((PeerId::Identity(identity.digest), ports))
    }
}
