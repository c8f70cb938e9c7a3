//! `cargo xtask cluster`: a real Kubernetes on this machine, its control plane and each node in namespaces of their own.

pub(crate) mod binaries;
mod control;
mod kwok;
mod network;
pub(crate) mod nodes;
pub(crate) mod process;
pub(crate) mod registry;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments, paths,
    run::{self, paint, seconds},
    setup,
};
use binaries::Binaries;

/// More would not fit into the machine's memory, nor into the address plan.
const NODES_MAX: usize = 8;
const NODES_DEFAULT: usize = 2;
/// As many networks of pods there are for them.
const KWOK_MAX: usize = 1000;
const READY_WITHIN: Duration = Duration::from_mins(3);

/// A cluster that was started.
pub(crate) struct Cluster {
    /// `$BULKHEAD_CACHE/cluster`.
    pub(crate) state: PathBuf,
    /// How many nodes it has: n1, n2, …
    pub(crate) nodes: usize,
    /// kube-proxy's mode.
    proxy: String,
    /// The built binaries it runs from.
    pub(crate) binaries: Binaries,
}

pub(crate) fn cluster(arguments: &mut Arguments) -> Result<ExitCode> {
    let action = arguments.positional();
    match action.as_deref() {
        Some("up") => {
            let wanted = Wanted::take(arguments)?;
            arguments.done()?;
            if !can_run()? {
                return Ok(ExitCode::SUCCESS);
            }
            up(&wanted).map(drop)?;
        }
        Some("down") => {
            arguments.done()?;
            down()?;
        }
        Some("status") => {
            arguments.done()?;
            return status();
        }
        _ => bail!("cargo xtask cluster up|down|status"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What the person asked for.
pub(crate) struct Wanted {
    nodes: usize,
    proxy: String,
    /// Nodes that exist in the API only.
    kwok: usize,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            nodes: NODES_DEFAULT,
            proxy: "nftables".to_owned(),
            kwok: 0,
        }
    }
}

impl Wanted {
    fn take(arguments: &mut Arguments) -> Result<Self> {
        let mut wanted = Self::default();
        if let Some(text) = arguments.value("--nodes")? {
            wanted.nodes = text
                .parse()
                .ok()
                .filter(|count| (1..=NODES_MAX).contains(count))
                .with_context(|| format!("--nodes {text}: a number from 1 to {NODES_MAX}"))?;
        }
        if let Some(mode) = arguments.value("--proxy")? {
            if !["nftables", "iptables"].contains(&mode.as_str()) {
                bail!("--proxy {mode}: nftables or iptables");
            }
            wanted.proxy = mode;
        }
        if let Some(text) = arguments.value("--kwok")? {
            wanted.kwok = text
                .parse()
                .ok()
                .filter(|count| *count <= KWOK_MAX)
                .with_context(|| format!("--kwok {text}: a number up to {KWOK_MAX}"))?;
        }
        // It always is; said so that scripts may insist on it.
        arguments.flag("--dual-stack");
        Ok(wanted)
    }
}

/// Says SKIPPED, and what to do, when this machine cannot have a cluster.
pub(crate) fn can_run() -> Result<bool> {
    let why = if !run::is_root() {
        "needs root: namespaces, mounts and cgroups are made".to_owned()
    } else if binaries::go().is_none() {
        format!(
            "needs Go {} or newer, to build Kubernetes from its modules: install it so that `go version` works",
            binaries::GO_VERSION
        )
    } else if run::output("kubectl", &["version", "--client"]).is_none() {
        "needs kubectl: install it so that `kubectl version --client` works".to_owned()
    } else {
        setup::ensure_cluster()?;
        return Ok(true);
    };
    println!("{} cluster: {why}", paint(run::YELLOW, "SKIPPED"));
    Ok(false)
}

/// Starts a cluster, or finds the one that is up.
pub(crate) fn up(wanted: &Wanted) -> Result<Cluster> {
    if let Some(cluster) = Cluster::running()? {
        println!("the cluster is up already; nothing to do");
        if cluster.nodes != wanted.nodes || cluster.proxy != wanted.proxy {
            println!(
                "it has {} nodes and kube-proxy in mode {}: for another one, `cargo xtask cluster down` first",
                cluster.nodes, cluster.proxy
            );
        }
        cluster.print_access();
        return Ok(cluster);
    }
    let binaries = binaries::ensure()?;
    // What a crash, or a reboot, left.
    clear()?;
    let started = Instant::now();
    let cluster = Cluster {
        state: state()?,
        nodes: wanted.nodes,
        proxy: wanted.proxy.clone(),
        binaries,
    };
    if let Err(error) = cluster.start() {
        return Err(error.context(format!(
            "logs are in {}; `cargo xtask cluster down` removes what was started",
            cluster.state.display()
        )));
    }
    if wanted.kwok > 0 {
        kwok::start(&cluster, wanted.kwok)?;
    }
    println!(
        "{} {} nodes are Ready, CoreDNS serves ({})",
        paint(run::GREEN, "✓"),
        cluster.nodes,
        seconds(started.elapsed())
    );
    cluster.print_access();
    Ok(cluster)
}

pub(crate) fn down() -> Result<()> {
    let started = Instant::now();
    if clear()? {
        println!(
            "{} the cluster is gone ({})",
            paint(run::GREEN, "✓"),
            seconds(started.elapsed())
        );
    } else {
        println!("there is no cluster; nothing to do");
    }
    Ok(())
}

/// Ends all processes, then removes cgroups, namespaces and state; true when there was something.
fn clear() -> Result<bool> {
    let state = state()?;
    let there = state.exists() || network::exists();
    nodes::end_all(&state, NODES_MAX)?;
    kwok::end(&state)?;
    registry::end(&state)?;
    control::end(&state)?;
    network::remove(NODES_MAX)?;
    match fs::remove_dir_all(&state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", state.display()))
        }
        _ => Ok(there),
    }
}

fn status() -> Result<ExitCode> {
    let Some(cluster) = Cluster::running()? else {
        println!("there is no cluster; `cargo xtask cluster up` starts one");
        return Ok(ExitCode::FAILURE);
    };
    cluster.print_access();
    println!(
        "kube-proxy in mode {}, binaries {}",
        cluster.proxy,
        cluster.binaries.bin().display()
    );
    let mut command = cluster.kubectl(&["get", "nodes,pods", "--all-namespaces", "--output=wide"]);
    let status = command.status().context("starting kubectl")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn state() -> Result<PathBuf> {
    Ok(paths::cache()?.join("cluster"))
}

impl Cluster {
    /// The cluster that is up, if one is.
    pub(crate) fn running() -> Result<Option<Self>> {
        let state = state()?;
        let Ok(text) = fs::read_to_string(state.join("cluster.json")) else {
            return Ok(None);
        };
        if !control::is_alive(&state) {
            return Ok(None);
        }
        let said: serde_json::Value =
            serde_json::from_str(&text).context("reading cluster.json of the running cluster")?;
        let field = |name: &str| said[name].as_str().map(str::to_owned);
        let nodes = said["nodes"].as_u64().and_then(|count| usize::try_from(count).ok());
        let (Some(nodes), Some(proxy), Some(root)) = (nodes, field("proxy"), field("binaries")) else {
            bail!(
                "{}/cluster.json misses a field; run `cargo xtask cluster down`",
                state.display()
            );
        };
        let binaries = Binaries { root: root.into() };
        Ok(Some(Self {
            state,
            nodes,
            proxy,
            binaries,
        }))
    }

    fn start(&self) -> Result<()> {
        fs::create_dir_all(&self.state).with_context(|| format!("creating {}", self.state.display()))?;
        network::make(self.nodes)?;
        control::start(self)?;
        registry::start(self)?;
        for number in 1..=self.nodes {
            nodes::start(self, number, &self.proxy)?;
        }
        let said = serde_json::json!({
            "nodes": self.nodes,
            "proxy": self.proxy,
            "binaries": self.binaries.root,
        });
        fs::write(self.state.join("cluster.json"), said.to_string()).context("writing cluster.json")?;
        nodes::wait_registered(self)?;
        let manifest = paths::root().join("testbed/kube/manifests/coredns.yaml");
        self.kubectl_ok(&["apply", "--filename", &manifest.to_string_lossy()])?;
        let timeout = format!("--timeout={}s", READY_WITHIN.as_secs());
        self.kubectl_ok(&["wait", "--for=condition=Ready", "nodes", "--all", &timeout])?;
        self.kubectl_ok(&[
            "--namespace=kube-system",
            "rollout",
            "status",
            "deployment/coredns",
            &timeout,
        ])?;
        Ok(())
    }

    /// A kubeconfig that works from the machine's own namespace, over a loopback port.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// kubectl on this cluster.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments);
        command
    }

    /// Runs kubectl; returns what it prints.
    pub(crate) fn kubectl_ok(&self, arguments: &[&str]) -> Result<String> {
        process::output_of(&mut self.kubectl(arguments))
    }

    /// Waits until a question to the API server is answered with yes.
    pub(crate) fn wait_until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) -> Result<()> {
        process::wait_until(what, READY_WITHIN, || holds(self))
    }

    fn print_access(&self) {
        println!("export KUBECONFIG={}", self.kubeconfig().display());
        println!(
            "registry {} on this machine, {} on the nodes",
            registry::address(&self.state).unwrap_or_default(),
            registry::host()
        );
        println!(
            "a shell on node n1: nsenter --target $({}) --mount --net --pid --uts sh",
            nodes::pid_hint(&self.state)
        );
    }
}

/// A file of `testbed/kube/node/` with its `@NAMES@` filled in.
fn template(name: &str, values: &[(&str, &str)]) -> Result<String> {
    let path = paths::root().join("testbed/kube/node").join(name);
    let mut text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    for (key, value) in values {
        text = text.replace(&format!("@{key}@"), value);
    }
    match text.split('@').nth(1) {
        Some(left) => bail!("{}: @{left}@ has no value", path.display()),
        None => Ok(text),
    }
}

/// Writes a file and names it when that fails.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
