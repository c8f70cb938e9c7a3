//! What a node says is believed only where the declared pod lets it.

use bulkhead_policy::model::{Attachment, Zone};
use std::sync::Arc;

use super::*;

fn workload(name: &str, node: &str, uid: &str, addresses: &[&str]) -> Workload {
    Workload {
        key: WorkloadKey {
            namespace: "shop".into(),
            name: name.into(),
        },
        uid: uid.into(),
        labels: BTreeMap::new(),
        service_account: "default".into(),
        node: Some(node.into()),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        zone: Zone(0),
        named_ports: Vec::new(),
        attachment: Attachment::default(),
        image_class: 0,
        claims: BTreeMap::default(),
    }
}

fn facts(workloads: &[Workload]) -> Facts {
    let mut facts = Facts::default();
    let node = Node {
        name: "n1".into(),
        labels: BTreeMap::new(),
        addresses: BTreeSet::from(["192.0.2.1".parse().unwrap()]),
        pod_ranges: BTreeSet::from(["10.1.0.0/16".parse().unwrap(), "192.0.2.0/24".parse().unwrap()]),
    };
    let mut events = vec![Event::Upsert(Object::Node(node))];
    events.extend(
        workloads
            .iter()
            .cloned()
            .map(|workload| Event::Upsert(Object::Workload(Arc::new(workload)))),
    );
    facts.take(events);
    facts
}

fn says(name: &str, uid: &str, addresses: &[&str]) -> v1::AnnouncedEndpoint {
    let bytes = |address: &&str| bulkhead_proto::convert::address_to_bytes(address.parse().unwrap());
    v1::AnnouncedEndpoint {
        workload: Some(v1::WorkloadName {
            namespace: "shop".into(),
            name: name.into(),
        }),
        pod_uid: uid.into(),
        addresses: addresses.iter().map(bytes).collect(),
        ..v1::AnnouncedEndpoint::default()
    }
}

/// Addresses of the workloads in the events.
fn shared(events: &[Event]) -> Vec<(String, Vec<String>)> {
    let one = |event: &Event| match event {
        Event::Upsert(Object::Workload(workload)) => (
            workload.key.name.clone(),
            workload.addresses.iter().map(ToString::to_string).collect(),
        ),
        other => panic!("{other:?}"),
    };
    events.iter().map(one).collect()
}

#[test]
fn an_address_the_api_does_not_show_yet_is_shared() {
    let mut facts = facts(&[workload("a", "n1", "u1", &[])]);
    let (events, rejected) = facts.announce("n1", vec![says("a", "u1", &["10.1.0.5"])]);
    assert!(rejected.is_empty(), "{rejected:?}");
    assert_eq!(shared(&events), [("a".to_owned(), vec!["10.1.0.5".to_owned()])]);
    assert_eq!(facts.announced_by("n1"), 1);
    let (events, _) = facts.announce("n1", vec![says("a", "u1", &["10.1.0.5"])]);
    assert!(events.is_empty(), "said before");
    let declared = Event::Upsert(Object::Workload(Arc::new(workload("a", "n1", "u1", &["10.1.0.6"]))));
    let events = facts.take(vec![declared]);
    assert_eq!(
        shared(&events),
        [("a".to_owned(), vec!["10.1.0.6".to_owned()])],
        "the declaration counts"
    );
    let events = facts.take(vec![Event::Upsert(Object::Workload(Arc::new(workload(
        "a",
        "n1",
        "u2",
        &[],
    ))))]);
    assert_eq!(
        shared(&events),
        [("a".to_owned(), vec![])],
        "another pod of the same name has nothing of the old one"
    );
}

#[test]
fn what_is_not_announced_any_more_is_gone() {
    let mut facts = facts(&[workload("a", "n1", "", &[]), workload("b", "n1", "", &[])]);
    let both = vec![says("a", "", &["10.1.0.5"]), says("b", "", &["10.1.0.6"])];
    assert_eq!(facts.announce("n1", both).0.len(), 2);
    let (events, _) = facts.announce("n1", vec![says("b", "", &["10.1.0.6"])]);
    assert_eq!(shared(&events), [("a".to_owned(), vec![])]);
}

#[test]
fn lies_are_refused_with_their_reason() {
    let workloads = [
        workload("a", "n1", "u1", &["10.1.0.5"]),
        workload("bare", "n1", "u2", &[]),
        workload("far", "n2", "u3", &[]),
    ];
    let cases = [
        (says("ghost", "", &[]), "no such pod is declared"),
        (says("far", "u3", &["10.1.0.9"]), "the pod is on n2, not on n1"),
        (says("a", "u9", &["10.1.0.5"]), "the pod's uid is u1, not u9"),
        (
            says("a", "u1", &["10.1.0.9"]),
            "10.1.0.9 is not an address of the pod, which has 10.1.0.5",
        ),
        (
            says("bare", "u2", &["10.9.0.1"]),
            "10.9.0.1 is in none of the pod ranges of node n1",
        ),
        (says("bare", "u2", &["10.1.0.5"]), "10.1.0.5 belongs to pod shop/a"),
        (says("bare", "u2", &["192.0.2.1"]), "192.0.2.1 belongs to node n1"),
    ];
    for (endpoint, reason) in cases {
        let (events, rejected) = facts(&workloads).announce("n1", vec![endpoint]);
        assert!(events.is_empty(), "{events:?}");
        assert_eq!(rejected.len(), 1);
        assert_eq!(rejected[0].reason, reason);
    }
    let mut broken = says("a", "u1", &[]);
    broken.addresses = vec![vec![1, 2, 3]];
    let (_, rejected) = facts(&workloads).announce("n1", vec![broken]);
    assert!(
        rejected[0].reason.contains("3 bytes instead of 4 or 16"),
        "{rejected:?}"
    );
}

#[test]
fn two_nodes_cannot_claim_one_address() {
    let mut second = workload("b", "n2", "", &[]);
    second.key.name = "b".into();
    let mut facts = facts(&[workload("a", "n1", "", &[]), second]);
    assert_eq!(facts.announce("n1", vec![says("a", "", &["10.1.0.5"])]).0.len(), 1);
    let (events, rejected) = facts.announce("n2", vec![says("b", "", &["10.1.0.5"])]);
    assert!(events.is_empty());
    assert_eq!(rejected[0].reason, "10.1.0.5 belongs to pod shop/a, as node n1 says");
}

/// The same, as the CNI gave it.
fn given(name: &str, uid: &str, addresses: &[&str]) -> v1::AnnouncedEndpoint {
    v1::AnnouncedEndpoint {
        assigned: true,
        ..says(name, uid, addresses)
    }
}

#[test]
fn what_the_cni_gave_is_newer_than_what_the_api_shows() {
    let mut facts = facts(&[workload("web", "n1", "u1", &["10.1.0.5"])]);
    let (events, rejected) = facts.announce("n1", vec![given("web", "u1", &["10.1.0.9"])]);
    assert_eq!(rejected, []);
    assert_eq!(shared(&events), [("web".to_owned(), vec!["10.1.0.9".to_owned()])]);
    // The API still shows the old one.
    let events = facts.take(vec![Event::Upsert(Object::Workload(Arc::new(workload(
        "web",
        "n1",
        "u1",
        &["10.1.0.5"],
    ))))]);
    assert_eq!(shared(&events), [("web".to_owned(), vec!["10.1.0.9".to_owned()])]);
    // The same from a device, or out of range, is not believed.
    let (events, rejected) = facts.announce("n1", vec![says("web", "u1", &["10.1.0.9"])]);
    assert_eq!((events.len(), rejected.len()), (1, 1));
    assert_eq!(shared(&events), [("web".to_owned(), vec!["10.1.0.5".to_owned()])]);
    let (_, rejected) = facts.announce("n1", vec![given("web", "u1", &["10.9.0.9"])]);
    assert!(rejected[0].reason.contains("none of the pod ranges"), "{rejected:?}");
    let (_, rejected) = facts.announce("n1", vec![given("web", "u1", &["192.0.2.1"])]);
    assert!(rejected[0].reason.contains("node n1"), "{rejected:?}");
}

#[test]
fn a_pod_that_is_seen_after_its_announcement_has_its_address_at_once() {
    let mut facts = facts(&[]);
    let (events, rejected) = facts.announce("n1", vec![given("web", "u1", &["10.1.0.9"])]);
    assert_eq!((events.len(), rejected.len()), (0, 1));
    let events = facts.take(vec![Event::Upsert(Object::Workload(Arc::new(workload(
        "web",
        "n1",
        "u2",
        &[],
    ))))]);
    assert_eq!(
        shared(&events),
        [("web".to_owned(), Vec::new())],
        "another pod of that name"
    );
    let events = facts.take(vec![Event::Upsert(Object::Workload(Arc::new(workload(
        "web",
        "n1",
        "u1",
        &[],
    ))))]);
    assert_eq!(shared(&events), [("web".to_owned(), vec!["10.1.0.9".to_owned()])]);
}

#[test]
fn an_address_that_is_used_again_leaves_the_pod_that_had_it() {
    let mut facts = facts(&[
        workload("old", "n1", "u1", &["10.1.0.5"]),
        workload("new", "n1", "u2", &[]),
        workload("far", "n2", "u3", &["10.1.0.6"]),
    ]);
    // While the node says that the old pod has it, it has.
    let both = vec![given("new", "u2", &["10.1.0.5"]), given("old", "u1", &["10.1.0.5"])];
    let (_, rejected) = facts.announce("n1", both);
    assert!(rejected[0].reason.contains("pod shop/old"), "{rejected:?}");
    let (events, rejected) = facts.announce("n1", vec![given("new", "u2", &["10.1.0.5"])]);
    assert_eq!(rejected, []);
    let expected = [
        ("new".to_owned(), vec!["10.1.0.5".to_owned()]),
        ("old".to_owned(), Vec::new()),
    ];
    assert_eq!(shared(&events), expected);
    // A pod of another node does not lose its address to a node that says so.
    let (_, rejected) = facts.announce("n1", vec![given("new", "u2", &["10.1.0.6"])]);
    assert!(rejected[0].reason.contains("pod shop/far"), "{rejected:?}");
    // But when that pod is gone, what was said is believed.
    let far = WorkloadKey {
        namespace: "shop".into(),
        name: "far".into(),
    };
    let events = facts.take(vec![Event::Delete(ObjectKey::Workload(far))]);
    assert_eq!(shared(&events[1..]), [("new".to_owned(), vec!["10.1.0.6".to_owned()])]);
}

#[test]
fn a_nodes_own_addresses_are_believed_in_its_pod_ranges_where_no_pod_is() {
    let mut facts = facts(&[workload("a", "n1", "u1", &["10.1.0.5"])]);
    let node = facts.nodes["n1"].clone();
    let bytes = |text: &str| address_to_bytes(text.parse().unwrap());
    let said = [
        bytes("10.1.0.1"),
        bytes("10.1.0.5"),
        bytes("10.2.0.1"),
        bytes("127.0.0.1"),
        vec![1, 2, 3],
    ];
    let Some(Event::Upsert(Object::Node(known))) = facts.announce_own("n1", &said) else {
        panic!("nothing changed")
    };
    let expected = ["192.0.2.1", "10.1.0.1"].map(|text| text.parse().unwrap());
    assert_eq!(known.addresses, BTreeSet::from(expected));
    assert_eq!(facts.announce_own("n1", &said), None, "nothing new");
    let again = facts.take(vec![Event::Upsert(Object::Node(node))]);
    assert_eq!(
        again,
        [Event::Upsert(Object::Node(known))],
        "the API's word does not undo it"
    );
}
