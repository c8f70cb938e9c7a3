//! What the agent's command line says.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use bulkhead_proto::log::Format;
use clap::{Parser, Subcommand};

use crate::{
    cleanup::Cleanup,
    cni::install::Installation,
    gate::StartGate,
    kernel::{Learning, Tuning},
    store,
    stream::Address,
    sync::Pace,
    tls,
    uplink::options::UplinkOptions,
};

/// Enforces Bulkhead's policies on the pods of this node. Enforcement goes on when the agent ends, however it ends.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead-agent",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Options {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) agent: Agent,
}

impl Options {
    /// What to log, and in which form.
    #[must_use]
    pub fn log(&self) -> (&str, Format) {
        (&self.agent.log_level, self.agent.log_format)
    }
}

/// Without a subcommand: be the agent.
#[derive(Debug, clap::Args)]
pub(crate) struct Agent {
    /// Name of this node, as the controller knows it
    #[arg(long, env = "BULKHEAD_NODE", required = true)]
    pub(crate) node: Option<String>,
    /// Where the controller listens: <unix:/ABSOLUTE/PATH> or <https://HOST:PORT>
    #[arg(
        long,
        env = "BULKHEAD_CONTROLLER",
        default_value = "unix:/run/bulkhead/controller.sock"
    )]
    pub(crate) controller: Address,
    #[command(flatten)]
    pub(crate) tls: tls::Options,
    /// Socket to serve flows, status and endpoints on, and the CNI plugin (made with mode 0600)
    #[arg(long, env = "BULKHEAD_SOCKET", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
    /// Folder for pinned maps and links; a bpffs is mounted there if none is
    #[arg(long, env = "BULKHEAD_BPFFS", default_value = "/run/bulkhead/bpf")]
    pub(crate) bpffs: PathBuf,
    /// Folder for the last state, which is used while the controller is away
    #[arg(long, env = "BULKHEAD_STATE_DIR", default_value = "/var/lib/bulkhead")]
    pub(crate) state_dir: PathBuf,
    /// Socket of the container runtime, which knows the pods that were here before: <unix:///ABSOLUTE/PATH>, or `none`
    #[arg(
        long,
        env = "BULKHEAD_CRI_SOCKET",
        default_value = "unix:///run/containerd/containerd.sock"
    )]
    pub(crate) cri_socket: RuntimeSocket,
    /// What happens to a pod that starts while this node has never had rules
    #[arg(long, env = "BULKHEAD_START_GATE", value_enum, default_value_t)]
    pub(crate) start_gate: StartGate,
    /// Namespaces whose pods may start while the controller is away: the one it runs in (may be given several times)
    #[arg(
        long,
        env = "BULKHEAD_CONTROL_NAMESPACE",
        value_delimiter = ',',
        default_value = "bulkhead-system"
    )]
    pub(crate) control_namespace: Vec<String>,
    /// Install the CNI plugin on this node, and keep it installed
    #[arg(long, env = "BULKHEAD_CNI_INSTALL")]
    pub(crate) cni_install: bool,
    #[command(flatten)]
    pub(crate) cni: CniFolders,
    /// Longest time the plugin lets a pod wait for its rules before the runtime is told to try again, milliseconds
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=60_000))]
    pub(crate) cni_timeout_ms: u32,
    /// Address to serve /livez, /readyz and /metrics on: <ADDRESS:PORT>
    #[arg(long, env = "BULKHEAD_HEALTH_LISTEN")]
    pub(crate) health_listen: Option<SocketAddr>,
    /// Form of the log on standard error: text or json
    #[arg(long, value_name = "FORM", env = "BULKHEAD_LOG_FORMAT", default_value_t)]
    pub(crate) log_format: Format,
    /// What to log: a level, or directives such as `info,bulkhead_dataplane=debug`
    #[arg(long, env = "BULKHEAD_LOG_LEVEL", default_value = "info")]
    pub(crate) log_level: String,
    /// Network namespace to work in: where the host-side devices of pods are. Default: the agent's own
    #[arg(long)]
    pub(crate) netns: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flows: FlowOptions,
    #[command(flatten)]
    pub(crate) uplinks: UplinkOptions,
    /// Time in which a change of the node's own rules must be confirmed by a new connection to the controller; else it is taken
    /// back. 0s = it counts at once
    #[arg(long, value_name = "TIME", env = "BULKHEAD_CONFIRM_WITHIN", default_value = "30s", value_parser = duration)]
    pub(crate) confirm_within: Duration,
    /// What else must take a TCP connection for that: <HOST:PORT> (may be given several times)
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) confirm_also: Vec<String>,
    /// Shortest time an address stays known for a name, whatever the answer's TTL says, seconds
    #[arg(long, env = "BULKHEAD_FQDN_MIN_TTL", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub(crate) fqdn_min_ttl: u32,
    /// Time between two slices of the comparison of the kernel's maps and programs with what they should be, milliseconds; 0 = none
    #[arg(long, env = "BULKHEAD_DRIFT_INTERVAL_MS", default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub(crate) drift_interval_ms: u32,
    /// Elements that a slice of that comparison looks at
    #[arg(long, env = "BULKHEAD_DRIFT_ENTRIES", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub(crate) drift_entries: u32,
    /// Time between two looks whether packets go past our programs, milliseconds; 0 = none
    #[arg(long, env = "BULKHEAD_CANARY_INTERVAL_MS", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub(crate) canary_interval_ms: u32,
    /// For tests: answers about names teach nothing
    #[arg(long, hide = true)]
    pub(crate) no_name_learning: bool,
    /// For tests: kill this process after so many map writes
    #[arg(long, hide = true)]
    pub(crate) fail_after_writes: Option<u64>,
    /// For tests: map writes FIRST-LAST fail
    #[arg(long, hide = true, value_parser = numbers)]
    pub(crate) refuse_writes: Option<RangeInclusive<u64>>,
}

const SOCKET: &str = "/run/bulkhead/agent.sock";

/// What of the flow tables can be chosen.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Flow tables")]
pub(crate) struct FlowOptions {
    /// How long a TCP connection may say nothing before its next packet is a stranger's: 30s, 10m, 2h. A pod that keeps connections
    /// alive less often than every two hours needs more
    #[arg(long, value_name = "TIME", env = "BULKHEAD_IDLE_TCP", default_value = "7440s", value_parser = idle)]
    pub(crate) idle_tcp: Duration,
    /// The same of UDP and SCTP
    #[arg(long, value_name = "TIME", env = "BULKHEAD_IDLE_UDP", default_value = "300s", value_parser = idle)]
    pub(crate) idle_udp: Duration,
    /// The same of protocols without ports, but ICMP (60s)
    #[arg(long, value_name = "TIME", env = "BULKHEAD_IDLE_OTHER", default_value = "600s", value_parser = idle)]
    pub(crate) idle_other: Duration,
    /// Connections per second that one pod may open without an answer in the long run (8,192 at once); those answered do not
    /// count. 0 = as many as it likes
    #[arg(
        long,
        value_name = "NUMBER",
        env = "BULKHEAD_UNANSWERED_PER_SECOND",
        default_value_t = 4_000
    )]
    pub(crate) unanswered_per_second: u32,
}

impl FlowOptions {
    /// In the kernel's units.
    pub(crate) fn tuning(&self) -> Tuning {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Tuning {
            tcp: nanoseconds(self.idle_tcp),
            datagram: nanoseconds(self.idle_udp),
            other: nanoseconds(self.idle_other),
            opening_interval: 1_000_000_000_u64
                .checked_div(self.unanswered_per_second.into())
                .map_or(0, |interval| interval.max(1)),
        }
    }
}

/// Where container runtimes look.
#[derive(Debug, clap::Args)]
pub(crate) struct CniFolders {
    /// Folder of CNI plugins on this node
    #[arg(long, env = "BULKHEAD_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub(crate) cni_bin_dir: PathBuf,
    /// Folder of CNI configurations on this node
    #[arg(long, env = "BULKHEAD_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub(crate) cni_conf_dir: PathBuf,
}

/// Other things to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take the CNI plugin off this node: its entry from every configuration, then its binary
    CniUninstall(CniFolders),
    /// Take everything of ours off this node: the CNI plugin, programs on devices, pinned maps, the kept state
    Cleanup(Cleanup),
    /// Show what threat feeds and connection limits do on this node's uplinks, and what they say of an address
    Uplinks {
        /// Is it in a feed, would it be dropped, how often was it?
        address: Option<IpAddr>,
        /// Socket of the agent
        #[arg(long, env = "BULKHEAD_SOCKET", default_value = SOCKET)]
        socket: PathBuf,
    },
    /// Emergency: judge nothing on this node for a limited time, or end that with `--for 0s`
    Bypass {
        /// How long: 30s, 10m, 2h
        #[arg(long = "for", value_parser = duration)]
        time: Duration,
        /// Why; kept in the log, the status and the metrics
        #[arg(long)]
        reason: String,
        /// Socket of the agent
        #[arg(long, env = "BULKHEAD_SOCKET", default_value = SOCKET)]
        socket: PathBuf,
    },
}

impl Agent {
    /// How answers about names are used.
    pub(crate) fn learning(&self) -> Learning {
        Learning {
            on: !self.no_name_learning,
            min_ttl: self.fqdn_min_ttl,
        }
    }

    /// How often it is looked whether packets go past our programs; zero = never.
    pub(crate) fn canary(&self) -> Duration {
        Duration::from_millis(self.canary_interval_ms.into())
    }

    /// How often the kernel is compared with what it should hold, and how much at once.
    pub(crate) fn drift(&self) -> Pace {
        Pace {
            interval: Duration::from_millis(self.drift_interval_ms.into()),
            entries: usize::try_from(self.drift_entries).unwrap_or(usize::MAX),
        }
    }

    /// What is to be installed.
    pub(crate) fn installation(&self) -> Installation {
        Installation {
            bin_dir: self.cni.cni_bin_dir.clone(),
            conf_dir: self.cni.cni_conf_dir.clone(),
            agent_socket: self.socket.clone(),
            state_file: self.state_dir.join(store::FILE),
            start_gate: match self.start_gate {
                StartGate::Open => "open",
                StartGate::Strict => "strict",
            }
            .to_owned(),
            timeout_ms: self.cni_timeout_ms,
        }
    }
}

/// Where the container runtime is asked; `None` = nowhere.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeSocket(pub(crate) Option<PathBuf>);

impl std::str::FromStr for RuntimeSocket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        match path {
            "none" => Ok(Self(None)),
            path if path.starts_with('/') => Ok(Self(Some(path.into()))),
            _ => Err(format!("{text}: neither unix:///ABSOLUTE/PATH nor none")),
        }
    }
}

fn numbers(text: &str) -> Result<RangeInclusive<u64>, String> {
    let parse = |number: &str| number.parse::<u64>().map_err(|error| error.to_string());
    let (first, last) = text.split_once('-').ok_or("not FIRST-LAST")?;
    Ok(parse(first)?..=parse(last)?)
}

/// A time-out. Not so short that connections end between two packets, and not so long that it means nothing.
fn idle(text: &str) -> Result<Duration, String> {
    let (least, most) = (Duration::from_secs(10), Duration::from_hours(24 * 30));
    let time = duration(text)?;
    if (least..=most).contains(&time) {
        Ok(time)
    } else {
        Err(format!("{text}: not between 10s and 720h"))
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text}: not a number with its unit, as in 30s, 10m or 2h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for text in ["", "10", "m", "-1s", "1d", "10ä"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flows_are_tuned_in_seconds() {
        let parse = |arguments: &[&str]| {
            let common = ["bulkhead-agent", "--node", "n"];
            Options::try_parse_from(common.iter().chain(arguments)).map(|options| options.agent.flows.tuning())
        };
        assert_eq!(parse(&[]).unwrap(), Tuning::default());
        let tuned = parse(&["--idle-tcp", "5h", "--unanswered-per-second", "0"]).unwrap();
        assert_eq!((tuned.tcp, tuned.opening_interval), (18_000_000_000_000, 0));
        for wrong in ["9s", "721h", "", "5"] {
            let error = parse(&["--idle-udp", wrong]).unwrap_err().to_string();
            assert!(error.contains("--idle-udp"), "{error}");
        }
    }

    #[test]
    fn a_node_is_needed_but_not_by_subcommands() {
        assert!(Options::try_parse_from(["bulkhead-agent", "--node", "n"]).is_ok());
        let bypass = ["bulkhead-agent", "bypass", "--for", "1m", "--reason", "x"];
        assert!(Options::try_parse_from(bypass).is_ok());
        assert!(Options::try_parse_from(["bulkhead-agent", "bypass", "--for", "1m"]).is_err());
    }
}
