//! What policies mean.

use expect_test::expect;

use crate::check;

const SHOP: &str = "
    namespace shop team=web
    namespace ops team=ops
    node n1 role=edge 192.168.0.1 range(10.0.0.0/16)
    pod shop/web app=web 10.0.0.1 http:TCP/8080
    pod shop/db app=db 10.0.0.2 fd00::2 http:TCP/9090
    pod ops/probe app=probe 10.1.0.3
";

fn shop(policies: &str, connections: &str, expected: expect_test::Expect) {
    check(&format!("{SHOP}\n{policies}"), connections, expected);
}

#[test]
fn without_policies_everything_is_allowed_and_a_pod_reaches_itself() {
    shop(
        "",
        "shop/web -> shop/db TCP/5432
         shop/web -> 8.8.8.8 ICMP/2048
         shop/db -> shop/db TCP/1",
        expect![[r"
            shop/web -> shop/db TCP/5432: allowed, egress allowed by builtin/default-allow, ingress allowed by builtin/default-allow
            shop/web -> 8.8.8.8 ICMP/2048: allowed, egress allowed by builtin/default-allow, ingress none
            shop/db -> shop/db TCP/1: allowed, egress allowed by builtin/self, ingress allowed by builtin/self
        "]],
    );
}

#[test]
fn an_isolating_policy_denies_what_none_allows_and_is_named() {
    shop(
        "np shop/b app=db isolates(ingress) generation(7)
           ingress allow pods(app=web) : TCP/5432
         np shop/a app=db isolates(ingress)",
        "shop/web -> shop/db TCP/5432
         shop/web -> shop/db TCP/5433
         shop/web -> shop/db UDP/5432
         ops/probe -> shop/db TCP/5432
         192.168.0.1 -> shop/db TCP/5432",
        expect![[r"
            shop/web -> shop/db TCP/5432: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/b@7 ingress[0]
            shop/web -> shop/db TCP/5433: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/a ingress default-deny
            shop/web -> shop/db UDP/5432: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/a ingress default-deny
            ops/probe -> shop/db TCP/5432: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/a ingress default-deny
            192.168.0.1 -> shop/db TCP/5432: denied, egress none, ingress denied by NetworkPolicy/shop/a ingress default-deny
        "]],
    );
}

#[test]
fn empty_and_absent_lists_differ() {
    shop(
        "np shop/db app=db isolates(ingress)
           ingress allow nobody
           ingress allow any :
           ingress allow any : TCP/80",
        "shop/web -> shop/db TCP/80
         shop/web -> shop/db TCP/81",
        expect![[r"
            shop/web -> shop/db TCP/80: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[2]
            shop/web -> shop/db TCP/81: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
        "]],
    );
}

#[test]
fn an_admin_deny_beats_an_allow_below_and_a_pass_gives_way_to_it() {
    shop(
        "admin 5 let-web ns(team=web)pods(app=db)
           ingress pass ns(*)pods(app=web) : TCP/5432
         admin 5 no-entry ns(*)pods(app=db)
           ingress deny any
         np shop/db app=db isolates(ingress)
           ingress allow any",
        "shop/web -> shop/db TCP/5432
         shop/web -> shop/db TCP/80
         ops/probe -> shop/db TCP/5432",
        expect![[r"
            shop/web -> shop/db TCP/5432: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[0]
            shop/web -> shop/db TCP/80: denied, egress allowed by builtin/default-allow, ingress denied by ClusterNetworkPolicy/no-entry ingress[0]
            ops/probe -> shop/db TCP/5432: denied, egress allowed by builtin/default-allow, ingress denied by ClusterNetworkPolicy/no-entry ingress[0]
        "]],
    );
}

#[test]
fn the_baseline_applies_only_where_no_network_policy_isolates() {
    shop(
        "baseline 0 default ns(*)pods(*)
           ingress deny any
           egress pass cidr(10.0.0.0/8)
           egress deny any
         np shop/db app=db isolates(ingress)
           ingress allow any",
        "ops/probe -> shop/db TCP/1
         ops/probe -> shop/web TCP/1
         shop/web -> 8.8.8.8 TCP/1",
        expect![[r"
            ops/probe -> shop/db TCP/1: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[0]
            ops/probe -> shop/web TCP/1: denied, egress allowed by builtin/default-allow, ingress denied by ClusterNetworkPolicy/default ingress[0]
            shop/web -> 8.8.8.8 TCP/1: denied, egress denied by ClusterNetworkPolicy/default egress[1], ingress none
        "]],
    );
}

#[test]
fn a_named_port_is_the_number_of_the_pod_it_leads_to() {
    shop(
        "np shop/all * isolates(ingress,egress)
           ingress allow any : http
           egress allow any : TCP/http",
        "shop/web -> shop/db TCP/9090
         shop/web -> shop/db TCP/8080
         shop/db -> shop/web TCP/8080
         shop/db -> ops/probe TCP/8080
         shop/db -> 10.0.0.77 TCP/8080
         shop/db -> 192.168.0.1 TCP/8080",
        expect![[r"
            shop/web -> shop/db TCP/9090: allowed, egress allowed by NetworkPolicy/shop/all egress[0], ingress allowed by NetworkPolicy/shop/all ingress[0]
            shop/web -> shop/db TCP/8080: denied, egress denied by NetworkPolicy/shop/all egress default-deny, ingress denied by NetworkPolicy/shop/all ingress default-deny
            shop/db -> shop/web TCP/8080: allowed, egress allowed by NetworkPolicy/shop/all egress[0], ingress allowed by NetworkPolicy/shop/all ingress[0]
            shop/db -> ops/probe TCP/8080: denied, egress denied by NetworkPolicy/shop/all egress default-deny, ingress allowed by builtin/default-allow
            shop/db -> 10.0.0.77 TCP/8080: denied, egress denied by NetworkPolicy/shop/all egress default-deny, ingress none
            shop/db -> 192.168.0.1 TCP/8080: denied, egress denied by NetworkPolicy/shop/all egress default-deny, ingress none
        "]],
    );
}

#[test]
fn of_a_port_name_declared_twice_the_first_counts() {
    check(
        "pod a/x 10.0.0.1
         pod a/y 10.0.0.2 http:TCP/8081 http:UDP/53 http:TCP/8080
         np a/p * isolates(ingress,egress)
           ingress allow any : http
           egress allow any : http",
        "a/x -> a/y TCP/8081
         a/x -> a/y TCP/8080
         a/x -> a/y UDP/53",
        expect![[r"
            a/x -> a/y TCP/8081: allowed, egress allowed by NetworkPolicy/a/p egress[0], ingress allowed by NetworkPolicy/a/p ingress[0]
            a/x -> a/y TCP/8080: denied, egress denied by NetworkPolicy/a/p egress default-deny, ingress denied by NetworkPolicy/a/p ingress default-deny
            a/x -> a/y UDP/53: allowed, egress allowed by NetworkPolicy/a/p egress[0], ingress allowed by NetworkPolicy/a/p ingress[0]
        "]],
    );
}

#[test]
fn a_block_matches_by_address_whatever_is_behind_it() {
    shop(
        "np shop/web app=web isolates(egress)
           egress allow cidr(0.0.0.0/0,-10.0.0.0/24,-192.168.0.0/16) cidr(fd00::/8)",
        "shop/web -> ops/probe TCP/1
         shop/web -> shop/db TCP/1
         shop/web -> 192.168.0.1 TCP/1
         shop/web -> 8.8.8.8 TCP/1
         shop/web -> fd00::2 TCP/1
         shop/web -> 2001:db8::1 TCP/1",
        expect![[r"
            shop/web -> ops/probe TCP/1: allowed, egress allowed by NetworkPolicy/shop/web egress[0], ingress allowed by builtin/default-allow
            shop/web -> shop/db TCP/1: denied, egress denied by NetworkPolicy/shop/web egress default-deny, ingress allowed by builtin/default-allow
            shop/web -> 192.168.0.1 TCP/1: denied, egress denied by NetworkPolicy/shop/web egress default-deny, ingress none
            shop/web -> 8.8.8.8 TCP/1: allowed, egress allowed by NetworkPolicy/shop/web egress[0], ingress none
            shop/web -> fd00::2 TCP/1: allowed, egress allowed by NetworkPolicy/shop/web egress[0], ingress allowed by builtin/default-allow
            shop/web -> 2001:db8::1 TCP/1: denied, egress denied by NetworkPolicy/shop/web egress default-deny, ingress none
        "]],
    );
}

#[test]
fn all_of_ipv6_is_not_all_of_ipv4() {
    shop(
        "np shop/web app=web isolates(egress)
           egress allow cidr(::/0)",
        "shop/web -> 8.8.8.8 TCP/1
         shop/web -> 2001:db8::1 TCP/1",
        expect![[r"
            shop/web -> 8.8.8.8 TCP/1: denied, egress denied by NetworkPolicy/shop/web egress default-deny, ingress none
            shop/web -> 2001:db8::1 TCP/1: allowed, egress allowed by NetworkPolicy/shop/web egress[0], ingress none
        "]],
    );
}

#[test]
fn a_block_with_host_bits_or_in_mapped_form_means_its_network() {
    shop(
        "np shop/web app=web isolates(egress)
           egress allow cidr(::ffff:8.8.9.9/112) cidr(9.9.9.9/8)",
        "shop/web -> 8.8.8.8 TCP/1
         shop/web -> 9.1.1.1 TCP/1
         shop/web -> 8.9.8.8 TCP/1",
        expect![[r"
            shop/web -> 8.8.8.8 TCP/1: allowed, egress allowed by NetworkPolicy/shop/web egress[0], ingress none
            shop/web -> 9.1.1.1 TCP/1: allowed, egress allowed by NetworkPolicy/shop/web egress[0], ingress none
            shop/web -> 8.9.8.8 TCP/1: denied, egress denied by NetworkPolicy/shop/web egress default-deny, ingress none
        "]],
    );
}

#[test]
fn nodes_are_matched_by_their_labels_and_pods_are_no_nodes() {
    shop(
        "admin 1 edge ns(*)pods(app=db)
           ingress allow nodes(role=edge)
           ingress deny any",
        "192.168.0.1 -> shop/db TCP/1
         shop/web -> shop/db TCP/1
         192.168.0.2 -> shop/db TCP/1",
        expect![[r"
            192.168.0.1 -> shop/db TCP/1: allowed, egress none, ingress allowed by ClusterNetworkPolicy/edge ingress[0]
            shop/web -> shop/db TCP/1: denied, egress allowed by builtin/default-allow, ingress denied by ClusterNetworkPolicy/edge ingress[1]
            192.168.0.2 -> shop/db TCP/1: denied, egress none, ingress denied by ClusterNetworkPolicy/edge ingress[1]
        "]],
    );
}

#[test]
fn an_unknown_pod_may_do_what_every_pod_may_and_no_more() {
    shop(
        "admin 1 rules ns(*)pods(app=db)
           ingress allow ns(*)pods(app=web) : TCP/1
           ingress deny ns(*)pods(app=evil) : TCP/2
           ingress pass ns(team=ops)pods(*) : TCP/3 TCP/4
           ingress deny any : TCP/4
         np shop/db app=db isolates(ingress)
           ingress allow ns(*)pods(*) : TCP/1-3
           ingress allow cidr(10.0.0.77/32) : TCP/5",
        "10.0.0.77 -> shop/db TCP/1
         10.0.0.77 -> shop/db TCP/2
         10.0.0.77 -> shop/db TCP/3
         10.0.0.77 -> shop/db TCP/4
         10.0.0.77 -> shop/db TCP/5
         10.0.0.78 -> shop/db TCP/5
         8.8.8.8 -> shop/db TCP/1",
        expect![[r"
            10.0.0.77 -> shop/db TCP/1: allowed, egress none, ingress allowed by NetworkPolicy/shop/db ingress[0]
            10.0.0.77 -> shop/db TCP/2: denied, egress none, ingress denied by ClusterNetworkPolicy/rules ingress[1]
            10.0.0.77 -> shop/db TCP/3: allowed, egress none, ingress allowed by NetworkPolicy/shop/db ingress[0]
            10.0.0.77 -> shop/db TCP/4: denied, egress none, ingress denied by ClusterNetworkPolicy/rules ingress[3]
            10.0.0.77 -> shop/db TCP/5: allowed, egress none, ingress allowed by NetworkPolicy/shop/db ingress[1]
            10.0.0.78 -> shop/db TCP/5: denied, egress none, ingress denied by NetworkPolicy/shop/db ingress default-deny
            8.8.8.8 -> shop/db TCP/1: denied, egress none, ingress denied by NetworkPolicy/shop/db ingress default-deny
        "]],
    );
}

#[test]
fn an_address_that_two_claim_is_trusted_with_nothing_but_what_every_pod_may() {
    shop(
        "pod shop/twin app=web 10.0.0.1
         np shop/db app=db isolates(ingress)
           ingress allow pods(app=web) : TCP/1
           ingress allow cidr(10.0.0.0/24) : TCP/2
           ingress allow ns(*)pods(*) : TCP/3",
        "10.0.0.1 -> shop/db TCP/1
         10.0.0.1 -> shop/db TCP/2
         10.0.0.1 -> shop/db TCP/3
         shop/twin -> shop/db TCP/1",
        expect![[r"
            10.0.0.1 -> shop/db TCP/1: denied, egress none, ingress denied by NetworkPolicy/shop/db ingress default-deny
            10.0.0.1 -> shop/db TCP/2: denied, egress none, ingress denied by NetworkPolicy/shop/db ingress default-deny
            10.0.0.1 -> shop/db TCP/3: allowed, egress none, ingress allowed by NetworkPolicy/shop/db ingress[2]
            shop/twin -> shop/db TCP/1: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
        "]],
    );
}

#[test]
fn when_a_guard_lapses_the_next_rule_decides() {
    shop(
        "np shop/db app=db isolates(ingress)
           ingress allow any : TCP/1 if(until1)
           ingress allow any : TCP/1 if(lease2)
           ingress allow any : TCP/2 if(until1)
           ingress allow any : TCP/2
         admin 1 block ns(*)pods(app=db)
           ingress deny any : TCP/1-2 if(name3)",
        "shop/web -> shop/db TCP/1 until1 lease2
         shop/web -> shop/db TCP/1 lease2
         shop/web -> shop/db TCP/1
         shop/web -> shop/db TCP/1 until1 name3
         shop/web -> shop/db TCP/2 until1",
        expect![[r"
            shop/web -> shop/db TCP/1 until1 lease2: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[0]
            shop/web -> shop/db TCP/1 lease2: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[1]
            shop/web -> shop/db TCP/1: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
            shop/web -> shop/db TCP/1 until1 name3: denied, egress allowed by builtin/default-allow, ingress denied by ClusterNetworkPolicy/block ingress[0]
            shop/web -> shop/db TCP/2 until1: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[3]
        "]],
    );
}

#[test]
fn shadow_policies_and_rules_decide_in_shadow_only() {
    shop(
        "np shop/db app=db isolates(ingress) shadow
           ingress allow pods(app=web)
         admin 1 block ns(*)pods(app=db)
           ingress deny ns(*)pods(app=web) : TCP/1 shadow
           ingress deny any : TCP/2",
        "ops/probe -> shop/db TCP/3
         ops/probe -> shop/db TCP/3 shadow
         shop/web -> shop/db TCP/3 shadow
         shop/web -> shop/db TCP/1
         shop/web -> shop/db TCP/1 shadow
         shop/web -> shop/db TCP/2 shadow",
        expect![[r"
            ops/probe -> shop/db TCP/3: allowed, egress allowed by builtin/default-allow, ingress allowed by builtin/default-allow
            ops/probe -> shop/db TCP/3 shadow: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
            shop/web -> shop/db TCP/3 shadow: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[0]
            shop/web -> shop/db TCP/1: allowed, egress allowed by builtin/default-allow, ingress allowed by builtin/default-allow
            shop/web -> shop/db TCP/1 shadow: denied, egress allowed by builtin/default-allow, ingress denied by ClusterNetworkPolicy/block ingress[0]
            shop/web -> shop/db TCP/2 shadow: denied, egress allowed by builtin/default-allow, ingress denied by ClusterNetworkPolicy/block ingress[1]
        "]],
    );
}

#[test]
fn a_policy_has_no_say_in_a_direction_it_does_not_isolate() {
    shop(
        "np shop/one app=web isolates(ingress)
           egress allow any
         np shop/two app=web isolates(egress)",
        "shop/web -> shop/db TCP/1",
        expect![[r"
            shop/web -> shop/db TCP/1: denied, egress denied by NetworkPolicy/shop/two egress default-deny, ingress allowed by builtin/default-allow
        "]],
    );
}

#[test]
fn a_rule_without_ports_covers_every_protocol_and_one_with_all_ports_does_not() {
    shop(
        "np shop/db app=db isolates(ingress)
           ingress allow pods(app=web)
           ingress allow ns(team=ops) : TCP/* UDP/* SCTP/*",
        "shop/web -> shop/db ICMP/2048
         ops/probe -> shop/db ICMP/2048
         ops/probe -> shop/db SCTP/65535",
        expect![[r"
            shop/web -> shop/db ICMP/2048: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[0]
            ops/probe -> shop/db ICMP/2048: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
            ops/probe -> shop/db SCTP/65535: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[1]
        "]],
    );
}

#[test]
fn negative_operators_match_what_lacks_the_label() {
    shop(
        "pod shop/bare 10.0.0.9
         np shop/db app=db isolates(ingress)
           ingress allow pods(app!=web) : TCP/1
           ingress allow pods(!app) : TCP/2
           ingress allow pods(app) : TCP/3",
        "shop/bare -> shop/db TCP/1
         shop/web -> shop/db TCP/1
         shop/bare -> shop/db TCP/2
         shop/web -> shop/db TCP/2
         shop/bare -> shop/db TCP/3",
        expect![[r"
            shop/bare -> shop/db TCP/1: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[0]
            shop/web -> shop/db TCP/1: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
            shop/bare -> shop/db TCP/2: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/shop/db ingress[1]
            shop/web -> shop/db TCP/2: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
            shop/bare -> shop/db TCP/3: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/db ingress default-deny
        "]],
    );
}

#[test]
fn a_namespace_nobody_declared_has_its_name_label() {
    check(
        "pod a/x 10.0.0.1
         pod b/y 10.0.0.2
         np b/p * isolates(ingress)
           ingress allow ns(kubernetes.io/metadata.name=a) : TCP/1",
        "a/x -> b/y TCP/1
         a/x -> b/y TCP/2",
        expect![[r"
            a/x -> b/y TCP/1: allowed, egress allowed by builtin/default-allow, ingress allowed by NetworkPolicy/b/p ingress[0]
            a/x -> b/y TCP/2: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/b/p ingress default-deny
        "]],
    );
}

#[test]
fn a_policy_selects_by_negative_operators_what_lacks_the_label() {
    shop(
        "pod shop/bare 10.0.0.9
         np shop/closed app!=web isolates(ingress)",
        "shop/web -> shop/bare TCP/1
         shop/bare -> shop/db TCP/1
         shop/bare -> shop/web TCP/1",
        expect![[r"
            shop/web -> shop/bare TCP/1: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/closed ingress default-deny
            shop/bare -> shop/db TCP/1: denied, egress allowed by builtin/default-allow, ingress denied by NetworkPolicy/shop/closed ingress default-deny
            shop/bare -> shop/web TCP/1: allowed, egress allowed by builtin/default-allow, ingress allowed by builtin/default-allow
        "]],
    );
}

#[test]
fn all_nodes_are_those_without_labels_too_and_nobody_else() {
    shop(
        "node bare 192.168.0.9
         admin 1 nodes ns(*)pods(app=db)
           ingress allow nodes(*)
           ingress deny any",
        "192.168.0.9 -> shop/db TCP/1
         192.168.0.1 -> shop/db TCP/1
         192.168.0.2 -> shop/db TCP/1",
        expect![[r"
            192.168.0.9 -> shop/db TCP/1: allowed, egress none, ingress allowed by ClusterNetworkPolicy/nodes ingress[0]
            192.168.0.1 -> shop/db TCP/1: allowed, egress none, ingress allowed by ClusterNetworkPolicy/nodes ingress[0]
            192.168.0.2 -> shop/db TCP/1: denied, egress none, ingress denied by ClusterNetworkPolicy/nodes ingress[1]
        "]],
    );
}
