//! One connection after another, and everybody's opinion of it: what really happened, the oracle, the records.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bulkhead_policy::{
    model::{Mode, Object, Zone},
    oracle::oracle,
    probe::{End, Probe as Question},
    state::Decision,
};
use bulkhead_proto::v1::FlowEvent;
use bulkhead_testbed::{
    Stack, Testnet,
    client::Flows,
    traffic::{Outcome, Probe},
};

use super::{Place, places, probe};

/// Protocols and ports tried on every path.
pub(crate) const TRIED: [(&str, u16); 8] = [
    ("TCP", 53),
    ("TCP", 443),
    ("TCP", 5432),
    ("TCP", 8080),
    ("TCP", 8081),
    ("TCP", 9090),
    ("UDP", 53),
    ("ICMP", 0),
];

/// A record is there within milliseconds of its packet, or it never is; on a loaded machine its reader may have to wait.
pub(crate) const RECORDS_WITHIN: Duration = Duration::from_secs(15);

/// One connection of the matrix and everybody's opinion of it.
pub(crate) struct Case {
    pub(crate) from: usize,
    pub(crate) probe: Probe,
    pub(crate) expected: bool,
    /// The rule that denies it, by the oracle.
    pub(crate) denied_by: Option<String>,
    pub(crate) real: Outcome,
}

/// The empty policy, and every example.
pub(crate) fn examples() -> Vec<(String, String)> {
    let folder = Path::new("../examples");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() >= 10, "there are ten examples");
    let read = |path: &std::path::PathBuf| {
        (
            path.file_name().unwrap().to_string_lossy().into_owned(),
            fs::read_to_string(path).unwrap(),
        )
    };
    files.iter().map(read).collect()
}

/// Everything to everything.
pub(crate) fn try_all(net: &Testnet, stack: &Stack) -> Vec<Case> {
    let all = places(net);
    let asked = all.iter().map(|from| probes(&all, from)).collect();
    try_these(net, &objects(stack), asked)
}

/// Some connections from each place.
pub(crate) fn try_these(net: &Testnet, objects: &[Object], asked: Vec<Vec<Probe>>) -> Vec<Case> {
    let all = places(net);
    let mut cases = Vec::new();
    let running: Vec<_> = all
        .iter()
        .zip(asked)
        .map(|(from, asked)| probe(net, from, asked, 1000))
        .collect();
    for (from, running) in running.into_iter().enumerate() {
        for (probe, real) in running.outcomes() {
            let (expected, denied_by) = opinion(objects, &all[from], &probe);
            cases.push(Case {
                from,
                probe,
                expected,
                denied_by,
                real,
            });
        }
    }
    // A machine under load may be too slow for an answer in time; it cannot make a denied packet pass. So only what should
    // have passed gets a second, longer try.
    for (from, place) in all.iter().enumerate() {
        let late: Vec<usize> = (0..cases.len())
            .filter(|at| cases[*at].from == from && cases[*at].expected && !cases[*at].real.reached())
            .collect();
        let again = late.iter().map(|at| cases[*at].probe.clone()).collect();
        for (at, (_, real)) in late.iter().zip(probe(net, place, again, 5000).outcomes()) {
            cases[*at].real = real;
        }
    }
    cases
}

pub(crate) fn probes(all: &[Place], from: &Place) -> Vec<Probe> {
    let targets = all.iter().filter(|to| to.name != from.name).flat_map(|to| to.addresses);
    targets
        .flat_map(|to| {
            TRIED.map(|(protocol, port)| Probe {
                to,
                port,
                protocol: protocol.to_owned(),
            })
        })
        .collect()
}

/// The folder's objects, as the controller reads them.
pub(crate) fn objects(stack: &Stack) -> Vec<Object> {
    let mut manifests = bulkhead_crds::Manifests::default();
    for name in ["cluster.yaml", "policies.yaml"] {
        manifests.add(&fs::read_to_string(stack.manifests().join(name)).unwrap(), name);
    }
    manifests.finish().objects
}

/// The oracle's verdict, and the rule of the end that denies (the sender is asked first, as in reality).
pub(crate) fn opinion(objects: &[Object], from: &Place, probe: &Probe) -> (bool, Option<String>) {
    let (protocol, port) = match (probe.protocol.as_str(), probe.to.is_ipv6()) {
        ("TCP", _) => (6, probe.port),
        ("UDP", _) => (17, probe.port),
        (_, false) => (1, 8 << 8),
        (_, true) => (58, 128 << 8),
    };
    let question = Question {
        zone: Zone::default(),
        from: End::address(source(from, probe)),
        to: End::address(probe.to),
        protocol,
        port,
        mode: Mode::Enforce,
    };
    let outcome = oracle(objects, &question, &|_, _| false);
    let ends = [&outcome.egress, &outcome.ingress];
    let denial = ends
        .into_iter()
        .flatten()
        .find(|(decision, _)| *decision == Decision::Deny);
    (outcome.is_allowed(), denial.map(|(_, rule)| rule.to_string()))
}

pub(crate) fn source(from: &Place, probe: &Probe) -> IpAddr {
    from.addresses[usize::from(probe.to.is_ipv6())]
}

/// Denials, by source, destination and port, with the rules named.
pub(crate) type Records = BTreeMap<(IpAddr, IpAddr, Option<u16>), Vec<String>>;

/// The denials that were recorded, as soon as there is one of every denied case by its rule; after a while without.
pub(crate) fn records_of(net: &Testnet, flows: &[Flows], cases: &[Case]) -> Records {
    let mut records = Records::new();
    let deadline = Instant::now() + RECORDS_WITHIN;
    loop {
        for flow in flows.iter().flat_map(Flows::waiting) {
            if flow.event() == FlowEvent::Deny
                && let Some(ip) = &flow.ip
            {
                let port = match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
                    Some(bulkhead_proto::v1::layer4::Protocol::Tcp(tcp)) => u16::try_from(tcp.destination_port).ok(),
                    Some(bulkhead_proto::v1::layer4::Protocol::Udp(udp)) => u16::try_from(udp.destination_port).ok(),
                    _ => None,
                };
                let key = (ip.source.parse().unwrap(), ip.destination.parse().unwrap(), port);
                records.entry(key).or_default().push(flow.rule);
            }
        }
        let recorded = |case: &Case| {
            case.denied_by
                .as_ref()
                .is_none_or(|rule| named(net, case, &records).contains(rule))
        };
        if cases.iter().all(recorded) || Instant::now() > deadline {
            return records;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The rules that records of a case's connection name.
pub(crate) fn named<'a>(net: &Testnet, case: &Case, records: &'a Records) -> &'a [String] {
    let port = (case.probe.protocol != "ICMP").then_some(case.probe.port);
    let from = source(&places(net)[case.from], &case.probe);
    let named = records.get(&(from, case.probe.to, port));
    named.map(Vec::as_slice).unwrap_or_default()
}

/// A denied connection has a record that names the rule which the oracle names.
pub(crate) fn check_record(net: &Testnet, case: &Case, records: &Records, what: &str) {
    let Some(rule) = &case.denied_by else { return };
    let named = named(net, case, records);
    assert!(
        named.contains(rule),
        "{what}: denied by {rule}; the records name {named:?}"
    );
}
