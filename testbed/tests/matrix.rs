//! Everything to everything, under each example policy: what really happens is what `bulkhead simulate` says and what the
//! oracle says, and every record names the rule that the oracle names.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{fs, net::IpAddr};

use bulkhead_testbed::{
    Stack, Testnet,
    client::Flows,
    stack::bulkhead,
    traffic::{Outcome, Probe},
};
use serde_json::{Value, json};

use common::{
    SOON,
    cases::{Case, check_record, examples, records_of, source, try_all},
    places, serve_everywhere, shop, skipped,
};

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
