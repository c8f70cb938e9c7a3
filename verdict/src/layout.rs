//! Keys and values of the kernel maps. The only file that says what a byte in the kernel means.
//!
//! Every type is `repr(C)` with explicit padding and a size checked at compile time; `IntoBytes` proves that no padding
//! is left (uninitialised padding in a key makes the verifier refuse the program, or two equal keys differ). The layout
//! has a version, [`LAYOUT`], which is part of the pin path: an agent never adopts maps it would misread.

use core::cell::UnsafeCell;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::Address;

/// Layout version `major.minor`, part of the pin path. Major: an old agent's maps cannot be read. Minor: they can.
pub const LAYOUT: &str = "2.0";

/// log2 of the number of peer epochs.
pub const PEER_EPOCH_BITS: u32 = 12;
/// Number of peer epochs.
pub const PEER_EPOCHS: u32 = 1 << PEER_EPOCH_BITS;
/// Endpoints one node can hold; slots are `0..ENDPOINTS`.
pub const ENDPOINTS: u32 = 4096;
/// Endpoint configurations: an old and a new one for each endpoint.
pub const CONFIGS: u32 = ENDPOINTS * 2;
/// Bindings of addresses (pods and nodes of the whole cluster, both families).
pub const ADDRESSES: u32 = 262_144;
/// The node's own addresses, on whatever device.
pub const OWN: u32 = 4096;
/// Prefixes (policy CIDRs and pod ranges).
pub const NETWORKS: u32 = 65_536;
/// Entries `(ruleset, peer)`.
pub const RULES: u32 = 262_144;
/// Ranges of all port sets together.
pub const RANGES: u32 = 262_144;
/// Alternatives of all ranges together.
pub const ALTERNATIVES: u32 = 131_072;
/// Confirmed flows; preallocated, never evicted by the kernel.
pub const CONFIRMED: u32 = 131_072;
/// Tentative flows; least recently used goes first.
pub const TENTATIVE: u32 = 65_536;
/// Aggregated denials.
pub const DENIES: u32 = 32_768;
/// Tracked fragmented datagrams.
pub const FRAGMENTS: u32 = 8_192;
/// Devices with a program: an old and a new one for each endpoint.
pub const DEVICES: u32 = ENDPOINTS * 2;
/// Leases `(profile, image class)`.
pub const LEASES: u32 = 65_536;
/// Expiries.
pub const EXPIRIES: u32 = 4_096;
/// Learned addresses of names.
pub const NAMES: u32 = 65_536;
/// Budgets of answers: for each endpoint one per hook, `slot * 2 + hook`.
pub const ANSWERS: u32 = ENDPOINTS * 2;
/// Quotas: one for each endpoint slot, and one that counts for all.
pub const QUOTAS: u32 = ENDPOINTS + 1;
/// Names behind interned numbers.
pub const INTERNS: u32 = 524_288;
/// Counters of STATS: for each hook 256, numbered by reason; the two highest are [`stat::LOST_EVENT`] and
/// [`stat::LOST_DENIAL`]. The index is `hook << 8 | number`.
pub const STATS: u32 = 512;
/// Bytes of the event ring.
pub const EVENTS_BYTES: u32 = 8 << 20;
/// Elements of EPOCH: the global epoch, and the mark under which answers travel.
pub const EPOCHS: u32 = 2;
/// Bound on the binary search of a port set: a set has at most `2^MAX_SEARCH` ranges.
pub const MAX_SEARCH: u32 = 16;
/// Bound on the alternatives of one range.
pub const MAX_ALTERNATIVES: u32 = 16;
/// Tentative one-way packets after which a flow is confirmed without a reply.
pub const ONE_WAY_CONFIRM: u64 = 8;

/// Reserved peer identities; interned ones start at [`identity::FIRST_INTERNED`].
pub mod identity {
    /// No identity.
    pub const NONE: u32 = 0;
    /// An address inside pod ranges that is not bound (yet): allowed only where every pod would be.
    pub const UNKNOWN_POD: u32 = 1;
    /// Any bound pod whose identity has no entry of its own.
    pub const ANY_POD: u32 = 2;
    /// Any node whose identity has no entry of its own.
    pub const ANY_NODE: u32 = 3;
    /// Any address at all; every ruleset has this entry.
    pub const ANY_ADDRESS: u32 = 4;
    /// The first number an agent gives to a digest.
    pub const FIRST_INTERNED: u32 = 256;
}

/// Reserved rule ids; interned ones start at [`rule::FIRST_INTERNED`].
pub mod rule {
    /// No rule was reached (malformed packet, spoofed source, …).
    pub const NONE: u32 = 0;
    /// `builtin/self`.
    pub const SELF: u32 = 1;
    /// `builtin/node`.
    pub const NODE: u32 = 2;
    /// `builtin/default-allow`: no policy selects the endpoint in this direction, or none decided.
    pub const DEFAULT_ALLOW: u32 = 3;
    /// `builtin/control`: the control plane's own traffic.
    pub const CONTROL: u32 = 4;
    /// `builtin/unmanaged`.
    pub const UNMANAGED: u32 = 5;
    /// `builtin/mixed-backends`: of a Service's backends some are allowed and others not.
    pub const MIXED_BACKENDS: u32 = 6;
    /// `builtin/forwarded`: what a node sends on for others under its own address.
    pub const FORWARDED: u32 = 7;
    /// `builtin/failsafe`: what a node needs to stay reachable.
    pub const FAILSAFE: u32 = 8;
    /// `builtin/node-port`: a Service's port on a node.
    pub const NODE_PORT: u32 = 9;
    /// The first number an agent gives to a rule.
    pub const FIRST_INTERNED: u32 = 256;
}

/// What an alternative does.
pub mod action {
    /// Let the flow live.
    pub const ALLOW: u8 = 1;
    /// Drop.
    pub const DENY: u8 = 2;
    /// The bits that tell the two apart.
    pub const VERDICT: u8 = 3;
    /// With `DENY`: who sent the packet is told.
    pub const REJECT: u8 = 4;
    /// With `DENY`: for want of a rule that allows it, so what an earlier rule had allowed may end as that one's policy says.
    pub const DEFAULT: u8 = 8;
    /// Live flows may end by themselves: those this allowed (with `ALLOW`) or those this denies.
    pub const DRAIN: u8 = 0x10;
    /// They may go on.
    pub const KEEP: u8 = 0x20;

    /// `ALLOW` or `DENY`; `None` for what this build does not know.
    #[inline(always)]
    pub const fn verdict(action: u8) -> Option<u8> {
        let known = match action & VERDICT {
            ALLOW => VERDICT | DRAIN | KEEP,
            _ => VERDICT | REJECT | DEFAULT | DRAIN | KEEP,
        };
        if action & !known == 0 {
            Some(action & VERDICT)
        } else {
            None
        }
    }
}

/// Kinds of guard on an alternative.
pub mod guard {
    /// Always holds; the last alternative of every range has it.
    pub const NONE: u8 = 0;
    /// Holds while the lease (profile = argument, image class of `side`) runs; with `negated`, while it does not.
    pub const LEASE: u8 = 1;
    /// Holds until the expiry numbered by the argument.
    pub const UNTIL: u8 = 2;
    /// Holds while the peer's address is learned for the name numbered by the argument.
    pub const NAME: u8 = 3;
}

/// Whose image class a lease guard asks for.
pub mod side {
    /// The endpoint whose ruleset is evaluated.
    pub const SUBJECT: u8 = 0;
    /// Its peer.
    pub const PEER: u8 = 1;
}

/// Numbers of STATS that are no reason.
pub mod stat {
    /// Events the full ring did not take.
    pub const LOST_EVENT: u8 = 254;
    /// Denied packets that no record of DENIES counts, because it was full.
    pub const LOST_DENIAL: u8 = 255;
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// The policy verdict is enforced; without it every packet of the endpoint passes as `Unmanaged` and is counted.
    pub const ENFORCE: u32 = 1;
    /// Unknown mid-stream TCP is judged in both directions instead of dropped (`Config::adopt_until`).
    pub const ADOPT: u32 = 2;
    /// The endpoint is the node itself, and its devices lead out of it (`Config::ifindex` is one of them).
    pub const HOST: u32 = 4;
}

/// Bits of [`AddressEntry::flags`].
pub mod address_flag {
    /// A pod's address; without this and `SERVICE`, a node's.
    pub const POD: u32 = 1;
    /// An address of this very node.
    pub const LOCAL_NODE: u32 = 2;
    /// A Service's frontend.
    pub const SERVICE: u32 = 4;
}

/// Bits of [`NetworkEntry::flags`].
pub mod network_flag {
    /// The prefix lies inside a pod range, so an unbound address in it is a pod we do not know yet.
    pub const POD_RANGE: u32 = 1;
}

/// Defines a type that is the same in kernel and host, byte for byte.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
        impl Default for $name {
            #[inline(always)]
            fn default() -> Self {
                zerocopy::FromZeros::new_zeroed()
            }
        }
    };
}

pub(crate) use layout as layout_type;

layout! {
    /// ENDPOINT, an array indexed by slot: the word that publishes a configuration. Written by one 8-byte store, which
    /// flips the rulesets and revokes every approval given under another generation.
    EndpointWord, 8 {
        /// Index into CONFIG; 0 is never used, so a zero word means "no endpoint".
        config: u32,
        /// Rises with each store; flows remember the one they were approved under.
        generation: u32,
    }
}

layout! {
    /// CONFIG, an array: what is true of an endpoint. Immutable while an ENDPOINT word names it.
    Config, 128 {
        /// Identity of the endpoint itself (as a subject; flows record it).
        identity: u32,
        /// Image class of the endpoint, for leases on the subject's side.
        image_class: u32,
        /// Ruleset for packets the endpoint sends.
        egress: u32,
        /// Ruleset for packets the endpoint receives.
        ingress: u32,
        /// Index of the host-side device.
        ifindex: u32,
        /// See [`config_flag`].
        flags: u32,
        /// Network the endpoint's addresses belong to; 0 is the primary one.
        zone: u32,
        /// How many of `addresses` are set.
        address_count: u32,
        /// The endpoint's own addresses, its link-local ones included.
        addresses: [Address; 5],
        /// The endpoint's MAC address.
        mac: [u8; 6],
        /// Zero.
        padding: [u8; 2],
        /// End of the adoption window, `CLOCK_MONOTONIC` nanoseconds; 0 = closed.
        adopt_until: u64,
    }
}

impl Config {
    /// True when the address is one of the endpoint's own.
    #[inline(always)]
    pub fn owns(&self, address: &Address) -> bool {
        let mut own = false;
        for (own_address, number) in self.addresses.iter().zip(0_u32..) {
            own |= (number < self.address_count) & own_address.same(address);
        }
        own
    }

    /// True when the MAC, as three words loaded from a packet, is the endpoint's own.
    #[inline(always)]
    pub const fn has_mac(&self, mac: [u16; 3]) -> bool {
        let [mac0, mac1, mac2, mac3, mac4, mac5] = self.mac;
        let [high, middle, low] = mac;
        let high = u16::from_ne_bytes([mac0, mac1]) ^ high;
        let middle = u16::from_ne_bytes([mac2, mac3]) ^ middle;
        (high | middle | (u16::from_ne_bytes([mac4, mac5]) ^ low)) == 0
    }
}

layout! {
    /// Key of ADDRESSES.
    AddressKey, 20 {
        /// The address.
        address: Address,
        /// Its zone.
        zone: u32,
    }
}

layout! {
    /// ADDRESSES, a hash: who an address is, for every pod and node of the cluster.
    AddressEntry, 16 {
        /// Interned identity, or a reserved one.
        identity: u32,
        /// Image class, for leases on the peer's side.
        image_class: u32,
        /// Slot when the address is a pod of this node, else `u32::MAX`.
        slot: u32,
        /// See [`address_flag`].
        flags: u32,
    }
}

layout! {
    /// Data part of the key of NETWORKS (a longest-prefix trie over 160 bits: zone first, then the address; the prefix
    /// length of an IPv4 prefix is therefore 32 + 96 + its own).
    NetworkKey, 20 {
        /// Zone in network byte order.
        zone_be: u32,
        /// The prefix's address.
        address: Address,
    }
}

layout! {
    /// NETWORKS: who an address without a binding is.
    NetworkEntry, 8 {
        /// Interned identity of the set of policy CIDRs that cover it, or a reserved one.
        identity: u32,
        /// See [`network_flag`].
        flags: u32,
    }
}

layout! {
    /// Key of RULES.
    RuleKey, 8 {
        /// Interned ruleset.
        ruleset: u32,
        /// Peer identity, interned or reserved.
        peer: u32,
    }
}

layout! {
    /// RULES, a hash: where the port set of a peer lies in RANGES. Never changed in place.
    PortSet, 8 {
        /// Index of the first range.
        first: u32,
        /// Number of ranges, sorted, disjoint and without a gap from `Position::FIRST` to `Position::LAST`.
        count: u32,
    }
}

layout! {
    /// RANGES, an array: an interval of positions and where its alternatives begin.
    Range, 16 {
        /// First position.
        low: u32,
        /// Last position.
        high: u32,
        /// Index in ALTERNATIVES of the first alternative that is enforced; never 0.
        enforce: u32,
        /// Index in ALTERNATIVES of the first alternative in shadow; 0 = the shadow verdict is the enforced one.
        shadow: u32,
    }
}

layout! {
    /// ALTERNATIVES, an array of linked lists; index 0 is never used. The first alternative whose guard holds decides.
    Alternative, 16 {
        /// Rule id.
        rule: u32,
        /// Lease profile, expiry or name, by `guard`.
        argument: u32,
        /// Index of the next alternative; 0 = none, which only an unguarded one may have.
        next: u32,
        /// See [`action`].
        action: u8,
        /// See [`guard`].
        guard: u8,
        /// See [`side`].
        side: u8,
        /// 1 = the guard holds when its condition does not.
        negated: u8,
    }
}

layout! {
    /// Key of LEASES; the value is a deadline in `CLOCK_BOOTTIME` nanoseconds (0 = no, `u64::MAX` = always).
    LeaseKey, 8 {
        /// Trust profile.
        profile: u32,
        /// Image class.
        image_class: u32,
    }
}

layout! {
    /// Key of NAMES; the value is a deadline as in LEASES.
    NameKey, 20 {
        /// A learned address.
        address: Address,
        /// The name's number.
        name: u32,
    }
}

layout! {
    /// Key of CONFIRMED and TENTATIVE: both directions of a flow have the same key.
    FlowKey, 40 {
        /// The end that sorts first.
        low: Address,
        /// The end that sorts last.
        high: Address,
        /// Port of `low`, network byte order. ICMP has none: the initiator's end holds the echo id (0 for other types),
        /// the responder's end `type << 8 | code` of the request. So the responder's port is always what rules ask for.
        low_port: u16,
        /// Port of `high`.
        high_port: u16,
        /// IP protocol.
        protocol: u8,
        /// Zone.
        zone: u8,
        /// Zero.
        padding: u16,
    }
}

layout! {
    /// Key of FRAGMENTS.
    FragmentKey, 48 {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
        /// Device the fragments pass.
        ifindex: u32,
        /// Datagram identification.
        id: u32,
        /// IP protocol.
        protocol: u32,
        /// Zone and hook: `zone << 8 | hook`.
        zone_hook: u32,
    }
}

layout! {
    /// FRAGMENTS, an LRU hash: what the first fragment said.
    FragmentEntry, 16 {
        /// Source port, network byte order.
        source_port: u16,
        /// Destination port.
        destination_port: u16,
        /// 1 = the first fragment passed.
        passed: u32,
        /// When it was seen, coarse `CLOCK_MONOTONIC` nanoseconds.
        seen: u64,
    }
}

layout! {
    /// Key of DENIES.
    DenyKey, 48 {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
        /// Destination port, host byte order; ICMP: type << 8 | code.
        destination_port: u16,
        /// IP protocol; 0 when the packet could not be parsed so far.
        protocol: u8,
        /// [`crate::reason::Reason`] as a number.
        reason: u8,
        /// Hook (see [`crate::maps::Hook`]) in the low byte, zone in the next.
        hook_zone: u32,
        /// Rule id.
        rule: u32,
        /// Device.
        ifindex: u32,
    }
}

layout! {
    /// An item of the event ring. `kind` says which fields are set.
    Event, 144 {
        /// Per-CPU number of the event, without a gap: a missing one is a lost event.
        sequence: u64,
        /// `CLOCK_BOOTTIME` nanoseconds.
        time: u64,
        /// Initiator (or sender, when no flow is known).
        source: Address,
        /// Responder.
        destination: Address,
        /// Flow id, `CPU that opened it << 48 | number that rises per CPU`; 0 = no flow.
        flow: u64,
        /// Rule that decided.
        rule: u32,
        /// Rule that would have decided in shadow.
        shadow_rule: u32,
        /// Identity of the source.
        source_identity: u32,
        /// Identity of the destination.
        destination_identity: u32,
        /// Endpoint generation the verdict was given under.
        generation: u32,
        /// Device of the hook.
        ifindex: u32,
        /// Endpoint slot.
        slot: u32,
        /// Bytes of the packet.
        length: u32,
        /// CPU the event was written on.
        cpu: u32,
        /// Source port, host byte order.
        source_port: u16,
        /// Destination port, host byte order; ICMP: type << 8 | code.
        destination_port: u16,
        /// IP protocol.
        protocol: u8,
        /// See [`event_kind`].
        kind: u8,
        /// Hook.
        hook: u8,
        /// Reason.
        reason: u8,
        /// 1 = the shadow verdict is to drop.
        shadow_drop: u8,
        /// Zone.
        zone: u8,
        /// TCP flags of the packet.
        tcp_flags: u8,
        /// 1 = the packet went against the flow's direction.
        reply: u8,
        /// Guard of the deciding alternative (see [`guard`]).
        guard: u8,
        /// Zero.
        padding: [u8; 7],
        /// Counters of the flow this event closes: packets, then bytes, initiator's direction first.
        counters: [u64; 4],
    }
}

/// Kinds of event.
pub mod event_kind {
    /// A flow was allowed for the first time at this hook.
    pub const OPEN: u8 = 1;
    /// The first denied packet of a [`super::DenyKey`]; later ones only count in DENIES.
    pub const DENY: u8 = 2;
    /// A live flow was cut. Takes the place of the `DENY` its packet would have caused.
    pub const CUT: u8 = 3;
    /// A flow ended inside the kernel (its tuple was used again); `counters` are its last.
    pub const CLOSE: u8 = 4;
}

/// A word of shared kernel memory: read and written whole, never torn, never cached by the compiler.
///
/// `#[repr(transparent)]` over the integer, so a map value made of words has the integer's layout.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(transparent)]
pub struct Word<T: Copy>(UnsafeCell<T>);

#[expect(
    unsafe_code,
    reason = "volatile access to memory that other CPUs write; the value is a plain integer"
)]
impl<T: Copy> Word<T> {
    /// A word with a first value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }
    /// Reads the word in one load.
    #[inline(always)]
    pub fn get(&self) -> T {
        // SAFETY: the pointer comes from a live reference and T is Copy; volatile keeps it one load.
        unsafe { self.0.get().read_volatile() }
    }
    /// Writes the word in one store.
    #[inline(always)]
    pub fn set(&self, value: T) {
        // SAFETY: as for `get`; a racing reader sees the old or the new value (aligned word stores are not torn).
        unsafe { self.0.get().write_volatile(value) }
    }
}

/// Writes a value in one store that the compiler does not join with its neighbours. Many zeros next to each other become a call
/// of `memset`, which in the kernel is a loop over bytes (20 ns for a packet's headers).
#[expect(unsafe_code, reason = "a volatile store through a live, unique reference")]
#[inline(always)]
pub fn put<T: Copy>(place: &mut T, value: T) {
    // SAFETY: the pointer comes from a live reference, and T is Copy, so nothing is dropped.
    unsafe { core::ptr::from_mut(place).write_volatile(value) };
}

/// One side of a flow: the device of the initiator or of the responder, when that is on this node.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct Side {
    /// `tag << 32 | endpoint generation`; 0 = not approved. The tag is a checksum over everything the approval holds
    /// for (`flow::tag`: key, device, slot, deadline, epochs), because other CPUs may write the other words, and the
    /// element may be given to another flow, while a program holds it: what does not fit together is no approval.
    pub approval: Word<u64>,
    /// The approval is looked at again from here on: coarse `CLOCK_MONOTONIC` nanoseconds, `u64::MAX` = no guard.
    pub deadline: Word<u64>,
    /// The device; 0 = this side is not on this node (yet).
    pub ifindex: Word<u32>,
    /// The endpoint's slot.
    pub slot: Word<u32>,
    /// Epoch of the peer's address at approval.
    pub peer_epoch: Word<u32>,
    /// Global epoch at approval.
    pub epoch: Word<u32>,
    /// Rule that allowed it.
    pub rule: Word<u32>,
    /// Rule of the shadow verdict.
    pub shadow_rule: Word<u32>,
}
const _: () = assert!(size_of::<Side>() == 40);

/// CONFIRMED and TENTATIVE: one connection, both directions. Two to three cache lines.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct Flow {
    /// The initiator's side, then the responder's.
    pub sides: [Side; 2],
    /// Packets from the initiator, then from the responder, counted at the initiator's hook (else the responder's).
    pub packets: [Word<u64>; 2],
    /// Bytes likewise.
    pub bytes: [Word<u64>; 2],
    /// First packet, `CLOCK_BOOTTIME` nanoseconds.
    pub first_seen: Word<u64>,
    /// Last packet, coarse `CLOCK_MONOTONIC` nanoseconds.
    pub last_seen: Word<u64>,
    /// Flow id (see [`Event::flow`]).
    pub id: Word<u64>,
    /// Identity of the initiator, as of the last judgement.
    pub source_identity: Word<u32>,
    /// Identity of the responder.
    pub destination_identity: Word<u32>,
    /// TCP flags seen from the initiator.
    pub initiator_flags: Word<u8>,
    /// TCP flags seen from the responder.
    pub responder_flags: Word<u8>,
    /// 1 = the initiator is the key's `low` end.
    pub initiator_is_low: Word<u8>,
    /// The shadow verdict would have dropped it: bit 0 at the initiator's side, bit 1 at the responder's.
    pub shadow_drop: Word<u8>,
    /// CPU that opened it, with `id`.
    pub cpu: Word<u16>,
    /// [`action::DRAIN`] and [`action::KEEP`] of the alternative that allowed it, at the initiator's side and at the responder's;
    /// with [`DRAINING`] while it is only allowed to end, until the side's deadline.
    pub on_change: [Word<u8>; 2],
}
const _: () = assert!(size_of::<Flow>() == 152);

impl Side {
    /// Makes it a side nothing is known of.
    #[inline(always)]
    fn clear(&self) {
        self.approval.set(0);
        self.deadline.set(0);
        for word in [
            &self.ifindex,
            &self.slot,
            &self.peer_epoch,
            &self.epoch,
            &self.rule,
            &self.shadow_rule,
        ] {
            word.set(0);
        }
    }
}

impl Flow {
    /// Makes it a flow without packets; see [`put`] why this is no assignment.
    #[inline(always)]
    pub fn clear(&self) {
        let [initiator, responder] = &self.sides;
        initiator.clear();
        responder.clear();
        let ([sent, received], [sent_bytes, received_bytes]) = (&self.packets, &self.bytes);
        for word in [sent, received, sent_bytes, received_bytes] {
            word.set(0);
        }
        self.first_seen.set(0);
        self.last_seen.set(0);
        self.id.set(0);
        self.source_identity.set(0);
        self.destination_identity.set(0);
        self.initiator_flags.set(0);
        self.responder_flags.set(0);
        self.initiator_is_low.set(0);
        self.shadow_drop.set(0);
        self.cpu.set(0);
        let [initiator, responder] = &self.on_change;
        initiator.set(0);
        responder.set(0);
    }
}

/// QUOTAS: what an endpoint has taken of the flow tables (see [`crate::quota`]).
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct Quota {
    /// Until when the budget of unanswered openings is used up, coarse `CLOCK_MONOTONIC` nanoseconds.
    pub openings: Word<u64>,
    /// Flows in CONFIRMED.
    pub confirmed: Word<u64>,
}
const _: () = assert!(size_of::<Quota>() == 16);

/// In [`Flow::on_change`]: no rule allows it any more, and it has until the side's deadline to end.
pub const DRAINING: u8 = 1;

/// DENIES: one aggregated denial.
#[derive(FromBytes, IntoBytes, KnownLayout, Default)]
#[repr(C)]
pub struct DenyEntry {
    /// Denied packets; only rises.
    pub count: Word<u64>,
    /// Their bytes; only rises.
    pub bytes: Word<u64>,
    /// First denial, `CLOCK_BOOTTIME` nanoseconds.
    pub first: Word<u64>,
    /// Last denial, coarse `CLOCK_MONOTONIC` nanoseconds.
    pub last: Word<u64>,
    /// Identity of the source.
    pub source_identity: Word<u32>,
    /// Identity of the destination.
    pub destination_identity: Word<u32>,
    /// Endpoint slot, `u32::MAX` when unknown.
    pub slot: Word<u32>,
    /// Endpoint generation.
    pub generation: Word<u32>,
}
const _: () = assert!(size_of::<DenyEntry>() == 48);

layout! {
    /// STATS, a per-CPU array (see [`STATS`]): what one reason counted at one hook.
    Counter, 16 {
        /// Packets.
        packets: u64,
        /// Their bytes.
        bytes: u64,
    }
}

layout! {
    /// Key of `NAMES_OF`, which only user space reads: the names behind interned numbers, so that an agent that comes
    /// back knows what its predecessor wrote. Kept in the kernel because that is where the numbers live.
    InternKey, 8 {
        /// See [`intern_kind`].
        kind: u32,
        /// The number.
        number: u32,
    }
}

/// Kinds of interned number.
pub mod intern_kind {
    /// Peer identity.
    pub const IDENTITY: u32 = 1;
    /// Ruleset.
    pub const RULESET: u32 = 2;
    /// Rule.
    pub const RULE: u32 = 3;
    /// Endpoint slot; the text is the workload's `namespace/name`.
    pub const ENDPOINT: u32 = 4;
}

layout! {
    /// What an interned number stands for.
    InternEntry, 480 {
        /// Digest of the content (identity, ruleset); of the text for rules and endpoints.
        digest: [u8; 32],
        /// Bytes of `text` in use.
        length: u32,
        /// Text a person reads, UTF-8, cut at the end if longer.
        text: [u8; 444],
    }
}
