//! Policies of nodes on real packets: what comes to a node and leaves it, what only passes, what it masquerades, a Service's port
//! on it, and what it is never to lose.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use bulkhead_proto::v1::Flow;
use bulkhead_testbed::{
    Plan, PodPlan, Stack, Testnet,
    namespace::Namespace,
    process::until,
    workload_api::{Authority, WorkloadApi},
};
use common::{SOON, skipped};

/// Much longer than an answer takes.
const WAIT: Duration = Duration::from_millis(400);
/// A port of the node that its policy opens, and one that it does not.
const OPEN: u16 = 7000;
const CLOSED: u16 = 7001;
/// The same two for connections that are older than the policy.
const OLDER: [u16; 2] = [7003, 7004];
/// Of the outside: what the policy lets the node go to, and what it does not.
const ALLOWED: u16 = 8080;
const REFUSED: u16 = 9090;
/// The port of a Service on every node, and of its backend.
const NODE_PORT: u16 = 30080;
const BACKEND: u16 = 8081;

const POLICY: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentPolicy
metadata: { name: nodes }
spec:
  subject: { nodeSelector: { matchLabels: { kubernetes.io/hostname: node-1 } } }
  ingress:
    - name: open
      from: [{ entity: World }]
      ports: [{ port: 7000 }, { protocol: UDP, port: 7000 }, { port: 7003 }]
    - name: pods-elsewhere
      from: [{ namespaceSelector: {}, podSelector: { matchLabels: { app: far } } }]
      ports: [{ port: 7001 }]
  egress:
    - name: out
      to: [{ entity: World }]
      ports: [{ port: 8080 }]
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  type: NodePort
  clusterIP: 10.96.0.9
  clusterIPs: [10.96.0.9]
  selector: { app: web }
  ports: [{ port: 80, targetPort: 8081, nodePort: 30080 }]
";

struct Cluster {
    net: Testnet,
    stack: Stack,
}

impl Cluster {
    /// `web` is on the node with the policy, `far` on the other.
    fn start() -> Self {
        let net = Testnet::create(Plan {
            namespaces: [("shop".to_owned(), [].into())].into(),
            nodes: vec!["node-1".to_owned(), "node-2".to_owned()],
            pods: vec![
                PodPlan::new("shop", "web", "app=web"),
                PodPlan::new("shop", "far", "app=far").node(1).subnet(2),
            ],
        })
        .unwrap();
        let stack = Stack::start(&net).unwrap();
        Self { net, stack }
    }

    fn node(&self) -> &Namespace {
        &self.net.nodes[0].netns
    }

    fn node_address(&self, ipv6: bool) -> IpAddr {
        self.net.nodes[0].addresses[usize::from(ipv6)]
    }

    /// A record of the guarded node.
    fn record(&self, wanted: impl Fn(&Flow) -> bool) -> Flow {
        let look = || {
            let flows = self.stack.agent(0).ok()?.flows(Vec::new()).ok()?;
            flows.into_iter().find(&wanted)
        };
        until(SOON, look).unwrap()
    }

    fn nft(&self, rules: &str) {
        let output = self.node().command("nft").unwrap().arg(rules).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// One open connection.
struct Live {
    client: TcpStream,
    server: TcpStream,
    /// Who listens is known by it to have been called.
    _listener: TcpListener,
    /// Who the server thinks it talks to.
    seen: SocketAddr,
}

impl Live {
    fn says(&mut self) -> bool {
        let said = self.client.write_all(b"word");
        said.and_then(|()| self.server.read_exact(&mut [0; 4])).is_ok()
    }
}

/// Listens at one place and connects from another, to an address that may be another one.
fn connect(server: (&Namespace, SocketAddr), client: &Namespace, to: SocketAddr) -> io::Result<Live> {
    let listener = server.0.inside(|| TcpListener::bind(server.1)).unwrap()?;
    let client = client.inside(|| TcpStream::connect_timeout(&to, WAIT)).unwrap()?;
    let (server, seen) = listener.accept()?;
    server.set_read_timeout(Some(WAIT))?;
    Ok(Live {
        client,
        server,
        _listener: listener,
        seen,
    })
}

fn opens(server: &Namespace, at: SocketAddr, client: &Namespace) -> bool {
    connect((server, at), client, at).is_ok_and(|mut live| live.says())
}

/// Whether a datagram arrives.
fn datagram(server: &Namespace, at: SocketAddr, client: &Namespace) -> bool {
    let listener = server.inside(|| UdpSocket::bind(at)).unwrap().unwrap();
    listener.set_read_timeout(Some(WAIT)).unwrap();
    let any: IpAddr = if at.is_ipv6() {
        [0_u16; 8].into()
    } else {
        [0_u8; 4].into()
    };
    let send = || UdpSocket::bind((any, 0)).and_then(|socket| socket.send_to(b"word", at));
    drop(client.inside(send).unwrap());
    listener.recv(&mut [0; 8]).is_ok()
}

/// Whether the outside gets in at a port of the guarded node.
fn inward(cluster: &Cluster, port: u16, ipv6: bool) -> bool {
    let at = SocketAddr::new(cluster.node_address(ipv6), port);
    opens(cluster.node(), at, &cluster.net.outside)
}

/// Whether the guarded node gets out to a port.
fn outward(cluster: &Cluster, port: u16, ipv6: bool) -> bool {
    let at = SocketAddr::new(Testnet::OUTSIDE[usize::from(ipv6)], port);
    opens(&cluster.net.outside, at, cluster.node())
}

/// What the policy says, and what is none of its business, for one family.
fn is_as_the_policy_says(cluster: &Cluster, ipv6: bool) {
    assert!(inward(cluster, OPEN, ipv6), "ipv6 {ipv6}");
    assert!(!inward(cluster, CLOSED, ipv6), "ipv6 {ipv6}");
    assert!(outward(cluster, ALLOWED, ipv6), "ipv6 {ipv6}");
    assert!(!outward(cluster, REFUSED, ipv6), "ipv6 {ipv6}");
    let node = SocketAddr::new(cluster.node_address(ipv6), OPEN);
    assert!(datagram(cluster.node(), node, &cluster.net.outside), "ipv6 {ipv6}");
    let node = SocketAddr::new(cluster.node_address(ipv6), CLOSED);
    assert!(!datagram(cluster.node(), node, &cluster.net.outside), "ipv6 {ipv6}");
    // A pod of another node is known by what it is.
    assert!(
        opens(cluster.node(), node, &cluster.net.pod("far").netns),
        "ipv6 {ipv6}"
    );
    // The node is in nobody's way inside: to its pods, and they to it.
    let pod = &cluster.net.pod("web").netns;
    let web = SocketAddr::new(cluster.net.pod("web").address(ipv6), REFUSED);
    assert!(opens(pod, web, cluster.node()), "ipv6 {ipv6}");
    assert!(opens(cluster.node(), node, pod), "ipv6 {ipv6}");
    // What only passes it is not its own.
    let outside = SocketAddr::new(Testnet::OUTSIDE[usize::from(ipv6)], REFUSED);
    assert!(opens(pod, web, &cluster.net.outside), "ipv6 {ipv6}");
    assert!(opens(&cluster.net.outside, outside, pod), "ipv6 {ipv6}");
    // The other node is one that no policy is about.
    let other = SocketAddr::new(cluster.net.nodes[1].addresses[usize::from(ipv6)], CLOSED);
    assert!(
        opens(&cluster.net.nodes[1].netns, other, &cluster.net.outside),
        "ipv6 {ipv6}"
    );
}

#[test]
fn what_comes_to_a_node_and_leaves_it_is_judged_and_what_passes_is_not() {
    if skipped() {
        return;
    }
    let mut cluster = Cluster::start();
    for ipv6 in [false, true] {
        assert!(
            inward(&cluster, CLOSED, ipv6) && outward(&cluster, REFUSED, ipv6),
            "judged before any policy is about the node"
        );
    }
    let before = OLDER.map(|port| {
        let at = SocketAddr::new(cluster.node_address(false), port);
        connect((cluster.node(), at), &cluster.net.outside, at).unwrap()
    });
    let [mut lucky, mut doomed] = before;
    assert!(doomed.says() && lucky.says());

    cluster.stack.apply("nodes.yaml", POLICY).unwrap();
    // What was open before is judged as what it is, however silent it was.
    assert!(
        lucky.says(),
        "an allowed connection that is older than the policy was cut"
    );
    assert!(!doomed.says(), "a connection that the policy does not allow lives");
    for ipv6 in [false, true] {
        is_as_the_policy_says(&cluster, ipv6);
    }
    cluster.record(|flow| flow.reason == "policy-denied" && flow.rule.contains("default-deny"));
    // A failsafe port is open whatever the policy says, and it is said why.
    assert!(inward(&cluster, 22, false), "SSH is closed");
    cluster.record(|flow| flow.rule == "builtin/failsafe");

    // A live connection loses what allowed it.
    let at = SocketAddr::new(cluster.node_address(true), OPEN);
    let mut live = connect((cluster.node(), at), &cluster.net.outside, at).unwrap();
    assert!(live.says());
    cluster
        .stack
        .apply("nodes.yaml", &POLICY.replace("7000", "7002"))
        .unwrap();
    assert!(!live.says(), "what the policy does not allow any more lives");
    assert!(lucky.says(), "what the policy still allows was cut");
    cluster.record(|flow| flow.reason == "revoked");

    // Without a policy nothing is judged again.
    cluster.stack.remove("nodes.yaml").unwrap();
    assert!(inward(&cluster, CLOSED, false) && outward(&cluster, REFUSED, true));
}

#[test]
fn masqueraded_pods_and_ports_of_services_are_judged_where_they_belong() {
    if skipped() {
        return;
    }
    if Command::new("nft").arg("--version").output().is_err() {
        println!("SKIPPED: nft is not installed (package nftables)");
        return;
    }
    let mut cluster = Cluster::start();
    cluster.nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname eth0 ip saddr 10.77.0.0/24 masquerade; }; \
         chain pre { type nat hook prerouting priority -100; }; }",
    );
    let web = &cluster.net.pod("web").netns;
    let outside = SocketAddr::new(Testnet::OUTSIDE[0], REFUSED);
    let mut older = connect((&cluster.net.outside, outside), web, outside).unwrap();
    assert_eq!(older.seen.ip(), cluster.node_address(false), "it is not masqueraded");

    cluster.stack.write("service.yaml", SERVICE).unwrap();
    cluster.stack.apply("nodes.yaml", POLICY).unwrap();
    let web = &cluster.net.pod("web").netns;
    // The node may not go there; the pod may, behind the node's address.
    let newer = SocketAddr::new(Testnet::OUTSIDE[0], CLOSED);
    assert!(!opens(&cluster.net.outside, newer, cluster.node()));
    let mut live = connect((&cluster.net.outside, newer), web, newer).unwrap();
    assert_eq!(live.seen.ip(), cluster.node_address(false));
    assert!(live.says(), "masqueraded");
    assert!(
        older.says(),
        "a masqueraded connection that is older than the policy was cut"
    );
    // Both ways.
    live.server.write_all(b"back").unwrap();
    live.client.set_read_timeout(Some(WAIT)).unwrap();
    live.client
        .read_exact(&mut [0; 4])
        .expect("a masqueraded pod hears no answer");
    cluster.record(|flow| flow.rule == "builtin/forwarded");

    // A port of a Service on the node goes on to its backend, where it is judged.
    let node = cluster.node_address(false);
    let backend = SocketAddr::new(cluster.net.pod("web").address(false), BACKEND);
    cluster.nft(&format!(
        "add rule ip nat pre ip daddr {node} tcp dport {NODE_PORT} dnat to {backend}"
    ));
    let port = SocketAddr::new(node, NODE_PORT);
    let arrives = |cluster: &Cluster| {
        let web = &cluster.net.pod("web").netns;
        connect((web, backend), &cluster.net.outside, port).is_ok_and(|mut live| live.says())
    };
    assert!(arrives(&cluster), "the Service's port is closed");
    cluster.record(|flow| flow.rule == "builtin/node-port");
    cluster
        .stack
        .apply(
            "web.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\n\
             spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}\n",
        )
        .unwrap();
    assert!(!arrives(&cluster), "the backend's own rules are not asked");
}

const DOMAIN: &str = "test.example";
/// A policy that cuts its node off from the controller, where the failsafe set does not keep that open.
const CUT: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: ClusterSegmentPolicy
metadata: { name: cut }
spec:
  subject: { nodeSelector: { matchLabels: { kubernetes.io/hostname: node-2 } } }
  ingress: [{ from: [{ entity: World }] }]
  egress: []
";

/// A controller on node 1 that node 2 reaches over its uplink, with nothing kept open for nodes.
struct Far {
    net: Testnet,
    stack: Stack,
    authority: Authority,
    controller: WorkloadApi,
    nodes: [WorkloadApi; 2],
}

impl Far {
    fn start(confirm: &str) -> Self {
        let net = Testnet::create(Plan {
            namespaces: [("shop".to_owned(), [].into())].into(),
            nodes: vec!["node-1".to_owned(), "node-2".to_owned()],
            pods: vec![
                PodPlan::new("shop", "web", "app=web"),
                PodPlan::new("shop", "far", "app=far").node(1).subnet(2),
            ],
        })
        .unwrap();
        let serve = |name: &str| WorkloadApi::serve(&net.directory().join(name)).unwrap();
        let mut far = Self {
            stack: Stack::prepare(&net).unwrap(),
            authority: Authority::new(DOMAIN).unwrap(),
            controller: serve("controller-workload.sock"),
            nodes: [serve("node-0.sock"), serve("node-1.sock")],
            net,
        };
        far.certify();
        let listen = format!("--listen-tls={}:4433", far.net.nodes[0].addresses[0]);
        let own = far.identity("controller-workload.sock");
        let emptied = [
            "--failsafe-inbound=none",
            "--failsafe-outbound=none",
            "--failsafe-accept-risk",
        ];
        let arguments: Vec<&str> = own.iter().chain([&listen]).map(String::as_str).chain(emptied).collect();
        far.stack.start_controller_on(&far.net, 0, &arguments).unwrap();
        for node in 0..2 {
            far.start_agent(node, confirm);
        }
        far.stack.settle().unwrap();
        far
    }

    /// Certificates for everybody, for a test's time.
    fn certify(&self) {
        let svid = |path: &str| {
            let id = format!("spiffe://{DOMAIN}/{path}");
            self.authority.svid(&id, Duration::from_hours(1)).unwrap()
        };
        self.controller.give(vec![svid("controller")]);
        for (api, node) in self.nodes.iter().zip(["node/node-1", "node/node-2"]) {
            api.give(vec![svid(node)]);
        }
    }

    fn identity(&self, socket: &str) -> [String; 3] {
        let socket = self.net.directory().join(socket);
        [
            format!("--trust-domain={DOMAIN}"),
            "--certificates=spiffe".to_owned(),
            format!("--spiffe-endpoint-socket=unix://{}", socket.display()),
        ]
    }

    fn start_agent(&mut self, node: usize, confirm: &str) {
        let controller = format!("--controller=https://{}:4433", self.net.nodes[0].addresses[0]);
        let within = format!("--confirm-within={confirm}");
        let own = self.identity(&format!("node-{node}.sock"));
        let arguments: Vec<&str> = own.iter().chain([&controller, &within]).map(String::as_str).collect();
        self.stack.start_agent(&self.net, node, &arguments).unwrap();
    }

    /// Whether the second node reaches the controller's port by a new connection.
    fn reaches(&self) -> bool {
        let controller = SocketAddr::new(self.net.nodes[0].addresses[0], 4433);
        let connect = || TcpStream::connect_timeout(&controller, WAIT).is_ok();
        self.net.nodes[1].netns.inside(connect).unwrap()
    }

    /// Waits until that is so, or not.
    fn becomes(&self, reachable: bool) {
        until(SOON, || (self.reaches() == reachable).then_some(())).unwrap();
    }

    /// Waits until the controller says why the second node does not hold its rules.
    fn told(&self) -> String {
        let look = || {
            let status = self.stack.controller().ok()?.controller_status().ok()?;
            let node = status.nodes.into_iter().find(|node| node.node == "node-2")?;
            let cut = status
                .policies
                .into_iter()
                .find(|it| it.policy.as_ref().is_some_and(|it| it.name == "cut"))?;
            let waits = cut.nodes_enforced == 0 && cut.nodes_waiting == ["node-2"];
            (node.error.contains("Reverted") && waits).then_some(node.error)
        };
        until(SOON, look).unwrap()
    }
}

#[test]
fn rules_that_cut_a_node_off_are_taken_back_by_itself() {
    if skipped() {
        return;
    }
    let mut far = Far::start("4s");
    // What does not cut is confirmed, and stays.
    far.stack
        .apply(
            "cut.yaml",
            &CUT.replace("egress: []", "egress: [{ ports: [{ port: 4433 }] }]"),
        )
        .unwrap();
    let closed = SocketAddr::new(Testnet::OUTSIDE[0], REFUSED);
    let out = |far: &Far| opens(&far.net.outside, closed, &far.net.nodes[1].netns);
    assert!(far.reaches() && !out(&far), "the first rules are not in force");
    let confirmed = until(SOON, || {
        let log = far.stack.agent_process(1)?.log_tail();
        log.contains("are confirmed").then_some(())
    });
    assert!(confirmed.is_some(), "the first rules are not confirmed");

    far.stack.write("cut.yaml", CUT).unwrap();
    far.becomes(false);
    far.becomes(true);
    // The rules before are in force again, not none.
    assert!(!out(&far), "the node is open instead of as it was before");
    println!("NOTE: {}", far.told());
    let flows = far.stack.agent(1).unwrap().flows(Vec::new()).unwrap();
    let refused = |flow: &&Flow| flow.rule.contains("cut") && flow.rule.contains("egress default-deny");
    assert!(flows.iter().any(|flow| refused(&flow)), "no record of what was cut");
    // The same rules are not tried again, whatever else changes.
    far.stack
        .write(
            "service.yaml",
            SERVICE
                .replace("type: NodePort", "type: ClusterIP")
                .replace(", nodePort: 30080", "")
                .as_str(),
        )
        .unwrap();
    for _ in 0..10 {
        assert!(far.reaches(), "the same rules are tried again");
    }
    // Others are.
    far.stack
        .apply(
            "cut.yaml",
            &CUT.replace("egress: []", "egress: [{ ports: [{ port: 4433 }, { port: 9090 }] }]"),
        )
        .unwrap();
    assert!(far.reaches() && out(&far), "the corrected rules are not in force");
}

#[test]
fn an_agent_that_dies_before_the_confirmation_takes_the_rules_back_when_it_starts() {
    if skipped() {
        return;
    }
    let mut far = Far::start("10m");
    far.stack.write("cut.yaml", CUT).unwrap();
    far.becomes(false);
    far.stack.kill_agent(1).unwrap();
    assert!(!far.reaches(), "the rules are gone with the agent");
    far.start_agent(1, "10m");
    far.becomes(true);
    let said = far.told();
    assert!(said.contains("the agent ended"), "{said}");
    // Nothing was confirmed before, so nothing is judged.
    let out = SocketAddr::new(Testnet::OUTSIDE[0], REFUSED);
    assert!(opens(&far.net.outside, out, &far.net.nodes[1].netns));
}
