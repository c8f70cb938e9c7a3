//! Wanted rulesets and port sets into numbers, and their entries into RULES.
//!
//! A ruleset is a function, and its number stands for it: while an endpoint uses the number, an entry may only be added or
//! removed where nobody can ask for it (no address is bound to the identity). A wanted ruleset that differs in an entry
//! somebody can ask for gets a new number, and its endpoints flip.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use bulkhead_verdict::layout::{self, Alternative, action, guard, identity, rule, side};

use super::{
    Planner,
    changes::Work,
    dirty::Dirty,
    error::PlanError,
    portset::{Content, Interval, check, name_of},
};
use crate::{
    digest::Digest,
    intern::Name,
    model::{Answer, Builtin, Guard, OnChange, RuleName, Side},
    state::{self, Decision, PeerId, PortSet, Ruleset},
};

/// Contents of the port sets one plan has looked at, by the place of the shared set: most entries share theirs.
#[derive(Default)]
pub(crate) struct Contents(HashMap<*const PortSet, (Digest, Rc<Content>)>);

/// What a person reads about a ruleset.
fn text_of(ruleset: &Ruleset) -> String {
    match ruleset.policies.as_slice() {
        [] => format!("{} of no policy", ruleset.direction),
        policies => format!("{} of {}", ruleset.direction, policies.join(", ")),
    }
}

impl Planner {
    /// Brings wanted rulesets and entries into RULES, under the number they have, or under a new one.
    pub(crate) fn write_rulesets(
        &mut self,
        dirty: &Dirty,
        work: &mut Work,
        contents: &mut Contents,
    ) -> Result<(), PlanError> {
        for digest in dirty.rulesets.iter().chain(dirty.entries.keys()) {
            match (
                self.state.rulesets.get(digest).cloned(),
                self.kernel.rulesets.number(digest),
            ) {
                (Some(ruleset), Some(number)) => {
                    let peers = self.peers_to_look_at(dirty, *digest, number, &ruleset, work);
                    if self.differs(number, *digest, &ruleset, &peers, work, contents)? {
                        self.renumber(*digest, work, contents)?;
                    } else {
                        self.write_entries(number, *digest, &ruleset, &peers, work, contents)?;
                        self.rename(number, &ruleset);
                    }
                }
                (Some(_), None) => self.renumber(*digest, work, contents)?,
                (None, Some(number)) => drop(work.stale_rulesets.insert(number)),
                (None, None) => {}
            }
        }
        Ok(())
    }

    fn peers_to_look_at(
        &self,
        dirty: &Dirty,
        digest: Digest,
        number: u32,
        ruleset: &Ruleset,
        work: &mut Work,
    ) -> Vec<PeerId> {
        if !dirty.everything {
            return dirty.entries.get(&digest).into_iter().flatten().copied().collect();
        }
        let mut peers: Vec<PeerId> = ruleset.entries.keys().copied().collect();
        for peer in self.kernel.peers_of(number) {
            match self.peer(peer) {
                Some(peer) if ruleset.entries.contains_key(&peer) => {}
                Some(peer) => peers.push(peer),
                None => drop(work.stale_entries.insert((number, peer))),
            }
        }
        peers
    }

    /// The peer a number stands for; `None` for a transition identity, or one without a name.
    pub(crate) fn peer(&self, number: u32) -> Option<PeerId> {
        match number {
            identity::UNKNOWN_POD => Some(PeerId::UnknownPod),
            identity::ANY_POD => Some(PeerId::AnyPod),
            identity::ANY_NODE => Some(PeerId::AnyNode),
            identity::ANY_ADDRESS => Some(PeerId::AnyAddress),
            _ => {
                let digest = self.kernel.identities.name(number)?.digest;
                (self.kernel.identities.number(&digest) == Some(number)).then_some(PeerId::Identity(digest))
            }
        }
    }

    /// Whether a ruleset that is in use is wanted with other entries than it has, for peers that can be asked for.
    fn differs(
        &mut self,
        number: u32,
        digest: Digest,
        ruleset: &Ruleset,
        peers: &[PeerId],
        work: &Work,
        contents: &mut Contents,
    ) -> Result<bool, PlanError> {
        if self.kernel.users.count(&number) == 0 {
            return Ok(false);
        }
        for peer in peers {
            let Some(peer_number) = self.known(*peer) else { continue };
            let reserved = peer_number < layout::identity::FIRST_INTERNED;
            let now = reserved || self.kernel.bound.count(&peer_number) != 0;
            let has = self.kernel.entries.contains_key(&(number, peer_number));
            let differs = match ruleset.entries.get(peer) {
                Some(ports) => {
                    let (name, _) = self.content(digest, *peer, ports, contents)?;
                    now && self.kernel.content(number, peer_number) != Some(name)
                }
                None => has && now && (reserved || self.bound_after(work, peer_number)),
            };
            if differs {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_entries(
        &mut self,
        number: u32,
        digest: Digest,
        ruleset: &Ruleset,
        peers: &[PeerId],
        work: &mut Work,
        contents: &mut Contents,
    ) -> Result<(), PlanError> {
        for peer in peers {
            if let Some(ports) = ruleset.entries.get(peer) {
                let (_, content) = self.content(digest, *peer, ports, contents)?;
                let peer = self.number(*peer);
                self.kernel.put_content(number, peer, &content);
            } else if let Some(peer) = self.known(*peer) {
                work.stale_entries.insert((number, peer));
            }
        }
        Ok(())
    }

    /// Writes a wanted ruleset whole, under a new number. Its endpoints will flip to it.
    pub(crate) fn renumber(
        &mut self,
        digest: Digest,
        work: &mut Work,
        contents: &mut Contents,
    ) -> Result<(), PlanError> {
        let Some(ruleset) = self.state.rulesets.get(&digest).cloned() else {
            return Ok(());
        };
        let old = self.kernel.rulesets.number(&digest);
        work.stale_rulesets.extend(old);
        let number = self.kernel.add_ruleset(&Name::new(digest, &text_of(&ruleset)));
        let peers: Vec<PeerId> = ruleset.entries.keys().copied().collect();
        self.write_entries(number, digest, &ruleset, &peers, work, contents)?;
        if old.is_some_and(|old| self.kernel.users.count(&old) != 0) {
            let users = self.state.endpoints.iter();
            let users = users.filter(|(_, endpoint)| endpoint.egress == digest || endpoint.ingress == digest);
            let users: Vec<_> = users
                .filter_map(|(key, _)| Some((self.slot(key)?, key.clone())))
                .collect();
            work.endpoints.extend(users);
        }
        Ok(())
    }

    /// The text for people follows the state; the digest says that nothing else changed.
    fn rename(&mut self, number: u32, ruleset: &Ruleset) {
        if let Some(name) = self.kernel.rulesets.name(number) {
            let wanted = Name::new(name.digest, &text_of(ruleset));
            if *name != wanted {
                self.kernel.rename_ruleset(number, wanted);
            }
        }
    }

    /// True when a ruleset number is the one in use for a wanted ruleset.
    pub(crate) fn ruleset_wanted(&self, number: u32) -> Option<&Arc<Ruleset>> {
        let digest = self.kernel.rulesets.name(number)?.digest;
        let wanted = self.state.rulesets.get(&digest)?;
        (self.kernel.rulesets.number(&digest) == Some(number)).then_some(wanted)
    }

    /// True when an entry is wanted as such.
    pub(crate) fn entry_wanted(&self, ruleset: u32, peer: u32) -> bool {
        let wanted = self.ruleset_wanted(ruleset);
        wanted.is_some_and(|wanted| self.peer(peer).is_some_and(|peer| wanted.entries.contains_key(&peer)))
    }

    // --- port sets ------------------------------------------------------------------------------------------------

    fn content(
        &mut self,
        ruleset: Digest,
        peer: PeerId,
        ports: &Arc<PortSet>,
        contents: &mut Contents,
    ) -> Result<(Digest, Rc<Content>), PlanError> {
        if let Some(found) = contents.0.get(&Arc::as_ptr(ports)) {
            return Ok(found.clone());
        }
        let mut content = Content::with_capacity(ports.ranges.len());
        for range in &ports.ranges {
            content.push(Interval {
                low: range.low,
                high: range.high,
                enforce: range.enforce.iter().map(|one| self.alternative(one)).collect(),
                shadow: range.shadow.iter().map(|one| self.alternative(one)).collect(),
            });
        }
        check(&content).map_err(|problem| PlanError::BrokenPortSet {
            ruleset,
            peer: peer.to_string(),
            problem,
        })?;
        let found = (name_of(&content), Rc::new(content));
        contents.0.insert(Arc::as_ptr(ports), found.clone());
        Ok(found)
    }

    fn alternative(&mut self, wanted: &state::Alternative) -> Alternative {
        let mut action = match wanted.decision {
            Decision::Allow => action::ALLOW,
            Decision::Deny => action::DENY,
        };
        action |= match wanted.manner.on_change {
            OnChange::Reevaluate => 0,
            OnChange::Drain => action::DRAIN,
            OnChange::Keep => action::KEEP,
        };
        if wanted.decision == Decision::Deny {
            if wanted.manner.answer == Answer::Reject {
                action |= action::REJECT;
            }
            if matches!(wanted.rule, RuleName::DefaultDeny { .. }) {
                action |= action::DEFAULT;
            }
        }
        let mut cell = Alternative {
            rule: self.rule_number(&wanted.rule),
            action,
            ..Alternative::default()
        };
        match &wanted.guard {
            None => cell.guard = guard::NONE,
            Some(Guard::Lease {
                profile,
                side: whose,
                negated,
            }) => {
                cell.guard = guard::LEASE;
                cell.argument = profile.number();
                cell.side = match whose {
                    Side::Subject => side::SUBJECT,
                    Side::Peer => side::PEER,
                };
                cell.negated = u8::from(*negated);
            }
            Some(Guard::Until(expiry)) => {
                cell.guard = guard::UNTIL;
                cell.argument = *expiry;
            }
            Some(Guard::Name(names)) => {
                cell.guard = guard::NAME;
                cell.argument = names.number();
            }
        }
        cell
    }

    fn rule_number(&mut self, name: &RuleName) -> u32 {
        match name {
            RuleName::Builtin(Builtin::SelfTraffic) => rule::SELF,
            RuleName::Builtin(Builtin::Node) => rule::NODE,
            RuleName::Builtin(Builtin::DefaultAllow) => rule::DEFAULT_ALLOW,
            RuleName::Builtin(Builtin::Control) => rule::CONTROL,
            RuleName::Builtin(Builtin::Unmanaged) => rule::UNMANAGED,
            RuleName::Builtin(Builtin::MixedBackends) => rule::MIXED_BACKENDS,
            RuleName::Builtin(Builtin::Forwarded) => rule::FORWARDED,
            RuleName::Builtin(Builtin::Failsafe) => rule::FAILSAFE,
            RuleName::Builtin(Builtin::NodePort) => rule::NODE_PORT,
            RuleName::Rule { .. } | RuleName::DefaultDeny { .. } => self.kernel.rule(&name.to_string()),
        }
    }
}
