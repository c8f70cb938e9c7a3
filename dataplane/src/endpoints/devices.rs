//! Who is asked about devices: this machine's kernel, or nobody where pods are only simulated.

use std::{collections::BTreeMap, io, net::IpAddr, path::Path};

use bulkhead_policy::model::Attachment;

use super::{
    find::{self, Device, FindError},
    netlink::{Link, Netlink, Traffic},
    offload,
};

/// Answers questions about devices.
pub(crate) trait Devices: Send {
    /// Every device of the agent's namespace.
    fn links(&mut self) -> io::Result<Vec<Link>>;
    /// Addresses of all of them.
    fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>>;
    /// Devices that lead out of the node, by index.
    fn leading_out(&mut self) -> io::Result<BTreeMap<u32, String>> {
        Ok(BTreeMap::new())
    }
    /// The device an annotation points at.
    fn by_attachment(&mut self, attachment: &Attachment) -> Result<Device, FindError>;
    /// The host-side device of a device inside a namespace.
    fn by_namespace(&mut self, path: &Path, interface: &str) -> Result<Device, FindError>;
    /// What a pod's device has carried; `None` where that is not known.
    fn traffic(&mut self, _ifindex: u32) -> io::Result<Option<Traffic>> {
        Ok(None)
    }
    /// Whether a device merges packets it receives before a program sees them.
    fn merges(&self, _name: &str) -> io::Result<bool> {
        Ok(false)
    }
}

/// This machine's kernel.
pub(crate) struct Here {
    /// A socket of the agent's namespace.
    netlink: Netlink,
    /// Names of devices that lead out, as [`crate::uplink::devices::find`] takes them.
    leading_out: Vec<String>,
}

impl Here {
    /// In the calling thread's namespace, where devices of these names lead out.
    pub(crate) fn open(leading_out: &[String]) -> io::Result<Self> {
        Ok(Self {
            netlink: Netlink::open()?,
            leading_out: leading_out.to_vec(),
        })
    }
}

impl Devices for Here {
    fn links(&mut self) -> io::Result<Vec<Link>> {
        self.netlink.links()
    }

    fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        self.netlink.all_addresses()
    }

    fn leading_out(&mut self) -> io::Result<BTreeMap<u32, String>> {
        let (found, missing) = crate::uplink::devices::find(&self.leading_out)?;
        for name in missing {
            tracing::warn!("device {name}, which is to lead out of the node, is not there");
        }
        Ok(found)
    }

    fn by_attachment(&mut self, attachment: &Attachment) -> Result<Device, FindError> {
        find::find(&mut self.netlink, attachment)
    }

    fn by_namespace(&mut self, path: &Path, interface: &str) -> Result<Device, FindError> {
        find::by_namespace(&mut self.netlink, path, interface)
    }

    fn traffic(&mut self, ifindex: u32) -> io::Result<Option<Traffic>> {
        self.netlink.traffic(ifindex)
    }

    fn merges(&self, name: &str) -> io::Result<bool> {
        offload::merges(name)
    }
}
