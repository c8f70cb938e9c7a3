//! The policies as they are now, filed so that those which select a pod are found from the pod's namespace and labels.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    model::{Labels, Policy, PolicyKey, Tier, Workload},
    program::CompiledPolicy,
    selector::Anchor,
};

/// The total order of policies: tier, priority, key.
type Order = (Tier, u32, PolicyKey);

/// All policies.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    by_key: BTreeMap<PolicyKey, Arc<CompiledPolicy>>,
    by_anchor: HashMap<Anchor, BTreeMap<Order, Arc<CompiledPolicy>>>,
    /// Those that apply to nodes: few.
    of_nodes: BTreeMap<Order, Arc<CompiledPolicy>>,
}

impl Policies {
    pub(crate) fn get(&self, key: &PolicyKey) -> Option<&Arc<CompiledPolicy>> {
        self.by_key.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<CompiledPolicy>> {
        self.by_key.values()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.by_anchor.is_empty() && self.of_nodes.is_empty()
    }

    /// Takes a policy as it is now; returns what it was.
    pub(crate) fn set(&mut self, key: &PolicyKey, new: Option<Arc<CompiledPolicy>>) -> Option<Arc<CompiledPolicy>> {
        let old = self.by_key.remove(key);
        if let Some(old) = &old {
            self.of_nodes.remove(&order(&old.policy));
            for anchor in anchors(&old.policy) {
                if let Some(filed) = self.by_anchor.get_mut(&anchor) {
                    filed.remove(&order(&old.policy));
                    if filed.is_empty() {
                        self.by_anchor.remove(&anchor);
                    }
                }
            }
        }
        if let Some(new) = new {
            if !new.policy.nodes.is_empty() {
                self.of_nodes.insert(order(&new.policy), Arc::clone(&new));
            }
            for anchor in anchors(&new.policy) {
                self.by_anchor
                    .entry(anchor)
                    .or_default()
                    .insert(order(&new.policy), Arc::clone(&new));
            }
            self.by_key.insert(key.clone(), new);
        }
        old
    }

    /// True when a policy applies to nodes, there or not.
    pub(crate) fn any_of_nodes(&self) -> bool {
        !self.of_nodes.is_empty()
    }

    /// The policies that select a node, in their total order.
    pub(crate) fn selecting_node(&self, labels: &Labels) -> Vec<&Arc<CompiledPolicy>> {
        let selects = |policy: &&Arc<CompiledPolicy>| policy.policy.nodes.iter().any(|nodes| nodes.matches(labels));
        self.of_nodes.values().filter(selects).collect()
    }

    /// The policies that select a workload, in their total order.
    pub(crate) fn selecting(&self, workload: &Workload, namespace_labels: &Labels) -> Vec<&Arc<CompiledPolicy>> {
        let namespace = &workload.key.namespace;
        let mut selecting: BTreeMap<&Order, &Arc<CompiledPolicy>> = BTreeMap::new();
        for anchor in Anchor::of_pod(namespace, &workload.labels) {
            for (order, policy) in self.by_anchor.get(&anchor).into_iter().flatten() {
                let subjects = &policy.policy.subject;
                if !selecting.contains_key(order)
                    && subjects
                        .iter()
                        .any(|subject| subject.matches(namespace_labels, workload))
                {
                    selecting.insert(order, policy);
                }
            }
        }
        selecting.into_values().collect()
    }
}

fn order(policy: &Policy) -> Order {
    (policy.tier, policy.priority, policy.key.clone())
}

fn anchors(policy: &Policy) -> BTreeSet<Anchor> {
    policy
        .subject
        .iter()
        .flat_map(crate::model::PodMatch::anchors)
        .collect()
}
