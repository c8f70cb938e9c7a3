//! The shop: pods, processes, and the policies that are applied to it.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};

use crate::{Plan, PodPlan, Running, Testnet};

/// Nothing in, nothing out, for every pod of the shop.
pub(super) const DEFAULT_DENY: &str = include_str!("../../../examples/01-default-deny.yaml");
/// client → web → api → database.
pub(super) const THREE_TIERS: &str = include_str!("../../../examples/03-three-tier-shop.yaml");
/// Counters that web sends to api, as datagrams.
pub(super) const COUNTERS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: counters-out, namespace: shop }
spec:
  podSelector: { matchLabels: { app: web } }
  policyTypes: [Egress]
  egress:
    - to: [{ podSelector: { matchLabels: { app: api } } }]
      ports: [{ protocol: UDP, port: 8125 }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: counters-in, namespace: shop }
spec:
  podSelector: { matchLabels: { app: api } }
  policyTypes: [Ingress]
  ingress:
    - from: [{ podSelector: { matchLabels: { app: web } } }]
      ports: [{ protocol: UDP, port: 8125 }]
";

/// The port of counters.
pub(super) const COUNTERS_PORT: u16 = 8125;

/// Where a connection goes: from, to, protocol, port.
pub(super) type Path = (&'static str, &'static str, &'static str, u16);

/// The paths the shop needs.
pub(super) const NEEDED: &[Path] = &[
    ("client", "web", "TCP", 8080),
    ("web", "api", "TCP", 8081),
    ("api", "db", "TCP", 5432),
];

/// Paths nobody needs.
pub(super) const NEEDLESS: &[Path] = &[("client", "db", "TCP", 5432), ("web", "db", "TCP", 5432)];

/// What the intruder tries.
pub(super) const INTRUSIONS: &[Path] = &[
    ("intruder", "web", "TCP", 8080),
    ("intruder", "api", "TCP", 8081),
    ("intruder", "db", "TCP", 5432),
    ("intruder", "api", "UDP", 8125),
    ("intruder", "db", "ICMP", 0),
];

pub(super) fn plan() -> Plan {
    let label = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    Plan {
        namespaces: BTreeMap::from([
            ("shop".to_owned(), label("tenant", "retail")),
            ("bank".to_owned(), label("tenant", "finance")),
        ]),
        nodes: vec!["node-1".to_owned()],
        pods: vec![
            PodPlan::new("shop", "client", "app=client"),
            PodPlan::new("shop", "web", "app=web").port("http", "TCP", 8080),
            PodPlan::new("shop", "api", "app=api").port("http", "TCP", 8081),
            PodPlan::new("shop", "db", "app=db")
                .port("postgres", "TCP", 5432)
                .subnet(1),
            // It even carries the label of a pod that may talk to api; it is in another namespace, though.
            PodPlan::new("bank", "intruder", "app=web"),
        ],
    }
}

pub(super) const PICTURE: &str = "
      namespace shop, 10.77.0.0/24                       10.77.1.0/24
    ┌────────┐  8080  ┌────────┐  8081  ┌────────┐  5432  ┌────────┐
    │ client │ ─────► │  web   │ ─────► │  api   │ ─────► │   db   │
    └────────┘        └────────┘        └────────┘        └────────┘
                            ▲                 ▲                 ▲
      namespace bank        └───────┬─────────┴─────────────────┘
    ┌──────────┐                    │
    │ intruder │ ───────────────────┘ ?
    └──────────┘";

/// Starts the shop's servers.
pub(super) fn open(net: &Testnet) -> Result<Vec<Running>> {
    let servers: &[(&str, &[&str])] = &[
        ("web", &["serve", "--name", "web", "--tcp", "8080"]),
        ("api", &["serve", "--name", "api", "--tcp", "8081", "--udp", "8125"]),
        ("db", &["serve", "--name", "db", "--tcp", "5432"]),
    ];
    servers
        .iter()
        .map(|(pod, arguments)| {
            let server = net.peer(&net.pod(pod).netns, pod, arguments)?;
            match server.line(Duration::from_secs(20))?.as_str() {
                "ready" => Ok(server),
                other => bail!("{pod}: {other}"),
            }
        })
        .collect()
}
