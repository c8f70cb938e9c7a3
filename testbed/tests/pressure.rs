//! One pod's flood is its own trouble: others' live flows go on, their new ones are opened, and what answers late still arrives.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use bulkhead_testbed::{Stack, Testnet, frame::Forged, process::until, sys::PacketSocket};
use bulkhead_verdict::{layout, quota, reason::Reason};

use common::{SOON, serve_everywhere, shop, skipped};

/// How late the slow server answers. A table that one pod can fill holds less than that at full speed.
const LATE: Duration = Duration::from_secs(4);
/// Much longer than that.
const PATIENCE: Duration = Duration::from_secs(12);
/// Questions to the slow server.
const QUESTIONS: usize = 40;
const PORT: u16 = 7_000;

/// Only who is asked may talk to the client: an answer that belongs to no flow is dropped.
const CLIENT_ALONE: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentPolicy
metadata: { name: nobody-to-the-client, namespace: shop }
spec:
  subject: { podSelector: { matchLabels: { app: client } } }
  ingress:
    - from: [{ namespaceSelector: {}, podSelector: { matchLabels: { app: nobody } } }]
";

#[test]
fn a_pods_flood_is_its_own_trouble() {
    if skipped() {
        return;
    }
    let net = Testnet::create(shop()).unwrap();
    let _servers = serve_everywhere(&net);
    let mut stack = Stack::start(&net).unwrap();
    stack.apply("client.yaml", CLIENT_ALONE).unwrap();
    for ipv6 in [false, true] {
        flooded(&net, &stack, ipv6);
    }
}

fn flooded(net: &Testnet, stack: &Stack, ipv6: bool) {
    let web = net.pod("web").address(ipv6);
    assert!(
        !unasked(net, web, net.pod("client").address(ipv6)),
        "an answer passes through its flow alone"
    );
    let live = connect(net, SocketAddr::new(web, 8080)).unwrap();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = refused(stack);
    thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let send = || flood(net, ipv6, &stop, &sent);
            net.pod("stock").netns.inside(send).unwrap();
        });
        // However this ends, or nothing would.
        let running = StopAtEnd(&stop);
        let used_up = || (sent.load(Ordering::Relaxed) > 4 * quota::BURST).then_some(());
        assert!(until(SOON, used_up).is_some(), "the flood does not get going");
        let answered = slow_answers(net, web);
        let opened = (0..100).take_while(|_| connect(net, SocketAddr::new(web, 8080)).is_ok());
        let opened = opened.count();
        drop(running);
        flooding.join().unwrap();
        assert_eq!(opened, 100, "new connections of another pod under the flood");
        assert_eq!(answered, QUESTIONS, "answers that came after {LATE:?}");
    });
    assert!(live.peer_addr().is_ok());
    drop(live);
    let (sent, refused) = (sent.into_inner(), refused(stack) - before);
    println!("NOTE: {sent} openings by the flood, {refused} of them refused");
    assert!(refused > sent / 2, "{refused} of {sent} refused");
    let status = stack.agent(0).unwrap().agent_status().unwrap();
    let table = status.maps.iter().find(|map| map.name == "tentative flows").unwrap();
    assert!(table.used < u64::from(layout::TENTATIVE) * 3 / 4, "{table:?}");
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Openings on the first node that the quota refused.
fn refused(stack: &Stack) -> u64 {
    let status = stack.agent(0).unwrap().agent_status().unwrap();
    let counts = status.verdicts.iter();
    counts
        .filter(|count| count.reason == Reason::FlowQuota.name())
        .map(|count| count.packets)
        .sum()
}

fn connect(net: &Testnet, to: SocketAddr) -> std::io::Result<TcpStream> {
    let connecting = || TcpStream::connect_timeout(&to, PATIENCE);
    net.pod("client").netns.inside(connecting).unwrap()
}

/// Datagrams to a closed port of web, each of them another flow, as fast as they go.
fn flood(net: &Testnet, ipv6: bool, stop: &AtomicBool, sent: &AtomicU64) {
    let stock = net.pod("stock");
    let web = net.pod("web").address(ipv6);
    let socket = PacketSocket::open("eth0").unwrap();
    let mut number = 0_u32;
    while !stop.load(Ordering::Acquire) {
        number = number.wrapping_add(1);
        let port = |number: u32| u16::try_from(1_024 + number % 60_000).unwrap();
        let frame = Forged {
            from_mac: stock.mac,
            to_mac: [2, 0, 0, 0, 0, 0xfe],
            source: SocketAddr::new(stock.address(ipv6), port(number)),
            destination: SocketAddr::new(web, port(20_000 + number / 60_000)),
            tcp: false,
            payload: b"flood",
        };
        // A full queue is no matter: the next one is as good.
        if socket.send(&frame.bytes()).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether the client gets a datagram of web's that it has not asked for.
fn unasked(net: &Testnet, web: IpAddr, client: IpAddr) -> bool {
    let receiver = net.pod("client").netns.inside(|| UdpSocket::bind((client, PORT)));
    let receiver = receiver.unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sender = net
        .pod("web")
        .netns
        .inside(|| UdpSocket::bind((web, 0)))
        .unwrap()
        .unwrap();
    sender.send_to(b"by the way", (client, PORT)).unwrap();
    receiver.recv(&mut [0; 16]).is_ok()
}

/// For how many questions of the client a slow server's answer comes back.
fn slow_answers(net: &Testnet, web: IpAddr) -> usize {
    let server = net
        .pod("web")
        .netns
        .inside(|| UdpSocket::bind((web, PORT)))
        .unwrap()
        .unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            let mut waiting = Vec::new();
            while waiting.len() < QUESTIONS {
                let mut question = [0; 16];
                let Ok((_, from)) = server.recv_from(&mut question) else {
                    break;
                };
                waiting.push(from);
            }
            thread::sleep(LATE);
            for from in waiting {
                server.send_to(b"late", from).unwrap();
            }
        });
        let client = &net.pod("client").netns;
        let any: IpAddr = if web.is_ipv6() {
            [0_u16; 8].into()
        } else {
            [0, 0, 0, 0].into()
        };
        let sockets: Vec<UdpSocket> = (0..QUESTIONS)
            .map(|_| {
                let socket = client.inside(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                socket.send_to(b"well?", (web, PORT)).unwrap();
                socket
            })
            .collect();
        serving.join().unwrap();
        let answered = sockets.iter().filter(|socket| socket.recv(&mut [0; 16]).is_ok());
        answered.count()
    })
}
