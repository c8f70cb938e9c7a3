//! `bulkhead endpoints`: the pods of this node, who they are and which rules they have.

use std::{
    io::{self, Write, stdout},
    process::ExitCode,
};

use bulkhead_proto::v1::{EndpointStatus, GetEndpointsRequest};
use clap::Args;
use serde_json::{Value, json};

use crate::{
    client::{AgentSocket, Output, block_on, said},
    table,
};

/// Show this node's pods: device, identity, policies, generation.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
pub struct Arguments {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub socket: AgentSocket,
}

/// Asks the agent and writes the answer to standard output.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let endpoints = block_on(async {
        let mut client = arguments.socket.connect().await?;
        let answer = client
            .get_endpoints(GetEndpointsRequest {})
            .await
            .map_err(|status| said(&status))?;
        Ok(answer.into_inner().endpoints)
    })?;
    let mut out = stdout().lock();
    match arguments.output {
        Output::Table if endpoints.is_empty() => writeln!(out, "no pods of this node are known to its agent")?,
        Output::Table => write_table(&mut out, &endpoints)?,
        Output::Json => writeln!(out, "{:#}", Value::Array(endpoints.iter().map(json).collect()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A pod as `namespace/name`, or the node itself.
fn name(endpoint: &EndpointStatus) -> String {
    match &endpoint.workload {
        Some(key) if key.namespace.is_empty() => format!("node {}", key.name),
        Some(key) => format!("{}/{}", key.namespace, key.name),
        None => String::new(),
    }
}

/// The policies, or that nothing selects the pod.
fn policies(policies: &[String]) -> String {
    if policies.is_empty() {
        "(none: all allowed)".to_owned()
    } else {
        policies.join(", ")
    }
}

fn write_table(out: &mut impl Write, endpoints: &[EndpointStatus]) -> io::Result<()> {
    let row = |endpoint: &EndpointStatus| {
        let state = match (endpoint.enforced, endpoint.error.as_str()) {
            (true, _) => "enforced",
            (false, "") => "waiting",
            (false, error) => error,
        };
        [
            name(endpoint),
            endpoint.addresses.join(","),
            endpoint.device.clone(),
            endpoint.identity_name.clone(),
            endpoint.generation.to_string(),
            state.to_owned(),
            policies(&endpoint.ingress_policies),
            policies(&endpoint.egress_policies),
        ]
    };
    let rows: Vec<_> = endpoints.iter().map(row).collect();
    table::write(
        out,
        [
            "POD",
            "ADDRESSES",
            "DEVICE",
            "IDENTITY",
            "GEN",
            "STATE",
            "INGRESS",
            "EGRESS",
        ],
        &rows,
    )
}

fn json(endpoint: &EndpointStatus) -> Value {
    let direction = |ruleset: &str, policies: &[String]| json!({"ruleset": ruleset, "policies": policies});
    json!({
        "pod": name(endpoint),
        "uid": endpoint.pod_uid,
        "addresses": endpoint.addresses,
        "device": endpoint.device,
        "ifindex": endpoint.ifindex,
        "slot": endpoint.slot,
        "identity": {
            "number": endpoint.identity,
            "name": endpoint.identity_name,
            "atoms": endpoint.identity_atoms,
        },
        "ingress": direction(&endpoint.ingress_ruleset, &endpoint.ingress_policies),
        "egress": direction(&endpoint.egress_ruleset, &endpoint.egress_policies),
        "generation": endpoint.generation,
        "enforced": endpoint.enforced,
        "error": endpoint.error,
    })
}

#[cfg(test)]
mod tests {
    use bulkhead_proto::v1::WorkloadName;

    use super::*;

    #[test]
    fn a_pod_shows_its_rules_and_why_it_has_none_yet() {
        let workload = Some(WorkloadName {
            namespace: "shop".into(),
            name: "web".into(),
        });
        let mut endpoint = EndpointStatus {
            workload,
            device: "veth1".into(),
            generation: 4,
            enforced: true,
            ingress_policies: vec!["NetworkPolicy/shop/web".into(), "NetworkPolicy/shop/all".into()],
            ..EndpointStatus::default()
        };
        let text = |endpoint: &EndpointStatus| {
            let mut out = Vec::new();
            write_table(&mut out, std::slice::from_ref(endpoint)).unwrap();
            String::from_utf8(out).unwrap()
        };
        let shown = text(&endpoint);
        let row = shown.lines().nth(1).unwrap();
        assert!(row.contains("NetworkPolicy/shop/web, NetworkPolicy/shop/all"), "{row}");
        assert!(
            row.contains("enforced") && row.ends_with("(none: all allowed)"),
            "{row}"
        );
        assert_eq!(json(&endpoint)["ingress"]["policies"][1], "NetworkPolicy/shop/all");
        endpoint.enforced = false;
        endpoint.error = "no device yet".into();
        assert!(text(&endpoint).contains("no device yet"));
    }
}
