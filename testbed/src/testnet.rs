//! A small cluster of namespaces: nodes, pods and something outside, wired and routed.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};

use crate::{
    namespace::{self, Namespace},
    process::Running,
    sys,
};

const FOLDER: &str = "/run/bulkhead-testbed";
/// Where a pod sends everything: the host end of its device answers for it.
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// A named container port.
#[derive(Clone, Debug)]
pub struct PortPlan {
    /// Name.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Number.
    pub number: u16,
}

/// A pod to make.
#[derive(Clone, Debug, Default)]
pub struct PodPlan {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Named container ports.
    pub ports: Vec<PortPlan>,
    /// Index of its node.
    pub node: usize,
    /// Which subnet its addresses are from: 10.77.N.0/24 and `fd77:0:0:N::/64`.
    pub subnet: u8,
}

impl PodPlan {
    /// A pod of the first node and subnet; labels as `app=web,tier=front`.
    pub fn new(namespace: &str, name: &str, labels: &str) -> Self {
        let labels = labels.split(',').filter_map(|pair| pair.split_once('='));
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            ..Self::default()
        }
    }

    /// The same on another subnet.
    #[must_use]
    pub fn subnet(self, subnet: u8) -> Self {
        Self { subnet, ..self }
    }

    /// The same on another node.
    #[must_use]
    pub fn node(self, node: usize) -> Self {
        Self { node, ..self }
    }

    /// The same with one more named port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: &str, number: u16) -> Self {
        self.ports.push(PortPlan {
            name: name.to_owned(),
            protocol: protocol.to_owned(),
            number,
        });
        self
    }
}

/// What to make.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Labels of Kubernetes namespaces, beside the one with their name.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Names of the nodes; at least one.
    pub nodes: Vec<String>,
    /// The pods.
    pub pods: Vec<PodPlan>,
}

/// A node: a namespace that forwards.
#[derive(Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Its namespace; the agent runs inside.
    pub netns: Namespace,
    /// Its own addresses.
    pub addresses: [IpAddr; 2],
}

/// A pod: a namespace behind a veth pair.
#[derive(Debug)]
pub struct Pod {
    /// What it was made from.
    pub plan: PodPlan,
    /// Its namespace.
    pub netns: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Name of the device's end in the node's namespace.
    pub device: String,
}

impl Pod {
    /// Its address of a family.
    pub fn address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.v6.into() } else { self.v4.into() }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.plan.namespace, self.plan.name)
    }
}

/// The cluster; dropping it removes every namespace and file.
#[derive(Debug)]
pub struct Testnet {
    /// What it was made from.
    pub plan: Plan,
    /// Pods, in the plan's order.
    pub pods: Vec<Pod>,
    /// Nodes, in the plan's order.
    pub nodes: Vec<Node>,
    /// A host that is no part of the cluster, reached through the nodes.
    pub outside: Namespace,
    fabric: Namespace,
    directory: Directory,
}

/// The run's folder, removed with what is mounted in it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes a run's folder; best effort, the next sweep tries again.
fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("bpf") {
            drop(sys::unmount(&entry.path()));
        }
    }
    drop(fs::remove_dir_all(folder));
}

impl Testnet {
    /// Addresses of the outside host.
    pub const OUTSIDE: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5)),
    ];

    /// Makes everything. What earlier runs of killed processes left behind is removed first.
    ///
    /// # Errors
    /// When not root, or a command of `ip` fails; what was made so far is removed.
    pub fn create(plan: Plan) -> Result<Self> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        if plan.nodes.is_empty() {
            bail!("a plan needs at least one node");
        }
        sweep();
        let run = format!("{}-{}", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
        let directory = Directory(Path::new(FOLDER).join(&run));
        fs::create_dir_all(directory.0.join("logs")).with_context(|| format!("creating {}", directory.0.display()))?;
        let fabric = Namespace::create(&namespace::name_of(&run, "fabric"))?;
        fabric.ip("link add br0 type bridge\nlink set br0 up\n")?;
        let outside = make_outside(&run, &fabric)?;
        let mut nodes = Vec::new();
        for (index, name) in plan.nodes.iter().enumerate() {
            nodes.push(make_node(&run, &fabric, small(index)?, name)?);
        }
        let mut net = Self {
            pods: Vec::new(),
            nodes,
            outside,
            fabric,
            directory,
            plan,
        };
        for (index, pod) in net.plan.pods.clone().into_iter().enumerate() {
            let pod = net.make_pod(&run, small(index)?, pod)?;
            net.pods.push(pod);
        }
        Ok(net)
    }

    /// Adds a pod to the running cluster.
    ///
    /// # Errors
    /// As for [`Testnet::create`].
    pub fn add_pod(&mut self, plan: PodPlan) -> Result<()> {
        let run = self.run().to_owned();
        let pod = self.make_pod(&run, small(self.plan.pods.len())?, plan.clone())?;
        self.plan.pods.push(plan);
        self.pods.push(pod);
        Ok(())
    }

    /// The run's folder: logs, sockets, manifests.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// The folder of logs.
    pub fn logs(&self) -> PathBuf {
        self.directory.0.join("logs")
    }

    /// A pod by its name (names are unique in a plan).
    ///
    /// # Panics
    /// When the plan has no such pod: a mistake in the test.
    #[expect(clippy::expect_used, reason = "a test that names a pod it did not plan is broken")]
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.plan.name == name)
            .expect("the plan has no such pod")
    }

    /// Starts a `testbed-peer` inside a namespace.
    ///
    /// # Errors
    /// When the binary is missing or cannot start.
    pub fn peer(&self, netns: &Namespace, name: &str, arguments: &[&str]) -> Result<Running> {
        let mut command = netns.command(binary("testbed-peer")?)?;
        command.args(arguments);
        Running::start(name, command, &self.logs())
    }

    fn run(&self) -> &str {
        self.directory
            .0
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    fn make_pod(&self, run: &str, index: u8, plan: PodPlan) -> Result<Pod> {
        let node = self
            .nodes
            .get(plan.node)
            .with_context(|| format!("pod {}: there is no node {}", plan.name, plan.node))?;
        let netns = Namespace::create(&namespace::name_of(run, &plan.name))?;
        let host = index + 10;
        let v4 = Ipv4Addr::new(10, 77, plan.subnet, host);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, plan.subnet.into(), 0, 0, 0, host.into());
        let mac = [2, 0, 0, 0, plan.subnet, host];
        let device = format!("pod{index}");
        let mac_text = mac.map(|byte| format!("{byte:02x}")).join(":");
        let gateway = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
        netns.sysctl(&[("ipv6/conf/default/accept_dad", "0")])?;
        // Of scope link, or the node would masquerade with it what it passes on to the pod.
        node.netns.ip(&format!(
            "link add {device} type veth peer name eth0 netns {pod}\n\
             link set {device} addrgenmode none\n\
             link set {device} address {gateway} up\n\
             addr add 169.254.1.1/32 dev {device} scope link\n\
             addr add fe80::1/64 dev {device} nodad\n",
            pod = netns.name()
        ))?;
        netns.ip(&format!(
            "link set eth0 address {mac_text} up\n\
             addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             route add 169.254.1.1 dev eth0 scope link\n\
             route add default via 169.254.1.1 dev eth0\n\
             route add default via fe80::1 dev eth0\n"
        ))?;
        let [node_v4, node_v6] = node.addresses;
        // Without `src` the node would talk to its pod from 169.254.1.1, which is no address of the node.
        node.netns.ip(&format!(
            "route add {v4}/32 dev {device} scope link src {node_v4}\nroute add {v6}/128 dev {device} src {node_v6}\n"
        ))?;
        let route = |[from_v4, from_v6]: [IpAddr; 2]| {
            format!("route add {v4}/32 via {node_v4} src {from_v4}\nroute add {v6}/128 via {node_v6} src {from_v6}\n")
        };
        for other in self.nodes.iter().filter(|other| other.name != node.name) {
            other.netns.ip(&route(other.addresses))?;
        }
        self.outside.ip(&route(Self::OUTSIDE))?;
        Ok(Pod {
            plan,
            netns,
            v4,
            v6,
            mac,
            device,
        })
    }

    /// The namespace that joins nodes and outside.
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }
}

impl Node {
    /// Pod ranges of the node: the subnets its pods are from.
    pub fn pod_ranges(plan: &Plan, node: usize) -> Vec<String> {
        let subnets: BTreeSet<u8> = plan
            .pods
            .iter()
            .filter(|pod| pod.node == node)
            .map(|pod| pod.subnet)
            .collect();
        subnets
            .iter()
            .flat_map(|subnet| [format!("10.77.{subnet}.0/24"), format!("fd77:0:0:{subnet:x}::/64")])
            .collect()
    }
}

fn small(index: usize) -> Result<u8> {
    u8::try_from(index)
        .ok()
        .filter(|index| *index < 200)
        .context("a testnet has at most 200 pods")
}

/// Nothing that passes may be the kernel's own filtering: what drops a packet in these tests must be ours.
const ROUTER: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // Refusals (port unreachable) are answers a probe waits for; the default rate would make some of them time-outs.
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv4/icmp_ratelimit", "0"),
];

fn make_node(run: &str, fabric: &Namespace, index: u8, name: &str) -> Result<Node> {
    let netns = Namespace::create(&namespace::name_of(run, name))?;
    netns.sysctl(ROUTER)?;
    let v4 = Ipv4Addr::new(192, 168, 77, index + 1);
    let v6 = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(index) + 1);
    attach(
        fabric,
        &netns,
        &format!("n{index}"),
        &format!("{v4}/24"),
        &format!("{v6}/64"),
    )?;
    netns.ip("route add default via 192.168.77.254\nroute add default via fd00:77::fe\n")?;
    Ok(Node {
        name: name.to_owned(),
        netns,
        addresses: [v4.into(), v6.into()],
    })
}

fn make_outside(run: &str, fabric: &Namespace) -> Result<Namespace> {
    let netns = Namespace::create(&namespace::name_of(run, "outside"))?;
    netns.sysctl(ROUTER)?;
    attach(fabric, &netns, "outside", "192.168.77.254/24", "fd00:77::fe/64")?;
    let [v4, v6] = Testnet::OUTSIDE;
    netns.ip(&format!("addr add {v4}/32 dev lo\naddr add {v6}/128 dev lo nodad\n"))?;
    Ok(netns)
}

/// A cable from a namespace's eth0 to the bridge.
fn attach(fabric: &Namespace, netns: &Namespace, port: &str, v4: &str, v6: &str) -> Result<()> {
    fabric.ip(&format!(
        "link add {port} type veth peer name eth0 netns {}\nlink set {port} master br0\nlink set {port} up\n",
        netns.name()
    ))?;
    netns.ip(&format!(
        "link set eth0 up\naddr add {v4} dev eth0\naddr add {v6} dev eth0 nodad\n"
    ))
}

/// Removes what runs of killed processes left.
fn sweep() {
    namespace::sweep();
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let dead = entry
            .file_name()
            .to_str()
            .and_then(namespace::process_of)
            .is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists());
        if dead {
            remove(&entry.path());
        }
    }
}

/// A binary of the workspace, beside the running one (tests run from `deps/` below it).
///
/// # Errors
/// Says how to build it when it is not there.
pub fn binary(name: &str) -> Result<PathBuf> {
    let current = env::current_exe().context("where am I?")?;
    current
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: run `cargo xtask test`, or `cargo build --workspace --bins`"))
}
