//! Does a selector match labels? And the anchor: the one condition of a selector under which the index files it.

use crate::model::{LabelSelector, Labels, Match, NamespaceMatch, Operator, PodMatch, Requirement, Workload};

impl Requirement {
    /// True when an object with these labels fulfils the requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl LabelSelector {
    /// True when an object with these labels fulfils every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }

    /// The first `In`: an object that matches carries one of these labels.
    pub(crate) fn required_label(&self) -> Option<(&String, &std::collections::BTreeSet<String>)> {
        self.0.iter().find_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&requirement.key, values)),
            _ => None,
        })
    }
}

impl PodMatch {
    /// True when it matches a pod whose namespace has these labels.
    #[must_use]
    pub fn matches(&self, namespace_labels: &Labels, workload: &Workload) -> bool {
        let in_namespace = match &self.namespaces {
            NamespaceMatch::Name(name) => *name == workload.key.namespace,
            NamespaceMatch::Labels(selector) => selector.matches(namespace_labels),
        };
        let of_account = match &self.service_accounts {
            Match::Any => true,
            Match::OneOf(names) => names.contains(&workload.service_account),
        };
        in_namespace && of_account && self.pods.matches(&workload.labels)
    }

    /// Where the index files this selector. A pod that matches is found under at least one of them.
    pub(crate) fn anchors(&self) -> Vec<Anchor> {
        let namespace = match &self.namespaces {
            NamespaceMatch::Name(name) => Some(name.clone()),
            NamespaceMatch::Labels(_) => None,
        };
        match self.pods.required_label() {
            None => vec![Anchor { namespace, label: None }],
            Some((key, values)) => values
                .iter()
                .map(|value| Anchor {
                    namespace: namespace.clone(),
                    label: Some((key.clone(), value.clone())),
                })
                .collect(),
        }
    }
}

/// A condition every pod that a selector matches fulfils: its namespace's name and one label, as far as the selector says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Anchor {
    pub(crate) namespace: Option<String>,
    pub(crate) label: Option<(String, String)>,
}

impl Anchor {
    /// The anchors a pod fulfils.
    pub(crate) fn of_pod(namespace: &str, labels: &Labels) -> impl Iterator<Item = Self> {
        [Some(namespace.to_owned()), None]
            .into_iter()
            .flat_map(move |namespace| {
                std::iter::once(None)
                    .chain(labels.iter().map(|(key, value)| Some((key.clone(), value.clone()))))
                    .map(move |label| Self {
                        namespace: namespace.clone(),
                        label,
                    })
            })
    }
}
