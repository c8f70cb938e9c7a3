//! `bench-propagation`: how fast, and at what cost, a change reaches every node of a large cluster. See README.md.

mod api;
mod kernel_nodes;
mod measure;
mod objects;
mod process;
mod report;

use std::{
    ops::Range,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bulkhead_dataplane::simulated::Simulated;
use bulkhead_testbed::sys;
use clap::Parser;

use crate::{
    api::Api,
    kernel_nodes::KernelNode,
    measure::Bed,
    objects::{Change, Size},
    process::{Controller, cpu, load, resident},
};

/// Measures on a real API server with simulated nodes.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Nodes
    #[arg(long, default_value_t = 200)]
    nodes: usize,
    /// Agents; the other nodes have none
    #[arg(long)]
    agents: Option<usize>,
    /// Of the agents, so many are the shipped program with maps in this kernel (needs root); default: 2, or none without root
    #[arg(long)]
    kernel_agents: Option<usize>,
    /// Pods
    #[arg(long, default_value_t = 10_000)]
    pods: usize,
    /// `NetworkPolicies`
    #[arg(long, default_value_t = 1_000)]
    policies: usize,
    /// Changes of each kind; 0 = only memory
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// Results as JSON on standard output, everything else on standard error
    #[arg(long)]
    json: bool,
}

/// Only a broken run waits so long for everything to be in force.
const FILLED: Duration = Duration::from_mins(15);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) if std::env::args().nth(1).as_deref() == Some(process::ROLE) => {
            runtime.block_on(process::be_controller())
        }
        Ok(runtime) => runtime.block_on(bench(&Options::parse())),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(options: &Options) -> Result<()> {
    let size = Size {
        nodes: options.nodes.max(1),
        pods: options.pods,
        policies: options.policies.max(1),
    };
    let say = |text: &str| {
        if options.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    };
    let agents = options.agents.unwrap_or(size.nodes).min(size.nodes);
    let in_kernel = match options.kernel_agents {
        Some(wanted) if wanted > agents => bail!("--kernel-agents {wanted}: there are {agents} agents"),
        Some(wanted) if wanted > 0 && !sys::is_root() => {
            bail!("--kernel-agents {wanted}: maps in the kernel need root")
        }
        Some(wanted) => wanted,
        None if sys::is_root() => agents.min(2),
        None => 0,
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let build = if cfg!(debug_assertions) {
        "not optimised"
    } else {
        "optimised"
    };
    say(&format!(
        "{} nodes ({agents} with an agent, {in_kernel} of them with maps in this kernel), {} pods of two addresses, {} NetworkPolicies; {cpus} CPUs, load {}, {build}",
        size.nodes,
        size.pods,
        size.policies,
        load()
    ));
    let agents = Agents {
        simulated: in_kernel..agents,
        in_kernel,
        added: options.changes,
    };
    let mut bed = fill(size, &agents, &say).await?;
    let mut rows = Vec::new();
    for change in Change::ALL.into_iter().filter(|_| options.changes > 0) {
        rows.push(bed.measure(change, options.changes).await?);
    }
    say(&format!("load {} at the end", load()));
    if options.json {
        print!("{}", report::json(&rows));
    } else if !rows.is_empty() {
        println!("\n{}", report::table(&rows));
    }
    memory(&mut bed, options.json)
}

/// Which nodes have which agent.
struct Agents {
    simulated: Range<usize>,
    /// The first so many nodes.
    in_kernel: usize,
    /// Pods that are added later.
    added: usize,
}

/// Creates everything and waits until it is in force everywhere.
async fn fill(size: Size, agents: &Agents, say: &impl Fn(&str)) -> Result<Bed> {
    let begin = Instant::now();
    let api = Api::start().await?;
    api.write_all(size.nodes()).await?;
    api.write_all(size.node_statuses()).await?;
    api.write_all(size.namespace_objects()).await?;
    api.write_all(size.service_accounts()).await?;
    api.write_all(size.pod_objects()).await?;
    api.write_all(size.pod_statuses()).await?;
    api.write_all(size.policy_objects()).await?;
    say(&format!("created in {:.0} s", begin.elapsed().as_secs_f64()));
    let begin = Instant::now();
    let mut controller = Controller::start(&api.kubeconfig(), api.folder())?;
    let pods = u64::try_from(size.pods)?;
    while !matches!(controller.status().await, Ok(status) if status.sizes.is_some_and(|sizes| sizes.workloads >= pods))
    {
        if begin.elapsed() > FILLED {
            bail!("the controller does not come to know {pods} pods");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let used = cpu(controller.pid())?;
    let sizes = controller.status().await?.sizes.context("sizes")?;
    say(&format!(
        "listed and compiled in {:.1} s, {:.1} s of CPU: {} identities, {} bindings, {} rulesets with {} entries",
        begin.elapsed().as_secs_f64(),
        used.as_secs_f64(),
        sizes.identities,
        sizes.bindings,
        sizes.rulesets,
        sizes.ruleset_entries
    ));
    start_agents(api, controller, size, agents, say).await
}

/// Starts the agents and waits until every node holds its state.
async fn start_agents(
    api: Api,
    controller: Controller,
    size: Size,
    agents: &Agents,
    say: &impl Fn(&str),
) -> Result<Bed> {
    let begin = Instant::now();
    let states = api.folder().join("agents");
    let in_kernel: Result<Vec<KernelNode>> = (0..agents.in_kernel)
        .map(|node| {
            let name = format!("node-{node}");
            let folder = states.join(&name);
            KernelNode::start(&name, &size.devices(node, agents.added), controller.socket(), &folder)
        })
        .collect();
    let simulated: Result<Vec<Simulated>> = agents
        .simulated
        .clone()
        .map(|node| {
            let name = format!("node-{node}");
            Simulated::start(&name, controller.socket().to_owned(), &states.join(&name))
        })
        .collect();
    let mut bed = Bed {
        api,
        controller,
        kernel_nodes: in_kernel?,
        agents: simulated?,
        size,
    };
    while bed.agents.iter().any(|agent| agent.revision() == 0) {
        if begin.elapsed() > FILLED {
            bail!("not every agent got a state");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A node may be level with the controller before its endpoints are announced, or its report has come.
    let expected = size.devices(0, 0).len() * agents.in_kernel;
    let in_kernel = loop {
        bed.settle(None).await?;
        let in_kernel = bed.enforced_in_kernel().await?;
        if in_kernel.iter().sum::<usize>() >= expected {
            break in_kernel;
        }
        if begin.elapsed() > FILLED {
            bail!("the agents with maps in this kernel enforce {in_kernel:?} of {expected} endpoints");
        }
    };
    let enforced: usize = bed.agents.iter().map(|agent| agent.held().enforced).sum();
    say(&format!(
        "every agent holds its state after {:.1} s; {enforced} endpoints enforced, in this kernel {in_kernel:?}",
        begin.elapsed().as_secs_f64()
    ));
    Ok(bed)
}

fn memory(bed: &mut Bed, as_json: bool) -> Result<()> {
    let (controller, own) = (bed.controller.pid(), std::process::id());
    let mut processes = vec![
        ("controller".to_owned(), controller),
        ("agents_together".to_owned(), own),
    ];
    let in_kernel = bed.kernel_nodes.iter().map(KernelNode::pid).enumerate();
    processes.extend(in_kernel.map(|(node, pid)| (format!("kernel_agent_{node}"), pid)));
    for (name, pid) in processes {
        let ((now, most), cpu) = (resident(pid)?, cpu(pid)?);
        if as_json {
            let line = serde_json::json!({"name": format!("memory_{name}"), "unit": "MiB", "now": now, "max": most,
                "cpu_s": cpu.as_secs_f64()});
            println!("{line}");
        } else {
            println!(
                "{name:<16} {now:>6} MiB resident, {most:>6} MiB at most, {:>6.1} s of CPU",
                cpu.as_secs_f64()
            );
        }
    }
    Ok(())
}
