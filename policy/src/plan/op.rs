//! One write to the kernel maps, and who carries writes out.

use bulkhead_verdict::layout::{
    AddressEntry, AddressKey, Alternative, Config, EndpointWord, InternEntry, InternKey, NetworkEntry, NetworkKey,
    PortSet, Range, RuleKey,
};

/// One write. A plan is a list of them, and their order is the point: it may be cut after any of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapOp {
    /// `NAMES_OF[key] = entry`.
    Intern(InternKey, Box<InternEntry>),
    /// Removes from `NAMES_OF`.
    RemoveIntern(InternKey),
    /// `ALTERNATIVES[index] = …`; nothing refers to the index yet.
    Alternative(u32, Alternative),
    /// `RANGES[index] = …`; nothing refers to the index yet.
    Range(u32, Range),
    /// `RULES[key] = …`.
    Rule(RuleKey, PortSet),
    /// Removes from `RULES`.
    RemoveRule(RuleKey),
    /// `CONFIG[index] = …`; no ENDPOINT word names the index.
    Config(u32, Box<Config>),
    /// `ENDPOINT[slot] = …`, by one 8-byte store.
    Endpoint(u32, EndpointWord),
    /// `DEVICES[ifindex] = slot`: from here on the device's packets are judged by that endpoint.
    Device(u32, u32),
    /// Removes from `DEVICES`.
    RemoveDevice(u32),
    /// `ADDRESSES[key] = …`.
    Address(AddressKey, AddressEntry),
    /// Removes from `ADDRESSES`.
    RemoveAddress(AddressKey),
    /// Puts a prefix into `NETWORKS`. First the prefix length in bits of the whole key: 32 for the zone, then the
    /// address (96 more than an IPv4 prefix says).
    Network(u32, NetworkKey, NetworkEntry),
    /// Removes a prefix from `NETWORKS`.
    RemoveNetwork(u32, NetworkKey),
    /// Adds one to a peer epoch (`Address::epoch_slot`): flows to such addresses are judged again.
    PeerEpoch(u32),
    /// Adds one to the global epoch: every flow is judged again.
    Epoch,
    /// Waits until no program runs that began before (an RCU grace period). What the writes before it unpublished may be
    /// freed and used again after it.
    Barrier,
}

impl MapOp {
    /// The write that takes away what this one wrote; of an array, zero. `None` of what is no element.
    #[must_use]
    pub fn removal(&self) -> Option<Self> {
        Some(match self {
            Self::Intern(key, _) => Self::RemoveIntern(*key),
            Self::Alternative(index, _) => Self::Alternative(*index, Alternative::default()),
            Self::Range(index, _) => Self::Range(*index, Range::default()),
            Self::Rule(key, _) => Self::RemoveRule(*key),
            Self::Config(index, _) => Self::Config(*index, Box::default()),
            Self::Endpoint(slot, _) => Self::Endpoint(*slot, EndpointWord::default()),
            Self::Device(ifindex, _) => Self::RemoveDevice(*ifindex),
            Self::Address(key, _) => Self::RemoveAddress(*key),
            Self::Network(length, key, _) => Self::RemoveNetwork(*length, *key),
            _ => return None,
        })
    }

    /// The map an element is in, as messages and metrics spell it; empty of what is no element.
    pub fn map(&self) -> &'static str {
        match self {
            Self::Intern(..) | Self::RemoveIntern(_) => "NAMES_OF",
            Self::Alternative(..) => "ALTERNATIVES",
            Self::Range(..) => "RANGES",
            Self::Rule(..) | Self::RemoveRule(_) => "RULES",
            Self::Config(..) => "CONFIG",
            Self::Endpoint(..) => "ENDPOINT",
            Self::Device(..) | Self::RemoveDevice(_) => "DEVICES",
            Self::Address(..) | Self::RemoveAddress(_) => "ADDRESSES",
            Self::Network(..) | Self::RemoveNetwork(..) => "NETWORKS",
            Self::PeerEpoch(_) | Self::Epoch | Self::Barrier => "",
        }
    }
}

/// Carries out writes in order.
pub trait MapWriter {
    /// Why a write failed.
    type Error;

    /// Carries out the writes in order and stops at the first that fails. The planner then no longer knows what the maps
    /// hold: adopt them again.
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), Self::Error>;
}
