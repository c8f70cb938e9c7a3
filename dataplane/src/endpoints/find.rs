//! Finds a pod's host-side device, and what its own end is like.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
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
        "the pod names neither its network namespace (annotation bulkhead.dev/netns) nor its device (bulkhead.dev/device)"
    )]
    NoAttachment,
    #[error("network namespace {}: {source}; is the pod still there, and is the path as this node sees it?", path.display())]
    Namespace { path: PathBuf, source: io::Error },
    #[error("network namespace {}: has no device {POD_DEVICE} (yet)", path.display())]
    NoPodDevice { path: PathBuf },
    #[error("network namespace {}: {POD_DEVICE} is no end of a veth pair whose other end is in the agent's namespace", path.display())]
    NotOurs { path: PathBuf },
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
        (Some(path), _) => by_namespace(here, path.into()),
        (None, Some(name)) => by_name(here, name),
        (None, None) => Err(FindError::NoAttachment),
    }
}

fn by_namespace(here: &mut Netlink, path: PathBuf) -> Result<Device, FindError> {
    let namespace = match File::open(&path).and_then(|file| Ok((Netlink::open_in(&file)?, file))) {
        Ok(namespace) => namespace,
        Err(source) => return Err(FindError::Namespace { path, source }),
    };
    let (mut there, file) = namespace;
    let Some(pod) = there.link_by_name(POD_DEVICE)? else {
        return Err(FindError::NoPodDevice { path });
    };
    let Some(peer) = pod.peer else {
        return Err(FindError::NotOurs { path });
    };
    // The index alone could be that of any device here. It is the pod's only if the pair points back: same index, and
    // the same namespace, which a number stands for.
    let number = here.namespace_number(&file)?;
    let Some(host) = here.link_by_index(peer, None)? else {
        return Err(FindError::NotOurs { path });
    };
    if host.peer != Some(pod.index) || number.is_none() || host.peer_namespace != number {
        return Err(FindError::NotOurs { path });
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
