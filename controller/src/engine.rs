//! The one owner of the compiler: takes batches and announcements in their order, publishes a world after each.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use bulkhead_policy::{
    compiler::{Compiler, ControlPlane},
    diagnostic::Diagnostic,
    digest::Digest,
    failsafe::Failsafe,
    model::{Event, Object, ObjectKey, Policy, PolicyKey},
    references::Reference,
    state::State,
};
use bulkhead_proto::v1::{self, announcement_result::Rejection};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    facts::Facts,
    metrics::Metrics,
    source::Batch,
    world::{PolicyEntry, World},
};

/// What the engine is asked to take.
#[derive(Debug)]
pub(crate) enum Input {
    /// A source's news.
    Batch(Batch),
    /// Everything a node announces; the answer is what was not believed.
    Announce {
        /// Node.
        node: String,
        /// Its endpoints and its own addresses.
        announcement: v1::Announcement,
        /// Where the answer goes.
        answer: oneshot::Sender<Vec<Rejection>>,
    },
    /// What would be wrong with an object if it were there? Changes nothing.
    Review {
        /// The object.
        object: Box<Object>,
        /// Where the answer goes; who does not wait any more is not answered.
        answer: oneshot::Sender<Vec<Diagnostic>>,
    },
}

/// Compiler, facts and the newest world.
#[derive(Debug)]
pub(crate) struct Engine {
    compiler: Compiler,
    facts: Facts,
    source: Batch,
    /// What the compiler found when it was asked last, and what the log was told.
    findings: Vec<Diagnostic>,
    told: BTreeSet<Diagnostic>,
    /// Every text could be read at one time. What cannot be read from then on is new, or kept by the source.
    complete: bool,
    /// The first world's revision.
    first: u64,
    worlds: watch::Sender<Arc<World>>,
    metrics: Metrics,
    pulse: Pulse,
}

/// Since when the engine works on what it works on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse(Arc<Mutex<Option<Instant>>>);

impl Pulse {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn begin(&self) {
        self.set(Some(Instant::now()));
    }

    fn end(&self) {
        self.set(None);
    }

    /// How long it has worked on one input; `None` = it waits for one.
    pub(crate) fn busy(&self) -> Option<Duration> {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed())
    }
}

impl Engine {
    /// An engine that has seen nothing; the receiver's world has revision 0. `control` names the pods that no policy cuts off.
    /// `failsafe` is what no policy of nodes closes.
    pub(crate) fn new(
        metrics: Metrics,
        control: Option<ControlPlane>,
        failsafe: Failsafe,
    ) -> (Self, watch::Receiver<Arc<World>>) {
        let (worlds, receiver) = watch::channel(Arc::new(World::default()));
        let source = Batch {
            events: Vec::new(),
            diagnostics: Vec::new(),
            unknown: Vec::new(),
            seen: Instant::now(),
        };
        let engine = Self {
            compiler: control
                .map_or_else(Compiler::default, Compiler::with_control)
                .with_failsafe(failsafe),
            facts: Facts::default(),
            source,
            findings: Vec::new(),
            told: BTreeSet::new(),
            complete: false,
            first: first_revision(SystemTime::now()),
            worlds,
            metrics,
            pulse: Pulse::default(),
        };
        (engine, receiver)
    }

    /// Works until nobody asks any more. Blocks.
    pub(crate) fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut stale = false;
        while let Some(input) = inputs.blocking_recv() {
            self.pulse.begin();
            match input {
                Input::Batch(batch) => {
                    self.batch(batch);
                    stale = true;
                }
                Input::Announce {
                    node,
                    announcement,
                    answer,
                } => {
                    let (mut events, rejected) = self.facts.announce(&node, announcement.endpoints);
                    events.extend(self.facts.announce_own(&node, &announcement.node_addresses));
                    let known = self.worlds.borrow().announced.get(&node).copied();
                    if !events.is_empty() || known != Some(self.facts.announced_by(&node)) {
                        self.compile(&events, Instant::now(), Some(&node));
                        stale = true;
                    }
                    // A node that left meanwhile does not want the answer.
                    drop(answer.send(rejected));
                }
                Input::Review { object, answer } => {
                    if !answer.is_closed() {
                        drop(answer.send(self.compiler.review(&object)));
                    }
                }
            }
            // Findings walk every policy, so they follow when there is time; nodes do not wait for them.
            if stale && inputs.is_empty() {
                self.find();
                stale = false;
            }
            self.pulse.end();
        }
    }

    /// Tells from outside whether the engine moves.
    pub(crate) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Publishes what is wrong with what is there now.
    fn find(&mut self) {
        self.findings = self.compiler.diagnostics();
        let old = Arc::clone(&self.worlds.borrow());
        let diagnostics = self.diagnostics();
        for found in diagnostics.iter().filter(|found| !self.told.contains(*found)) {
            tracing::warn!("{found}");
        }
        self.told = diagnostics.iter().cloned().collect();
        if diagnostics != *old.diagnostics {
            let mut world = World::clone(&old);
            world.diagnostics = Arc::new(diagnostics);
            self.worlds.send_replace(Arc::new(world));
        }
    }

    /// The source's findings as of now, the compiler's as of the last time it was asked.
    fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> = self.source.diagnostics.iter().chain(&self.findings).cloned().collect();
        all.sort();
        all.dedup();
        all
    }

    fn batch(&mut self, mut batch: Batch) {
        let events = self.facts.take(std::mem::take(&mut batch.events));
        let seen = batch.seen;
        self.source = batch;
        self.compile(&events, seen, None);
    }

    /// `announcer` is set for the events of an announcement, which never begin a world: sources do.
    fn compile(&mut self, events: &[Event], seen: Instant, announcer: Option<&str>) {
        let begin = Instant::now();
        let old = Arc::clone(&self.worlds.borrow());
        let changes = self.compiler.apply(events);
        let revision = if old.revision == 0 {
            self.first
        } else {
            old.revision + 1
        };
        let mut world = old.next(self.compiler.state(), &changes.delta);
        let taken = take_policies(&mut world, events, revision, seen);
        let policies_changed = self.refer(&mut world, events, revision, seen) || taken;
        if !changes.delta.is_empty() || policies_changed || (old.revision == 0 && announcer.is_none()) {
            world.revision = revision;
        }
        if let Some(node) = announcer {
            world.announced.insert(node.to_owned(), self.facts.announced_by(node));
        }
        world.diagnostics = Arc::new(self.diagnostics());
        self.complete |= self.source.unknown.is_empty() && world.revision != 0;
        world.unknown = Arc::new(if self.complete {
            Vec::new()
        } else {
            self.source.unknown.clone()
        });
        world.sizes = self.sizes(&world);
        self.metrics.compiled(begin.elapsed());
        if world.revision != old.revision {
            tracing::info!(
                revision = world.revision,
                events = events.len(),
                upserts = changes.delta.upserts.len(),
                removes = changes.delta.removes.len(),
                milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
                "compiled"
            );
        }
        self.worlds.send_replace(Arc::new(world));
    }

    /// What policies refer to is a part of them: they are enforced where its newest version is.
    fn refer(&self, world: &mut World, events: &[Event], revision: u64, seen: Instant) -> bool {
        let mut changed = false;
        for event in events {
            let key = match event {
                Event::Upsert(object) => object.key(),
                Event::Delete(key) => key.clone(),
                Event::Resync(_) => continue,
            };
            let reference = match key {
                ObjectKey::AddressGroup(name) => Reference::AddressGroup(name),
                ObjectKey::Service(key) => Reference::Service(key),
                _ => continue,
            };
            for user in self.compiler.users(&reference) {
                if let Some(entry) = world.policies.get(user).cloned() {
                    world.set_policy(
                        user,
                        Some(PolicyEntry {
                            revision,
                            seen,
                            ..entry
                        }),
                    );
                    changed = true;
                }
            }
        }
        changed
    }

    fn sizes(&self, world: &World) -> v1::IndexSizes {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let State {
            identities,
            bindings,
            networks,
            rulesets,
            endpoints,
            leases: _,
        } = self.compiler.state();
        let mut sizes = v1::IndexSizes {
            policies: count(world.policies.len()),
            identities: count(identities.len()),
            bindings: count(bindings.len()),
            networks: count(networks.len()),
            rulesets: count(rulesets.len()),
            ruleset_entries: count(rulesets.values().map(|ruleset| ruleset.entries.len()).sum()),
            endpoints: count(endpoints.len()),
            ..v1::IndexSizes::default()
        };
        self.facts.sizes(&mut sizes);
        sizes
    }
}

/// Milliseconds since 2026: no process makes a thousand revisions a second, so the next one begins above all of this one's.
fn first_revision(now: SystemTime) -> u64 {
    const YEAR_2026: Duration = Duration::from_hours(490_896);
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH + YEAR_2026)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2).max(1)
}

/// Notes the versions of policies; true when one is new, changed or gone.
fn take_policies(world: &mut World, events: &[Event], revision: u64, seen: Instant) -> bool {
    let mut changed = false;
    for event in events {
        match event {
            Event::Upsert(Object::Policy(policy)) => changed |= take_policy(world, policy, revision, seen),
            Event::Delete(ObjectKey::Policy(key)) => changed |= drop_policy(world, key),
            Event::Resync(objects) => {
                let policies = objects.iter().filter_map(|object| match object {
                    Object::Policy(policy) => Some((&policy.key, policy)),
                    _ => None,
                });
                let policies: BTreeMap<_, _> = policies.collect();
                let gone = world.policies.keys().filter(|key| !policies.contains_key(key));
                let gone: Vec<PolicyKey> = gone.cloned().collect();
                for key in gone {
                    changed |= drop_policy(world, &key);
                }
                for policy in policies.into_values() {
                    changed |= take_policy(world, policy, revision, seen);
                }
            }
            Event::Upsert(_) | Event::Delete(_) => {}
        }
    }
    changed
}

fn drop_policy(world: &mut World, key: &PolicyKey) -> bool {
    let known = world.policies.contains_key(key);
    world.set_policy(key, None);
    known
}

fn take_policy(world: &mut World, policy: &Policy, revision: u64, seen: Instant) -> bool {
    let spec_digest = spec_digest(policy);
    let generation = policy.generation;
    let same =
        |old: &PolicyEntry| old.spec_digest == spec_digest && old.generation == generation && old.uid == policy.uid;
    if world.policies.get(&policy.key).is_some_and(same) {
        return false;
    }
    let entry = PolicyEntry {
        uid: policy.uid.clone(),
        generation,
        spec_digest,
        version: version(policy, spec_digest),
        revision,
        seen,
    };
    world.set_policy(&policy.key, Some(entry));
    true
}

/// Names a version of a policy for replicas that may be of different builds: by what the API server gives it, where there is one.
fn version(policy: &Policy, spec_digest: Digest) -> Digest {
    if policy.uid.is_empty() {
        return spec_digest;
    }
    let key = policy.key.to_string();
    let generation = policy.generation.to_be_bytes();
    Digest::of(
        "bulkhead.dev/policy-version/v1",
        [key.as_bytes(), policy.uid.as_bytes(), &generation],
    )
}

/// Names a version of a policy. The debug form has every field in a fixed order, and versions live no longer than the process.
fn spec_digest(policy: &Policy) -> Digest {
    Digest::of("bulkhead.dev/policy/v1", [format!("{policy:?}").as_bytes()])
}
