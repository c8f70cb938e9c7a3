//! What others load for the same policy: nftables, and rule sets in the shape of those that iptables-based products make.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::Ipv4Addr,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use bulkhead_testbed::namespace::Namespace;

use crate::bed::{ALLOWED_TCP, ALLOWED_UDP};

/// Pods of the node in the shapes that have rules for each; the one that is measured is the last.
const LOCAL_PODS: u32 = 100;
/// Mark of a packet that a policy allowed, and of one that may leave the chains.
const ALLOWED: &str = "0x10000/0x10000";
const PASSED: &str = "0x20000/0x20000";

/// A rule set, and how many peers it allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rules {
    /// No rules at all.
    None,
    /// Connection tracking, with two rules that accept everything.
    Conntrack,
    /// nftables: established first, then a verdict map of source, destination and port.
    NftMap(u32),
    /// kube-router's: chains per pod asked one after the other, one ipset per policy.
    KubeRouter(u32),
    /// Calico's with iptables: a dispatch tree by device, marks, one ipset.
    Calico(u32),
}

impl Rules {
    /// Whether a packet that the policy does not allow is dropped.
    pub(crate) const fn enforces(self) -> bool {
        !matches!(self, Self::None | Self::Conntrack)
    }

    /// The programs that load it.
    pub(crate) const fn tools(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Conntrack | Self::NftMap(_) => &["nft"],
            Self::KubeRouter(_) | Self::Calico(_) => &["nft", "iptables-restore", "ipset"],
        }
    }

    /// Loads it into a node in which `client` may reach `web`, whose host-side devices are named.
    pub(crate) fn load(self, node: &Namespace, client: &End, web: &End) -> Result<()> {
        clear(node)?;
        match self {
            Self::None => Ok(()),
            Self::Conntrack => run(
                node,
                &["nft", "-f", "-"],
                "table inet bench { chain forward { type filter hook forward priority 0; policy accept; \
                 ct state established,related accept; ct state new accept; }; }",
            ),
            Self::NftMap(count) => run(node, &["nft", "-f", "-"], &nft_map(count, client, web)),
            Self::KubeRouter(count) => {
                run(node, &["ipset", "restore"], &kube_router_sets(count, client, web))?;
                run(node, &["iptables-restore"], &kube_router(web))
            }
            Self::Calico(count) => {
                let header = format!(
                    "create peers hash:net family inet maxelem 1048576\nadd peers {}\n",
                    client.v4
                );
                run(node, &["ipset", "restore"], &members(header, "peers", count))?;
                run(node, &["iptables-restore"], &calico(client, web))
            }
        }
    }
}

/// One end of the traffic.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) v4: Ipv4Addr,
    pub(crate) device: String,
}

/// Takes everything off. Sets can only go when no rule names them.
fn clear(node: &Namespace) -> Result<()> {
    run(node, &["nft", "flush", "ruleset"], "")?;
    if crate::bed::tool("ipset") {
        run(node, &["ipset", "destroy"], "")?;
    }
    Ok(())
}

/// Runs a command in a namespace with a text as its input.
pub(crate) fn run(node: &Namespace, words: &[&str], input: &str) -> Result<()> {
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command: Command = node.command(program)?;
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    child
        .stdin
        .take()
        .context("no pipe")?
        .write_all(input.as_bytes())
        .with_context(|| format!("writing to {program}"))?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Peers that are allowed beside the one that talks.
pub(crate) fn peers(count: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count).map(|number| Ipv4Addr::from_bits(0xac14_0000 + number))
}

fn members(mut text: String, set: &str, count: u32) -> String {
    for peer in peers(count) {
        let _never = writeln!(text, "add {set} {peer}");
    }
    text
}

fn nft_map(count: u32, client: &End, web: &End) -> String {
    let mut elements = format!("{} . {} . {ALLOWED_TCP} : accept", client.v4, web.v4);
    for peer in peers(count) {
        let _never = write!(elements, ", {peer} . {} . {ALLOWED_TCP} : accept", web.v4);
    }
    let kind = "type ipv4_addr . ipv4_addr . inet_service : verdict";
    format!(
        "table inet bench {{\n map tcp_peers {{ {kind}; elements = {{ {elements} }}; }}\n\
         map udp_peers {{ {kind}; elements = {{ {} . {} . {ALLOWED_UDP} : accept }}; }}\n\
         chain forward {{ type filter hook forward priority 0; policy drop;\n ct state established,related accept\n\
         ip saddr . ip daddr . tcp dport vmap @tcp_peers\n ip saddr . ip daddr . udp dport vmap @udp_peers\n }}\n}}\n",
        client.v4, web.v4
    )
}

fn kube_router_sets(count: u32, client: &End, web: &End) -> String {
    let header = format!(
        "create sources hash:ip family inet maxelem 1048576\ncreate targets hash:ip family inet\n\
         add sources {}\nadd targets {}\n",
        client.v4, web.v4
    );
    members(header, "sources", count)
}

/// Every packet is asked of each pod in turn whether it is for it or from it, and the pod's chain asks the policy's.
fn kube_router(web: &End) -> String {
    let mut text = "*filter\n:FW - [0:0]\n:POLICY - [0:0]\n:OUTWARD - [0:0]\n-A FORWARD -j FW\n".to_owned();
    for pod in 1..=LOCAL_PODS {
        let _never = writeln!(text, ":POD-{pod} - [0:0]");
    }
    for pod in 1..=LOCAL_PODS {
        let address = if pod == LOCAL_PODS {
            web.v4
        } else {
            Ipv4Addr::from_bits(0x0a4d_0300 + pod)
        };
        let chain = format!("POD-{pod}");
        let _never = write!(
            text,
            "-A FW -d {address} -m comment --comment \"to pod {pod}\" -j {chain}\n\
             -A FW -s {address} -m comment --comment \"from pod {pod}\" -j {chain}\n\
             -A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A {chain} -m conntrack --ctstate INVALID -j DROP\n\
             -A {chain} -d {address} -m addrtype --src-type LOCAL -j ACCEPT\n\
             -A {chain} -d {address} -j POLICY\n\
             -A {chain} -s {address} -j OUTWARD\n\
             -A {chain} -m mark ! --mark {ALLOWED} -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100\n\
             -A {chain} -m mark ! --mark {ALLOWED} -j REJECT\n\
             -A {chain} -j MARK --set-xmark 0x0/0x10000\n\
             -A {chain} -j MARK --set-xmark {PASSED}\n"
        );
    }
    let _never = write!(
        text,
        "-A FW -m mark --mark {PASSED} -j ACCEPT\n-A OUTWARD -j MARK --set-xmark {ALLOWED}\n"
    );
    for (protocol, port) in [("tcp", ALLOWED_TCP), ("udp", ALLOWED_UDP)] {
        let _never = writeln!(
            text,
            "-A POLICY -p {protocol} -m set --match-set sources src -m set --match-set targets dst -m {protocol} --dport {port} -j MARK --set-xmark {ALLOWED}"
        );
    }
    text.push_str("-A POLICY -m mark --mark 0x10000/0x10000 -j RETURN\nCOMMIT\n");
    text
}

/// A packet finds its device's chains by a tree over names; marks say what a chain decided.
fn calico(client: &End, web: &End) -> String {
    let mut text = format!(
        "*raw\n:pre - [0:0]\n-A PREROUTING -j pre\n-A pre -j MARK --set-xmark 0x0/0xf0000\n\
         -A pre -i pod+ -j MARK --set-xmark 0x40000/0x40000\n\
         -A pre -m mark --mark 0x40000/0x40000 -m rpfilter --invert --validmark -j DROP\n\
         -A pre -m mark --mark {ALLOWED} -j ACCEPT\nCOMMIT\n\
         *mangle\n:pre - [0:0]\n-A PREROUTING -j pre\n-A pre -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A pre -m mark --mark {ALLOWED} -j ACCEPT\nCOMMIT\n\
         *filter\n:fwd - [0:0]\n:host-from - [0:0]\n:host-to - [0:0]\n:blocks - [0:0]\n:from - [0:0]\n:to - [0:0]\n\
         :policy - [0:0]\n:profile - [0:0]\n"
    );
    let ends = [client, web].map(|end| end.device.as_str());
    for device in ends {
        let _never = writeln!(text, ":fw-{device} - [0:0]\n:tw-{device} - [0:0]");
    }
    for group in 0..10 {
        let _never = writeln!(text, ":from-{group} - [0:0]\n:to-{group} - [0:0]");
    }
    let _never = write!(
        text,
        "-A FORWARD -j fwd\n-A FORWARD -m mark --mark {ALLOWED} -j ACCEPT\n-A fwd -j MARK --set-xmark 0x0/0xe0000\n\
         -A fwd -m mark --mark 0x0/0x10000 -j host-from\n-A fwd -i pod+ -j from\n-A fwd -o pod+ -j to\n-A fwd -j host-to\n-A fwd -j blocks\n"
    );
    let [first, _] = ends;
    for group in 0..10 {
        let _never = writeln!(
            text,
            "-A from -i podx{group}+ -g from-{group}\n-A to -o podx{group}+ -g to-{group}"
        );
        for pod in 1..=LOCAL_PODS / 10 {
            let _never = writeln!(
                text,
                "-A from-{group} -i podx{group}{pod} -g fw-{first}\n-A to-{group} -o podx{group}{pod} -g tw-{first}"
            );
        }
    }
    for device in ends {
        let _never = writeln!(
            text,
            "-A from -i {device} -g fw-{device}\n-A to -o {device} -g tw-{device}"
        );
    }
    text.push_str("-A from -j DROP\n-A to -j DROP\n");
    for device in ends {
        for side in ["fw", "tw"] {
            calico_device(&mut text, side, device, side == "tw" && device == web.device);
        }
    }
    let _never = write!(
        text,
        "-A profile -j MARK --set-xmark {ALLOWED}\n\
         -A policy -p tcp -m set --match-set peers src -m multiport --dports {ALLOWED_TCP} -j MARK --set-xmark {ALLOWED}\n\
         -A policy -m mark --mark {ALLOWED} -j RETURN\n\
         -A policy -p udp -m set --match-set peers src -m multiport --dports {ALLOWED_UDP} -j MARK --set-xmark {ALLOWED}\n\
         -A policy -m mark --mark {ALLOWED} -j RETURN\nCOMMIT\n"
    );
    text
}

/// The chain of a device in one direction.
fn calico_device(text: &mut String, side: &str, device: &str, selected: bool) {
    let chain = format!("{side}-{device}");
    let _never = write!(
        text,
        "-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         -A {chain} -m conntrack --ctstate INVALID -j DROP\n-A {chain} -j MARK --set-xmark 0x0/0x30000\n"
    );
    if side == "fw" {
        let _never = write!(
            text,
            "-A {chain} -p udp -m udp --dport 4789 -j DROP\n-A {chain} -p 4 -j DROP\n"
        );
    }
    let _never = if selected {
        write!(
            text,
            "-A {chain} -m mark --mark 0x0/0x20000 -j policy\n-A {chain} -m mark --mark {ALLOWED} -j RETURN\n\
             -A {chain} -m mark --mark 0x0/0x20000 -j DROP\n"
        )
    } else {
        write!(
            text,
            "-A {chain} -j profile\n-A {chain} -m mark --mark {ALLOWED} -j RETURN\n"
        )
    };
    let _never = writeln!(text, "-A {chain} -j DROP");
}
