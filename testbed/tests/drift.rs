//! Drift: somebody's hand changes what the kernel holds. Traffic goes wrong, the agent finds it, says so and puts it right.
//!
//! The agent is stopped (SIGSTOP) while a fault is made and its effect is seen, so that it cannot be faster than the look; what is
//! in the kernel works without it. `BULKHEAD_DRIFT_INTERVAL_MS=0` in the environment switches the mechanism off: every test
//! of a fault must then fail.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

use bulkhead_testbed::{
    PodPlan, Running, Stack, Testnet, manifests,
    pinned::{self, PinnedMap},
    process::until,
    sys,
};
use bulkhead_verdict::layout::LAYOUT;

use common::{SOON, reaches, serve_everywhere, shop, skipped};

/// Much longer than an answer takes.
const WAIT: Duration = Duration::from_millis(700);
const HEALTH: &str = "127.0.0.1:9464";
const WEB: u16 = 8080;
/// Where a connection is kept open.
const LIVE: u16 = 7000;

const ONLY_CLIENT: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: only-client, namespace: shop }
spec:
  podSelector: { matchLabels: { app: web } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: client } } }] }]
";

/// The shop with a policy; everything that is asked is on the first node.
struct Bed {
    stack: Stack,
    _servers: Vec<Running>,
    net: Testnet,
}

impl Bed {
    fn new() -> Self {
        let net = Testnet::create(shop()).unwrap();
        let servers = serve_everywhere(&net);
        let mut stack = Stack::prepare(&net).unwrap();
        stack.start_controller().unwrap();
        for node in 0..net.nodes.len() {
            stack.start_agent(&net, node, &["--health-listen", HEALTH]).unwrap();
        }
        stack.apply("only-client.yaml", ONLY_CLIENT).unwrap();
        let bed = Self {
            stack,
            _servers: servers,
            net,
        };
        bed.right("at the beginning");
        bed
    }

    fn folder(&self) -> PathBuf {
        self.stack.bpffs(0).join(format!("v{}", LAYOUT.replace('.', "-")))
    }

    fn map(&self, name: &str) -> PinnedMap {
        PinnedMap::open(&self.folder().join(name)).unwrap()
    }

    /// Whether a pod reaches `web`, over both families alike.
    fn passes(&self, from: &str, expected: bool) -> bool {
        let reached = [false, true].map(|ipv6| {
            let to = self.net.pod("web").address(ipv6);
            reaches(&self.net, from, to, "TCP", WEB, expected)
        });
        assert_eq!(reached[0], reached[1], "{from}: the families differ");
        reached[0]
    }

    /// The policy is in force.
    fn right(&self, when: &str) {
        assert!(self.passes("client", true), "{when}: client → web is denied");
        assert!(!self.passes("prometheus", false), "{when}: prometheus → web passes");
    }

    /// What a metric of the first node's agent says, over all its labels that contain a text.
    fn metric(&self, name: &str, labels: &str) -> u64 {
        self.metric_of(0, name, labels)
    }

    fn metric_of(&self, node: usize, name: &str, labels: &str) -> u64 {
        let asking = || {
            let mut stream = TcpStream::connect(HEALTH)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        };
        let text: String = self.net.nodes[node].netns.inside(asking).unwrap().unwrap();
        let lines = text.lines().filter(|line| {
            let end = line.strip_prefix(name);
            end.is_some_and(|end| end.starts_with([' ', '{'])) && line.contains(labels)
        });
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// Waits until the agent has looked at everything once more.
    fn another_round(&self) {
        let rounds = || self.metric("bulkhead_agent_drift_rounds_total", "");
        // A round may be under way.
        let until_then = rounds() + 2;
        until(SOON, || (rounds() >= until_then).then_some(())).unwrap();
    }

    fn signal(&mut self, signal: i32) {
        let pid = self.stack.agent_process(0).unwrap().pid();
        sys::signal(pid, signal).unwrap();
    }

    fn log(&mut self) -> String {
        fs::read_to_string(self.stack.agent_process(0).unwrap().log()).unwrap()
    }

    /// Makes a fault while the agent cannot look, sees that it matters, and waits until it is found and put right.
    fn fault(&mut self, name: &str, map: &str, make: impl FnOnce(&Self), wrong: impl FnOnce(&Self)) {
        let labels = format!("map=\"{map}\"");
        let found = self.metric("bulkhead_agent_drift_found_total", &labels);
        self.signal(libc::SIGSTOP);
        make(self);
        wrong(self);
        self.signal(libc::SIGCONT);
        let noticed = until(SOON, || {
            let now = self.metric("bulkhead_agent_drift_found_total", &labels);
            let all = ["found", "repaired"].map(|name| self.metric(&format!("bulkhead_agent_drift_{name}_total"), ""));
            (now > found && all[0] == all[1]).then_some(())
        });
        assert!(noticed.is_some(), "{name}: not found after {SOON:?}");
        self.right(&format!("{name}: after the repair"));
        self.another_round();
        let (found, repaired) = (
            self.metric("bulkhead_agent_drift_found_total", ""),
            self.metric("bulkhead_agent_drift_repaired_total", ""),
        );
        assert_eq!(found, repaired, "{name}: everything that was found is put right");
        self.another_round();
        let again = self.metric("bulkhead_agent_drift_found_total", "");
        assert_eq!(again, found, "{name}: nothing more is found behind the repair");
        assert!(self.log().contains("DRIFT"), "{name}: the log says it");
        println!("{name}: found and put right");
    }

    /// Keys of ADDRESSES of a pod.
    fn keys_of(&self, pod: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let own = [false, true].map(|ipv6| match self.net.pod(pod).address(ipv6) {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        });
        let elements = self.map("BK_ADDRESS").elements().unwrap().into_iter();
        let keys: Vec<_> = elements
            .filter(|(key, _)| own.iter().any(|own| key.starts_with(own)))
            .collect();
        assert_eq!(keys.len(), 2, "{pod} has an address of each family");
        keys
    }
}

/// Everybody passes.
fn open(bed: &Bed) {
    assert!(
        bed.passes("prometheus", true),
        "the fault matters: prometheus → web passes"
    );
}

/// The one who may does not pass.
fn closed(bed: &Bed) {
    assert!(
        !bed.passes("client", false),
        "the fault matters: client → web is denied"
    );
}

/// The action of every denying alternative becomes `Allow`: one byte each.
fn allow_all(bed: &Bed) {
    let map = bed.map("BK_ALT");
    for (key, mut value) in map.elements().unwrap() {
        if value[12] & 3 == 2 {
            value[12] = 1;
            map.set(&key, &value).unwrap();
        }
    }
}

#[test]
fn a_flipped_byte_is_found_and_put_right() {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    bed.fault("an alternative's action", "ALTERNATIVES", allow_all, open);
    let other_identity = |bed: &Bed| {
        let map = bed.map("BK_ADDRESS");
        let other = bed.keys_of("prometheus")[0].1.clone();
        for (key, mut value) in bed.keys_of("client") {
            value[..4].copy_from_slice(&other[..4]);
            map.set(&key, &value).unwrap();
        }
    };
    bed.fault("an address's identity", "ADDRESSES", other_identity, closed);
    let not_enforced = |bed: &Bed| {
        let map = bed.map("BK_CONFIG");
        for (key, mut value) in map.elements().unwrap() {
            // The flags; without the first nothing is enforced.
            if value[20] & 1 == 1 {
                value[20] &= !1;
                map.set(&key, &value).unwrap();
            }
        }
    };
    bed.fault("an endpoint's flags", "CONFIG", not_enforced, open);
    let no_ranges = |bed: &Bed| {
        let map = bed.map("BK_RANGE");
        for (key, mut value) in map.elements().unwrap() {
            if value.iter().any(|byte| *byte != 0) {
                // Where the alternatives begin: one that is never written.
                value[8..12].copy_from_slice(&0_u32.to_ne_bytes());
                map.set(&key, &value).unwrap();
            }
        }
    };
    bed.fault("a range's alternatives", "RANGES", no_ranges, closed);
}

#[test]
fn what_is_missing_or_surplus_is_found_and_put_right() {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    let no_rules = |bed: &Bed| {
        let map = bed.map("BK_RULE");
        for (key, _) in map.elements().unwrap() {
            map.remove(&key).unwrap();
        }
    };
    bed.fault("deleted entries of rulesets", "RULES", no_rules, closed);
    let no_device = |bed: &Bed| {
        let map = bed.map("BK_DEVICE");
        for (key, _) in map.elements().unwrap() {
            map.remove(&key).unwrap();
        }
    };
    bed.fault("deleted devices", "DEVICES", no_device, closed);
    // Whatever the client may, prometheus may as well.
    let more_rules = |bed: &Bed| {
        let map = bed.map("BK_RULE");
        let [client, prometheus] = ["client", "prometheus"].map(|pod| bed.keys_of(pod)[0].1[..4].to_vec());
        let rules = map.elements().unwrap();
        for (key, value) in rules.iter().filter(|(key, _)| key[4..] == client[..]) {
            let new = [&key[..4], &prometheus[..]].concat();
            assert!(!rules.iter().any(|(key, _)| *key == new), "it is surplus");
            map.set(&new, value).unwrap();
        }
    };
    bed.fault("surplus entries of rulesets", "RULES", more_rules, open);
    let other_epoch = |bed: &Bed| bed.map("BK_EPOCH").set(&[0; 4], &[9; 4]).unwrap();
    bed.fault("the epoch", "EPOCH", other_epoch, |_| {});
}

/// A connection that a wrong entry let live is judged again, and cut.
#[test]
fn a_flow_of_a_wrong_entry_ends_with_it() {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    let address = SocketAddr::new(bed.net.pod("web").address(false), LIVE);
    let listening = || TcpListener::bind(address);
    let listener = bed.net.pod("web").netns.inside(listening).unwrap().unwrap();
    let mut ends = None;
    let mut connect = |bed: &Bed| {
        let connecting = || TcpStream::connect_timeout(&address, SOON);
        let client = bed.net.pod("prometheus").netns.inside(connecting).unwrap().unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(WAIT)).unwrap();
        says(&client, &server).unwrap();
        ends = Some((client, server));
    };
    bed.fault("an alternative's action", "ALTERNATIVES", allow_all, &mut connect);
    let (client, server) = ends.unwrap();
    assert!(says(&client, &server).is_err(), "the connection is cut");
}

fn says(mut from: &TcpStream, mut to: &TcpStream) -> std::io::Result<()> {
    from.write_all(b"word")?;
    to.read_exact(&mut [0; 4])
}

#[test]
fn a_program_that_was_taken_off_comes_back() {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    let links = |bed: &Bed| -> Vec<PathBuf> {
        let folder = fs::read_dir(bed.folder().join("links")).unwrap();
        folder.map(|entry| entry.unwrap().path()).collect()
    };
    let detach = |bed: &Bed| {
        for link in links(bed) {
            pinned::detach(&link).unwrap();
        }
    };
    bed.fault("detached links", "programs", detach, open);
    let forget = |bed: &Bed| {
        for link in links(bed) {
            fs::remove_file(link).unwrap();
        }
    };
    bed.fault("removed pins of links", "programs", forget, open);
}

/// Policies and pods come and go, and nothing of it is taken for drift; what is sampled comes out as the policies say.
#[test]
fn what_changes_rightly_is_no_drift() {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    for turn in 0..12_u8 {
        let app = ["client", "api", "stock"][usize::from(turn % 3)];
        let policy = ONLY_CLIENT
            .replace("only-client", "churn")
            .replace("app: client", &format!("app: {app}"))
            .replace(
                "from:",
                &format!("ports: [{{ port: {} }}], from:", 8000 + u16::from(turn)),
            );
        bed.stack.apply("churn.yaml", &policy).unwrap();
        if turn % 4 == 1 {
            let name = format!("extra{turn}");
            bed.net.add_pod(PodPlan::new("shop", &name, "app=client")).unwrap();
            let cluster = manifests::cluster(&bed.net).unwrap();
            manifests::write(&bed.stack.manifests(), "cluster.yaml", &cluster).unwrap();
            bed.stack.settle().unwrap();
        }
        if turn % 3 == 2 {
            bed.stack.remove("churn.yaml").unwrap();
        }
    }
    for _ in 0..20 {
        bed.another_round();
    }
    for node in 0..bed.net.nodes.len() {
        let metric = |name: &str, labels: &str| bed.metric_of(node, &format!("bulkhead_agent_drift_{name}"), labels);
        let numbers = ["rounds_total", "compared_total", "slice_seconds_count"].map(|name| metric(name, ""));
        let verdicts =
            ["same", "skipped", "different"].map(|result| metric("verdicts_total", &format!("result=\"{result}\"")));
        println!("node {node}: rounds, elements, slices {numbers:?}; verdicts same, skipped, different {verdicts:?}");
        assert_eq!(metric("found_total", ""), 0, "node {node}: a false alarm");
        assert!(verdicts[0] > 0 && verdicts[2] == 0, "node {node}: {verdicts:?}");
    }
}
