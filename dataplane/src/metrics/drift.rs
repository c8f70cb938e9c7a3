//! What comparing the kernel with what it should hold has found.

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::Counters;

/// Counted by the sync thread.
#[derive(Debug)]
pub(crate) struct Drift {
    found: Counters,
    repaired: Counter,
    verdicts: Counters,
    /// Elements that were compared.
    pub(crate) compared: Counter,
    /// Times that everything was compared.
    pub(crate) rounds: Counter,
    /// Devices on which programs of others run before ours.
    pub(crate) ahead: Gauge,
    /// Time of a slice, seconds.
    pub(crate) slice: Histogram,
}

impl Default for Drift {
    fn default() -> Self {
        Self {
            found: Family::default(),
            repaired: Counter::default(),
            verdicts: Family::default(),
            compared: Counter::default(),
            rounds: Counter::default(),
            ahead: Gauge::default(),
            slice: Histogram::new(exponential_buckets(0.000_1, 2.0, 14)),
        }
    }
}

impl Drift {
    /// Differences were found.
    pub(crate) fn found(&self, map: &'static str, kind: &str, count: usize) {
        if count > 0 {
            let labels = vec![("map", map.to_owned()), ("kind", kind.to_owned())];
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            self.found.get_or_create(&labels).inc_by(count);
        }
    }

    /// They were put right.
    pub(crate) fn repaired(&self, count: usize) {
        self.repaired.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// A verdict was sampled.
    pub(crate) fn verdict(&self, result: &str) {
        let labels = vec![("result", result.to_owned())];
        self.verdicts.get_or_create(&labels).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "drift_found",
            "Differences between the kernel and what the agent put there, by map (or `programs`) and kind",
            self.found.clone(),
        );
        registry.register(
            "drift_repaired",
            "Differences that were put right",
            self.repaired.clone(),
        );
        registry.register(
            "drift_verdicts",
            "Sampled verdicts over the kernel's maps beside the policies': same, different, or skipped",
            self.verdicts.clone(),
        );
        registry.register(
            "drift_compared",
            "Elements of maps and devices compared",
            self.compared.clone(),
        );
        registry.register(
            "drift_rounds",
            "Times that everything was compared",
            self.rounds.clone(),
        );
        registry.register(
            "drift_programs_ahead",
            "Pods' devices on which programs of others run before ours",
            self.ahead.clone(),
        );
        registry.register(
            "drift_slice_seconds",
            "Time that one slice of the comparison took",
            self.slice.clone(),
        );
    }
}
