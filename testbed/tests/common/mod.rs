//! What the end-to-end tests share: the shop of examples/ in namespaces, and probes of everything to everything.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod cases;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use bulkhead_testbed::{
    Plan, PodPlan, Running, Testnet, sys,
    traffic::{Outcome, Probe},
};

/// Long enough for a loaded machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Ports every pod and the outside host listen on.
pub(crate) const TCP_PORTS: [u16; 6] = [53, 443, 5432, 8080, 8081, 9090];
/// Likewise for UDP.
pub(crate) const UDP_PORTS: [u16; 2] = [53, 8125];

/// Says why nothing can be tested here; true when it cannot.
pub(crate) fn skipped() -> bool {
    let why = if sys::is_root() {
        None
    } else {
        Some("not root, and namespaces and kernel programs need root")
    };
    if let Some(why) = why {
        println!("SKIPPED: {why}");
    }
    why.is_some()
}

/// The cluster that examples/shop describes, over two nodes.
pub(crate) fn shop() -> Plan {
    let labels = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    Plan {
        namespaces: BTreeMap::from([
            ("shop".to_owned(), labels(&[("tenant", "retail")])),
            (
                "warehouse".to_owned(),
                labels(&[("tenant", "retail"), ("delegated", "true")]),
            ),
            ("bank".to_owned(), labels(&[("tenant", "finance")])),
            ("monitoring".to_owned(), labels(&[("purpose", "monitoring")])),
        ]),
        nodes: vec!["node-1".to_owned(), "node-2".to_owned()],
        pods: vec![
            PodPlan::new("shop", "client", "app=client"),
            PodPlan::new("shop", "web", "app=web")
                .port("http", "TCP", 8080)
                .port("metrics", "TCP", 9090),
            PodPlan::new("shop", "api", "app=api")
                .port("http", "TCP", 8081)
                .port("metrics", "TCP", 9090)
                .node(1)
                .subnet(2),
            PodPlan::new("shop", "db", "app=db")
                .port("postgres", "TCP", 5432)
                .node(1)
                .subnet(3),
            PodPlan::new("warehouse", "stock", "app=stock").port("http", "TCP", 8080),
            PodPlan::new("bank", "intruder", "app=web").node(1).subnet(2),
            PodPlan::new("monitoring", "prometheus", "app=prometheus"),
            PodPlan::new("kube-system", "coredns", "k8s-app=kube-dns").port("dns", "UDP", 53),
        ],
    }
}

/// A server on every port, in every pod and outside.
pub(crate) fn serve_everywhere(net: &Testnet) -> Vec<Running> {
    let tcp = TCP_PORTS.map(|port| ["--tcp".to_owned(), port.to_string()]);
    let udp = UDP_PORTS.map(|port| ["--udp".to_owned(), port.to_string()]);
    let ports: Vec<String> = tcp.into_iter().chain(udp).flatten().collect();
    let places = net
        .pods
        .iter()
        .map(|pod| (pod.plan.name.as_str(), &pod.netns))
        .chain([("outside", &net.outside)]);
    let start = |(name, netns)| {
        let mut arguments = vec!["serve", "--name", name];
        arguments.extend(ports.iter().map(String::as_str));
        ready(net.peer(netns, &format!("server-{name}"), &arguments).unwrap())
    };
    places.map(start).collect()
}

/// Waits until a peer has begun.
pub(crate) fn ready(peer: Running) -> Running {
    assert_eq!(peer.line(SOON).unwrap(), "ready");
    peer
}

/// Ends a peer and reads its report.
pub(crate) fn report<T: serde::de::DeserializeOwned>(peer: &mut Running) -> T {
    peer.close_input();
    loop {
        let line = peer.line(SOON).unwrap();
        if line.starts_with('{') {
            return serde_json::from_str(&line).unwrap();
        }
    }
}

/// A peer inside a pod, begun.
pub(crate) fn peer(net: &Testnet, pod: &str, name: &str, arguments: &[&str]) -> Running {
    ready(net.peer(&net.pod(pod).netns, name, arguments).unwrap())
}

/// A place that connections come from.
pub(crate) struct Place {
    /// For messages.
    pub(crate) name: String,
    /// Addresses: IPv4, IPv6.
    pub(crate) addresses: [IpAddr; 2],
    /// Namespace to start the prober in.
    netns: usize,
}

/// Every pod, then the outside host.
pub(crate) fn places(net: &Testnet) -> Vec<Place> {
    let pods = net.pods.iter().enumerate().map(|(netns, pod)| Place {
        name: pod.key(),
        addresses: [pod.address(false), pod.address(true)],
        netns,
    });
    let outside = Place {
        name: "outside".to_owned(),
        addresses: Testnet::OUTSIDE,
        netns: net.pods.len(),
    };
    pods.chain([outside]).collect()
}

/// Starts the probes of a place; [`Probing::outcomes`] waits for them.
pub(crate) fn probe(net: &Testnet, place: &Place, probes: Vec<Probe>, timeout_ms: u32) -> Probing {
    let netns = net.pods.get(place.netns).map_or(&net.outside, |pod| &pod.netns);
    let mut peer = net
        .peer(netns, "probe", &["probe", "--timeout-ms", &timeout_ms.to_string()])
        .unwrap();
    for probe in &probes {
        peer.write(&format!("{}\n", serde_json::to_string(probe).unwrap()))
            .unwrap();
    }
    peer.close_input();
    Probing { peer, probes }
}

/// Probes under way.
pub(crate) struct Probing {
    peer: Running,
    probes: Vec<Probe>,
}

impl Probing {
    /// What became of each.
    pub(crate) fn outcomes(self) -> Vec<(Probe, Outcome)> {
        let read = |probe| (probe, serde_json::from_str(&self.peer.line(SOON).unwrap()).unwrap());
        self.probes.into_iter().map(read).collect()
    }
}

/// One new connection, tried until it succeeds within the time when it should, and once when it should not.
pub(crate) fn reaches(net: &Testnet, from: &str, to: IpAddr, protocol: &str, port: u16, expected: bool) -> bool {
    let all = places(net);
    let place = all
        .iter()
        .find(|place| place.name.ends_with(&format!("/{from}")) || place.name == from)
        .unwrap();
    let timeout = if expected { 5000 } else { 700 };
    let probes = vec![Probe {
        to,
        port,
        protocol: protocol.to_owned(),
    }];
    probe(net, place, probes, timeout).outcomes()[0].1.reached()
}
