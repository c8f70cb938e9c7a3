//! Lists that begin again, heartbeats, and objects that become unreadable.

use bulkhead_policy::model::WorkloadKey;
use serde_json::{Value, json};

use super::*;
use crate::source::kube::raw::{Node, Pod, Raw};

const PODS: usize = 0;

fn item(value: Value) -> Box<Item> {
    let raw: Raw<Pod> = serde_json::from_value(value).unwrap();
    Box::new(raw.item)
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"}, "spec": {"nodeName": "n1"}})
}

fn key(name: &str) -> ObjectKey {
    let namespace = "shop".to_owned();
    let name = name.to_owned();
    ObjectKey::Workload(WorkloadKey { namespace, name })
}

fn listed(known: &mut Known, names: &[&str]) -> Vec<Event> {
    let mut events = Vec::new();
    known.take(News::Listing { watch: PODS }, &mut events);
    for name in names {
        let item = item(pod(name));
        known.take(News::Listed { watch: PODS, item }, &mut events);
    }
    events
}

fn done(known: &mut Known) -> Vec<Event> {
    let mut events = Vec::new();
    let kind = kind_of(&key(""));
    known.take(News::ListDone { watch: PODS, kind }, &mut events);
    events
}

#[test]
fn only_a_complete_list_says_what_is_gone() {
    let mut known = Known::new(2);
    assert_eq!(listed(&mut known, &["a", "b"]).len(), 2);
    assert!(done(&mut known).is_empty());
    assert!(!known.complete(), "the other watch has not listed");
    assert!(listed(&mut known, &["b"]).is_empty(), "b is as it was");
    // The list fails half way and begins again.
    assert!(listed(&mut known, &["c"]).len() == 1);
    assert!(listed(&mut known, &["b"]).is_empty());
    let gone = done(&mut known);
    assert!(
        matches!(gone.as_slice(), [Event::Delete(a), Event::Delete(c)] if (a, c) == (&key("a"), &key("c"))),
        "{gone:?}"
    );
}

#[test]
fn the_list_of_one_kind_says_nothing_of_another() {
    let mut known = Known::new(1);
    let mut events = Vec::new();
    let node: Raw<Node> = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    known.take(
        News::Applied {
            item: Box::new(node.item),
        },
        &mut events,
    );
    assert_eq!(events.len(), 1);
    listed(&mut known, &[]);
    assert!(done(&mut known).is_empty());
}

#[test]
fn what_says_the_same_is_no_event() {
    let mut known = Known::new(1);
    let mut events = Vec::new();
    let mut busy = pod("a");
    known.take(
        News::Applied {
            item: item(busy.clone()),
        },
        &mut events,
    );
    busy["metadata"]["resourceVersion"] = json!("2");
    busy["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}]});
    known.take(
        News::Applied {
            item: item(busy.clone()),
        },
        &mut events,
    );
    assert_eq!(events.len(), 1);
    busy["status"] = json!({"phase": "Failed"});
    known.take(News::Applied { item: item(busy) }, &mut events);
    assert!(matches!(events.as_slice(), [_, Event::Delete(gone)] if *gone == key("a")));
}

#[test]
fn an_object_of_any_shape_is_decoded_and_keeps_what_it_said() {
    let mut known = Known::new(1);
    let mut events = Vec::new();
    for odd in [
        json!(null),
        json!(7),
        json!([]),
        json!({"metadata": 7}),
        json!({"spec": "x"}),
    ] {
        assert_eq!(item(odd).meaning, Meaning::Unreadable);
    }
    known.take(News::Applied { item: item(pod("a")) }, &mut events);
    let mut wrong = pod("a");
    wrong["spec"] = json!("gone wrong");
    assert!(known.take(News::Applied { item: item(wrong) }, &mut events));
    assert_eq!(events.len(), 1, "what it said stays");
    let said = known.diagnostics();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().all(|found| found.object == "Pod shop/a"));
    assert!(known.take(News::Applied { item: item(pod("a")) }, &mut events));
    assert!(known.diagnostics().is_empty() && events.len() == 1);
}
