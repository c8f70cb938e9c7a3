//! The pure policy core: objects in, compiled state and map writes out. No I/O, no clock, no async, no randomness.
//!
//! ```text
//! model (facts, policies) ─► index ─► compile ─► state (State, Delta) ─► plan (ordered map writes over verdict::layout)
//! ```

mod atom;
pub mod check;
pub mod compiler;
pub mod delta;
pub mod diagnostic;
pub mod digest;
mod flatten;
mod identity;
mod index;
pub mod model;
mod networks;
mod policies;
mod postings;
pub mod prefix;
pub mod probe;
mod program;
mod questions;
mod recorder;
mod rulesets;
pub mod selector;
mod slab;
pub mod state;
pub mod state_lookup;
