//! The TCP connections a pod has, asked of the kernel inside the pod's network namespace (`sock_diag(7)`).

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::{Requests, inside};

/// A connection as the pod's own socket has it, which is as its packets look at the pod's device: a Service's address is
/// rewritten on the node's side of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Connection {
    /// The pod's end.
    pub(crate) local: SocketAddr,
    /// The other.
    pub(crate) remote: SocketAddr,
    /// True when the pod listens on that port, so that the other end began.
    pub(crate) accepted: bool,
}

/// The open connections of a namespace. Those inside it (loopback) are left out.
pub(crate) fn connections(namespace: &Path) -> io::Result<Vec<Connection>> {
    let file = File::open(namespace)?;
    let mut requests = inside(&file, || Requests::open(NETLINK_SOCK_DIAG))?;
    let mut sockets = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN
                | StateFlags::ESTABLISHED
                | StateFlags::CLOSE_WAIT
                | StateFlags::FIN_WAIT1
                | StateFlags::FIN_WAIT2
                | StateFlags::CLOSING
                | StateFlags::LAST_ACK,
            socket_id,
        };
        let answers = requests.request(SockDiagMessage::InetRequest(request), NLM_F_DUMP)?;
        sockets.extend(answers.into_iter().filter_map(|answer| match answer {
            SockDiagMessage::InetResponse(socket) => Some(*socket),
            _ => None,
        }));
    }
    Ok(open(&sockets))
}

fn open(sockets: &[InetResponse]) -> Vec<Connection> {
    let listened: BTreeSet<u16> = sockets
        .iter()
        .filter(|socket| socket.header.state == TCP_LISTEN)
        .map(|socket| socket.header.socket_id.source_port)
        .collect();
    let mut found: Vec<Connection> = sockets
        .iter()
        .filter(|socket| socket.header.state != TCP_LISTEN)
        .map(|socket| {
            let id = &socket.header.socket_id;
            Connection {
                local: end(id.source_address, id.source_port),
                remote: end(id.destination_address, id.destination_port),
                accepted: listened.contains(&id.source_port),
            }
        })
        .filter(|connection| !connection.remote.ip().is_loopback() && connection.local.ip() != connection.remote.ip())
        .collect();
    found.sort();
    found
}

/// A socket for both families says `::ffff:a.b.c.d` where the packets say `a.b.c.d`.
fn end(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn real_sockets_are_seen_with_who_began() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // Loopback is left out of the answer, so the raw one is looked at through another of the machine's addresses.
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let local = client.local_addr().unwrap();
        let found = connections(Path::new("/proc/self/ns/net")).unwrap();
        assert!(
            found.iter().all(|connection| !connection.remote.ip().is_loopback()),
            "{found:?}"
        );

        let mut requests = Requests::open(NETLINK_SOCK_DIAG).unwrap();
        let request = InetRequest {
            family: AF_INET6,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::ESTABLISHED,
            socket_id: SocketId::new_v6(),
        };
        let answers = requests
            .request(SockDiagMessage::InetRequest(request), NLM_F_DUMP)
            .unwrap();
        let ends: Vec<(SocketAddr, SocketAddr)> = answers
            .into_iter()
            .filter_map(|answer| match answer {
                SockDiagMessage::InetResponse(socket) => Some(socket.header.socket_id),
                _ => None,
            })
            .map(|id| {
                (
                    end(id.source_address, id.source_port),
                    end(id.destination_address, id.destination_port),
                )
            })
            .collect();
        assert!(ends.contains(&(SocketAddr::new(local.ip(), port), local)), "{ends:?}");
    }
}
