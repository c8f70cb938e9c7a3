//! What an endpoint's rules say of a peer and a position: identity, port set, range, alternatives, guards.

use crate::{
    address::Address,
    layout::{
        Alternative, Config, LeaseKey, MAX_ALTERNATIVES, MAX_SEARCH, NameKey, RuleKey, action, address_flag, guard,
        identity, network_flag, rule, side,
    },
    maps::Maps,
    port::Position,
    reason::Reason,
};

/// Longest time an approval that depended on a guard is used without a look at the guard, nanoseconds.
pub const GUARD_CACHE: u64 = 60_000_000_000;
/// How far the coarse clock can be behind, nanoseconds (HZ = 100): a cached deadline is early by this, never late.
pub const COARSE_TICK: u64 = 10_000_000;

/// A question to the rules and its answer. Filled in place: it is too big to be handed around on the kernel's stack.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Question {
    /// The address of the peer.
    pub peer: Address,
    /// Coarse CLOCK_MONOTONIC, nanoseconds.
    pub now: u64,
    /// Until when the answer may be used: coarse CLOCK_MONOTONIC, `u64::MAX` when no guard was looked at.
    pub deadline: u64,
    /// CLOCK_BOOTTIME, nanoseconds; 0 = not read yet.
    pub boot: u64,
    /// Ruleset to ask.
    pub ruleset: u32,
    /// Position to ask for.
    pub position: u32,
    /// Image class of the endpoint.
    pub subject_class: u32,
    /// Image class of the peer; 0 = unknown.
    pub peer_class: u32,
    /// Identity of the peer; [`identity::NONE`] = unknown.
    pub peer_identity: u32,
    /// [`address_flag`] of the peer; 0 = not bound.
    pub peer_flags: u32,
    /// Rule that decides.
    pub rule: u32,
    /// Rule that decides in shadow.
    pub shadow_rule: u32,
    /// Identity to try second; [`identity::NONE`] = none.
    pub wider: u32,
    /// Guard of the deciding alternative.
    pub guard: u8,
    /// 1 = the shadow verdict is to drop.
    pub shadow_drop: u8,
    /// Zero.
    pub padding: [u8; 2],
}

/// Who the peer is. From exact to wide: its binding, else the prefix that covers it.
#[inline(always)]
pub fn identify<M: Maps>(maps: &M, question: &mut Question) {
    let zone = maps.zone();
    question.peer_class = 0;
    question.peer_flags = 0;
    question.peer_identity = identity::NONE;
    question.wider = identity::NONE;
    if let Some(entry) = maps.address(zone, &question.peer) {
        question.peer_identity = entry.identity;
        question.peer_class = entry.image_class;
        question.peer_flags = entry.flags;
        // A pod whose own identity did not fit is not "any pod": only what every pod may, it may.
        if entry.identity != identity::UNKNOWN_POD {
            question.wider =
                if entry.flags & address_flag::POD != 0 { identity::ANY_POD } else { identity::ANY_NODE };
        }
    } else if let Some(entry) = maps.network(zone, &question.peer) {
        question.peer_identity = entry.identity;
        if entry.flags & network_flag::POD_RANGE != 0 {
            question.wider = identity::UNKNOWN_POD;
        }
    }
}

/// Asks the rules about the peer that [`identify`] found. [`Reason::Allowed`] or the reason of the drop.
#[inline(always)]
pub fn judge<M: Maps>(maps: &M, question: &mut Question) -> Reason {
    question.rule = rule::NONE;
    question.shadow_rule = rule::NONE;
    question.deadline = u64::MAX;
    question.boot = 0;
    question.guard = guard::NONE;
    question.shadow_drop = 0;
    let mut found = None;
    for peer in [question.peer_identity, question.wider, identity::ANY_ADDRESS] {
        if found.is_none() && peer != identity::NONE {
            found = maps.rule(&RuleKey { ruleset: question.ruleset, peer });
        }
    }
    let Some(set) = found else { return Reason::MissingRuleset };
    let Some(index) = search(maps, set.first, set.count, question.position) else { return Reason::BrokenPortSet };
    let Some(range) = maps.range(index) else { return Reason::BrokenPortSet };
    if question.position < range.low || question.position > range.high {
        return Reason::BrokenPortSet;
    }
    if range.shadow != 0 {
        let reason = evaluate(maps, question, range.shadow);
        question.shadow_rule = question.rule;
        question.shadow_drop = u8::from(!reason.passes());
    }
    let reason = evaluate(maps, question, range.enforce);
    if range.shadow == 0 {
        question.shadow_rule = question.rule;
        question.shadow_drop = u8::from(!reason.passes());
    }
    reason
}

/// Index of the last range that begins at or before the position. Without a branch on what was read: the kernel's
/// verifier follows both ways of each, and would follow 2^16 of them.
#[inline(always)]
fn search<M: Maps>(maps: &M, first: u32, count: u32, position: u32) -> Option<u32> {
    let (mut base, mut left) = (first, count);
    if left == 0 {
        return None;
    }
    for _ in 0..MAX_SEARCH {
        if left <= 1 {
            break;
        }
        let half = left >> 1;
        let low = maps.range(base.wrapping_add(half))?.low;
        // All ones when low <= position; both are positions, far below 2^31.
        let right = position.wrapping_sub(low).wrapping_shr(31).wrapping_sub(1);
        base = base.wrapping_add(half & right);
        left = left.wrapping_sub(half);
    }
    if left == 1 { Some(base) } else { None }
}

/// Finds the first alternative whose guard holds. Writes its rule and guard; [`rule::NONE`] when the list is broken.
#[inline(always)]
fn evaluate<M: Maps>(maps: &M, question: &mut Question, first: u32) -> Reason {
    question.rule = rule::NONE;
    question.guard = guard::NONE;
    let mut index = first;
    for _ in 0..MAX_ALTERNATIVES {
        if index == 0 {
            break;
        }
        let Some(alternative) = maps.alternative(index) else { break };
        let Some(holds) = holds(maps, question, &alternative) else { break };
        if holds {
            question.rule = alternative.rule;
            question.guard = alternative.guard;
            return match alternative.action {
                action::ALLOW => Reason::Allowed,
                action::DENY => Reason::PolicyDenied,
                _ => Reason::UnknownAction,
            };
        }
        index = alternative.next;
    }
    Reason::BrokenAlternatives
}

/// Whether a guard holds now; notes until when that can be relied on. `None` for a guard this build does not know.
#[inline(always)]
fn holds<M: Maps>(maps: &M, question: &mut Question, alternative: &Alternative) -> Option<bool> {
    let deadline = match alternative.guard {
        guard::NONE => return Some(true),
        guard::LEASE => {
            let image_class = match alternative.side {
                side::SUBJECT => question.subject_class,
                side::PEER => question.peer_class,
                _ => return None,
            };
            maps.lease(&LeaseKey { profile: alternative.argument, image_class })
        }
        guard::UNTIL => maps.expiry(alternative.argument),
        guard::NAME => maps.name(&NameKey { address: question.peer, name: alternative.argument }),
        _ => return None,
    };
    let deadline = deadline.unwrap_or(0);
    if question.boot == 0 {
        question.boot = maps.boot_time();
    }
    let left = deadline.saturating_sub(question.boot);
    // A guard that does not hold can only come to hold by a write, which the cap finds late and an epoch at once.
    let rely = if left == 0 { GUARD_CACHE } else { left.saturating_sub(COARSE_TICK).min(GUARD_CACHE) };
    question.deadline = question.deadline.min(question.now.saturating_add(rely));
    Some((left != 0) != (alternative.negated == 1))
}

/// Fills the question for an endpoint's rules of one direction.
#[inline(always)]
pub fn ask(question: &mut Question, config: &Config, direction: Direction, position: Position, now: u64) {
    question.ruleset = match direction {
        Direction::Egress => config.egress,
        Direction::Ingress => config.ingress,
    };
    question.subject_class = config.image_class;
    question.position = position.0;
    question.now = now;
}

/// Whose connection it is, seen from the endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The endpoint opened it.
    Egress,
    /// The peer opened it.
    Ingress,
}
