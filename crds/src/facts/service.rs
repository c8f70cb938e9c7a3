//! Services and endpoint slices: frontends and what is behind them.

use std::collections::BTreeMap;

use bulkhead_policy::model::{EndpointSlice, NamedPort, Service, ServicePort, TargetPort, WorkloadKey};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde_json::Value;

use super::{Metadata, addresses, is_port_name, parse_protocol, port_number, read_fact};
use crate::report::Report;

/// Label of an `EndpointSlice` that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Deserialize)]
struct ServiceText {
    #[serde(default)]
    metadata: Metadata,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    selector: Option<BTreeMap<String, String>>,
    ports: Option<Vec<ServicePortText>>,
    #[serde(rename = "healthCheckNodePort")]
    health_check_node_port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServicePortText {
    name: Option<String>,
    protocol: Option<String>,
    #[serde(default)]
    port: i64,
    target_port: Option<IntOrString>,
    node_port: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize)]
struct LoadBalancer {
    ingress: Option<Vec<LoadBalancerAddress>>,
}

#[derive(Deserialize)]
struct LoadBalancerAddress {
    ip: Option<String>,
}

/// A Service. `spec.externalIPs` are not among its addresses: whoever may write a Service could turn any address of the world into
/// a frontend of it.
pub(crate) fn lower_service(value: &Value, report: &mut Report<'_>) -> Option<Service> {
    let ServiceText { metadata, spec, status } = read_fact(value, report)?;
    let key = WorkloadKey {
        name: metadata.name(report)?,
        namespace: metadata.namespace(),
    };
    let spec = spec.unwrap_or_default();
    let listed = spec.cluster_ips.iter().flatten().enumerate();
    let cluster = listed
        .map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text.as_str()))
        .chain(
            spec.cluster_ip
                .iter()
                .map(|text| ("spec.clusterIP".to_owned(), text.as_str())),
        )
        .filter(|(_, text)| *text != "None" && spec.kind.as_deref() != Some("ExternalName"));
    let balancer = status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|it| it.ingress.as_deref());
    let balancer = balancer.unwrap_or_default().iter().enumerate().map(|(index, entry)| {
        (
            format!("status.loadBalancer.ingress[{index}].ip"),
            entry.ip.as_deref().unwrap_or_default(),
        )
    });
    let found = addresses(cluster.chain(balancer), report);
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        match lower_port(port) {
            Ok(port) => ports.push(port),
            Err((field, problem)) => {
                report.error(
                    format!("spec.ports[{index}].{field}"),
                    format!("{problem}; the port is left out"),
                );
            }
        }
    }
    let selector = spec.selector.filter(|selector| !selector.is_empty());
    Some(Service {
        key,
        addresses: found,
        ports,
        selector,
        health_check_port: spec.health_check_node_port.and_then(node_port),
    })
}

/// A port of the nodes; 0 and what is no port are none.
fn node_port(number: i64) -> Option<u16> {
    port_number(number).ok()
}

fn lower_port(text: &ServicePortText) -> Result<ServicePort, (&'static str, String)> {
    let protocol = parse_protocol(
        text.protocol
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("TCP"),
    )
    .map_err(|problem| ("protocol", problem))?;
    let port = port_number(text.port).map_err(|problem| ("port", problem))?;
    let target = match &text.target_port {
        // An unset number is 0 in the API, and means the frontend's port.
        None | Some(IntOrString::Int(0)) => TargetPort::Number(port),
        Some(IntOrString::Int(number)) => {
            TargetPort::Number(port_number(i64::from(*number)).map_err(|problem| ("targetPort", problem))?)
        }
        Some(IntOrString::String(name)) => {
            is_port_name(name).map_err(|problem| ("targetPort", problem))?;
            TargetPort::Name(name.clone())
        }
    };
    Ok(ServicePort {
        name: text.name.clone().unwrap_or_default(),
        protocol,
        port,
        target,
        node_port: text.node_port.and_then(node_port),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceText {
    #[serde(default)]
    metadata: Metadata,
    address_type: Option<String>,
    endpoints: Option<Vec<EndpointText>>,
    ports: Option<Vec<SlicePortText>>,
}

#[derive(Deserialize)]
struct EndpointText {
    addresses: Option<Vec<String>>,
    conditions: Option<Conditions>,
}

#[derive(Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Deserialize)]
struct SlicePortText {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}

/// An `EndpointSlice`; `None` for one of no Service or of names instead of addresses.
pub(crate) fn lower_endpoint_slice(value: &Value, report: &mut Report<'_>) -> Option<EndpointSlice> {
    let text: SliceText = read_fact(value, report)?;
    let key = WorkloadKey {
        name: text.metadata.name(report)?,
        namespace: text.metadata.namespace(),
    };
    if text.address_type.as_deref() == Some("FQDN") {
        return None;
    }
    let service = text
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_NAME))?
        .clone();
    // Not known to be unready is ready.
    let ready = |endpoint: &EndpointText| endpoint.conditions.as_ref().and_then(|it| it.ready) != Some(false);
    let endpoints = text
        .endpoints
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, endpoint)| ready(endpoint));
    let listed = endpoints.flat_map(|(index, endpoint)| {
        let listed = endpoint.addresses.iter().flatten().enumerate();
        listed.map(move |(at, address)| (format!("endpoints[{index}].addresses[{at}]"), address.as_str()))
    });
    let found = addresses(listed, report);
    let mut ports = Vec::new();
    for (index, port) in text.ports.iter().flatten().enumerate() {
        // A slice port without a number means every port, which no frontend maps to.
        let Some(number) = port.port else { continue };
        let protocol = parse_protocol(
            port.protocol
                .as_deref()
                .filter(|name| !name.is_empty())
                .unwrap_or("TCP"),
        );
        match protocol
            .map_err(|it| ("protocol", it))
            .and_then(|it| Ok((it, port_number(number).map_err(|it| ("port", it))?)))
        {
            Ok((protocol, number)) => {
                ports.push(NamedPort {
                    name: port.name.clone().unwrap_or_default(),
                    protocol,
                    number,
                });
            }
            Err((field, problem)) => {
                report.error(
                    format!("ports[{index}].{field}"),
                    format!("{problem}; the port is left out"),
                );
            }
        }
    }
    Some(EndpointSlice {
        key,
        service,
        addresses: found,
        ports,
    })
}
