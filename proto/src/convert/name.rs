//! Names on the wire: digests, addresses, prefixes, workloads, peers, policies.

use std::net::IpAddr;

use bulkhead_policy::{
    digest::Digest,
    model::{Direction, PolicyKey, PolicyKind, WorkloadKey, Zone},
    state::PeerId,
};
use ipnetwork::IpNetwork;

use super::{Inside as _, Problem, WireError, narrow, required};
use crate::v1;

/// A digest of 32 bytes.
pub fn digest_from_bytes(field: &'static str, bytes: &[u8]) -> Result<Digest, WireError> {
    let array = bytes.try_into().map_err(|_| {
        WireError::new(
            field,
            Problem::Length {
                got: bytes.len(),
                want: "32",
            },
        )
    })?;
    Ok(Digest(array))
}

/// An address of 4 or 16 bytes, network byte order.
pub fn address_from_bytes(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    let wrong = |_| {
        WireError::new(
            field,
            Problem::Length {
                got: bytes.len(),
                want: "4 or 16",
            },
        )
    };
    Ok(<[u8; 16]>::try_from(bytes).map_err(wrong)?.into())
}

/// The bytes of [`address_from_bytes`].
pub fn address_to_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn zone(number: u32) -> Result<Zone, WireError> {
    narrow("zone", number, u64::from(u8::MAX)).map(Zone)
}

pub(super) fn zoned_address(wire: &v1::ZonedAddress) -> Result<(Zone, IpAddr), WireError> {
    Ok((zone(wire.zone)?, address_from_bytes("address", &wire.address)?))
}

pub(super) fn zoned_address_to_wire(zone: Zone, address: IpAddr) -> v1::ZonedAddress {
    v1::ZonedAddress {
        zone: u32::from(zone.0),
        address: address_to_bytes(address),
    }
}

pub(super) fn zoned_prefix(wire: &v1::ZonedPrefix) -> Result<(Zone, IpNetwork), WireError> {
    let zone = zone(wire.zone)?;
    let address = address_from_bytes("address", &wire.address)?;
    let limit = if address.is_ipv4() { 32 } else { 128 };
    let too_large = || {
        WireError::new(
            "length",
            Problem::TooLarge {
                got: u64::from(wire.length),
                limit,
            },
        )
    };
    let length = u8::try_from(wire.length).map_err(|_| too_large())?;
    Ok((zone, IpNetwork::new(address, length).map_err(|_| too_large())?))
}

pub(super) fn zoned_prefix_to_wire(zone: Zone, prefix: IpNetwork) -> v1::ZonedPrefix {
    let length = u32::from(prefix.prefix());
    v1::ZonedPrefix {
        zone: u32::from(zone.0),
        address: address_to_bytes(prefix.ip()),
        length,
    }
}

impl From<&WorkloadKey> for v1::WorkloadName {
    fn from(key: &WorkloadKey) -> Self {
        Self {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}

impl From<v1::WorkloadName> for WorkloadKey {
    fn from(wire: v1::WorkloadName) -> Self {
        Self {
            namespace: wire.namespace,
            name: wire.name,
        }
    }
}

impl From<PeerId> for v1::PeerId {
    fn from(peer: PeerId) -> Self {
        use v1::{ReservedPeer, peer_id::Peer};
        let reserved = |peer: ReservedPeer| Peer::Reserved(peer.into());
        let peer = match peer {
            PeerId::UnknownPod => reserved(ReservedPeer::UnknownPod),
            PeerId::AnyPod => reserved(ReservedPeer::AnyPod),
            PeerId::AnyNode => reserved(ReservedPeer::AnyNode),
            PeerId::AnyAddress => reserved(ReservedPeer::AnyAddress),
            PeerId::Identity(digest) => Peer::Identity(digest.0.to_vec()),
        };
        Self { peer: Some(peer) }
    }
}

impl TryFrom<v1::PeerId> for PeerId {
    type Error = WireError;

    fn try_from(wire: v1::PeerId) -> Result<Self, WireError> {
        use v1::{ReservedPeer, peer_id::Peer};
        let number = match required("peer", wire.peer)? {
            Peer::Identity(bytes) => return digest_from_bytes("identity", &bytes).map(Self::Identity),
            Peer::Reserved(number) => number,
        };
        match ReservedPeer::try_from(number) {
            Ok(ReservedPeer::UnknownPod) => Ok(Self::UnknownPod),
            Ok(ReservedPeer::AnyPod) => Ok(Self::AnyPod),
            Ok(ReservedPeer::AnyNode) => Ok(Self::AnyNode),
            Ok(ReservedPeer::AnyAddress) => Ok(Self::AnyAddress),
            Ok(ReservedPeer::Unspecified) | Err(_) => Err(WireError::new("reserved", Problem::UnknownEnum(number))),
        }
    }
}

pub(super) fn peer(wire: Option<v1::PeerId>) -> Result<PeerId, WireError> {
    required("peer", wire)?.try_into()
}

impl From<Direction> for v1::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Egress => Self::Egress,
            Direction::Ingress => Self::Ingress,
        }
    }
}

pub(super) fn direction(number: i32) -> Result<Direction, WireError> {
    match v1::Direction::try_from(number) {
        Ok(v1::Direction::Egress) => Ok(Direction::Egress),
        Ok(v1::Direction::Ingress) => Ok(Direction::Ingress),
        Ok(v1::Direction::Unspecified) | Err(_) => Err(WireError::new("direction", Problem::UnknownEnum(number))),
    }
}

impl From<&PolicyKey> for v1::PolicyName {
    fn from(key: &PolicyKey) -> Self {
        let kind = match key.kind {
            PolicyKind::NetworkPolicy => v1::PolicyKind::NetworkPolicy,
            PolicyKind::ClusterNetworkPolicy => v1::PolicyKind::ClusterNetworkPolicy,
            PolicyKind::SegmentPolicy => v1::PolicyKind::SegmentPolicy,
            PolicyKind::ClusterSegmentPolicy => v1::PolicyKind::ClusterSegmentPolicy,
        };
        Self {
            kind: kind.into(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }
}

impl TryFrom<v1::PolicyName> for PolicyKey {
    type Error = WireError;

    fn try_from(wire: v1::PolicyName) -> Result<Self, WireError> {
        let kind = match v1::PolicyKind::try_from(wire.kind) {
            Ok(v1::PolicyKind::NetworkPolicy) => PolicyKind::NetworkPolicy,
            Ok(v1::PolicyKind::ClusterNetworkPolicy) => PolicyKind::ClusterNetworkPolicy,
            Ok(v1::PolicyKind::SegmentPolicy) => PolicyKind::SegmentPolicy,
            Ok(v1::PolicyKind::ClusterSegmentPolicy) => PolicyKind::ClusterSegmentPolicy,
            Ok(v1::PolicyKind::Unspecified) | Err(_) => {
                return Err(WireError::new("kind", Problem::UnknownEnum(wire.kind)));
            }
        };
        Ok(Self {
            kind,
            namespace: wire.namespace,
            name: wire.name,
        })
    }
}

pub(super) fn policy(wire: Option<v1::PolicyName>) -> Result<PolicyKey, WireError> {
    required("policy", wire)?.try_into().inside("policy")
}
