//! Uplinks on real traffic: threat feeds, limits and the guard, in the driver and in the stack, and that all of it goes on
//! without the agent.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bulkhead_testbed::{
    Plan, PodPlan, Running, Stack, Testnet, frame::Forged, process::until, sys::PacketSocket, testnet::binary,
    traffic::HoldEvent,
};

use common::{SOON, ready, skipped};

/// Addresses of the outside host, beside its own.
const BAD: [&str; 2] = ["198.51.100.7", "2001:db8:bad::7"];
const OTHER: [&str; 2] = ["198.51.101.7", "2001:db8:0d::7"];
const TCP: u16 = 8080;
const UDP: u16 = 8125;
/// A packet that is lost does not come in this time, and one that passes comes at once.
const LOST: Duration = Duration::from_millis(300);

/// One node with one pod, and an agent without a controller: what it does on uplinks needs none.
struct Bed {
    stack: Stack,
    _server: Running,
    net: Testnet,
}

impl Bed {
    fn new() -> Self {
        let net = Testnet::create(Plan {
            nodes: vec!["node-1".to_owned()],
            pods: vec![PodPlan::new("shop", "web", "app=web")],
            ..Plan::default()
        })
        .unwrap();
        let lines = BAD.iter().chain(&OTHER).map(|ip| {
            let (length, more) = if ip.contains(':') { (128, " nodad") } else { (32, "") };
            format!("addr add {ip}/{length} dev lo{more}\n")
        });
        net.outside.ip(&lines.collect::<String>()).unwrap();
        // What forged SYNs are answered with goes nowhere.
        net.outside.ip("route add blackhole 198.18.0.0/15\n").unwrap();
        let server = net
            .peer(
                &net.pod("web").netns,
                "web",
                &["serve", "--name", "web", "--tcp", "8080", "--udp", "8125"],
            )
            .unwrap();
        Self {
            stack: Stack::prepare(&net).unwrap(),
            _server: ready(server),
            net,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.net.directory().join(name)
    }

    /// As editors and kubelet do: another file takes the name.
    fn replace(&self, name: &str, text: &str) {
        let beside = self.file(&format!("{name}.new"));
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.file(name)).unwrap();
    }

    /// Starts the agent and waits until its program is on the uplink.
    fn start(&mut self, mode: &str, options: &[&str]) {
        self.start_as(mode, mode, options);
    }

    /// The same, with what the option says and what is to come of it.
    fn start_as(&mut self, option: &str, mode: &str, options: &[&str]) {
        let mut all = vec!["--uplink-mode", option];
        all.extend(options);
        self.stack.start_agent(&self.net, 0, &all).unwrap();
        self.says(None, &format!("uplink eth0: {mode}"));
    }

    /// A veth device takes what the program at its other end sends back only while it has a program of its own: any, so
    /// ours, of another agent that minds the cable.
    fn program_at_the_other_end(&self) -> Running {
        let mut command = self.net.fabric().command(binary("bulkhead-agent").unwrap()).unwrap();
        let folder = self.file("fabric");
        let place = |name: &str| folder.join(name).into_os_string();
        command.args([
            "--node",
            "fabric",
            "--uplink",
            "n0",
            "--uplink-mode",
            "native",
            "--cri-socket",
            "none",
        ]);
        command.args([
            "--limit-source-connections",
            "1000000/s",
            "--controller",
            "unix:/nowhere",
        ]);
        command.arg("--socket").arg(place("socket"));
        command.arg("--bpffs").arg(self.net.directory().join("bpf-fabric"));
        command.arg("--state-dir").arg(place("state"));
        let agent = Running::start("agent-fabric", command, &self.net.logs()).unwrap();
        let attached = || {
            let link = self.net.fabric().ip_output(&["-d", "link", "show", "n0"]).unwrap();
            link.contains(" xdp ").then_some(())
        };
        assert!(until(SOON, attached).is_some(), "{}", agent.log_tail());
        agent
    }

    /// What the agent says of its uplinks.
    fn asked(&self, address: Option<&str>) -> String {
        let mut command = Command::new(binary("bulkhead-agent").unwrap());
        command
            .arg("uplinks")
            .args(address)
            .arg("--socket")
            .arg(self.stack.agent_socket(0));
        let output = command.output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Waits until the agent says this.
    fn says(&self, address: Option<&str>, text: &str) {
        let mut last = String::new();
        let said = until(SOON, || {
            last = self.asked(address);
            last.contains(text).then_some(())
        });
        assert!(said.is_some(), "waiting for {text:?}; the agent says:\n{last}");
    }

    fn pod(&self, port: u16, like: IpAddr) -> SocketAddr {
        SocketAddr::new(self.net.pod("web").address(like.is_ipv6()), port)
    }

    /// A datagram from an address of the outside host is answered by the pod.
    fn echoes(&self, source: &str) -> bool {
        let source: IpAddr = source.parse().unwrap();
        let target = self.pod(UDP, source);
        let ask = move || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.connect(target).unwrap();
            socket.set_read_timeout(Some(LOST)).unwrap();
            socket.send(b"x").unwrap();
            socket.recv(&mut [0; 16]).is_ok()
        };
        self.net.outside.inside(ask).unwrap()
    }

    /// Waits until it is so.
    fn echoes_soon(&self, source: &str, wanted: bool) {
        let so = until(SOON, || (self.echoes(source) == wanted).then_some(()));
        assert!(
            so.is_some(),
            "{source} is answered: wanted {wanted}; the agent says:\n{}",
            self.asked(Some(source))
        );
    }

    /// A connection from an address of the outside host is made within the time.
    fn connects(&self, source: &str, within: Duration) -> bool {
        let source: IpAddr = source.parse().unwrap();
        let target = self.pod(TCP, source);
        let connect = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let socket = if source.is_ipv6() {
                    tokio::net::TcpSocket::new_v6()
                } else {
                    tokio::net::TcpSocket::new_v4()
                };
                let socket = socket.unwrap();
                socket.bind((source, 0).into()).unwrap();
                matches!(tokio::time::timeout(within, socket.connect(target)).await, Ok(Ok(_)))
            })
        };
        self.net.outside.inside(connect).unwrap()
    }

    fn cleanup(&self) {
        let mut command = self.net.nodes[0]
            .netns
            .command(binary("bulkhead-agent").unwrap())
            .unwrap();
        command
            .arg("cleanup")
            .arg("--bpffs")
            .arg(self.net.directory().join("bpf0"));
        command.arg("--state-dir").arg(self.net.directory().join("state0"));
        command.arg("--socket").arg(self.stack.agent_socket(0));
        command
            .arg("--cni-bin-dir")
            .arg(self.file("no-bin"))
            .arg("--cni-conf-dir")
            .arg(self.file("no-conf"));
        assert!(command.output().unwrap().status.success());
    }

    fn link(&self) -> String {
        self.net.nodes[0]
            .netns
            .ip_output(&["-d", "link", "show", "eth0"])
            .unwrap()
    }
}

#[test]
fn a_file_in_the_driver() {
    a_file("native");
}

#[test]
fn a_file_in_the_stack() {
    a_file("generic");
}

/// Dropped, reloaded, kept, surviving the agent, taken off.
fn a_file(mode: &str) {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    for source in BAD.iter().chain(&OTHER) {
        assert!(bed.echoes(source), "{source}, before there is a program");
    }
    bed.replace(
        "drop.txt",
        "; a list\n198.51.100.0/24 ; SBL1\nnonsense\n2001:db8:bad::/48\n",
    );
    let feed = format!("drop={}", bed.file("drop.txt").display());
    let options = ["--threat-feed", feed.as_str(), "--feed-except", "198.51.100.99/32"];
    bed.start(mode, &options);
    for (bad, other) in BAD.iter().zip(OTHER) {
        assert!(!bed.echoes(bad), "{bad} is in the feed");
        assert!(!bed.connects(bad, LOST), "{bad} is in the feed");
        assert!(bed.echoes(other), "{other} is in no feed");
    }
    let said = bed.asked(Some(BAD[0]));
    assert!(said.contains("is in feed drop: 198.51.100.0/24"), "{said}");
    assert!(said.contains("line 3: \"nonsense\" is no address"), "{said}");
    assert!(
        said.contains("threat-feed drop"),
        "its packets are counted under it: {said}"
    );
    bed.says(Some("198.51.100.99"), "it is not dropped: --feed-except");
    assert!(
        bed.link()
            .contains(if mode == "native" { " xdp " } else { " xdpgeneric " }),
        "{}",
        bed.link()
    );

    // Another list.
    bed.replace("drop.txt", "198.51.101.7\n");
    bed.echoes_soon(OTHER[0], false);
    bed.echoes_soon(BAD[0], true);
    bed.echoes_soon(BAD[1], true);
    // None, and none that could be: the last one stays.
    bed.replace("drop.txt", "# nothing\n");
    bed.says(None, "could not be had: it is empty");
    bed.replace("drop.txt", "<html>\n<body>\nSign in\n</body>\n");
    bed.says(None, "no list of addresses");
    fs::remove_file(bed.file("drop.txt")).unwrap();
    bed.says(None, "could not be had: No such file");
    assert!(!bed.echoes(OTHER[0]), "the last good list is in force");

    survives(&mut bed, mode, &options);

    // Ended, and taken off.
    bed.stack.end_agent(0).unwrap();
    assert!(!bed.echoes(OTHER[0]), "it goes on without an agent");
    bed.cleanup();
    assert!(!bed.link().contains("xdp"), "{}", bed.link());
    assert!(bed.echoes(OTHER[0]), "nothing is left");
}

/// Not one packet of a listed source passes while the agent is dead and while another begins, which has the list from disk.
fn survives(bed: &mut Bed, mode: &str, options: &[&str]) {
    let (leaked, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut asked = 0;
            while !stop.load(Ordering::Acquire) {
                leaked.fetch_add(u64::from(echo_from(&bed.net, OTHER[0])), Ordering::AcqRel);
                asked += 1;
            }
            asked
        });
        bed.stack.kill_agent(0).unwrap();
        thread::sleep(LOST * 3);
        let mut all = vec!["--uplink-mode", mode];
        all.extend(options);
        bed.stack.start_agent(&bed.net, 0, &all).unwrap();
        let back = until(SOON, || {
            bed.asked(None).contains(&format!("uplink eth0: {mode}")).then_some(())
        });
        thread::sleep(LOST * 2);
        stop.store(true, Ordering::Release);
        let asked = watching.join().unwrap();
        assert!(back.is_some() && asked > 3, "{asked} asked");
    });
    assert_eq!(leaked.load(Ordering::Acquire), 0, "passed while the agent was away");
}

fn echo_from(net: &Testnet, source: &str) -> bool {
    let source: IpAddr = source.parse().unwrap();
    let target = SocketAddr::new(net.pod("web").address(source.is_ipv6()), UDP);
    let ask = move || {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        socket.connect(target).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.send(b"x").unwrap();
        socket.recv(&mut [0; 16]).is_ok()
    };
    net.outside.inside(ask).unwrap()
}

/// An HTTP server outside, with what it gives, and what it was asked.
struct Lists {
    text: Mutex<String>,
    /// Answers with this status instead.
    broken: AtomicBool,
    whole: AtomicU64,
    same: AtomicU64,
    stop: AtomicBool,
}

impl Lists {
    /// Serves until told to stop; the port.
    fn serve(self: &Arc<Self>, net: &Testnet) -> u16 {
        let lists = Arc::clone(self);
        let listener = net
            .outside
            .inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap())
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if lists.stop.load(Ordering::Acquire) {
                    return;
                }
                // A client that goes away in the middle asks again.
                drop(lists.answer(stream.unwrap()));
            }
        });
        port
    }

    fn answer(&self, mut stream: std::net::TcpStream) -> std::io::Result<()> {
        let mut known = None;
        for line in BufReader::new(stream.try_clone()?).lines() {
            let line = line?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(": ")
                && name.eq_ignore_ascii_case("if-none-match")
            {
                known = Some(value.to_owned());
            }
        }
        let text = self.text.lock().unwrap().clone();
        let etag = format!("\"{}\"", text.len());
        let close = "Connection: close\r\n";
        if self.broken.load(Ordering::Acquire) {
            write!(
                stream,
                "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n{close}\r\n"
            )
        } else if known.as_ref() == Some(&etag) {
            self.same.fetch_add(1, Ordering::AcqRel);
            write!(stream, "HTTP/1.1 304 Not Modified\r\nETag: {etag}\r\n{close}\r\n")
        } else {
            self.whole.fetch_add(1, Ordering::AcqRel);
            let length = text.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nETag: {etag}\r\nContent-Length: {length}\r\n{close}\r\n{text}"
            )
        }
    }
}

#[test]
fn a_url() {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    let lists = Arc::new(Lists {
        text: Mutex::new("198.51.100.0/24\n".to_owned()),
        broken: AtomicBool::new(false),
        whole: AtomicU64::new(0),
        same: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let port = lists.serve(&bed.net);
    let feed = format!("drop=http://203.0.113.5:{port}/drop.txt");
    let options = ["--threat-feed", feed.as_str(), "--feed-interval", "1s"];
    bed.start("native", &options);
    bed.echoes_soon(BAD[0], false);
    assert!(bed.echoes(OTHER[0]));
    assert!(
        until(SOON, || (lists.same.load(Ordering::Acquire) > 1).then_some(())).is_some(),
        "the ETag is sent"
    );
    assert_eq!(
        lists.whole.load(Ordering::Acquire),
        1,
        "what is the same is not sent again"
    );

    *lists.text.lock().unwrap() = "198.51.100.0/24\n198.51.101.0/24\n".to_owned();
    bed.echoes_soon(OTHER[0], false);
    assert_eq!(lists.whole.load(Ordering::Acquire), 2);
    // The server is ill, then gone.
    lists.broken.store(true, Ordering::Release);
    bed.says(None, "could not be had: the server answers 503");
    assert!(!bed.echoes(BAD[0]) && !bed.echoes(OTHER[0]));
    lists.stop.store(true, Ordering::Release);
    bed.says(None, "connecting to 203.0.113.5");
    assert!(!bed.echoes(BAD[0]) && !bed.echoes(OTHER[0]));

    // A node that boots while it is gone: nothing in the kernel, the list on disk.
    bed.stack.end_agent(0).unwrap();
    for entry in fs::read_dir(bed.net.directory().join("bpf0")).unwrap().flatten() {
        // The file system has files of its own.
        if entry.path().is_dir() {
            remove_pins(&entry.path());
        }
    }
    // Nothing is in the kernel (which lets go of a program a little later than of its pin).
    bed.echoes_soon(BAD[0], true);
    bed.start("native", &options);
    assert!(!bed.echoes(BAD[0]) && !bed.echoes(OTHER[0]));
}

fn remove_pins(folder: &std::path::Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            remove_pins(&entry.path());
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    fs::remove_dir(folder).unwrap();
}

#[test]
fn connections_of_one_source() {
    if skipped() {
        return;
    }
    for mode in ["native", "generic"] {
        let mut bed = Bed::new();
        let open = |bed: &Bed, source: &str, count: usize| (0..count).filter(|_| bed.connects(source, LOST)).count();
        assert_eq!(open(&bed, BAD[0], 8), 8, "without a limit");
        bed.start(mode, &["--limit-source-connections", "5/h:burst=5"]);
        for (one, other) in BAD.iter().zip(OTHER) {
            assert_eq!(open(&bed, one, 8), 5, "{mode}: {one} has five");
            assert_eq!(open(&bed, other, 5), 5, "{mode}: {other} has its own");
        }
        assert!(bed.echoes(BAD[0]), "datagrams open no TCP connection");
        bed.says(Some(BAD[0]), "source-connection-limit");
    }
}

/// A SYN from a forged source.
fn forged(source: SocketAddr, destination: SocketAddr, to_mac: [u8; 6]) -> Vec<u8> {
    let mut frame = Forged {
        from_mac: [2, 9, 9, 9, 9, 9],
        to_mac,
        source,
        destination,
        tcp: true,
        payload: b"",
    }
    .bytes();
    // The flags PSH and ACK become SYN, and the checksum with them.
    let (flags, check) = (14 + 20 + 13, 14 + 20 + 16);
    assert_eq!(frame[flags], 0x18);
    frame[flags] = 0x02;
    let sum = u32::from(!u16::from_be_bytes([frame[check], frame[check + 1]])) + u32::from(!0x0018_u16) + 0x0002;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[check..check + 2].copy_from_slice(&(!sum).to_be_bytes());
    frame
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

/// Sends SYNs from ever other sources while `work` runs.
fn flooded<T>(bed: &Bed, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    let link = bed.net.nodes[0]
        .netns
        .ip_output(&["-o", "link", "show", "eth0"])
        .unwrap();
    let to_mac = mac(link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap());
    let target = bed.pod(TCP, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let send = || {
                let socket = PacketSocket::open("eth0").unwrap();
                let mut sent = 0_u32;
                while !stop.load(Ordering::Acquire) {
                    for _ in 0..20 {
                        sent += 1;
                        let source = Ipv4Addr::from(0xc612_0000 | (sent.wrapping_mul(2_654_435_761) >> 15));
                        let port = 1024 + u16::try_from(sent % 60_000).unwrap();
                        socket.send(&forged((source, port).into(), target, to_mac)).unwrap();
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                sent
            };
            bed.net.outside.inside(send).unwrap()
        });
        // It is well under way.
        thread::sleep(Duration::from_millis(500));
        let result = work();
        stop.store(true, Ordering::Release);
        println!("{} forged SYNs", flood.join().unwrap());
        result
    })
}

#[test]
fn a_flood_of_syns_in_the_driver() {
    a_flood("native");
}

#[test]
fn a_flood_of_syns_in_the_stack() {
    a_flood("generic");
}

fn a_flood(mode: &str) {
    if skipped() {
        return;
    }
    let mut bed = Bed::new();
    // A service that a flood fills: no cookies of its own, a short queue.
    let web = &bed.net.pod("web").netns;
    web.sysctl(&[
        ("ipv4/tcp_syncookies", "0"),
        ("ipv4/tcp_max_syn_backlog", "64"),
        ("ipv4/tcp_synack_retries", "1"),
    ])
    .unwrap();
    let held = bed
        .net
        .peer(
            &bed.net.outside,
            "held",
            &[
                "hold",
                "--to",
                &bed.pod(TCP, IpAddr::V4(Ipv4Addr::UNSPECIFIED)).to_string(),
            ],
        )
        .unwrap();
    let event = |line: &str| serde_json::from_str::<HoldEvent>(line).unwrap();
    assert!(matches!(event(&held.line(SOON).unwrap()), HoldEvent::Alive { .. }));
    let patience = Duration::from_secs(3);
    assert!(bed.connects(BAD[0], patience), "before the flood");
    // From an address that the pod's kernel has not seen before: it keeps a part of the queue for others.
    let reached = flooded(&bed, || bed.connects(OTHER[0], patience));
    assert!(!reached, "the flood fills the queue");

    let _other_end = (mode == "native").then(|| bed.program_at_the_other_end());
    // On a veth device challenges come through in the stack only, as a rule, and `auto` knows that.
    let option = if mode == "native" { "native" } else { "auto" };
    bed.start_as(option, mode, &["--guard-syn", "5/s:burst=5"]);
    // Half-open connections of the first flood end.
    let free = until(Duration::from_mins(2), || {
        bed.connects(BAD[0], Duration::from_secs(1)).then_some(())
    });
    assert!(free.is_some(), "after the flood");
    let (first, again) = flooded(&bed, || {
        (
            bed.connects(OTHER[0], Duration::from_secs(10)),
            (0..10)
                .filter(|_| bed.connects(OTHER[0], Duration::from_secs(3)))
                .count(),
        )
    });
    assert!(
        first,
        "{mode}: who answers the challenge gets through\n{}",
        bed.asked(None)
    );
    assert_eq!(again, 10, "{mode}: and is known then\n{}", bed.asked(None));
    assert_eq!(held.try_line(), None, "the connection that was there noticed nothing");
    let said = bed.asked(None);
    assert!(
        said.contains("syn-challenged") && said.contains("challenge-answered"),
        "{said}"
    );
}
