//! The agent dies and comes back under traffic: nothing that may pass is lost, nothing that may not passes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use bulkhead_testbed::{
    Running, Stack, Testnet,
    process::until,
    stack::example,
    traffic::{CountReport, LoadReport, StreamReport},
};

use common::{SOON, peer, reaches, report, serve_everywhere, shop, skipped};

const DOWN: Duration = Duration::from_secs(10);
/// The bar is two seconds, and the figure that is printed is held against it by whoever reads it: these machines are shared, and a
/// test that fails because a neighbour compiles tells nothing. This only catches an agent that waits for a time-out.
const IN_FORCE_MAX: Duration = Duration::from_secs(20);

const COUNTERS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: counters, namespace: shop }
spec:
  podSelector: { matchExpressions: [{ key: app, operator: In, values: [web, api] }] }
  policyTypes: [Ingress, Egress]
  egress: [{ to: [{ podSelector: { matchLabels: { app: api } } }], ports: [{ protocol: UDP, port: 8125 }] }]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: web } } }], ports: [{ protocol: UDP, port: 8125 }] }]
";

/// Opens one more path: stock → web.
fn stock_may(port: u16) -> String {
    format!(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{ name: stock, namespace: shop }}
spec:
  podSelector: {{ matchLabels: {{ app: web }} }}
  policyTypes: [Ingress]
  ingress: [{{ from: [{{ namespaceSelector: {{ matchLabels: {{ delegated: \"true\" }} }} }}], ports: [{{ port: {port} }}] }}]
"
    )
}

/// All the traffic of one run.
struct Traffic {
    load: Running,
    denied: Running,
    streams: Vec<Running>,
    liars: Vec<Running>,
    witnesses: Vec<Running>,
}

impl Traffic {
    /// client → web 200 new connections/s, intruder → db, web → api numbered datagrams of both families, and intruder, who
    /// forges the very flow of each stream.
    fn start(net: &Testnet) -> Self {
        let at = |pod: &str, ipv6, port| SocketAddr::new(net.pod(pod).address(ipv6), port).to_string();
        let load = peer(
            net,
            "client",
            "load",
            &["load", "--to", &at("web", false, 8080), "--rate", "200"],
        );
        let denied = [
            "load",
            "--to",
            &at("db", true, 5432),
            "--rate",
            "50",
            "--timeout-ms",
            "300",
        ];
        let denied = peer(net, "intruder", "denied", &denied);
        let mac = net.pod("intruder").mac.map(|byte| format!("{byte:02x}")).join(":");
        let (mut streams, mut liars, mut witnesses) = (Vec::new(), Vec::new(), Vec::new());
        for (ipv6, marker, port) in [(false, "forged-as-v4", "40000"), (true, "forged-as-v6", "40001")] {
            let to = at("api", ipv6, 8125);
            streams.push(peer(
                net,
                "web",
                "stream",
                &["stream", "--to", &to, "--from-port", port],
            ));
            witnesses.push(peer(net, "api", "sniff", &["sniff", "--marker", marker]));
            let from = at("web", ipv6, port.parse().unwrap());
            let arguments = [
                "spoof",
                "--from",
                &from,
                "--to",
                &to,
                "--mac",
                &mac,
                "--marker",
                marker,
                "--protocol",
                "udp",
            ];
            liars.push(peer(net, "intruder", "spoof", &arguments));
        }
        Self {
            load,
            denied,
            streams,
            liars,
            witnesses,
        }
    }

    /// Ends it and looks at every count.
    fn check(&mut self, what: &str) {
        let load: LoadReport = report(&mut self.load);
        let denied: LoadReport = report(&mut self.denied);
        assert!(load.ok > 0 && load.failed == 0, "{what}: allowed connections: {load:?}");
        assert!(
            denied.attempts > 0 && denied.ok == 0,
            "{what}: denied connections: {denied:?}"
        );
        for stream in &mut self.streams {
            let stream: StreamReport = report(stream);
            assert!(
                stream.echoed > 0 && stream.missing == 0,
                "{what}: datagrams: {stream:?}"
            );
        }
        for liar in &mut self.liars {
            let sent: CountReport = report(liar);
            assert!(sent.frames > 0, "{what}: nothing was forged");
        }
        for witness in &mut self.witnesses {
            let seen: CountReport = report(witness);
            assert_eq!(seen.frames, 0, "{what}: forged frames arrived");
        }
        println!(
            "NOTE: {what}: {} connections, 0 failed; {} denied attempts, 0 passed",
            load.attempts, denied.attempts
        );
    }
}

fn start() -> (Testnet, Vec<Running>, Stack) {
    let net = Testnet::create(shop()).unwrap();
    let servers = serve_everywhere(&net);
    let mut stack = Stack::start(&net).unwrap();
    stack.write("counters.yaml", COUNTERS).unwrap();
    stack.write("stock.yaml", &stock_may(9090)).unwrap();
    stack
        .apply("shop.yaml", &example("03-three-tier-shop.yaml").unwrap())
        .unwrap();
    (net, servers, stack)
}

#[test]
fn ten_seconds_without_an_agent_lose_nothing_and_open_nothing() {
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    let web = net.pod("web").address(false);
    assert!(!reaches(&net, "stock", web, "TCP", 8081, false), "not opened yet");
    let mut traffic = Traffic::start(&net);
    for node in 0..net.nodes.len() {
        stack.kill_agent(node).unwrap();
    }
    // The time without an agent is what is tested; there is no condition to wait for.
    thread::sleep(DOWN);
    stack.write("stock.yaml", &stock_may(8081)).unwrap();
    assert!(
        !reaches(&net, "stock", web, "TCP", 8081, false),
        "without an agent the old policy stays in force"
    );
    let started = Instant::now();
    for node in 0..net.nodes.len() {
        stack.start_agent(&net, node, &[]).unwrap();
    }
    stack.settle().unwrap();
    let in_force = started.elapsed();
    assert!(
        reaches(&net, "stock", web, "TCP", 8081, true),
        "the policy edited meanwhile is in force"
    );
    assert!(
        !reaches(&net, "stock", web, "TCP", 9090, false),
        "and what it no longer allows is not"
    );
    assert!(
        in_force < IN_FORCE_MAX,
        "the policy edited meanwhile was in force after {in_force:?}"
    );
    traffic.check(&format!(
        "agents down for {DOWN:?}, edited policy in force {in_force:.1?} after their start"
    ));
}

#[test]
fn an_agent_that_ends_politely_leaves_enforcement_behind() {
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    let mut traffic = Traffic::start(&net);
    for node in 0..net.nodes.len() {
        stack.end_agent(node).unwrap();
        stack.start_agent(&net, node, &[]).unwrap();
        stack.settle().unwrap();
    }
    traffic.check("polite restarts");
}

/// The agent is killed after its first map write, after its second, and so on, in the middle of a change of policy; each
/// time its successor takes over what it finds.
#[test]
fn a_successor_adopts_what_a_kill_at_any_write_left() {
    const STOPS_MAX: u32 = 400;
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    let web = net.pod("web").address(false);
    let mut traffic = Traffic::start(&net);
    let mut stops = 0;
    loop {
        let (open, shut) = if stops % 2 == 0 { (8081, 9090) } else { (9090, 8081) };
        stack.end_agent(0).unwrap();
        stack.write("stock.yaml", &stock_may(open)).unwrap();
        stack
            .start_agent(&net, 0, &["--fail-after-writes", &stops.to_string()])
            .unwrap();
        let agent = stack.agent(0).unwrap();
        let died = until(SOON, || {
            if !stack.agent_process(0)?.is_alive() {
                return Some(true);
            }
            (agent.agent_status().is_ok() && stack.is_settled()).then_some(false)
        });
        assert!(died.is_some(), "stop {stops}: the agent neither died nor came up");
        if died == Some(false) {
            break;
        }
        stack.kill_agent(0).unwrap();
        stack.start_agent(&net, 0, &[]).unwrap();
        stack.settle().unwrap_or_else(|error| panic!("stop {stops}: {error:#}"));
        assert!(
            reaches(&net, "stock", web, "TCP", open, true),
            "stop {stops}: the new policy is not in force"
        );
        assert!(
            !reaches(&net, "stock", web, "TCP", shut, false),
            "stop {stops}: the old policy is still in force"
        );
        stops += 1;
        assert!(stops < STOPS_MAX, "a small change takes more than {STOPS_MAX} writes");
    }
    assert!(stops > 3, "the change took {stops} writes: nothing was tested");
    traffic.check(&format!("kills at {stops} stop points"));
}

/// An agent whose maps have another layout takes over device by device: the old programs judge until the new ones do.
#[test]
fn an_agent_of_another_layout_takes_over() {
    if skipped() {
        return;
    }
    let net = Testnet::create(shop()).unwrap();
    let _servers = serve_everywhere(&net);
    let mut stack = Stack::start(&net).unwrap();
    stack
        .apply("shop.yaml", &example("03-three-tier-shop.yaml").unwrap())
        .unwrap();
    let at = |pod: &str, ipv6, port| SocketAddr::new(net.pod(pod).address(ipv6), port).to_string();
    let held = net
        .peer(
            &net.pod("client").netns,
            "hold",
            &["hold", "--to", &at("web", false, 8080)],
        )
        .unwrap();
    assert!(held.line(SOON).unwrap().contains("alive"));
    let mut load = peer(
        &net,
        "client",
        "load",
        &["load", "--to", &at("web", true, 8080), "--rate", "100"],
    );
    let mut denied = peer(
        &net,
        "intruder",
        "denied",
        &[
            "load",
            "--to",
            &at("db", true, 5432),
            "--rate",
            "50",
            "--timeout-ms",
            "300",
        ],
    );
    for node in [0, 1] {
        stack.kill_agent(node).unwrap();
        let pins = stack.bpffs(node);
        let ours = layouts(&pins);
        assert_eq!(ours.len(), 1, "{ours:?}");
        // What an agent of another version would have left: pins under another layout.
        std::fs::rename(pins.join(&ours[0]), pins.join("v0-9")).unwrap();
        stack.start_agent(&net, node, &[]).unwrap();
        let taken_over = until(SOON, || (layouts(&pins) == ours).then_some(()));
        assert!(taken_over.is_some(), "{:?} instead of {ours:?}", layouts(&pins));
    }
    stack.settle().unwrap();
    thread::sleep(Duration::from_secs(1));
    let load: LoadReport = report(&mut load);
    let denied: LoadReport = report(&mut denied);
    println!(
        "NOTE: {} connections, {} failed; {} denied attempts, {} passed",
        load.attempts, load.failed, denied.attempts, denied.ok
    );
    assert!(load.ok > 0 && load.failed == 0, "{load:?}");
    assert_eq!(denied.ok, 0, "{denied:?}");
    assert_eq!(held.try_line(), None, "the connection that was there noticed nothing");
    assert!(!reaches(
        &net,
        "intruder",
        net.pod("db").address(true),
        "TCP",
        5432,
        false
    ));
}

/// Folders of layouts in a bpffs; the kernel keeps files of its own beside them.
fn layouts(pins: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(pins).unwrap().map(Result::unwrap);
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
