//! A controller and its agents over a testnet: start, apply, wait until it is in force, kill, restart.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bulkhead_proto::v1::{ControllerStatus, PolicyName, PolicyStatus, Severity};
use serde_yaml_ng::Value;

use crate::{
    client::Client,
    manifests,
    process::{Running, until},
    sys,
    testnet::{Testnet, binary},
};

/// Long enough for a loaded machine; nothing is asserted about it.
const SETTLE_MAX: Duration = Duration::from_mins(1);
const END_MAX: Duration = Duration::from_secs(10);

/// A policy the controller was given, and which version.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Applied {
    file: String,
    namespace: String,
    name: String,
    generation: i64,
}

/// The running control plane. It must be dropped before its testnet: declare it later.
pub struct Stack {
    directory: PathBuf,
    logs: PathBuf,
    controller: Option<Running>,
    agents: Vec<Option<Running>>,
    applied: Vec<Applied>,
    generation: i64,
}

impl Stack {
    /// Writes the cluster's manifests, starts everything and waits until all pods' devices are judged.
    ///
    /// # Errors
    /// Says what did not come up, with the end of its log.
    pub fn start(net: &Testnet) -> Result<Self> {
        let mut stack = Self::prepare(net)?;
        stack.start_controller()?;
        for node in 0..net.nodes.len() {
            stack.start_agent(net, node, &[])?;
        }
        stack.settle()?;
        Ok(stack)
    }

    /// Folders and manifests, and nothing running yet.
    ///
    /// # Errors
    /// When something cannot be written or mounted.
    pub fn prepare(net: &Testnet) -> Result<Self> {
        let directory = net.directory().to_path_buf();
        let manifests = directory.join("manifests");
        fs::create_dir_all(&manifests).with_context(|| format!("creating {}", manifests.display()))?;
        manifests::write(&manifests, "cluster.yaml", &manifests::cluster(net)?)?;
        let mut agents = Vec::new();
        for node in 0..net.nodes.len() {
            let bpffs = directory.join(format!("bpf{node}"));
            fs::create_dir_all(&bpffs).with_context(|| format!("creating {}", bpffs.display()))?;
            sys::mount_bpffs(&bpffs).with_context(|| format!("mounting a bpf file system on {}", bpffs.display()))?;
            fs::create_dir_all(directory.join(format!("state{node}"))).context("creating the state folder")?;
            agents.push(None);
        }
        let logs = net.logs();
        Ok(Self {
            directory,
            logs,
            controller: None,
            agents,
            applied: Vec::new(),
            generation: 0,
        })
    }

    /// The folder the controller watches.
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// The controller's socket.
    pub fn controller_socket(&self) -> PathBuf {
        self.directory.join("controller.sock")
    }

    /// An agent's socket.
    pub fn agent_socket(&self, node: usize) -> PathBuf {
        self.directory.join(format!("agent{node}.sock"))
    }

    /// A client of the controller.
    ///
    /// # Errors
    /// When no runtime can be made.
    pub fn controller(&self) -> Result<Client> {
        Client::new(&self.controller_socket())
    }

    /// A client of an agent.
    ///
    /// # Errors
    /// When no runtime can be made.
    pub fn agent(&self, node: usize) -> Result<Client> {
        Client::new(&self.agent_socket(node))
    }

    /// Starts the controller.
    ///
    /// # Errors
    /// When it is not built or cannot start.
    pub fn start_controller(&mut self) -> Result<()> {
        self.start_controller_as(Command::new(binary("bulkhead-controller")?), &[])
    }

    /// Starts the controller inside a node's namespace, where the node's agent reaches its TCP port over loopback.
    ///
    /// # Errors
    /// When it is not built or cannot start.
    pub fn start_controller_on(&mut self, net: &Testnet, node: usize, more: &[&str]) -> Result<()> {
        let place = net
            .nodes
            .get(node)
            .with_context(|| format!("there is no node {node}"))?;
        self.start_controller_as(place.netns.command(binary("bulkhead-controller")?)?, more)
    }

    fn start_controller_as(&mut self, mut command: Command, more: &[&str]) -> Result<()> {
        command.env("NO_COLOR", "1");
        command.arg("--manifests").arg(self.manifests());
        command
            .arg("--listen")
            .arg(format!("unix:{}", self.controller_socket().display()));
        command.args(more);
        sys::die_with_parent(&mut command);
        self.controller = Some(Running::start("controller", command, &self.logs)?);
        Ok(())
    }

    /// Ends the controller.
    pub fn stop_controller(&mut self) {
        self.controller = None;
    }

    /// Starts a node's agent inside the node's namespace.
    ///
    /// # Errors
    /// When it is not built or cannot start.
    pub fn start_agent(&mut self, net: &Testnet, node: usize, more: &[&str]) -> Result<()> {
        let place = net
            .nodes
            .get(node)
            .with_context(|| format!("there is no node {node}"))?;
        let mut command = place.netns.command(binary("bulkhead-agent")?)?;
        command.env("NO_COLOR", "1").args(["--node", &place.name]);
        if !more.iter().any(|argument| argument.starts_with("--controller")) {
            command
                .arg("--controller")
                .arg(format!("unix:{}", self.controller_socket().display()));
        }
        command.arg("--socket").arg(self.agent_socket(node));
        command.arg("--bpffs").arg(self.bpffs(node));
        command
            .arg("--state-dir")
            .arg(self.directory.join(format!("state{node}")));
        command.args(more);
        let running = Running::start(&format!("agent{node}"), command, &self.logs)?;
        if let Some(slot) = self.agents.get_mut(node) {
            *slot = Some(running);
        }
        Ok(())
    }

    /// Where a node's agent pins its maps and links.
    pub fn bpffs(&self, node: usize) -> PathBuf {
        self.directory.join(format!("bpf{node}"))
    }

    /// The process of an agent.
    ///
    /// # Errors
    /// When it was not started.
    pub fn agent_pid(&self, node: usize) -> Result<u32> {
        let running = self.agents.get(node).and_then(Option::as_ref);
        Ok(running.with_context(|| format!("node {node} has no agent"))?.pid())
    }

    /// Kills an agent with SIGKILL.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill_agent(&mut self, node: usize) -> Result<()> {
        let slot = self
            .agents
            .get_mut(node)
            .with_context(|| format!("there is no node {node}"))?;
        let mut running = slot
            .take()
            .with_context(|| format!("the agent of node {node} is not running"))?;
        running.kill().map(drop)
    }

    /// Asks an agent to end, and waits.
    ///
    /// # Errors
    /// When it does not end by itself.
    pub fn end_agent(&mut self, node: usize) -> Result<()> {
        let slot = self
            .agents
            .get_mut(node)
            .with_context(|| format!("there is no node {node}"))?;
        let mut running = slot
            .take()
            .with_context(|| format!("the agent of node {node} is not running"))?;
        running.terminate(END_MAX).map(drop)
    }

    /// The process of the controller, while it runs.
    pub fn controller_process(&self) -> Option<&Running> {
        self.controller.as_ref()
    }

    /// The process of an agent, while it runs.
    pub fn agent_process(&mut self, node: usize) -> Option<&mut Running> {
        self.agents.get_mut(node)?.as_mut()
    }

    /// Writes policies into the folder, each with a generation of its own by which its way is followed.
    ///
    /// # Errors
    /// When the text is no YAML, or has a document without a name.
    pub fn write(&mut self, file: &str, yaml: &str) -> Result<()> {
        self.applied.retain(|applied| applied.file != file);
        let mut documents = Vec::new();
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let mut value: Value =
                serde::Deserialize::deserialize(document).with_context(|| format!("reading {file}"))?;
            let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
            let Some(metadata) = value.get_mut("metadata") else {
                bail!("{file}: a document has no metadata")
            };
            if kind.ends_with("Policy") {
                self.generation += 1;
                metadata["generation"] = self.generation.into();
                let text = |key: &str| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
                let cluster = kind.starts_with("Cluster");
                self.applied.push(Applied {
                    file: file.to_owned(),
                    namespace: if cluster {
                        String::new()
                    } else {
                        text("namespace").unwrap_or_else(|| "default".into())
                    },
                    name: text("name").with_context(|| format!("{file}: a document has no name"))?,
                    generation: self.generation,
                });
            }
            documents.push(serde_yaml_ng::to_string(&value).context("writing YAML")?);
        }
        manifests::write(&self.manifests(), file, &documents.join("---\n"))
    }

    /// Writes policies and waits until they are in force on every node that needs them.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn apply(&mut self, file: &str, yaml: &str) -> Result<()> {
        self.write(file, yaml)?;
        self.settle()
    }

    /// Takes a file away and waits until its policies are out of force.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn remove(&mut self, file: &str) -> Result<()> {
        let path = self.manifests().join(file);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        let gone: Vec<Applied> = self
            .applied
            .iter()
            .filter(|applied| applied.file == file)
            .cloned()
            .collect();
        self.applied.retain(|applied| applied.file != file);
        self.wait_for(|status| {
            let left = gone
                .iter()
                .find(|applied| status.policies.iter().any(|policy| names(policy, applied)));
            left.map_or_else(|| settled(status), |left| Err(format!("{} is still there", left.name)))
        })
    }

    /// Waits until every policy written is in force and every pod's device is judged.
    ///
    /// # Errors
    /// Says what is missing, with the ends of the logs.
    pub fn settle(&self) -> Result<()> {
        self.wait_for(|status| {
            for applied in &self.applied {
                in_force(status, applied)?;
            }
            settled(status)
        })
    }

    /// True when everything is in force at this moment.
    pub fn is_settled(&self) -> bool {
        let status = self.controller().and_then(|client| client.controller_status());
        status.is_ok_and(|status| {
            self.applied.iter().all(|applied| in_force(&status, applied).is_ok()) && settled(&status).is_ok()
        })
    }

    /// Waits until the controller's status satisfies a condition, which says what is missing otherwise.
    ///
    /// # Errors
    /// What was missing last.
    pub fn wait_for(&self, condition: impl Fn(&ControllerStatus) -> Result<(), String>) -> Result<()> {
        let client = self.controller()?;
        let mut missing = String::new();
        let done = until(SETTLE_MAX, || {
            let result = client.controller_status().map_err(|error| format!("{error:#}"));
            result
                .and_then(|status| condition(&status))
                .map_err(|reason| missing = reason)
                .ok()
        });
        if done.is_some() {
            return Ok(());
        }
        let running = self.controller.iter().chain(self.agents.iter().flatten());
        let logs: Vec<String> = running
            .map(|process| format!("{}: {}", process.log().display(), process.log_tail()))
            .collect();
        bail!("not in force after {SETTLE_MAX:?}: {missing}\n{}", logs.join("\n"))
    }
}

fn names(status: &PolicyStatus, applied: &Applied) -> bool {
    let PolicyName { namespace, name, .. } = status.policy.clone().unwrap_or_default();
    namespace == applied.namespace && name == applied.name
}

fn in_force(status: &ControllerStatus, applied: &Applied) -> Result<(), String> {
    let Applied { name, generation, .. } = applied;
    let Some(policy) = status.policies.iter().find(|policy| names(policy, applied)) else {
        return Err(format!("policy {name} is not known"));
    };
    if policy.generation != *generation {
        return Err(format!(
            "policy {name} is known as of generation {}, not {generation}",
            policy.generation
        ));
    }
    if policy.nodes_enforced < policy.nodes_needed {
        return Err(format!(
            "policy {name} is not in force on {}",
            policy.nodes_waiting.join(", ")
        ));
    }
    Ok(())
}

/// Nothing is under way, and nothing the nodes should judge is unjudged.
fn settled(status: &ControllerStatus) -> Result<(), String> {
    for node in &status.nodes {
        if !node.connected {
            return Err(format!("node {} is not connected", node.node));
        }
        if node.revision_held < node.revision_wanted {
            return Err(format!(
                "node {} holds revision {} of {}: {}",
                node.node, node.revision_held, node.revision_wanted, node.error
            ));
        }
        if node.endpoints_enforced < node.endpoints {
            return Err(format!(
                "node {} enforces {} of {} endpoints",
                node.node, node.endpoints_enforced, node.endpoints
            ));
        }
    }
    let wanted = status.sizes.map_or(0, |sizes| sizes.endpoints);
    let enforced: u64 = status.nodes.iter().map(|node| u64::from(node.endpoints_enforced)).sum();
    if enforced < wanted || wanted == 0 {
        return Err(format!("{enforced} of {wanted} endpoints are enforced"));
    }
    Ok(())
}

/// Diagnostics of severity ERROR, as text.
pub fn errors(status: &ControllerStatus) -> Vec<String> {
    let errors = status
        .diagnostics
        .iter()
        .filter(|diagnostic| diagnostic.severity() == Severity::Error);
    errors
        .map(|found| format!("{} {} {}: {}", found.source, found.object, found.field, found.message))
        .collect()
}

/// A command of the `bulkhead` binary that talks to this stack's sockets.
///
/// # Errors
/// When it is not built.
pub fn bulkhead(stack: &Stack, node: usize) -> Result<Command> {
    let mut command = Command::new(binary("bulkhead")?);
    for (variable, socket) in sockets(stack, node) {
        command.env(variable, socket);
    }
    Ok(command)
}

/// The environment variables by which the command line finds a stack.
pub fn sockets(stack: &Stack, node: usize) -> [(&'static str, PathBuf); 2] {
    [
        ("BULKHEAD_CONTROLLER_SOCKET", stack.controller_socket()),
        ("BULKHEAD_AGENT_SOCKET", stack.agent_socket(node)),
    ]
}

/// Reads an example of the checkout, for a test: cargo runs tests in their package's folder.
///
/// # Errors
/// When it is not there.
pub fn example(name: &str) -> Result<String> {
    let path = Path::new("../examples").join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}
