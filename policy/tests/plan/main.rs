//! The planner's promises, each checked between any two writes: what a packet is told is what the old state or the new
//! one says, whatever is batched and wherever a plan is cut off.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod carry;
#[cfg(test)]
mod clusters;
#[cfg(test)]
mod plans;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod world;
