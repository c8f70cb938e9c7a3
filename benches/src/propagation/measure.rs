//! One change after the other: from the request to the API server until the last node that needs it has acknowledged.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Result, bail};
use bulkhead_dataplane::simulated::Simulated;
use bulkhead_proto::v1::NodeStatus;

use crate::{
    api::Api,
    kernel_nodes::KernelNode,
    objects::{Change, Size},
    process::{Controller, cpu},
};

/// Nothing has happened anywhere for so long: the change has arrived.
const QUIET: Duration = Duration::from_millis(250);
/// Longest time one change may take.
const LIMIT: Duration = Duration::from_mins(2);
/// Between two looks at the agents.
const LOOK: Duration = Duration::from_millis(5);

/// Everything that runs.
pub(crate) struct Bed {
    pub(crate) api: Api,
    pub(crate) controller: Controller,
    pub(crate) kernel_nodes: Vec<KernelNode>,
    pub(crate) agents: Vec<Simulated>,
    pub(crate) size: Size,
}

/// What one kind of change costs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// From the request to the last acknowledgement, of each change.
    pub(crate) latencies: Vec<Duration>,
    /// The part of it until the API server had answered.
    pub(crate) written: Vec<Duration>,
    /// The same, until the last acknowledgement of a node with maps in this kernel.
    pub(crate) in_kernel: Vec<Duration>,
    /// Acknowledging nodes, summed over the changes.
    pub(crate) nodes: usize,
    pub(crate) controller: Duration,
    pub(crate) agents: Duration,
    pub(crate) kernel_agents: Duration,
    pub(crate) api: Duration,
    pub(crate) resources: f64,
    pub(crate) bytes: f64,
    pub(crate) map_writes: u64,
}

impl Bed {
    fn revisions(&self) -> Vec<u64> {
        self.agents.iter().map(Simulated::revision).collect()
    }

    fn map_writes(&self) -> u64 {
        self.agents.iter().map(Simulated::map_writes).sum()
    }

    /// Waits until no agent has moved for a while and none lags behind. `began` = a node has to acknowledge after it first.
    pub(crate) async fn settle(&mut self, began: Option<SystemTime>) -> Result<()> {
        let begin = Instant::now();
        let (mut last, mut since) = (self.revisions(), Instant::now());
        loop {
            tokio::time::sleep(LOOK).await;
            let now = self.revisions();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if begin.elapsed() > LIMIT {
                bail!("the change has not arrived within {} s", LIMIT.as_secs());
            }
            if since.elapsed() < QUIET {
                continue;
            }
            let status = self.controller.status().await?;
            let lags = status
                .nodes
                .iter()
                .any(|node| node.revision_held < node.revision_wanted);
            let moved = began.is_none_or(|began| {
                status
                    .nodes
                    .iter()
                    .any(|node| acknowledged(node).is_some_and(|at| at >= began))
            });
            if moved && !lags && status.nodes.len() >= self.agents.len() + self.kernel_nodes.len() {
                return Ok(());
            }
            // What moves next is perhaps a node of which nothing is seen here.
            since = Instant::now();
        }
    }

    /// Makes `rounds` changes of one kind.
    pub(crate) async fn measure(&mut self, change: Change, rounds: usize) -> Result<Row> {
        let mut row = Row {
            name: change.name(),
            ..Row::default()
        };
        let counters = ["update_resources_total", "update_bytes_total"];
        for round in 0..rounds {
            if let Some(write) = change.before(self.size, round) {
                let began = SystemTime::now();
                self.api.write(&write).await?;
                self.settle(Some(began)).await?;
            }
            let sent = self.counters(counters).await?;
            let map_writes = self.map_writes();
            let own = std::process::id();
            let cpus = [
                cpu(self.controller.pid())?,
                cpu(own)?,
                cpu(self.api.pid()?)?,
                self.kernel_cpu()?,
            ];
            let (began, clock) = (SystemTime::now(), Instant::now());
            self.api.write(&change.write(self.size, round)).await?;
            row.written.push(clock.elapsed());
            self.settle(Some(began)).await?;
            row.controller += cpu(self.controller.pid())?.saturating_sub(cpus[0]);
            row.agents += cpu(own)?.saturating_sub(cpus[1]);
            row.api += cpu(self.api.pid()?)?.saturating_sub(cpus[2]);
            row.kernel_agents += self.kernel_cpu()?.saturating_sub(cpus[3]);
            row.map_writes += self.map_writes() - map_writes;
            let now = self.counters(counters).await?;
            row.resources += now[0] - sent[0];
            row.bytes += now[1] - sent[1];
            let status = self.controller.status().await?;
            let acks = status.nodes.iter().filter_map(|node| {
                Some((
                    self.is_in_kernel(&node.node),
                    acknowledged(node)?.duration_since(began).ok()?,
                ))
            });
            let acks: Vec<(bool, Duration)> = acks.collect();
            row.nodes += acks.len();
            row.latencies.extend(acks.iter().map(|(_, after)| after).max());
            let in_kernel = acks.iter().filter(|(in_kernel, _)| *in_kernel);
            row.in_kernel.extend(in_kernel.map(|(_, after)| after).max());
        }
        Ok(row)
    }

    /// Nodes with maps in this kernel are the first ones.
    fn is_in_kernel(&self, node: &str) -> bool {
        let number = node
            .strip_prefix("node-")
            .and_then(|number| number.parse::<usize>().ok());
        number.is_some_and(|number| number < self.kernel_nodes.len())
    }

    /// Endpoints each node with maps in this kernel enforces.
    pub(crate) async fn enforced_in_kernel(&mut self) -> Result<Vec<usize>> {
        let status = self.controller.status().await?;
        let nodes = status.nodes.iter().filter(|node| self.is_in_kernel(&node.node));
        Ok(nodes
            .map(|node| usize::try_from(node.endpoints_enforced).unwrap_or(usize::MAX))
            .collect())
    }

    fn kernel_cpu(&self) -> Result<Duration> {
        self.kernel_nodes.iter().map(|node| cpu(node.pid())).sum()
    }

    async fn counters(&self, names: [&str; 2]) -> Result<[f64; 2]> {
        let value = async |name: &str| self.controller.counter(&format!("bulkhead_controller_{name}")).await;
        Ok([value(names[0]).await?, value(names[1]).await?])
    }
}

/// When the controller took a node's last acknowledgement.
fn acknowledged(node: &NodeStatus) -> Option<SystemTime> {
    SystemTime::try_from(node.last_ack?).ok()
}

impl Row {
    /// Largest of the fastest `share` in a hundred.
    pub(crate) fn percentile(times: &[Duration], share: usize) -> Duration {
        let mut sorted = times.to_vec();
        sorted.sort();
        let rank = (sorted.len() * share).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// Acknowledging nodes of one change.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(crate) fn nodes_each(&self) -> f64 {
        self.each(self.nodes as f64)
    }

    /// Writes to maps in memory of one change.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(crate) fn map_writes_each(&self) -> f64 {
        self.each(self.map_writes as f64)
    }

    pub(crate) fn each(&self, total: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "some hundred changes")]
        let changes = self.latencies.len().max(1) as f64;
        total / changes
    }
}
