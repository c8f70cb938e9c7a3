//! Asks the container runtime which pods run here, whenever it says that something has changed. Pods that were here before the
//! agent are found this way, and those that the CNI plugin did not tell of.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, TrySendError},
    time::Duration,
};

use anyhow::{Context, Result};
use bulkhead_policy::model::WorkloadKey;
use bulkhead_proto::cri::{
    ContainerFilter, ContainerState, ContainerStateValue, ContainerStatusRequest, GetEventsRequest,
    ListContainersRequest, ListPodSandboxRequest, NamespaceMode, PodSandbox, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, PodSandboxStatusRequest, PodSandboxStatusResponse,
    runtime_service_client::RuntimeServiceClient,
};
use tokio::sync::watch;
use tonic::{Code, Status, transport::Channel};

use crate::{
    endpoints::{Place, Pod},
    stream,
    sync::Input,
};

/// Time between lists when the runtime says nothing. New pods are told by the CNI plugin; this is for what it does not say: another
/// program rewrote the CNI's configuration, and the pod that started before our entry was back is to be judged at once all the same.
const INTERVAL: Duration = Duration::from_secs(5);
/// After a change, what else changes with it is waited for so long: a pod's start is several.
const SETTLE: Duration = Duration::from_millis(20);
/// First pause after a failure; it doubles up to [`INTERVAL`].
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Longest answer of a runtime, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest time for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Name of a pod's device inside: runtimes always ask the CNI for this one.
const INTERFACE: &str = "eth0";

/// How the runtime is doing, for status: empty when it answers.
pub(crate) type Trouble = watch::Sender<String>;

/// Asks again and again, for ever.
pub(crate) async fn watch(socket: PathBuf, sync: SyncSender<Input>, trouble: Trouble) {
    let (change, changes) = watch::channel(());
    tokio::select! {
        () = follow(&socket, &change) => {}
        () = list(Runtime::new(socket.clone()), changes, sync, trouble) => {}
    }
}

/// Tells of changes as the runtime does, for ever.
async fn follow(socket: &Path, change: &watch::Sender<()>) {
    loop {
        let ended = events(socket, change).await;
        if ended.as_ref().is_err_and(|status| status.code() == Code::Unimplemented) {
            tracing::info!(
                socket = %socket.display(),
                "the container runtime has no events; it is asked every {} s",
                INTERVAL.as_secs()
            );
            return std::future::pending().await;
        }
        // That it is away is said by who lists.
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn events(socket: &Path, change: &watch::Sender<()>) -> Result<(), Status> {
    // No limit of time: the answer begins with the first event.
    let channel = stream::unix_channel(socket, None).await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = RuntimeServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut events = client.get_container_events(GetEventsRequest {}).await?.into_inner();
    change.send_replace(());
    while events.message().await?.is_some() {
        change.send_replace(());
    }
    Ok(())
}

async fn list(mut runtime: Runtime, mut changes: watch::Receiver<()>, sync: SyncSender<Input>, trouble: Trouble) {
    let mut pause = RETRY_FIRST;
    loop {
        changes.mark_unchanged();
        match runtime.pods().await {
            Ok(pods) => {
                if trouble.send_replace(String::new()) != String::new() {
                    tracing::info!(pods = pods.len(), "the container runtime answers again");
                }
                pause = INTERVAL;
                match sync.try_send(Input::Pods(pods)) {
                    // A busy thread is asked again soon.
                    Err(TrySendError::Full(_)) => pause = RETRY_FIRST,
                    Err(TrySendError::Disconnected(_)) => return,
                    Ok(()) => {}
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                if trouble.send_replace(error.clone()) != error {
                    tracing::warn!(
                        socket = %runtime.socket.display(),
                        "the container runtime does not answer, pods that were here before are not found: {error}"
                    );
                }
                runtime.channel = None;
                pause = if pause >= INTERVAL {
                    RETRY_FIRST
                } else {
                    (pause * 2).min(INTERVAL)
                };
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = changes.changed() => tokio::time::sleep(SETTLE).await,
        }
    }
}

/// The runtime, and what it said that does not change.
struct Runtime {
    socket: PathBuf,
    channel: Option<Channel>,
    /// Running sandboxes by id; `None` for those without a network of their own.
    sandboxes: HashMap<String, Option<Pod>>,
    /// Image digest by container.
    images: HashMap<String, Option<String>>,
}

impl Runtime {
    fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            channel: None,
            sandboxes: HashMap::new(),
            images: HashMap::new(),
        }
    }

    async fn client(&mut self) -> Result<RuntimeServiceClient<Channel>> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => stream::unix_channel(&self.socket, Some(ANSWER_MAX))
                .await
                .context("connecting (option --cri-socket)")?,
        };
        self.channel = Some(channel.clone());
        Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
    }

    /// Everything that runs and has a network of its own.
    async fn pods(&mut self) -> Result<Vec<Pod>> {
        let mut client = self.client().await?;
        let state = Some(PodSandboxStateValue {
            state: PodSandboxState::SandboxReady.into(),
        });
        let request = ListPodSandboxRequest {
            filter: Some(PodSandboxFilter { state }),
        };
        let listed = client
            .list_pod_sandbox(request)
            .await
            .context("listing sandboxes")?
            .into_inner()
            .items;
        let ids: BTreeSet<&str> = listed.iter().map(|sandbox| sandbox.id.as_str()).collect();
        self.sandboxes.retain(|id, _| ids.contains(id.as_str()));
        let mut newest: BTreeMap<WorkloadKey, (i64, Pod)> = BTreeMap::new();
        for sandbox in &listed {
            if !self.sandboxes.contains_key(&sandbox.id) {
                let pod = match ask(&mut client, sandbox).await? {
                    Found::Pod(pod) => Some(pod),
                    Found::HostNetwork => None,
                    Found::NotYet => continue,
                };
                self.sandboxes.insert(sandbox.id.clone(), pod);
            }
            let Some(Some(pod)) = self.sandboxes.get(&sandbox.id) else {
                continue;
            };
            let older = newest
                .get(&pod.key)
                .is_some_and(|(created, _)| *created >= sandbox.created_at);
            if !older {
                newest.insert(pod.key.clone(), (sandbox.created_at, pod.clone()));
            }
        }
        let mut pods: Vec<Pod> = newest.into_values().map(|(_, pod)| pod).collect();
        self.read_images(&mut client, &mut pods).await?;
        Ok(pods)
    }

    /// Fills in the images that run.
    async fn read_images(&mut self, client: &mut RuntimeServiceClient<Channel>, pods: &mut [Pod]) -> Result<()> {
        let state = Some(ContainerStateValue {
            state: ContainerState::ContainerRunning.into(),
        });
        let request = ListContainersRequest {
            filter: Some(ContainerFilter { state }),
        };
        let listed = client
            .list_containers(request)
            .await
            .context("listing containers")?
            .into_inner()
            .containers;
        let ids: BTreeSet<&str> = listed.iter().map(|container| container.id.as_str()).collect();
        self.images.retain(|id, _| ids.contains(id.as_str()));
        let mut by_sandbox: HashMap<&str, BTreeSet<String>> = HashMap::new();
        for container in &listed {
            if !self.images.contains_key(&container.id) {
                let request = ContainerStatusRequest {
                    container_id: container.id.clone(),
                };
                // The list names the image as stored here; the status as its registry does. A container that ended
                // meanwhile is left out.
                let Ok(answer) = client.container_status(request).await else {
                    continue;
                };
                let status = answer.into_inner().status.unwrap_or_default();
                let image = digest(&status.image_ref).or_else(|| digest(&container.image_ref));
                self.images.insert(container.id.clone(), image);
            }
            if let Some(Some(image)) = self.images.get(&container.id) {
                by_sandbox
                    .entry(&container.pod_sandbox_id)
                    .or_default()
                    .insert(image.clone());
            }
        }
        for pod in pods {
            pod.images = by_sandbox.remove(pod.sandbox.as_str()).unwrap_or_default();
        }
        Ok(())
    }
}

/// What a sandbox turned out to be.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Pod(Pod),
    /// It uses the node's network: nothing to attach to.
    HostNetwork,
    /// Gone, or not ready to be asked; the next list tries again.
    NotYet,
}

async fn ask(client: &mut RuntimeServiceClient<Channel>, sandbox: &PodSandbox) -> Result<Found> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.id.clone(),
        verbose: true,
    };
    let answer = match client.pod_sandbox_status(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(Found::NotYet),
        Err(status) => return Err(status).context(format!("asking about sandbox {}", sandbox.id)),
    };
    Ok(pod(sandbox, &answer))
}

fn pod(sandbox: &PodSandbox, answer: &PodSandboxStatusResponse) -> Found {
    let status = answer.status.clone().unwrap_or_default();
    let mode = status
        .linux
        .and_then(|linux| linux.namespaces)
        .and_then(|namespaces| namespaces.options)
        .map_or(NamespaceMode::Pod, |options| options.network());
    if mode == NamespaceMode::Node {
        return Found::HostNetwork;
    }
    let network = status.network.unwrap_or_default();
    let more = network.additional_ips.iter().map(|more| more.ip.as_str());
    let addresses = [network.ip.as_str()]
        .into_iter()
        .chain(more)
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .collect();
    let Some(netns) = network_namespace(answer) else {
        tracing::warn!(
            sandbox = sandbox.id,
            "the container runtime does not say which network namespace this pod has; only the CNI plugin can tell"
        );
        return Found::NotYet;
    };
    let Some(metadata) = sandbox.metadata.clone() else {
        return Found::NotYet;
    };
    Found::Pod(Pod {
        key: WorkloadKey {
            namespace: metadata.namespace,
            name: metadata.name,
        },
        uid: metadata.uid,
        sandbox: sandbox.id.clone(),
        place: Place {
            netns,
            interface: INTERFACE.to_owned(),
            addresses,
        },
        images: BTreeSet::new(),
    })
}

/// The namespace's path from the runtime's own words: the specification the sandbox was made from, which both containerd and
/// CRI-O give, else that of its process.
fn network_namespace(answer: &PodSandboxStatusResponse) -> Option<PathBuf> {
    let info: serde_json::Value = serde_json::from_str(answer.info.get("info")?).ok()?;
    let namespaces = info
        .pointer("/runtimeSpec/linux/namespaces")
        .and_then(|all| all.as_array());
    let path = namespaces.into_iter().flatten().find_map(|namespace| {
        let is_network = namespace.get("type").and_then(|kind| kind.as_str()) == Some("network");
        let path = namespace.get("path")?.as_str()?;
        (is_network && !path.is_empty()).then(|| path.into())
    });
    path.or_else(|| {
        let process = info.get("pid")?.as_u64().filter(|process| *process > 0)?;
        Some(format!("/proc/{process}/ns/net").into())
    })
}

/// `sha256:…` at the end of an image's name.
fn digest(image: &str) -> Option<String> {
    let digest = image.rsplit('@').next()?;
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| digest.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bulkhead_proto::cri::{
        LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandboxMetadata, PodSandboxNetworkStatus,
        PodSandboxStatus,
    };

    use super::*;

    fn found(mode: NamespaceMode, info: &str) -> Pod {
        match super::pod(&sandbox(), &answer(mode, info)) {
            Found::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    fn sandbox() -> PodSandbox {
        PodSandbox {
            id: "s1".to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: "web".to_owned(),
                uid: "u1".to_owned(),
                namespace: "shop".to_owned(),
            }),
            state: 0,
            created_at: 1,
        }
    }

    fn answer(mode: NamespaceMode, info: &str) -> PodSandboxStatusResponse {
        let options = Some(NamespaceOption { network: mode.into() });
        PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                network: Some(PodSandboxNetworkStatus {
                    ip: "10.0.0.7".to_owned(),
                    additional_ips: vec![PodIp {
                        ip: "fd00::7".to_owned(),
                    }],
                }),
                linux: Some(LinuxPodSandboxStatus {
                    namespaces: Some(Namespace { options }),
                }),
                ..PodSandboxStatus::default()
            }),
            info: HashMap::from([("info".to_owned(), info.to_owned())]),
        }
    }

    #[test]
    fn the_namespace_comes_from_the_specification_or_the_process() {
        let spec = r#"{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/a"}]}}}"#;
        let one = found(NamespaceMode::Pod, spec);
        assert_eq!(one.place.netns, PathBuf::from("/run/netns/a"));
        assert_eq!(one.key.to_string(), "shop/web");
        assert_eq!(one.place.addresses.len(), 2);
        let process = r#"{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"network"}]}}}"#;
        let other = found(NamespaceMode::Pod, process);
        assert_eq!(other.place.netns, PathBuf::from("/proc/7/ns/net"));
        assert_eq!(
            super::pod(&sandbox(), &answer(NamespaceMode::Pod, r#"{"pid":0}"#)),
            Found::NotYet
        );
    }

    #[test]
    fn host_network_pods_are_skipped() {
        assert_eq!(pod(&sandbox(), &answer(NamespaceMode::Node, "{}")), Found::HostNetwork);
    }

    #[test]
    fn digests_of_images() {
        let hex = "a".repeat(64);
        let want = Some(format!("sha256:{hex}"));
        assert_eq!(digest(&format!("registry.example/a/b@sha256:{hex}")), want);
        assert_eq!(digest(&format!("sha256:{hex}")), want);
        assert_eq!(digest("registry.example/a/b:tag"), None);
        assert_eq!(digest("sha256:short"), None);
    }
}
