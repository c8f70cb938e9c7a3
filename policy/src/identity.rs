//! Identities in use: sets of facts that hold of somebody, named by digest, counted by who bears them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    digest::Digest,
    questions::{AtomId, Fact, Questions},
    slab::Slab,
    state,
};

/// Number of an identity in use.
pub(crate) type IdentityId = u32;

/// What kind of thing bears an identity; it decides which peers can match at all, and which entry is the fallback.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Bearer {
    /// A bound pod.
    Pod,
    /// A node.
    Node,
    /// An address that is nobody's we know and outside the pod ranges.
    Outside,
    /// An address inside the pod ranges that is not bound: some pod, we do not know which, but we know the address.
    UnboundPod,
    /// Somebody of whom not even the address is certain: the reserved identity `UnknownPod`.
    Unknown,
}

impl Bearer {
    fn text(self) -> Option<&'static str> {
        match self {
            Self::Pod => Some("pod"),
            Self::Node => Some("node"),
            Self::UnboundPod | Self::Unknown => Some("unknown pod"),
            Self::Outside => None,
        }
    }
}

/// An identity in use.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) bearer: Bearer,
    /// Sorted by atom number, each atom once.
    pub(crate) facts: Arc<[Fact]>,
    pub(crate) digest: Digest,
    bearers: u32,
    /// Made in this step, so no ruleset knows it yet.
    fresh: bool,
}

/// What a step did to the identities.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) born: Vec<IdentityId>,
    pub(crate) died: Vec<IdentityId>,
}

/// All identities in use.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    entries: Slab<Entry>,
    ids: HashMap<(Bearer, Arc<[Fact]>), IdentityId>,
    by_atom: HashMap<AtomId, BTreeSet<IdentityId>>,
    unbound_pods: BTreeSet<IdentityId>,
    touched: BTreeSet<IdentityId>,
}

impl Identities {
    /// Counts one more bearer of the identity with these facts (in any order, without duplicates).
    pub(crate) fn bear(&mut self, bearer: Bearer, mut facts: Vec<Fact>, questions: &Questions) -> IdentityId {
        facts.sort_unstable();
        let facts: Arc<[Fact]> = facts.into();
        if let Some(id) = self.ids.get(&(bearer, Arc::clone(&facts))).copied() {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.bearers += 1;
            }
            return id;
        }
        let digest = digest(bearer, &facts, questions);
        let id = self.entries.insert(Entry {
            bearer,
            facts: Arc::clone(&facts),
            digest,
            bearers: 1,
            fresh: true,
        });
        for (atom, _) in facts.iter() {
            self.by_atom.entry(*atom).or_default().insert(id);
        }
        if bearer == Bearer::UnboundPod {
            self.unbound_pods.insert(id);
        }
        self.ids.insert((bearer, facts), id);
        self.touched.insert(id);
        id
    }

    /// Counts one bearer less.
    pub(crate) fn shed(&mut self, id: IdentityId) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.bearers = entry.bearers.saturating_sub(1);
            if entry.bearers == 0 {
                self.touched.insert(id);
            }
        }
    }

    /// Ends a step: which identities are new, and which nobody bears any more. The latter stay readable until `free`.
    pub(crate) fn settle(&mut self) -> Settled {
        let mut settled = Settled::default();
        for id in std::mem::take(&mut self.touched) {
            let Some(entry) = self.entries.get_mut(id) else {
                continue;
            };
            let fresh = std::mem::replace(&mut entry.fresh, false);
            match (entry.bearers, fresh) {
                (0, true) => self.free(id),
                (0, false) => settled.died.push(id),
                (_, true) => settled.born.push(id),
                (_, false) => {}
            }
        }
        settled
    }

    /// Removes an identity nobody bears.
    pub(crate) fn free(&mut self, id: IdentityId) {
        let Some(entry) = self.entries.remove(id) else { return };
        for (atom, _) in entry.facts.iter() {
            if let Some(ids) = self.by_atom.get_mut(atom) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_atom.remove(atom);
                }
            }
        }
        self.unbound_pods.remove(&id);
        self.ids.remove(&(entry.bearer, entry.facts));
    }

    pub(crate) fn get(&self, id: IdentityId) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(crate) fn digest(&self, id: IdentityId) -> Option<Digest> {
        self.entries.get(id).map(|entry| entry.digest)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.values().next().is_none()
            && self.ids.is_empty()
            && self.by_atom.is_empty()
            && self.unbound_pods.is_empty()
    }

    /// Identities somebody bears and of which the atom holds.
    pub(crate) fn with_atom(&self, atom: AtomId) -> impl Iterator<Item = IdentityId> {
        self.by_atom
            .get(&atom)
            .into_iter()
            .flatten()
            .copied()
            .filter(|id| self.is_borne(*id))
    }

    /// How many identities of which the atom holds there are.
    pub(crate) fn count(&self, atom: AtomId) -> usize {
        self.by_atom.get(&atom).map_or(0, BTreeSet::len)
    }

    /// Identities of unbound addresses in pod ranges.
    pub(crate) fn unbound_pods(&self) -> impl Iterator<Item = IdentityId> {
        self.unbound_pods.iter().copied().filter(|id| self.is_borne(*id))
    }

    fn is_borne(&self, id: IdentityId) -> bool {
        self.entries.get(id).is_some_and(|entry| entry.bearers > 0)
    }
}

/// The identity as people read it, atoms in their own order.
pub(crate) fn describe(entry: &Entry, questions: &Questions) -> state::Identity {
    let mut atoms: Vec<_> = entry
        .facts
        .iter()
        .filter_map(|(atom, number)| Some((questions.atom(*atom)?, *number)))
        .collect();
    atoms.sort_unstable();
    let kind = entry.bearer.text().map(str::to_owned);
    let atoms = kind
        .into_iter()
        .chain(atoms.into_iter().map(|(atom, number)| atom.text(number)))
        .collect();
    state::Identity { atoms }
}

/// Digest of the facts, independent of the order in which policies came to ask them.
fn digest(bearer: Bearer, facts: &[Fact], questions: &Questions) -> Digest {
    let mut fields: Vec<[u8; 34]> = facts
        .iter()
        .filter_map(|(atom, number)| {
            let mut field = [0; 34];
            field[..32].copy_from_slice(&questions.digest(*atom)?.0);
            field[32..].copy_from_slice(&number.to_be_bytes());
            Some(field)
        })
        .collect();
    fields.sort_unstable();
    let kind = bearer.text().unwrap_or("address").as_bytes();
    Digest::of(
        "identity",
        std::iter::once(kind).chain(fields.iter().map(<[u8; 34]>::as_slice)),
    )
}
