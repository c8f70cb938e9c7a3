//! One call of a plugin as the CNI specification has it: what comes by environment and standard input, and what goes out.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

/// Versions of the specification the plugin speaks. What it reads of a result has been the same since 0.3.0.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a runtime is told when a call fails.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// As the specification numbers them.
    pub code: u32,
    /// What failed, naming the pod.
    pub message: String,
    /// What to do about it.
    pub details: String,
}

/// Codes of the specification.
pub mod code {
    /// The configuration's version is not spoken.
    pub const VERSION: u32 = 1;
    /// An environment variable is missing or wrong.
    pub const ENVIRONMENT: u32 = 4;
    /// Standard input is not what it should be.
    pub const DECODE: u32 = 6;
    /// The configuration is wrong.
    pub const CONFIG: u32 = 7;
    /// Trying again is right.
    pub const TRY_AGAIN: u32 = 11;
}

impl Failure {
    /// A failure with its remedy.
    pub fn new(code: u32, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.into(),
        }
    }

    /// As it goes to standard output.
    pub fn json(&self, version: &str) -> Value {
        json!({"cniVersion": version, "code": self.code, "msg": self.message, "details": self.details})
    }
}

/// Our entry of the network configuration, as the runtime hands it over.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// Socket of the agent.
    #[serde(default = "agent_socket")]
    pub agent_socket: PathBuf,
    /// File whose presence says that the node has had rules.
    #[serde(default = "state_file")]
    pub state_file: PathBuf,
    /// `open` or `strict`.
    #[serde(default)]
    pub start_gate: String,
    /// All the time an ADD may take, milliseconds.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u32,
    /// What the plugins before us made.
    pub prev_result: Option<Value>,
}

/// Runtimes give a plugin minutes; a pod that cannot start is to say so sooner.
fn timeout_ms() -> u32 {
    10_000
}

fn agent_socket() -> PathBuf {
    "/run/bulkhead/agent.sock".into()
}

fn state_file() -> PathBuf {
    "/var/lib/bulkhead/state.bulkhead".into()
}

/// A pod as the runtime names it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PodArguments {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

impl PodArguments {
    /// Reads `CNI_ARGS` (`KEY=VALUE;…`); what is missing stays empty.
    pub fn parse(arguments: &str) -> Self {
        let mut pod = Self::default();
        for (key, value) in arguments.split(';').filter_map(|pair| pair.split_once('=')) {
            match key {
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => value.clone_into(&mut pod.uid),
                _ => {}
            }
        }
        pod
    }
}

/// Addresses that a result gives to a device of the pod.
pub fn addresses(result: &Value, interface: &str) -> BTreeSet<IpAddr> {
    let is_its = |ip: &Value| {
        let Some(index) = ip.get("interface").and_then(Value::as_u64) else {
            return true;
        };
        let device = usize::try_from(index)
            .ok()
            .and_then(|index| result.get("interfaces")?.get(index)?.get("name")?.as_str());
        device == Some(interface)
    };
    let ips = result.get("ips").and_then(Value::as_array);
    ips.into_iter()
        .flatten()
        .filter(|ip| is_its(ip))
        .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_read_from_arguments() {
        let pod = PodArguments::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1",
        );
        assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("shop", "web", "u-1"));
        assert_eq!(PodArguments::parse(""), PodArguments::default());
    }

    #[test]
    fn addresses_are_those_of_the_pods_device() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.0.0.7/24", "interface": 2, "gateway": "10.0.0.1"},
                {"address": "fd00::7/64", "interface": 2},
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "nonsense", "interface": 2},
            ],
        });
        let all: Vec<String> = addresses(&result, "eth0").iter().map(ToString::to_string).collect();
        assert_eq!(all, ["10.0.0.7", "fd00::7"]);
        let plain = json!({"ips": [{"address": "10.0.0.7/32"}]});
        assert_eq!(addresses(&plain, "eth0").len(), 1);
        assert!(addresses(&json!({}), "eth0").is_empty());
    }
}
