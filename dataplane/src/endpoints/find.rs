//! Finds a pod's host-side device, and what its own end is like.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
};

use bulkhead_policy::model::Attachment;
use thiserror::Error;

use super::netlink::{Link, Netlink};

/// Name of a pod's device in its own namespace.
const POD_DEVICE: &str = "eth0";

/// A pod's device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    /// Index of the host-side end.
    pub(crate) ifindex: u32,
    /// Its name.
    pub(crate) name: String,
    /// Index of the pod's end, in the pod's namespace.
    pub(crate) peer: u32,
    /// MAC address of the pod's end.
    pub(crate) mac: [u8; 6],
    /// Addresses of the pod's end.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// Why a device was not found; each is tried again, with growing pauses and whenever a device changes.
#[derive(Debug, Error)]
pub(crate) enum FindError {
    #[error(
        "neither the CNI plugin nor the container runtime of this node has named the pod (yet), and it has no annotation bulkhead.dev/netns or bulkhead.dev/device"
    )]
    NotHere,
    #[error("the pod of that name on this node has uid {found}, not {wanted}; its own is not here (yet)")]
    OtherPod { found: String, wanted: String },
    #[error("the CNI gave the pod {found}, which the controller does not know (yet); it knows [{wanted}]")]
    OtherAddress { found: String, wanted: String },
    #[error("network namespace {}: {source}; is the pod still there, and is the path as this node sees it?", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error("network namespace {}: has no device {interface} (yet)", path.display())]
    NoPodDevice { path: PathBuf, interface: String },
    #[error("network namespace {}: {interface} is no end of a veth pair whose other end is in the agent's namespace", path.display())]
    NotOurs { path: PathBuf, interface: String },
    #[error("device {name}: not in the agent's network namespace (yet)")]
    NoDevice { name: String },
    #[error(
        "device {name}: not an end of a veth pair, so the pod's MAC address is not known; name its namespace too (annotation bulkhead.dev/netns)"
    )]
    NoPeer { name: String },
    #[error("device {name}: the pod's end has no Ethernet address")]
    NoMac { name: String },
    #[error("asking the kernel about devices: {0}")]
    Netlink(#[from] io::Error),
}

/// Finds the device an attachment points at. `here` is a socket of the agent's own namespace.
pub(crate) fn find(here: &mut Netlink, attachment: &Attachment) -> Result<Device, FindError> {
    match (&attachment.netns, &attachment.device) {
        (Some(path), _) => by_namespace(here, path.as_ref(), POD_DEVICE),
        (None, Some(name)) => by_name(here, name),
        (None, None) => Err(FindError::NotHere),
    }
}

/// Finds the host-side device of a device inside a namespace.
pub(crate) fn by_namespace(here: &mut Netlink, path: &Path, interface: &str) -> Result<Device, FindError> {
    let not_ours = || FindError::NotOurs {
        path: path.to_owned(),
        interface: interface.to_owned(),
    };
    let namespace = File::open(path).and_then(|file| Ok((Netlink::open_in(&file)?, file)));
    let (mut there, file) = namespace.map_err(|source| FindError::Namespace {
        path: path.to_owned(),
        source,
    })?;
    let Some(pod) = there.link_by_name(interface)? else {
        return Err(FindError::NoPodDevice {
            path: path.to_owned(),
            interface: interface.to_owned(),
        });
    };
    let Some(peer) = pod.peer else {
        return Err(not_ours());
    };
    // The index alone could be that of any device here. It is the pod's only if the pair points back: same index, and
    // the same namespace, which a number stands for.
    let number = here.namespace_number(&file)?;
    let Some(host) = here.link_by_index(peer, None)? else {
        return Err(not_ours());
    };
    if host.peer != Some(pod.index) || number.is_none() || host.peer_namespace != number {
        return Err(not_ours());
    }
    let addresses = there.addresses(pod.index, None)?;
    device(host, &pod, addresses)
}

fn by_name(here: &mut Netlink, name: &str) -> Result<Device, FindError> {
    let Some(host) = here.link_by_name(name)? else {
        return Err(FindError::NoDevice { name: name.to_owned() });
    };
    let (Some(peer), Some(namespace)) = (host.peer, host.peer_namespace) else {
        return Err(FindError::NoPeer { name: name.to_owned() });
    };
    let Some(pod) = here.link_by_index(peer, Some(namespace))? else {
        return Err(FindError::NoPeer { name: name.to_owned() });
    };
    let addresses = here.addresses(peer, Some(namespace))?;
    device(host, &pod, addresses)
}

fn device(host: Link, pod: &Link, addresses: Vec<IpAddr>) -> Result<Device, FindError> {
    let Some(mac) = pod.mac else {
        return Err(FindError::NoMac { name: host.name });
    };
    let mut addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
    // The kernel gives a device this address some time after it comes up; a pod that is attached at once has it then.
    addresses.insert(link_local(mac).into());
    Ok(Device {
        ifindex: host.index,
        name: host.name,
        peer: pod.index,
        mac,
        addresses,
    })
}

/// The link-local address that follows from a MAC (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [maker0, maker1, maker2, serial0, serial1, serial2] = mac;
    let words = [
        u16::from_be_bytes([maker0 ^ 2, maker1]),
        u16::from_be_bytes([maker2, 0xff]),
        u16::from_be_bytes([0xfe, serial0]),
        u16::from_be_bytes([serial1, serial2]),
    ];
    let [first, second, third, fourth] = words;
    Ipv6Addr::new(0xfe80, 0, 0, 0, first, second, third, fourth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_of_a_mac() {
        assert_eq!(
            link_local([0x02, 0, 0, 0, 0x12, 0x34]).to_string(),
            "fe80::ff:fe00:1234"
        );
    }
}
