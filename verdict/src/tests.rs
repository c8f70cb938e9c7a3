//! Tests of the whole decision that are no vectors: what is written down, timers, checksums, properties.

mod answers;
mod names;
mod properties;
mod quota;
mod records;
mod timers;

use std::rc::Rc;

use crate::{
    Verdict,
    host::{MemMaps, Slice},
    layout::Flow,
    maps::Hook,
    vectors::world::World,
};

/// The world's maps; device numbers are real indexes.
fn maps(world: &World) -> MemMaps {
    world.in_memory(|device| device)
}

/// A pod sends a frame.
fn from(maps: &MemMaps, pod: u32, frame: &[u8]) -> Verdict {
    maps.decide(
        Hook::FromPod,
        &Slice {
            bytes: frame,
            ifindex: pod,
            socket: false,
            tagged: false,
            answer: false,
            came_by: 0,
        },
    )
}

/// A frame is sent to a pod.
fn to(maps: &MemMaps, pod: u32, frame: &[u8]) -> Verdict {
    maps.decide(
        Hook::ToPod,
        &Slice {
            bytes: frame,
            ifindex: pod,
            socket: false,
            tagged: false,
            answer: false,
            came_by: 0,
        },
    )
}

/// The only flow there is, and whether it is confirmed.
fn only_flow(maps: &MemMaps) -> (Rc<Flow>, bool) {
    let (confirmed, tentative) = (maps.confirmed.borrow(), maps.tentative.borrow());
    assert_eq!(confirmed.len() + tentative.len(), 1);
    let confirmed_flow = confirmed.values().next().cloned();
    let is_confirmed = confirmed_flow.is_some();
    (
        confirmed_flow.or_else(|| tentative.values().next().cloned()).unwrap(),
        is_confirmed,
    )
}
