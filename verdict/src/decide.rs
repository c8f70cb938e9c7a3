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
    address::Address,
    flow::{self, Moment},
    layout::{Config, EndpointWord, Flow, FlowKey, Side, Word, address_flag, config_flag, event_kind, rule},
    maps::{Hook, Maps, Packet},
    packet::{self, Headers, Kind, Role, tcp},
    policy::{self, Direction, Question},
    port::protocol,
    reason::Reason,
    record::{self, NO_EVENT, Outcome, Record},
    spoof::{self, Owned},
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

/// Working memory of one decision. The caller's, because the kernel's stack is 512 bytes; what it holds between two
/// decisions does not matter.
#[repr(C)]
pub struct Scratch {
    headers: Headers,
    inner: Headers,
    key: FlowKey,
    moment: Moment,
    pub(crate) question: Question,
    record: Record,
    flow: Flow,
    /// The hook.
    hook: Hook,
    /// The endpoint word as it was read.
    word: EndpointWord,
    /// An address, and whether it is the endpoint's own.
    asked: Address,
    own: bool,
    /// Which of the packet's addresses are.
    owned: Owned,
    /// What was wrong with the headers.
    refused: Option<Reason>,
    /// What the last stage concluded.
    pub(crate) reason: Reason,
    /// The connection asked about is the packet's own direction, not the one it answers.
    forward: bool,
    /// The source is the key's low end.
    source_is_low: bool,
    /// The flow that was found is in CONFIRMED.
    confirmed: bool,
    /// The flow was approved at this side by `builtin/node`.
    was_node: bool,
}

impl Scratch {
    /// Memory for one decision after the other.
    pub fn new() -> Self {
        Self {
            headers: Headers::default(),
            inner: Headers::default(),
            key: FlowKey::default(),
            moment: Moment::default(),
            question: Question::default(),
            record: Record::EMPTY,
            flow: Flow::default(),
            hook: Hook::FromPod,
            word: EndpointWord::default(),
            asked: Address::UNSPECIFIED,
            own: false,
            owned: Owned::default(),
            refused: None,
            reason: Reason::MissingConfig,
            forward: true,
            source_is_low: false,
            confirmed: false,
            was_node: false,
        }
    }
}

impl Scratch {
    /// The verdict that scratch memory read from the kernel (a per-CPU element of `BK_SCRATCH`) was left with; `None`
    /// when it is not of this build's size, or has a reason this build does not know.
    #[cfg(any(test, feature = "host"))]
    pub fn verdict_in(bytes: &[u8]) -> Option<Verdict> {
        let rule = std::mem::offset_of!(Self, record).checked_add(std::mem::offset_of!(Record, rule))?;
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        Some(Verdict {
            reason: Reason::from_number(*bytes.get(std::mem::offset_of!(Self, reason))?)?,
            rule: u32::from_ne_bytes(bytes.get(rule..)?.first_chunk::<4>().copied()?),
        })
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
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
    /// Looks whether an address is the endpoint's own.
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
}

impl Stage {
    /// Runs the stage.
    #[inline(always)]
    pub fn run<P: Packet, M: Maps>(self, packet: &P, maps: &M, scratch: &mut Scratch) {
        match self {
            Self::Extensions => packet::extensions(packet, &mut scratch.headers),
            Self::InnerExtensions => packet::extensions(packet, &mut scratch.inner),
            Self::Settle => scratch.reason = settle(packet, maps, scratch),
            Self::Own => scratch.own = owns(maps, scratch),
            Self::Discover => scratch.reason = discover(packet, maps, scratch),
            Self::IcmpError => scratch.reason = icmp_error(packet, maps, scratch),
            Self::ByRules => scratch.reason = by_rules(packet, maps, scratch),
            Self::Ask => scratch.reason = ask(packet, maps, scratch),
            Self::Evaluate => scratch.reason = policy::evaluate(packet, maps, scratch),
            Self::Guard => policy::look(maps, &mut scratch.question),
            Self::Open => scratch.reason = open(packet, maps, scratch),
            Self::Record => write_down(packet, maps, scratch),
        }
    }
}

/// Judges a packet. Every verdict leaves from the end of this function, which counts and records it.
#[inline(always)]
pub fn decide<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, hook: Hook) -> Verdict {
    judge(packet, maps, scratch, hook);
    maps.count(hook, scratch.reason as u8, scratch.moment.length);
    if !scratch.reason.passes() || scratch.record.event != NO_EVENT || record::is_first_fragment(&scratch.headers) {
        packet.stage(maps, scratch, Stage::Record);
    }
    Verdict { reason: scratch.reason, rule: scratch.record.rule }
}

/// What the exit writes, besides the counter.
#[inline(always)]
fn write_down<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) {
    let outcome = Outcome { hook: scratch.hook, reason: scratch.reason };
    let (headers, record) = (&scratch.headers, &mut scratch.record);
    if record::is_first_fragment(headers) {
        record::first_fragment(packet, maps, headers, outcome);
    }
    if !outcome.reason.passes() && record::deny(packet, maps, headers, record, outcome) && record.event == NO_EVENT {
        record.event = event_kind::DENY;
    }
    if record.event != NO_EVENT {
        record::event(packet, maps, headers, record, outcome);
    }
}

/// The fast path; what it does not settle goes on to [`settle`].
#[inline(always)]
fn judge<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, hook: Hook) {
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
    if scratch.refused.is_none() && scratch.headers.kind == Kind::Flow {
        scratch.source_is_low = flow::key_of(&scratch.headers, maps.zone(), &mut scratch.key);
        let peer = match hook {
            Hook::FromPod => &scratch.headers.destination,
            Hook::ToPod => &scratch.headers.source,
        };
        scratch.moment.peer_epoch = maps.peer_epoch(peer.epoch_slot());
        if let Some(flow) = find(maps, &scratch.key, &mut scratch.confirmed)
            && established(maps, scratch, &flow)
        {
            scratch.reason = Reason::Established;
            return;
        }
    }
    packet.stage(maps, scratch, Stage::Settle);
}

/// The flow of a key, and whether it is in CONFIRMED.
#[inline(always)]
fn find<M: Maps>(maps: &M, key: &FlowKey, confirmed: &mut bool) -> Option<M::FlowRef> {
    let found = maps.confirmed(key);
    *confirmed = found.is_some();
    if found.is_some() { found } else { maps.tentative(key) }
}

/// True when the flow approves the packet at this device; counts it.
#[inline(always)]
fn established<M: Maps>(maps: &M, scratch: &mut Scratch, flow: &Flow) -> bool {
    let (headers, moment) = (&scratch.headers, &scratch.moment);
    let forward = (flow.initiator_is_low.get() == 1) == scratch.source_is_low;
    let index = flow::side_index(scratch.hook, forward);
    let side = flow::side(flow, index);
    let Some(config) = flow::approved(maps, &scratch.key, side, moment) else { return false };
    if !flow::fits(headers, forward)
        || flow::expired(flow, headers.protocol, scratch.confirmed, moment.now)
        || headers.role == Role::Opens && flow::closed(flow)
    {
        return false;
    }
    // The source address is the flow's, which was the endpoint's own when this generation was approved.
    if scratch.hook == Hook::FromPod && !maps.config(config).is_some_and(|config| config.has_mac(headers.source_mac)) {
        return false;
    }
    scratch.record.rule = side.rule.get();
    flow::touch(maps, flow, headers, index, forward, moment);
    if !scratch.confirmed && flow::earns_confirmation(flow, headers, forward) {
        promote(maps, &scratch.key, flow);
    }
    true
}

/// Moves a flow to CONFIRMED. The element may have been given to another flow meanwhile; then the copy is of that one,
/// and goes.
#[inline(always)]
fn promote<M: Maps>(maps: &M, key: &FlowKey, flow: &Flow) {
    let id = flow.id.get();
    if maps.confirm(key, flow)
        && let Some(copy) = maps.confirmed(key)
        && copy.id.get() != id
    {
        maps.remove_flow(key);
    }
}

/// Everything but the fast path.
#[inline(always)]
fn settle<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let Some(slot) = maps.device(scratch.moment.ifindex) else { return Reason::UnknownEndpoint };
    scratch.record.slot = slot;
    let Some(word) = maps.endpoint(slot) else { return Reason::MissingConfig };
    scratch.record.generation = word.generation;
    scratch.word = word;
    if word.config == 0 {
        return Reason::MissingConfig;
    }
    let Some(config) = maps.config(word.config) else { return Reason::MissingConfig };
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
    scratch.owned.source = ask_own(packet, maps, scratch, scratch.headers.source);
    scratch.owned.destination = ask_own(packet, maps, scratch, scratch.headers.destination);
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
    packet.stage(maps, scratch, if headers.kind == Kind::IcmpError { Stage::IcmpError } else { Stage::ByRules });
    scratch.reason
}

/// Whether an address is the endpoint's own.
#[inline(always)]
fn ask_own<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch, address: Address) -> bool {
    scratch.asked = address;
    packet.stage(maps, scratch, Stage::Own);
    scratch.own
}

/// The stage of [`ask_own`].
#[inline(always)]
fn owns<M: Maps>(maps: &M, scratch: &Scratch) -> bool {
    maps.config(scratch.word.config).is_some_and(|config| config.owns(&scratch.asked))
}

/// Neighbour discovery a pod sends.
#[inline(always)]
fn discover<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let target = spoof::target(packet, &scratch.headers);
    scratch.owned.target = ask_own(packet, maps, scratch, target);
    let Some(config) = maps.config(scratch.word.config) else { return Reason::MissingConfig };
    spoof::discover(packet, config, &scratch.headers, scratch.owned)
}

/// A later fragment passes when its first did, not long ago, at the same hook.
#[inline(always)]
fn later_fragment<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &Scratch) -> Reason {
    let key = record::fragment_key(packet, maps, &scratch.headers, scratch.hook);
    match maps.fragment(&key) {
        Some(first)
            if first.passed == 1 && scratch.moment.now.saturating_sub(first.seen) <= FRAGMENT_TIME =>
        {
            Reason::Fragment
        }
        _ => Reason::FragmentOrphan,
    }
}

/// An ICMP error passes when the packet inside it went through this device, the other way, and its flow lives and is
/// approved here. The error refreshes no timer and no approval: after a policy change, errors wait for the flow's own
/// next packet.
#[inline(always)]
fn icmp_error<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    if packet::embedded(packet, &scratch.headers, &mut scratch.inner).is_none() {
        return Reason::UnrelatedError;
    }
    if scratch.inner.has_extensions() {
        packet.stage(maps, scratch, Stage::InnerExtensions);
    }
    if packet::embedded_transport(packet, &scratch.headers, &mut scratch.inner).is_none() {
        return Reason::UnrelatedError;
    }
    let inner = &scratch.inner;
    // An error goes to whoever sent the packet in it.
    if !inner.source.same(&scratch.headers.destination) {
        return Reason::UnrelatedError;
    }
    let (passed, own, peer) = match scratch.hook {
        Hook::ToPod => (Hook::FromPod, &inner.source, &inner.destination),
        Hook::FromPod => (Hook::ToPod, &inner.destination, &inner.source),
    };
    let (own, peer_slot) = (*own, peer.epoch_slot());
    if !ask_own(packet, maps, scratch, own) {
        return Reason::UnrelatedError;
    }
    let inner = &scratch.inner;
    scratch.moment.peer_epoch = maps.peer_epoch(peer_slot);
    let source_is_low = flow::key_of(inner, maps.zone(), &mut scratch.key);
    let Some(flow) = find(maps, &scratch.key, &mut scratch.confirmed) else { return Reason::UnrelatedError };
    let forward = (flow.initiator_is_low.get() == 1) == source_is_low;
    let side = flow::side(&flow, flow::side_index(passed, forward));
    if flow::approved(maps, &scratch.key, side, &scratch.moment).is_none()
        || flow::expired(&flow, inner.protocol, scratch.confirmed, scratch.moment.now)
    {
        return Reason::UnrelatedError;
    }
    scratch.record.rule = side.rule.get();
    scratch.record.flow = flow.id.get();
    Reason::RelatedError
}

/// Asks the rules about a packet, and opens, renews or cuts its flow.
#[inline(always)]
fn by_rules<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let Some(config) = maps.config(scratch.word.config) else { return Reason::MissingConfig };
    let found = find(maps, &scratch.key, &mut scratch.confirmed);
    let (headers, now) = (&scratch.headers, scratch.moment.now);
    let role = headers.role;
    let mut second = None;
    let mut belongs = false;
    scratch.forward = true;
    scratch.was_node = false;
    if let Some(flow) = &found {
        let forward = (flow.initiator_is_low.get() == 1) == scratch.source_is_low;
        let ended = flow::expired(flow, headers.protocol, scratch.confirmed, now);
        if !ended && !(role == Role::Opens && (!forward || flow::closed(flow))) {
            if !flow::fits(headers, forward) {
                return Reason::MidStream;
            }
            belongs = true;
            scratch.forward = forward;
            let side = flow::side(flow, flow::side_index(scratch.hook, forward));
            scratch.was_node = side.approval.get() != 0 && side.rule.get() == rule::NODE;
            // Nothing has come this way yet, so the sender may as well be opening a flow of its own. Not so where this
            // side was approved once: what was cut is not to come back as the other end's idea.
            if role == Role::Either && !forward && side.ifindex.get() == 0 {
                second = Some(true);
            }
        }
    }
    let adopts = !belongs && role == Role::Follows;
    if adopts {
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
        Reason::Allowed => if adopts { Reason::Adopted } else { answer },
        refused => refused,
    }
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
fn ask<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    let Some(config) = maps.config(scratch.word.config) else { return Reason::MissingConfig };
    let forward = scratch.forward;
    let headers = &scratch.headers;
    let responder_port = if forward { headers.destination_port } else { headers.source_port };
    let index = flow::side_index(scratch.hook, forward);
    let direction = if index == 0 { Direction::Egress } else { Direction::Ingress };
    let question = &mut scratch.question;
    let node = question.peer_flags & (address_flag::LOCAL_NODE | address_flag::POD) == address_flag::LOCAL_NODE;
    // A socket can only be asked for what it sends; the pod's answers to it go by what was found then.
    if node && index == 1 && if forward { packet.has_socket() } else { scratch.was_node } {
        question.rule = rule::NODE;
        question.shadow_rule = rule::NODE;
        question.shadow_drop = 0;
        question.deadline = u64::MAX;
        return Reason::NodeTraffic;
    }
    policy::ask(question, config, direction, flow::position(headers.protocol, responder_port), scratch.moment.now);
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
        if lived {
            side.approval.set(0);
            scratch.record.event = event_kind::CUT;
        }
        return if lived && answer == Reason::PolicyDenied { Reason::Revoked } else { answer };
    }
    approve(scratch, side);
    let bit = 1 << index;
    let shadow = flow.shadow_drop.get() & !bit;
    flow.shadow_drop.set(if scratch.record.shadow_drop == 1 { shadow | bit } else { shadow });
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
    side.approval.set(flow::approval(&scratch.key, binding, scratch.word.generation));
}

/// Opens a flow, in place of an old one with the same key. [`Reason::Allowed`], or why there is no room.
#[inline(always)]
fn open<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    if let Some(old) = find(maps, &scratch.key, &mut scratch.confirmed) {
        record::close(packet, maps, &scratch.key, &old, scratch.hook);
        maps.remove_flow(&scratch.key);
    }
    let forward = scratch.forward;
    let index = flow::side_index(scratch.hook, forward);
    let (cpu, number) = maps.next_flow_id();
    let id = u64::from(cpu) << 48 | number & 0xffff_ffff_ffff;
    scratch.flow = Flow::default();
    approve(scratch, flow::side(&scratch.flow, index));
    let (flow, record) = (&mut scratch.flow, &mut scratch.record);
    flow.id = Word::new(id);
    flow.cpu = Word::new(cpu);
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
