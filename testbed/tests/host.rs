//! Policies of nodes on real packets: what comes to a node and leaves it, what only passes, what it masquerades, a Service's port
//! on it, and what it is never to lose.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use bulkhead_proto::v1::Flow;
use bulkhead_testbed::{Plan, PodPlan, Stack, Testnet, namespace::Namespace, process::until};
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
