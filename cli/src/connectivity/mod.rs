//! `bulkhead connectivity`: a test of a cluster by real connections, and the two roles its pods play.

mod matrix;
mod report;
mod roles;
mod test;
mod why;
mod world;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::{client::Output, cluster::Access};

/// Test a cluster with real connections.
#[derive(Clone, PartialEq, Eq, Debug, Subcommand)]
pub enum Command {
    /// Start clients and servers, walk through policies and compare what connects with what should.
    Test(Test),
    /// Role of a pod of the test: answer every connection.
    #[command(hide = true)]
    Serve(roles::Serve),
    /// Role of a pod of the test: try connections for ever, one line of JSON for each round.
    #[command(hide = true)]
    Probe(roles::Probe),
}

/// Start clients and servers on the cluster, walk through a matrix of policies, and compare what connects with what should.
///
/// Everything is in two namespaces of its own, and is deleted at the end, also after Ctrl-C. Two ClusterNetworkPolicies select these
/// namespaces only.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
#[command(after_help = "Example:\n  bulkhead connectivity test --fail-fast -o json")]
pub struct Test {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub access: Access,
    /// Namespace of the test's pods; a second one is called <NAME>-far.
    #[arg(long, short, default_value = "bulkhead-connectivity-test", value_name = "NAME")]
    pub namespace: String,
    /// Namespace of controller and agents, whose registry the image is taken from.
    #[arg(long, default_value = "bulkhead-system", value_name = "NAME")]
    pub bulkhead_namespace: String,
    /// Image with this program. Default: `bulkhead` from where the agents' image is, with the same tag.
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Longest time for each step to become as expected.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub timeout: u64,
    /// Longest time for the test's pods to start.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub start_timeout: u64,
    /// End after the first step that fails.
    #[arg(long)]
    pub fail_fast: bool,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Runs the command; the status is 1 when a connection was other than expected.
pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Test(arguments) => test::run(arguments),
        Command::Serve(arguments) => roles::serve(arguments),
        Command::Probe(arguments) => roles::probe(arguments),
    }
}
