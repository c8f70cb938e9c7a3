//! Pods: workloads, host-network pods, and pods that have ended.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_policy::{
    lease::image_class,
    model::{Attachment, NamedPort, Workload, WorkloadKey, Zone},
};
use serde::Deserialize;
use serde_json::Value;

use super::{Metadata, addresses, claims, is_port_name, parse_protocol, port_number, read_fact};
use crate::report::Report;

/// Annotation with the path of a pod's network namespace.
const NETNS: &str = "bulkhead.dev/netns";
/// Annotation with the name of a pod's host-side device.
const DEVICE: &str = "bulkhead.dev/device";

/// What a Pod object is to a policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Pod {
    /// It has, or may get, an address of its own.
    Workload(Workload),
    /// It uses its node's addresses, so policies see the node.
    Host(HostPod),
    /// It has ended (phase Succeeded or Failed); its addresses may already be another pod's.
    Ended(WorkloadKey),
}

/// A pod on the host network. Not a workload: policies do not select it, and to its peers it is the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPod {
    /// Name.
    pub key: WorkloadKey,
    /// Node it runs on, when known.
    pub node: Option<String>,
    /// Addresses of its host (`status.hostIPs`, `status.hostIP`, and its own, which are the same).
    pub addresses: BTreeSet<IpAddr>,
}

#[derive(Deserialize)]
struct PodText {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    host_network: Option<bool>,
    node_name: Option<String>,
    service_account_name: Option<String>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Deserialize)]
struct ContainerPort {
    name: Option<String>,
    #[serde(rename = "containerPort")]
    number: Option<i64>,
    protocol: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Ip>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<Ip>>,
    #[serde(rename = "containerStatuses")]
    containers: Option<Vec<ContainerStatus>>,
    #[serde(rename = "initContainerStatuses")]
    init_containers: Option<Vec<ContainerStatus>>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral_containers: Option<Vec<ContainerStatus>>,
}

impl Status {
    /// Digests of the images that run or ran in the pod, as the runtime calls them.
    fn images(&self) -> BTreeSet<String> {
        let lists = [&self.containers, &self.init_containers, &self.ephemeral_containers];
        let all = lists.into_iter().flatten().flatten();
        all.filter_map(|container| container.image_id.clone().filter(|id| !id.is_empty()))
            .collect()
    }
}

#[derive(Deserialize)]
struct ContainerStatus {
    #[serde(rename = "imageID")]
    image_id: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    ip: Option<String>,
}

/// Lowers a Pod.
pub(crate) fn lower(value: &Value, report: &mut Report<'_>) -> Option<Pod> {
    let PodText { metadata, spec, status } = read_fact(value, report)?;
    let (spec, status) = (spec.unwrap_or_default(), status.unwrap_or_default());
    let key = WorkloadKey {
        name: metadata.name(report)?,
        namespace: metadata.namespace(),
    };
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Some(Pod::Ended(key));
    }
    let mut found = addresses(
        ips("podIP", status.pod_ip.as_deref(), status.pod_ips.as_deref()),
        report,
    );
    let node = spec.node_name.filter(|name| !name.is_empty());
    if spec.host_network == Some(true) {
        found.extend(addresses(
            ips("hostIP", status.host_ip.as_deref(), status.host_ips.as_deref()),
            report,
        ));
        return Some(Pod::Host(HostPod {
            key,
            node,
            addresses: found,
        }));
    }
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut named_ports = Vec::new();
    for (index, container) in spec.containers.iter().flatten().enumerate() {
        add_ports(
            container,
            &format!("spec.containers[{index}]"),
            &mut named_ports,
            report,
        );
    }
    for container in sidecars {
        add_ports(container, "spec.initContainers[]", &mut named_ports, report);
    }
    let annotation = |name| {
        metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(name))
            .filter(|text| !text.is_empty())
    };
    let claims = claims::read(metadata.annotations.as_ref(), report);
    Some(Pod::Workload(Workload {
        attachment: Attachment {
            netns: annotation(NETNS).cloned(),
            device: annotation(DEVICE).cloned(),
        },
        key,
        uid: metadata.uid.unwrap_or_default(),
        labels: metadata.labels.unwrap_or_default(),
        service_account: spec
            .service_account_name
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned()),
        node,
        addresses: found,
        zone: Zone(0),
        named_ports,
        image_class: image_class(&status.images(), &claims),
        claims,
    }))
}

/// `(field, text)` of the list `status.<name>s` and of the single `status.<name>`, which repeats the list's first.
fn ips<'a>(name: &'a str, single: Option<&'a str>, list: Option<&'a [Ip]>) -> impl Iterator<Item = (String, &'a str)> {
    let list = list.unwrap_or_default().iter().enumerate();
    list.map(move |(index, ip)| {
        (
            format!("status.{name}s[{index}].ip"),
            ip.ip.as_deref().unwrap_or_default(),
        )
    })
    .chain(single.into_iter().map(move |ip| (format!("status.{name}"), ip)))
}

/// Adds a container's named ports; of two with one name and protocol the first counts.
fn add_ports(container: &Container, path: &str, ports: &mut Vec<NamedPort>, report: &mut Report<'_>) {
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else {
            continue;
        };
        let protocol = parse_protocol(
            port.protocol
                .as_deref()
                .filter(|name| !name.is_empty())
                .unwrap_or("TCP"),
        );
        let number = port_number(port.number.unwrap_or_default());
        let parsed = is_port_name(name)
            .map_err(|problem| ("name", problem))
            .and_then(|()| protocol.map_err(|problem| ("protocol", problem)))
            .and_then(|protocol| Ok((protocol, number.map_err(|problem| ("containerPort", problem))?)));
        match parsed {
            Ok((protocol, number)) => {
                if !ports
                    .iter()
                    .any(|known| known.name == name && known.protocol == protocol)
                {
                    ports.push(NamedPort {
                        name: name.to_owned(),
                        protocol,
                        number,
                    });
                }
            }
            Err((field, problem)) => {
                report.error(
                    format!("{path}.ports[{index}].{field}"),
                    format!("{problem}; the port's name is left out"),
                );
            }
        }
    }
}
