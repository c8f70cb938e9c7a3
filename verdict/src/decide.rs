//! The one decision: a packet at a hook, against the maps, gives a verdict with a reason and a rule.
//!
//! The order of the checks, each of which settles the packet or hands it on:
//!
//! 1. headers are read; a flow that approves the packet at this device lets it pass (the fast path)
//! 2. the device's endpoint and its configuration; an endpoint that is not enforced lets everything pass
//! 3. headers that could not be read
//! 4. source and destination are the endpoint's own; ARP and neighbour discovery end here
//! 5. later fragments follow their first; a pod reaches itself; ICMP errors follow the flow they are about
//! 6. the rules: of a packet that belongs to a flow, in the direction the flow was opened; else as a new connection

use crate::{
    Scratch,
    address::Address,
    answer, connection, dns,
    flow::{self, Moment},
    layout::{Flow, FlowKey, config_flag, event_kind, rule},
    maps::{Hook, Maps, Packet},
    packet::{self, Kind, Role},
    policy, quota,
    reason::Reason,
    record::{self, NO_EVENT, Outcome, Record},
    related, spoof,
};

/// Time after its first that a fragment is still taken, nanoseconds; what Linux waits for the rest of a datagram.
const FRAGMENT_TIME: u64 = 30_000_000_000;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Why; [`Reason::passes`] says whether.
    pub reason: Reason,
    /// The rule that decided; [`rule::NONE`] when none was asked.
    pub rule: u32,
}

/// A part of the decision that the kernel checks as a function of its own. A stage reads and writes [`Scratch`] only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Walks the packet's IPv6 extension headers.
    Extensions,
    /// Walks those of the packet inside an ICMP error.
    InnerExtensions,
    /// Everything but the fast path.
    Settle,
    /// Looks which ends of the packet are the endpoint's own.
    Ends,
    /// Looks whether an address is.
    Own,
    /// Judges neighbour discovery a pod sends.
    Discover,
    /// Judges an ICMP error.
    IcmpError,
    /// Judges by rules.
    ByRules,
    /// Asks the endpoint's rules one question.
    Ask,
    /// Walks a list of alternatives.
    Evaluate,
    /// Looks whether a guard holds.
    Guard,
    /// Opens a flow.
    Open,
    /// Writes events, denials and fragments.
    Record,
    /// Writes the answer of a rule that rejects.
    Answer,
    /// Notes a query for a name, or learns from an answer.
    Names,
    /// Learns one address.
    Learn,
}

impl Stage {
    /// Runs the stage.
    #[inline(always)]
    pub fn run<P: Packet, M: Maps>(self, packet: &P, maps: &M, scratch: &mut Scratch) {
        match self {
            Self::Extensions => packet::extensions(packet, &mut scratch.headers),
            Self::InnerExtensions => packet::extensions(packet, &mut scratch.inner),
            Self::Settle => scratch.reason = settle(packet, maps, scratch),
            Self::Ends => ends(maps, scratch),
            Self::Own => scratch.own = owns(maps, scratch),
            Self::Discover => scratch.reason = discover(packet, maps, scratch),
            Self::IcmpError => scratch.reason = related::icmp_error(packet, maps, scratch),
            Self::ByRules => scratch.reason = connection::by_rules(packet, maps, scratch),
            Self::Ask => scratch.reason = connection::ask(packet, maps, scratch),
            Self::Evaluate => scratch.reason = policy::evaluate(packet, maps, scratch),
            Self::Guard => policy::look(packet, maps, scratch),
            Self::Open => scratch.reason = connection::open(packet, maps, scratch),
            Self::Record => write_down(packet, maps, scratch),
            Self::Answer => answer::write(packet, maps, scratch),
            Self::Names => dns::run(packet, maps, scratch),
            Self::Learn => dns::learn(packet, maps, scratch),
        }
    }
}

/// Judges a packet at a pod's device.
#[inline(always)]
pub fn decide<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, hook: Hook) -> Verdict {
    judge(packet, maps, scratch, hook, false);
    leave(packet, maps, scratch, hook, false)
}

/// Judges a packet at a device that leads out of the node, where the endpoint is the node itself: [`Hook::FromPod`] is what leaves it,
/// [`Hook::ToPod`] what comes in. What is not from or to an address of the node's own passes: it is judged at its pod's device.
#[inline(always)]
pub fn decide_host<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, hook: Hook) -> Verdict {
    judge(packet, maps, scratch, hook, true);
    leave(packet, maps, scratch, hook, true)
}

/// Learns names, counts and records. Every verdict leaves from the end of this function.
#[inline(always)]
fn leave<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, hook: Hook, host: bool) -> Verdict {
    // What pods ask passes an uplink as well, and would teach the node.
    if !host && scratch.reason.passes() && dns::concerns(&scratch.headers, hook) {
        packet.stage(maps, scratch, Stage::Names);
    }
    maps.count(hook, scratch.reason as u8, scratch.moment.length);
    let first = record::is_first_fragment(&scratch.headers) && !(host && scratch.reason == Reason::Transit);
    if !scratch.reason.passes() || scratch.record.event != NO_EVENT || first {
        packet.stage(maps, scratch, Stage::Record);
    }
    if !scratch.reason.passes() {
        scratch.answer.clear();
        if answer::wanted(scratch) {
            packet.stage(maps, scratch, Stage::Answer);
        }
    }
    Verdict {
        reason: scratch.reason,
        rule: scratch.record.rule,
    }
}

/// What the exit writes, besides the counter.
#[inline(always)]
fn write_down<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) {
    let outcome = Outcome {
        hook: scratch.hook,
        reason: scratch.reason,
    };
    let (headers, record) = (&scratch.headers, &mut scratch.record);
    if record::is_first_fragment(headers) {
        record::first_fragment(packet, maps, headers, outcome);
    }
    if !outcome.reason.passes()
        && record::deny(packet, maps, headers, record, outcome, scratch.moment.now)
        && record.event == NO_EVENT
    {
        record.event = event_kind::DENY;
    }
    if record.event != NO_EVENT {
        record::event(packet, maps, headers, record, outcome);
    }
}

/// The fast path; what it does not settle goes on to [`settle`].
#[inline(always)]
fn judge<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, hook: Hook, host: bool) {
    scratch.hook = hook;
    scratch.record = Record::EMPTY;
    scratch.moment = Moment {
        now: maps.now(),
        ifindex: packet.ifindex(),
        epoch: maps.epoch(),
        peer_epoch: 0,
        length: packet.length(),
    };
    scratch.refused = packet::network(packet, &mut scratch.headers).err();
    if scratch.refused.is_none() {
        if scratch.headers.has_extensions() {
            packet.stage(maps, scratch, Stage::Extensions);
        }
        scratch.refused = packet::transport(packet, &mut scratch.headers).err();
    }
    if host && let Some(reason) = beside(maps, scratch) {
        scratch.reason = reason;
        return;
    }
    if scratch.refused.is_none() && scratch.headers.kind == Kind::Flow {
        scratch.source_is_low = flow::key_of(&scratch.headers, maps.zone(), &mut scratch.key);
        let peer = match hook {
            Hook::FromPod => &scratch.headers.destination,
            Hook::ToPod => &scratch.headers.source,
        };
        scratch.moment.peer_epoch = maps.peer_epoch(peer.epoch_slot());
        let found = find(maps, &scratch.key, &mut scratch.confirmed);
        scratch.unknown = found.is_none();
        if let Some(flow) = found
            && established(maps, scratch, &flow, host)
        {
            scratch.reason = Reason::Established;
            return;
        }
    }
    scratch.host = host;
    packet.stage(maps, scratch, Stage::Settle);
}

/// What passes an uplink beside the node: the link's own messages, and what is neither from nor to one of its addresses.
#[inline(always)]
fn beside<M: Maps>(maps: &M, scratch: &Scratch) -> Option<Reason> {
    let headers = &scratch.headers;
    match headers.kind {
        Kind::Arp => return Some(Reason::Arp),
        Kind::Neighbour => return Some(Reason::NeighbourDiscovery),
        Kind::Flow | Kind::LaterFragment | Kind::IcmpError => {}
    }
    let own = match scratch.hook {
        Hook::FromPod => &headers.source,
        Hook::ToPod => &headers.destination,
    };
    if maps.own(own) { None } else { Some(Reason::Transit) }
}

/// The flow of a key, and whether it is in CONFIRMED.
#[inline(always)]
pub(crate) fn find<M: Maps>(maps: &M, key: &FlowKey, confirmed: &mut bool) -> Option<M::FlowRef> {
    let found = maps.confirmed(key);
    *confirmed = found.is_some();
    if found.is_some() { found } else { maps.tentative(key) }
}

/// True when the flow approves the packet at this device; counts it.
#[inline(always)]
fn established<M: Maps>(maps: &M, scratch: &mut Scratch, flow: &Flow, host: bool) -> bool {
    let (headers, moment) = (&scratch.headers, &scratch.moment);
    let forward = (flow.initiator_is_low.get() == 1) == scratch.source_is_low;
    let index = flow::side_index(scratch.hook, forward);
    let side = flow::side(flow, index);
    let Some(config) = flow::approved(maps, &scratch.key, side, moment) else {
        return false;
    };
    if !flow::fits(headers, forward)
        || flow::expired(flow, headers.protocol, scratch.confirmed, moment.now, |class| {
            maps.idle(class)
        })
        || headers.role == Role::Opens && flow::closed(flow)
    {
        return false;
    }
    // The source address is the flow's, which was the endpoint's own when this generation was approved.
    if !host
        && scratch.hook == Hook::FromPod
        && !maps
            .config(config)
            .is_some_and(|config| config.has_mac(headers.source_mac))
    {
        return false;
    }
    scratch.record.rule = side.rule.get();
    flow::touch(maps, flow, headers, index, forward, moment);
    if !scratch.confirmed && flow::earns_confirmation(flow, headers, forward) {
        promote(maps, &scratch.key, flow);
    }
    true
}

/// Moves a flow to CONFIRMED, if its endpoint may have one more there. The element may have been given to another flow
/// meanwhile; then the copy is of that one, and goes.
#[inline(always)]
pub(crate) fn promote<M: Maps>(maps: &M, key: &FlowKey, flow: &Flow) {
    let (id, slot) = (flow.id.get(), quota::charged(flow));
    if !quota::admits(maps, flow) || !maps.confirm(key, flow) {
        return;
    }
    if let Some(copy) = maps.confirmed(key)
        && copy.id.get() != id
    {
        maps.remove_flow(key);
    } else {
        quota::count(maps, slot, true);
    }
}

/// Everything but the fast path.
#[inline(always)]
fn settle<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    // No flow approves an answer: what it answers was refused.
    if packet.is_answer() {
        return Reason::Answer;
    }
    if scratch.host {
        return settle_host(packet, maps, scratch);
    }
    let Some(slot) = maps.device(scratch.moment.ifindex) else {
        return Reason::UnknownEndpoint;
    };
    scratch.record.slot = slot;
    let Some(word) = maps.endpoint(slot) else {
        return Reason::MissingConfig;
    };
    scratch.record.generation = word.generation;
    scratch.word = word;
    if word.config == 0 {
        return Reason::MissingConfig;
    }
    let Some(config) = maps.config(word.config) else {
        return Reason::MissingConfig;
    };
    if config.ifindex != scratch.moment.ifindex {
        return Reason::UnknownEndpoint;
    }
    if config.flags & config_flag::ENFORCE == 0 {
        scratch.record.rule = rule::UNMANAGED;
        return Reason::Unmanaged;
    }
    if let Some(reason) = scratch.refused {
        return reason;
    }
    let hook = scratch.hook;
    packet.stage(maps, scratch, Stage::Ends);
    if let Some(reason) = spoof::check(config, &scratch.headers, scratch.owned, hook) {
        return reason;
    }
    let headers = &scratch.headers;
    if headers.kind == Kind::Neighbour {
        packet.stage(maps, scratch, Stage::Discover);
        return scratch.reason;
    }
    if headers.kind == Kind::LaterFragment {
        return later_fragment(packet, maps, scratch);
    }
    // The other end is the endpoint's own as well: `check` has seen to this one.
    let (other, own) = match hook {
        Hook::FromPod => (headers.destination, scratch.owned.destination),
        Hook::ToPod => (headers.source, scratch.owned.source),
    };
    if own {
        scratch.record.rule = rule::SELF;
        return Reason::SelfTraffic;
    }
    scratch.question.peer = other;
    packet.stage(
        maps,
        scratch,
        if headers.kind == Kind::IcmpError {
            Stage::IcmpError
        } else {
            Stage::ByRules
        },
    );
    scratch.reason
}

/// Everything but the fast path, where the endpoint is the node. It has no endpoint while no policy is about it: nothing is judged.
#[inline(always)]
fn settle_host<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    scratch.record.rule = rule::UNMANAGED;
    let Some(slot) = maps.device(scratch.moment.ifindex) else {
        return Reason::Unmanaged;
    };
    scratch.record.slot = slot;
    let Some(word) = maps.endpoint(slot) else {
        return Reason::Unmanaged;
    };
    scratch.record.generation = word.generation;
    scratch.word = word;
    if word.config == 0 {
        return Reason::Unmanaged;
    }
    let Some(config) = maps.config(word.config) else {
        return Reason::Unmanaged;
    };
    // A slot that a pod has by now: its rules are not the node's.
    if config.flags & (config_flag::ENFORCE | config_flag::HOST) != config_flag::ENFORCE | config_flag::HOST {
        return Reason::Unmanaged;
    }
    scratch.record.rule = rule::NONE;
    if let Some(reason) = scratch.refused {
        return reason;
    }
    let headers = &scratch.headers;
    let other = match scratch.hook {
        Hook::FromPod => headers.destination,
        Hook::ToPod => headers.source,
    };
    // What the node sends to itself never comes in from outside.
    if scratch.hook == Hook::ToPod && maps.own(&other) {
        return Reason::SpoofedAddress;
    }
    if headers.kind == Kind::LaterFragment {
        return later_fragment(packet, maps, scratch);
    }
    scratch.question.peer = other;
    packet.stage(
        maps,
        scratch,
        if headers.kind == Kind::IcmpError {
            Stage::IcmpError
        } else {
            Stage::ByRules
        },
    );
    scratch.reason
}

/// Whether an address is the endpoint's own.
#[inline(always)]
pub(crate) fn ask_own<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, address: Address) -> bool {
    scratch.asked = address;
    packet.stage(maps, scratch, Stage::Own);
    scratch.own
}

/// Which ends of the packet are the endpoint's own; none where its configuration is missing.
#[inline(always)]
fn ends<M: Maps>(maps: &M, scratch: &mut Scratch) {
    let (mut source, mut destination) = (false, false);
    if let Some(config) = maps.config(scratch.word.config) {
        for (own, number) in config.addresses.iter().zip(0_u32..) {
            let counts = number < config.address_count;
            source |= counts & own.same(&scratch.headers.source);
            destination |= counts & own.same(&scratch.headers.destination);
        }
    }
    (scratch.owned.source, scratch.owned.destination) = (source, destination);
}

/// The stage of [`ask_own`].
#[inline(always)]
fn owns<M: Maps>(maps: &M, scratch: &Scratch) -> bool {
    if scratch.host {
        return maps.own(&scratch.asked);
    }
    maps.config(scratch.word.config)
        .is_some_and(|config| config.owns(&scratch.asked))
}

/// Neighbour discovery a pod sends.
#[inline(always)]
fn discover<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let target = spoof::target(packet, &scratch.headers);
    scratch.owned.target = ask_own(packet, maps, scratch, target);
    let Some(config) = maps.config(scratch.word.config) else {
        return Reason::MissingConfig;
    };
    spoof::discover(packet, config, &scratch.headers, scratch.owned)
}

/// A later fragment passes when its first did, not long ago, at the same hook.
#[inline(always)]
fn later_fragment<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &Scratch) -> Reason {
    let key = record::fragment_key(packet, maps, &scratch.headers, scratch.hook);
    match maps.fragment(&key) {
        Some(first) if first.passed == 1 && scratch.moment.now.saturating_sub(first.seen) <= FRAGMENT_TIME => {
            Reason::Fragment
        }
        _ => Reason::FragmentOrphan,
    }
}
