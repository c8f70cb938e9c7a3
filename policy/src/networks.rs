//! The prefixes that say who an unbound address is: every block a policy names and every node's pod range.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;

use crate::{
    model::Zone,
    prefix::{PrefixMap, all_ipv4, canonical, covers_mapped_ipv4},
};

#[derive(Debug, Default)]
struct Use {
    /// A policy names it.
    block: bool,
    /// Nodes whose pod range it is.
    ranges: u32,
    /// IPv6 prefixes that would cover IPv4 addresses too, were this prefix (of all IPv4 addresses) not there.
    shields: u32,
}

impl Use {
    fn is_unused(&self) -> bool {
        !self.block && self.ranges == 0 && self.shields == 0
    }
}

/// The prefixes in use.
///
/// In the kernel's maps IPv4 addresses are `::ffff:a.b.c.d`, where `::/0` of a policy would cover them. It does not match
/// them, so with such a prefix comes one for all IPv4 addresses that says "nobody asks about this one".
#[derive(Debug, Default)]
pub(crate) struct Networks {
    prefixes: PrefixMap<Use>,
    /// Prefixes that came, went or became (or ceased to be) a pod range: what lies inside changes.
    changed: BTreeSet<IpNetwork>,
    zones: BTreeSet<Zone>,
}

impl Networks {
    /// A policy names the (canonical) block, or none does any more.
    pub(crate) fn set_block(&mut self, cidr: IpNetwork, named: bool) {
        self.change(cidr, &|prefix| prefix.block = named);
    }

    /// One node more has this pod range.
    pub(crate) fn add_range(&mut self, range: IpNetwork) {
        self.change(canonical(range), &|prefix| prefix.ranges += 1);
    }

    /// One node less has it.
    pub(crate) fn remove_range(&mut self, range: IpNetwork) {
        self.change(canonical(range), &|prefix| {
            prefix.ranges = prefix.ranges.saturating_sub(1);
        });
    }

    fn change(&mut self, prefix: IpNetwork, change: &dyn Fn(&mut Use)) {
        let known = self.prefixes.contains(prefix);
        if !known {
            self.prefixes.insert(prefix, Use::default());
        }
        let Some(uses) = self.prefixes.get_mut(prefix) else {
            return;
        };
        let before = (uses.block, uses.ranges > 0);
        change(uses);
        let unused = uses.is_unused();
        if !known || unused || before != (uses.block, uses.ranges > 0) {
            self.changed.insert(prefix);
        }
        if unused {
            self.prefixes.remove(prefix);
        }
        if known == unused && covers_mapped_ipv4(prefix) {
            let count = |shield: &mut Use| {
                shield.shields = if unused {
                    shield.shields.saturating_sub(1)
                } else {
                    shield.shields + 1
                };
            };
            self.change(all_ipv4(), &count);
        }
    }

    /// Ends a step. Returns the `(zone, prefix)` pairs whose entry may have changed; those that are not
    /// [`Networks::has`] any more are to be removed.
    pub(crate) fn settle(&mut self, zones: BTreeSet<Zone>) -> BTreeSet<(Zone, IpNetwork)> {
        let mut dirty = BTreeSet::new();
        for zone in zones.symmetric_difference(&self.zones) {
            dirty.extend(self.prefixes.keys().map(|prefix| (*zone, prefix)));
        }
        for outer in std::mem::take(&mut self.changed) {
            let inside: Vec<IpNetwork> = self.prefixes.within(outer).chain([outer]).collect();
            for zone in zones.union(&self.zones) {
                dirty.extend(inside.iter().map(|prefix| (*zone, *prefix)));
            }
        }
        self.zones = zones;
        dirty
    }

    /// True when there is an entry for the prefix in the zone.
    pub(crate) fn has(&self, zone: Zone, prefix: IpNetwork) -> bool {
        self.zones.contains(&zone) && self.prefixes.contains(prefix)
    }

    /// True when every address of the prefix is in a pod range.
    pub(crate) fn is_pod_range(&self, zone: Zone, prefix: IpNetwork) -> bool {
        // Node objects describe the primary network only.
        zone == Zone::default()
            && self
                .prefixes
                .covering(prefix.network(), prefix.prefix())
                .any(|uses| uses.ranges > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().expect(text)
    }

    #[test]
    fn a_wide_ipv6_block_brings_a_shield_for_ipv4_and_takes_it_along() {
        let mut networks = Networks::default();
        let zones = BTreeSet::from([Zone(0)]);
        networks.set_block(net("::/0"), true);
        networks.add_range(net("::/8"));
        assert_eq!(networks.settle(zones.clone()).len(), 3);
        assert!(networks.has(Zone(0), net("0.0.0.0/0")));
        assert!(!networks.is_pod_range(Zone(0), net("0.0.0.0/0")));
        networks.set_block(net("::/0"), false);
        assert!(networks.has(Zone(0), net("0.0.0.0/0")), "::/8 still needs it");
        networks.remove_range(net("::/8"));
        assert!(!networks.has(Zone(0), net("0.0.0.0/0")));
        assert_eq!(networks.settle(zones).len(), 3);
    }

    #[test]
    fn a_pod_range_says_so_inside_it_and_in_the_primary_zone_only() {
        let mut networks = Networks::default();
        networks.add_range(net("10.244.1.7/16"));
        networks.add_range(net("10.244.0.0/16"));
        networks.set_block(net("10.244.3.0/24"), true);
        networks.set_block(net("10.0.0.0/8"), true);
        let range = |networks: &Networks, zone, text| networks.is_pod_range(Zone(zone), net(text));
        assert!(range(&networks, 0, "10.244.3.0/24") && !range(&networks, 1, "10.244.3.0/24"));
        assert!(!range(&networks, 0, "10.0.0.0/8"));
        networks.remove_range(net("10.244.0.0/16"));
        assert!(range(&networks, 0, "10.244.3.0/24"), "the other node still has it");
        networks.remove_range(net("10.244.0.0/16"));
        assert!(!range(&networks, 0, "10.244.3.0/24"));
    }
}
