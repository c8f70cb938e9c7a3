//! Two pods of one node, what judges between them, and how a permission is taken away and given back.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use bulkhead_testbed::{
    Plan, PodPlan, Stack, Testnet, frame::Forged, pinned::PinnedMap, process::until, sys::PacketSocket, testnet::Pod,
};
use bulkhead_verdict::layout::{LAYOUT, ONE_WAY_CONFIRM, action};

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: known-only, namespace: shop }
spec:
  podSelector: { matchLabels: { app: web } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: {} }] }]
";

/// Pods that hold live flows; none may have more than half of the table.
const HOLDERS: [&str; 2] = ["holder-a", "holder-b"];
/// Where an action is in an alternative.
const ACTION: usize = 12;

/// Takes a permission away and gives it back.
pub(crate) trait Peer {
    fn allow(&self) -> Result<()>;
    fn revoke(&self) -> Result<()>;
}

/// The pods, and our agent while it is there.
pub(crate) struct Bed {
    stack: Option<Stack>,
    net: Testnet,
}

impl Bed {
    pub(crate) fn new() -> Result<Self> {
        let pod = |name: &str| PodPlan::new("shop", name, &format!("app={name}"));
        let mut pods = vec![pod("client"), pod("web")];
        pods.extend(HOLDERS.map(pod));
        let net = Testnet::create(Plan {
            namespaces: BTreeMap::from([("shop".to_owned(), BTreeMap::new())]),
            nodes: vec!["node-1".to_owned()],
            pods,
        })?;
        let mut stack = Stack::prepare(&net)?;
        stack.start_controller()?;
        // What is written here is no drift, and whoever holds so many flows opened them all at once.
        stack.start_agent(&net, 0, &["--drift-interval-ms", "0", "--unanswered-per-second", "0"])?;
        stack.apply("known-only.yaml", POLICY)?;
        Ok(Self {
            stack: Some(stack),
            net,
        })
    }

    pub(crate) fn client(&self) -> &Pod {
        self.net.pod("client")
    }

    pub(crate) fn web(&self) -> &Pod {
        self.net.pod("web")
    }

    /// Where the stream goes.
    #[expect(clippy::unused_self, reason = "it is the bed's")]
    pub(crate) const fn port(&self) -> u16 {
        7_000
    }

    fn stack(&self) -> Result<&Stack> {
        self.stack.as_ref().context("the agent is gone")
    }

    /// Opens confirmed flows to web; how many there are.
    pub(crate) fn open(&self, flows: u32) -> Result<u64> {
        if flows == 0 {
            return Ok(0);
        }
        let share = flows.div_ceil(u32::try_from(HOLDERS.len())?);
        for name in HOLDERS {
            let (holder, web) = (self.net.pod(name), self.web());
            holder.netns.inside(|| open(holder, web, share))??;
        }
        let wanted = u64::from(flows) * 99 / 100;
        let mut live = 0;
        let seen = until(Duration::from_secs(30), || {
            let status = self.stack().ok()?.agent(0).ok()?.agent_status().ok()?;
            live = status.maps.iter().find(|map| map.name == "confirmed flows")?.used;
            (live >= wanted).then_some(())
        });
        ensure!(seen.is_some(), "{live} live flows instead of {flows}");
        Ok(live)
    }

    /// Our maps, written as the agent writes them: the alternative, then the epoch that has every flow judged again.
    pub(crate) fn ours(&self) -> Result<impl Peer + use<>> {
        let folder = self.stack()?.bpffs(0).join(format!("v{}", LAYOUT.replace('.', "-")));
        let alternatives = PinnedMap::open(&folder.join("BK_ALT"))?;
        let allowing: Vec<(Vec<u8>, Vec<u8>)> = alternatives
            .elements()?
            .into_iter()
            .filter(|(_, value)| value.get(ACTION) == Some(&action::ALLOW))
            .collect();
        ensure!(!allowing.is_empty(), "no alternative allows anything");
        Ok(Ours {
            alternatives,
            epoch: PinnedMap::open(&folder.join("BK_EPOCH"))?,
            allowing,
        })
    }

    /// The same pods, and nobody of ours.
    pub(crate) fn without_us(mut self) -> Result<Self> {
        if let Some(mut stack) = self.stack.take() {
            let folder: PathBuf = stack.bpffs(0);
            stack.kill_agent(0)?;
            let links = folder.join(format!("v{}", LAYOUT.replace('.', "-"))).join("links");
            for link in std::fs::read_dir(&links).context("reading the links")? {
                std::fs::remove_file(link?.path())?;
            }
        }
        Ok(self)
    }

    /// nftables in the node, with or without the usual first rule for what is established.
    pub(crate) fn nftables(&self, established: bool) -> Result<impl Peer + use<'_>> {
        let first = if established {
            "ct state established,related accept"
        } else {
            ""
        };
        let peer = Nftables { bed: self };
        let _none = peer.nft("delete table inet bench");
        peer.nft(&format!(
            "table inet bench {{ set allowed {{ type ipv4_addr; }}; chain forward {{ type filter hook forward priority 0; policy accept; \
             {first}; ip daddr {web} ip saddr @allowed accept; ip daddr {web} drop; }}; }}",
            web = self.web().v4
        ))?;
        Ok(peer)
    }
}

/// As many flows as one pod is to hold, each with the packets that confirm one which nobody answers.
fn open(holder: &Pod, web: &Pod, flows: u32) -> Result<()> {
    let socket = PacketSocket::open("eth0").context("opening a packet socket")?;
    for number in 0..flows {
        let frame = Forged {
            from_mac: holder.mac,
            to_mac: [2, 0, 0, 0, 0, 0xfe],
            source: SocketAddr::new(holder.v4.into(), u16::try_from(1_024 + number % 60_000)?),
            destination: SocketAddr::new(web.v4.into(), u16::try_from(20_000 + number / 60_000)?),
            tcp: false,
            payload: b"live",
        }
        .bytes();
        for _ in 0..=ONE_WAY_CONFIRM {
            while socket.send(&frame).is_err() {
                std::thread::yield_now();
            }
        }
    }
    Ok(())
}

struct Ours {
    alternatives: PinnedMap,
    epoch: PinnedMap,
    allowing: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Ours {
    fn write(&self, wanted: u8) -> Result<()> {
        for (key, value) in &self.allowing {
            let mut value = value.clone();
            if let Some(byte) = value.get_mut(ACTION) {
                *byte = wanted;
            }
            self.alternatives.set(key, &value)?;
        }
        let now = self.epoch.get(&[0; 4])?;
        let Some(now) = now.first_chunk().copied().map(u32::from_ne_bytes) else {
            bail!("the epoch is no number");
        };
        Ok(self.epoch.set(&[0; 4], &now.wrapping_add(1).to_ne_bytes())?)
    }
}

impl Peer for Ours {
    fn allow(&self) -> Result<()> {
        self.write(action::ALLOW)
    }

    fn revoke(&self) -> Result<()> {
        self.write(action::DENY)
    }
}

struct Nftables<'a> {
    bed: &'a Bed,
}

impl Nftables<'_> {
    fn nft(&self, what: &str) -> Result<()> {
        let node = self.bed.net.nodes.first().context("no node")?;
        let output = node.netns.command("nft")?.arg(what).output().context("running nft")?;
        ensure!(
            output.status.success(),
            "nft {what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Peer for Nftables<'_> {
    fn allow(&self) -> Result<()> {
        self.nft(&format!(
            "add element inet bench allowed {{ {} }}",
            self.bed.client().v4
        ))
    }

    fn revoke(&self) -> Result<()> {
        self.nft(&format!(
            "delete element inet bench allowed {{ {} }}",
            self.bed.client().v4
        ))
    }
}

impl Drop for Nftables<'_> {
    fn drop(&mut self) {
        // The namespace goes soon, and the table with it.
        let _gone = self.nft("delete table inet bench");
    }
}
