//! `bulkhead uninstall`: everything off the nodes first, then everything out of the cluster.

mod nodes;
mod objects;

use std::{
    io::{IsTerminal as _, Write as _, stdin, stdout},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;
use clap::Args;

use crate::{client::block_on, cluster::Access};

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
    /// Clean the nodes and touch nothing else but the agents: what the Helm chart runs before it deletes its objects.
    #[arg(long)]
    pub nodes_only: bool,
    /// Go on although some nodes did not answer: they keep what is on them.
    #[arg(long)]
    pub ignore_unreachable_nodes: bool,
    /// Longest time to wait for all nodes.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub wait_seconds: u64,
}

/// Runs the command; the status is 1 when something is left.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    block_on(async {
        let cluster = arguments.access.connect().await?;
        let mut crds = Vec::new();
        if !arguments.nodes_only {
            crds = objects::definitions(&cluster).await?;
            if !arguments.keep_crds {
                objects::warn_of_loss(&cluster, &crds).await?;
            }
            confirm(arguments)?;
        }
        let within = Duration::from_secs(arguments.wait_seconds);
        let left = nodes::clean(&cluster, &arguments.namespace, within).await?;
        if !left.is_empty() && !arguments.ignore_unreachable_nodes {
            bail!(
                "{} did not become clean: {}. The rest of Bulkhead was left in place, so that this can be run again; \
                 or --ignore-unreachable-nodes, and later on each of them: bulkhead-agent cleanup",
                if left.len() == 1 { "one node" } else { "some nodes" },
                left.join(", ")
            );
        }
        if !arguments.nodes_only {
            objects::remove(&cluster, &arguments.namespace, within).await?;
            if arguments.keep_crds {
                println!(
                    "kept: {}",
                    if crds.is_empty() {
                        "no definitions were there".to_owned()
                    } else {
                        crds.join(", ")
                    }
                );
            } else {
                objects::remove_definitions(&cluster, &crds, within).await?;
            }
            println!("Bulkhead is uninstalled");
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
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
