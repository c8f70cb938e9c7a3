//! The tables say of every address what the lines say, whatever feeds came before.

use std::{convert::Infallible, net::IpAddr};

use bulkhead_verdict::uplink::{host::MemTables, layout::PrefixKey};
use proptest::prelude::*;

use super::*;
use crate::uplink::{
    lines::read,
    tables::{Store, change},
};

impl Store for MemTables {
    type Error = Infallible;

    fn cell(&self, network: u32) -> u8 {
        self.cells.get(&network).copied().unwrap_or(0)
    }
    fn set_cell(&mut self, network: u32, byte: u8) {
        self.cells.insert(network, byte);
    }
    fn set_hosts(&mut self, hosts: &[(u32, Hosts)]) -> Result<(), Infallible> {
        self.hosts.extend(hosts.iter().copied());
        Ok(())
    }
    fn remove_hosts(&mut self, networks: &[u32]) -> Result<(), Infallible> {
        self.hosts.retain(|network, _| !networks.contains(network));
        Ok(())
    }
    fn set_roots(&mut self, roots: &[(u32, Prefix)]) -> Result<(), Infallible> {
        self.roots.extend(roots.iter().copied());
        Ok(())
    }
    fn set_prefixes(&mut self, prefixes: &[(PrefixKey, Prefix)]) -> Result<(), Infallible> {
        self.prefixes.extend(prefixes.iter().copied());
        Ok(())
    }
    fn remove_prefixes(&mut self, keys: &[PrefixKey]) -> Result<(), Infallible> {
        self.prefixes.retain(|key, _| !keys.contains(key));
        Ok(())
    }
}

/// Lines close together, so that they cover and touch one another.
fn line() -> impl Strategy<Value = String> {
    let v4 = (0_u32..1 << 12, prop_oneof![1 => 8_u8..=22, 4 => 23_u8..=32]);
    let v6 = (0_u32..64, 0_u32..8, prop_oneof![1 => 16_u8..=30, 4 => 31_u8..=128]);
    prop_oneof![
        v4.prop_map(|(host, length)| format!("{}/{length}", std::net::Ipv4Addr::from(0x0a00_0000 | host))),
        v6.prop_map(|(top, low, length)| format!("2001:{top:x}::{low:x}/{length}")),
    ]
}

fn feed() -> impl Strategy<Value = Arc<Lines>> {
    proptest::collection::vec(line(), 0..12).prop_map(|lines| Arc::new(read(&lines.join("\n")).lines))
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u32..1 << 12).prop_map(|host| IpAddr::from((0x0a00_0000 | host).to_be_bytes())),
        (0_u16..64, 0_u16..8).prop_map(|(top, low)| IpAddr::from([0x2001, top, 0, 0, 0, 0, 0, low])),
    ]
}

/// Entries that say nothing are not kept, and none is of a line that is gone.
fn tidy(tables: &MemTables, feeds: &Feeds) {
    let (hosts, prefixes) = Touched::needs(feeds);
    assert!(tables.hosts.len() <= hosts, "hosts: {} of {hosts}", tables.hosts.len());
    assert!(
        tables.prefixes.len() <= prefixes,
        "prefixes: {} of {prefixes}",
        tables.prefixes.len()
    );
    for network in tables.hosts.keys() {
        assert_eq!(tables.cells.get(network), Some(&cell::HOSTS));
    }
}

proptest! {
    #[test]
    fn tables_say_what_the_lines_say(
        versions in proptest::collection::vec((feed(), feed()), 1..4),
        addresses in proptest::collection::vec(address(), 200),
    ) {
        let mut tables = MemTables::default();
        let mut held: Vec<Arc<Lines>> = Vec::new();
        for (one, two) in versions {
            let wanted = vec![one, two];
            change(&mut tables, &held, &wanted).unwrap();
            held = wanted;
            tidy(&tables, &held);
            for ip in &addresses {
                let naming: Vec<u8> = held
                    .iter()
                    .zip(1..)
                    .filter_map(|(feed, number)| feed.covering(*ip).map(|_| number))
                    .collect();
                let found = tables.find(&Address::from(*ip));
                prop_assert_eq!(found != 0, !naming.is_empty(), "{} of {:?}", ip, held);
                prop_assert!(found == 0 || found == SEVERAL || naming.contains(&found), "{} is of {:?}, not {}", ip, naming, found);
            }
        }
        change(&mut tables, &held, &[]).unwrap();
        prop_assert!(tables.hosts.is_empty() && tables.prefixes.is_empty());
        prop_assert!(tables.cells.values().all(|byte| *byte == 0));
        prop_assert!(tables.roots.values().all(|root| *root == Prefix::default()));
    }
}

#[test]
fn one_line_is_few_writes_however_many_there_are() {
    let mut many = String::new();
    for number in 0..20_000_u32 {
        many.push_str(&std::net::Ipv4Addr::from(0x0b00_0000 + number * 77).to_string());
        many.push('\n');
    }
    let feed = |text: &str| [Arc::new(read(text).lines)];
    let (old, new) = (feed(&many), feed(&format!("{many}192.0.2.1\n")));
    let mut tables = MemTables::default();
    change(&mut tables, &[], &old).unwrap();
    // The hosts of its /24, and the byte that says that there are some.
    assert_eq!(change(&mut tables, &old, &new), Ok(2));
    assert_eq!(change(&mut tables, &new, &new), Ok(0));
    let more = feed(&format!("{many}192.0.2.1\n192.0.2.2\n"));
    assert_eq!(change(&mut tables, &new, &more), Ok(1));
}
