//! Everything to everything, under each example policy: what really happens is what `bulkhead simulate` says and what the
//! oracle says, and every record names the rule that the oracle names.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

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
    stack::bulkhead,
    traffic::{Outcome, Probe},
};
use serde_json::{Value, json};

use common::{Place, SOON, places, probe, serve_everywhere, shop, skipped};

/// Protocols and ports tried on every path.
const TRIED: [(&str, u16); 8] = [
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
const RECORDS_WITHIN: Duration = Duration::from_secs(15);

/// One connection of the matrix and everybody's opinion of it.
struct Case {
    from: usize,
    probe: Probe,
    expected: bool,
    /// The rule that denies it, by the oracle.
    denied_by: Option<String>,
    real: Outcome,
}

#[test]
fn what_happens_is_what_simulate_and_the_oracle_say() {
    if skipped() {
        return;
    }
    let net = Testnet::create(shop()).unwrap();
    let _servers = serve_everywhere(&net);
    let mut stack = Stack::start(&net).unwrap();
    let flows: Vec<Flows> = (0..net.nodes.len())
        .map(|node| stack.agent(node).unwrap().follow().unwrap())
        .collect();
    let (mut total, mut denied) = (0, 0);
    for (name, policies) in examples() {
        stack.apply("policies.yaml", &policies).unwrap();
        let cases = try_all(&net, &stack);
        compare_with_simulate(&net, &stack, &cases, &name);
        let records = records_of(&net, &flows, &cases);
        for case in &cases {
            let what = format!("{name}: {} to {:?}", places(&net)[case.from].name, case.probe);
            // Every port that is asked for is served; where rules reject, a refusal is theirs.
            let rejects = policies.contains("deny: Reject");
            let reached = case.real == Outcome::Open || case.real.reached() && !rejects;
            assert_eq!(
                reached, case.expected,
                "{what}: really {:?}, oracle denies by {:?}",
                case.real, case.denied_by
            );
            check_record(&net, case, &records, &what);
        }
        total += cases.len();
        denied += cases.iter().filter(|case| !case.expected).count();
    }
    assert!(
        denied > 1000 && total - denied > 1000,
        "too one-sided to prove anything: {denied} of {total} denied"
    );
    println!("NOTE: {total} real connections, {denied} of them denied, agree with simulate, oracle and their records");
}

/// The empty policy, and every example.
fn examples() -> Vec<(String, String)> {
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

fn try_all(net: &Testnet, stack: &Stack) -> Vec<Case> {
    let objects = objects(stack);
    let all = places(net);
    let mut cases = Vec::new();
    let running: Vec<_> = all
        .iter()
        .map(|from| probe(net, from, probes(&all, from), 1000))
        .collect();
    for (from, running) in running.into_iter().enumerate() {
        for (probe, real) in running.outcomes() {
            let (expected, denied_by) = opinion(&objects, &all[from], &probe);
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

fn probes(all: &[Place], from: &Place) -> Vec<Probe> {
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
fn objects(stack: &Stack) -> Vec<Object> {
    let mut manifests = bulkhead_crds::Manifests::default();
    for name in ["cluster.yaml", "policies.yaml"] {
        manifests.add(&fs::read_to_string(stack.manifests().join(name)).unwrap(), name);
    }
    manifests.finish().objects
}

/// The oracle's verdict, and the rule of the end that denies (the sender is asked first, as in reality).
fn opinion(objects: &[Object], from: &Place, probe: &Probe) -> (bool, Option<String>) {
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

fn source(from: &Place, probe: &Probe) -> IpAddr {
    from.addresses[usize::from(probe.to.is_ipv6())]
}

/// Asks the command line about the TCP and UDP cases (its probes have no ICMP).
fn compare_with_simulate(net: &Testnet, stack: &Stack, cases: &[Case], name: &str) {
    let all = places(net);
    let asked: Vec<&Case> = cases.iter().filter(|case| case.probe.protocol != "ICMP").collect();
    let questions: Vec<Value> = asked
        .iter()
        .map(|case| {
            let from = source(&all[case.from], &case.probe);
            json!({"from": from, "to": case.probe.to, "port": case.probe.port, "protocol": case.probe.protocol})
        })
        .collect();
    let file = net.directory().join("probes.json");
    fs::write(&file, Value::from(questions).to_string()).unwrap();
    let mut command = bulkhead(stack, 0).unwrap();
    command
        .args(["simulate", "--output", "jsonl", "--probes"])
        .arg(&file)
        .arg("--manifests")
        .arg(stack.manifests());
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{name}: simulate: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), asked.len(), "{name}: one answer for each probe");
    for (case, answer) in asked.iter().zip(&answers) {
        let said = answer["verdict"] == "allowed";
        assert_eq!(
            said, case.expected,
            "{name}: simulate and oracle of {} to {:?}: {answer}",
            all[case.from].name, case.probe
        );
    }
}

/// Denials, by source, destination and port, with the rules named.
type Records = BTreeMap<(IpAddr, IpAddr, Option<u16>), Vec<String>>;

/// The denials that were recorded, as soon as there is one of every denied case by its rule; after a while without.
fn records_of(net: &Testnet, flows: &[Flows], cases: &[Case]) -> Records {
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
fn named<'a>(net: &Testnet, case: &Case, records: &'a Records) -> &'a [String] {
    let port = (case.probe.protocol != "ICMP").then_some(case.probe.port);
    let from = source(&places(net)[case.from], &case.probe);
    let named = records.get(&(from, case.probe.to, port));
    named.map(Vec::as_slice).unwrap_or_default()
}

/// A denied connection has a record that names the rule which the oracle names.
fn check_record(net: &Testnet, case: &Case, records: &Records, what: &str) {
    let Some(rule) = &case.denied_by else { return };
    let named = named(net, case, records);
    assert!(
        named.contains(rule),
        "{what}: denied by {rule}; the records name {named:?}"
    );
}

/// A socket of the node reaches its pods, as the standard says; what the node forwards for others is judged.
#[test]
fn a_node_reaches_its_pods_and_a_pod_its_node_by_egress_rules() {
    if skipped() {
        return;
    }
    let net = Testnet::create(shop()).unwrap();
    let _servers = serve_everywhere(&net);
    let mut stack = Stack::start(&net).unwrap();
    let deny = bulkhead_testbed::stack::example("01-default-deny.yaml").unwrap();
    stack.apply("policies.yaml", &deny).unwrap();
    let node = &net.nodes[0];
    let reached = |to: IpAddr, timeout: &str| {
        let mut peer = net
            .peer(&node.netns, "probe", &["probe", "--timeout-ms", timeout])
            .unwrap();
        let probe = Probe {
            to,
            port: 8080,
            protocol: "TCP".to_owned(),
        };
        peer.write(&format!("{}\n", serde_json::to_string(&probe).unwrap()))
            .unwrap();
        peer.close_input();
        serde_json::from_str::<Outcome>(&peer.line(SOON).unwrap())
            .unwrap()
            .reached()
    };
    for ipv6 in [false, true] {
        assert!(
            reached(net.pod("web").address(ipv6), "5000"),
            "a node to its own pod, IPv6 {ipv6}"
        );
        assert!(
            !reached(net.pod("api").address(ipv6), "700"),
            "a node to another node's pod, IPv6 {ipv6}"
        );
        let address = node.addresses[usize::from(ipv6)];
        assert!(
            !common::reaches(&net, "web", address, "ICMP", 0, false),
            "an isolated pod to its node, IPv6 {ipv6}"
        );
        assert!(
            common::reaches(&net, "stock", address, "ICMP", 0, true),
            "an open pod to its node, IPv6 {ipv6}"
        );
    }
}
