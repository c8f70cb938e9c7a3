//! Plays the container runtime towards CNI plugins: calls a chain of real plugins as the specification says.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::namespace::Namespace;

/// Folder of Debian's `containernetworking-plugins`.
pub const PLUGINS: &str = "/usr/lib/cni";

/// True when the plugins of the distribution are there.
pub fn has_plugins() -> bool {
    Path::new(PLUGINS).join("bridge").is_file() && Path::new(PLUGINS).join("ptp").is_file()
}

/// A sandbox of a pod: its namespace, and who it is.
#[derive(Debug)]
pub struct Sandbox {
    /// Id.
    pub id: String,
    /// Namespace of the network.
    pub netns: Namespace,
    /// Kubernetes namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
}

impl Sandbox {
    /// A sandbox with a new namespace; `id` is unique within the run.
    ///
    /// # Errors
    /// When the namespace cannot be made.
    pub fn create(run: &str, id: &str, namespace: &str, name: &str, uid: &str) -> Result<Self> {
        Ok(Self {
            id: id.to_owned(),
            netns: Namespace::create(&crate::namespace::name_of(run, id))?,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    }
}

/// A network configuration list, read anew for each call as runtimes do when it changes.
#[derive(Debug)]
pub struct Chain {
    /// The list.
    pub conflist: PathBuf,
    /// Folders of plugins.
    pub bin_dirs: Vec<PathBuf>,
}

/// A call that a plugin refused.
#[derive(Debug)]
pub struct Refusal {
    /// Which.
    pub plugin: String,
    /// Code of its error.
    pub code: u64,
    /// What it says, message and details.
    pub message: String,
}

impl Chain {
    /// Calls every plugin with ADD; gives the last result, or who refused. What was made so far is then taken down, as
    /// runtimes do.
    ///
    /// # Errors
    /// When a plugin cannot be called at all.
    pub fn add(&self, node: &Namespace, sandbox: &Sandbox) -> Result<Result<Value, Refusal>> {
        let list = self.list()?;
        let mut result = Value::Null;
        for plugin in plugins(&list)? {
            match self.call("ADD", node, sandbox, &list, plugin, &result)? {
                Ok(next) => result = next,
                Err(refusal) => {
                    self.delete(node, sandbox)?;
                    return Ok(Err(refusal));
                }
            }
        }
        Ok(Ok(result))
    }

    /// Calls every plugin with CHECK.
    ///
    /// # Errors
    /// When a plugin cannot be called at all.
    pub fn check(&self, node: &Namespace, sandbox: &Sandbox, result: &Value) -> Result<Result<(), Refusal>> {
        let list = self.list()?;
        for plugin in plugins(&list)? {
            if let Err(refusal) = self.call("CHECK", node, sandbox, &list, plugin, result)? {
                return Ok(Err(refusal));
            }
        }
        Ok(Ok(()))
    }

    /// Calls every plugin with DEL, the last first.
    ///
    /// # Errors
    /// When one refuses: a pod must be able to end.
    pub fn delete(&self, node: &Namespace, sandbox: &Sandbox) -> Result<()> {
        let list = self.list()?;
        for plugin in plugins(&list)?.iter().rev() {
            if let Err(refusal) = self.call("DEL", node, sandbox, &list, plugin, &Value::Null)? {
                bail!("DEL: {}: {}", refusal.plugin, refusal.message);
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Value> {
        let text =
            std::fs::read_to_string(&self.conflist).with_context(|| format!("reading {}", self.conflist.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", self.conflist.display()))
    }

    fn call(
        &self,
        command: &str,
        node: &Namespace,
        sandbox: &Sandbox,
        list: &Value,
        plugin: &Value,
        previous: &Value,
    ) -> Result<Result<Value, Refusal>> {
        let name = plugin
            .get("type")
            .and_then(Value::as_str)
            .context("a plugin without a type")?;
        let path = self
            .bin_dirs
            .iter()
            .map(|folder| folder.join(name))
            .find(|path| path.is_file())
            .with_context(|| format!("plugin {name} is in none of the folders"))?;
        let mut config = plugin.clone();
        let fields = config.as_object_mut().context("a plugin that is no object")?;
        for field in ["cniVersion", "name"] {
            fields.insert(field.to_owned(), list.get(field).cloned().unwrap_or_default());
        }
        if !previous.is_null() {
            fields.insert("prevResult".to_owned(), previous.clone());
        }
        let folders = std::env::join_paths(&self.bin_dirs).context("folders of plugins")?;
        let mut child = node
            .command(&path)?
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &sandbox.id)
            .env("CNI_NETNS", sandbox.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", folders)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                    sandbox.namespace, sandbox.name, sandbox.id, sandbox.uid
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", path.display()))?;
        child
            .stdin
            .take()
            .context("a plugin has no standard input")?
            .write_all(config.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        if output.status.success() {
            return Ok(Ok(answer));
        }
        let field = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default();
        Ok(Err(Refusal {
            plugin: name.to_owned(),
            code: answer.get("code").and_then(Value::as_u64).unwrap_or_default(),
            message: format!(
                "{}; {}{}",
                field("msg"),
                field("details"),
                String::from_utf8_lossy(&output.stderr)
            ),
        }))
    }
}

fn plugins(list: &Value) -> Result<&Vec<Value>> {
    list.get("plugins")
        .and_then(Value::as_array)
        .context("a list without plugins")
}

/// A list of a CNI that makes the network `bridge` or `ptp` makes, on a subnet; leases are kept in a folder.
pub fn conflist(kind: &str, subnet: &str, leases: &Path) -> Value {
    let ipam = json!({
        "type": "host-local",
        "dataDir": leases,
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let mut plugin = json!({"type": kind, "ipam": ipam});
    if kind == "bridge" {
        plugin["bridge"] = "cni0".into();
        plugin["isGateway"] = true.into();
    }
    json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]})
}
