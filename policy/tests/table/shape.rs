//! What the compiled state looks like: who shares an identity or a ruleset, which entries there are, how ranges merge.

use std::collections::BTreeSet;

use bulkhead_policy::{
    compiler::Compiler,
    model::Event,
    state::{Decision, PeerId, Ruleset, State},
};
use bulkhead_verdict::{layout::MAX_ALTERNATIVES, port::Position};
use expect_test::{Expect, expect};

use crate::text::objects;

fn compile(text: &str) -> Compiler {
    Compiler::from_scratch(objects(text))
}

/// The state as text: identities by their atoms, rulesets by their policies.
fn show(state: &State) -> String {
    let identity = |peer: &PeerId| match peer {
        PeerId::Identity(name) => format!("[{}]", state.identities[name].atoms.join("; ")),
        reserved => reserved.to_string(),
    };
    let mut text = String::new();
    for ((_, address), binding) in &state.bindings {
        text += &format!("{address} is {}: {}\n", binding.name, identity(&binding.peer));
    }
    for ((_, prefix), network) in &state.networks {
        let range = if network.pod_range { " (pod range)" } else { "" };
        text += &format!("{prefix}{range}: {}\n", identity(&network.peer));
    }
    let mut rulesets: Vec<&Ruleset> = state.rulesets.values().map(AsRef::as_ref).collect();
    rulesets.sort_by_key(|ruleset| (ruleset.direction, &ruleset.policies));
    for ruleset in rulesets.into_iter().filter(|ruleset| !ruleset.policies.is_empty()) {
        text += &format!("{} of {}\n", ruleset.direction, ruleset.policies.join(", "));
        let entries = ruleset.entries.iter().map(|(peer, ports)| (identity(peer), ports));
        for (peer, ports) in entries.collect::<std::collections::BTreeMap<_, _>>() {
            for range in &ports.ranges {
                let list = |list: &[bulkhead_policy::state::Alternative]| {
                    let each = list.iter().map(|it| match &it.guard {
                        None => format!("{:?} {}", it.decision, it.rule),
                        Some(guard) => format!("{:?} {} if {guard:?}", it.decision, it.rule),
                    });
                    each.collect::<Vec<_>>().join(", else ")
                };
                let shadow = if range.shadow.is_empty() {
                    String::new()
                } else {
                    format!("; shadow {}", list(&range.shadow))
                };
                text += &format!(
                    "  {peer} {:#x}..={:#x}: {}{shadow}\n",
                    range.low,
                    range.high,
                    list(&range.enforce)
                );
            }
        }
    }
    text
}

fn shape(text: &str, expected: Expect) {
    expected.assert_eq(&show(compile(text).state()));
}

#[test]
fn pods_with_equal_answers_share_an_identity_and_nobody_bears_an_atom_nobody_asks() {
    shape(
        "namespace a team=x
         pod a/one app=web color=red 10.0.0.1
         pod a/two app=web color=blue 10.0.0.2
         pod a/three app=db 10.0.0.3
         np a/p app=db isolates(ingress)
           ingress allow pods(app=web) : TCP/80",
        expect![[r"
            10.0.0.1 is a/one: [pod; namespace=a; label app in (web)]
            10.0.0.2 is a/two: [pod; namespace=a; label app in (web)]
            10.0.0.3 is a/three: [pod; namespace=a]
            ingress of NetworkPolicy/a/p
              [pod; namespace=a; label app in (web)] 0x0..=0x4f: Deny NetworkPolicy/a/p ingress default-deny
              [pod; namespace=a; label app in (web)] 0x50..=0x50: Allow NetworkPolicy/a/p ingress[0]
              [pod; namespace=a; label app in (web)] 0x51..=0x5ffff: Deny NetworkPolicy/a/p ingress default-deny
              reserved:any-address 0x0..=0x5ffff: Deny NetworkPolicy/a/p ingress default-deny
        "]],
    );
}

#[test]
fn blocks_and_pod_ranges_become_networks_with_what_covers_them() {
    shape(
        "node n 192.168.0.1 range(10.0.0.0/24)
         pod a/one 10.0.0.1
         np a/p * isolates(egress)
           egress allow cidr(10.0.0.0/8,-10.0.0.0/25)
           egress allow cidr(::/0)",
        expect![[r"
            10.0.0.1 is a/one: [pod; cidr 10.0.0.0/8; cidr 10.0.0.0/25]
            192.168.0.1 is /n: [node]
            0.0.0.0/0: reserved:any-address
            10.0.0.0/8: [cidr 10.0.0.0/8]
            10.0.0.0/24 (pod range): [unknown pod; cidr 10.0.0.0/8]
            10.0.0.0/25 (pod range): [unknown pod; cidr 10.0.0.0/8; cidr 10.0.0.0/25]
            ::/0: [cidr ::/0]
            egress of NetworkPolicy/a/p
              [cidr 10.0.0.0/8] 0x0..=0x5ffff: Allow NetworkPolicy/a/p egress[0]
              [cidr ::/0] 0x0..=0x5ffff: Allow NetworkPolicy/a/p egress[1]
              [unknown pod; cidr 10.0.0.0/8] 0x0..=0x5ffff: Allow NetworkPolicy/a/p egress[0]
              reserved:any-address 0x0..=0x5ffff: Deny NetworkPolicy/a/p egress default-deny
        "]],
    );
}

#[test]
fn adjacent_ranges_that_say_the_same_are_one() {
    shape(
        "pod a/one 10.0.0.1
         np a/p * isolates(ingress)
           ingress allow any : TCP/80-89 TCP/85-99 TCP/100 UDP/0-65535",
        expect![[r"
            10.0.0.1 is a/one: [pod]
            ingress of NetworkPolicy/a/p
              reserved:any-address 0x0..=0x4f: Deny NetworkPolicy/a/p ingress default-deny
              reserved:any-address 0x50..=0x64: Allow NetworkPolicy/a/p ingress[0]
              reserved:any-address 0x65..=0xffff: Deny NetworkPolicy/a/p ingress default-deny
              reserved:any-address 0x10000..=0x1ffff: Allow NetworkPolicy/a/p ingress[0]
              reserved:any-address 0x20000..=0x5ffff: Deny NetworkPolicy/a/p ingress default-deny
        "]],
    );
}

#[test]
fn the_shadow_list_is_empty_where_it_says_the_same() {
    shape(
        "pod a/one 10.0.0.1
         np a/p * isolates(ingress)
           ingress allow any : TCP/80
           ingress allow any : TCP/80-81 shadow",
        expect![[r"
            10.0.0.1 is a/one: [pod]
            ingress of NetworkPolicy/a/p
              reserved:any-address 0x0..=0x4f: Deny NetworkPolicy/a/p ingress default-deny
              reserved:any-address 0x50..=0x50: Allow NetworkPolicy/a/p ingress[0]
              reserved:any-address 0x51..=0x51: Deny NetworkPolicy/a/p ingress default-deny; shadow Allow NetworkPolicy/a/p ingress[1]
              reserved:any-address 0x52..=0x5ffff: Deny NetworkPolicy/a/p ingress default-deny
        "]],
    );
}

#[test]
fn an_identity_that_gets_what_any_pod_gets_has_no_entry() {
    let compiler = compile(
        "pod a/one app=web 10.0.0.1
         pod a/two app=db 10.0.0.2
         np a/p app=db isolates(ingress)
           ingress allow ns(*)pods(*)
           ingress allow ns(*)pods(app=web)",
    );
    let peers: BTreeSet<PeerId> = compiler
        .state()
        .rulesets
        .values()
        .flat_map(|ruleset| ruleset.entries.keys().copied())
        .collect();
    assert_eq!(
        peers,
        BTreeSet::from([PeerId::UnknownPod, PeerId::AnyPod, PeerId::AnyAddress])
    );
}

#[test]
fn replicas_share_rulesets_and_a_different_named_port_makes_another() {
    let compiler = compile(
        "pod a/one app=web http:TCP/80
         pod a/two app=web http:TCP/80 other:TCP/1
         pod a/three app=web http:TCP/81
         np a/p app=web isolates(ingress)
           ingress allow any : http",
    );
    let endpoints: Vec<_> = compiler
        .state()
        .endpoints
        .values()
        .map(|it| (it.ingress, it.egress))
        .collect();
    let [one, three, two] = endpoints.as_slice() else {
        panic!("three endpoints")
    };
    assert_eq!(one, two);
    assert_ne!(one.0, three.0);
    assert_eq!(one.1, three.1);
}

#[test]
fn a_list_longer_than_the_kernel_follows_ends_in_a_denial_and_is_reported() {
    let rule = |number| format!("  ingress allow any if(until{number})");
    let rules = (0..20).map(rule).collect::<Vec<_>>().join("\n");
    let text = format!("pod a/one 10.0.0.1\nnp a/p * isolates(ingress)\n{rules}");
    let mut compiler = Compiler::default();
    let events: Vec<Event> = objects(&text).into_iter().map(Event::Upsert).collect();
    let changes = compiler.apply(&events);
    let lists = compiler
        .state()
        .rulesets
        .values()
        .flat_map(|it| it.entries.values())
        .flat_map(|it| &it.ranges);
    let longest = lists
        .map(|range| &range.enforce)
        .max_by_key(|list| list.len())
        .expect("a list");
    assert_eq!(longest.len(), usize::try_from(MAX_ALTERNATIVES).unwrap());
    let last = longest.last().expect("an alternative");
    assert_eq!(
        (last.guard.clone(), last.decision, last.rule.to_string().as_str()),
        (None, Decision::Deny, "NetworkPolicy/a/p ingress[15]")
    );
    let reported: Vec<String> = changes.diagnostics.iter().map(ToString::to_string).collect();
    expect!["error: NetworkPolicy a/p: spec.ingress[15]: more than 15 rules with conditions apply to the same peer and port; this rule and those after it are not evaluated there, and what the earlier ones do not allow is denied; merge or remove some"].assert_eq(&reported.join("\n"));
    assert_eq!(changes.diagnostics, compiler.diagnostics());
}

#[test]
fn port_sets_are_complete_sorted_and_end_without_a_guard() {
    let compiler = compile(
        "pod a/one 10.0.0.1
         np a/p * isolates(ingress,egress)
           ingress allow any : TCP/0 SCTP/65535 if(until1)
           egress allow any : TCP/65535 UDP/0",
    );
    for ports in compiler
        .state()
        .rulesets
        .values()
        .flat_map(|ruleset| ruleset.entries.values())
    {
        let mut next = Position::FIRST.0;
        for range in &ports.ranges {
            assert_eq!(range.low, next);
            next = range.high + 1;
            let (last, rest) = range.enforce.split_last().expect("an alternative");
            assert!(last.guard.is_none() && rest.iter().all(|it| it.guard.is_some()));
        }
        assert_eq!(next, Position::LAST.0 + 1);
    }
}

#[test]
fn a_ruleset_made_in_the_step_in_which_an_identity_goes_does_not_know_it() {
    let mut compiler = compile(
        "pod a/one app=web 10.0.0.1
         pod a/two app=db 10.0.0.2
         np a/p app=db isolates(ingress)
           ingress allow pods(app=web)",
    );
    let step = objects(
        "pod a/one app=gone 10.0.0.1
         np a/p app=db isolates(ingress) generation(2)
           ingress allow pods(app=web)",
    );
    compiler.apply(&step.into_iter().map(Event::Upsert).collect::<Vec<_>>());
    let known: BTreeSet<_> = compiler.state().identities.keys().copied().collect();
    for peer in compiler
        .state()
        .rulesets
        .values()
        .flat_map(|ruleset| ruleset.entries.keys())
    {
        assert!(
            !matches!(peer, PeerId::Identity(name) if !known.contains(name)),
            "{peer} is nobody's"
        );
    }
}
