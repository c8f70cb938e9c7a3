//! The testbed itself, without any policy: what the other tests see dropped must not be the bed's own doing.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{net::SocketAddr, time::Duration};

use bulkhead_testbed::{
    Plan, PodPlan, Running, Testnet, sys,
    traffic::{CountReport, LoadReport, Outcome, Probe, StreamReport},
};

const SOON: Duration = Duration::from_secs(20);

fn net() -> Option<Testnet> {
    if !sys::is_root() {
        println!("SKIPPED: not root, and network namespaces need root");
        return None;
    }
    let plan = Plan {
        nodes: vec!["one".to_owned(), "two".to_owned()],
        pods: vec![
            PodPlan::new("shop", "web", "app=web"),
            PodPlan::new("shop", "database", "app=database").subnet(1),
            PodPlan::new("shop", "far", "app=far").subnet(2).node(1),
        ],
        ..Plan::default()
    };
    Some(Testnet::create(plan).unwrap())
}

fn report<T: serde::de::DeserializeOwned>(peer: &mut Running) -> T {
    peer.close_input();
    serde_json::from_str(&peer.line(SOON).unwrap()).unwrap()
}

fn ready(peer: Running) -> Running {
    assert_eq!(peer.line(SOON).unwrap(), "ready");
    peer
}

#[test]
fn every_pod_and_the_outside_reach_every_pod_in_both_families() {
    let Some(net) = net() else { return };
    let servers: Vec<Running> = net
        .pods
        .iter()
        .map(|pod| {
            ready(
                net.peer(&pod.netns, &pod.plan.name, &["serve", "--tcp", "80", "--udp", "53"])
                    .unwrap(),
            )
        })
        .collect();
    let places = net
        .pods
        .iter()
        .map(|pod| &pod.netns)
        .chain([&net.outside, &net.nodes[0].netns]);
    for from in places {
        let mut probes = Vec::new();
        for pod in &net.pods {
            for address in [pod.address(false), pod.address(true)] {
                for (protocol, port) in [("TCP", 80), ("TCP", 81), ("UDP", 53), ("UDP", 54), ("ICMP", 0)] {
                    probes.push(Probe {
                        to: address,
                        port,
                        protocol: protocol.to_owned(),
                    });
                }
            }
        }
        let mut prober = net.peer(from, "probe", &["probe", "--timeout-ms", "3000"]).unwrap();
        for probe in &probes {
            prober
                .write(&format!("{}\n", serde_json::to_string(probe).unwrap()))
                .unwrap();
        }
        prober.close_input();
        for probe in &probes {
            let outcome: Outcome = serde_json::from_str(&prober.line(SOON).unwrap()).unwrap();
            let wanted = if [81, 54].contains(&probe.port) {
                Outcome::Refused
            } else {
                Outcome::Open
            };
            assert_eq!(outcome, wanted, "{} to {probe:?}", from.name());
        }
    }
    drop(servers);
}

#[test]
fn generators_and_forgers_do_what_they_count() {
    let Some(net) = net() else { return };
    let (web, database, far) = (net.pod("web"), net.pod("database"), net.pod("far"));
    let _server = ready(
        net.peer(&database.netns, "server", &["serve", "--tcp", "80", "--udp", "53"])
            .unwrap(),
    );
    let to = |ipv6, port| SocketAddr::new(database.address(ipv6), port).to_string();
    let mut load = ready(
        net.peer(&web.netns, "load", &["load", "--to", &to(true, 80), "--rate", "100"])
            .unwrap(),
    );
    let mut stream = ready(
        net.peer(&far.netns, "stream", &["stream", "--to", &to(false, 53)])
            .unwrap(),
    );
    let mut witness = ready(
        net.peer(&database.netns, "sniff", &["sniff", "--marker", "forged!"])
            .unwrap(),
    );
    // Without policies the lie arrives: the tests in which it does not are about us, not about the kernel.
    let victim = SocketAddr::new(far.address(true), 4000).to_string();
    let mac = web.mac.map(|byte| format!("{byte:02x}")).join(":");
    let target = to(true, 80);
    let mut liar = ready(
        net.peer(
            &web.netns,
            "spoof",
            &[
                "spoof", "--from", &victim, "--to", &target, "--mac", &mac, "--marker", "forged!",
            ],
        )
        .unwrap(),
    );
    assert_eq!(witness.line(SOON).unwrap(), "seen");
    let forged: CountReport = report(&mut liar);
    let load: LoadReport = report(&mut load);
    let stream: StreamReport = report(&mut stream);
    let seen: CountReport = report(&mut witness);
    assert!(forged.frames > 0 && seen.frames > 0, "forged {forged:?}, seen {seen:?}");
    assert!(load.ok > 0 && load.failed == 0, "{load:?}");
    assert!(stream.sent > 0 && stream.missing == 0, "{stream:?}");
}

#[test]
fn nothing_is_left_behind() {
    let Some(net) = net() else { return };
    let namespaces: Vec<_> = net.pods.iter().map(|pod| pod.netns.path()).collect();
    let folder = net.directory().to_path_buf();
    assert!(namespaces.iter().all(|path| path.exists()) && folder.exists());
    drop(net);
    assert!(!namespaces.iter().any(|path| path.exists()) && !folder.exists());
}
