//! `bulkhead-cni`: what each command of the CNI specification does.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bulkhead_policy::model::WorkloadKey;
use bulkhead_proto::{
    convert::address_to_bytes,
    v1::{
        Admission, AttachPodRequest, AttachPodResponse, CheckPodRequest, DetachPodRequest, WorkloadName,
        agent_service_client::AgentServiceClient,
    },
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::call::{Config, Failure, PodArguments, VERSIONS, addresses, code};
use crate::stream::unix_channel;

/// Of the time an ADD takes, the agent is left so much less, so that its answer still arrives.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);
/// Time for CHECK and DEL: neither waits for anything.
const ASK_MAX: Duration = Duration::from_secs(3);
/// Pause between tries to reach the agent.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// The device that runtimes ask for. Further devices are networks of their own, which no policy is about yet.
const INTERFACE: &str = "eth0";

/// What goes to standard output, and whether that is a failure.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// JSON; `None` = nothing.
    pub output: Option<Value>,
    /// The exit code is 0.
    pub success: bool,
}

/// Carries out one call. `variable` reads the environment.
pub fn call(variable: impl Fn(&str) -> Option<String>, input: &str) -> Answer {
    let mut version = "1.0.0".to_owned();
    match answer(&variable, input, &mut version) {
        Ok(output) => Answer { output, success: true },
        Err(failure) => Answer {
            output: Some(failure.json(&version)),
            success: false,
        },
    }
}

fn answer(
    variable: &impl Fn(&str) -> Option<String>,
    input: &str,
    version: &mut String,
) -> Result<Option<Value>, Failure> {
    let command = variable("CNI_COMMAND").ok_or_else(|| {
        Failure::new(
            code::ENVIRONMENT,
            "CNI_COMMAND is not set",
            "this program is called by container runtimes, not by people",
        )
    })?;
    let config: Config = serde_json::from_str(input).map_err(|error| {
        Failure::new(
            code::DECODE,
            format!("the network configuration on standard input: {error}"),
            "correct the entry of type bulkhead-cni in the CNI configuration, or let the agent write it",
        )
    })?;
    if !config.cni_version.is_empty() {
        version.clone_from(&config.cni_version);
    }
    if command == "VERSION" {
        return Ok(Some(json!({"cniVersion": version, "supportedVersions": VERSIONS})));
    }
    if !VERSIONS.contains(&version.as_str()) {
        return Err(Failure::new(
            code::VERSION,
            format!("cniVersion {version} is not spoken"),
            format!("set one of {} in the CNI configuration", VERSIONS.join(", ")),
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                code::TRY_AGAIN,
                error.to_string(),
                "is the node out of file descriptors?",
            )
        })?;
    match command.as_str() {
        "ADD" => runtime.block_on(Call::read(variable, config)?.add()).map(Some),
        "CHECK" => runtime.block_on(Call::read(variable, config)?.check()).map(|()| None),
        "DEL" => {
            runtime.block_on(delete(variable, &config));
            Ok(None)
        }
        // A node whose runtime says that its network is not ready loses its pods after a while, and their rules are in force
        // without us; so STATUS speaks for the configuration only, and ADD for itself. GC has nothing to collect: the agent
        // asks the runtime what there is.
        "STATUS" | "GC" => Ok(None),
        other => Err(Failure::new(
            code::ENVIRONMENT,
            format!("CNI_COMMAND {other} is not known"),
            "ADD, CHECK, DEL, STATUS, GC and VERSION are",
        )),
    }
}

/// ADD or CHECK of a pod.
struct Call {
    config: Config,
    pod: PodArguments,
    sandbox: String,
    netns: String,
    interface: String,
    result: Value,
}

impl Call {
    fn read(variable: &impl Fn(&str) -> Option<String>, mut config: Config) -> Result<Self, Failure> {
        let need = |name: &str| {
            variable(name).filter(|value| !value.is_empty()).ok_or_else(|| {
                Failure::new(
                    code::ENVIRONMENT,
                    format!("{name} is not set"),
                    "the container runtime has to set it",
                )
            })
        };
        let result = config.prev_result.take().ok_or_else(|| {
            Failure::new(
                code::CONFIG,
                "there is no prevResult",
                "bulkhead-cni is a chained plugin: it has to come after the plugin that makes the pod's network",
            )
        })?;
        Ok(Self {
            config,
            pod: PodArguments::parse(&variable("CNI_ARGS").unwrap_or_default()),
            sandbox: need("CNI_CONTAINERID")?,
            netns: need("CNI_NETNS")?,
            interface: need("CNI_IFNAME")?,
            result,
        })
    }

    fn name(&self) -> String {
        format!("{}/{}", self.pod.namespace, self.pod.name)
    }

    /// Not a pod of Kubernetes, or not its own network.
    fn is_no_concern(&self) -> bool {
        self.interface != INTERFACE || (self.pod.namespace.is_empty() && self.pod.name.is_empty())
    }

    async fn add(self) -> Result<Value, Failure> {
        if self.is_no_concern() {
            return Ok(self.result);
        }
        if self.pod.uid.is_empty() {
            return Err(Failure::new(
                code::ENVIRONMENT,
                format!("pod {}: CNI_ARGS has no K8S_POD_UID", self.name()),
                "the container runtime is too old to say which pod this is: containerd 1.6 or newer, or CRI-O 1.24 or newer",
            ));
        }
        let whole = Duration::from_millis(self.config.timeout_ms.into());
        let end = Instant::now() + whole;
        let ever = self.config.state_file.exists();
        let wait = if ever { whole } else { Duration::ZERO };
        let Some(channel) = connect(&self.config.agent_socket, wait).await else {
            return self.without_agent(ever);
        };
        let left = end
            .saturating_duration_since(Instant::now())
            .saturating_sub(ANSWER_MARGIN);
        let request = AttachPodRequest {
            workload: Some(workload(&self.pod)),
            pod_uid: self.pod.uid.clone(),
            sandbox: self.sandbox.clone(),
            netns: self.netns.clone(),
            interface: self.interface.clone(),
            addresses: addresses(&self.result, &self.interface)
                .into_iter()
                .map(address_to_bytes)
                .collect(),
            wait_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        };
        let mut client = AgentServiceClient::new(channel);
        let asked = tokio::time::timeout(left + ANSWER_MARGIN, client.attach_pod(request)).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                return Err(self.refused(
                    &format!("the agent answers: {}", status.message()),
                    "the runtime tries again; see the agent's log",
                ));
            }
            Err(_) => return Err(self.refused("the agent does not answer in time", "see the agent's log on this node")),
        };
        self.admitted(&answer)?;
        Ok(self.result)
    }

    fn admitted(&self, answer: &AttachPodResponse) -> Result<(), Failure> {
        match answer.admission() {
            Admission::Enforced | Admission::Unmanaged => Ok(()),
            Admission::Refused | Admission::Unspecified => Err(self.refused(
                &answer.reason,
                "the runtime tries again; is the controller running (`bulkhead status` says what this node waits for)?",
            )),
        }
    }

    /// Nobody answers on the agent's socket. The agent is a host-network pod, so that it comes back needs no plugin.
    fn without_agent(self, ever: bool) -> Result<Value, Failure> {
        let socket = self.config.agent_socket.display().to_string();
        if ever {
            return Err(self.refused(
                &format!("the agent does not answer on {socket}, and this node has rules that the pod would escape"),
                "the runtime tries again; look after the bulkhead-agent pod of this node, or run `bulkhead-agent cni-uninstall` to give Bulkhead up here",
            ));
        }
        if self.config.start_gate == "strict" {
            return Err(self.refused(
                &format!("the agent does not answer on {socket}, and startGate is strict"),
                "the runtime tries again; look after the bulkhead-agent pod of this node",
            ));
        }
        Ok(self.result)
    }

    fn refused(&self, reason: &str, fix: &str) -> Failure {
        Failure::new(
            code::TRY_AGAIN,
            format!("pod {} does not start: {reason}", self.name()),
            fix,
        )
    }

    async fn check(self) -> Result<(), Failure> {
        if self.is_no_concern() {
            return Ok(());
        }
        // The kernel judges without the agent; what it cannot say is no failure of the pod's network.
        let Some(channel) = connect(&self.config.agent_socket, Duration::ZERO).await else {
            return Ok(());
        };
        let request = CheckPodRequest {
            workload: Some(workload(&self.pod)),
            pod_uid: self.pod.uid.clone(),
        };
        let mut client = AgentServiceClient::new(channel);
        match tokio::time::timeout(ASK_MAX, client.check_pod(request)).await {
            Ok(Ok(answer)) => self.admitted(&answer.into_inner()),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

/// Tells the agent, if it is there. A pod must always be able to end.
async fn delete(variable: &impl Fn(&str) -> Option<String>, config: &Config) {
    let Some(sandbox) = variable("CNI_CONTAINERID") else {
        return;
    };
    if variable("CNI_IFNAME").is_some_and(|interface| interface != INTERFACE) {
        return;
    }
    let Some(channel) = connect(&config.agent_socket, Duration::ZERO).await else {
        return;
    };
    let mut client = AgentServiceClient::new(channel);
    // Without this news the agent learns it from the runtime.
    drop(tokio::time::timeout(ASK_MAX, client.detach_pod(DetachPodRequest { sandbox })).await);
}

/// A channel to the agent, tried for that long and at least once.
async fn connect(socket: &Path, wait: Duration) -> Option<Channel> {
    let end = Instant::now() + wait;
    loop {
        if let Ok(channel) = unix_channel(socket, None).await {
            return Some(channel);
        }
        if Instant::now() + CONNECT_PAUSE >= end {
            return None;
        }
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
}

fn workload(pod: &PodArguments) -> WorkloadName {
    let key = WorkloadKey {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
    };
    (&key).into()
}

#[cfg(test)]
mod tests;
