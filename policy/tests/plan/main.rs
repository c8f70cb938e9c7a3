//! The planner's promises, each checked between any two writes: what a packet is told is what the old state or the new
//! one says, whatever is batched and wherever a plan is cut off.

mod bench;
mod carry;
mod clusters;
mod plans;
mod properties;
mod world;
