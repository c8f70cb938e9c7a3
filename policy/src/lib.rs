//! The pure policy core: objects in, compiled state and map writes out. No I/O, no clock, no async, no randomness.
//!
//! ```text
//! model (facts, policies) ─► index ─► compile ─► state (State, Delta) ─► plan (ordered map writes over verdict::layout)
//! ```

mod atom;
pub mod capacity;
mod check;
pub mod compiler;
pub mod delta;
pub mod diagnostic;
pub mod digest;
mod extent;
pub mod failsafe;
mod flatten;
pub mod fqdn;
mod frontends;
mod identity;
mod index;
pub mod intern;
pub mod lease;
pub mod model;
mod networks;
#[cfg(any(test, feature = "oracle"))]
pub mod oracle;
pub mod plan;
mod policies;
mod postings;
pub mod prefix;
pub mod probe;
mod program;
mod questions;
mod recorder;
pub mod references;
mod review;
mod rulesets;
pub mod selector;
mod slab;
pub mod state;
pub mod state_lookup;
pub mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
