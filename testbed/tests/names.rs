//! Names in rules: addresses are learned from real DNS answers before the pod that asked sees them, with no proxy and no agent.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bulkhead_proto::v1::{AgentStatus, FlowEvent};
use bulkhead_testbed::{Plan, Pod, PodPlan, Stack, Testnet, process::until};
use bulkhead_verdict::host::dns::{self, Message, Record};

use common::{SOON, skipped};

/// Time in which a denied connection is given up; none that is allowed takes so long.
const DENIED: Duration = Duration::from_millis(700);
const ALLOWED: Duration = Duration::from_secs(10);
/// Names that are resolved and connected to.
const NAMES: u32 = 1000;
const POLICY: &str = "
apiVersion: bulkhead.dev/v1alpha1
kind: SegmentPolicy
metadata: { name: names, namespace: shop }
spec:
  subject: { podSelector: { matchLabels: { app: web } } }
  egress:
    - to: [{ network: { cidr: 203.0.113.5/32 } }, { network: { cidr: '2001:db8::5/128' } }]
      ports: [{ protocol: UDP, port: 53 }, { protocol: TCP, port: 53 }]
    - name: partners
      to: [{ fqdns: [api.example.com, '*.shop.test', '**.deep.test'] }]
      ports: [{ port: 443 }]
";

fn v4(high: u8, low: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, high, low).into()
}

/// The address a name has in a family.
fn number(number: u32, ipv6: bool) -> IpAddr {
    let [_, _, high, low] = number.to_be_bytes();
    if ipv6 {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, u16::from(high), u16::from(low)).into()
    } else {
        v4(high, low)
    }
}

/// What a server says, by name and type.
type Known = Mutex<BTreeMap<(String, u16), Vec<Record>>>;

/// A server of names, and one that accepts connections at every address of theirs.
struct Outside {
    /// The largest answer the last query over UDP allowed (EDNS).
    allowed: Arc<Mutex<Option<u16>>>,
    /// What the server says, by name and type; of other names of the form `n7.…` it knows the address, `hold…` it lets wait.
    records: Arc<Known>,
    server: [UdpSocket; 2],
}

impl Outside {
    fn start(net: &Testnet) -> Self {
        net.outside
            .ip(
                "route add local 198.18.0.0/15 dev lo\nroute add local 2001:db8:1::/48 dev lo\n\
                 addr add 2001:db8:1::70:0/128 dev lo nodad\n",
            )
            .unwrap();
        let records = Arc::new(Mutex::new(BTreeMap::new()));
        let allowed = Arc::new(Mutex::new(None));
        let server = Testnet::OUTSIDE.map(|address| {
            let socket = net.outside.inside(|| UdpSocket::bind((address, 53))).unwrap().unwrap();
            let (own, known, allowed) = (socket.try_clone().unwrap(), records.clone(), allowed.clone());
            thread::spawn(move || answer(&own, &known, &allowed));
            let listener = net
                .outside
                .inside(|| TcpListener::bind((address, 53)))
                .unwrap()
                .unwrap();
            let known = records.clone();
            thread::spawn(move || answer_streams(&listener, &known));
            socket
        });
        // Every address of both families.
        let everywhere = (Ipv6Addr::UNSPECIFIED, 443);
        let listener = net.outside.inside(|| TcpListener::bind(everywhere)).unwrap().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream));
            }
        });
        Self {
            allowed,
            records,
            server,
        }
    }

    fn knows(&self, name: &str, kind: u16, records: Vec<Record>) {
        self.records.lock().unwrap().insert((name.to_owned(), kind), records);
    }

    /// Sends an answer from the server's own address and port.
    fn says(&self, to: SocketAddr, message: &Message) {
        let socket = &self.server[usize::from(to.is_ipv6())];
        socket.send_to(&message.bytes(), to).unwrap();
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..bytes]).is_err() {
            return;
        }
    }
}

/// The answer to a query; `None` = none.
fn reply(query: &[u8], known: &Known) -> Option<Message> {
    let mut name = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let length = usize::from(query[at]);
        name.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += length + 1;
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let id = u16::from_be_bytes([query[0], query[1]]);
    let first = name[0].clone();
    let name = name.join(".");
    if first.starts_with("hold") {
        return None;
    }
    let records = known.lock().unwrap().get(&(name.clone(), kind)).cloned();
    let counted = || first.strip_prefix('n')?.parse::<u32>().ok();
    let records = records.or_else(|| Some(vec![Record::address(number(counted()?, kind == dns::AAAA), 300)]));
    let answers = records.unwrap_or_default();
    Some(Message::query(id, &name, kind).answer(answers))
}

fn answer(socket: &UdpSocket, known: &Known, allowed: &Mutex<Option<u16>>) {
    let mut buffer = [0; 1500];
    while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
        let option = buffer[..bytes].iter().rev().skip(6).take(2);
        let size = option.zip([0, 8]).map(|(byte, shift)| u16::from(*byte) << shift).sum();
        *allowed.lock().unwrap() = (buffer[11] == 1).then_some(size);
        if let Some(message) = reply(&buffer[..bytes], known) {
            drop(socket.send_to(&message.bytes(), from));
        }
    }
}

fn answer_streams(listener: &TcpListener, known: &Known) {
    for mut stream in listener.incoming().flatten() {
        let mut length = [0; 2];
        if stream.read_exact(&mut length).is_err() {
            continue;
        }
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query).unwrap();
        if let Some(message) = reply(&query, known) {
            // In pieces, as a real one comes over a network.
            stream.set_nodelay(true).unwrap();
            for piece in message.with_length().chunks(700) {
                drop(stream.write_all(piece));
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn kind(ipv6: bool) -> u16 {
    if ipv6 { dns::AAAA } else { dns::A }
}

/// A socket of a pod that asks the server of a family.
fn resolver(pod: &Pod, ipv6: bool) -> UdpSocket {
    let server = Testnet::OUTSIDE[usize::from(ipv6)];
    let socket = pod
        .netns
        .inside(|| UdpSocket::bind((pod.address(ipv6), 0)))
        .unwrap()
        .unwrap();
    socket.connect((server, 53)).unwrap();
    socket.set_read_timeout(Some(ALLOWED)).unwrap();
    socket
}

/// Asks, and waits for the answer.
fn resolve(socket: &UdpSocket, name: &str, kind: u16, id: u16) {
    socket.send(&Message::query(id, name, kind).bytes()).unwrap();
    let mut buffer = [0; 1500];
    socket
        .recv(&mut buffer)
        .unwrap_or_else(|error| panic!("no answer for {name}: {error}"));
}

fn connect(pod: &Pod, to: IpAddr, time: Duration) -> Option<TcpStream> {
    let open = || TcpStream::connect_timeout(&SocketAddr::new(to, 443), time);
    pod.netns.inside(open).unwrap().ok()
}

fn allowed(pod: &Pod, to: IpAddr) -> bool {
    connect(pod, to, ALLOWED).is_some()
}

fn denied(pod: &Pod, to: IpAddr) -> bool {
    connect(pod, to, DENIED).is_none()
}

fn start(more: &[&str]) -> (Testnet, Outside, Stack) {
    let net = Testnet::create(Plan {
        namespaces: [("shop".to_owned(), [].into())].into(),
        nodes: vec!["node-1".to_owned()],
        pods: ["web", "flood"]
            .map(|name| PodPlan::new("shop", name, "app=web"))
            .into(),
    })
    .unwrap();
    let outside = Outside::start(&net);
    let mut stack = Stack::prepare(&net).unwrap();
    stack.start_controller().unwrap();
    stack.start_agent(&net, 0, more).unwrap();
    stack.apply("names.yaml", POLICY).unwrap();
    (net, outside, stack)
}

fn counted(status: &AgentStatus, outcome: &str) -> u64 {
    let of = status.names.iter().filter(|count| count.reason == outcome);
    of.map(|count| count.packets).sum()
}

/// Another pod asks for, and is told, more than all tables of a pod hold.
fn flood(pod: &Pod, ipv6: bool) {
    let socket = resolver(pod, ipv6);
    socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut buffer = [0; 1500];
    for one in 0..20_000_u32 {
        let first = if one % 2 == 0 { "n" } else { "hold" };
        let [_, _, high, low] = one.to_be_bytes();
        let id = u16::from_be_bytes([high, low]);
        let query = Message::query(id, &format!("{first}{one}.shop.test"), kind(ipv6));
        drop(socket.send(&query.bytes()));
        if one % 32 == 0 {
            while socket.recv(&mut buffer).is_ok() {}
        }
    }
}

/// Asks over TCP, and waits for the whole answer.
fn over_tcp(pod: &Pod, ipv6: bool, name: &str) {
    let server = Testnet::OUTSIDE[usize::from(ipv6)];
    let open = || TcpStream::connect((server, 53));
    let mut stream = pod.netns.inside(open).unwrap().unwrap();
    stream.set_read_timeout(Some(ALLOWED)).unwrap();
    let query = Message::query(3, name, kind(ipv6)).with_length();
    stream.write_all(&query).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
}

#[test]
fn large_answers_are_learned_too() {
    if skipped() {
        return;
    }
    let (net, outside, stack) = start(&[]);
    let web = net.pod("web");
    for ipv6 in [false, true] {
        let last = number(0x6100, ipv6);
        let many = (0..120).map(|part| Record::address(number(0x6200 + part, ipv6), 60));
        let records: Vec<Record> = many.chain([Record::address(last, 60)]).collect();
        outside.knows("many.shop.test", kind(ipv6), records);
        over_tcp(web, ipv6, "many.shop.test");
        assert!(allowed(web, last), "an answer over TCP in pieces, IPv6 {ipv6}");
    }
    // The query says how large an answer over UDP may be; more than fits a packet would come in fragments. Even and odd places.
    for (name, expected) in [("n7.shop.test", 1232), ("n77.shop.test", 1232), ("n8.evil.test", 4096)] {
        let mut query = Message::query(9, name, dns::A).bytes();
        query[11] = 1;
        query.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        let socket = resolver(web, false);
        socket.send(&query).unwrap();
        socket.recv(&mut [0; 1500]).unwrap();
        assert_eq!(*outside.allowed.lock().unwrap(), Some(expected), "{name}");
    }
    let status = stack.agent(0).unwrap().agent_status().unwrap();
    assert_eq!(counted(&status, "clamped"), 2);
    assert_eq!(counted(&status, "segmented") + counted(&status, "early-segment"), 0);
}

/// Aliases, another case, deep wildcards, TCP; and what no rule names.
fn every_kind_of_name(net: &Testnet, outside: &Outside) {
    let web = net.pod("web");
    let socket = resolver(web, false);
    let aliases = vec![
        Record::alias("", "edge.cdn.test", 60),
        Record {
            owner: "edge.cdn.test".to_owned(),
            ..Record::address(v4(200, 1), 60)
        },
    ];
    outside.knows("api.example.com", dns::A, aliases);
    for (name, address) in [("x.y.deep.test", v4(200, 2)), ("wWw.ShOp.TeSt", v4(200, 3))] {
        outside.knows(&name.to_lowercase(), dns::A, vec![Record::address(address, 60)]);
        resolve(&socket, name, dns::A, 7);
        assert!(allowed(web, address), "{name}");
    }
    resolve(&socket, "api.example.com", dns::A, 8);
    assert!(allowed(web, v4(200, 1)), "behind an alias");
    for (last, name) in (10_u8..).zip([
        "www.evil.test",
        "shop.test",
        "a.b.shop.test",
        "xshop.test",
        "www.api.example.com",
    ]) {
        outside.knows(name, dns::A, vec![Record::address(v4(201, last), 60)]);
        resolve(&socket, name, dns::A, 9);
        assert!(denied(web, v4(201, last)), "{name}");
    }
    outside.knows("over.shop.test", dns::A, vec![Record::address(v4(200, 4), 60)]);
    over_tcp(web, false, "over.shop.test");
    assert!(allowed(web, v4(200, 4)), "an answer over TCP");
    assert!(denied(net.pod("flood"), v4(200, 4)), "what one pod learned is its own");
}

#[test]
fn a_thousand_names_are_resolved_and_connected_to_at_once_while_the_agent_is_dead() {
    if skipped() {
        return;
    }
    let (net, outside, mut stack) = start(&[]);
    let web = net.pod("web");
    assert!(denied(web, number(1, false)), "nobody has asked for it yet");
    stack.kill_agent(0).unwrap();
    let mut refused = Vec::new();
    for ipv6 in [false, true] {
        let socket = resolver(web, ipv6);
        for one in 0..NAMES {
            let name = format!("n{one}.shop.test");
            resolve(&socket, &name, kind(ipv6), u16::try_from(one).unwrap());
            if !allowed(web, number(one, ipv6)) {
                refused.push((name, ipv6));
            }
        }
    }
    assert_eq!(refused, [], "false denials of {} connections", 2 * NAMES);

    every_kind_of_name(&net, &outside);

    // What was learned and counted is there when the agent is; records say which names it was.
    stack.start_agent(&net, 0, &[]).unwrap();
    assert!(allowed(web, number(3, true)));
    let status = until(SOON, || stack.agent(0).ok()?.agent_status().ok()).unwrap();
    assert!(counted(&status, "learned") >= u64::from(2 * NAMES) + 4);
    // 2,006 addresses are about what the tables of a pod hold, so some were displaced after they were used.
    assert_eq!(counted(&status, "lost") + counted(&status, "malformed"), 0);
    assert!(counted(&status, "not-named") >= 5);
    let named = until(SOON, || {
        let flows = stack.agent(0).unwrap().flows(Vec::new()).unwrap();
        let names = flows
            .into_iter()
            .filter(|flow| flow.event() == FlowEvent::Open)
            .flat_map(|flow| flow.destination_names);
        names.into_iter().any(|name| name == "*.shop.test").then_some(())
    });
    assert!(named.is_some(), "no record of the connection names *.shop.test");
}

#[test]
fn without_learning_nothing_is_reached() {
    if skipped() {
        return;
    }
    let (net, _outside, stack) = start(&["--no-name-learning"]);
    let web = net.pod("web");
    for ipv6 in [false, true] {
        resolve(&resolver(web, ipv6), "n5.shop.test", kind(ipv6), 7);
        assert!(denied(web, number(5, ipv6)));
    }
    drop(stack);
}

#[test]
fn forged_answers_teach_nothing_and_a_flood_pushes_out_nothing() {
    if skipped() {
        return;
    }
    let (net, outside, stack) = start(&[]);
    let web = net.pod("web");
    for ipv6 in [false, true] {
        let socket = resolver(web, ipv6);
        let client = socket.local_addr().unwrap();
        let address = |part: u32| number(0x6000 + part, ipv6);
        let query = Message::query(0x4242, "hold.shop.test", kind(ipv6));
        let answer = |part| query.answer(vec![Record::address(address(part), 300)]);
        let others: IpAddr = number(0x7000, ipv6);
        let other = |from: IpAddr, port: u16| {
            let socket = net.outside.inside(|| UdpSocket::bind((from, port))).unwrap().unwrap();
            move |message: &Message| {
                socket.send_to(&message.bytes(), client).unwrap();
            }
        };
        let before = stack.agent(0).unwrap().agent_status().unwrap();

        outside.says(client, &answer(0));
        assert!(denied(web, address(0)), "before it was asked");
        socket.send(&query.bytes()).unwrap();
        let with = |part, change: &dyn Fn(&mut Message)| {
            let mut message = answer(part);
            change(&mut message);
            outside.says(client, &message);
        };
        with(1, &|message| message.id += 1);
        with(2, &|message| "n9.shop.test".clone_into(&mut message.name));
        with(3, &|message| message.kind = kind(!ipv6));
        other(others, 53)(&answer(4));
        other(Testnet::OUTSIDE[usize::from(ipv6)], 5353)(&answer(5));
        let elsewhere = SocketAddr::new(client.ip(), client.port() ^ 1);
        outside.says(elsewhere, &answer(6));
        for part in 1..=6 {
            assert!(denied(web, address(part)), "forgery {part}, IPv6 {ipv6}");
        }

        flood(net.pod("flood"), ipv6);
        outside.says(client, &answer(7));
        assert!(
            allowed(web, address(7)),
            "the right answer after the flood, IPv6 {ipv6}"
        );
        outside.says(client, &answer(8));
        assert!(denied(web, address(8)), "a second answer, IPv6 {ipv6}");

        let after = stack.agent(0).unwrap().agent_status().unwrap();
        let rose = |outcome| counted(&after, outcome) - counted(&before, outcome);
        assert!(rose("unsolicited") >= 5, "{}", rose("unsolicited"));
        assert_eq!(rose("wrong-question"), 2);
        assert!(rose("learned") >= 5000, "the flood was answered: {}", rose("learned"));
    }
}

#[test]
fn an_address_ends_with_its_answer_unless_a_connection_lives() {
    if skipped() {
        return;
    }
    let (net, outside, stack) = start(&["--fqdn-min-ttl", "1"]);
    let web = net.pod("web");
    let socket = resolver(web, false);
    for (name, last) in [("a.shop.test", 1), ("b.shop.test", 2)] {
        outside.knows(name, dns::A, vec![Record::address(v4(210, last), 3)]);
        resolve(&socket, name, dns::A, 7);
    }
    let mut live = connect(web, v4(210, 1), ALLOWED).unwrap();
    assert!(allowed(web, v4(210, 2)));
    let mut say = || {
        live.write_all(b"x").unwrap();
        live.set_read_timeout(Some(ALLOWED)).unwrap();
        live.read_exact(&mut [0]).unwrap();
    };
    let begin = Instant::now();
    let passed = until(SOON, || {
        say();
        (begin.elapsed() > Duration::from_secs(7)).then_some(())
    });
    assert!(passed.is_some());
    assert!(denied(web, v4(210, 2)), "the address with no connection does not end");
    assert!(allowed(web, v4(210, 1)), "the address of a live connection ended");
    say();
    drop(stack);
}
