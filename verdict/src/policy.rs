//! What an endpoint's rules say of a peer and a position: identity, port set, range, alternatives, guards.

use crate::{
    Scratch, Stage,
    address::Address,
    dns,
    layout::{
        Alternative, Config, LeaseKey, MAX_ALTERNATIVES, MAX_SEARCH, RANGES, RuleKey, action, address_flag, guard,
        identity, network_flag, rule, side,
    },
    maps::{Maps, Packet},
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
    /// Coarse `CLOCK_MONOTONIC`, nanoseconds.
    pub now: u64,
    /// Until when the answer may be used: coarse `CLOCK_MONOTONIC`, `u64::MAX` when no guard was looked at.
    pub deadline: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds; 0 = not read yet.
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
    /// Whether the guard of `alternative` holds.
    pub holds: u8,
    /// [`action`] of the deciding alternative.
    pub action: u8,
    /// 1 = asked for a flow that lives.
    pub live: u8,
    /// The alternative in hand.
    pub alternative: Alternative,
    /// Index of the first alternative to look at.
    pub first: u32,
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
        // A pod whose own identity did not fit is not "any pod": only what every pod may, it may. A frontend is neither.
        if entry.identity != identity::UNKNOWN_POD && entry.flags & address_flag::SERVICE == 0 {
            question.wider = if entry.flags & address_flag::POD != 0 {
                identity::ANY_POD
            } else {
                identity::ANY_NODE
            };
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
pub(crate) fn judge<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let question = &mut scratch.question;
    question.rule = rule::NONE;
    question.shadow_rule = rule::NONE;
    question.deadline = u64::MAX;
    question.boot = 0;
    question.guard = guard::NONE;
    question.shadow_drop = 0;
    let mut found = None;
    for peer in [question.peer_identity, question.wider, identity::ANY_ADDRESS] {
        if found.is_none() && peer != identity::NONE {
            found = maps.rule(&RuleKey {
                ruleset: question.ruleset,
                peer,
            });
        }
    }
    let Some(set) = found else {
        return Reason::MissingRuleset;
    };
    let Some(index) = search(maps, set.first, set.count, question.position) else {
        return Reason::BrokenPortSet;
    };
    let Some(range) = maps.range(index) else {
        return Reason::BrokenPortSet;
    };
    if question.position < range.low || question.position > range.high {
        return Reason::BrokenPortSet;
    }
    if range.shadow != 0 {
        question.first = range.shadow;
        packet.stage(maps, scratch, Stage::Evaluate);
        scratch.question.shadow_rule = scratch.question.rule;
        scratch.question.shadow_drop = u8::from(!scratch.reason.passes());
    }
    scratch.question.first = range.enforce;
    packet.stage(maps, scratch, Stage::Evaluate);
    if range.shadow == 0 {
        scratch.question.shadow_rule = scratch.question.rule;
        scratch.question.shadow_drop = u8::from(!scratch.reason.passes());
    }
    scratch.reason
}

/// Index of the last range that begins at or before the position. Without a branch on what was read: the kernel's
/// verifier follows both ways of each, and would follow 2^16 of them.
#[inline(always)]
fn search<M: Maps>(maps: &M, first: u32, count: u32, position: u32) -> Option<u32> {
    let (mut base, mut left) = (first, count);
    if left == 0 || left > RANGES || first > RANGES.wrapping_sub(left) {
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
pub(crate) fn evaluate<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    scratch.question.rule = rule::NONE;
    scratch.question.guard = guard::NONE;
    scratch.question.action = 0;
    let mut index = scratch.question.first;
    for _ in 0..MAX_ALTERNATIVES {
        if index == 0 {
            break;
        }
        let Some(alternative) = maps.alternative(index) else {
            break;
        };
        scratch.question.alternative = alternative;
        if alternative.guard != guard::NONE {
            packet.stage(maps, scratch, Stage::Guard);
        }
        if alternative.guard == guard::NONE || scratch.question.holds == holds::YES {
            scratch.question.rule = alternative.rule;
            scratch.question.guard = alternative.guard;
            scratch.question.action = alternative.action;
            return match action::verdict(alternative.action) {
                Some(action::ALLOW) => Reason::Allowed,
                Some(action::DENY) => Reason::PolicyDenied,
                _ => Reason::UnknownAction,
            };
        }
        if scratch.question.holds == holds::UNKNOWN {
            break;
        }
        index = alternative.next;
    }
    Reason::BrokenAlternatives
}

/// Answers of [`look`].
mod holds {
    /// The guard does not hold.
    pub(super) const NO: u8 = 0;
    /// It holds.
    pub(super) const YES: u8 = 1;
    /// This build does not know such a guard.
    pub(super) const UNKNOWN: u8 = 2;
}

/// Looks whether the guard of the alternative in hand holds.
#[inline(always)]
pub(crate) fn look<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) {
    let alternative = scratch.question.alternative;
    let mut known = 0;
    if alternative.guard == guard::NAME {
        scratch.question.boot = maps.boot_time();
        known = dns::known_until(packet, maps, scratch, alternative.argument);
    }
    let question = &mut scratch.question;
    question.holds = match holds_now(maps, question, &alternative, known) {
        Some(true) => holds::YES,
        Some(false) => holds::NO,
        None => holds::UNKNOWN,
    };
}

/// Whether a guard holds now (a name until `known`); notes until when that can be relied on. `None` for a guard this build does not know.
#[inline(always)]
fn holds_now<M: Maps>(maps: &M, question: &mut Question, alternative: &Alternative, known: u64) -> Option<bool> {
    let deadline = match alternative.guard {
        guard::NONE => return Some(true),
        guard::LEASE => {
            let image_class = match alternative.side {
                side::SUBJECT => question.subject_class,
                side::PEER => question.peer_class,
                _ => return None,
            };
            maps.lease(&LeaseKey {
                profile: alternative.argument,
                image_class,
            })
        }
        guard::UNTIL => maps.expiry(alternative.argument),
        guard::NAME => Some(known),
        _ => return None,
    };
    let deadline = deadline.unwrap_or(0);
    if question.boot == 0 {
        question.boot = maps.boot_time();
    }
    let left = deadline.saturating_sub(question.boot);
    // A guard that does not hold can only come to hold by a write, which the cap finds late and an epoch at once.
    let rely = if left == 0 {
        GUARD_CACHE
    } else {
        left.saturating_sub(COARSE_TICK).min(GUARD_CACHE)
    };
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
