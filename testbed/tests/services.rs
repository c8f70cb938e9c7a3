//! Services on real traffic: the real kube-proxy translates, in both of its modes, and our programs judge both sides of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod proxied;

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use bulkhead_testbed::{Plan, PodPlan, Running, Stack, Testnet, manifests, namespace::Namespace, process::until};
use serde_json::{Value, json};

use common::{SOON, ready, skipped};
use proxied::{ApiServer, Proxy};

/// Much longer than any answer takes, much shorter than a client waits.
const WAIT: Duration = Duration::from_millis(700);
const PORT: u16 = 8080;
/// Ports of nodes: with `externalTrafficPolicy` Cluster and Local.
const CLUSTER: u16 = 30080;
const LOCAL: u16 = 30081;

/// A Service of the bed: name, last part of its addresses, what is behind it, and what its spec has besides.
type Plain = (&'static str, u8, &'static [&'static str], Value);

fn services() -> Vec<Plain> {
    let sticky = json!({"sessionAffinity": "ClientIP"});
    let port = |node_port: u16, policy: &str| {
        json!({"type": "NodePort", "externalTrafficPolicy": policy,
               "ports": [{"name": "http", "port": 80, "targetPort": PORT, "nodePort": node_port}]})
    };
    let abuse = json!({"externalIPs": [Testnet::OUTSIDE[0], Testnet::OUTSIDE[1]],
                       "ports": [{"name": "http", "port": PORT, "targetPort": PORT}]});
    vec![
        ("web", 10, &["web"], json!({})),
        ("api", 11, &["api"], json!({})),
        ("both", 12, &["web", "api"], json!({})),
        ("sticky", 13, &["web", "api"], sticky),
        ("host", 14, &["node-2"], json!({})),
        ("node-port", 15, &["web"], port(CLUSTER, "Cluster")),
        ("node-port-local", 16, &["web"], port(LOCAL, "Local")),
        ("abuse", 17, &["intruder"], abuse),
    ]
}

/// A frontend's address.
fn vip(service: &str, ipv6: bool) -> IpAddr {
    let last = services().into_iter().find(|(name, ..)| *name == service).unwrap().1;
    if ipv6 {
        [0xfd96, 0, 0, 0, 0, 0, 0, u16::from(last)].into()
    } else {
        [10, 96, 1, last].into()
    }
}

/// Two nodes with a kube-proxy each. What is named first ends first.
struct Bed {
    stack: Stack,
    _servers: Vec<Running>,
    proxies: Vec<Proxy>,
    api: ApiServer,
    net: Testnet,
    objects: Vec<Value>,
}

fn plan() -> Plan {
    Plan {
        nodes: vec!["node-1".to_owned(), "node-2".to_owned()],
        pods: vec![
            PodPlan::new("shop", "client", "app=client"),
            PodPlan::new("shop", "web", "app=web"),
            PodPlan::new("shop", "other", "app=other"),
            PodPlan::new("shop", "api", "app=api").node(1).subnet(2),
            PodPlan::new("shop", "intruder", "app=intruder").node(1).subnet(2),
        ],
        ..Plan::default()
    }
}

fn service((name, _, _, more): &Plain) -> Value {
    let mut spec = json!({
        "clusterIP": vip(name, false), "clusterIPs": [vip(name, false), vip(name, true)],
        "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{"name": "http", "port": 80, "targetPort": PORT, "protocol": "TCP"}],
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn slice(net: &Testnet, service: &str, backends: &[&str], ipv6: bool) -> Value {
    let endpoint = |backend: &&str| {
        let node = net.nodes.iter().find(|node| node.name == *backend);
        let (address, node) = match node {
            Some(node) => (node.addresses[usize::from(ipv6)], node),
            None => (net.pod(backend).address(ipv6), &net.nodes[net.pod(backend).plan.node]),
        };
        json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": node.name})
    };
    let endpoints: Vec<Value> = backends.iter().map(endpoint).collect();
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-{}", family.to_lowercase()), "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": family, "endpoints": endpoints,
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
    })
}

impl Bed {
    fn start(mode: &str) -> Option<Self> {
        if skipped() {
            return None;
        }
        let api = ApiServer::start()?;
        let net = Testnet::create(plan()).unwrap();
        // The outside host speaks to nodes from its own address, not from the cable's.
        let [v4, v6] = Testnet::OUTSIDE;
        for node in &net.nodes {
            let [to_v4, to_v6] = node.addresses;
            let routes = format!("route add {to_v4}/32 dev eth0 src {v4}\nroute add {to_v6}/128 dev eth0 src {v6}\n");
            net.outside.ip(&routes).unwrap();
        }
        let pods = net.pods.iter().map(|pod| (pod.plan.name.as_str(), &pod.netns));
        let places = pods.chain([("node-2", &net.nodes[1].netns), ("outside", &net.outside)]);
        let port = PORT.to_string();
        let serve = |(name, netns): (&str, &Namespace)| {
            ready(
                net.peer(netns, name, &["serve", "--name", name, "--tcp", &port])
                    .unwrap(),
            )
        };
        let servers = places.map(serve).collect();
        for node in &net.nodes {
            let addresses = node.addresses.map(|it| json!({"type": "InternalIP", "address": it}));
            api.create(
                &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
                               "status": {"addresses": addresses}}),
            );
        }
        api.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
        let mut objects = Vec::new();
        for plain in services() {
            objects.push(service(&plain));
            objects.extend([false, true].map(|ipv6| slice(&net, plain.0, plain.2, ipv6)));
        }
        for object in &objects {
            api.create(object);
        }
        let proxies = net.nodes.iter().map(|node| api.proxy(&net, node, mode)).collect();
        let stack = Stack::start(&net).unwrap();
        let bed = Self {
            stack,
            _servers: servers,
            proxies,
            api,
            net,
            objects,
        };
        bed.tell_controller();
        Some(bed)
    }

    /// What the API server has is what the controller has.
    fn tell_controller(&self) {
        let texts: Vec<String> = self
            .objects
            .iter()
            .map(|it| serde_yaml_ng::to_string(it).unwrap())
            .collect();
        manifests::write(&self.stack.manifests(), "services.yaml", &texts.join("---\n")).unwrap();
    }

    /// Other backends for a Service, for kube-proxy and for the controller.
    fn set_backends(&mut self, service: &str, backends: &[&str]) {
        for ipv6 in [false, true] {
            let new = slice(&self.net, service, backends, ipv6);
            self.api.change(&new);
            let name = new["metadata"]["name"].clone();
            let same = |it: &&mut Value| it["kind"] == "EndpointSlice" && it["metadata"]["name"] == name;
            *self.objects.iter_mut().find(same).unwrap() = new;
        }
        self.tell_controller();
    }

    fn netns(&self, place: &str) -> &Namespace {
        if place == "outside" {
            &self.net.outside
        } else {
            &self.net.pod(place).netns
        }
    }

    fn connect(&self, from: &str, to: IpAddr, port: u16) -> io::Result<TcpStream> {
        let connecting = || TcpStream::connect_timeout(&SocketAddr::new(to, port), WAIT);
        let stream = self.netns(from).inside(connecting).unwrap()?;
        stream.set_read_timeout(Some(WAIT))?;
        Ok(stream)
    }

    /// Who answers a new connection, if anybody does.
    fn who(&self, from: &str, to: IpAddr, port: u16) -> Option<String> {
        let asking = || {
            let mut stream = self.connect(from, to, port)?;
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, io::Error>(answer)
        };
        let answer = asking().ok()?;
        Some(answer.split("hello from ").nth(1)?.trim().to_owned())
    }

    /// Waits until who answers is as wanted: a rule of kube-proxy may be on its way, a lost packet is sent again.
    fn answers(&self, from: &str, to: IpAddr, port: u16, wanted: Option<&str>) {
        let mut last = None;
        let so = until(SOON, || {
            last = self.who(from, to, port);
            (last.as_deref() == wanted).then_some(())
        });
        let logs: Vec<String> = self.proxies.iter().map(Proxy::log_tail).collect();
        assert!(
            so.is_some(),
            "{from} to {to} port {port}: wanted {wanted:?}, is {last:?}\n{}",
            logs.join("\n")
        );
    }

    fn service(&self, from: &str, service: &str, wanted: Option<&str>) {
        for ipv6 in [false, true] {
            self.answers(from, vip(service, ipv6), 80, wanted);
        }
    }

    fn node_port(&self, port: u16, wanted: Option<&str>) {
        for address in self.net.nodes[0].addresses {
            self.answers("outside", address, port, wanted);
        }
    }
}

/// A policy for pods of an app: one direction, with these rules.
fn policy(name: &str, app: &str, direction: &str, rules: &str) -> String {
    format!(
        "
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentPolicy
metadata: {{ name: {name}, namespace: shop }}
spec:
  subject: {{ podSelector: {{ matchLabels: {{ app: {app} }} }} }}
  {direction}: {rules}
"
    )
}

fn app(name: &str) -> String {
    format!("{{ podSelector: {{ matchLabels: {{ app: {name} }} }} }}")
}

fn networks(addresses: [IpAddr; 2]) -> String {
    let [v4, v6] = addresses;
    format!("[{{ network: {{ cidr: {v4}/32 }} }}, {{ network: {{ cidr: '{v6}/128' }} }}]")
}

#[test]
fn nftables() {
    all("nftables");
}

#[test]
fn iptables() {
    all("iptables");
}

fn all(mode: &str) {
    let Some(mut bed) = Bed::start(mode) else { return };
    without_policies(&bed);
    by_backend(&mut bed);
    by_service(&mut bed);
    node_ports(&mut bed);
    external_addresses(&mut bed);
    mixed(&mut bed);
    live(&mut bed);
    endpoints_change(&mut bed);
}

/// kube-proxy does its work: what is denied later is denied by us.
fn without_policies(bed: &Bed) {
    for (name, backend) in [("web", "web"), ("api", "api"), ("host", "node-2")] {
        bed.service("client", name, Some(backend));
    }
    // A pod reaches itself through its Service.
    bed.service("web", "web", Some("web"));
    bed.node_port(CLUSTER, Some("web"));
    bed.node_port(LOCAL, Some("web"));
    for ipv6 in [false, true] {
        let seen = |service: &str| -> std::collections::BTreeSet<_> {
            (0..30)
                .filter_map(|_| bed.who("client", vip(service, ipv6), 80))
                .collect()
        };
        assert_eq!(seen("both").len(), 2, "both backends are chosen");
        assert_eq!(seen("sticky").len(), 1, "one backend is kept");
    }
}

/// Who is behind the frontend decides; no rule names the frontend's address.
fn by_backend(bed: &mut Bed) {
    let rules = format!(
        "[{{ to: [{}, {}] }}]",
        app("web"),
        "{ network: { cidr: 192.168.77.2/32 } }"
    );
    bed.stack
        .apply("policy.yaml", &policy("egress", "client", "egress", &rules))
        .unwrap();
    bed.service("client", "web", Some("web"));
    bed.service("client", "api", None);
    bed.service("other", "api", Some("api"));
    // The far end judges as well: there the backend is the subject, and the client's address is its own.
    let rules = format!("[{{ from: [{}] }}]", app("other"));
    for (backend, file) in [("web", "web.yaml"), ("api", "api.yaml")] {
        let ingress = policy(&format!("ingress-{backend}"), backend, "ingress", &rules);
        bed.stack.apply(file, &ingress).unwrap();
        bed.service("client", backend, None);
        bed.service("other", backend, Some(backend));
        bed.stack.remove(file).unwrap();
    }
    bed.service("client", "web", Some("web"));
    // A node's address behind a Service is an address: the rule is about the one of IPv4.
    bed.answers("client", vip("host", false), 80, Some("node-2"));
    bed.answers("client", vip("host", true), 80, None);
    bed.stack.remove("policy.yaml").unwrap();
    bed.service("client", "host", Some("node-2"));
}

/// A rule that names a Service opens what is behind it, and nothing else.
fn by_service(bed: &mut Bed) {
    let rules = "[{ to: [{ service: { name: api } }] }]";
    bed.stack
        .apply("policy.yaml", &policy("egress", "client", "egress", rules))
        .unwrap();
    bed.service("client", "api", Some("api"));
    bed.service("client", "web", None);
    bed.stack.remove("policy.yaml").unwrap();
}

/// From outside, by nodes' ports: what a node passes on is judged by the address it carries.
fn node_ports(bed: &mut Bed) {
    bed.stack
        .apply("policy.yaml", &policy("ingress", "web", "ingress", "[]"))
        .unwrap();
    bed.node_port(CLUSTER, None);
    bed.node_port(LOCAL, None);
    let outside = format!("[{{ from: {} }}]", networks(Testnet::OUTSIDE));
    bed.stack
        .apply("policy.yaml", &policy("ingress", "web", "ingress", &outside))
        .unwrap();
    bed.node_port(LOCAL, Some("web"));
    bed.node_port(CLUSTER, None);
    let node = format!("[{{ from: {} }}]", networks(bed.net.nodes[0].addresses));
    bed.stack
        .apply("policy.yaml", &policy("ingress", "web", "ingress", &node))
        .unwrap();
    bed.node_port(LOCAL, None);
    bed.node_port(CLUSTER, Some("web"));
    bed.stack.remove("policy.yaml").unwrap();
}

/// A Service that claims an outside address neither opens nor closes it.
fn external_addresses(bed: &mut Bed) {
    let rules = format!("[{{ to: [{}] }}]", app("intruder"));
    bed.stack
        .apply("policy.yaml", &policy("egress", "client", "egress", &rules))
        .unwrap();
    bed.service_port("client", "abuse", Some("intruder"));
    for address in Testnet::OUTSIDE {
        bed.answers("client", address, PORT, None);
    }
    let rules = format!("[{{ to: {} }}]", networks(Testnet::OUTSIDE));
    bed.stack
        .apply("policy.yaml", &policy("egress", "client", "egress", &rules))
        .unwrap();
    bed.service_port("client", "abuse", None);
    for address in Testnet::OUTSIDE {
        // kube-proxy does lead it astray; that is for the API server's admission to forbid.
        bed.answers("client", address, PORT, Some("intruder"));
    }
    bed.stack.remove("policy.yaml").unwrap();
}

impl Bed {
    /// As [`Bed::service`], of a Service whose port is not 80.
    fn service_port(&self, from: &str, service: &str, wanted: Option<&str>) {
        for ipv6 in [false, true] {
            self.answers(from, vip(service, ipv6), PORT, wanted);
        }
    }
}

/// Backends that a rule tells apart: nobody knows which would be chosen, so none is reached.
fn mixed(bed: &mut Bed) {
    let rules = format!("[{{ to: [{}] }}]", app("web"));
    bed.stack
        .apply("policy.yaml", &policy("egress", "client", "egress", &rules))
        .unwrap();
    for ipv6 in [false, true] {
        for _ in 0..6 {
            assert_eq!(bed.who("client", vip("both", ipv6), 80), None, "IPv6 {ipv6}");
        }
    }
    let said = until(SOON, || {
        let flows = bed.stack.agent(0).unwrap().flows(Vec::new()).unwrap();
        flows
            .iter()
            .any(|flow| format!("{flow:?}").contains("mixed-backends"))
            .then_some(())
    });
    assert!(said.is_some(), "a record names builtin/mixed-backends");
    bed.stack.remove("policy.yaml").unwrap();
}

/// A new policy cuts a connection that goes through a frontend.
fn live(bed: &mut Bed) {
    for ipv6 in [false, true] {
        for (direction, subject, rules) in [("ingress", "api", "[]"), ("egress", "client", "[]")] {
            let mut stream = bed.connect("client", vip("api", ipv6), 80).unwrap();
            let mut word = || {
                stream.write_all(b"word\n")?;
                stream.read_exact(&mut [0; 5])
            };
            word().unwrap();
            bed.stack
                .apply("policy.yaml", &policy("cut", subject, direction, rules))
                .unwrap();
            assert!(word().is_err(), "{direction}, IPv6 {ipv6}: it is cut");
            bed.stack.remove("policy.yaml").unwrap();
        }
    }
}

/// New connections go to the backends there are now, and are judged by them.
fn endpoints_change(bed: &mut Bed) {
    let rules = format!("[{{ to: [{}] }}]", app("web"));
    bed.stack
        .apply("policy.yaml", &policy("egress", "client", "egress", &rules))
        .unwrap();
    bed.set_backends("both", &["web"]);
    bed.service("client", "both", Some("web"));
    for ipv6 in [false, true] {
        for _ in 0..10 {
            assert_eq!(bed.who("client", vip("both", ipv6), 80).as_deref(), Some("web"));
        }
    }
    bed.set_backends("both", &["api"]);
    bed.service("other", "both", Some("api"));
    bed.service("client", "both", None);
    bed.stack.remove("policy.yaml").unwrap();
    bed.service("client", "both", Some("api"));
}
