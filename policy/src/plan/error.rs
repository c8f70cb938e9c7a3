//! What can stand in the way of a plan, and what can be wrong with maps that are adopted.

use bulkhead_verdict::layout;
use thiserror::Error;

use crate::{delta::DeltaError, digest::Digest, model::WorkloadKey};

/// How much the maps can hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Slots of ENDPOINT.
    pub endpoints: u32,
    /// Indices of CONFIG; 0 is never used.
    pub configs: u32,
    /// Entries of DEVICES.
    pub devices: u32,
    /// Entries of ADDRESSES.
    pub addresses: u32,
    /// Entries of NETWORKS.
    pub networks: u32,
    /// Entries of RULES.
    pub rules: u32,
    /// Indices of RANGES.
    pub ranges: u32,
    /// Indices of ALTERNATIVES; 0 is never used.
    pub alternatives: u32,
    /// Entries of `NAMES_OF`.
    pub interned: u32,
    /// Names of rules that nothing uses any more and that are kept for flow records; the oldest go first.
    pub idle_rules: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            endpoints: layout::ENDPOINTS,
            configs: layout::CONFIGS,
            devices: layout::DEVICES,
            addresses: layout::ADDRESSES,
            networks: layout::NETWORKS,
            rules: layout::RULES,
            ranges: layout::RANGES,
            alternatives: layout::ALTERNATIVES,
            interned: layout::INTERNS,
            idle_rules: 16_384,
        }
    }
}

/// A map that is too small.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error(
    "the change needs {needed} of {map} and this node has {limit}: nothing was written and what was in force stays; \
     use fewer or coarser policies, or fewer pods on the node"
)]
pub struct Capacity {
    /// The map.
    pub map: &'static str,
    /// Entries or indices the plan would need at its peak, old and new content together.
    pub needed: u64,
    /// How many there are.
    pub limit: u32,
}

/// Why there is no plan. Nothing is written, what was in force stays, and the planner is as before the call.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// It does not fit.
    #[error(transparent)]
    Capacity(#[from] Capacity),
    /// An endpoint names a ruleset that the state does not have.
    #[error("endpoint {endpoint}: its ruleset {} is not part of the state; ask for a snapshot", ruleset.short())]
    MissingRuleset {
        /// The endpoint.
        endpoint: WorkloadKey,
        /// The ruleset.
        ruleset: Digest,
    },
    /// A port set that cannot be looked up, or an alternative list that does not end.
    #[error("ruleset {}, peer {peer}: {problem}; what was in force stays, the compiler is wrong", ruleset.short())]
    BrokenPortSet {
        /// The ruleset.
        ruleset: Digest,
        /// The peer, as text.
        peer: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A delta that does not fit the planner's state.
    #[error(transparent)]
    Delta(#[from] DeltaError),
}

/// Something in adopted maps that no cut-off plan leaves behind. The next full plan replaces it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Error)]
#[non_exhaustive]
pub enum Problem {
    /// A name that cannot be read.
    #[error("NAMES_OF kind {kind} number {number}: cannot be read; it is given up and named anew")]
    Name {
        /// Kind of number.
        kind: u32,
        /// The number.
        number: u32,
    },
    /// A port set that is not one.
    #[error("RULES ruleset {ruleset} peer {peer}: {problem}; the ruleset is written anew")]
    PortSet {
        /// Ruleset number.
        ruleset: u32,
        /// Peer number.
        peer: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// A live endpoint word that names no configuration.
    #[error("ENDPOINT slot {slot}: names configuration {config}, which CONFIG does not have; it is written anew")]
    Config {
        /// Slot.
        slot: u32,
        /// Index in CONFIG.
        config: u32,
    },
    /// Two live endpoint words that name the same configuration.
    #[error("ENDPOINT slots {first} and {second}: both name configuration {config}; both are written anew")]
    SharedConfig {
        /// One slot.
        first: u32,
        /// The other.
        second: u32,
        /// Index in CONFIG.
        config: u32,
    },
    /// A live endpoint without a name.
    #[error("ENDPOINT slot {slot}: live and without a name in NAMES_OF; it is taken down")]
    NamelessEndpoint {
        /// Slot.
        slot: u32,
    },
    /// A number in use that nobody knows the meaning of.
    #[error("{kind} {number}: in use and without a name in NAMES_OF; what uses it is written anew")]
    NamelessNumber {
        /// `identity`, `ruleset` or `rule`.
        kind: &'static str,
        /// The number.
        number: u32,
    },
}
