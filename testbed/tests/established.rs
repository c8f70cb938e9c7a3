//! What a change does to live connections, and what who is denied is told: on real sockets, both families, both directions.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use bulkhead_testbed::{Running, Stack, Testnet};

use common::{serve_everywhere, shop, skipped};

/// Much longer than any answer takes, much shorter than a client waits.
const WAIT: Duration = Duration::from_millis(700);
/// Where the live connections go; nobody else listens there.
const PORT: u16 = 7000;

fn start() -> (Testnet, Vec<Running>, Stack) {
    let net = Testnet::create(shop()).unwrap();
    let servers = serve_everywhere(&net);
    let stack = Stack::start(&net).unwrap();
    (net, servers, stack)
}

/// A policy for a pod of the shop that allows nobody but prometheus.
fn isolating(app: &str, direction: &str, more: &str) -> String {
    let peers = if direction == "ingress" { "from" } else { "to" };
    format!(
        "
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentPolicy
metadata: {{ name: only-prometheus, namespace: shop }}
spec:
  {more}
  subject: {{ podSelector: {{ matchLabels: {{ app: {app} }} }} }}
  {direction}:
    - {peers}: [{{ namespaceSelector: {{}}, podSelector: {{ matchLabels: {{ app: prometheus }} }} }}]
"
    )
}

fn connect(net: &Testnet, from: &str, to: IpAddr, port: u16) -> io::Result<TcpStream> {
    let connecting = || TcpStream::connect_timeout(&SocketAddr::new(to, port), WAIT);
    net.pod(from).netns.inside(connecting).unwrap()
}

/// What a pod hears after a datagram.
fn send(net: &Testnet, from: &str, to: IpAddr) -> io::Result<usize> {
    let asking = || {
        let any: IpAddr = if to.is_ipv4() {
            [0, 0, 0, 0].into()
        } else {
            [0_u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(WAIT))?;
        socket.connect((to, 8125))?;
        socket.send(b"anybody there?")?;
        socket.recv(&mut [0; 64])
    };
    net.pod(from).netns.inside(asking).unwrap()
}

/// A live connection, both its ends, over which something was said both ways.
fn live(net: &Testnet, from: &str, to: &str, ipv6: bool) -> (TcpStream, TcpStream) {
    let address = net.pod(to).address(ipv6);
    let listener = net
        .pod(to)
        .netns
        .inside(|| TcpListener::bind((address, PORT)))
        .unwrap()
        .unwrap();
    let client = connect(net, from, address, PORT).unwrap();
    let (server, _) = listener.accept().unwrap();
    for end in [&client, &server] {
        end.set_read_timeout(Some(WAIT)).unwrap();
    }
    let pair = (client, server);
    says(&pair.0, &pair.1).unwrap();
    says(&pair.1, &pair.0).unwrap();
    pair
}

/// One end says a word and the other hears it.
fn says(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    from.write_all(b"word")?;
    to.read_exact(&mut [0; 4])
}

fn told(error: &io::Error) -> bool {
    // Refused or reset is a TCP reset; the other two are what ICMP and ICMPv6 say of a prohibition.
    [libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH, libc::EACCES]
        .iter()
        .any(|number| error.raw_os_error() == Some(*number))
}

fn silent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// Who is rejected hears of it at once, whichever end's rules reject; who is dropped hears nothing.
#[test]
fn a_rejected_client_is_told_and_a_dropped_one_is_not() {
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    // The client and `web` are on one node, `api` on the other.
    let cases = [
        ("ingress", "web", "web"),
        ("ingress", "api", "api"),
        ("egress", "client", "api"),
    ];
    for (direction, subject, server) in cases {
        for (deny, expected) in [("Reject", told as fn(&io::Error) -> bool), ("Drop", silent)] {
            let policy = isolating(subject, direction, &format!("deny: {deny}"));
            stack.apply("established.yaml", &policy).unwrap();
            for ipv6 in [false, true] {
                let place = format!("{deny} by {direction} of {subject}, IPv6 {ipv6}");
                let address = net.pod(server).address(ipv6);
                let error = connect(&net, "client", address, 8080).expect_err(&place);
                assert!(expected(&error), "TCP, {place}: {error}");
                let error = send(&net, "client", address).expect_err(&place);
                assert!(expected(&error), "UDP, {place}: {error}");
            }
        }
        stack.remove("established.yaml").unwrap();
        assert!(connect(&net, "client", net.pod(server).address(false), 8080).is_ok());
    }
}

/// A live connection is cut; with Reject its ends are told.
#[test]
fn a_live_connection_is_cut_and_reset() {
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    for ipv6 in [false, true] {
        for (deny, expected) in [("Reject", told as fn(&io::Error) -> bool), ("Drop", silent)] {
            let (client, server) = live(&net, "client", "api", ipv6);
            let policy = isolating("api", "ingress", &format!("deny: {deny}"));
            stack.apply("established.yaml", &policy).unwrap();
            assert!(says(&client, &server).is_err(), "{deny}: nothing arrives any more");
            let error = (&client).read(&mut [0; 4]).expect_err("the client hears nothing good");
            assert!(expected(&error), "{deny}, IPv6 {ipv6}: {error}");
            stack.remove("established.yaml").unwrap();
        }
    }
}

/// `Keep` and `Drain` spare what lives, and only that; `Reevaluate` cuts it.
#[test]
fn a_live_connection_goes_on_where_the_policy_lets_it() {
    if skipped() {
        return;
    }
    let (net, _servers, mut stack) = start();
    for ipv6 in [false, true] {
        let address = net.pod("api").address(ipv6);
        let (client, server) = live(&net, "client", "api", ipv6);
        for on_change in ["Keep", "Drain"] {
            let policy = isolating("api", "ingress", &format!("onChange: {on_change}"));
            stack.apply("established.yaml", &policy).unwrap();
            for _ in 0..3 {
                says(&client, &server).expect(on_change);
                says(&server, &client).expect(on_change);
            }
            assert!(
                connect(&net, "client", address, 8080).is_err(),
                "{on_change}: a new one is denied"
            );
        }
        let policy = isolating("api", "ingress", "onChange: Reevaluate");
        stack.apply("established.yaml", &policy).unwrap();
        assert!(says(&client, &server).is_err(), "Reevaluate cuts it");
        stack.remove("established.yaml").unwrap();
    }
}
