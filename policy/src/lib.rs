//! The pure policy core: objects in, compiled state and map writes out. No I/O, no clock, no async, no randomness.
//!
//! ```text
//! model (facts, policies) ─► index ─► compile ─► state (State, Delta) ─► plan (ordered map writes over verdict::layout)
//! ```

pub mod delta;
pub mod diagnostic;
pub mod digest;
pub mod model;
pub mod state;
