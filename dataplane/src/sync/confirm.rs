//! Changes of the node's own rules are tried before they count: whoever cannot reach the controller any more by a new connection
//! gets the rules back that were confirmed last.
//!
//! What was confirmed, what is tried and what was refused is on disk before the first write, so an agent that starts takes back
//! what its predecessor did not see confirmed. What was refused is not tried again until the controller wants other rules. Meanwhile the
//! state that is wanted ([`Confirm::truth`]) and the one that is in force differ in the node's endpoint alone.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use bulkhead_policy::{
    digest::Digest,
    model::WorkloadKey,
    state::{Delta, Resource, ResourceName, State},
};
use serde::{Deserialize, Serialize};

use super::Sync;
use crate::store::{self, StoreError};

/// What is tried and what was refused.
const FILE: &str = "host.json";
/// The node's endpoint and its rules as they were confirmed last.
const CONFIRMED: &str = "host-confirmed.pb";

/// Names of a node's rulesets, egress and ingress.
type Names = [Digest; 2];

/// Rules that were taken back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Refused {
    names: Names,
    why: String,
}

/// The small file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Kept {
    trying: Option<Names>,
    refused: Option<Refused>,
}

/// Rules that are in force and not confirmed yet.
#[derive(Debug)]
pub(super) struct Trial {
    /// Tells trials of one process apart.
    pub(super) number: u64,
    names: Names,
    pub(super) ends: Instant,
}

/// What is known of the node's own rules.
#[derive(Debug, Default)]
pub(super) struct Confirm {
    /// Time for a confirmation; zero = none is asked for.
    within: Duration,
    pub(super) trial: Option<Trial>,
    trials: u64,
    kept: Kept,
    /// The endpoint and its rulesets; nothing in it = the node was not judged.
    confirmed: State,
    /// What is wanted, while something else is in force.
    pub(super) truth: Option<State>,
}

/// What becomes of a wanted state.
enum Course {
    /// It is put in force.
    AsIs,
    /// It is put in force and has to be confirmed.
    Try(Names),
    /// The node's part of it stays as it was confirmed.
    Instead,
}

impl Confirm {
    /// Why the node's rules are not those that are wanted; empty when they are.
    pub(super) fn reverted(&self) -> String {
        let refused = self.kept.refused.as_ref().filter(|_| self.truth.is_some());
        refused.map_or_else(String::new, |refused| format!("Reverted: {}", refused.why))
    }

    fn course(&self, wanted: &State, node: &WorkloadKey) -> Course {
        let Some(names) = names(wanted, node) else {
            return Course::AsIs;
        };
        if self.within.is_zero() || self.names_in_force(node) == Some(names) {
            Course::AsIs
        } else if self.kept.refused.as_ref().is_some_and(|refused| refused.names == names) {
            Course::Instead
        } else {
            Course::Try(names)
        }
    }

    fn names_in_force(&self, node: &WorkloadKey) -> Option<Names> {
        let trial = self.trial.as_ref().map(|trial| trial.names);
        trial.or_else(|| names(&self.confirmed, node))
    }

    /// The state with the node's part as it was confirmed.
    fn instead(&self, wanted: &State, node: &WorkloadKey) -> State {
        let mut state = wanted.clone();
        state.endpoints.remove(node);
        for (name, ruleset) in &self.confirmed.rulesets {
            state.rulesets.insert(*name, ruleset.clone());
        }
        for (key, endpoint) in &self.confirmed.endpoints {
            state.endpoints.insert(key.clone(), endpoint.clone());
        }
        state
    }
}

fn names(state: &State, node: &WorkloadKey) -> Option<Names> {
    let endpoint = state.endpoints.get(node)?;
    Some([endpoint.egress, endpoint.ingress])
}

/// A node's endpoint and its rulesets alone.
fn part(state: &State, node: &WorkloadKey) -> State {
    let mut part = State::default();
    if let Some(endpoint) = state.endpoints.get(node) {
        for name in [endpoint.egress, endpoint.ingress] {
            if let Some(ruleset) = state.rulesets.get(&name) {
                part.rulesets.insert(name, ruleset.clone());
            }
        }
        part.endpoints.insert(node.clone(), endpoint.clone());
    }
    part
}

/// Whether a change is about the node's endpoint.
fn concerns(delta: &Delta, node: &WorkloadKey) -> bool {
    let upsert = |resource: &Resource| matches!(resource, Resource::Endpoint(key, _) if key == node);
    let remove = |name: &ResourceName| matches!(name, ResourceName::Endpoint(key) if key == node);
    delta.upserts.iter().any(upsert) || delta.removes.iter().any(remove)
}

impl Sync {
    /// Asks for confirmations within a time, and reads what an earlier agent left: what it did not see confirmed is refused.
    pub(super) fn adopt_confirmations(&mut self, within: Duration) {
        self.confirm.within = within;
        if within.is_zero() {
            return;
        }
        match store::read_state(&self.confirm_path(CONFIRMED)) {
            Ok(state) => self.confirm.confirmed = state.unwrap_or_default(),
            Err(error) => tracing::warn!("{error}; the node's rules are confirmed anew"),
        }
        let kept = fs::read_to_string(self.confirm_path(FILE)).ok();
        self.confirm.kept = kept
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let node = self.node_key();
        if let Some(tried) = self.confirm.kept.trying.take()
            && names(&self.confirm.confirmed, &node) != Some(tried)
        {
            self.refuse(tried, "the agent ended before the change was confirmed".to_owned());
        }
    }

    fn node_key(&self) -> WorkloadKey {
        WorkloadKey::of_node(&self.node)
    }

    fn confirm_path(&self, file: &str) -> PathBuf {
        self.store.pods_path().with_file_name(file)
    }

    /// The state the controller wants, whatever is in force.
    pub(super) fn truth(&self) -> &State {
        self.confirm.truth.as_ref().unwrap_or_else(|| self.planner.state())
    }

    /// Whether a change has to be looked at as a whole.
    pub(super) fn is_about_the_node(&self, delta: &Delta) -> bool {
        self.confirm.truth.is_some() || concerns(delta, &self.node_key())
    }

    /// What is to be put in force of a wanted state. That it will be tried is on disk when this returns.
    /// Where the disk takes nothing the node's part stays as it was confirmed: pods do not wait for it.
    pub(super) fn choose(&mut self, wanted: State) -> State {
        let node = self.node_key();
        self.confirm.truth = None;
        match self.confirm.course(&wanted, &node) {
            Course::Instead => self.stay(wanted, &node),
            Course::AsIs => {
                self.settle(names(&wanted, &node).is_some());
                wanted
            }
            Course::Try(names) => {
                self.confirm.kept = Kept {
                    trying: Some(names),
                    refused: None,
                };
                if let Err(error) = self.keep_confirmation() {
                    tracing::error!("the node's own rules are not changed: {error}");
                    self.confirm.kept = Kept {
                        trying: None,
                        refused: Some(Refused {
                            names,
                            why: format!("that they are tried cannot be kept on disk: {error}"),
                        }),
                    };
                    return self.stay(wanted, &node);
                }
                self.confirm.trials = self.confirm.trials.saturating_add(1);
                self.confirm.trial = Some(Trial {
                    number: self.confirm.trials,
                    names,
                    ends: Instant::now() + self.confirm.within,
                });
                tracing::info!(
                    seconds = self.confirm.within.as_secs(),
                    "the node's own rules change: they are taken back unless the controller is reached by a new connection"
                );
                wanted
            }
        }
    }

    /// The node's part stays as it was confirmed.
    fn stay(&mut self, wanted: State, node: &WorkloadKey) -> State {
        let instead = self.confirm.instead(&wanted, node);
        self.confirm.truth = Some(wanted);
        instead
    }

    /// Forgets what is over: what was refused, where something else is wanted now, and all of it where the node is not judged, so that
    /// nothing can be cut.
    fn settle(&mut self, judged: bool) {
        let over = if judged {
            self.confirm.trial.is_none() && self.confirm.kept != Kept::default()
        } else {
            self.confirm.trial = None;
            self.confirm.kept != Kept::default() || !self.confirm.confirmed.endpoints.is_empty()
        };
        if self.confirm.within.is_zero() || !over {
            return;
        }
        self.confirm.kept = Kept::default();
        if !judged {
            self.confirm.confirmed = State::default();
        }
        if let Err(error) = self.keep_confirmation() {
            tracing::warn!("{error}");
        }
    }

    /// The controller was reached since a trial began.
    pub(super) fn confirmed(&mut self, number: u64) {
        if self.confirm.trial.take_if(|trial| trial.number == number).is_none() {
            return;
        }
        self.confirm.confirmed = part(self.planner.state(), &self.node_key());
        self.confirm.kept = Kept::default();
        match self.keep_confirmation() {
            Ok(()) => tracing::info!("the node's own rules are confirmed"),
            Err(error) => tracing::warn!("{error}; an agent that starts takes the node's rules back"),
        }
    }

    /// Takes back what was not confirmed in its time.
    pub(super) fn end_trial(&mut self, why: &str) {
        let Some(trial) = self.confirm.trial.take() else { return };
        tracing::error!("the node's own rules are taken back: {why}");
        self.shared.metrics.reverts.inc();
        self.refuse(trial.names, why.to_owned());
        let wanted = self.truth().clone();
        let state = self.choose(wanted);
        self.endpoints.replace(&state, Instant::now());
        if let Err(error) = self.make(&state) {
            tracing::error!("taking the node's own rules back: {error}; tried again with the next look");
            self.broken = Some(Instant::now());
        }
    }

    fn refuse(&mut self, names: Names, why: String) {
        self.confirm.kept = Kept {
            trying: None,
            refused: Some(Refused { names, why }),
        };
        if let Err(error) = self.keep_confirmation() {
            tracing::warn!("{error}");
        }
    }

    /// Writes both files; the one that says what was confirmed first.
    fn keep_confirmation(&self) -> Result<(), StoreError> {
        store::write_state(&self.confirm_path(CONFIRMED), &self.confirm.confirmed)?;
        let path = self.confirm_path(FILE);
        let write = || -> io::Result<()> {
            let fresh = path.with_extension("new");
            let text = serde_json::to_vec(&self.confirm.kept)?;
            let mut file = File::create(&fresh)?;
            io::Write::write_all(&mut file, &text)?;
            file.sync_data()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|source| StoreError::Write {
            path: path.clone(),
            source,
        })
    }
}
