//! The acts of the show, in order.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bulkhead_proto::v1::{FlowEvent, Verdict};

use super::{
    records::{Records, Wanted, words},
    screen::{Colour, Row, Screen},
    shop::{self, Path},
    wait_for_signal,
};
use crate::{
    Running, Stack, Testnet,
    process::until,
    stack,
    traffic::{CountReport, HoldEvent, LoadReport, Outcome, Probe, StreamReport},
};

const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A denial that repeats is counted in one record a second; a first one comes at once.
const RECORD_MAX: Duration = Duration::from_secs(5);
const AGENT_DOWN: Duration = Duration::from_secs(3);

/// What the acts share.
struct Show<'a> {
    screen: &'a Screen,
    net: &'a Testnet,
    stack: Stack,
    records: Records,
    /// What went otherwise than it should.
    surprises: Vec<String>,
    connections: u64,
}

pub(super) fn play(screen: &Screen, keep: bool) -> Result<()> {
    screen.text(&screen.paint(Colour::Bold, "Bulkhead: default deny on real traffic, without a gap"));
    screen.dim("real processes in network namespaces of their own; nothing else on this machine is touched");
    let net = Testnet::create(shop::plan())?;
    let _servers = shop::open(&net)?;
    for line in shop::PICTURE.lines() {
        screen.text(line);
    }
    let stack = Stack::start(&net)?;
    let records = Records::new(stack.agent(0)?.follow()?);
    let mut show = Show {
        screen,
        net: &net,
        stack,
        records,
        surprises: Vec::new(),
        connections: 0,
    };
    show.open_network()?;
    show.default_deny()?;
    show.intruder()?;
    show.live_edit()?;
    show.no_gap()?;
    show.summary();
    if keep {
        show.keep();
        wait_for_signal();
    }
    match show.surprises.as_slice() {
        [] => Ok(()),
        surprises => bail!("not as it should be: {}", surprises.join("; ")),
    }
}

impl Show<'_> {
    fn open_network(&mut self) -> Result<()> {
        self.screen.act(1, "no policy: everybody reaches everybody");
        self.try_paths(&[shop::NEEDED, shop::NEEDLESS, shop::INTRUSIONS].concat(), true, false)
    }

    fn default_deny(&mut self) -> Result<()> {
        self.screen.act(2, "default deny, then what the shop needs");
        self.screen.file("01-default-deny.yaml", shop::DEFAULT_DENY);
        self.apply("shop.yaml", shop::DEFAULT_DENY)?;
        self.try_paths(shop::NEEDED, false, false)?;
        self.screen.blank();
        self.screen.text(&format!(
            "  {}",
            self.screen.paint(
                Colour::Blue,
                "03-three-tier-shop.yaml: client → web → api → db, each hop opened at both ends"
            )
        ));
        self.stack.write("counters.yaml", shop::COUNTERS)?;
        self.apply("shop.yaml", shop::THREE_TIERS)?;
        self.try_paths(shop::NEEDED, true, false)?;
        self.try_paths(shop::NEEDED, true, true)?;
        self.try_paths(shop::NEEDLESS, false, false)
    }

    fn intruder(&mut self) -> Result<()> {
        self.screen.act(3, "an intruder in another namespace, with web's label");
        self.try_paths(shop::INTRUSIONS, false, false)?;
        self.try_paths(shop::INTRUSIONS, false, true)?;
        self.spoof()
    }

    /// The intruder sends frames with client's address into web.
    fn spoof(&mut self) -> Result<()> {
        let (client, web, intruder) = (self.net.pod("client"), self.net.pod("web"), self.net.pod("intruder"));
        let mut witness = self.peer("web", "sniff", &["sniff", "--marker", "forged!"])?;
        let from = SocketAddr::new(client.v4.into(), 40_000).to_string();
        let to = SocketAddr::new(web.v4.into(), 8080).to_string();
        let mac = intruder.mac.map(|byte| format!("{byte:02x}")).join(":");
        self.records.clear();
        let mut liar = self.peer(
            "intruder",
            "spoof",
            &[
                "spoof", "--from", &from, "--to", &to, "--mac", &mac, "--marker", "forged!",
            ],
        )?;
        let wanted = Wanted {
            from: client.v4.into(),
            to: web.v4.into(),
            port: Some(8080),
            passed: false,
        };
        let why = self.records.why(&wanted, RECORD_MAX);
        self.screen.wait("forging", Duration::from_millis(700))?;
        let sent: CountReport = report(&mut liar)?;
        let seen: CountReport = report(&mut witness)?;
        self.screen.verdict(&Row {
            from: "intruder".to_owned(),
            to: "web".to_owned(),
            what: "as client".to_owned(),
            passed: seen.frames > 0,
            why: why.unwrap_or_else(|| "no record".to_owned()),
        });
        self.expect(
            seen.frames == 0,
            &format!("{} forged frames sent, {} arrived", sent.frames, seen.frames),
        );
        Ok(())
    }

    fn live_edit(&mut self) -> Result<()> {
        self.screen.act(4, "a policy is edited under a live connection");
        let (web, api) = (self.net.pod("web"), self.net.pod("api"));
        let to = SocketAddr::new(api.v4.into(), 8081).to_string();
        let mut hold = self.net.peer(&web.netns, "hold", &["hold", "--to", &to])?;
        let HoldEvent::Alive { port } = event(&hold)? else {
            bail!("the connection from web to api did not come up")
        };
        self.screen.fact(
            true,
            &format!("web holds a connection to api (from port {port}) and gets an answer every 20 ms"),
        );
        let edited = shop::THREE_TIERS.replace(
            "from: [{ podSelector: { matchLabels: { app: web } } }]",
            "from: [{ podSelector: { matchLabels: { app: nobody } } }]",
        );
        if edited == shop::THREE_TIERS {
            bail!("the example has changed: there is nothing to edit");
        }
        self.screen.text(&format!(
            "  {} api: from app=web becomes app=nobody",
            self.screen.paint(Colour::Blue, "shop.yaml edited,")
        ));
        self.records.clear();
        let edited_at = Instant::now();
        self.apply("shop.yaml", &edited)?;
        let stalled = matches!(event(&hold)?, HoldEvent::Stalled { .. });
        self.expect(stalled, "the live connection stopped at its next packet");
        let cut = self.records.find(RECORD_MAX, |flow| {
            flow.event() == FlowEvent::Cut || (flow.verdict() == Verdict::Dropped && flow.reason == "revoked")
        });
        match &cut {
            Some(flow) => self.screen.dim(&format!("    record: {}", words(flow))),
            None => self.expect(false, "the cut left a record"),
        }
        self.screen.dim(&format!(
            "    {:.0} ms from writing the file to the last line of this act",
            edited_at.elapsed().as_secs_f64() * 1e3
        ));
        hold.kill()?;
        self.try_paths(&[("web", "api", "TCP", 8081)], false, false)?;
        self.apply("shop.yaml", shop::THREE_TIERS)?;
        self.try_paths(&[("web", "api", "TCP", 8081)], true, false)
    }

    fn no_gap(&mut self) -> Result<()> {
        self.screen.act(5, "the agent dies under traffic");
        let to = |pod: &str, port: u16| SocketAddr::new(self.net.pod(pod).v4.into(), port).to_string();
        let mut load = self.peer("client", "load", &["load", "--to", &to("web", 8080), "--rate", "200"])?;
        let mut stream = self.peer("web", "stream", &["stream", "--to", &to("api", shop::COUNTERS_PORT)])?;
        let intrusion = ["load", "--to", &to("db", 5432), "--rate", "50", "--timeout-ms", "300"];
        let mut intruder = self.peer("intruder", "intruder", &intrusion)?;
        self.screen.fact(
            true,
            "200 new connections/s client → web, 200 datagrams/s web → api, intruder → db 50 times/s",
        );
        self.screen.wait("traffic", Duration::from_secs(1))?;
        self.stack.kill_agent(0)?;
        self.screen.fact(
            true,
            "agent killed with SIGKILL; nothing of Bulkhead runs on this node but its kernel programs",
        );
        self.screen.wait("no agent", AGENT_DOWN)?;
        let started = Instant::now();
        self.stack.start_agent(self.net, 0, &[])?;
        let agent = self.stack.agent(0)?;
        let back = until(Duration::from_secs(30), || {
            agent
                .agent_status()
                .ok()
                .filter(|status| status.controller_connected && status.endpoints_enforced == status.endpoints)
        });
        self.expect(
            back.is_some(),
            &format!(
                "agent back: it adopted programs, maps and flows in {} ms",
                started.elapsed().as_millis()
            ),
        );
        self.screen.wait("traffic", Duration::from_secs(1))?;
        let load: LoadReport = report(&mut load)?;
        let stream: StreamReport = report(&mut stream)?;
        let intruder: LoadReport = report(&mut intruder)?;
        self.connections += load.attempts;
        self.expect(
            load.failed == 0 && load.ok > 0,
            &format!("{} new connections, {} failed", load.attempts, load.failed),
        );
        self.expect(
            stream.missing == 0 && stream.echoed > 0,
            &format!(
                "{} datagrams, {} lost, never silent for more than {} ms",
                stream.sent, stream.missing, stream.longest_silence_ms
            ),
        );
        self.expect(
            intruder.ok == 0 && intruder.attempts > 0,
            &format!(
                "{} attempts of the intruder, {} got through",
                intruder.attempts, intruder.ok
            ),
        );
        Ok(())
    }

    fn summary(&self) {
        let seconds = self.screen.elapsed().as_secs();
        self.screen.blank();
        let verdict = if self.surprises.is_empty() {
            Colour::Green
        } else {
            Colour::Red
        };
        let text = match self.surprises.len() {
            0 => format!(
                "all as it should be: {} connections and attempts judged in {seconds} s, each by a rule with a name",
                self.connections
            ),
            count => format!(
                "{count} things were not as they should be: {}",
                self.surprises.join("; ")
            ),
        };
        self.screen.text(&self.screen.paint(verdict, &text));
    }

    /// Everything goes on: what to try.
    fn keep(&self) {
        self.screen.blank();
        self.screen.text("It goes on running. In another terminal:");
        for (variable, path) in stack::sockets(&self.stack, 0) {
            self.screen.text(&format!("  export {variable}={}", path.display()));
        }
        let bulkhead = crate::testnet::binary("bulkhead")
            .map_or_else(|_| "bulkhead".to_owned(), |path| path.display().to_string());
        let peer = crate::testnet::binary("testbed-peer")
            .map_or_else(|_| "testbed-peer".to_owned(), |path| path.display().to_string());
        let enter = format!("nsenter --net={}", self.net.pod("intruder").netns.path().display());
        let manifests = self.stack.manifests();
        for line in [
            format!("{bulkhead} status"),
            format!("{bulkhead} endpoints"),
            format!("{bulkhead} flows -f --verdict denied"),
            format!(
                "{bulkhead} explain --manifests {} --from bank/intruder --to shop/db --port 5432",
                manifests.display()
            ),
            format!(
                "{enter} {peer} hold --to {}:5432     # the intruder, trying",
                self.net.pod("db").v4
            ),
            format!(
                "$EDITOR {}/shop.yaml     # in force as soon as you save",
                manifests.display()
            ),
        ] {
            self.screen.text(&format!("  {line}"));
        }
        self.screen.blank();
        self.screen.text("Ctrl-C ends it and cleans up.");
    }

    /// Tries paths at once and shows each with the rule that decided.
    fn try_paths(&mut self, paths: &[Path], expected: bool, ipv6: bool) -> Result<()> {
        self.records.clear();
        for path in paths {
            let (from, to, protocol, port) = *path;
            let target = self.net.pod(to).address(ipv6);
            let probe = Probe {
                to: target,
                port,
                protocol: protocol.to_owned(),
            };
            let outcome = self.probe(from, &probe, if expected { 5000 } else { 500 })?;
            let passed = outcome.reached();
            let port_wanted = (protocol != "ICMP").then_some(port);
            let wanted = Wanted {
                from: self.net.pod(from).address(ipv6),
                to: target,
                port: port_wanted,
                passed,
            };
            let why = self.records.why(&wanted, RECORD_MAX);
            let family = if ipv6 { "6" } else { "" };
            let number = if port == 0 { String::new() } else { format!(" {port}") };
            let path = format!("{from} → {to} {protocol}{family}{number}");
            self.screen.verdict(&Row {
                from: from.to_owned(),
                to: to.to_owned(),
                what: format!("{protocol}{family}{number}"),
                passed,
                why: why.clone().unwrap_or_else(|| "no record".to_owned()),
            });
            if passed != expected {
                self.surprises.push(format!("{path}: {outcome:?}"));
            } else if why.is_none() {
                self.surprises.push(format!("{path}: no flow record"));
            }
            self.connections += 1;
        }
        Ok(())
    }

    fn probe(&self, from: &str, probe: &Probe, timeout_ms: u32) -> Result<Outcome> {
        let mut prober = self.net.peer(
            &self.net.pod(from).netns,
            "probe",
            &["probe", "--timeout-ms", &timeout_ms.to_string()],
        )?;
        prober.write(&format!(
            "{}\n",
            serde_json::to_string(probe).context("writing a probe")?
        ))?;
        prober.close_input();
        let line = prober.line(ANSWER_MAX + Duration::from_millis(timeout_ms.into()))?;
        serde_json::from_str(&line).with_context(|| format!("the prober said {line}"))
    }

    /// Applies a file, and says how long it took to be in force.
    fn apply(&mut self, file: &str, yaml: &str) -> Result<()> {
        self.stack.apply(file, yaml)?;
        let status = self.stack.controller()?.controller_status()?;
        let slowest = status
            .policies
            .iter()
            .filter_map(|policy| policy.enforced_after_ms)
            .max();
        let after = slowest.map_or_else(String::new, |ms| format!(", {ms} ms after it was read"));
        self.screen.fact(
            true,
            &format!(
                "in force on {} of {} nodes{after}",
                status.nodes.len(),
                self.net.nodes.len()
            ),
        );
        Ok(())
    }

    fn peer(&self, pod: &str, name: &str, arguments: &[&str]) -> Result<Running> {
        let peer = self.net.peer(&self.net.pod(pod).netns, name, arguments)?;
        match peer.line(ANSWER_MAX)?.as_str() {
            "ready" => Ok(peer),
            other => bail!("{name} in {pod}: {other}"),
        }
    }

    fn expect(&mut self, holds: bool, what: &str) {
        self.screen.fact(holds, what);
        if !holds {
            self.surprises.push(what.to_owned());
        }
    }
}

/// Ends a peer and reads its report (the last line it writes).
fn report<T: serde::de::DeserializeOwned>(peer: &mut Running) -> Result<T> {
    peer.close_input();
    loop {
        let line = peer.line(ANSWER_MAX)?;
        if line.starts_with('{') {
            return serde_json::from_str(&line).with_context(|| format!("a peer reported {line}"));
        }
    }
}

fn event(peer: &Running) -> Result<HoldEvent> {
    let line = peer.line(ANSWER_MAX)?;
    serde_json::from_str(&line).with_context(|| format!("a peer said {line}"))
}
