//! Addresses, prefixes and workloads as the planner orders them, and as the kernel maps spell them.

use std::net::{IpAddr, Ipv6Addr};

use bulkhead_verdict::{
    address::Address,
    layout::{AddressEntry, AddressKey, NetworkEntry, NetworkKey, address_flag, identity, network_flag},
};
use ipnetwork::IpNetwork;

use crate::{digest::Digest, model::WorkloadKey, model::Zone};

/// Bits of the zone in front of the address in a NETWORKS key.
const ZONE_BITS: u32 = 32;
/// Bits in front of an IPv4 address in its mapped form.
pub(crate) const V4_BITS: u8 = 96;
/// Bits of an address.
pub(crate) const ADDRESS_BITS: u8 = 128;

/// `::ffff:0:0`: where IPv4 lies.
pub(crate) const V4_BASE: u128 = 0xffff_0000_0000;

/// An address of a zone, IPv4 mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct AddressId {
    pub(crate) zone: u32,
    pub(crate) address: u128,
}

/// A prefix of a zone, IPv4 mapped; `length` is 0..=128 of the mapped form. Ordered by length first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct NetworkId {
    pub(crate) length: u8,
    pub(crate) zone: u32,
    pub(crate) base: u128,
}

fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn cut(address: u128, length: u8) -> u128 {
    let host_bits = u32::from(ADDRESS_BITS.saturating_sub(length));
    u128::MAX.checked_shl(host_bits).map_or(0, |mask| address & mask)
}

impl AddressId {
    pub(crate) fn new(zone: Zone, address: IpAddr) -> Self {
        Self {
            zone: u32::from(zone.0),
            address: mapped(address),
        }
    }

    pub(crate) fn of_key(key: &AddressKey) -> Self {
        Self {
            zone: key.zone,
            address: mapped(IpAddr::from(key.address)),
        }
    }

    pub(crate) fn kernel_address(self) -> Address {
        Address::from(IpAddr::V6(Ipv6Addr::from(self.address)))
    }

    pub(crate) fn key(self) -> AddressKey {
        AddressKey {
            address: self.kernel_address(),
            zone: self.zone,
        }
    }

    /// The zone and address as the state spells them; `None` for a zone that no state can have.
    pub(crate) fn of_state(self) -> Option<(Zone, IpAddr)> {
        Some((
            Zone(u8::try_from(self.zone).ok()?),
            Ipv6Addr::from(self.address).to_canonical(),
        ))
    }

    /// The prefix of this length that covers the address.
    pub(crate) fn network(self, length: u8) -> NetworkId {
        NetworkId {
            length,
            zone: self.zone,
            base: cut(self.address, length),
        }
    }
}

impl NetworkId {
    pub(crate) fn new(zone: Zone, network: IpNetwork) -> Self {
        let length = match network {
            IpNetwork::V4(v4) => V4_BITS.saturating_add(v4.prefix()),
            IpNetwork::V6(v6) => v6.prefix(),
        };
        AddressId::new(zone, network.network()).network(length)
    }

    /// `0.0.0.0/0` of a zone.
    pub(crate) fn all_v4(zone: u32) -> Self {
        Self {
            length: V4_BITS,
            zone,
            base: V4_BASE,
        }
    }

    /// True for an IPv6 prefix that would cover every IPv4 address in its mapped form.
    pub(crate) fn covers_v4(self) -> bool {
        self.length < V4_BITS && cut(V4_BASE, self.length) == self.base
    }

    /// The key of NETWORKS; `None` for one that cannot be.
    pub(crate) fn of_key(length: u32, key: &NetworkKey) -> Option<Self> {
        let length = u8::try_from(length.checked_sub(ZONE_BITS)?)
            .ok()
            .filter(|length| *length <= ADDRESS_BITS)?;
        let zone = u32::from_be(key.zone_be);
        Some(
            AddressId {
                zone,
                address: mapped(IpAddr::from(key.address)),
            }
            .network(length),
        )
    }

    pub(crate) fn key(self) -> (u32, NetworkKey) {
        let address = AddressId {
            zone: self.zone,
            address: self.base,
        }
        .kernel_address();
        let length = ZONE_BITS.saturating_add(u32::from(self.length));
        (
            length,
            NetworkKey {
                zone_be: self.zone.to_be(),
                address,
            },
        )
    }

    /// The zone and prefix as the state spells them; the IPv4 one where both are possible.
    pub(crate) fn of_state(self) -> Option<(Zone, IpNetwork)> {
        let zone = Zone(u8::try_from(self.zone).ok()?);
        let address = Ipv6Addr::from(self.base);
        let network = match address.to_ipv4_mapped() {
            Some(v4) if self.length >= V4_BITS => {
                IpNetwork::new(IpAddr::V4(v4), self.length.saturating_sub(V4_BITS)).ok()?
            }
            _ => IpNetwork::new(IpAddr::V6(address), self.length).ok()?,
        };
        Some((zone, network))
    }

    /// Any address in it.
    pub(crate) fn first_address(self) -> AddressId {
        AddressId {
            zone: self.zone,
            address: self.base,
        }
    }
}

/// Who an address is to the lookup: what `verdict::policy::identify` finds. Tried in this order, then any address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Who {
    pub(crate) identity: u32,
    pub(crate) wider: u32,
}

impl Who {
    /// Neither bound nor in any network.
    pub(crate) const NOBODY: Self = Self {
        identity: identity::NONE,
        wider: identity::NONE,
    };

    pub(crate) fn of_address(entry: &AddressEntry) -> Self {
        let wider = match entry.identity {
            identity::UNKNOWN_POD => identity::NONE,
            _ if entry.flags & address_flag::POD != 0 => identity::ANY_POD,
            _ if entry.flags & address_flag::SERVICE != 0 => identity::NONE,
            _ => identity::ANY_NODE,
        };
        Self {
            identity: entry.identity,
            wider,
        }
    }

    pub(crate) fn of_network(entry: NetworkEntry) -> Self {
        let pod_range = entry.flags & network_flag::POD_RANGE != 0;
        Self {
            identity: entry.identity,
            wider: if pod_range {
                identity::UNKNOWN_POD
            } else {
                identity::NONE
            },
        }
    }

    /// The peers to look up, in order.
    pub(crate) fn peers(self) -> impl Iterator<Item = u32> {
        [self.identity, self.wider, identity::ANY_ADDRESS]
            .into_iter()
            .filter(|peer| *peer != identity::NONE)
    }
}

/// Name of an endpoint: a pod of the same name and another uid is another endpoint.
pub(crate) fn endpoint_digest(key: &WorkloadKey, uid: &str) -> Digest {
    Digest::of(
        "endpoint",
        [key.namespace.as_bytes(), key.name.as_bytes(), uid.as_bytes()],
    )
}

/// The workload of an endpoint's text.
pub(crate) fn workload_of(text: &str) -> Option<WorkloadKey> {
    let (namespace, name) = text.split_once('/')?;
    Some(WorkloadKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}
