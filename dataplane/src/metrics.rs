//! The agent's metrics. Most are read when they are asked for, from where they are kept anyway.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use bulkhead_proto::v1::AgentStatus;
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

mod drift;

pub(crate) use drift::Drift;

use crate::{server::Agent, sync::Way};

/// What is counted where it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Map writes that were carried out.
    pub(crate) map_writes: Counter,
    /// Plans of which a write failed.
    pub(crate) map_failures: Counter,
    /// From a revision's arrival to its last map write, seconds.
    pub(crate) apply: Histogram,
    /// Bypasses that were begun.
    pub(crate) bypasses: Counter,
    /// Changes of the node's own rules that were taken back.
    pub(crate) reverts: Counter,
    /// Open connections that pods had when their devices were attached.
    pub(crate) inherited: Counter,
    /// Comparisons with the kernel.
    pub(crate) drift: Drift,
    past: Counters,
}

impl Metrics {
    /// Packets of pods went past our programs.
    pub(crate) fn went_past(&self, way: Way, packets: u64) {
        let labels = vec![("direction", way.name().to_owned())];
        self.past.get_or_create(&labels).inc_by(packets);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            map_writes: Counter::default(),
            map_failures: Counter::default(),
            apply: Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            bypasses: Counter::default(),
            reverts: Counter::default(),
            inherited: Counter::default(),
            drift: Drift::default(),
            past: Family::default(),
        }
    }
}

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;
type Counters = Family<Labels, Counter>;

fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Everything, in the text format of `OpenMetrics`.
///
/// # Errors
/// When the kernel's counters cannot be read.
pub(crate) fn text(agent: &Agent) -> Result<String> {
    let status = agent
        .status()
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let mut registry = Registry::with_prefix("bulkhead_agent");
    node(&mut registry, &status);
    maps(&mut registry, &status);
    packets(&mut registry, &status);
    pods(&mut registry, agent);
    if let Some(uplinks) = &agent.uplinks {
        uplinks.register(&mut registry);
    }
    let own = &agent.metrics;
    registry.register("map_writes", "Map writes carried out", own.map_writes.clone());
    registry.register(
        "map_failures",
        "Plans of which a map write failed",
        own.map_failures.clone(),
    );
    registry.register(
        "connections_inherited",
        "Open connections that pods had when their devices were attached",
        own.inherited.clone(),
    );
    registry.register("bypasses", "Bypasses begun", own.bypasses.clone());
    registry.register(
        "host_reverts",
        "Changes of the node's own rules that were not confirmed and were taken back",
        own.reverts.clone(),
    );
    own.drift.register(&mut registry);
    registry.register(
        "packets_past",
        "Packets that went past the programs on pods' devices and were not judged; less than that where the kernel does not count them",
        own.past.clone(),
    );
    registry.register(
        "apply_seconds",
        "From a revision's arrival to its last map write",
        own.apply.clone(),
    );
    let mut text = String::new();
    encode(&mut text, &registry).context("writing metrics")?;
    Ok(text)
}

fn node(registry: &mut Registry, status: &AgentStatus) {
    let one = |registry: &mut Registry, name: &str, help: &str, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(whole(value));
        registry.register(name, help, gauge);
    };
    one(registry, "revision", "Revision that the kernel holds", status.revision);
    one(
        registry,
        "controller_connected",
        "1 while the controller's stream is open",
        status.controller_connected.into(),
    );
    one(
        registry,
        "in_error",
        "1 while the newest revision is not in force or the controller cannot be reached",
        u64::from(!status.error.is_empty()),
    );
    let until = status.bypass.as_ref().and_then(|bypass| bypass.until);
    let until = until.map_or(0, |until| u64::try_from(until.seconds).unwrap_or_default());
    one(
        registry,
        "bypass_until_seconds",
        "When the bypass in force ends; 0 = none is",
        until,
    );
    let endpoints = Gauges::default();
    let enforced = u64::from(status.endpoints_enforced);
    let states = [
        ("enforced", enforced),
        ("missing", u64::from(status.endpoints).saturating_sub(enforced)),
        ("unmanaged", status.unmanaged.into()),
    ];
    for (state, count) in states {
        endpoints
            .get_or_create(&vec![("state", state.to_owned())])
            .set(whole(count));
    }
    registry.register(
        "endpoints",
        "Pods: judged; wanted and without a device; running without rules",
        endpoints,
    );
}

fn maps(registry: &mut Registry, status: &AgentStatus) {
    let (used, limits) = (Gauges::default(), Gauges::default());
    for map in &status.maps {
        let labels = vec![("map", map.name.clone())];
        used.get_or_create(&labels).set(whole(map.used));
        limits.get_or_create(&labels).set(whole(map.limit));
    }
    registry.register("map_entries", "Entries in a kernel map", used);
    registry.register("map_limit", "Entries a kernel map has room for", limits);
}

fn packets(registry: &mut Registry, status: &AgentStatus) {
    let names = Counters::default();
    for count in &status.names {
        names
            .get_or_create(&vec![("outcome", count.reason.clone())])
            .inc_by(count.packets);
    }
    registry.register(
        "dns_messages",
        "DNS queries and answers of pods whose node has rules with names, by what became of them",
        names,
    );
    let (packets, bytes, lost) = (Counters::default(), Counters::default(), Counters::default());
    for count in &status.verdicts {
        let labels = vec![("hook", count.hook.clone()), ("reason", count.reason.clone())];
        packets.get_or_create(&labels).inc_by(count.packets);
        bytes.get_or_create(&labels).inc_by(count.bytes);
    }
    for loss in &status.lost {
        let labels = vec![("place", loss.place().as_str_name().to_owned())];
        lost.get_or_create(&labels).inc_by(loss.count);
    }
    registry.register("packets", "Packets by hook and reason of the verdict", packets);
    registry.register("bytes", "Bytes by hook and reason of the verdict", bytes);
    registry.register("lost_records", "Flow records lost, by place", lost);
    let events: Counter = Counter::default();
    events.inc_by(status.events_read);
    registry.register("events_read", "Events read from the kernel's ring", events);
}

fn pods(registry: &mut Registry, agent: &Agent) {
    let admissions = Counters::default();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let gate = &agent.gate.admissions;
    for (result, counter) in [
        ("enforced", &gate.enforced),
        ("unmanaged", &gate.unmanaged),
        ("refused", &gate.refused),
    ] {
        admissions
            .get_or_create(&vec![("result", result.to_owned())])
            .inc_by(count(counter));
    }
    registry.register("pod_starts", "Answers to the CNI plugin", admissions);
    let adopted: Counter = Counter::default();
    adopted.inc_by(agent.holding.borrow().adopted);
    registry.register("pods_adopted", "Pods judged after they had run without rules", adopted);
}
