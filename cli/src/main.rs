//! The `bulkhead` command: parses the command line and hands over to one module per subcommand.

use std::process::ExitCode;

use bulkhead_cli::{
    check, connectivity, endpoints, explain, flows, install, simulate, status, support_bundle, uninstall,
};
use clap::{Parser, Subcommand};

/// Zero-trust microsegmentation for Kubernetes: see, ask and check what your network policies do.
#[derive(Parser)]
#[command(name = "bulkhead", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say for a list of connections whether the policies in some manifests would allow them.
    Simulate(simulate::Arguments),
    /// Say why a connection would be allowed or denied: every tier, every policy, the rule that decides.
    Explain(explain::Arguments),
    /// Look for mistakes in manifests.
    Check(check::Arguments),
    /// Show connections of this node's pods, and the rule that decided each.
    Flows(flows::Arguments),
    /// Show where policies are enforced, and how the controller and this node's agent are.
    Status(status::Arguments),
    /// Show this node's pods: device, identity, policies, generation.
    Endpoints(endpoints::Arguments),
    /// Install Bulkhead on a cluster.
    Install(install::Arguments),
    /// Take Bulkhead off a cluster and its nodes.
    Uninstall(uninstall::Arguments),
    /// Collect the state of controller and agents, logs, events and policies into one file.
    SupportBundle(support_bundle::Arguments),
    /// Test a cluster with real connections.
    #[command(subcommand)]
    Connectivity(connectivity::Command),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Simulate(arguments) => simulate::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Flows(arguments) => flows::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Endpoints(arguments) => endpoints::run(&arguments),
        Command::Install(arguments) => install::run(&arguments),
        Command::Uninstall(arguments) => uninstall::run(&arguments),
        Command::SupportBundle(arguments) => support_bundle::run(&arguments),
        Command::Connectivity(command) => connectivity::run(&command),
    };
    result.unwrap_or_else(|error| {
        // What reads our output went away (`bulkhead check | head`): that is no failure of ours to talk about.
        if !error.chain().any(is_broken_pipe) {
            eprintln!("bulkhead: {error:#}");
        }
        ExitCode::FAILURE
    })
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
