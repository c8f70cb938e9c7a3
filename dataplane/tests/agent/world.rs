//! A node with pods, what the compiler says of them, an agent process, and real connections.

use std::sync::Arc;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use bulkhead_policy::{
    compiler::Compiler,
    model::{
        Action, Attachment, Direction, LabelSelector, Manner, Match, Mode, NamespaceMatch, Node, Object, Operator,
        Peer, PodMatch, Policy, PolicyKey, PolicyKind, PortMatch, Protocol, Requirement, Rule, Tier, Workload,
        WorkloadKey, Zone,
    },
    state::State,
};
use bulkhead_testbed::{Plan, Pod, PodPlan, Running, Testnet, client::Client, testnet};

use crate::controller::Controller;

/// The port pods listen on.
pub const PORT: u16 = 8080;
/// How long a connection that should be dropped is tried. Too short could only let a leak go unseen on a machine that takes
/// longer than this for a handshake between two namespaces.
const DENIED_WITHIN: Duration = Duration::from_millis(150);
const ALLOWED_WITHIN: Duration = Duration::from_secs(10);

/// Fields are dropped in this order: processes before what they stand on.
pub struct World {
    pub agent: Option<Running>,
    pub controller: Controller,
    pub net: Testnet,
    listeners: Vec<TcpListener>,
}

impl World {
    /// One node with pods of namespace `shop`, all listening.
    pub fn new(pods: &[&str]) -> Self {
        let pods = pods
            .iter()
            .map(|name| PodPlan::new("shop", name, &format!("app={name}")))
            .collect();
        let net = Testnet::create(Plan {
            nodes: vec!["one".to_owned()],
            pods,
            ..Plan::default()
        })
        .unwrap();
        let controller = Controller::start(&net.directory().join("controller.sock"));
        let mut world = Self {
            agent: None,
            controller,
            net,
            listeners: Vec::new(),
        };
        world.listeners = world.net.pods.iter().map(listen).collect();
        world
    }

    pub fn bpffs(&self) -> PathBuf {
        self.net.directory().join("bpf0")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.net.directory().join("state0")
    }

    pub fn socket(&self) -> PathBuf {
        self.net.directory().join("agent.sock")
    }

    pub fn agent_command(&self, more: &[&str]) -> Command {
        let directory = self.net.directory();
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-agent"));
        command
            .args(["--node", "one", "--netns"])
            .arg(self.net.nodes[0].netns.path())
            .arg("--controller")
            .arg(format!("unix:{}", directory.join("controller.sock").display()))
            .arg("--socket")
            .arg(self.socket())
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg("--state-dir")
            .arg(self.state_dir())
            .args(more);
        command
    }

    /// Starts the agent; an earlier one must have ended.
    pub fn start_agent(&mut self, more: &[&str]) -> &mut Running {
        let agent = Running::start("agent", self.agent_command(more), &self.net.logs()).unwrap();
        self.agent.insert(agent)
    }

    /// Kills the agent with SIGKILL.
    pub fn kill_agent(&mut self) {
        self.agent.take().unwrap().kill().unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.net.logs().join("agent.log")).unwrap_or_default()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.socket()).unwrap()
    }

    /// Tells the node a state and waits until it is in force with all endpoints enforced.
    pub fn enforce(&self, state: &State) -> u64 {
        let revision = self.controller.want(state);
        self.controller.ack(revision, "all endpoints enforced", |ack| {
            ack.error.is_empty()
                && ack.endpoints.len() == state.endpoints.len()
                && ack.endpoints.iter().all(|e| e.enforced)
        });
        revision
    }

    /// True when a TCP connection comes about; false when it gets no answer.
    pub fn connects(&self, from: &str, to: &str, ipv6: bool, within: Duration) -> bool {
        let to = SocketAddr::new(self.net.pod(to).address(ipv6), PORT);
        let attempt = self
            .net
            .pod(from)
            .netns
            .inside(|| TcpStream::connect_timeout(&to, within))
            .unwrap();
        match attempt {
            Ok(_) => true,
            Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => false,
            Err(error) => panic!("{from} to {to}: {error}"),
        }
    }

    #[track_caller]
    pub fn assert_allowed(&self, from: &str, to: &str) {
        for ipv6 in [false, true] {
            assert!(
                self.connects(from, to, ipv6, ALLOWED_WITHIN),
                "{from} -> {to}, ipv6 {ipv6}: {}",
                self.log()
            );
        }
    }

    #[track_caller]
    pub fn assert_denied(&self, from: &str, to: &str) {
        for ipv6 in [false, true] {
            assert!(
                !self.connects(from, to, ipv6, DENIED_WITHIN),
                "{from} -> {to}, ipv6 {ipv6}: {}",
                self.log()
            );
        }
    }

    /// The compiled state of these pods under policies: nodes, then pods, each with its namespace's path.
    pub fn state(&self, policies: &[Policy]) -> State {
        let node = &self.net.nodes[0];
        let ranges = testnet::Node::pod_ranges(&self.net.plan, 0);
        let node = Object::Node(Node {
            name: node.name.clone(),
            labels: BTreeMap::new(),
            addresses: node.addresses.into_iter().collect(),
            pod_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
        });
        let pods = self
            .net
            .pods
            .iter()
            .map(|pod| Object::Workload(Arc::new(workload(pod))));
        let policies = policies.iter().cloned().map(Object::Policy);
        Compiler::from_scratch([node].into_iter().chain(pods).chain(policies))
            .state()
            .for_node("one")
    }
}

fn listen(pod: &Pod) -> TcpListener {
    // One listener for both families; accepting is the kernel's business until the backlog is full, and connections
    // that the test closed make room.
    pod.netns.inside(|| TcpListener::bind(("::", PORT))).unwrap().unwrap()
}

pub fn workload(pod: &Pod) -> Workload {
    Workload {
        key: WorkloadKey {
            namespace: pod.plan.namespace.clone(),
            name: pod.plan.name.clone(),
        },
        uid: format!("uid-{}", pod.plan.name),
        labels: pod.plan.labels.clone(),
        service_account: "default".to_owned(),
        node: Some("one".to_owned()),
        addresses: [IpAddr::V4(pod.v4), IpAddr::V6(pod.v6)].into(),
        zone: Zone(0),
        named_ports: Vec::new(),
        attachment: Attachment {
            netns: Some(pod.netns.path().display().to_string()),
            device: None,
        },
        image_class: 0,
        claims: BTreeMap::default(),
    }
}

fn app(name: &str) -> PodMatch {
    let requirement = Requirement {
        key: "app".to_owned(),
        operator: Operator::In([name.to_owned()].into()),
    };
    PodMatch {
        namespaces: NamespaceMatch::Name("shop".to_owned()),
        pods: LabelSelector([requirement].into()),
        service_accounts: Match::Any,
    }
}

/// `to` is isolated on ingress and takes TCP connections to [`PORT`] from `from`.
pub fn allow(from: &[&str], to: &str) -> Policy {
    let rule = Rule {
        name: None,
        index: 0,
        action: Action::Allow,
        peers: Match::OneOf(from.iter().map(|name| Peer::Pods(app(name))).collect()),
        ports: Match::OneOf(vec![PortMatch::Range {
            protocol: Protocol::Tcp,
            first: PORT,
            last: PORT,
        }]),
        guard: None,
        mode: Mode::Enforce,
    };
    Policy {
        key: PolicyKey {
            kind: PolicyKind::NetworkPolicy,
            namespace: "shop".to_owned(),
            name: format!("to-{to}"),
        },
        uid: String::new(),
        generation: 0,
        tier: Tier::NetworkPolicy,
        priority: 0,
        subject: vec![app(to)],
        nodes: Vec::new(),
        isolates: BTreeSet::from([Direction::Ingress]),
        mode: Mode::Enforce,
        manner: Manner::default(),
        ingress: if from.is_empty() { Vec::new() } else { vec![rule] },
        egress: Vec::new(),
    }
}
