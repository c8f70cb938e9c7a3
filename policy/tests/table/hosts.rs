//! What policies of nodes mean, and what is said of them.

use std::collections::BTreeSet;

use bulkhead_policy::{compiler::Compiler, failsafe::Failsafe, model::WorkloadKey};
use expect_test::expect;

use crate::{check, text::objects};

const CLUSTER: &str = "
    namespace shop team=web
    node n1 role=edge 192.168.0.1 fd01::1 range(10.0.0.0/16)
    node n2 role=core 192.168.0.2 range(10.1.0.0/16)
    pod shop/web app=web 10.0.0.1 @n1
    pod shop/far app=far 10.1.0.1 @n2
    service shop/web TCP/80 nodeport(30080)
    host edge role=edge isolates(ingress,egress)
      ingress allow ns(team=web)pods(*) : TCP/9100
      egress allow cidr(8.8.0.0/16) : TCP/8080
";

#[test]
fn a_node_that_a_policy_selects_is_judged_where_packets_enter_and_leave_it() {
    check(
        CLUSTER,
        "8.8.8.8 -> 192.168.0.1 TCP/9100
         8.8.8.8 -> fd01::1 TCP/22
         8.8.8.8 -> 192.168.0.1 TCP/30080
         8.8.8.8 -> 192.168.0.1 UDP/30080
         shop/far -> 192.168.0.1 TCP/9100
         shop/far -> 192.168.0.1 TCP/9101
         shop/web -> 192.168.0.1 TCP/9101
         192.168.0.1 -> 8.8.8.8 TCP/8080
         192.168.0.1 -> 8.8.8.8 TCP/8081
         192.168.0.1 -> 9.9.9.9 UDP/53
         192.168.0.1 -> 8.8.8.8 TCP/30080
         192.168.0.1 -> 192.168.0.1 TCP/1
         8.8.8.8 -> 192.168.0.2 TCP/9100",
        expect![[r"
            8.8.8.8 -> 192.168.0.1 TCP/9100: denied, egress none, ingress denied by ClusterSegmentPolicy/edge ingress default-deny
            8.8.8.8 -> fd01::1 TCP/22: allowed, egress none, ingress allowed by builtin/failsafe
            8.8.8.8 -> 192.168.0.1 TCP/30080: allowed, egress none, ingress allowed by builtin/node-port
            8.8.8.8 -> 192.168.0.1 UDP/30080: denied, egress none, ingress denied by ClusterSegmentPolicy/edge ingress default-deny
            shop/far -> 192.168.0.1 TCP/9100: allowed, egress allowed by builtin/default-allow, ingress allowed by ClusterSegmentPolicy/edge ingress[0]
            shop/far -> 192.168.0.1 TCP/9101: denied, egress allowed by builtin/default-allow, ingress denied by ClusterSegmentPolicy/edge ingress default-deny
            shop/web -> 192.168.0.1 TCP/9101: allowed, egress allowed by builtin/default-allow, ingress none
            192.168.0.1 -> 8.8.8.8 TCP/8080: allowed, egress allowed by ClusterSegmentPolicy/edge egress[0], ingress none
            192.168.0.1 -> 8.8.8.8 TCP/8081: denied, egress denied by ClusterSegmentPolicy/edge egress default-deny, ingress none
            192.168.0.1 -> 9.9.9.9 UDP/53: allowed, egress allowed by builtin/failsafe, ingress none
            192.168.0.1 -> 8.8.8.8 TCP/30080: denied, egress denied by ClusterSegmentPolicy/edge egress default-deny, ingress none
            192.168.0.1 -> 192.168.0.1 TCP/1: allowed, egress none, ingress none
            8.8.8.8 -> 192.168.0.2 TCP/9100: allowed, egress none, ingress none
        "]],
    );
}

/// Nobody is an endpoint for a policy that selects no node; the last one that goes leaves nothing.
#[test]
fn nodes_come_and_go_as_endpoints() {
    let all = objects(CLUSTER);
    let mut compiler = Compiler::from_scratch(all.clone());
    let node = |name: &str| WorkloadKey::of_node(name);
    assert!(compiler.state().endpoints.contains_key(&node("n1")));
    assert!(!compiler.state().endpoints.contains_key(&node("n2")));
    assert_eq!(compiler.state().for_node("n1").endpoints.len(), 2);
    assert_eq!(compiler.state().for_node("n2").endpoints.len(), 1);
    let policy = all.last().unwrap().key();
    compiler.apply(&[bulkhead_policy::model::Event::Delete(policy)]);
    assert!(!compiler.state().endpoints.contains_key(&node("n1")));
}

fn findings(text: &str, failsafe: Failsafe) -> String {
    let mut compiler = Compiler::default().with_failsafe(failsafe);
    let events = objects(text).into_iter().map(bulkhead_policy::model::Event::Upsert);
    compiler.apply(&events.collect::<Vec<_>>());
    let found: Vec<String> = compiler.diagnostics().iter().map(ToString::to_string).collect();
    found.join("\n")
}

#[test]
fn what_a_policy_of_nodes_cannot_close_is_said() {
    let text = "
        node n1 role=edge 192.168.0.1
        host edge role=edge isolates(ingress)
          ingress deny any : TCP/20-30
          ingress deny any : TCP/8080
        host nobody role=none isolates()";
    expect![[r"
        warning: ClusterSegmentPolicy edge: spec.ingress: isolates nodes, and tcp:22, tcp:2379-2380, tcp:6443, tcp:10250, udp:68 stay open to everybody all the same (builtin/failsafe)
        warning: ClusterSegmentPolicy edge: spec.ingress[0]: denies tcp:22, which stays open all the same (builtin/failsafe)
        warning: ClusterSegmentPolicy nobody: spec.subject.nodeSelector: selects no node, so nothing is enforced for it; check the selector against the labels of the nodes"]].assert_eq(&findings(text, Failsafe::default()));
}

#[test]
fn an_emptied_failsafe_set_is_an_error_unless_it_is_meant() {
    let text = "
        node n1 role=edge 192.168.0.1
        host edge role=edge isolates(ingress)";
    let mut failsafe = Failsafe {
        inbound: BTreeSet::new(),
        ..Failsafe::default()
    };
    expect!["error: ClusterSegmentPolicy edge: spec.subject.nodeSelector: selects nodes while the failsafe set for ingress is empty, so a mistake can cut a node off for good; give the controller a set, or --failsafe-accept-risk"].assert_eq(&findings(text, failsafe.clone()));
    failsafe.risk_accepted = true;
    assert_eq!(findings(text, failsafe), "");
}
