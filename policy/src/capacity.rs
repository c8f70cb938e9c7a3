//! How much of the kernel's maps a state needs, said before anything is written.

use std::{collections::BTreeSet, sync::Arc};

use bulkhead_verdict::layout::{ADDRESSES, ALTERNATIVES, ENDPOINTS, MAX_SEARCH, NETWORKS, RANGES, RULES};

use crate::{
    diagnostic::{Diagnostic, Severity},
    state::{Alternative, PortSet, State},
};

/// Entries of each map that a node needs for a state at rest. While one state replaces another, both are held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Demand {
    /// Entries of ADDRESSES.
    pub addresses: usize,
    /// Entries of NETWORKS.
    pub networks: usize,
    /// Slots of ENDPOINT.
    pub endpoints: usize,
    /// Entries of RULES.
    pub rules: usize,
    /// Indices of RANGES; equal port sets are stored once.
    pub ranges: usize,
    /// Indices of ALTERNATIVES; lists share what they end with.
    pub alternatives: usize,
    /// Ranges of the largest port set.
    pub largest_port_set: usize,
}

impl Demand {
    /// What a node needs for its part of a state ([`State::for_node`]).
    pub fn of(node: &State) -> Self {
        let entries = || node.rulesets.values().flat_map(|ruleset| ruleset.entries.values());
        let port_sets: BTreeSet<&Arc<PortSet>> = entries().collect();
        let lists = port_sets
            .iter()
            .flat_map(|ports| &ports.ranges)
            .flat_map(|range| [&range.enforce, &range.shadow]);
        let tails = |list| std::iter::successors(Some::<&[Alternative]>(list), |tail| tail.get(1..));
        let cells: BTreeSet<&[Alternative]> = lists
            .flat_map(|list| tails(list))
            .filter(|tail| !tail.is_empty())
            .collect();
        Self {
            addresses: node.bindings.len(),
            networks: node.networks.len(),
            endpoints: node.endpoints.len(),
            rules: entries().count(),
            ranges: port_sets.iter().map(|ports| ports.ranges.len()).sum(),
            alternatives: cells.len(),
            largest_port_set: port_sets.iter().map(|ports| ports.ranges.len()).max().unwrap_or(0),
        }
    }

    /// Map, what its entries are, how many are needed, how many there are.
    pub fn against_limits(&self) -> [(&'static str, &'static str, usize, u32); 6] {
        // Index 0 of ALTERNATIVES is never used.
        [
            ("ADDRESSES", "pods and nodes of the cluster", self.addresses, ADDRESSES),
            ("NETWORKS", "blocks of policies and pod ranges", self.networks, NETWORKS),
            ("ENDPOINT", "pods on the node", self.endpoints, ENDPOINTS),
            ("RULES", "pairs of ruleset and peer identity", self.rules, RULES),
            ("RANGES", "port ranges", self.ranges, RANGES),
            (
                "ALTERNATIVES",
                "alternatives of port ranges",
                self.alternatives,
                ALTERNATIVES - 1,
            ),
        ]
    }

    /// What does not fit (errors), and what leaves no room to replace it at once (warnings).
    pub fn check(&self, node: &str) -> Vec<Diagnostic> {
        let full = self
            .against_limits()
            .into_iter()
            .filter_map(|(map, what, need, limit)| finding(node, (map, what), need, limit));
        let largest = u32::try_from(self.largest_port_set).unwrap_or(u32::MAX);
        let wide = (largest > 1 << MAX_SEARCH).then(|| {
            let message = format!(
                "one port set needs {largest} ranges and the kernel searches {}; the node keeps what was in force; merge the \
                 ports of the rules that apply to one pod",
                1 << MAX_SEARCH
            );
            diagnostic(Severity::Error, node, message)
        });
        full.chain(wide).collect()
    }
}

fn finding(node: &str, (map, what): (&str, &str), need: usize, limit: u32) -> Option<Diagnostic> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let (severity, consequence) = if need > limit {
        (Severity::Error, "does not fit; the node keeps what was in force")
    } else if need > limit / 2 {
        (
            Severity::Warning,
            "fits, but a change of all of it at once would not, and would be refused",
        )
    } else {
        return None;
    };
    let message = format!(
        "needs {need} entries of {map} ({what}) and has {limit}: that {consequence}; use fewer or coarser policies, or fewer \
         pods on the node"
    );
    Some(diagnostic(severity, node, message))
}

fn diagnostic(severity: Severity, node: &str, message: String) -> Diagnostic {
    Diagnostic {
        severity,
        source: String::new(),
        object: format!("Node {node}"),
        field: String::new(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_an_error_and_what_cannot_be_replaced_a_warning() {
        let half = usize::try_from(RULES / 2).expect("a number");
        let severities = |rules: usize| {
            let found = Demand {
                rules,
                ..Demand::default()
            }
            .check("n");
            found
                .into_iter()
                .map(|it| (it.severity, it.message.contains("RULES")))
                .collect::<Vec<_>>()
        };
        assert_eq!(severities(half), []);
        assert_eq!(severities(half + 1), [(Severity::Warning, true)]);
        assert_eq!(severities(2 * half), [(Severity::Warning, true)]);
        assert_eq!(severities(2 * half + 1), [(Severity::Error, true)]);
    }

    #[test]
    fn a_port_set_wider_than_the_search_is_an_error() {
        let wide = Demand {
            largest_port_set: (1 << MAX_SEARCH) + 1,
            ..Demand::default()
        };
        assert_eq!(wide.check("n").len(), 1);
        assert_eq!(
            Demand {
                largest_port_set: 1 << MAX_SEARCH,
                ..Demand::default()
            }
            .check("n"),
            []
        );
    }
}
