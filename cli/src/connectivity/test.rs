//! Walks through the matrix: sets policies, waits for what clients then see, and cleans up however it ends.

use std::{
    collections::BTreeMap,
    io::{Write as _, stdout},
    process::ExitCode,
    time::{Duration, Instant},
};

use tokio::signal::unix::{SignalKind, signal};

use super::{
    Test,
    matrix::{Client, Step, steps},
    report::{Failure, NO_ROUND, Report, StepReport},
    roles::OPEN,
    why,
    world::World,
};
use crate::{
    client::{Output, block_on},
    cluster::{
        Cluster, LOOK,
        object::{self, text},
    },
    install::AGENT,
};

/// Whole rounds after a change that must be as expected: of the first, a try may be older than the change.
const ROUNDS: usize = 2;

pub(super) fn run(arguments: &Test) -> anyhow::Result<ExitCode> {
    let report = block_on(async {
        let cluster = arguments.access.connect().await?;
        let image = match &arguments.image {
            Some(image) => image.clone(),
            None => image_beside_agents(&cluster, &arguments.bulkhead_namespace).await?,
        };
        let mut world = World {
            cluster,
            namespace: arguments.namespace.clone(),
            image,
            start_within: Duration::from_secs(arguments.start_timeout),
            within: Duration::from_secs(arguments.timeout),
            nodes: Vec::new(),
            ways: BTreeMap::new(),
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let result = tokio::select! {
            result = walk(&mut world, arguments) => result,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("ended by a signal")),
        };
        // Another Ctrl-C ends the waiting for what is deleted, not the deleting.
        let cleaned = tokio::select! {
            cleaned = world.clean() => cleaned,
            _ = tokio::signal::ctrl_c() => Ok(()),
        };
        if let Err(error) = cleaned {
            eprintln!(
                "bulkhead: cleaning up: {error:#}; to finish: kubectl delete namespace {0} {0}-far",
                world.namespace
            );
        }
        result
    })?;
    let text = match arguments.output {
        Output::Table => report.text(),
        Output::Json => format!("{:#}\n", report.json()),
    };
    stdout().lock().write_all(text.as_bytes())?;
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `…/bulkhead-agent:TAG` → `…/bulkhead:TAG`.
async fn image_beside_agents(cluster: &Cluster, namespace: &str) -> anyhow::Result<String> {
    let Some(agents) = cluster.find(("apps/v1", "DaemonSet"), namespace, AGENT).await? else {
        anyhow::bail!(
            "no DaemonSet {namespace}/{AGENT}: is Bulkhead installed (bulkhead install), or in another --bulkhead-namespace? \
             With --image it can be tested without"
        );
    };
    let agents = object::json(&agents)?;
    let image = text(&agents, "/spec/template/spec/containers/0/image");
    Ok(image.replacen(AGENT, "bulkhead", 1))
}

async fn walk(world: &mut World, arguments: &Test) -> anyhow::Result<Report> {
    let people = arguments.output == Output::Table;
    let namespace = &arguments.bulkhead_namespace;
    world.nodes = world.choose_nodes().await?;
    // Before the pods: that they do not start may be the agents' doing.
    let (_, warnings) = why::agents(&world.cluster, namespace, &world.nodes).await?;
    if people {
        println!("nodes {}, image {}", world.nodes.join(" and "), world.image);
    }
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    world.start().await?;
    let clusters = world.has_cluster_policies().await;
    let mut report = Report {
        nodes: world.nodes.clone(),
        warnings,
        steps: Vec::new(),
    };
    let mut before = Vec::new();
    for step in steps(&world.namespace) {
        let done = if step.is_clusters() && !clusters {
            StepReport::skipped(step.title, "this cluster does not serve ClusterNetworkPolicy v1alpha2")
        } else {
            let policies = world.set_policies(&before, &step.policies).await?;
            before.clone_from(&step.policies);
            let mut done = judge(world, &step, &policies).await?;
            if !done.failures.is_empty() {
                let (agents, wrong) = why::agents(&world.cluster, namespace, &world.nodes).await?;
                done.notes.extend(wrong);
                let silent = why::explain(&world.cluster, namespace, &agents, &mut done).await;
                done.notes.extend(silent);
            }
            done
        };
        if people {
            print!("{}", done.line());
            stdout().flush()?;
        }
        let stop = arguments.fail_fast && !done.passed();
        report.steps.push(done);
        if stop {
            break;
        }
    }
    Ok(report)
}

/// Waits until every client sees what it should; what it saw last otherwise.
async fn judge(world: &World, step: &Step, policies: &[String]) -> anyhow::Result<StepReport> {
    let begin = Instant::now();
    let mut notes = Vec::new();
    for policy in policies {
        if let Err(error) = world.enforced(policy).await {
            notes.push(format!("{error:#}"));
        }
    }
    // What a policy says of itself has had its time; connections have theirs.
    let begin_looking = Instant::now();
    let mut first = BTreeMap::new();
    for client in Client::ALL {
        let last = world.rounds(client).await?.last().map_or(0, |round| round.round);
        first.insert(client, last);
    }
    loop {
        let mut failures = Vec::new();
        let mut checked = 0;
        for client in Client::ALL {
            let after = first.get(&client).copied().unwrap_or_default() + 1;
            let rounds = world.rounds(client).await?;
            let newest = rounds.iter().rev().take(ROUNDS).filter(|round| round.round > after);
            let newest: Vec<_> = newest.collect();
            for (name, way) in &world.ways {
                checked += 1;
                let expected = (step.allows)(client, way.goal);
                let seen: Vec<&str> = newest
                    .iter()
                    .filter_map(|round| round.results.get(name))
                    .map(String::as_str)
                    .collect();
                let good = seen.len() == ROUNDS && seen.iter().all(|seen| (*seen == OPEN) == expected);
                if !good {
                    let wrong = seen.iter().find(|seen| (**seen == OPEN) != expected);
                    failures.push(Failure {
                        from: format!("{}/{}", world.namespace_of(client), client.name()),
                        to: way.said.clone(),
                        addresses: way.addresses.clone(),
                        why: Vec::new(),
                        expected,
                        observed: wrong.map_or(NO_ROUND, |seen| *seen).to_owned(),
                    });
                }
            }
        }
        if failures.is_empty() || begin_looking.elapsed() >= world.within {
            return Ok(StepReport {
                title: step.title,
                skipped: None,
                checked,
                failures,
                notes,
                took: begin.elapsed(),
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}
