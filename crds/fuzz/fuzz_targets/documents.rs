//! Any text: lowering never panics, gives the same twice, and gives nothing that the compiler may not be given.
#![no_main]

use bulkhead_policy::model::{Match, Object, Peer, PortMatch, Rule};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    // What the fuzzer finds on its own is seldom a policy: begin one for it, and let it write the end.
    for head in [
        "",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n",
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: a}\nspec:\n  ",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n",
    ] {
        let text = format!("{head}{text}");
        let (objects, diagnostics) = bulkhead_crds::lower(&text, "fuzz");
        assert_eq!(bulkhead_crds::lower(&text, "fuzz"), (objects.clone(), diagnostics));
        for object in &objects {
            if let Object::Policy(policy) = object {
                policy.ingress.iter().chain(&policy.egress).for_each(check);
            }
        }
    }
});

fn check(rule: &Rule) {
    if let Match::OneOf(ports) = &rule.ports {
        for port in ports {
            assert!(!matches!(port, PortMatch::Range { first, last, .. } if first > last), "{rule:?}");
        }
    }
    if let Match::OneOf(peers) = &rule.peers {
        for peer in peers {
            if let Peer::Network { cidr, except } = peer {
                assert_eq!(cidr.ip(), cidr.network(), "{rule:?}");
                assert!(except.iter().all(|hole| cidr.contains(hole.network())), "{rule:?}");
            }
        }
    }
}
