//! What the rules say of a packet: as part of its flow, in the direction the flow was opened, or as a new connection.
//!
//! A flow that loses its permission stays known, without approval: its first packet after that is `Revoked`, later ones
//! `PolicyDenied`, until rules allow it again or its idle time-out (which dropped packets do not put off) has passed.

use crate::{
    Scratch,
    decide::{Stage, find, promote},
    flow,
    layout::{Config, DRAINING, Flow, Side, Word, action, address_flag, config_flag, event_kind, guard, rule},
    maps::{Hook, Maps, Packet},
    packet::{Headers, Role, tcp},
    policy::{self, Direction},
    port::protocol,
    quota,
    reason::Reason,
    record,
};

/// How long a flow that is only allowed to end has for it, nanoseconds.
pub const DRAIN_TIME: u64 = 300_000_000_000;

/// Asks the rules about a packet, and opens, renews or cuts its flow.
#[inline(always)]
pub(crate) fn by_rules<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let Some(config) = maps.config(scratch.word.config) else {
        return Reason::MissingConfig;
    };
    // Two lookups less for a stranger; one that another CPU has let in since then is found when this one is.
    let found = if scratch.unknown {
        None
    } else {
        find(maps, &scratch.key, &mut scratch.confirmed)
    };
    let (headers, now) = (&scratch.headers, scratch.moment.now);
    let role = headers.role;
    let mut second = None;
    let mut belongs = false;
    scratch.forward = true;
    scratch.was_node = false;
    scratch.question.live = 0;
    if let Some(flow) = &found {
        let forward = (flow.initiator_is_low.get() == 1) == scratch.source_is_low;
        let ended = flow::expired(flow, headers.protocol, scratch.confirmed, now, |class| maps.idle(class));
        if !ended && !(role == Role::Opens && (!forward || flow::closed(flow))) {
            if !flow::fits(headers, forward) {
                return Reason::MidStream;
            }
            belongs = true;
            scratch.forward = forward;
            let side = flow::side(flow, flow::side_index(scratch.hook, forward));
            let builtin = if scratch.host { rule::FORWARDED } else { rule::NODE };
            scratch.was_node = side.approval.get() != 0 && side.rule.get() == builtin;
            scratch.question.live = u8::from(side.approval.get() != 0 && !flow::closed(flow));
            // Nothing has come this way yet, so the sender may as well be opening a flow of its own. Not so where this
            // side was approved once: what was cut is not to come back as the other end's idea.
            if role == Role::Either && !forward && side.ifindex.get() == 0 {
                second = Some(true);
            }
        }
    }
    let adopts = !belongs && role == Role::Follows;
    // What the node sends on for others was judged at their devices, as what it is.
    if adopts && !(scratch.host && forwards(packet, scratch.hook)) {
        if !may_adopt(config, headers, now) {
            return Reason::MidStream;
        }
        // Servers listen on the smaller port; if the rules do not allow it that way round, the other is tried.
        scratch.forward = u16::from_be(headers.source_port) >= u16::from_be(headers.destination_port);
        second = Some(!scratch.forward);
    }
    policy::identify(maps, &mut scratch.question);
    packet.stage(maps, scratch, Stage::Ask);
    if !scratch.reason.passes()
        && let Some(other) = second
    {
        scratch.forward = other;
        belongs = false;
        packet.stage(maps, scratch, Stage::Ask);
    }
    note(scratch, config);
    if belongs && let Some(flow) = found {
        return renew(maps, scratch, &flow);
    }
    let answer = scratch.reason;
    if !answer.passes() {
        return if adopts { Reason::MidStream } else { answer };
    }
    packet.stage(maps, scratch, Stage::Open);
    match scratch.reason {
        Reason::Allowed => {
            if adopts {
                Reason::Adopted
            } else {
                answer
            }
        }
        refused => refused,
    }
}

/// At an uplink: the node sends it under its own address, but no socket of its own did.
#[inline(always)]
fn forwards<P: Packet>(packet: &P, hook: Hook) -> bool {
    hook == Hook::FromPod && !packet.has_socket()
}

/// Whether TCP that is already under way is taken over instead of dropped.
#[inline(always)]
fn may_adopt(config: &Config, headers: &Headers, now: u64) -> bool {
    headers.protocol == protocol::TCP
        && headers.tcp_flags & tcp::RST == 0
        && config.flags & config_flag::ADOPT != 0
        && now < config.adopt_until
}

/// Asks whether the connection may be, opened in the packet's direction or against it.
#[inline(always)]
pub(crate) fn ask<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let Some(config) = maps.config(scratch.word.config) else {
        return Reason::MissingConfig;
    };
    let forward = scratch.forward;
    let headers = &scratch.headers;
    let responder_port = if forward {
        headers.destination_port
    } else {
        headers.source_port
    };
    let index = flow::side_index(scratch.hook, forward);
    let direction = if index == 0 {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let question = &mut scratch.question;
    let local = question.peer_flags & (address_flag::LOCAL_NODE | address_flag::POD) == address_flag::LOCAL_NODE;
    // A socket can only be asked for what it sends; the answers to it go by what was found then.
    let (builtin, reason, holds) = if scratch.host {
        let forwarded = if forward {
            forwards(packet, scratch.hook)
        } else {
            scratch.was_node
        };
        (rule::FORWARDED, Reason::Allowed, index == 0 && forwarded)
    } else {
        let by_node = local && index == 1 && if forward { packet.has_socket() } else { scratch.was_node };
        (rule::NODE, Reason::NodeTraffic, by_node)
    };
    if holds {
        question.rule = builtin;
        question.shadow_rule = builtin;
        question.shadow_drop = 0;
        question.guard = guard::NONE;
        question.action = action::ALLOW;
        question.deadline = u64::MAX;
        return reason;
    }
    policy::ask(
        question,
        config,
        direction,
        flow::position(headers.protocol, responder_port),
        scratch.moment.now,
    );
    policy::judge(packet, maps, scratch)
}

/// Takes the answer over into the record.
#[inline(always)]
fn note(scratch: &mut Scratch, config: &Config) {
    let forward = scratch.forward;
    let (record, question) = (&mut scratch.record, &scratch.question);
    record.rule = question.rule;
    record.shadow_rule = question.shadow_rule;
    record.shadow_drop = question.shadow_drop;
    record.guard = question.guard;
    record.reply = u8::from(!forward);
    if flow::side_index(scratch.hook, forward) == 0 {
        record.source_identity = config.identity;
        record.destination_identity = question.peer_identity;
    } else {
        record.source_identity = question.peer_identity;
        record.destination_identity = config.identity;
    }
}

/// Approves a known flow again at this side, or cuts it.
#[inline(always)]
fn renew<M: Maps>(maps: &M, scratch: &mut Scratch, flow: &Flow) -> Reason {
    let (forward, answer) = (scratch.forward, scratch.reason);
    let index = flow::side_index(scratch.hook, forward);
    let side = flow::side(flow, index);
    let lived = side.approval.get() != 0;
    scratch.record.flow = flow.id.get();
    if !answer.passes() {
        if lived && spare(scratch, flow, index, answer) {
            flow::touch(maps, flow, &scratch.headers, index, forward, &scratch.moment);
            return Reason::Kept;
        }
        if lived {
            side.approval.set(0);
            scratch.record.event = event_kind::CUT;
        }
        return if lived && answer == Reason::PolicyDenied {
            Reason::Revoked
        } else {
            answer
        };
    }
    approve(scratch, side);
    on_change(flow, index).set(scratch.question.action & (action::DRAIN | action::KEEP));
    let bit = 1 << index;
    let shadow = flow.shadow_drop.get() & !bit;
    flow.shadow_drop.set(if scratch.record.shadow_drop == 1 {
        shadow | bit
    } else {
        shadow
    });
    flow.source_identity.set(scratch.record.source_identity);
    flow.destination_identity.set(scratch.record.destination_identity);
    if !lived {
        scratch.record.event = event_kind::OPEN;
    }
    flow::touch(maps, flow, &scratch.headers, index, forward, &scratch.moment);
    if !scratch.confirmed && flow::earns_confirmation(flow, &scratch.headers, forward) {
        promote(maps, &scratch.key, flow);
    }
    if forward { answer } else { Reason::ReplyAllowed }
}

/// Lets a live flow that a rule denies go on, where its policy says so: with the approval it had, under the rule that gave it.
///
/// Not where anything but a rule refuses it, and not what another endpoint was approved for.
#[inline(always)]
fn spare(scratch: &mut Scratch, flow: &Flow, index: u8, answer: Reason) -> bool {
    let (side, now) = (flow::side(flow, index), scratch.moment.now);
    let marks = on_change(flow, index);
    let mut says = scratch.question.action;
    if says & action::DEFAULT != 0 {
        says |= marks.get();
    }
    if answer != Reason::PolicyDenied
        || side.ifindex.get() != scratch.moment.ifindex
        || side.slot.get() != scratch.record.slot
    {
        return false;
    }
    let draining = marks.get() & DRAINING != 0;
    scratch.question.deadline = if says & action::KEEP != 0 {
        u64::MAX
    } else if says & action::DRAIN == 0 {
        return false;
    } else if draining {
        side.deadline.get()
    } else {
        now.saturating_add(DRAIN_TIME)
    };
    if now >= scratch.question.deadline {
        return false;
    }
    if says & action::KEEP == 0 {
        marks.set(marks.get() | DRAINING);
    }
    scratch.question.rule = side.rule.get();
    scratch.question.shadow_rule = side.shadow_rule.get();
    approve(scratch, side);
    true
}

/// What a side of a flow remembers for the day it is no longer allowed.
#[inline(always)]
const fn on_change(flow: &Flow, index: u8) -> &Word<u8> {
    let [initiator, responder] = &flow.on_change;
    if index == 0 { initiator } else { responder }
}

/// Writes an approval. Invalid while its words change; see [`Side::approval`] for what holds it together.
#[inline(always)]
fn approve(scratch: &Scratch, side: &Side) {
    let (moment, question) = (&scratch.moment, &scratch.question);
    let binding = flow::Binding {
        ifindex: moment.ifindex,
        slot: scratch.record.slot,
        deadline: question.deadline,
        epoch: moment.epoch,
        peer_epoch: moment.peer_epoch,
    };
    side.approval.set(0);
    side.deadline.set(binding.deadline);
    side.ifindex.set(binding.ifindex);
    side.slot.set(binding.slot);
    side.peer_epoch.set(binding.peer_epoch);
    side.epoch.set(binding.epoch);
    side.rule.set(question.rule);
    side.shadow_rule.set(question.shadow_rule);
    side.approval
        .set(flow::approval(&scratch.key, binding, scratch.word.generation));
}

/// Opens a flow, in place of an old one with the same key. [`Reason::Allowed`], or why there is no room.
#[inline(always)]
pub(crate) fn open<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    if let Some(old) = find(maps, &scratch.key, &mut scratch.confirmed) {
        record::close(packet, maps, &scratch.key, &old, scratch.hook);
        if scratch.confirmed {
            quota::count(maps, quota::charged(&old), false);
        }
        maps.remove_flow(&scratch.key);
    }
    // A node's are not counted: among them are those of all its pods behind its address, which were counted at their devices.
    if !scratch.host && !quota::take_opening(maps, scratch.record.slot, scratch.moment.now) {
        return Reason::FlowQuota;
    }
    let forward = scratch.forward;
    let index = flow::side_index(scratch.hook, forward);
    let (cpu, number) = maps.next_flow_id();
    let id = u64::from(cpu) << 48 | number & 0xffff_ffff_ffff;
    scratch.flow.clear();
    approve(scratch, flow::side(&scratch.flow, index));
    on_change(&scratch.flow, index).set(scratch.question.action & (action::DRAIN | action::KEEP));
    let (flow, record) = (&mut scratch.flow, &mut scratch.record);
    flow.id = Word::new(id);
    flow.cpu = Word::new((cpu & 0xffff) as u16);
    flow.first_seen = Word::new(maps.boot_time());
    flow.last_seen = Word::new(scratch.moment.now);
    flow.source_identity = Word::new(record.source_identity);
    flow.destination_identity = Word::new(record.destination_identity);
    flow.initiator_is_low = Word::new(u8::from(scratch.source_is_low == forward));
    flow.shadow_drop = Word::new(record.shadow_drop << index);
    let length = Word::new(u64::from(scratch.moment.length));
    let flags = Word::new(scratch.headers.tcp_flags);
    let ([sent, received], [sent_bytes, received_bytes]) = (&mut flow.packets, &mut flow.bytes);
    if forward {
        (*sent, *sent_bytes, flow.initiator_flags) = (Word::new(1), length, flags);
    } else {
        (*received, *received_bytes, flow.responder_flags) = (Word::new(1), length, flags);
    }
    if !maps.insert_tentative(&scratch.key, &scratch.flow) {
        return Reason::FlowTableFull;
    }
    record.flow = id;
    record.event = event_kind::OPEN;
    Reason::Allowed
}
