//! `cargo xtask`: every command a developer runs, in one place.

mod acceptance;
mod bench;
mod bpf;
mod cluster;
mod conformance;
mod demo;
mod fuzz;
mod images;
mod manifests;
mod mutants;
mod paths;
mod run;
mod setup;
mod tests;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
cargo xtask COMMAND

  setup                   install what is missing to build and test; does nothing when all is there
  demo [--keep]           show default deny on real traffic, in namespaces of its own; --keep leaves it running
  test [--tier T] [--list]
                          all tests: unit, kube, kernel, e2e, restart, tidy; --list names tiers that run only when asked for
  test --soak SECONDS     churn under traffic with agents killed at random, every connection compared with the oracle
  tidy [--no-clippy]      the rules of the tree: layers, sizes, docs, examples, format, lints
  bpf                     build the kernel programs; prints path, size and sha256
  bench [verdict] [--json]
                          nanoseconds per packet of the shipped programs
  bench forwarding|connections [--rounds N] [--json]
                          CPU time of a packet and of a connection from pod to pod, beside nftables and iptables rule sets
  bench flowlog|maps [--rounds N] [--json]
                          what a flow record costs and whether losses are counted; loading addresses, beside nft and ipset
  bench revocation [--runs N] [--flows N] [--json]
                          from the write that takes a permission away to the last packet, 100,000 live flows, nftables beside it
  bench propagation [--nodes N] [--pods N] [--policies N] [--changes N] [--json]
                          from a write to the API server to the last node's acknowledgement
  bench memory [--nodes N] [--pods N] [--policies N] [--json]
                          what controller and agent need for 50,000 pods
  fuzz [--seconds N] [TARGET]
                          run the fuzz targets (all, 60 s each)
  cluster up [--nodes N] [--proxy nftables|iptables] [--kwok N]
  cluster down|status     real Kubernetes in namespaces of this machine: control plane, nodes, both address families
  images [--release] [--push]
                          our programs as images, made without a registry, loaded into the running nodes; pushed to the cluster's registry too
  manifests [--check]     deploy/manifests/bulkhead.yaml from the chart: what `bulkhead install` applies
  conformance [--suite network-policy|network-policy-api] [--focus REGEX] [--smoke] [--without-agents]
                          upstream's suites on the cluster; without agents the specs that deny must fail
  acceptance [--starts N] [--only SCENE] [--keep]
                          a new cluster: cold start, policies awaited, deny-all and back, pods that start together, upgrade, reboot
  mutants [NAME…] [--list]
                          named faults, each of which a test must catch; NAME may be an area (verdict, policy, plan, agent)

BULKHEAD_CACHE (default ~/.cache/bulkhead) holds tools and target directories that outlive a checkout.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {error:#}", run::paint(run::RED, "error:"));
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: &[String]) -> Result<ExitCode> {
    let Some((name, rest)) = arguments.split_first() else {
        println!("{USAGE}");
        return Ok(ExitCode::FAILURE);
    };
    if rest.iter().any(|argument| argument == "--help" || argument == "-h") {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rest = Arguments(rest.to_vec());
    match name.as_str() {
        "setup" => rest.done().and_then(|()| setup::setup()),
        "bpf" => rest.done().and_then(|()| bpf::build_and_describe()),
        "demo" => demo::demo(&mut rest),
        "test" => tests::test(&mut rest),
        "tidy" => tidy::command(&mut rest),
        "bench" => bench::bench(&mut rest),
        "cluster" => cluster::cluster(&mut rest),
        "acceptance" => acceptance::acceptance(&mut rest),
        "conformance" => conformance::conformance(&mut rest),
        "images" => images::images(&mut rest),
        "manifests" => manifests::manifests(&mut rest),
        "fuzz" => fuzz::fuzz(&mut rest),
        "mutants" => mutants::mutants(&mut rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("there is no `cargo xtask {other}`\n\n{USAGE}"),
    }
}

/// The arguments of one command, taken one by one; what is left over is an error.
struct Arguments(Vec<String>);

impl Arguments {
    /// Takes `--name`; true when it was there.
    fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|argument| argument != name);
        self.0.len() != before
    }

    /// Takes `--name VALUE` or `--name=VALUE`.
    fn value(&mut self, name: &str) -> Result<Option<String>> {
        let prefix = format!("{name}=");
        if let Some(at) = self.0.iter().position(|argument| argument.starts_with(&prefix)) {
            return Ok(self.0.remove(at).strip_prefix(&prefix).map(str::to_owned));
        }
        let Some(at) = self.0.iter().position(|argument| argument == name) else {
            return Ok(None);
        };
        if at + 1 >= self.0.len() {
            bail!("{name} needs a value");
        }
        self.0.remove(at);
        Ok(Some(self.0.remove(at)))
    }

    /// Takes the next argument that is not an option.
    fn positional(&mut self) -> Option<String> {
        let at = self.0.iter().position(|argument| !argument.starts_with('-'))?;
        Some(self.0.remove(at))
    }

    /// Complains about what nobody took.
    fn done(&self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(argument) => bail!("unknown argument {argument:?}\n\n{USAGE}"),
        }
    }
}
