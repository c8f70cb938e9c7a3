//! Why a connection was made or not: what the agents of its nodes have recorded of it, or why they cannot be asked.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use prost_types::Timestamp;
use serde_json::Value;

use super::report::{Failure, NO_ROUND, StepReport};
use crate::cluster::{
    Cluster,
    inside::socket_of,
    object::{self, list, number, text},
    rollout::trouble,
};

/// Newest records of one client that are looked through.
const RECORDS: &str = "--last=2000";

/// An agent of a node of the test.
pub(super) struct Agent {
    node: String,
    pod: Value,
}

/// The agents of these nodes; what is wrong with those that are not there or not ready.
pub(super) async fn agents(
    cluster: &Cluster,
    namespace: &str,
    nodes: &[String],
) -> anyhow::Result<(Vec<Agent>, Vec<String>)> {
    let labels = "app.kubernetes.io/name=bulkhead,app.kubernetes.io/component=agent";
    let mut pods = Vec::new();
    for pod in cluster.list(("v1", "Pod"), namespace, labels).await? {
        pods.push(object::json(&pod)?);
    }
    let (mut agents, mut wrong) = (Vec::new(), Vec::new());
    for node in nodes {
        let Some(pod) = pods.iter().find(|pod| text(pod, "/spec/nodeName") == node) else {
            wrong.push(format!(
                "no agent runs on node {node}: its pods keep the rules they had; kubectl -n {namespace} get pods -o wide"
            ));
            continue;
        };
        if let Some(why) = trouble(pod) {
            let name = text(pod, "/metadata/name");
            wrong.push(format!("agent {namespace}/{name} on node {node} is not ready: {why}"));
        }
        agents.push(Agent {
            node: node.clone(),
            pod: pod.clone(),
        });
    }
    Ok((agents, wrong))
}

/// Writes into each failure of a step what the agents know of it. Gives what could not be asked.
pub(super) async fn explain(
    cluster: &Cluster,
    namespace: &str,
    agents: &[Agent],
    step: &mut StepReport,
) -> Vec<String> {
    let took = step.took;
    let failures = &mut step.failures;
    let mut silent = Vec::new();
    for agent in agents {
        let mut clients: Vec<String> = failures.iter().map(|failure| failure.from.clone()).collect();
        clients.sort();
        clients.dedup();
        for client in clients {
            match records(cluster, namespace, agent, &client).await {
                Ok(records) => {
                    let records = since(records, took);
                    let tried = |failure: &&mut Failure| failure.from == client && failure.observed != NO_ROUND;
                    for failure in failures.iter_mut().filter(tried) {
                        if let Some(why) = reason(&records, failure) {
                            failure.why.push(format!("{why} on {}", agent.node));
                        }
                    }
                }
                Err(error) => {
                    silent.push(format!("agent of node {} cannot be asked: {error:#}", agent.node));
                    break;
                }
            }
        }
    }
    silent
}

async fn records(cluster: &Cluster, namespace: &str, agent: &Agent, client: &str) -> anyhow::Result<Vec<Value>> {
    let socket = socket_of(&agent.pod);
    let from = format!("--from={client}");
    let mut command = vec!["bulkhead", "flows", RECORDS, "--output=json", &from];
    command.extend(socket.as_deref());
    let place = (namespace, text(&agent.pod, "/metadata/name"), "agent");
    let printed = cluster.run_in(place, &command).await?;
    let lines = String::from_utf8_lossy(&printed);
    Ok(lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// Those of this step: older ones are of other policies. The client connects all the time, so its newest record says what time it is
/// on that node, whatever our clock says.
fn since(records: Vec<Value>, took: Duration) -> Vec<Value> {
    let seconds = |record: &Value| {
        text(record, "/time")
            .parse::<Timestamp>()
            .map_or(0, |time| time.seconds)
    };
    let newest = records.iter().map(seconds).max().unwrap_or_default();
    let took = i64::try_from(took.as_secs()).unwrap_or(i64::MAX);
    let begin = newest.saturating_sub(took);
    records.into_iter().filter(|record| seconds(record) > begin).collect()
}

/// The newest record that explains a failure: a denial of what should connect, a permission of what should not.
fn reason(records: &[Value], failure: &Failure) -> Option<String> {
    let wanted = if failure.expected { "denied" } else { "allowed" };
    let found = records.iter().filter(|record| {
        let address = text(record, "/destination/ip").parse();
        let port = u16::try_from(number(record, "/destination/port")).unwrap_or_default();
        let there = address.is_ok_and(|address| failure.addresses.contains(&SocketAddr::new(address, port)));
        there && text(record, "/verdict") == wanted
    });
    let record = found.max_by_key(|record| text(record, "/time").to_owned())?;
    let rule = match text(record, "/rule") {
        "" => "no rule",
        rule => rule,
    };
    let hook = text(record, "/traffic_direction");
    Some(format!("{wanted} at {hook} by {rule} ({})", text(record, "/reason")))
}

/// Addresses of the pods behind a Service, which may stand in a record instead of its own.
pub(super) fn addresses_of(pods: &[Value]) -> Vec<IpAddr> {
    let all = pods.iter().flat_map(|pod| list(pod, "/status/podIPs"));
    all.filter_map(|address| text(address, "/ip").parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_of_the_step_before_explain_nothing() {
        let records: Vec<Value> = ["10:00:00.000000001", "10:00:09.5", "10:00:12.0"]
            .map(|time| json!({"time": format!("2026-01-01T{time}Z")}))
            .into();
        assert_eq!(since(records.clone(), Duration::from_secs(5)), records[1..]);
        assert_eq!(since(records.clone(), Duration::from_mins(1)), records);
    }

    #[test]
    fn the_newest_record_of_the_right_verdict_and_place_is_told() {
        let record = |time: &str, verdict: &str, ip: &str, rule: &str| {
            json!({"time": time, "verdict": verdict, "rule": rule, "reason": "r", "traffic_direction": "ingress",
                "destination": {"ip": ip, "port": 80}})
        };
        let records = [
            record("2", "denied", "10.0.0.1", "new"),
            record("1", "denied", "10.0.0.1", "old"),
            record("3", "allowed", "10.0.0.1", ""),
            record("4", "denied", "10.0.0.2", "elsewhere"),
        ];
        let mut failure = Failure {
            from: "n/a".to_owned(),
            to: String::new(),
            addresses: vec!["10.0.0.1:80".parse().unwrap()],
            expected: true,
            observed: String::new(),
            why: Vec::new(),
        };
        assert_eq!(reason(&records, &failure).unwrap(), "denied at ingress by new (r)");
        failure.expected = false;
        assert_eq!(reason(&records, &failure).unwrap(), "allowed at ingress by no rule (r)");
        failure.addresses = vec!["10.0.0.1:81".parse().unwrap()];
        assert_eq!(reason(&records, &failure), None);
    }
}
