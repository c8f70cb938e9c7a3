//! What one endpoint may take of the flow tables, so that a pod's flood is no other pod's outage.
//!
//! | table | what is limited | where the limit is reached |
//! |---|---|---|
//! | TENTATIVE | flows that nobody has answered yet: so many at once, so many per second in the long run | a new flow is refused, [`Reason::FlowQuota`](crate::reason::Reason::FlowQuota) |
//! | CONFIRMED | an endpoint has no more flows there than there is room for more | the flow stays tentative |
//!
//! The first reply gives an opening back, so a busy client is never near its limit. The second needs no number to be chosen: one
//! endpoint alone gets half of the table, two get a third each, and there is always room for the next one. A flow counts for the
//! endpoint that opened it, or for the one it was opened to where the other end is not on this node. The agent counts anew each time it
//! looks at the tables; without it the counts are kept here, and what they miss (flows that time out) only keeps flows tentative.

use crate::{
    layout::{CONFIRMED, ENDPOINTS, Flow, Word},
    maps::Maps,
};

/// Openings at once.
pub const BURST: u64 = 8_192;
/// Time in which one more may be opened, nanoseconds, unless configured: 4,000 per second.
pub const INTERVAL: u64 = 250_000;
/// Element of QUOTAS that counts for all endpoints.
pub const ALL: u32 = ENDPOINTS;

/// The slot of the endpoint a flow counts for.
#[inline(always)]
pub fn charged(flow: &Flow) -> u32 {
    let [initiator, responder] = &flow.sides;
    if initiator.ifindex.get() != 0 {
        initiator.slot.get()
    } else {
        responder.slot.get()
    }
}

/// Takes an opening from an endpoint's budget (a generic cell rate algorithm over one word). Two CPUs may both take the last one.
#[inline(always)]
pub(crate) fn take_opening<M: Maps>(maps: &M, slot: u32, now: u64) -> bool {
    let interval = maps.opening_interval();
    if interval == 0 {
        return true;
    }
    let Some(quota) = maps.quota(slot) else {
        return false;
    };
    let next = quota.openings.get().max(now);
    if next.wrapping_sub(now) >= interval.saturating_mul(BURST) {
        return false;
    }
    quota.openings.set(next.wrapping_add(interval));
    true
}

/// Whether a flow may move to CONFIRMED. Its endpoint gets the opening back in any case: somebody answered.
#[inline(always)]
pub(crate) fn admits<M: Maps>(maps: &M, flow: &Flow) -> bool {
    let Some(quota) = maps.quota(charged(flow)) else {
        return false;
    };
    let openings = quota.openings.get();
    quota.openings.set(openings.saturating_sub(maps.opening_interval()));
    let room = maps
        .quota(ALL)
        .map_or(0, |all| u64::from(CONFIRMED).saturating_sub(known(&all.confirmed)));
    known(&quota.confirmed) < room
}

/// Counts a flow that came to CONFIRMED, or one that left.
#[inline(always)]
pub(crate) fn count<M: Maps>(maps: &M, slot: u32, more: bool) {
    let amount = if more { 1 } else { u64::MAX };
    for element in [slot, ALL] {
        if let Some(quota) = maps.quota(element) {
            maps.add(&quota.confirmed, amount);
        }
    }
}

/// A count. Below nothing is nothing: the agent may have counted a flow out that the kernel counts out as well.
#[inline(always)]
fn known(word: &Word<u64>) -> u64 {
    let count = word.get();
    if count >> 63 == 1 { 0 } else { count }
}
