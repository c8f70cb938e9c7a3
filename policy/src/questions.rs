//! The questions in use: which atoms the policies ask, and which of them hold of a pod, a node or an address. Looking up
//! what holds costs as much as the object has labels, not as much as there are questions.

use std::{collections::HashMap, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::{
    atom::{Atom, LabelTest},
    digest::Digest,
    model::{Labels, Protocol, Workload},
    prefix::PrefixMap,
    slab::Slab,
};

/// Number of an atom in use.
pub(crate) type AtomId = u32;

/// An atom that holds, and the number it is answered with (0 for yes-or-no atoms).
pub(crate) type Fact = (AtomId, u16);

#[derive(Debug)]
struct Entry {
    atom: Atom,
    digest: Digest,
    /// How many policies ask it. At 0 it is taken out by [`Questions::forget`].
    askers: u32,
}

/// Questions about the labels of one kind of object.
#[derive(Debug, Default)]
struct LabelQuestions(HashMap<String, KeyQuestions>);

#[derive(Debug, Default)]
struct KeyQuestions {
    exists: Option<AtomId>,
    by_value: HashMap<String, Vec<AtomId>>,
}

/// The atoms that policies ask, with the number of policies that ask each.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    entries: Slab<Entry>,
    ids: HashMap<Atom, AtomId>,
    namespaces: HashMap<String, AtomId>,
    namespace_labels: LabelQuestions,
    pod_labels: LabelQuestions,
    /// By service account.
    accounts: HashMap<String, Vec<AtomId>>,
    node_labels: LabelQuestions,
    cidrs: PrefixMap<AtomId>,
    ports: HashMap<String, Vec<(Protocol, AtomId)>>,
}

impl Questions {
    /// Counts one more policy that asks the atom. True when it is the first one since the atom was (last) unused.
    pub(crate) fn ask(&mut self, atom: &Atom) -> (AtomId, bool) {
        if let Some(id) = self.ids.get(atom) {
            let first = self.entries.get_mut(*id).is_some_and(|entry| {
                entry.askers += 1;
                entry.askers == 1
            });
            return (*id, first);
        }
        let entry = Entry {
            atom: atom.clone(),
            digest: atom.digest(),
            askers: 1,
        };
        let id = self.entries.insert(entry);
        self.ids.insert(atom.clone(), id);
        self.file(atom, id);
        (id, true)
    }

    /// Counts one policy less. True when nobody asks it any more; it still holds where it held until `forget`.
    pub(crate) fn release(&mut self, id: AtomId) -> bool {
        self.entries.get_mut(id).is_some_and(|entry| {
            entry.askers = entry.askers.saturating_sub(1);
            entry.askers == 0
        })
    }

    /// Takes an unused atom out, so that it holds nowhere. Its number stays reserved until [`Questions::free`], because
    /// identities that will go in this step still name it.
    pub(crate) fn forget(&mut self, id: AtomId) {
        let Some(atom) = self.unused(id).cloned() else { return };
        self.ids.remove(&atom);
        let remove_label =
            |questions: &mut LabelQuestions, key: &str, test: &LabelTest| questions.remove(key, test, id);
        match &atom {
            Atom::Namespace(name) => drop(self.namespaces.remove(name)),
            Atom::NamespaceLabel(key, test) => remove_label(&mut self.namespace_labels, key, test),
            Atom::PodLabel(key, test) => remove_label(&mut self.pod_labels, key, test),
            Atom::ServiceAccount(names) => {
                for name in names {
                    if let Some(ids) = self.accounts.get_mut(name) {
                        ids.retain(|other| *other != id);
                        if ids.is_empty() {
                            self.accounts.remove(name);
                        }
                    }
                }
            }
            Atom::NodeLabel(key, test) => remove_label(&mut self.node_labels, key, test),
            Atom::Cidr(cidr) => drop(self.cidrs.remove(*cidr)),
            Atom::NamedPort(name, _) => {
                if let Some(asked) = self.ports.get_mut(name) {
                    asked.retain(|(_, other)| *other != id);
                    if asked.is_empty() {
                        self.ports.remove(name);
                    }
                }
            }
        }
    }

    /// Gives the number of a forgotten atom back.
    pub(crate) fn free(&mut self, id: AtomId) {
        if self.unused(id).is_some_and(|atom| self.ids.get(atom) != Some(&id)) {
            self.entries.remove(id);
        }
    }

    /// The atom when no policy asks it.
    pub(crate) fn unused(&self, id: AtomId) -> Option<&Atom> {
        self.entries
            .get(id)
            .filter(|entry| entry.askers == 0)
            .map(|entry| &entry.atom)
    }

    pub(crate) fn atom(&self, id: AtomId) -> Option<&Atom> {
        self.entries.get(id).map(|entry| &entry.atom)
    }

    pub(crate) fn digest(&self, id: AtomId) -> Option<Digest> {
        self.entries.get(id).map(|entry| entry.digest)
    }

    pub(crate) fn is_empty(&self) -> bool {
        let labels = [&self.namespace_labels, &self.pod_labels, &self.node_labels];
        self.entries.values().next().is_none()
            && self.ids.is_empty()
            && self.namespaces.is_empty()
            && self.accounts.is_empty()
            && self.ports.is_empty()
            && self.cidrs.keys().next().is_none()
            && labels.iter().all(|questions| questions.0.is_empty())
    }

    fn file(&mut self, atom: &Atom, id: AtomId) {
        match atom {
            Atom::Namespace(name) => drop(self.namespaces.insert(name.clone(), id)),
            Atom::NamespaceLabel(key, test) => self.namespace_labels.insert(key, test, id),
            Atom::PodLabel(key, test) => self.pod_labels.insert(key, test, id),
            Atom::ServiceAccount(names) => {
                for name in names {
                    self.accounts.entry(name.clone()).or_default().push(id);
                }
            }
            Atom::NodeLabel(key, test) => self.node_labels.insert(key, test, id),
            Atom::Cidr(cidr) => self.cidrs.insert(*cidr, id),
            Atom::NamedPort(name, protocol) => self.ports.entry(name.clone()).or_default().push((*protocol, id)),
        }
    }

    /// What holds of a pod, its address apart.
    pub(crate) fn of_pod(&self, namespace_labels: &Labels, workload: &Workload, facts: &mut Vec<Fact>) {
        facts.extend(self.namespaces.get(&workload.key.namespace).map(|id| (*id, 0)));
        self.namespace_labels.holding(namespace_labels, facts);
        self.pod_labels.holding(&workload.labels, facts);
        let asked = self.accounts.get(&workload.service_account).into_iter().flatten();
        facts.extend(asked.map(|id| (*id, 0)));
        let ports = &workload.named_ports;
        if self.ports.is_empty() {
            return;
        }
        for (at, port) in ports.iter().enumerate() {
            let earlier = ports
                .iter()
                .take(at)
                .any(|other| other.name == port.name && other.protocol == port.protocol);
            let asked = self.ports.get(&port.name).into_iter().flatten();
            let answered = asked.filter(|(protocol, _)| *protocol == port.protocol && !earlier);
            facts.extend(answered.map(|(_, id)| (*id, port.number)));
        }
    }

    /// What holds of a node, its address apart.
    pub(crate) fn of_node(&self, labels: &Labels, facts: &mut Vec<Fact>) {
        self.node_labels.holding(labels, facts);
    }

    /// The blocks an address lies in.
    pub(crate) fn of_address(&self, address: IpAddr, facts: &mut Vec<Fact>) {
        facts.extend(self.cidrs.covering(address, u8::MAX).map(|id| (*id, 0)));
    }

    /// The blocks a whole prefix lies in.
    pub(crate) fn of_prefix(&self, prefix: IpNetwork, facts: &mut Vec<Fact>) {
        facts.extend(
            self.cidrs
                .covering(prefix.network(), prefix.prefix())
                .map(|id| (*id, 0)),
        );
    }
}

impl LabelQuestions {
    fn insert(&mut self, key: &str, test: &LabelTest, id: AtomId) {
        let questions = self.0.entry(key.to_owned()).or_default();
        match test {
            LabelTest::Exists => questions.exists = Some(id),
            LabelTest::In(values) => {
                for value in values {
                    questions.by_value.entry(value.clone()).or_default().push(id);
                }
            }
        }
    }

    fn remove(&mut self, key: &str, test: &LabelTest, id: AtomId) {
        let Some(questions) = self.0.get_mut(key) else { return };
        match test {
            LabelTest::Exists => questions.exists = None,
            LabelTest::In(values) => {
                for value in values {
                    if let Some(ids) = questions.by_value.get_mut(value) {
                        ids.retain(|other| *other != id);
                        if ids.is_empty() {
                            questions.by_value.remove(value);
                        }
                    }
                }
            }
        }
        if questions.exists.is_none() && questions.by_value.is_empty() {
            self.0.remove(key);
        }
    }

    fn holding(&self, labels: &Labels, facts: &mut Vec<Fact>) {
        if self.0.is_empty() {
            return;
        }
        for (key, value) in labels {
            let Some(questions) = self.0.get(key) else { continue };
            facts.extend(questions.exists.map(|id| (id, 0)));
            facts.extend(questions.by_value.get(value).into_iter().flatten().map(|id| (*id, 0)));
        }
    }
}
