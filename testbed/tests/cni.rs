//! Pods that get their network from real CNI plugins with ours chained behind, the test being the container runtime: a pod's
//! first packet is judged, and it does not start when it would not be.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
};

use bulkhead_proto::v1::{AgentStatus, EndpointStatus, Flow};
use bulkhead_testbed::{
    Plan, Running, Stack, Testnet, manifests,
    process::until,
    runtime::{self, Chain, Refusal, Sandbox},
    testnet::binary,
    traffic::{HoldEvent, Outcome, Probe},
};
use common::{SOON, ready, skipped};
use serde_json::{Value, json};

const SUBNET: &str = "10.77.9.0/24";

/// A node whose pods the test makes. Fields are dropped in this order.
struct Bed {
    stack: Stack,
    sandboxes: Vec<Sandbox>,
    net: Testnet,
    chain: Chain,
    pods: Vec<Value>,
}

impl Bed {
    fn new(kind: &str) -> Self {
        let net = Testnet::create(Plan {
            nodes: vec!["node-1".to_owned()],
            ..Plan::default()
        })
        .unwrap();
        let stack = Stack::prepare(&net).unwrap();
        let folder = net.directory();
        let conf = folder.join("net.d");
        fs::create_dir_all(&conf).unwrap();
        let conflist = conf.join("10-pods.conflist");
        let list = runtime::conflist(kind, SUBNET, &folder.join("leases"));
        fs::write(&conflist, list.to_string()).unwrap();
        let chain = Chain {
            conflist,
            bin_dirs: vec![runtime::PLUGINS.into(), folder.join("bin")],
        };
        let mut bed = Self {
            stack,
            sandboxes: Vec::new(),
            chain,
            pods: Vec::new(),
            net,
        };
        bed.declare(None);
        bed
    }

    fn bin_dir(&self) -> PathBuf {
        self.net.directory().join("bin")
    }

    fn conf_dir(&self) -> PathBuf {
        self.net.directory().join("net.d")
    }

    /// Starts the agent, which installs the plugin, and waits until it answers.
    fn start_agent(&mut self, more: &[&str]) {
        let (bin, conf) = (self.bin_dir(), self.conf_dir());
        let mut arguments = vec![
            "--cri-socket",
            "none",
            "--cni-install",
            "--cni-bin-dir",
            bin.to_str().unwrap(),
            "--cni-conf-dir",
            conf.to_str().unwrap(),
        ];
        arguments.extend(more);
        self.stack.start_agent(&self.net, 0, &arguments).unwrap();
        let there = until(SOON, || (self.agent().is_some() && self.is_chained()).then_some(()));
        assert!(there.is_some(), "{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.net.logs().join("agent0.log")).unwrap_or_default()
    }

    fn agent(&self) -> Option<AgentStatus> {
        self.stack.agent(0).unwrap().agent_status().ok()
    }

    fn is_chained(&self) -> bool {
        fs::read_to_string(&self.chain.conflist)
            .unwrap()
            .contains("bulkhead-cni")
    }

    /// Has the controller read a pod, as the API shows it before it runs.
    fn declare(&mut self, pod: Option<(&str, &str, &str)>) {
        if let Some((namespace, name, uid)) = pod {
            self.pods.retain(|pod| pod["metadata"]["name"] != name);
            self.pods.push(json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "uid": uid, "labels": {"app": name}},
                "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "x"}]},
                "status": {"phase": "Pending"},
            }));
        }
        let node = &self.net.nodes[0];
        let address = node.addresses[0].to_string();
        let mut objects = vec![json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name},
            "spec": {"podCIDR": SUBNET, "podCIDRs": [SUBNET]},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        })];
        objects.extend(
            ["shop", "bulkhead-system"]
                .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})),
        );
        objects.extend(self.pods.iter().cloned());
        let text: Vec<String> = objects.iter().map(ToString::to_string).collect();
        manifests::write(&self.stack.manifests(), "cluster.yaml", &text.join("\n---\n")).unwrap();
    }

    /// Makes a sandbox and asks the chain for its network.
    fn add(&mut self, namespace: &str, name: &str, uid: &str) -> Result<IpAddr, Refusal> {
        let run = self.net.directory().file_name().unwrap().to_str().unwrap().to_owned();
        let id = format!("s{}-{name}", self.sandboxes.len());
        let sandbox = Sandbox::create(&run, &id, namespace, name, uid).unwrap();
        let result = self.chain.add(&self.net.nodes[0].netns, &sandbox).unwrap();
        self.sandboxes.push(sandbox);
        let result = result?;
        let address = result["ips"][0]["address"].as_str().unwrap();
        Ok(address.split('/').next().unwrap().parse().unwrap())
    }

    fn sandbox(&self, name: &str) -> &Sandbox {
        self.sandboxes
            .iter()
            .rev()
            .find(|sandbox| sandbox.name == name)
            .unwrap()
    }

    fn serve(&self, name: &str) -> Running {
        let netns = &self.sandbox(name).netns;
        let arguments = ["serve", "--name", name, "--tcp", "8080"];
        ready(self.net.peer(netns, &format!("server-{name}"), &arguments).unwrap())
    }

    /// A connection that says something all the time.
    fn hold(&self, from: &str, to: IpAddr) -> Running {
        let target = format!("{to}:8080");
        let netns = &self.sandbox(from).netns;
        self.net
            .peer(netns, &format!("hold-{from}"), &["hold", "--to", &target])
            .unwrap()
    }

    /// One new connection.
    fn reaches(&self, from: &str, to: IpAddr, patience_ms: u32) -> bool {
        let netns = &self.sandbox(from).netns;
        let patience = patience_ms.to_string();
        let mut peer = self
            .net
            .peer(netns, "probe", &["probe", "--timeout-ms", &patience])
            .unwrap();
        let probe = Probe {
            to,
            port: 8080,
            protocol: "TCP".to_owned(),
        };
        peer.write(&format!("{}\n", serde_json::to_string(&probe).unwrap()))
            .unwrap();
        peer.close_input();
        let outcome: Outcome = serde_json::from_str(&peer.line(SOON).unwrap()).unwrap();
        outcome.reached()
    }

    fn endpoint(&self, name: &str) -> Option<EndpointStatus> {
        let endpoints = self.stack.agent(0).unwrap().endpoints().ok()?;
        let is_it =
            |endpoint: &EndpointStatus| endpoint.workload.as_ref().is_some_and(|workload| workload.name == name);
        endpoints.into_iter().find(is_it)
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let done = until(SOON, || condition(self).then_some(()));
        assert!(
            done.is_some(),
            "{what}: {:?}\n{}",
            self.stack.agent(0).unwrap().endpoints(),
            self.log()
        );
    }
}

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
";

fn cannot_run() -> bool {
    if skipped() {
        return true;
    }
    if !runtime::has_plugins() {
        println!(
            "SKIPPED: the plugins bridge and ptp are not in {} (Debian package containernetworking-plugins)",
            runtime::PLUGINS
        );
        return true;
    }
    false
}

/// The whole way of a pod, on a CNI of a kind.
fn whole_way(kind: &str) {
    let mut bed = Bed::new(kind);
    bed.stack.start_controller().unwrap();
    bed.stack.write("policy.yaml", POLICY).unwrap();
    bed.start_agent(&[]);
    bed.wait_for("the agent has a state", |bed| {
        bed.agent().is_some_and(|status| status.revision > 0)
    });
    for name in ["web", "client", "stranger"] {
        bed.declare(Some(("shop", name, &format!("u-{name}"))));
    }
    let web = bed.add("shop", "web", "u-web").unwrap();
    // The plugin has returned, so it is so already: nothing is waited for.
    let endpoint = bed.endpoint("web").unwrap();
    assert!(
        endpoint.enforced && endpoint.addresses == [web.to_string()],
        "{endpoint:?}"
    );
    let server = bed.serve("web");
    bed.add("shop", "client", "u-client").unwrap();
    assert!(bed.reaches("client", web, 5000), "{}", bed.log());
    bed.add("shop", "stranger", "u-stranger").unwrap();
    assert!(!bed.reaches("stranger", web, 700));
    let netns = &bed.net.nodes[0].netns;
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": format!("{web}/24")}]});
    let ours = Chain {
        conflist: only_ours(&bed),
        bin_dirs: bed.chain.bin_dirs.clone(),
    };
    ours.check(netns, bed.sandbox("web"), &result).unwrap().unwrap();

    // The sandbox is made anew: the same pod, another device and address.
    drop(server);
    bed.chain.delete(netns, bed.sandbox("web")).unwrap();
    let again = bed.add("shop", "web", "u-web").unwrap();
    assert_ne!(again, web);
    let endpoint = bed.endpoint("web").unwrap();
    assert!(
        endpoint.enforced && endpoint.addresses == [again.to_string()],
        "{endpoint:?}"
    );
    let server = bed.serve("web");
    assert!(bed.reaches("client", again, 5000), "{}", bed.log());
    assert!(!bed.reaches("stranger", again, 700));

    // A restarted agent finds every device although no annotation and no runtime tells it.
    bed.stack.kill_agent(0).unwrap();
    assert!(bed.reaches("client", again, 5000));
    assert!(!bed.reaches("stranger", again, 700));
    bed.start_agent(&[]);
    bed.wait_for("all three are judged", |bed| {
        bed.agent().is_some_and(|status| status.endpoints_enforced == 3)
    });
    assert!(bed.reaches("client", again, 5000), "{}", bed.log());
    drop(server);
}

/// A list with nothing but our plugin.
fn only_ours(bed: &Bed) -> PathBuf {
    let list: Value = serde_json::from_str(&fs::read_to_string(&bed.chain.conflist).unwrap()).unwrap();
    let ours = list["plugins"].as_array().unwrap().last().unwrap().clone();
    let path = bed.net.directory().join("ours.conflist");
    fs::write(
        &path,
        json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [ours]}).to_string(),
    )
    .unwrap();
    path
}

#[test]
fn pods_of_the_bridge_plugin_are_judged_from_their_first_packet() {
    if !cannot_run() {
        whole_way("bridge");
    }
}

#[test]
fn pods_of_the_ptp_plugin_are_judged_from_their_first_packet() {
    if !cannot_run() {
        whole_way("ptp");
    }
}

#[test]
fn a_cold_node_starts_pods_and_judges_them_when_the_controller_arrives() {
    if cannot_run() {
        return;
    }
    let mut bed = Bed::new("bridge");
    bed.stack.write("policy.yaml", POLICY).unwrap();
    bed.start_agent(&[]);
    for name in ["web", "client", "stranger"] {
        bed.declare(Some(("shop", name, &format!("u-{name}"))));
    }
    let web = bed.add("shop", "web", "u-web").unwrap();
    bed.add("shop", "client", "u-client").unwrap();
    bed.add("shop", "stranger", "u-stranger").unwrap();
    bed.wait_for("all are counted", |bed| {
        bed.agent().is_some_and(|status| status.unmanaged == 3)
    });
    let server = bed.serve("web");
    // Nobody judges yet.
    assert!(bed.reaches("stranger", web, 5000));
    let held = ["client", "stranger"].map(|name| bed.hold(name, web));
    bed.stack.start_controller().unwrap();
    bed.wait_for("all are adopted", |bed| {
        bed.agent()
            .is_some_and(|status| status.unmanaged == 0 && status.endpoints_enforced == 3)
    });
    assert!(!bed.reaches("stranger", web, 700));
    assert!(bed.reaches("client", web, 5000), "{}", bed.log());
    // Connections that are older than their judge are known by the pods' sockets and judged like new ones. These two talk all
    // the time, so a packet may come before the sockets were read: then the adoption window takes it in, with the same end.
    let [client, stranger] = held;
    let first: HoldEvent = serde_json::from_str(&stranger.line(SOON).unwrap()).unwrap();
    assert!(matches!(first, HoldEvent::Alive { .. }), "{first:?}");
    let then: HoldEvent = serde_json::from_str(&stranger.line(SOON).unwrap()).unwrap();
    assert!(matches!(then, HoldEvent::Stalled { .. }), "{then:?}");
    let first: HoldEvent = serde_json::from_str(&client.line(SOON).unwrap()).unwrap();
    assert!(matches!(first, HoldEvent::Alive { .. }), "{first:?}");
    assert_eq!(client.try_line(), None, "the client's connection goes on");
    let records = bed.stack.agent(0).unwrap().flows(Vec::new()).unwrap();
    let allowed =
        |flow: &Flow| flow.reason == "policy-allowed" && flow.rule.starts_with("NetworkPolicy/shop/web@1 ingress[0]");
    assert!(records.iter().any(allowed), "{records:?}");
    assert!(bed.log().contains("took over the connections"), "{}", bed.log());
    drop(server);
}

#[test]
fn where_rules_were_nothing_starts_without_them_but_the_controller_itself() {
    if cannot_run() {
        return;
    }
    let mut bed = Bed::new("bridge");
    bed.stack.start_controller().unwrap();
    bed.start_agent(&["--cni-timeout-ms", "3000"]);
    bed.wait_for("the agent has a state", |bed| {
        bed.agent().is_some_and(|status| status.revision > 0)
    });
    bed.stack.stop_controller();
    let refusal = bed.add("shop", "web", "u-web").unwrap_err();
    assert_eq!((refusal.plugin.as_str(), refusal.code), ("bulkhead-cni", 11));
    assert!(
        refusal.message.contains("shop/web") && refusal.message.contains("controller"),
        "{}",
        refusal.message
    );
    bed.add("bulkhead-system", "controller", "u-controller").unwrap();
    bed.wait_for("it is counted", |bed| {
        bed.agent().is_some_and(|status| status.unmanaged == 1)
    });
    // Without an agent, nothing starts.
    bed.stack.kill_agent(0).unwrap();
    let refusal = bed.add("bulkhead-system", "other", "u-other").unwrap_err();
    assert!(refusal.message.contains("agent0.sock"), "{}", refusal.message);
    // All are back: what was refused starts, what was not judged is.
    bed.start_agent(&["--cni-timeout-ms", "20000"]);
    bed.declare(Some(("shop", "web", "u-web")));
    bed.declare(Some(("bulkhead-system", "controller", "u-controller")));
    bed.stack.start_controller().unwrap();
    bed.add("shop", "web", "u-web").unwrap();
    bed.wait_for("all are adopted", |bed| {
        bed.agent()
            .is_some_and(|status| status.unmanaged == 0 && status.endpoints_enforced == 2)
    });
}

#[test]
fn a_strict_gate_keeps_pods_of_a_cold_node_out() {
    if cannot_run() {
        return;
    }
    let mut bed = Bed::new("ptp");
    bed.start_agent(&["--start-gate", "strict"]);
    let refusal = bed.add("shop", "web", "u-web").unwrap_err();
    assert_eq!((refusal.plugin.as_str(), refusal.code), ("bulkhead-cni", 11));
}

#[test]
fn the_entry_comes_back_and_goes_when_told() {
    if cannot_run() {
        return;
    }
    let mut bed = Bed::new("bridge");
    bed.start_agent(&[]);
    let list = runtime::conflist("bridge", SUBNET, Path::new("/nowhere"));
    manifests::write(&bed.conf_dir(), "10-pods.conflist", &list.to_string()).unwrap();
    bed.wait_for("the entry is back", Bed::is_chained);
    bed.stack.end_agent(0).unwrap();
    let uninstalled = Command::new(binary("bulkhead-agent").unwrap())
        .arg("cni-uninstall")
        .arg("--cni-bin-dir")
        .arg(bed.bin_dir())
        .arg("--cni-conf-dir")
        .arg(bed.conf_dir())
        .output()
        .unwrap();
    assert!(uninstalled.status.success(), "{uninstalled:?}");
    let left: Value = serde_json::from_str(&fs::read_to_string(&bed.chain.conflist).unwrap()).unwrap();
    assert_eq!(left, list);
    assert_eq!(fs::read_dir(bed.bin_dir()).unwrap().count(), 0);
}

#[test]
fn a_bypass_ends_by_itself_and_with_a_restart() {
    if cannot_run() {
        return;
    }
    let mut bed = Bed::new("bridge");
    bed.stack.start_controller().unwrap();
    bed.stack.write("policy.yaml", POLICY).unwrap();
    bed.start_agent(&[]);
    bed.wait_for("the agent has a state", |bed| {
        bed.agent().is_some_and(|status| status.revision > 0)
    });
    for name in ["web", "stranger"] {
        bed.declare(Some(("shop", name, &format!("u-{name}"))));
    }
    let web = bed.add("shop", "web", "u-web").unwrap();
    bed.add("shop", "stranger", "u-stranger").unwrap();
    let server = bed.serve("web");
    assert!(!bed.reaches("stranger", web, 700));
    let bypass = |bed: &Bed, time: &str| {
        let output = Command::new(binary("bulkhead-agent").unwrap())
            .args(["bypass", "--for", time, "--reason", "test", "--socket"])
            .arg(bed.stack.agent_socket(0))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    bypass(&bed, "10m");
    assert!(bed.reaches("stranger", web, 5000));
    assert_eq!(bed.agent().unwrap().bypass.unwrap().reason, "test");
    bypass(&bed, "1s");
    bed.wait_for("its time is over", |bed| {
        bed.agent()
            .is_some_and(|status| status.bypass.is_none() && status.endpoints_enforced == 2)
    });
    assert!(!bed.reaches("stranger", web, 700));
    bypass(&bed, "10m");
    assert!(bed.reaches("stranger", web, 5000));
    bed.stack.kill_agent(0).unwrap();
    bed.start_agent(&[]);
    bed.wait_for("the restart ends it", |bed| {
        bed.agent()
            .is_some_and(|status| status.bypass.is_none() && status.endpoints_enforced == 2)
    });
    assert!(!bed.reaches("stranger", web, 700));
    drop(server);
}

/// Runs `bulkhead-agent cleanup` for the bed's node; whether it went well, and what it said.
fn cleanup(bed: &Bed) -> (bool, String) {
    let folder = bed.net.directory();
    let output = Command::new(binary("bulkhead-agent").unwrap())
        .env("NO_COLOR", "1")
        .arg("cleanup")
        .arg("--bpffs")
        .arg(folder.join("bpf0"))
        .arg("--state-dir")
        .arg(folder.join("state0"))
        .arg("--socket")
        .arg(bed.stack.agent_socket(0))
        .arg("--cni-bin-dir")
        .arg(bed.bin_dir())
        .arg("--cni-conf-dir")
        .arg(bed.conf_dir())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn cleanup_takes_everything_of_ours_off_a_node_and_nothing_while_its_agent_runs() {
    if cannot_run() {
        return;
    }
    let mut bed = Bed::new("bridge");
    let list = fs::read_to_string(&bed.chain.conflist).unwrap();
    bed.stack.start_controller().unwrap();
    bed.stack.write("policy.yaml", POLICY).unwrap();
    bed.start_agent(&[]);
    bed.wait_for("the agent has a state", |bed| {
        bed.agent().is_some_and(|status| status.revision > 0)
    });
    for name in ["web", "stranger"] {
        bed.declare(Some(("shop", name, &format!("u-{name}"))));
    }
    let web = bed.add("shop", "web", "u-web").unwrap();
    bed.add("shop", "stranger", "u-stranger").unwrap();
    let server = bed.serve("web");
    assert!(!bed.reaches("stranger", web, 700));

    let (well, said) = cleanup(&bed);
    assert!(!well && said.contains("another agent is running"), "{said}");
    assert!(bed.is_chained(), "nothing was changed");
    assert!(!bed.reaches("stranger", web, 700));

    bed.stack.end_agent(0).unwrap();
    assert!(
        !bed.reaches("stranger", web, 700),
        "an agent that ends leaves its rules"
    );
    let (well, said) = cleanup(&bed);
    assert!(well && said.contains("this node is clean"), "{said}");
    assert!(bed.reaches("stranger", web, 5000), "no program is left");
    let folder = bed.net.directory();
    let left = |name: &str| fs::read_dir(folder.join(name)).map_or(0, Iterator::count);
    assert_eq!((left("bpf0"), left("state0"), left("bin")), (0, 0, 0), "{said}");
    assert!(!bed.stack.agent_socket(0).exists());
    let [before, after] = [list, fs::read_to_string(&bed.chain.conflist).unwrap()]
        .map(|text| serde_json::from_str::<Value>(&text).unwrap());
    assert_eq!(before, after);

    let (well, said) = cleanup(&bed);
    assert!(well && said.contains("nothing of ours is on this node"), "{said}");
    // The node is as good as new.
    bed.start_agent(&[]);
    bed.wait_for("the agent has a state again", |bed| {
        bed.agent().is_some_and(|status| status.revision > 0)
    });
    bed.declare(Some(("shop", "late", "u-late")));
    bed.add("shop", "late", "u-late").unwrap();
    assert!(bed.endpoint("late").unwrap().enforced, "{}", bed.log());
    drop(server);
}
