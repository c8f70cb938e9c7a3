//! Certificates that live seconds, from a SPIFFE Workload API, under a real controller and a real agent: one node stream goes
//! on while they are renewed, policies come over it, and what is in force stays when nobody renews them any more.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use bulkhead_testbed::{
    Plan, PodPlan, Running, Stack, Testnet,
    process::until,
    workload_api::{Authority, WorkloadApi},
};
use common::{SOON, reaches, serve_everywhere, skipped};

const DOMAIN: &str = "test.example";
const ADDRESS: &str = "127.0.0.1:4433";
/// What one certificate lives.
const SHORT: Duration = Duration::from_secs(15);
const RULES: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web, namespace: shop}\n\
                     spec:\n  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n\
                     \x20 ingress: [{from: [{podSelector: {matchLabels: {app: NAME}}}]}]\n";

/// Both ends' Workload APIs; what each gives is for its end only.
struct Spire {
    authority: Authority,
    controller: WorkloadApi,
    node: WorkloadApi,
}

impl Spire {
    fn new(folder: &Path) -> Self {
        let serve = |name: &str| WorkloadApi::serve(&folder.join(name)).unwrap();
        Self {
            authority: Authority::new(DOMAIN).unwrap(),
            controller: serve("controller-workload.sock"),
            node: serve("node-workload.sock"),
        }
    }

    fn renew(&self) {
        let svid = |path: &str| {
            self.authority
                .svid(&format!("spiffe://{DOMAIN}/{path}"), SHORT)
                .unwrap()
        };
        self.controller.give(vec![svid("controller")]);
        self.node.give(vec![svid("node/node-1")]);
    }
}

fn options(folder: &Path, socket: &str) -> [String; 3] {
    [
        format!("--trust-domain={DOMAIN}"),
        "--certificates=spiffe".to_owned(),
        format!("--spiffe-endpoint-socket=unix://{}", folder.join(socket).display()),
    ]
}

/// How often a process has logged something.
fn times(process: &Running, text: &str) -> usize {
    fs::read_to_string(process.log()).unwrap().matches(text).count()
}

fn logged(process: &Running, text: &str, wanted: usize) {
    let found = until(SOON, || (times(process, text) >= wanted).then_some(()));
    assert!(
        found.is_some(),
        "{text:?} is not {wanted} times in the log:\n{}",
        process.log_tail()
    );
}

fn start(net: &Testnet) -> Stack {
    let folder = net.directory();
    let mut stack = Stack::prepare(net).unwrap();
    let own = options(folder, "controller-workload.sock");
    let listen = format!("--listen-tls={ADDRESS}");
    let arguments: Vec<&str> = own.iter().chain([&listen]).map(String::as_str).collect();
    stack.start_controller_on(net, 0, &arguments).unwrap();
    let own = options(folder, "node-workload.sock");
    let controller = format!("--controller=https://{ADDRESS}");
    let arguments: Vec<&str> = own.iter().chain([&controller]).map(String::as_str).collect();
    stack.start_agent(net, 0, &arguments).unwrap();
    stack
}

#[test]
fn one_stream_goes_on_while_certificates_come_and_go() {
    if skipped() {
        return;
    }
    let net = Testnet::create(Plan {
        namespaces: [("shop".to_owned(), [].into())].into(),
        nodes: vec!["node-1".to_owned()],
        pods: ["web", "client", "other"]
            .map(|name| PodPlan::new("shop", name, &format!("app={name}")))
            .into(),
    })
    .unwrap();
    let servers = serve_everywhere(&net);
    let spire = Spire::new(net.directory());
    let mut stack = start(&net);
    // Nobody is registered yet; the agent says what to do.
    let agent = |stack: &mut Stack, text: &str, wanted: usize| logged(stack.agent_process(0).unwrap(), text, wanted);
    agent(
        &mut stack,
        "create a registration entry of spiffe://test.example/node/node-1",
        1,
    );
    spire.renew();
    stack.apply("web.yaml", &RULES.replace("NAME", "client")).unwrap();
    let web = net.pod("web").address(false);
    assert!(reaches(&net, "client", web, "TCP", 8080, true));
    assert!(!reaches(&net, "other", web, "TCP", 8080, false));

    let begin = Instant::now();
    let mut rotations = 0;
    while rotations < 3 || begin.elapsed() < SHORT * 2 {
        let renewed = Instant::now();
        spire.renew();
        rotations += 1;
        logged(
            stack.controller_process().unwrap(),
            "showed a newer certificate",
            rotations,
        );
        // A policy comes over the same stream.
        let who = if rotations % 2 == 0 { "client" } else { "other" };
        stack.apply("web.yaml", &RULES.replace("NAME", who)).unwrap();
        assert!(reaches(&net, who, web, "TCP", 8080, true));
        let half = until(SHORT, || (renewed.elapsed() > SHORT / 2).then_some(()));
        assert!(half.is_some());
    }
    let controller = stack.controller_process().unwrap();
    assert_eq!(times(controller, "node connected"), 1, "one stream all the time");
    assert_eq!(times(controller, "the stream is closed"), 0);

    // Nobody renews them: the stream ends with the last certificate, and what was in force stays.
    drop(spire);
    agent(&mut stack, "the certificate we have stays in use", 1);
    logged(
        stack.controller_process().unwrap(),
        "the certificate has ended, and no newer one was shown",
        1,
    );
    let who = if rotations % 2 == 0 {
        ["client", "other"]
    } else {
        ["other", "client"]
    };
    assert!(reaches(&net, who[0], web, "TCP", 8080, true));
    assert!(!reaches(&net, who[1], web, "TCP", 8080, false));
    // And when somebody does again, the node comes back.
    let spire = Spire::new(net.directory());
    spire.renew();
    stack.apply("web.yaml", &RULES.replace("NAME", who[1])).unwrap();
    assert!(reaches(&net, who[1], web, "TCP", 8080, true));
    drop((stack, servers));
}
