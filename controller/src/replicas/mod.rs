//! Replicas among themselves. All of them compile and serve nodes; one writes status, and the others tell it what their nodes
//! hold and announce, and are told what others' nodes announce. Revisions are each replica's own count, so a report says which of them brought which version of a policy.

mod board;
mod compose;
mod send;
mod take;

pub(crate) use board::{Board, Posted};
pub(crate) use send::run;
pub(crate) use take::Take;
