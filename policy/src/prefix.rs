//! Address prefixes: their one canonical form, and a map that finds the prefixes that cover an address or lie in a prefix.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

/// The one form of a prefix: host bits zero, and an IPv4 prefix written as `::ffff:a.b.c.d/96+n` as the IPv4 prefix it means.
#[must_use]
pub fn canonical(network: IpNetwork) -> IpNetwork {
    let (address, length) = match (network.network(), network.prefix().checked_sub(96)) {
        (IpAddr::V6(v6), Some(length)) => match v6.to_ipv4_mapped() {
            Some(v4) => (IpAddr::V4(v4), length),
            None => (IpAddr::V6(v6), network.prefix()),
        },
        (address, _) => (address, network.prefix()),
    };
    IpNetwork::new(address, length).unwrap_or(network)
}

/// The prefix of all IPv4 addresses.
pub(crate) fn all_ipv4() -> IpNetwork {
    IpNetwork::V4(ipnetwork::Ipv4Network::from(Ipv4Addr::UNSPECIFIED).truncated(0))
}

/// True for an IPv6 prefix that contains the block IPv4 addresses are mapped to in the kernel's maps.
pub(crate) fn covers_mapped_ipv4(network: IpNetwork) -> bool {
    network.prefix() <= 96 && network.contains(IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

trait Truncated {
    fn truncated(self, length: u8) -> Self;
}

impl Truncated for ipnetwork::Ipv4Network {
    fn truncated(self, length: u8) -> Self {
        Self::new(self.ip(), length).unwrap_or(self)
    }
}

/// The address with all but its first `length` bits zero; all of them when it has fewer.
fn truncate(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

/// Values by canonical prefix.
#[derive(Debug)]
pub(crate) struct PrefixMap<V> {
    values: BTreeMap<(IpAddr, u8), V>,
    /// How many prefixes there are of each length, IPv4 and IPv6 apart: a lookup tries only lengths in use.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self {
            values: BTreeMap::new(),
            lengths: BTreeMap::new(),
        }
    }
}

impl<V> PrefixMap<V> {
    pub(crate) fn get_mut(&mut self, prefix: IpNetwork) -> Option<&mut V> {
        self.values.get_mut(&key(prefix))
    }

    pub(crate) fn contains(&self, prefix: IpNetwork) -> bool {
        self.values.contains_key(&key(prefix))
    }

    pub(crate) fn insert(&mut self, prefix: IpNetwork, value: V) {
        if self.values.insert(key(prefix), value).is_none() {
            *self.lengths.entry((prefix.is_ipv4(), prefix.prefix())).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, prefix: IpNetwork) -> Option<V> {
        let value = self.values.remove(&key(prefix))?;
        let length = (prefix.is_ipv4(), prefix.prefix());
        if let Some(count) = self.lengths.get_mut(&length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
        Some(value)
    }

    /// Values of the prefixes no longer than `longest` that cover the address.
    pub(crate) fn covering(&self, address: IpAddr, longest: u8) -> impl Iterator<Item = &V> {
        let family = address.is_ipv4();
        self.lengths
            .range((family, 0)..=(family, longest))
            .filter_map(move |((_, length), _)| self.values.get(&(truncate(address, *length), *length)))
    }

    /// The prefixes inside a prefix, itself included.
    pub(crate) fn within(&self, outer: IpNetwork) -> impl Iterator<Item = IpNetwork> {
        self.values
            .range((outer.network(), outer.prefix())..=(outer.broadcast(), u8::MAX))
            .filter(move |((_, length), _)| *length >= outer.prefix())
            .filter_map(|((address, length), _)| IpNetwork::new(*address, *length).ok())
    }

    /// All prefixes.
    pub(crate) fn keys(&self) -> impl Iterator<Item = IpNetwork> {
        self.values
            .keys()
            .filter_map(|(address, length)| IpNetwork::new(*address, *length).ok())
    }
}

fn key(prefix: IpNetwork) -> (IpAddr, u8) {
    (prefix.network(), prefix.prefix())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().expect(text)
    }

    fn map(prefixes: &[&str]) -> PrefixMap<String> {
        let mut map = PrefixMap::default();
        for text in prefixes {
            map.insert(net(text), (*text).to_owned());
        }
        map
    }

    #[test]
    fn one_form_of_each_prefix() {
        assert_eq!(canonical(net("10.1.2.3/8")), net("10.0.0.0/8"));
        assert_eq!(canonical(net("fd00::1/64")), net("fd00::/64"));
        assert_eq!(canonical(net("::ffff:10.1.2.3/104")), net("10.0.0.0/8"));
        assert_eq!(canonical(net("::/0")), net("::/0"));
        assert_eq!(canonical(net("::ffff:0:0/95")), net("::fffe:0:0/95"));
    }

    #[test]
    fn covering_tries_every_length_in_use_of_that_family_only() {
        let map = map(&[
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3/32",
            "::/0",
            "fd00::/8",
        ]);
        let covering = |ip: &str, longest| {
            map.covering(ip.parse().expect(ip), longest)
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(
            covering("10.1.2.3", 32),
            ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]
        );
        assert_eq!(covering("10.1.2.3", 15), ["0.0.0.0/0", "10.0.0.0/8"]);
        assert_eq!(covering("192.0.2.1", 32), ["0.0.0.0/0"]);
        assert_eq!(covering("fd00::1", 128), ["::/0", "fd00::/8"]);
    }

    #[test]
    fn within_finds_the_prefix_itself_and_those_inside() {
        let mut map = map(&[
            "0.0.0.0/0",
            "10.0.0.0/7",
            "10.0.0.0/8",
            "10.0.0.0/24",
            "10.255.255.255/32",
            "11.0.0.0/8",
        ]);
        let within = |map: &PrefixMap<String>| map.within(net("10.0.0.0/8")).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(within(&map), ["10.0.0.0/8", "10.0.0.0/24", "10.255.255.255/32"]);
        map.remove(net("10.0.0.0/24"));
        assert_eq!(within(&map), ["10.0.0.0/8", "10.255.255.255/32"]);
    }

    #[test]
    fn only_wide_ipv6_prefixes_cover_the_mapped_block() {
        assert!(covers_mapped_ipv4(net("::/0")) && covers_mapped_ipv4(net("::/80")));
        assert!(!covers_mapped_ipv4(net("fd00::/8")) && !covers_mapped_ipv4(net("0.0.0.0/0")));
    }
}
