//! `bulkhead uninstall`: everything off the nodes first, then everything out of the cluster.

mod nodes;
mod objects;

use std::{
    io::{IsTerminal as _, Write as _, stdin, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;
use clap::{Args, ValueEnum};

use crate::{
    client::block_on,
    cluster::{Access, Cluster},
};

/// Take Bulkhead off a cluster: programs, maps, CNI entries and state off every node, then every object, then the CRDs.
///
/// From the moment a node is clean, its pods are judged by nobody.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
#[command(
    after_help = "Example:\n  bulkhead uninstall --keep-crds\n\nKeeps policies and their kinds, for a later installation."
)]
pub struct Arguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub access: Access,
    /// Namespace of controller and agents.
    #[arg(
        long,
        short,
        default_value = "bulkhead-system",
        value_name = "NAME",
        env = "BULKHEAD_NAMESPACE"
    )]
    pub namespace: String,
    /// Keep the kinds of our policies, and with them the policies.
    #[arg(long)]
    pub keep_crds: bool,
    /// Do not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// Do only this part of it. The Helm chart runs `nodes` before it deletes its objects, and `leftovers` afterwards.
    #[arg(long, value_enum, default_value_t = Part::All)]
    pub part: Part,
    /// Go on although some nodes did not answer: they keep what is on them.
    #[arg(long)]
    pub ignore_unreachable_nodes: bool,
    /// Longest time to wait for all nodes.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub wait_seconds: u64,
}

/// A part of uninstalling.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Part {
    /// The nodes, then all objects.
    All,
    /// Agents end, and every node is cleaned.
    Nodes,
    /// What the controller made while it ran, and the definition of ClusterNetworkPolicy if it came with us.
    Leftovers,
}

/// Runs the command; the status is 1 when something is left.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    block_on(async {
        let cluster = arguments.access.connect().await?;
        match arguments.part {
            Part::All => all(&cluster, arguments).await,
            Part::Nodes => nodes(&cluster, arguments).await,
            Part::Leftovers => leftovers(&cluster, arguments).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    fn within(&self) -> Duration {
        Duration::from_secs(self.wait_seconds)
    }
}

async fn all(cluster: &Cluster, arguments: &Arguments) -> anyhow::Result<()> {
    let definitions = objects::definitions(cluster).await?;
    if !arguments.keep_crds {
        objects::warn_of_loss(cluster, &definitions).await?;
    }
    confirm(arguments)?;
    // First of all: from here on nobody's policy waits for an answer that may not come.
    objects::remove_webhook(cluster).await?;
    nodes(cluster, arguments).await?;
    objects::remove(cluster, &arguments.namespace, arguments.within()).await?;
    if arguments.keep_crds {
        let kept = if definitions.is_empty() {
            "no definitions were there".to_owned()
        } else {
            definitions.join(", ")
        };
        println!("kept: {kept}");
    } else {
        objects::remove_definitions(cluster, &definitions, arguments.within()).await?;
    }
    println!("Bulkhead is uninstalled");
    Ok(())
}

async fn nodes(cluster: &Cluster, arguments: &Arguments) -> anyhow::Result<()> {
    let left = nodes::clean(cluster, &arguments.namespace, arguments.within()).await?;
    if !left.is_empty() && !arguments.ignore_unreachable_nodes {
        bail!(
            "{} did not become clean: {}. The rest of Bulkhead was left in place, so that this can be run again; \
             or --ignore-unreachable-nodes, and later on each of them: bulkhead-agent cleanup",
            if left.len() == 1 { "one node" } else { "some nodes" },
            left.join(", ")
        );
    }
    Ok(())
}

async fn leftovers(cluster: &Cluster, arguments: &Arguments) -> anyhow::Result<()> {
    // A controller that still runs would make them anew.
    objects::controllers_ended(cluster, &arguments.namespace, arguments.within()).await?;
    objects::remove_made(cluster, &arguments.namespace).await?;
    if !arguments.keep_crds {
        objects::remove_upstream(cluster, arguments.within()).await?;
    }
    Ok(())
}

fn confirm(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.yes {
        return Ok(());
    }
    if !stdin().is_terminal() {
        bail!("this takes every policy out of force; give --yes where nobody can be asked");
    }
    print!("Take Bulkhead off this cluster, and every policy out of force? [y/N] ");
    stdout().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was changed");
    }
    Ok(())
}
