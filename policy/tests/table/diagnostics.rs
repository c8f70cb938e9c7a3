//! What users are told about what they wrote.

use bulkhead_policy::{compiler::Compiler, model::Event};
use expect_test::{Expect, expect};

use crate::text::objects;

/// All findings, which must be those of the step that brought everything as well.
fn check(text: &str, expected: Expect) {
    let mut compiler = Compiler::default();
    let events: Vec<Event> = objects(text).into_iter().map(Event::Upsert).collect();
    let changes = compiler.apply(&events);
    let found: Vec<String> = compiler.diagnostics().iter().map(ToString::to_string).collect();
    assert_eq!(changes.diagnostics, compiler.diagnostics());
    expected.assert_eq(&found.join("\n"));
}

#[test]
fn a_sound_cluster_has_no_findings() {
    check(
        "namespace a team=x
         pod a/one app=web 10.0.0.1 http:TCP/80
         pod a/dns app=dns 10.0.0.2
         np a/p app=web isolates(ingress,egress)
           ingress allow ns(team=x) cidr(10.0.0.0/8,-10.1.0.0/16) : http
           egress allow pods(app=dns) : UDP/53 TCP/53",
        expect![[r""]],
    );
}

#[test]
fn a_policy_that_selects_nothing() {
    check(
        "pod a/one app=web 10.0.0.1
         np a/p app=wbe isolates(ingress)
           ingress allow any",
        expect![
            "warning: NetworkPolicy a/p: spec: selects no pod, so nothing is enforced for it; check the selector against the labels of the pods and namespaces"
        ],
    );
}

#[test]
fn namespaces_nobody_has() {
    check(
        "namespace a team=x
         pod a/one app=web 10.0.0.1
         np a/p app=web isolates(ingress)
           ingress allow ns(kubernetes.io/metadata.name=b)
           ingress allow ns(team=y|z)
           ingress allow ns(owner)
           ingress allow ns(team!=q)",
        expect![[r"
            warning: NetworkPolicy a/p: spec.ingress[0]: its namespaceSelector matches no namespace, because none is named b; until there is one the peer matches nobody; check the spelling
            warning: NetworkPolicy a/p: spec.ingress[1]: its namespaceSelector matches no namespace, because none has the label team = y or z; until there is one the peer matches nobody; check the spelling
            warning: NetworkPolicy a/p: spec.ingress[2]: its namespaceSelector matches no namespace, because none has the label owner; until there is one the peer matches nobody; check the spelling"]],
    );
}

#[test]
fn a_named_port_nobody_has() {
    check(
        "pod a/one app=web 10.0.0.1 http:TCP/80
         np a/p app=web isolates(ingress,egress)
           ingress allow any : htpp
           ingress allow any : UDP/http
           egress allow pods(app=web) : metrics UDP/53",
        expect![[r#"
            warning: NetworkPolicy a/p: spec.egress[0]: none of the pods that its peers match has a container port named "metrics", so that port matches nothing; check the name against spec.containers[].ports of the pods, or write the number
            warning: NetworkPolicy a/p: spec.ingress[0]: none of the selected pods has a container port named "htpp", so that port matches nothing; check the name against spec.containers[].ports of the pods, or write the number
            warning: NetworkPolicy a/p: spec.ingress[1]: none of the selected pods has a container port named "http" for UDP, so that port matches nothing; check the name against spec.containers[].ports of the pods, or write the number"#]],
    );
}

#[test]
fn excepts_that_do_not_say_what_was_meant() {
    check(
        "pod a/one app=web 10.0.0.1
         np a/p app=web isolates(ingress)
           ingress allow cidr(10.0.0.0/8,-11.0.0.0/16)
           ingress allow cidr(10.0.0.0/8,-10.0.0.0/7)
           ingress allow cidr(10.0.0.0/8,-10.1.0.0/16,-10.1.1.0/24)
           ingress allow cidr(10.0.0.0/8,-fd00::/16)",
        expect![[r"
            warning: NetworkPolicy a/p: spec.ingress[0]: its except 11.0.0.0/16 is not inside 10.0.0.0/8 and takes nothing away; correct one of the two
            warning: NetworkPolicy a/p: spec.ingress[1]: its except 10.0.0.0/7 covers all of 10.0.0.0/8, so the peer matches nothing; remove the peer or shrink the except
            warning: NetworkPolicy a/p: spec.ingress[2]: its except 10.1.1.0/24 lies inside its except 10.1.0.0/16 and adds nothing; remove it
            warning: NetworkPolicy a/p: spec.ingress[3]: its except fd00::/16 is not inside 10.0.0.0/8 and takes nothing away; correct one of the two"]],
    );
}

#[test]
fn egress_without_name_resolution() {
    check(
        "pod a/one app=web 10.0.0.1
         pod a/two app=db 10.0.0.2
         np a/p app=web isolates(egress)
           egress allow pods(app=db) : TCP/5432
         np a/nothing app=db isolates(egress)",
        expect![
            "warning: NetworkPolicy a/p: spec.egress: isolates egress, and no policy that selects pod a/one allows port 53, so it cannot resolve names; allow UDP and TCP 53 to the cluster's DNS pods, unless it needs no names"
        ],
    );
}

#[test]
fn equal_priorities_where_both_policies_match() {
    check(
        "pod a/one app=web 10.0.0.1
         pod a/two app=db 10.0.0.2
         admin 7 x ns(*)pods(app=web)
           ingress deny any
         admin 7 y ns(*)pods(*)
           ingress deny any
         admin 7 z ns(*)pods(app=db)
           egress deny cidr(10.0.0.0/8)
         baseline 7 w ns(*)pods(*)
           ingress deny any",
        expect![[r"
            warning: ClusterNetworkPolicy x: spec.priority: is 7, as that of ClusterNetworkPolicy y, and both select pod a/one; the one whose name comes first in the alphabet goes first; give them different priorities
            warning: ClusterNetworkPolicy y: spec.priority: is 7, as that of ClusterNetworkPolicy x, and both select pod a/one; the one whose name comes first in the alphabet goes first; give them different priorities"]],
    );
}

#[test]
fn addresses_that_several_claim() {
    check(
        "node n 10.0.0.2
         pod a/one 10.0.0.1
         pod b/two 10.0.0.1 10.0.0.2
         pod a/three 10.0.0.3",
        expect![[r"
            error: Pod a/one: status.podIPs: Pod a/one and Pod b/two claim the address 10.0.0.1; until one of them gives it up, it is treated as an unknown pod, which may do only what every pod may; delete the stale object or fix the address ranges
            error: Pod b/two: status.podIPs: Pod b/two and Node n claim the address 10.0.0.2; until one of them gives it up, it is treated as an unknown pod, which may do only what every pod may; delete the stale object or fix the address ranges"]],
    );
}

#[test]
fn actions_a_tier_or_a_guard_does_not_allow() {
    check(
        "pod a/one app=web 10.0.0.1
         np a/p app=web isolates(ingress)
           ingress pass any
         admin 1 q ns(*)pods(*)
           ingress pass any if(until1)",
        expect![[r"
            error: ClusterNetworkPolicy q: spec.ingress[0]: is a Pass rule with a condition; only what both the rules after it and the next tier allow is allowed; remove the condition
            error: NetworkPolicy a/p: spec.ingress[0]: passes in the NetworkPolicy tier, which has no next rule; the rule is ignored; remove it"]],
    );
}
