//! Leases on real packets: what an image's lease allows ends with it, to the millisecond and with nobody alive to end it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bulkhead_policy::lease::Deadline;
use bulkhead_proto::v1::Flow;
use bulkhead_testbed::{Plan, PodPlan, Stack, Testnet, manifests, process::until, stack::errors};

use common::{SOON, skipped};

const PORT: u16 = 5432;
/// Much longer than an answer takes.
const WAIT: Duration = Duration::from_millis(300);
const POLICY: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentPolicy
metadata: { name: trusted, namespace: shop }
spec:
  subject: { podSelector: { matchLabels: { app: db } } }
  ingress:
    - name: only-production
      from: [{ podSelector: { matchLabels: { app: web } } }]
      ports: [{ port: 5432 }]
      trust: { profile: production }
";

/// A cluster whose pods claim what the test says.
struct Cluster {
    net: Testnet,
    stack: Stack,
}

impl Cluster {
    /// `web` and `stranger` are on one node, `db` and `own` on the other; nobody claims anything.
    fn start() -> Self {
        let mut db = PodPlan::new("shop", "db", "app=db");
        let mut own = PodPlan::new("shop", "own", "app=own");
        for pod in [&mut db, &mut own] {
            pod.node = 1;
            pod.subnet = 2;
        }
        let net = Testnet::create(Plan {
            namespaces: [("shop".to_owned(), [].into())].into(),
            nodes: vec!["node-1".to_owned(), "node-2".to_owned()],
            pods: vec![
                PodPlan::new("shop", "web", "app=web"),
                PodPlan::new("shop", "stranger", "app=web"),
                db,
                own,
            ],
        })
        .unwrap();
        let mut stack = Stack::start(&net).unwrap();
        stack.apply("trusted.yaml", POLICY).unwrap();
        Self { net, stack }
    }

    /// Writes the annotation of a pod (empty = none), and waits until that is in force.
    fn claim(&self, pod: &str, claims: &str) {
        let before = self.stack.controller().unwrap().controller_status().unwrap().revision;
        self.annotate(pod, claims);
        let newer = |revision: u64| {
            if revision > before {
                Ok(())
            } else {
                Err("no newer revision".to_owned())
            }
        };
        self.stack.wait_for(|status| newer(status.revision)).unwrap();
        self.stack.settle().unwrap();
    }

    fn annotate(&self, pod: &str, claims: &str) {
        let netns = format!("bulkhead.dev/netns: {}", self.net.pod(pod).netns.path().display());
        let text = manifests::cluster(&self.net).unwrap();
        assert!(text.contains(&netns), "{text}");
        let annotated = format!("{netns}\n    trust.bulkhead.dev/claims: '{claims}'");
        let text = if claims.is_empty() {
            text
        } else {
            text.replace(&netns, &annotated)
        };
        manifests::write(&self.stack.manifests(), "cluster.yaml", &text).unwrap();
    }

    fn connect(&self, from: &str, to: &str, ipv6: bool) -> io::Result<Live> {
        let (client, server) = (self.net.pod(from), self.net.pod(to));
        let address = SocketAddr::new(server.address(ipv6), PORT);
        let listener = server.netns.inside(|| TcpListener::bind(address)).unwrap().unwrap();
        let open = || TcpStream::connect_timeout(&address, WAIT);
        let client = client.netns.inside(open).unwrap()?;
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(WAIT)).unwrap();
        Ok(Live { client, server })
    }

    /// The record of a packet that a live connection lost because it was revoked, on the server's node.
    fn cut(&self) -> Option<Flow> {
        until(SOON, || {
            let flows = self.stack.agent(1).ok()?.flows(Vec::new()).ok()?;
            flows.into_iter().find(|flow| flow.reason == "revoked")
        })
    }
}

struct Live {
    client: TcpStream,
    server: TcpStream,
}

impl Live {
    /// True when a word of one end is heard at the other.
    fn says(&self) -> bool {
        let said = (&self.client).write_all(b"word");
        said.and_then(|()| (&self.server).read_exact(&mut [0; 4])).is_ok()
    }
}

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// So many milliseconds from now, to the millisecond.
fn in_millis(millis: u64) -> Deadline {
    Deadline((now() / 1_000_000 + millis) * 1_000_000)
}

#[test]
fn a_lease_ends_by_itself_with_agents_and_controller_dead() {
    if skipped() {
        return;
    }
    let mut cluster = Cluster::start();
    let deadline = in_millis(8_000);
    cluster.claim("web", &format!("production={deadline}"));
    assert!(
        cluster.connect("stranger", "db", false).is_err(),
        "who claims nothing is allowed"
    );
    let lives = [false, true].map(|ipv6| cluster.connect("web", "db", ipv6).unwrap());
    assert!(lives.iter().all(Live::says));
    for node in 0..2 {
        cluster.stack.kill_agent(node).unwrap();
    }
    // Dropping the process kills it with SIGKILL.
    cluster.stack.stop_controller();
    assert!(
        now() + 1_000_000_000 < deadline.0,
        "the machine was too slow for this test"
    );
    let ends = lives.map(|live| {
        thread::spawn(move || {
            let mut last = 0;
            loop {
                let sent = now();
                if !live.says() {
                    return (last, sent);
                }
                last = sent;
            }
        })
    });
    for (end, family) in ends.into_iter().zip(["IPv4", "IPv6"]) {
        let (last, failed) = end.join().unwrap();
        println!(
            "NOTE: {family}: the last word {} µs before the deadline, the first lost one {} µs after it",
            (i128::from(deadline.0) - i128::from(last)) / 1000,
            (i128::from(failed) - i128::from(deadline.0)) / 1000
        );
        assert!(last < deadline.0, "{family}: a word sent after the deadline was heard");
        // One tick of the coarse clock early at most, and what a loaded machine needs between the clock and the packet.
        assert!(
            failed + 100_000_000 > deadline.0,
            "{family}: cut long before the deadline"
        );
    }
    assert!(
        cluster.connect("web", "db", false).is_err(),
        "a new connection after the end"
    );

    // An agent that comes back finds it as it is, and records who ended the connection: the rule that decides without the lease.
    cluster.stack.start_controller().unwrap();
    for node in 0..2 {
        cluster.stack.start_agent(&cluster.net, node, &[]).unwrap();
    }
    cluster.stack.settle().unwrap();
    assert!(cluster.connect("web", "db", true).is_err(), "the end was forgotten");
    let record = cluster.cut().expect("no record of the cut");
    println!("NOTE: {record:?}");
}

#[test]
fn a_claim_that_is_taken_back_cuts_and_one_that_is_renewed_does_not() {
    if skipped() {
        return;
    }
    let mut cluster = Cluster::start();
    assert!(
        cluster.connect("web", "db", false).is_err(),
        "nobody has claimed anything yet"
    );
    cluster.claim("web", &format!("production={}", in_millis(5_000)));
    let live = cluster.connect("web", "db", false).unwrap();
    let first_end = in_millis(5_000);
    assert!(live.says());
    // Renewed, by a controller that then dies with both agents; one comes back.
    cluster.claim("web", &format!("production={}", in_millis(600_000)));
    cluster.stack.kill_agent(1).unwrap();
    cluster.stack.start_agent(&cluster.net, 1, &[]).unwrap();
    let mut words = 0;
    while now() < first_end.0 + 1_000_000_000 {
        assert!(live.says(), "word {words} was lost though the lease was renewed");
        words += 1;
    }
    assert!(words > 100, "{words} words in all this time");
    cluster.stack.settle().unwrap();

    cluster.claim("web", "");
    assert!(!live.says(), "the claim is gone, and the connection lives");
    assert!(cluster.connect("web", "db", true).is_err());
    let record = cluster.cut().expect("no record of the cut");
    println!("NOTE: {record:?}");

    // What cannot be read is no claim, and it is said.
    cluster.annotate("web", "production=soon");
    let said = until(SOON, || {
        let status = cluster.stack.controller().ok()?.controller_status().ok()?;
        let said = |text: &String| text.contains("Pod shop/web") && text.contains("\"soon\"");
        errors(&status).iter().any(said).then_some(())
    });
    assert!(said.is_some(), "nobody says that the claim cannot be read");
    cluster.stack.settle().unwrap();
    assert!(cluster.connect("web", "db", false).is_err());
}

#[test]
fn the_pods_own_images_are_asked_too() {
    if skipped() {
        return;
    }
    let mut cluster = Cluster::start();
    let policy = POLICY
        .replace("app: db", "app: own")
        .replace("name: trusted", "name: own-images")
        .replace("profile: production", "profile: signed, of: Subject");
    cluster.stack.apply("own.yaml", &policy).unwrap();
    assert!(cluster.connect("web", "own", false).is_err());
    cluster.claim("own", "signed=always, production=always");
    let live = cluster.connect("web", "own", false).unwrap();
    assert!(live.says());
    cluster.claim("own", "production=always");
    assert!(!live.says(), "the claim is gone, and the connection lives");
}
