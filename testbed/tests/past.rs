//! Packets that go past our programs: a stranger's program hands them to the pod, or takes them from it, behind our backs. The agent
//! notices, and policies are not called enforced.
//!
//! `BULKHEAD_CANARY_INTERVAL_MS=0` in the environment switches the mechanism off: the tests of a stranger must then fail.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::net::IpAddr;

use bulkhead_testbed::{
    Running, Stack, Testnet,
    foreign::{Delivery, Foreign},
    namespace::Namespace,
    process::until,
    stack::bulkhead,
};

use common::{SOON, reaches, serve_everywhere, shop, skipped};

const DNS: u16 = 53;
/// The agents' option, unless the environment says otherwise.
const OFTEN: &str = "300";

/// `web` takes nothing from outside, `client` sends nothing there.
const NOTHING_OUTSIDE: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: nothing-in, namespace: shop }
spec:
  podSelector: { matchLabels: { app: web } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: {} }] }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: nothing-out, namespace: shop }
spec:
  podSelector: { matchLabels: { app: client } }
  policyTypes: [Egress]
  egress: [{ to: [{ podSelector: {} }] }]
";

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
        let interval = std::env::var("BULKHEAD_CANARY_INTERVAL_MS").unwrap_or_else(|_| OFTEN.to_owned());
        for node in 0..net.nodes.len() {
            let options = ["--canary-interval-ms", interval.as_str()];
            stack.start_agent(&net, node, &options).unwrap();
        }
        stack.apply("nothing-outside.yaml", NOTHING_OUTSIDE).unwrap();
        Self {
            stack,
            _servers: servers,
            net,
        }
    }

    /// What the controller says of a policy's packets that are not judged.
    fn bypassed(&self, policy: &str) -> String {
        let status = self.stack.controller().unwrap().controller_status().unwrap();
        let found = status
            .policies
            .into_iter()
            .find(|status| status.policy.as_ref().is_some_and(|found| found.name == policy));
        found.unwrap().bypassed
    }

    fn noticed(&self, policy: &str) -> String {
        let said = until(SOON, || Some(self.bypassed(policy)).filter(|said| !said.is_empty()));
        said.unwrap_or_else(|| panic!("{policy}: not noticed after {SOON:?}"))
    }

    fn forgotten(&self, policy: &str) {
        let over = until(SOON, || self.bypassed(policy).is_empty().then_some(()));
        assert!(over.is_some(), "{policy}: still said: {}", self.bypassed(policy));
    }

    /// Index of a device of the first node.
    fn index_of(&self, device: &str) -> u32 {
        let (index, _) = link(&self.net.nodes[0].netns, device);
        index
    }
}

/// Index and MAC address of a device.
fn link(netns: &Namespace, device: &str) -> (u32, [u8; 6]) {
    let text = netns.ip_output(&["-j", "link", "show", "dev", device]).unwrap();
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mac = found[0]["address"].as_str().unwrap().split(':');
    let mac: Vec<u8> = mac.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    (
        found[0]["ifindex"].as_u64().unwrap().try_into().unwrap(),
        mac.try_into().unwrap(),
    )
}

/// What people see says it too.
fn is_seen_in_status(bed: &Bed) {
    let output = bulkhead(&bed.stack, 0).unwrap().arg("status").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.contains("nothing-in")).unwrap();
    assert!(line.contains("BYPASSED"), "{text}");
}

#[test]
fn what_is_judged_is_not_taken_for_something_else() {
    if skipped() {
        return;
    }
    let bed = Bed::new();
    let web = bed.net.pod("web").address(false);
    for _ in 0..4 {
        assert!(reaches(&bed.net, "client", web, "TCP", 8080, true));
        assert!(!reaches(&bed.net, "outside", web, "UDP", DNS, false));
        assert!(!reaches(&bed.net, "client", Testnet::OUTSIDE[0], "UDP", DNS, false));
        for policy in ["nothing-in", "nothing-out"] {
            assert_eq!(bed.bypassed(policy), "", "{policy}");
        }
    }
}

#[test]
fn what_is_handed_to_a_pod_past_its_device_is_noticed() {
    if skipped() {
        return;
    }
    let bed = Bed::new();
    let web = bed.net.pod("web");
    let asks = |expected| reaches(&bed.net, "outside", web.v4.into(), "UDP", DNS, expected);
    assert!(!asks(false), "denied before");
    let (uplink, device) = (bed.index_of("eth0"), bed.index_of(&web.device));
    let put = || Foreign::redirect(uplink, web.v4, Delivery::Peer, device, web.mac);
    let stranger = bed.net.nodes[0].netns.inside(put).unwrap().unwrap();
    assert!(
        asks(true),
        "the stranger does not deliver, so there is nothing to notice"
    );
    let said = bed.noticed("nothing-in");
    assert!(
        said.contains("shop/web") && said.contains("bpf_redirect_peer"),
        "{said}"
    );
    is_seen_in_status(&bed);
    drop(stranger);
    assert!(!asks(false), "judged again");
    bed.forgotten("nothing-in");
}

#[test]
fn what_is_taken_off_a_device_before_us_is_noticed() {
    if skipped() {
        return;
    }
    let bed = Bed::new();
    let client = bed.net.pod("client");
    let asks = |expected| reaches(&bed.net, "client", Testnet::OUTSIDE[0], "UDP", DNS, expected);
    assert!(!asks(false), "denied before");
    let IpAddr::V4(outside) = Testnet::OUTSIDE[0] else {
        unreachable!()
    };
    let (uplink, device) = (bed.index_of("eth0"), bed.index_of(&client.device));
    let (_, mac) = link(&bed.net.outside, "eth0");
    let put = || Foreign::redirect(device, outside, Delivery::Sent, uplink, mac);
    let stranger = bed.net.nodes[0].netns.inside(put).unwrap().unwrap();
    // As many as nobody takes for an accident.
    for _ in 0..40 {
        assert!(
            asks(true),
            "the stranger does not deliver, so there is nothing to notice"
        );
    }
    let said = bed.noticed("nothing-out");
    assert!(
        said.contains("shop/client") && said.contains("before our program"),
        "{said}"
    );
    drop(stranger);
    assert!(!asks(false), "judged again");
    bed.forgotten("nothing-out");
}
