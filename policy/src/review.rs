//! What would be wrong with an object if it were there, and what would not fit: asked before it is.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    capacity::Demand,
    compiler::Compiler,
    diagnostic::Diagnostic,
    model::{Event, Object, ObjectKey},
    state::State,
};

/// Nodes whose capacity a review looks at: those with the most pods.
const NODES_MAX: usize = 8;

impl Compiler {
    /// What is wrong or suspicious with a policy as it would be among the objects that are there, and what would not fit on the
    /// nodes with the most pods. Of an [`Object::AddressGroup`], only the latter. Costs what writing the object twice does, and
    /// leaves everything as it was.
    pub fn review(&mut self, object: &Object) -> Vec<Diagnostic> {
        let key = object.key();
        let (name, before) = match &key {
            ObjectKey::Policy(key) => {
                let before = self
                    .policies
                    .get(key)
                    .map(|compiled| Object::Policy(compiled.policy.as_ref().clone()));
                (key.to_string().replacen('/', " ", 1), before)
            }
            ObjectKey::AddressGroup(name) => {
                let before = self.references.group(name).cloned().map(Object::AddressGroup);
                (format!("AddressGroup {name}"), before)
            }
            _ => return Vec::new(),
        };
        let did_not_fit = self.capacity(NODES_MAX);
        let changes = self.apply(&[Event::Upsert(object.clone())]);
        let mut found = changes.diagnostics;
        found.retain(|found| found.object == name);
        if !changes.delta.is_empty() {
            // What was so before is not this object's doing.
            found.extend(
                self.capacity(NODES_MAX)
                    .into_iter()
                    .filter(|found| !did_not_fit.contains(found)),
            );
        }
        let back = before.map_or_else(|| Event::Delete(key), Event::Upsert);
        self.apply(&[back]);
        found
    }

    /// What does not fit in the kernel's maps, or leaves no room to replace it, on the `nodes_max` nodes with the most pods.
    pub fn capacity(&self, nodes_max: usize) -> Vec<Diagnostic> {
        let state = self.state();
        let mut endpoints: BTreeMap<&str, State> = BTreeMap::new();
        for (key, endpoint) in &state.endpoints {
            if let Some(node) = &endpoint.node {
                let part = endpoints.entry(node).or_default();
                part.endpoints.insert(key.clone(), endpoint.clone());
            }
        }
        let mut by_size: Vec<(&str, State)> = endpoints.into_iter().collect();
        by_size.sort_by_key(|(name, part)| (std::cmp::Reverse(part.endpoints.len()), *name));
        let mut found = Vec::new();
        for (node, mut part) in by_size.into_iter().take(nodes_max) {
            let rulesets: BTreeSet<_> = part.endpoints.values().flat_map(|it| [it.egress, it.ingress]).collect();
            let known = rulesets
                .into_iter()
                .filter_map(|name| Some((name, state.rulesets.get(&name)?.clone())));
            part.rulesets = known.collect();
            let demand = Demand {
                // Every node holds these of the whole cluster.
                addresses: state.bindings.len(),
                networks: state.networks.len(),
                ..Demand::of(&part)
            };
            found.extend(demand.check(node));
        }
        found
    }
}
