//! Which devices lead out of the node.

use std::{collections::BTreeMap, fs, io};

use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

/// The word for "those with a default route".
const AUTO: &str = "auto";
/// Flag of a route that refuses (`RTF_REJECT`).
const REJECT: u32 = 0x200;

/// The devices these names mean now, by index; names that are no device's are told.
pub(crate) fn find(names: &[String]) -> io::Result<(BTreeMap<u32, String>, Vec<String>)> {
    let mut wanted: Vec<String> = Vec::new();
    for name in names {
        if name == AUTO {
            wanted.extend(with_default_route(&read("route")?, &read("ipv6_route")?));
        } else {
            wanted.push(name.clone());
        }
    }
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    let (mut found, mut missing) = (BTreeMap::new(), Vec::new());
    for name in wanted {
        match name_to_index(&any, &name) {
            Ok(index) => drop(found.insert(index, name)),
            Err(_) => missing.push(name),
        }
    }
    Ok((found, missing))
}

/// A routing table as text, of this thread's namespace; empty where the kernel lacks the family.
fn read(table: &str) -> io::Result<String> {
    match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        text => text,
    }
}

/// Devices of default routes in `/proc/net/route` and `/proc/net/ipv6_route`.
fn with_default_route(v4: &str, v6: &str) -> Vec<String> {
    let mut devices = Vec::new();
    for line in v4.lines().skip(1) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if let [device, "00000000", _, flags, _, _, _, "00000000", ..] = columns.as_slice() {
            devices.extend(usable(device, flags));
        }
    }
    for line in v6.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if let [
            "00000000000000000000000000000000",
            "00",
            _,
            _,
            _,
            _,
            _,
            _,
            flags,
            device,
        ] = columns.as_slice()
        {
            devices.extend(usable(device, flags));
        }
    }
    devices.sort_unstable();
    devices.dedup();
    devices
}

fn usable(device: &str, flags: &str) -> Option<String> {
    let flags = u32::from_str_radix(flags, 16).ok()?;
    (flags & REJECT == 0 && device != "lo").then(|| device.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_name_the_uplinks() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                  eth1\t00000000\t014DA8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  pod0\t0A4D000A\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n\
                  tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fd000077000000000000000000000000 00000400 00000001 00000000 00000003     eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             fd770000000000000000000000000000 40 {zero} 00 {zero} 00000400 00000001 00000000 00000001     eth2\n"
        );
        assert_eq!(with_default_route(v4, &v6), ["eth0", "eth1"]);
    }
}
