//! The planner: what the kernel holds + what is wanted → an ordered list of map writes.
//!
//! One plan has this order, and may be cut after any write (the agent killed): at every moment each hook judges each
//! tuple exactly as before the plan or exactly as after it, whatever the plan batches.
//!
//! 1. names, port sets, rules of new rulesets, entries for new identities: nothing of it can be observed yet
//! 2. endpoints that are gone are taken down
//! 3. where endpoints flip and bindings change at once: addresses and networks go to transition identities (X → Y), of
//!    which rulesets that are left say what they say of X, and rulesets that are entered what they say of Y
//! 4. endpoints flip, one 8-byte store each
//! 5. addresses and networks go to their new identities; epochs rise
//! 6. new endpoints go live
//! 7. a barrier, then what nothing can reach is removed; its indices and numbers are used by later plans only
//!
//! The planner is pure: it keeps a picture of the maps ([`kernel`]) and assumes that its plans are carried out. When a
//! write fails, adopt the maps again: a full plan finds and frees what a cut-off one left behind.

mod adopt;
mod changes;
mod dirty;
mod dump;
mod error;
mod garbage;
mod host;
mod kernel;
mod names;
mod op;
mod order;
mod picture;
mod portset;
mod read;
mod rulesets;
pub(crate) mod tracked;
mod transition;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub use dump::MapDump;
pub use error::{Capacity, Limits, PlanError, Problem};
pub use op::{MapOp, MapWriter};
pub use picture::MapKind;
pub use read::Names;

use dirty::Dirty;
use kernel::Kernel;

use crate::{
    delta::DeltaError,
    model::WorkloadKey,
    state::{Delta, State},
};

/// What only the agent knows of an endpoint: its device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LocalEndpoint {
    /// `metadata.uid` of the pod the device belongs to, when the agent knows it. A device of another pod of the same
    /// name is not the wanted endpoint's.
    pub uid: Option<String>,
    /// Index of the host-side device.
    pub ifindex: u32,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// Addresses seen on the pod's end. Only link-local ones are taken from here: what else a pod may call its own is the
    /// state's to say, because a pod can put any address on its device.
    pub addresses: BTreeSet<IpAddr>,
    /// End of the adoption window, `CLOCK_MONOTONIC` nanoseconds; 0 = closed.
    pub adopt_until: u64,
    /// Further devices of the same endpoint: a node may have several that lead out of it.
    pub more: BTreeSet<u32>,
}

/// The devices of this node's endpoints. An endpoint that is not here gets no slot yet; its rulesets are loaded.
pub type LocalEndpoints = BTreeMap<WorkloadKey, LocalEndpoint>;

/// How much of each map is in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Interned identities.
    pub identities: usize,
    /// Interned rulesets.
    pub rulesets: usize,
    /// Interned rules that port sets name.
    pub rules_named: usize,
    /// Interned rules that nothing names any more, kept for flow records.
    pub rules_idle: usize,
    /// Named slots.
    pub endpoints: usize,
    /// Configurations in force.
    pub configs: usize,
    /// Devices.
    pub devices: usize,
    /// Entries of ADDRESSES.
    pub addresses: usize,
    /// Entries of NETWORKS.
    pub networks: usize,
    /// Entries of RULES.
    pub rules: usize,
    /// Indices of RANGES.
    pub ranges: u32,
    /// Indices of ALTERNATIVES.
    pub alternatives: usize,
}

/// Turns wanted states into map writes. See the module's text.
#[derive(Debug)]
pub struct Planner {
    node: String,
    limits: Limits,
    state: State,
    local: LocalEndpoints,
    kernel: Kernel,
    /// The maps were adopted, and no plan was made yet: all flows are to be judged again first.
    adopted: bool,
    /// A full plan was made: the picture shows `state`, and a delta suffices from here on.
    complete: bool,
}

impl Planner {
    /// A planner for maps that are empty.
    pub fn new(node: &str, limits: Limits) -> Self {
        Self {
            node: node.to_owned(),
            limits,
            state: State::default(),
            local: LocalEndpoints::new(),
            kernel: Kernel::empty(),
            adopted: false,
            complete: false,
        }
    }

    /// A planner for maps that hold something, whatever it is. The problems are for the log: the next full plan cures
    /// them.
    pub fn adopt(node: &str, limits: Limits, dump: &MapDump) -> (Self, Vec<Problem>) {
        let (kernel, problems) = adopt::kernel(dump);
        (
            Self {
                kernel,
                adopted: true,
                ..Self::new(node, limits)
            },
            problems,
        )
    }

    /// The state of the last plan.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The plan from what the maps hold to this state of the node ([`State::for_node`]). On an error the planner is as
    /// before the call.
    pub fn plan(&mut self, wanted: &State, local: &LocalEndpoints) -> Result<Vec<MapOp>, PlanError> {
        self.plan_full(wanted.clone(), local)
    }

    fn plan_full(&mut self, wanted: State, local: &LocalEndpoints) -> Result<Vec<MapOp>, PlanError> {
        let old = std::mem::replace(&mut self.state, wanted);
        let old_local = std::mem::replace(&mut self.local, local.clone());
        let dirty = Dirty::everything(&self.state, &self.kernel);
        let owner = |zone, address| Some(old.bindings.get(&(zone, address))?.name.clone());
        match self.run(dirty, &owner) {
            Ok(ops) => {
                self.complete = true;
                Ok(ops)
            }
            Err(error) => {
                self.state = old;
                self.local = old_local;
                Err(error)
            }
        }
    }

    /// The plan for a change of the last state; its work is proportional to the change. Before the first full plan this
    /// is a full one, of the delta applied to an empty state. On an error the planner is as before the call.
    pub fn plan_delta(&mut self, delta: &Delta, local: &LocalEndpoints) -> Result<Vec<MapOp>, PlanError> {
        if !self.complete {
            let mut wanted = self.state.clone();
            wanted.apply(delta.clone())?;
            return self.plan_full(wanted, local);
        }
        let undo = dirty::inverse(&self.state, delta);
        let dirty = Dirty::of(delta, &self.local, local);
        let old_local = std::mem::replace(&mut self.local, local.clone());
        let owners = dirty::owners(&undo);
        let owner = |zone, address| owners.get(&(zone, address)).cloned();
        let applied = self.state.apply(delta.clone()).map_err(PlanError::from);
        match applied.and_then(|()| self.run(dirty, &owner)) {
            Ok(ops) => Ok(ops),
            Err(error) => {
                self.local = old_local;
                self.take_back(undo)?;
                Err(error)
            }
        }
    }

    fn take_back(&mut self, undo: Delta) -> Result<(), DeltaError> {
        self.state.apply(undo)
    }

    /// How much of each map the plans so far use.
    pub fn usage(&self) -> Usage {
        let kernel = &self.kernel;
        let rules_idle = kernel
            .rules
            .iter()
            .filter(|(rule, _)| kernel.sets.rules.count(rule) == 0)
            .count();
        Usage {
            identities: kernel.identities.len(),
            rulesets: kernel.rulesets.len(),
            rules_named: kernel.rules.len().saturating_sub(rules_idle),
            rules_idle,
            endpoints: kernel.slot_names.len(),
            configs: kernel.configs.len(),
            devices: kernel.devices.len(),
            addresses: kernel.addresses.len(),
            networks: kernel.networks.len(),
            rules: kernel.entries.len(),
            ranges: kernel.sets.ranges_in_use(),
            alternatives: kernel.sets.alternatives_in_use(),
        }
    }
}
