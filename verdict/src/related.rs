//! ICMP errors follow the flow they are about.

use crate::{
    Scratch,
    decide::{Stage, ask_own, find},
    flow,
    maps::{Hook, Maps, Packet},
    packet,
    reason::Reason,
};

/// An ICMP error passes when the packet inside it went through this device, the other way, and its flow lives and is
/// approved here. The error refreshes no timer and no approval: after a policy change, errors wait for the flow's own
/// next packet.
#[inline(always)]
pub(crate) fn icmp_error<P: Packet, M: Maps>(packet: &P, maps: &M, scratch: &mut Scratch) -> Reason {
    if packet::embedded(packet, &scratch.headers, &mut scratch.inner).is_none() {
        return Reason::UnrelatedError;
    }
    // The node's own word about a packet that it was only passing on.
    if scratch.host && scratch.hook == Hook::FromPod && !maps.own(&scratch.inner.destination) {
        return Reason::Transit;
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
    let Some(flow) = find(maps, &scratch.key, &mut scratch.confirmed) else {
        return Reason::UnrelatedError;
    };
    let forward = (flow.initiator_is_low.get() == 1) == source_is_low;
    let side = flow::side(&flow, flow::side_index(passed, forward));
    if flow::approved(maps, &scratch.key, side, &scratch.moment).is_none()
        || flow::expired(&flow, inner.protocol, scratch.confirmed, scratch.moment.now, |class| {
            maps.idle(class)
        })
    {
        return Reason::UnrelatedError;
    }
    scratch.record.rule = side.rule.get();
    scratch.record.flow = flow.id.get();
    Reason::RelatedError
}
