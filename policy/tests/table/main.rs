//! Small clusters a person can read, and what the compiler and the oracle say of connections in them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_imports,
    clippy::format_push_string,
    clippy::needless_pass_by_value,
    reason = "the readers of a test's text may panic; words of a test may be plain rather than fast"
)]

mod diagnostics;
mod hosts;
mod ladder;
mod semantics;
mod shape;
mod text;

use bulkhead_policy::{
    compiler::Compiler,
    model::{Mode, Object, Zone},
    oracle::oracle,
    probe::{End, Probe},
    state_lookup::evaluate,
};
use expect_test::Expect;

/// `from -> to PROTOCOL/port`, ends by address or namespace/name; then optionally `shadow` and the guards that hold.
fn probe(line: &str, objects: &[Object]) -> Probe {
    let words: Vec<&str> = line.split_whitespace().collect();
    let end = |word: &str| {
        if let Ok(address) = word.parse() {
            End::address(address)
        } else {
            let mut pods = objects.iter().filter_map(|object| match object {
                Object::Workload(pod) if pod.key.to_string() == word => Some(pod),
                _ => None,
            });
            let pod = pods.next_back().unwrap_or_else(|| panic!("{word}: no such pod"));
            End::workload(pod.key.clone(), *pod.addresses.first().expect("an address"))
        }
    };
    let (protocol, port) = words[3].split_once('/').expect("PROTOCOL/port");
    let protocol = match protocol {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 132,
        "ICMP" => 1,
        other => panic!("{other} is no protocol"),
    };
    let mode = if words.contains(&"shadow") {
        Mode::Shadow
    } else {
        Mode::Enforce
    };
    Probe {
        zone: Zone(0),
        from: end(words[0]),
        to: end(words[2]),
        protocol,
        port: port.parse().unwrap(),
        mode,
    }
}

/// Compiles a cluster, asks about connections, and compares the answers with the oracle's and with what is expected.
fn check(cluster: &str, connections: &str, expected: Expect) {
    let objects = text::objects(cluster);
    let compiler = Compiler::from_scratch(objects.clone());
    let mut answers = String::new();
    for line in connections.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let probe = probe(line, &objects);
        let holding = |_, guard: &bulkhead_policy::model::Guard| {
            line.split_whitespace()
                .any(|word| format!("{guard:?}") == guard_name(word))
        };
        let outcome = evaluate(compiler.state(), &probe, &holding);
        assert_eq!(
            outcome,
            oracle(&objects, &probe, &holding),
            "compiler and oracle differ about {line}"
        );
        answers.push_str(&format!("{line}: {outcome}\n"));
    }
    expected.assert_eq(&answers);
}

fn guard_name(word: &str) -> String {
    let number = word.trim_start_matches(char::is_alphabetic);
    match word.trim_end_matches(char::is_numeric) {
        "until" => format!("Until({number})"),
        "name" => format!("Name(Names({{Pattern {{ domain: \"n{number}.test\", reach: Itself }}}}))"),
        "lease" => format!("Lease {{ profile: Profile(\"lease{number}\"), side: Peer, negated: false }}"),
        _ => String::new(),
    }
}
