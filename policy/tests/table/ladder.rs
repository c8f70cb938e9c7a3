//! The ladder that `explain` shows.

use bulkhead_policy::oracle::explain;
use expect_test::{Expect, expect};

use crate::{guard_name, probe, text::objects};

fn check(cluster: &str, connection: &str, expected: Expect) {
    let objects = objects(cluster);
    let holding = |_, guard: &bulkhead_policy::model::Guard| {
        connection
            .split_whitespace()
            .any(|word| format!("{guard:?}") == guard_name(word))
    };
    let ladders = explain(&objects, &probe(connection, &objects), &holding);
    expected.assert_eq(&ladders.iter().map(ToString::to_string).collect::<String>());
}

const CLUSTER: &str = "
    node n 192.168.0.1 range(10.0.0.0/16)
    pod shop/web app=web 10.0.0.1
    pod shop/db app=db 10.0.0.2
    admin 1 first ns(*)pods(app=db)
      ingress allow ns(*)pods(app=ops)
      ingress pass ns(*)pods(app=web)
      ingress deny any
    np shop/db app=db isolates(ingress) generation(3)
      ingress allow pods(app=web) : TCP/5432 if(lease2)
      ingress allow pods(app=web) : TCP/5433
      ingress allow pods(app=web) shadow
    np shop/other app=other isolates(ingress)
    baseline 0 last ns(*)pods(*)
      ingress deny any
";

#[test]
fn every_tier_policy_and_rule_and_the_one_that_decided() {
    check(
        CLUSTER,
        "shop/web -> shop/db TCP/5432 lease2",
        expect![[r"
        egress of shop/web: allowed by builtin/default-allow
          admin tier: no policy has a say
          networkpolicy tier: no policy has a say
          baseline tier: no policy has a say
        ingress of shop/db: allowed by NetworkPolicy/shop/db@3 ingress[0]
          admin tier
            ClusterNetworkPolicy/first
              allow ClusterNetworkPolicy/first ingress[0]: does not match
              pass ClusterNetworkPolicy/first ingress[1]: matches
              deny ClusterNetworkPolicy/first ingress[2]: matches
          networkpolicy tier
            NetworkPolicy/shop/db
              allow NetworkPolicy/shop/db@3 ingress[0]: matches, the lease of profile lease2 for the peer's images runs  ◄ decided
              allow NetworkPolicy/shop/db@3 ingress[1]: does not match
              allow NetworkPolicy/shop/db@3 ingress[2] (shadow): matches
          baseline tier
            ClusterNetworkPolicy/last
              deny ClusterNetworkPolicy/last ingress[0]: matches
    "]],
    );
}

#[test]
fn a_guard_that_does_not_hold_and_the_default_deny_that_decided() {
    check(
        CLUSTER,
        "shop/web -> shop/db TCP/5432",
        expect![[r"
        egress of shop/web: allowed by builtin/default-allow
          admin tier: no policy has a say
          networkpolicy tier: no policy has a say
          baseline tier: no policy has a say
        ingress of shop/db: denied by NetworkPolicy/shop/db@3 ingress default-deny
          admin tier
            ClusterNetworkPolicy/first
              allow ClusterNetworkPolicy/first ingress[0]: does not match
              pass ClusterNetworkPolicy/first ingress[1]: matches
              deny ClusterNetworkPolicy/first ingress[2]: matches
          networkpolicy tier
            NetworkPolicy/shop/db  ◄ its default-deny decided
              allow NetworkPolicy/shop/db@3 ingress[0]: matches, the lease of profile lease2 for the peer's images does not run
              allow NetworkPolicy/shop/db@3 ingress[1]: does not match
              allow NetworkPolicy/shop/db@3 ingress[2] (shadow): matches
          baseline tier
            ClusterNetworkPolicy/last
              deny ClusterNetworkPolicy/last ingress[0]: matches
    "]],
    );
}

#[test]
fn an_unknown_pod_matches_perhaps() {
    check(
        CLUSTER,
        "10.0.0.77 -> shop/db TCP/1",
        expect![[r"
        ingress of shop/db: denied by ClusterNetworkPolicy/first ingress[2]
          admin tier
            ClusterNetworkPolicy/first
              allow ClusterNetworkPolicy/first ingress[0]: matches some pods this address may be
              pass ClusterNetworkPolicy/first ingress[1]: matches some pods this address may be
              deny ClusterNetworkPolicy/first ingress[2]: matches  ◄ decided
          networkpolicy tier
            NetworkPolicy/shop/db
              allow NetworkPolicy/shop/db@3 ingress[0]: does not match, the lease of profile lease2 for the peer's images does not run
              allow NetworkPolicy/shop/db@3 ingress[1]: does not match
              allow NetworkPolicy/shop/db@3 ingress[2] (shadow): matches some pods this address may be
          baseline tier
            ClusterNetworkPolicy/last
              deny ClusterNetworkPolicy/last ingress[0]: matches
    "]],
    );
}

#[test]
fn a_pod_to_itself_has_nothing_to_explain() {
    check(CLUSTER, "shop/db -> shop/db TCP/1", expect![[r""]]);
}
