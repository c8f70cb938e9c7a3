//! The scenes: each says in one line what it saw, or fails with what was wrong.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    Options,
    pods::{Bed, PORT, apply, report, wait_until},
};
use crate::{cluster::Cluster, conformance::NAMESPACE as SYSTEM};

/// Pods that start at a time; a node of the bed has half a core.
const BATCH: usize = 10;

/// Controller and agents are ordinary pods, and so is `CoreDNS`: all of them came up although each needs another.
pub(super) fn cold_start(cluster: &Cluster, _: &Options) -> Result<String> {
    let text = cluster.kubectl_ok(&["get", "pods", "--all-namespaces", "--output=json"])?;
    let list: Value = serde_json::from_str(&text).context("reading pods")?;
    let pods = list["items"].as_array().context("no list of pods")?;
    for pod in pods {
        let ready = pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        ensure!(ready, "{} is not ready", pod["metadata"]["name"]);
        let restarts: u64 = pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["restartCount"].as_u64())
            .sum();
        ensure!(
            restarts == 0,
            "{} was restarted {restarts} times",
            pod["metadata"]["name"]
        );
    }
    Ok(format!("{} pods ready, no restart", pods.len()))
}

/// A rule of a cluster-wide policy for some namespace, or for all.
fn policy(name: &str, subject: &Value, egress: bool) -> Value {
    let peers = json!([{"namespaces": {}}]);
    let mut spec = json!({
        "tier": "Admin", "priority": 7, "subject": subject,
        "ingress": [{"name": "all", "action": "Deny", "from": peers}],
    });
    if egress {
        let everywhere = json!([{"networks": ["0.0.0.0/0", "::/0"]}]);
        spec["egress"] = json!([{"name": "all", "action": "Deny", "to": everywhere}]);
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name}, "spec": spec,
    })
}

fn enforced(cluster: &Cluster, name: &str) -> Result<Duration> {
    let started = Instant::now();
    let object = format!("clusternetworkpolicy/{name}");
    cluster.kubectl_ok(&["wait", "--for=condition=Enforced", &object, "--timeout=60s"])?;
    Ok(started.elapsed())
}

fn remove(cluster: &Cluster, name: &str) -> Result<()> {
    cluster
        .kubectl_ok(&["delete", "clusternetworkpolicy", name, "--ignore-not-found"])
        .map(drop)
}

/// `kubectl apply`, `kubectl wait`, and at that moment it is so.
pub(super) fn apply_and_wait(cluster: &Cluster, _: &Options) -> Result<String> {
    let bed = Bed::new(cluster, "wait")?;
    bed.apply(&[bed.server("server", "server", 1), bed.server("client", "client", 2)])?;
    bed.ready(&["server", "client"])?;
    let server = bed.address("server")?;
    let subject = json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": bed.namespace}}});
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        ensure!(bed.reaches("client", &server)?, "no connection before the policy");
        apply(cluster, &[policy("acceptance-wait", &subject, false)])?;
        longest = longest.max(enforced(cluster, "acceptance-wait")?);
        ensure!(
            !bed.reaches("client", &server)?,
            "Enforced is True, and a connection passed"
        );
        remove(cluster, "acceptance-wait")?;
        wait_until("connections again after the policy is gone", || {
            bed.reaches("client", &server).unwrap_or(false)
        })?;
    }
    Ok(format!(
        "5 times denied at once when Enforced; longest wait {} ms",
        longest.as_millis()
    ))
}

/// Everything is denied to everyone, controllers are replaced meanwhile, and the policy can be taken back.
pub(super) fn deny_all(cluster: &Cluster, _: &Options) -> Result<String> {
    let bed = Bed::new(cluster, "denyall")?;
    bed.apply(&[bed.server("server", "server", 1), bed.server("client", "client", 2)])?;
    bed.ready(&["server", "client"])?;
    let server = bed.address("server")?;
    ensure!(bed.reaches("client", &server)?, "no connection before the policy");
    let name = "acceptance-deny-all";
    apply(cluster, &[policy(name, &json!({"namespaces": {}}), true)])?;
    let result = (|| {
        enforced(cluster, name)?;
        ensure!(!bed.reaches("client", &server)?, "a connection passed");
        // New controllers start as pods of a cluster in which nothing may talk.
        cluster.kubectl_ok(&[
            "--namespace",
            SYSTEM,
            "rollout",
            "restart",
            "deployment/bulkhead-controller",
        ])?;
        cluster.kubectl_ok(&[
            "--namespace",
            SYSTEM,
            "rollout",
            "status",
            "deployment/bulkhead-controller",
            "--timeout=120s",
        ])?;
        ensure!(
            !bed.reaches("client", &server)?,
            "a connection passed after the controllers were replaced"
        );
        Ok(())
    })();
    remove(cluster, name)?;
    result?;
    let started = Instant::now();
    wait_until("connections after the policy is gone", || {
        bed.reaches("client", &server).unwrap_or(false)
    })?;
    Ok(format!(
        "denied, controllers replaced under it, deleted; connected again after {} ms",
        started.elapsed().as_millis()
    ))
}

/// Pods that connect from their first moment on to peers which start on the other node: the one that may is never dropped, the
/// one that may not never gets through.
pub(super) fn starts(cluster: &Cluster, options: &Options) -> Result<String> {
    let bed = Bed::new(cluster, "starts")?;
    let selects = |app: &str| json!({"matchLabels": {"app": app}});
    bed.apply(&[
        bed.only("server", Some("client")),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "client", "namespace": bed.namespace},
            "spec": {"podSelector": selects("client"), "policyTypes": ["Egress"],
                     "egress": [{"to": [{"podSelector": selects("server")}]}]},
        }),
    ])?;
    let (mut pairs, mut dropped, mut passed) = (0, Vec::new(), Vec::new());
    while pairs < options.starts {
        let size = BATCH.min(options.starts - pairs);
        batch(&bed, pairs, size, &mut dropped, &mut passed)?;
        pairs += size;
        println!("    {pairs} of {} pairs", options.starts);
    }
    ensure!(
        dropped.is_empty(),
        "{} false denies: {}",
        dropped.len(),
        dropped.join("; ")
    );
    ensure!(
        passed.is_empty(),
        "{} false allows: {}",
        passed.len(),
        passed.join("; ")
    );
    Ok(format!(
        "{pairs} pairs: no packet of a client dropped, no stranger let in"
    ))
}

fn batch(bed: &Bed<'_>, first: usize, size: usize, dropped: &mut Vec<String>, passed: &mut Vec<String>) -> Result<()> {
    let numbers = first..first + size;
    let servers: Vec<Value> = numbers
        .clone()
        .map(|number| bed.server(&format!("server-{number}"), "server", 1 + number % 2))
        .collect();
    bed.apply(&servers)?;
    // A server has an address when its sandbox has, before its process runs; that is when its visitors are made.
    let mut waiting: Vec<usize> = numbers.clone().collect();
    wait_until("addresses of the servers", || {
        let Ok(pods) = bed.pods("app=server") else { return false };
        let mut visitors = Vec::new();
        waiting.retain(|number| {
            let name = format!("server-{number}");
            let Some(address) = pods.iter().find(|pod| pod.0 == name).and_then(|pod| pod.2.as_ref()) else {
                return true;
            };
            let (target, node) = (format!("{address}:{PORT}"), 2 - number % 2);
            for (app, within) in [("client", "60000"), ("stranger", "3000")] {
                let arguments = ["knock", "--to", &target, "--within-ms", within];
                visitors.push(bed.pod(&format!("{app}-{number}"), app, node, &arguments));
            }
            false
        });
        let applied = visitors.is_empty() || bed.apply(&visitors).is_ok();
        applied && waiting.is_empty()
    })?;
    wait_until("the visitors to be done", || {
        bed.pods("app in (client, stranger)")
            .is_ok_and(|pods| pods.len() == 2 * size && pods.iter().all(|pod| pod.1 == "Succeeded"))
    })?;
    for number in numbers {
        let said = bed.output(&format!("client-{number}"))?;
        let report: Value = serde_json::from_str(said.trim()).with_context(|| format!("client-{number}: {said:?}"))?;
        if report["open"] != json!(true) || report["timeouts"] != json!(0) {
            dropped.push(format!("client-{number}: {}", said.trim()));
        }
        let said = bed.output(&format!("stranger-{number}"))?;
        let report: Value =
            serde_json::from_str(said.trim()).with_context(|| format!("stranger-{number}: {said:?}"))?;
        if report["open"] == json!(true) || report["refused"] != json!(0) {
            passed.push(format!("stranger-{number}: {}", said.trim()));
        }
    }
    bed.cluster
        .kubectl_ok(&["--namespace", &bed.namespace, "delete", "pods", "--all", "--now"])
        .map(drop)
}

/// Agents and controllers are replaced while datagrams, a stream of new connections and a held one go on.
pub(super) fn upgrade(cluster: &Cluster, _: &Options) -> Result<String> {
    let bed = Bed::new(cluster, "upgrade")?;
    bed.apply(&[
        bed.server("server", "server", 1),
        bed.server("client", "client", 2),
        bed.server("stranger", "stranger", 2),
        bed.only("server", Some("client")),
    ])?;
    bed.ready(&["server", "client", "stranger"])?;
    let target = format!("{}:{PORT}", bed.address("server")?);
    let to = ["--to", target.as_str()];
    let start = |pod: &str, role: &str, more: &[&str]| {
        let arguments: Vec<&str> = [role].iter().chain(&to).chain(more).copied().collect();
        bed.start(pod, &arguments)
    };
    wait_until("the policy", || {
        bed.reaches("stranger", target.trim_end_matches(":8080"))
            .is_ok_and(|reached| !reached)
    })?;
    let stream = start("client", "stream", &[])?;
    let load = start("client", "load", &["--rate", "50"])?;
    let intruder = start("stranger", "load", &["--rate", "20"])?;
    for what in ["daemonset/bulkhead-agent", "deployment/bulkhead-controller"] {
        cluster.kubectl_ok(&["--namespace", SYSTEM, "rollout", "restart", what])?;
        cluster.kubectl_ok(&["--namespace", SYSTEM, "rollout", "status", what, "--timeout=180s"])?;
    }
    thread::sleep(Duration::from_secs(1));
    let (stream, load, intruder) = (report(stream)?, report(load)?, report(intruder)?);
    let saw = format!(
        "{} datagrams, {} missing, longest silence {} ms; {} connections, {} failed; {} of {} attempts of a stranger passed",
        stream["sent"],
        stream["missing"],
        stream["longest_silence_ms"],
        load["attempts"],
        load["failed"],
        intruder["ok"],
        intruder["attempts"]
    );
    if [&stream["missing"], &load["failed"], &intruder["ok"]]
        .iter()
        .any(|count| **count != json!(0))
    {
        bail!("{saw}");
    }
    Ok(saw)
}
