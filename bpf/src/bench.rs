//! For measurements only, never loaded by the agent: a packet that is another flow's each time it is judged (the kernel
//! repeats one packet, and a second one of the same flow takes the fast path), and records without a verdict.

use aya_ebpf::{
    bindings::xdp_md,
    btf_maps::{LpmTrie, lpm_trie::Key},
};
use bulkhead_verdict::{
    layout::{event_kind, identity, rule},
    maps::{Hook, Packet},
    packet::{self, Headers, Kind},
    reason::Reason,
    record::{self, Outcome, Record},
    uplink::Frame,
};

use crate::{
    packet::Skb,
    state::Kernel,
    xdp::{Linear, action},
};

/// Offset of an IPv4 packet's source.
const SOURCE_V4: usize = 26;
/// Offset of the numbers of [`next_source`], behind Ethernet, IPv4 and UDP.
const NUMBERS: usize = 42;
/// Odd, so that multiplying by it is one to one; the benchmark makes its prefixes with the same.
const SPREAD: u32 = 2_654_435_761;

/// Offset of the source port behind Ethernet and IPv4 or IPv6 without options.
const PORT_V4: usize = 34;
const PORT_V6: usize = 54;
/// Offset of the ethertype, and IPv4's.
const ETHERTYPE: usize = 12;
const IPV4: u16 = 0x0800;

/// Adds one to the source port, in place, so that the packet itself is the counter; false when there is none.
#[inline(always)]
pub(crate) fn next_port(skb: &Skb) -> bool {
    let (start, end) = skb.bounds();
    if start + PORT_V6 + 2 > end {
        // Too short for IPv6, and the caller's packets are long enough for both.
        return false;
    }
    // SAFETY: inside the packet (checked above, and again by the verifier); packets may be unaligned, hence the calls.
    unsafe {
        let ethertype = u16::from_be(((start + ETHERTYPE) as *const u16).read_unaligned());
        let port = (start + if ethertype == IPV4 { PORT_V4 } else { PORT_V6 }) as *mut u16;
        port.write_unaligned(u16::from_be(port.read_unaligned()).wrapping_add(1).to_be());
    }
    true
}

/// The headers of a packet of a flow, without extensions.
#[inline(always)]
pub(crate) fn headers(skb: &Skb) -> Option<Headers> {
    let mut headers = Headers::default();
    packet::network(skb, &mut headers).ok()?;
    packet::transport(skb, &mut headers).ok()?;
    (headers.kind == Kind::Flow).then_some(headers)
}

/// Writes the record of a flow that such a packet has opened, and no flow: identities and rule are the first there are.
#[inline(always)]
pub(crate) fn event(skb: &Skb, headers: &Headers) {
    let record = Record {
        flow: u64::from(skb.length()),
        rule: rule::FIRST_INTERNED,
        source_identity: identity::FIRST_INTERNED,
        destination_identity: identity::FIRST_INTERNED + 1,
        event: event_kind::OPEN,
        ..Record::EMPTY
    };
    let outcome = Outcome {
        hook: Hook::FromPod,
        reason: Reason::Allowed,
    };
    record::event(skb, &Kernel, headers, &record, outcome);
}

/// IPv4 prefixes as a longest-prefix trie, which [`lpm`] looks into: what the uplink's tables are measured beside.
#[aya_ebpf::macros::btf_map]
static BENCH_LPM: LpmTrie<u32, u32, 1_048_576> = LpmTrie::new();

/// Gives an IPv4 frame another source: the packet says how many there are, which is the first, and which was the last.
/// False when it is too short.
#[inline(always)]
pub(crate) fn next_source(context: *mut xdp_md) -> bool {
    let (start, end) = Linear::new(context).bounds();
    if start + NUMBERS + 12 > end {
        return false;
    }
    // SAFETY: inside the frame (checked above, and again by the verifier); frames may be unaligned, hence the calls.
    unsafe {
        let numbers = (start + NUMBERS) as *mut [u32; 3];
        let [last, first, count] = numbers.read_unaligned();
        if count == 0 {
            return false;
        }
        let next = if last + 1 >= count { 0 } else { last + 1 };
        numbers.write_unaligned([next, first, count]);
        // One to one, and neighbours land far from each other.
        let source = (first.wrapping_add(next)).wrapping_mul(SPREAD);
        ((start + SOURCE_V4) as *mut u32).write_unaligned(source.to_be());
    }
    true
}

/// What an uplink's program with a trie would do: the source of an IPv4 packet, and nothing else.
#[inline(always)]
pub(crate) fn lpm(context: *mut xdp_md) -> u32 {
    let Some(source) = Linear::new(context).load::<u32>(SOURCE_V4) else {
        return action::PASS;
    };
    if BENCH_LPM.get(&Key::new(32, source)).is_some() {
        action::DROP
    } else {
        action::PASS
    }
}
