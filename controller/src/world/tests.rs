//! What a change costs does not depend on how large the cluster is: counted, never timed.

use bulkhead_crds::{Meaning, lower_document};
use bulkhead_policy::{
    compiler::{Compiler, Work},
    model::{Event, Object, Workload},
};
use bulkhead_proto::update::{Revision, bytes, encode};
use serde_json::{Value, json};

use super::*;
use crate::part::Part;

fn lower(kind: &str, value: &Value) -> Object {
    let group = match kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        _ => "v1",
    };
    let mut findings = Vec::new();
    let meaning = lower_document(group, kind, value, "", &mut findings);
    assert!(findings.is_empty(), "{findings:?}");
    match meaning {
        Meaning::Object(object) => *object,
        other => panic!("{other:?}"),
    }
}

/// Pods of one namespace, on as many nodes.
const PODS: usize = 10;

/// A pod of a namespace; each namespace has nodes of its own.
fn pod(namespace: usize, number: usize, app: &str) -> Object {
    let address = format!("10.{}.{}.{}", namespace >> 8, namespace & 255, number + 1);
    lower(
        "Pod",
        &json!({
            "metadata": {"name": format!("pod-{number}"), "namespace": format!("team-{namespace}"), "uid": "u", "labels": {"app": app}},
            "spec": {"nodeName": format!("node-{namespace}-{}", number % PODS), "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        }),
    )
}

fn policy(namespace: usize, port: u16) -> Object {
    lower(
        "NetworkPolicy",
        &json!({
            "metadata": {"name": "web", "namespace": format!("team-{namespace}"), "uid": "u"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
                     "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "front"}}},
                                           {"namespaceSelector": {"matchLabels": {"stage": "blue"}}}],
                                  "ports": [{"port": port}]}]}
        }),
    )
}

fn namespace(number: usize, stage: &str) -> Object {
    let name = format!("team-{number}");
    lower(
        "Namespace",
        &json!({"metadata": {"name": name, "labels": {"stage": stage}}}),
    )
}

/// What a change costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Cost {
    work: Work,
    /// Resources of the change, whoever needs them.
    compiled: usize,
    /// Resources and removals that one node is sent which has nothing to do with the change.
    bystander: usize,
    /// Nodes whose own part is another one.
    nodes: usize,
    /// Resources and removals that those nodes are sent.
    sent: usize,
}

struct Cluster {
    compiler: Compiler,
    world: World,
}

impl Cluster {
    fn of(namespaces: usize) -> Self {
        let objects = (0..namespaces).flat_map(|number| {
            let pods =
                (0..PODS).map(move |pod_number| pod(number, pod_number, if pod_number < 5 { "web" } else { "front" }));
            pods.chain([policy(number, 80), namespace(number, "green")])
        });
        let mut cluster = Self {
            compiler: Compiler::default(),
            world: World::default(),
        };
        cluster.step(&objects.map(Event::Upsert).collect::<Vec<_>>());
        cluster
    }

    fn step(&mut self, events: &[Event]) -> Delta {
        let delta = self.compiler.apply(events).delta;
        self.world = self.world.next(self.compiler.state(), &delta);
        delta
    }

    /// Makes a change and counts; checks too that every node's part is what it would be from scratch.
    fn cost(&mut self, change: Object) -> Cost {
        let before = self.world.clone();
        let delta = self.step(&[Event::Upsert(change)]);
        let size = |delta: &Delta| delta.upserts.len() + delta.removes.len();
        let mut cost = Cost {
            work: self.compiler.work(),
            compiled: size(&delta),
            ..Cost::default()
        };
        for (node, local) in &self.world.locals {
            let whole = self.compiler.state().for_node(node);
            assert_eq!(
                (&local.state.endpoints, &local.state.rulesets),
                (&whole.endpoints, &whole.rulesets),
                "{node}"
            );
            assert_eq!(local.digest, StateDigest::of(&local.state), "{node}");
            let update = Part::of(&self.world, node).since(Some(&Part::of(&before, node)), &self.world);
            let same = before
                .locals
                .get(node)
                .is_some_and(|old| Arc::ptr_eq(&old.state, &local.state));
            if same {
                cost.bystander = cost.bystander.max(size(&update));
            } else {
                cost.nodes += 1;
                cost.sent += size(&update);
            }
        }
        cost
    }
}

#[test]
fn a_change_costs_the_same_in_a_cluster_ten_times_as_large() {
    let (mut small, mut large) = (Cluster::of(4), Cluster::of(40));
    assert_eq!(large.world.locals.len(), 10 * small.world.locals.len());
    for (name, change) in [
        ("policy edited", policy(1, 81)),
        ("pod added", pod(1, PODS + 1, "web")),
        ("pod relabelled", pod(1, 2, "front")),
        ("pod of another app", pod(1, 3, "other")),
    ] {
        let (one, other) = (small.cost(change.clone()), large.cost(change));
        assert_eq!(one, other, "{name}");
        assert!(one.nodes <= PODS && one.sent > 0, "{name}: {one:?}");
    }
    // Nobody's peers are the pods of another namespace, until that is blue: then every policy has them as peers.
    let (one, other) = (small.cost(namespace(1, "blue")), large.cost(namespace(1, "blue")));
    assert_eq!(
        (one.work.addresses, one.bystander),
        (other.work.addresses, other.bystander)
    );
    assert_eq!(one.work.endpoints, other.work.endpoints);
    assert!(other.sent <= 10 * one.sent, "{one:?} {other:?}");
}

#[test]
fn a_world_shares_with_the_one_before_what_did_not_change() {
    let mut cluster = Cluster::of(40);
    let before = cluster.world.clone();
    cluster.step(&[Event::Upsert(policy(1, 82))]);
    assert!(
        Arc::ptr_eq(&before.shared, &cluster.world.shared),
        "no identity, address or network changed"
    );
    let kept = cluster.world.locals.iter().filter(|(node, local)| {
        let old = before.locals.get(*node);
        old.is_some_and(|old| Arc::ptr_eq(&old.state, &local.state))
    });
    assert_eq!(kept.count(), 395, "five nodes have a pod that the policy selects");
    cluster.step(&[Event::Upsert(pod(1, PODS + 2, "web"))]);
    assert!(!before.shared.bindings.is_same(&cluster.world.shared.bindings));
    assert!(before.shared.networks.is_same(&cluster.world.shared.networks));
}

#[test]
fn an_endpoint_that_moves_or_goes_leaves_nothing_behind() {
    let mut cluster = Cluster::of(2);
    let moved = |node: &str| {
        let Object::Workload(mut workload) = pod(1, 3, "web") else {
            unreachable!()
        };
        Arc::make_mut(&mut workload).node = Some(node.to_owned());
        Object::Workload(workload)
    };
    cluster.cost(moved("node-0-0"));
    assert!(!cluster.world.locals.contains_key("node-1-3"));
    cluster.cost(moved("elsewhere"));
    assert_eq!(
        cluster
            .world
            .locals
            .get("node-0-0")
            .map(|local| local.state.endpoints.len()),
        Some(1)
    );
    let gone: Vec<Event> = cluster
        .compiler
        .state()
        .endpoints
        .keys()
        .cloned()
        .collect::<Vec<_>>()
        .into_iter()
        .map(|key| Event::Delete(bulkhead_policy::model::ObjectKey::Workload(key)))
        .collect();
    cluster.step(&gone);
    assert!(cluster.world.locals.is_empty() && cluster.world.users.is_empty() && cluster.world.endpoints.is_empty());
}

#[test]
fn who_knows_fifty_thousand_pods_is_sent_what_it_missed() {
    const KNOWN: u32 = 50_000;
    let Object::Workload(template) = pod(1, 0, "web") else {
        unreachable!()
    };
    let numbered = |number: u32| {
        let mut workload = Workload::clone(&template);
        workload.key.name = format!("many-{number}");
        workload.addresses = BTreeSet::from([std::net::Ipv4Addr::from_bits(0x0b00_0000 + number).into()]);
        workload.node = Some(format!("many-{}", number % 1_000));
        Event::Upsert(Object::Workload(Arc::new(workload)))
    };
    let mut cluster = Cluster::of(2);
    cluster.step(&(0..KNOWN).map(numbered).collect::<Vec<_>>());
    let held = Part::of(&cluster.world, "node-1-0");
    let sent = |delta: Delta| {
        let revision = Revision {
            revision: 1,
            snapshot: false,
            policies: Vec::new(),
            state_digest: held.digest(),
            delta,
        };
        (
            revision.delta.upserts.len() + revision.delta.removes.len(),
            bytes(&encode(&revision).unwrap()),
        )
    };
    let (all, all_bytes) = sent(held.since(None, &cluster.world));
    // While the node is away pods come and go, one revision each, as they do.
    for number in 0..5 {
        cluster.step(&[numbered(KNOWN + number)]);
    }
    let (missed, missed_bytes) = sent(Part::of(&cluster.world, "node-1-0").since(Some(&held), &cluster.world));
    assert!(
        all > 50_000 && all_bytes > 1_000_000,
        "{all} resources, {all_bytes} bytes"
    );
    assert_eq!(missed, 5, "five addresses; their identity is known");
    assert!(missed_bytes < 1_000, "{missed_bytes} bytes");
}
