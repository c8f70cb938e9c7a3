//! What the kernel says of devices and addresses, over rtnetlink. A socket stays in the network namespace it was opened
//! in, so entering a pod's namespace is the business of one short-lived thread.

use std::{
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage, LinkXdp, Stats64},
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Multicast groups of changes of links and addresses (`RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`).
const LINK_CHANGES: u32 = 0x1 | 0x10 | 0x100;
/// Longest time a waiter is not asked whether to stop.
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// A network device.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Link {
    /// Index in its namespace.
    pub(crate) index: u32,
    /// Name.
    pub(crate) name: String,
    /// MAC address, when it has one of six bytes.
    pub(crate) mac: Option<[u8; 6]>,
    /// Index of the other end of a veth pair, in that end's namespace.
    pub(crate) peer: Option<u32>,
    /// Number of that namespace as seen from here; absent when it is this one.
    pub(crate) peer_namespace: Option<i32>,
}

/// Packets that a pair of devices has carried, since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Traffic {
    /// What the pod sent: received by the host's end.
    pub(crate) from_pod: u64,
    /// What the pod's end received and the host's end had not sent: at least, and at most. They differ by what passed while
    /// it was looked.
    pub(crate) past: (i64, i64),
    /// An XDP program runs on the host's end, before any other.
    pub(crate) xdp: bool,
}

/// A socket that asks the kernel and collects its answers.
pub(crate) struct Requests {
    socket: Socket,
    sequence: u32,
}

/// A request socket for devices and addresses.
pub(crate) struct Netlink(Requests);

/// Runs something short in another network namespace; the calling thread stays where it is.
pub(crate) fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let enter = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        let entering = thread::Builder::new()
            .name("enter-netns".to_owned())
            .spawn_scoped(scope, enter)?;
        entering
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that entered the namespace panicked")))
    })
}

impl Requests {
    /// Of the calling thread's namespace.
    pub(crate) fn open(family: isize) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and collects the answers.
    pub(crate) fn request<M>(&mut self, message: M, flags: u16) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
        NetlinkPayload<M>: From<M>,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        loop {
            let (received, _) = self.socket.recv_from_full()?;
            let mut rest = received.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).map_err(io::Error::other)?;
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
            if flags & NLM_F_DUMP != NLM_F_DUMP && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }
}

impl Netlink {
    /// Of the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let requests = Requests::open(NETLINK_ROUTE)?;
        // Without it the kernel ignores filters of dumps instead of refusing what it does not know.
        requests.socket.set_netlink_get_strict_chk(true)?;
        Ok(Self(requests))
    }

    /// Of another namespace; the calling thread stays where it is.
    pub(crate) fn open_in(namespace: &File) -> io::Result<Self> {
        inside(namespace, Self::open)
    }

    fn link(&mut self, message: LinkMessage) -> io::Result<Option<Link>> {
        Ok(self.link_message(message)?.map(Link::from))
    }

    fn link_message(&mut self, message: LinkMessage) -> io::Result<Option<LinkMessage>> {
        match self.0.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The device of a name.
    pub(crate) fn link_by_name(&mut self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.link(message)
    }

    /// The device of an index, in this namespace or the one of that number.
    pub(crate) fn link_by_index(&mut self, index: u32, namespace: Option<i32>) -> io::Result<Option<Link>> {
        self.link(by_index(index, namespace))
    }

    /// What a pod's device has carried; `None` when there is no such pair.
    pub(crate) fn traffic(&mut self, ifindex: u32) -> io::Result<Option<Traffic>> {
        let Some((before, link, _)) = self.counted(ifindex, None)? else {
            return Ok(None);
        };
        let (Some(peer), Some(namespace)) = (link.peer, link.peer_namespace) else {
            return Ok(None);
        };
        let Some((pod, ..)) = self.counted(peer, Some(namespace))? else {
            return Ok(None);
        };
        let Some((after, _, xdp)) = self.counted(ifindex, None)? else {
            return Ok(None);
        };
        let more_than = |host: u64| pod.rx_packets.wrapping_sub(host).cast_signed();
        Ok(Some(Traffic {
            from_pod: after.rx_packets,
            past: (more_than(after.tx_packets), more_than(before.tx_packets)),
            xdp,
        }))
    }

    /// A device with its counters, and whether it has an XDP program.
    fn counted(&mut self, index: u32, namespace: Option<i32>) -> io::Result<Option<(Stats64, Link, bool)>> {
        let Some(message) = self.link_message(by_index(index, namespace))? else {
            return Ok(None);
        };
        let (mut counters, mut xdp) = (Stats64::default(), false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Stats64(found) => counters = *found,
                LinkAttribute::Xdp(parts) => xdp = parts.iter().any(|part| matches!(part, LinkXdp::ProgId(1..))),
                _ => {}
            }
        }
        Ok(Some((counters, Link::from(message), xdp)))
    }

    /// Every device of this namespace.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self
            .0
            .request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        let link = |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(Link::from(link)),
            _ => None,
        };
        Ok(answers.into_iter().filter_map(link).collect())
    }

    /// Addresses of a device, in this namespace or the one of that number.
    pub(crate) fn addresses(&mut self, index: u32, namespace: Option<i32>) -> io::Result<Vec<IpAddr>> {
        self.addresses_of(Some(index), namespace)
    }

    /// Addresses of all devices of this namespace.
    pub(crate) fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        self.addresses_of(None, None)
    }

    fn addresses_of(&mut self, index: Option<u32>, namespace: Option<i32>) -> io::Result<Vec<IpAddr>> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or(0);
        message
            .attributes
            .extend(namespace.map(AddressAttribute::TargetNetNsId));
        let answers = self.0.request(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
        let mut addresses = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewAddress(address) = answer else {
                continue;
            };
            if index.is_some_and(|index| address.header.index != index) {
                continue;
            }
            // IPv4 has the device's own address in `Local` (`Address` is the other end of a point-to-point link).
            let local = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let plain = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            addresses.extend(local.or(plain));
        }
        Ok(addresses)
    }

    /// The number another namespace has here; `None` when it has none, which means no device of ours leads there.
    pub(crate) fn namespace_number(&mut self, namespace: &File) -> io::Result<Option<i32>> {
        let mut message = NsidMessage::default();
        message
            .attributes
            .push(NsidAttribute::Fd(namespace.as_raw_fd().unsigned_abs()));
        let answers = self.0.request(RouteNetlinkMessage::GetNsId(message), 0)?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(message) => {
                message.attributes.into_iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) if number >= 0 => Some(number),
                    _ => None,
                })
            }
            _ => None,
        }))
    }
}

fn by_index(index: u32, namespace: Option<i32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.extend(namespace.map(LinkAttribute::IfNetnsId));
    message
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkNetNsId(number) => link.peer_namespace = Some(number),
                _ => {}
            }
        }
        link
    }
}

/// Says when a device or an address comes, goes or changes. What changed is not said: the reader looks for itself, so a
/// lost notice costs nothing but a later look.
pub(crate) struct LinkChanges {
    socket: Socket,
}

impl LinkChanges {
    /// Of the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, LINK_CHANGES))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Waits for notices, and takes all there are; false when none came for a while.
    pub(crate) fn wait(&self) -> io::Result<bool> {
        let mut poll = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut poll, Some(&WAIT)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut any = false;
        loop {
            match self.socket.recv_from_full() {
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                // Some were lost, so something changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(error) => return Err(error),
            }
        }
    }
}
