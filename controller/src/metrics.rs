//! Every metric of the controller: what it is called, when it is counted, how it is written down for Prometheus.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bulkhead_policy::{capacity::Demand, state::State};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{registry::NodeRecord, world::World};

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct MapLabel {
    map: String,
}

/// What one node's own state needs, while the state is this one.
type Needs = BTreeMap<String, (Arc<State>, Demand)>;

/// All metrics; clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    registry: Registry,
    revision: Gauge,
    ready: Gauge,
    nodes_connected: Gauge,
    revision_lag: Family<NodeLabel, Gauge>,
    index: Family<KindLabel, Gauge>,
    map_entries: Family<MapLabel, Gauge>,
    map_limit: Family<MapLabel, Gauge>,
    diagnostics: Family<KindLabel, Gauge>,
    watch_errors: Family<KindLabel, Counter>,
    rejections: Counter,
    status_writes: Counter,
    status_errors: Counter,
    updates: Counter,
    update_resources: Counter,
    update_bytes: Counter,
    compile: Option<Histogram>,
    propagation: Option<Histogram>,
    needs: Mutex<Needs>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut inner = Inner {
            registry: Registry::with_prefix("bulkhead_controller"),
            // 0.1 ms to 6.5 s, and 1 ms to 131 s.
            compile: Some(Histogram::new(exponential_buckets(0.0001, 2.0, 17))),
            propagation: Some(Histogram::new(exponential_buckets(0.001, 2.0, 18))),
            ..Inner::default()
        };
        inner.register();
        Self(Arc::new(inner))
    }
}

impl Inner {
    fn register(&mut self) {
        let Self { registry, .. } = self;
        registry.register("revision", "Newest compiled revision", self.revision.clone());
        registry.register("ready", "1 when the source was read and compiled", self.ready.clone());
        registry.register(
            "nodes_connected",
            "Nodes with an open stream",
            self.nodes_connected.clone(),
        );
        registry.register(
            "node_revision_lag",
            "Revisions a known node is behind; 0 = it holds the newest",
            self.revision_lag.clone(),
        );
        registry.register("index_objects", "Objects in the index, by kind", self.index.clone());
        registry.register(
            "map_entries",
            "Entries of a kernel map that the fullest node needs",
            self.map_entries.clone(),
        );
        registry.register("map_entries_limit", "Entries a kernel map has", self.map_limit.clone());
        registry.register(
            "diagnostics",
            "Findings as of now, by severity",
            self.diagnostics.clone(),
        );
        registry.register(
            "watch_errors",
            "Failed lists and watches of the API server, by kind",
            self.watch_errors.clone(),
        );
        registry.register(
            "announcement_rejections",
            "Announced endpoints that were not believed",
            self.rejections.clone(),
        );
        registry.register(
            "status_writes",
            "Conditions and Events written to the API server",
            self.status_writes.clone(),
        );
        registry.register(
            "status_errors",
            "Conditions and Events that could not be written",
            self.status_errors.clone(),
        );
        registry.register("updates", "Revisions sent to nodes", self.updates.clone());
        registry.register(
            "update_resources",
            "Resources and removals in them",
            self.update_resources.clone(),
        );
        registry.register("update_bytes", "Bytes of them", self.update_bytes.clone());
        for (name, help, histogram) in [
            ("compile_seconds", "Time to compile one batch", &self.compile),
            (
                "propagation_seconds",
                "From seeing a policy's change to the last acknowledgement of the nodes that need it",
                &self.propagation,
            ),
        ] {
            if let Some(histogram) = histogram {
                registry.register(name, help, histogram.clone());
            }
        }
    }
}

impl Metrics {
    /// A list or watch failed.
    pub(crate) fn watch_error(&self, kind: &str) {
        let kind = kind.to_owned();
        self.0.watch_errors.get_or_create(&KindLabel { kind }).inc();
    }

    /// Announced endpoints were not believed.
    pub(crate) fn rejected(&self, endpoints: usize) {
        self.0.rejections.inc_by(u64::try_from(endpoints).unwrap_or(u64::MAX));
    }

    /// A revision goes to a node.
    pub(crate) fn sent(&self, resources: usize, bytes: usize) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        self.0.updates.inc();
        self.0.update_resources.inc_by(count(resources));
        self.0.update_bytes.inc_by(count(bytes));
    }

    /// A batch was compiled.
    pub(crate) fn compiled(&self, took: Duration) {
        if let Some(compile) = &self.0.compile {
            compile.observe(took.as_secs_f64());
        }
    }

    /// The last node that needs a policy's version came to hold it.
    pub(crate) fn propagated(&self, took: Duration) {
        if let Some(propagation) = &self.0.propagation {
            propagation.observe(took.as_secs_f64());
        }
    }

    /// A condition or an Event was written, or could not be.
    pub(crate) fn status_written(&self, good: bool) {
        if good {
            self.0.status_writes.inc();
        } else {
            self.0.status_errors.inc();
        }
    }

    /// Everything as text, as of this world and these nodes. Takes a while when many nodes changed.
    pub(crate) fn text(&self, world: &World, nodes: &BTreeMap<String, NodeRecord>) -> Result<String, fmt::Error> {
        self.0.gauge(world, nodes);
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

impl Inner {
    fn gauge(&self, world: &World, nodes: &BTreeMap<String, NodeRecord>) {
        self.revision.set(number(world.revision));
        self.ready.set(i64::from(world.revision != 0));
        let connected = nodes.values().filter(|record| record.connected).count();
        self.nodes_connected.set(size(connected));
        self.revision_lag.clear();
        for (node, record) in nodes {
            let node = node.clone();
            // A revision that changes nothing for a node is held without being sent; revisions of another process are not compared.
            let lag = world.revision.saturating_sub(record.held());
            let lag = if record.held() == 0 { world.revision.min(1) } else { lag };
            self.revision_lag.get_or_create(&NodeLabel { node }).set(number(lag));
        }
        let sizes = &world.sizes;
        for (kind, count) in [
            ("namespace", sizes.namespaces),
            ("workload", sizes.workloads),
            ("node", sizes.nodes),
            ("policy", sizes.policies),
            ("service", sizes.services),
            ("endpoint_slice", sizes.endpoint_slices),
            ("identity", sizes.identities),
            ("binding", sizes.bindings),
            ("network", sizes.networks),
            ("ruleset", sizes.rulesets),
            ("ruleset_entry", sizes.ruleset_entries),
            ("endpoint", sizes.endpoints),
        ] {
            set(&self.index, kind, number(count));
        }
        for (word, severity) in [
            ("error", bulkhead_policy::diagnostic::Severity::Error),
            ("warning", bulkhead_policy::diagnostic::Severity::Warning),
        ] {
            let count = world
                .diagnostics
                .iter()
                .filter(|found| found.severity == severity)
                .count();
            set(&self.diagnostics, word, size(count));
        }
        self.gauge_maps(world);
    }

    fn gauge_maps(&self, world: &World) {
        let mut needs = self.needs.lock().unwrap_or_else(PoisonError::into_inner);
        needs.retain(|node, (state, _)| {
            let local = world.locals.get(node);
            local.is_some_and(|local| Arc::ptr_eq(&local.state, state))
        });
        let mut most = Demand::default();
        for (node, local) in &world.locals {
            let (_, need) = needs
                .entry(node.clone())
                .or_insert_with(|| (Arc::clone(&local.state), Demand::of(&local.state)));
            most.endpoints = most.endpoints.max(need.endpoints);
            most.rules = most.rules.max(need.rules);
            most.ranges = most.ranges.max(need.ranges);
            most.alternatives = most.alternatives.max(need.alternatives);
        }
        drop(needs);
        most.addresses = world.shared.bindings.len();
        most.networks = world.shared.networks.len();
        for (map, _, need, limit) in most.against_limits() {
            let label = MapLabel { map: map.to_owned() };
            self.map_entries.get_or_create(&label).set(size(need));
            self.map_limit.get_or_create(&label).set(i64::from(limit));
        }
    }
}

fn set(family: &Family<KindLabel, Gauge>, kind: &str, value: i64) {
    let kind = kind.to_owned();
    family.get_or_create(&KindLabel { kind }).set(value);
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn size(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
