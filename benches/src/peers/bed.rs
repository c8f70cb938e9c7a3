//! Where it is measured: nodes of two pods, alike but for what judges between the pods.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bulkhead_dataplane::kernel::lab::Lab;
use bulkhead_testbed::{Plan, PodPlan, Stack, Testnet, pinned::PinnedMap, sys, testnet::Pod};
use bulkhead_verdict::layout::LAYOUT;

use crate::{
    connections,
    rules::{End, Rules, peers},
};

/// Ports of web: the policy allows these two, and not the third.
pub(crate) const ALLOWED_TCP: u16 = 8_080;
pub(crate) const ALLOWED_UDP: u16 = 9_090;
const DENIED_TCP: u16 = 8_081;
/// How long an answer may take before a connection counts as dropped.
const ANSWER: Duration = Duration::from_millis(300);

/// What judges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Judge {
    /// Rules of the kernel's own.
    Rules(Rules),
    /// A program that returns at once, on both hooks of both devices.
    Empty,
    /// Our agent, whose policy allows so many peers beside the client.
    Ours(u32),
}

impl Judge {
    /// All of them, the one that the others are compared with first.
    pub(crate) const ALL: [Self; 11] = [
        Self::Rules(Rules::None),
        Self::Empty,
        Self::Ours(10),
        Self::Ours(10_000),
        Self::Rules(Rules::Conntrack),
        Self::Rules(Rules::NftMap(10)),
        Self::Rules(Rules::NftMap(10_000)),
        Self::Rules(Rules::KubeRouter(10)),
        Self::Rules(Rules::KubeRouter(10_000)),
        Self::Rules(Rules::Calico(10)),
        Self::Rules(Rules::Calico(10_000)),
    ];

    /// What it is called.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Rules(Rules::None) => "no policy".to_owned(),
            Self::Empty => "empty programs".to_owned(),
            Self::Ours(count) => format!("bulkhead, {count} peers"),
            Self::Rules(Rules::Conntrack) => "conntrack alone".to_owned(),
            Self::Rules(Rules::NftMap(count)) => format!("nftables map, {count} peers"),
            Self::Rules(Rules::KubeRouter(count)) => format!("kube-router's shape, {count} peers"),
            Self::Rules(Rules::Calico(count)) => format!("Calico-iptables' shape, {count} peers"),
        }
    }

    /// Ours.
    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Ours(_))
    }

    const fn enforces(self) -> bool {
        match self {
            Self::Rules(rules) => rules.enforces(),
            Self::Empty => false,
            Self::Ours(_) => true,
        }
    }

    /// A program that it needs and that is not on this machine.
    pub(crate) fn lacks(self) -> Option<&'static str> {
        let Self::Rules(rules) = self else { return None };
        rules.tools().iter().find(|name| !tool(name)).copied()
    }
}

/// Whether a program is on the path.
pub(crate) fn tool(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// A node of two pods, and our agent where there is one.
struct Node {
    // Before the network it stands on.
    stack: Option<Stack>,
    net: Testnet,
    _denied: TcpListener,
}

/// One node without us, and one for each number of peers with us.
pub(crate) struct Bed {
    plain: Node,
    ours: BTreeMap<u32, Node>,
    empty: Vec<OwnedFd>,
}

impl Bed {
    pub(crate) fn new() -> Result<Self> {
        let mut ours = BTreeMap::new();
        for judge in Judge::ALL {
            if let Judge::Ours(count) = judge {
                ours.insert(count, Node::new(Some(count))?);
            }
        }
        Ok(Self {
            plain: Node::new(None)?,
            ours,
            empty: Vec::new(),
        })
    }

    fn node(&self, judge: Judge) -> Result<&Node> {
        match judge {
            Judge::Ours(count) => self.ours.get(&count).context("no such node"),
            Judge::Rules(_) | Judge::Empty => Ok(&self.plain),
        }
    }

    /// Puts a judge in place and sees that it judges: what the policy allows passes, and what it does not is dropped.
    pub(crate) fn install(&mut self, judge: Judge) -> Result<()> {
        self.empty.clear();
        let rules = match judge {
            Judge::Rules(rules) => rules,
            Judge::Empty | Judge::Ours(_) => Rules::None,
        };
        if tool("nft") {
            rules.load(
                &self.plain.netns()?.netns,
                &self.plain.end("client"),
                &self.plain.end("web"),
            )?;
        }
        if judge == Judge::Empty {
            self.empty = self.plain.attach_empty()?;
        }
        let node = self.node(judge)?;
        node.short_timeouts();
        let web = node.net.pod("web").v4;
        let reaches = |port| {
            let to = SocketAddr::new(web.into(), port);
            let client = &node.net.pod("client").netns;
            client.inside(|| TcpStream::connect_timeout(&to, ANSWER).is_ok())
        };
        ensure!(
            reaches(ALLOWED_TCP)?,
            "{}: port {ALLOWED_TCP} is not reached",
            judge.name()
        );
        ensure!(
            reaches(DENIED_TCP)? != judge.enforces(),
            "{}: port {DENIED_TCP} is {}",
            judge.name(),
            if judge.enforces() { "reached" } else { "not reached" }
        );
        Ok(())
    }

    /// The pods, first the one that begins.
    pub(crate) fn pods(&self, judge: Judge) -> Result<[&Pod; 2]> {
        let net = &self.node(judge)?.net;
        Ok([net.pod("client"), net.pod("web")])
    }

    /// Has our flow table forget the flows that nobody answered: a benchmark opens more than a pod does in its time-out.
    pub(crate) fn forget(&self, judge: Judge) -> Result<()> {
        let Some(stack) = &self.node(judge)?.stack else {
            return Ok(());
        };
        let folder = stack.bpffs(0).join(format!("v{}", LAYOUT.replace('.', "-")));
        let flows = PinnedMap::open(&folder.join("BK_TENTATIVE"))?;
        for (key, _) in flows.elements()? {
            // It may have gone by itself.
            let _gone = flows.remove(&key);
        }
        Ok(())
    }

    /// A folder that goes with the bed; a bpf file system in it must be called `bpf…`.
    pub(crate) fn folder(&self) -> &Path {
        self.plain.net.directory()
    }

    /// A bed of nothing but our agent, with so many peers.
    pub(crate) fn ours(count: u32) -> Result<Self> {
        Ok(Self {
            plain: Node::new(None)?,
            ours: BTreeMap::from([(count, Node::new(Some(count))?)]),
            empty: Vec::new(),
        })
    }

    /// The agent's own account, and where it pins its maps.
    pub(crate) fn stack(&self, judge: Judge) -> Result<&Stack> {
        self.node(judge)?.stack.as_ref().context("no agent")
    }

    /// The agent's process.
    pub(crate) fn agent(&self, judge: Judge) -> Result<Option<u32>> {
        let stack = self.node(judge)?.stack.as_ref();
        stack.map(|stack| stack.agent_pid(0)).transpose()
    }
}

impl Node {
    fn new(peers: Option<u32>) -> Result<Self> {
        let net = Testnet::create(Plan {
            namespaces: BTreeMap::from([("shop".to_owned(), BTreeMap::new())]),
            nodes: vec!["node-1".to_owned()],
            pods: ["client", "web"]
                .map(|name| PodPlan::new("shop", name, &format!("app={name}")))
                .into(),
        })?;
        let web = net.pod("web").v4;
        let listen = |port| net.pod("web").netns.inside(move || TcpListener::bind((web, port)));
        let denied = listen(DENIED_TCP)??;
        connections::serve(&listen(ALLOWED_TCP)??)?;
        net.pod("client")
            .netns
            .sysctl(&[("ipv4/ip_local_port_range", "1024 65000"), ("ipv4/tcp_tw_reuse", "1")])?;
        let stack = peers.map(|count| start(&net, count)).transpose()?;
        Ok(Self {
            stack,
            net,
            _denied: denied,
        })
    }

    fn netns(&self) -> Result<&bulkhead_testbed::testnet::Node> {
        self.net.nodes.first().context("no node")
    }

    fn end(&self, pod: &str) -> End {
        let pod = self.net.pod(pod);
        End {
            v4: pod.v4,
            device: pod.device.clone(),
        }
    }

    /// Conntrack forgets datagrams soon, so that a round's new flows are new. It has the setting once rules have asked for it.
    fn short_timeouts(&self) {
        if let Ok(node) = self.netns() {
            let _absent = node.netns.sysctl(&[
                ("netfilter/nf_conntrack_udp_timeout", "2"),
                ("netfilter/nf_conntrack_udp_timeout_stream", "2"),
            ]);
        }
    }

    fn attach_empty(&self) -> Result<Vec<OwnedFd>> {
        let bpffs: PathBuf = self.net.directory().join("bpf-empty");
        fs::create_dir_all(&bpffs)?;
        sys::mount_bpffs(&bpffs).context("mounting a bpf file system")?;
        let pods = ["client", "web"].map(|name| self.net.pod(name).device.clone());
        let links = self.netns()?.netns.inside(|| {
            let lab = Lab::open(&bpffs)?;
            let mut links = Vec::new();
            for device in &pods {
                links.extend(lab.attach_empty(index(device)?)?);
            }
            Ok(links)
        });
        sys::unmount(&bpffs).context("unmounting the bpf file system")?;
        links?
    }
}

/// Index of a device of the thread's namespace.
fn index(device: &str) -> Result<u32> {
    let any = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(&any, device).with_context(|| format!("asking for the index of {device}"))
}

/// Controller and agent with a policy that allows the client, and so many addresses that are never heard of.
fn start(net: &Testnet, count: u32) -> Result<Stack> {
    let mut stack = Stack::prepare(net)?;
    stack.start_controller()?;
    // What is written here is no drift, and the benchmark opens more flows than a pod should.
    stack.start_agent(net, 0, &["--drift-interval-ms", "0", "--unanswered-per-second", "0"])?;
    let mut from = String::new();
    for peer in peers(count) {
        let _never = write!(from, "\n    - ipBlock: {{ cidr: {peer}/32 }}");
    }
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: known-only, namespace: shop }}\n\
         spec:\n  podSelector: {{ matchLabels: {{ app: web }} }}\n  policyTypes: [Ingress]\n  ingress:\n  - from:\n    \
         - podSelector: {{ matchLabels: {{ app: client }} }}{from}\n    ports:\n    \
         - {{ protocol: TCP, port: {ALLOWED_TCP} }}\n    - {{ protocol: UDP, port: {ALLOWED_UDP} }}\n"
    );
    stack.apply("known-only.yaml", &policy)?;
    Ok(stack)
}
