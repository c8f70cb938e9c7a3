//! Who is asked about devices: this machine's kernel, or nobody where pods are only simulated.

use std::{io, net::IpAddr, path::Path};

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

impl Devices for Netlink {
    fn links(&mut self) -> io::Result<Vec<Link>> {
        Netlink::links(self)
    }

    fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        Netlink::all_addresses(self)
    }

    fn by_attachment(&mut self, attachment: &Attachment) -> Result<Device, FindError> {
        find::find(self, attachment)
    }

    fn by_namespace(&mut self, path: &Path, interface: &str) -> Result<Device, FindError> {
        find::by_namespace(self, path, interface)
    }

    fn traffic(&mut self, ifindex: u32) -> io::Result<Option<Traffic>> {
        Netlink::traffic(self, ifindex)
    }

    fn merges(&self, name: &str) -> io::Result<bool> {
        offload::merges(name)
    }
}
