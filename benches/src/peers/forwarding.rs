//! What a packet from pod to pod costs, in CPU time of the thread that sends it: the kernel carries it through both host-side devices
//! before the call returns.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_testbed::{frame::Forged, sys::PacketSocket, testnet::Pod};

use crate::{
    bed::{ALLOWED_UDP, Bed, Judge},
    cpu::{self, Helpers},
    report::{Bar, Table},
};

/// A kind of packet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Case {
    /// Of a flow that was answered.
    Established,
    /// Of a flow that nobody answers.
    OneWay,
    /// The first of its flow.
    NewFlow,
}

impl Case {
    pub(crate) const ALL: [Self; 3] = [Self::Established, Self::OneWay, Self::NewFlow];

    const fn title(self) -> &'static str {
        match self {
            Self::Established => "established: a datagram of an answered flow",
            Self::OneWay => "one_way: a datagram of a flow nobody answers",
            Self::NewFlow => "new_flow: the only datagram of its flow",
        }
    }

    /// Chunks of a round, and packets of each.
    const fn size(self) -> (u16, u16) {
        match self {
            Self::Established => (40, 1_000),
            Self::OneWay => (40, 500),
            Self::NewFlow => (20, 400),
        }
    }

    /// What ours may cost over no policy, or, of a flow without answers, over one with.
    const fn bar(self) -> f64 {
        match self {
            Self::Established => 300.0,
            Self::OneWay => 150.0,
            Self::NewFlow => 1_400.0,
        }
    }
}

/// Rounds after which source ports are used again; conntrack has forgotten them by then.
const ROUNDS_APART: u16 = 7;
const GATEWAY: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// Nanoseconds of CPU per packet, one number per chunk.
pub(crate) fn measure(bed: &Bed, judge: Judge, case: Case, round: u16) -> Result<Vec<f64>> {
    let [client, web] = bed.pods(judge)?;
    let target = SocketAddr::new(web.v4.into(), ALLOWED_UDP);
    let receiver = web
        .netns
        .inside(move || UdpSocket::bind(target))?
        .context("listening")?;
    let arrived = web.netns.inside(|| File::open("/proc/thread-self/net/dev"))??;
    let mut arrivals = Arrivals(arrived);
    let times = client.netns.inside(|| match case {
        Case::Established => known(case, &receiver, target, true, &mut arrivals),
        Case::OneWay => known(case, &receiver, target, false, &mut arrivals),
        Case::NewFlow => new_flows(client, target, round, &mut arrivals),
    })??;
    bed.forget(judge)?;
    Ok(times)
}

/// Packets of one flow.
fn known(
    case: Case,
    receiver: &UdpSocket,
    target: SocketAddr,
    answered: bool,
    arrivals: &mut Arrivals,
) -> Result<Vec<f64>> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(target)?;
    let payload = [0_u8; 18];
    if answered {
        for end in [&socket, receiver] {
            end.set_read_timeout(Some(Duration::from_secs(5)))?;
        }
        let mut word = [0; 18];
        socket.send(&payload)?;
        let (_, from) = receiver
            .recv_from(&mut word)
            .context("the first datagram did not arrive")?;
        receiver.send_to(&payload, from)?;
        socket.recv(&mut word).context("its answer did not arrive")?;
    }
    let (chunks, packets) = case.size();
    let send = || socket.send(&payload).map(drop);
    (0..packets).try_for_each(|_| send())?;
    chunked(
        chunks,
        packets,
        arrivals,
        |_| Ok(()),
        |()| (0..packets).try_for_each(|_| send()),
    )
}

/// A flow for each packet.
fn new_flows(client: &Pod, target: SocketAddr, round: u16, arrivals: &mut Arrivals) -> Result<Vec<f64>> {
    let socket = PacketSocket::open("eth0").context("opening a packet socket")?;
    let (chunks, packets) = Case::NewFlow.size();
    let first = 2_000 + round % ROUNDS_APART * chunks * packets;
    let frames = |chunk: u16| {
        let ports = (0..packets).map(|number| first + chunk * packets + number);
        let frame = |port| Forged {
            from_mac: client.mac,
            to_mac: GATEWAY,
            source: SocketAddr::new(client.v4.into(), port),
            destination: target,
            tcp: false,
            payload: &[0; 18],
        };
        Ok(ports.map(|port| frame(port).bytes()).collect::<Vec<_>>())
    };
    chunked(chunks, packets, arrivals, frames, |frames| {
        frames.iter().try_for_each(|frame| socket.send(frame))
    })
}

/// Measures chunk after chunk. One in which the kernel's own thread took over some packets does not count, and one of which a packet
/// did not arrive ends it.
fn chunked<T>(
    chunks: u16,
    packets: u16,
    arrivals: &mut Arrivals,
    prepare: impl Fn(u16) -> Result<T>,
    send: impl Fn(T) -> std::io::Result<()>,
) -> Result<Vec<f64>> {
    let helpers = Helpers::new(Some(cpu::stay()?))?;
    let mut times = Vec::new();
    for chunk in 0..chunks {
        let load = prepare(chunk)?;
        let (helped, before, begin) = (helpers.time(), arrivals.count()?, cpu::of_thread());
        send(load).context("sending")?;
        let time = cpu::of_thread().saturating_sub(begin);
        let came = arrivals.count()?.saturating_sub(before);
        ensure!(came >= u64::from(packets), "{came} of {packets} packets arrived");
        if helpers.time() == helped {
            times.push(time.as_secs_f64() * 1e9 / f64::from(packets));
        }
    }
    if times.is_empty() {
        bail!("the kernel's own threads took over packets of every chunk");
    }
    Ok(times)
}

/// Packets that came in by eth0 of the namespace in which the file was opened.
struct Arrivals(File);

impl Arrivals {
    fn count(&mut self) -> Result<u64> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let field = line.and_then(|line| line.split_whitespace().nth(1));
        field
            .and_then(|field| field.parse().ok())
            .context("/proc/net/dev has no eth0")
    }
}

/// All rounds of all judges, in turn.
pub(crate) fn bench(bed: &mut Bed, judges: &[Judge], rounds: u16) -> Vec<Table> {
    let mut tables = Case::ALL.map(|case| Table::new("forwarding", case.title(), "ns of CPU per packet"));
    for round in 0..rounds {
        for judge in judges {
            let installed = bed.install(*judge);
            for (case, table) in Case::ALL.into_iter().zip(&mut tables) {
                let times = match &installed {
                    Ok(()) => measure(bed, *judge, case, round),
                    Err(error) => Err(anyhow::anyhow!("{error:#}")),
                };
                table.add(&judge.name(), times);
            }
        }
    }
    let [established, one_way, new_flow] = &mut tables;
    for judge in judges.iter().filter(|judge| judge.is_ours()) {
        let name = judge.name();
        let nothing = Judge::ALL.map(Judge::name);
        let Some(nothing) = nothing.first() else { continue };
        for (table, case) in [(&mut *established, Case::Established), (new_flow, Case::NewFlow)] {
            let base = table.min(nothing);
            table.bar(&name, base.map(|base| Bar::over(base, case.bar(), "no policy")));
        }
        let answered = established.min(&name);
        let bar = Case::OneWay.bar();
        one_way.bar(&name, answered.map(|base| Bar::over(base, bar, "established")));
    }
    tables.into()
}
