//! What the controller can be told, by flags and environment.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, str::FromStr};

use bulkhead_policy::failsafe::{self, Failsafe, Opening};
use bulkhead_proto::log;
use clap::Parser;

/// Watches a cluster or a folder of manifests, compiles, and sends every node its part.
#[derive(Clone, PartialEq, Eq, Debug, Parser)]
#[command(name = "bulkhead-controller", version)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["manifests", "kube"]))]
pub struct Config {
    /// Folder of manifests: YAML or JSON as kubectl prints them, subfolders included.
    #[arg(long, value_name = "DIR", env = "BULKHEAD_MANIFESTS")]
    pub manifests: Option<PathBuf>,
    /// Watch a Kubernetes cluster: the one of --kubeconfig, else of KUBECONFIG, else the one this runs in.
    #[arg(long)]
    pub kube: bool,
    /// File that says how to reach the cluster.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// Install the custom resource definition of ClusterNetworkPolicy when the cluster has none.
    #[arg(long, value_name = "BOOL", env = "BULKHEAD_INSTALL_CRDS", default_value_t = true,
          action = clap::ArgAction::Set)]
    pub install_crds: bool,
    /// Namespace of our own objects in the cluster: the Lease by which replicas agree on who writes status, the authority's Secret.
    #[arg(
        long,
        value_name = "NAME",
        env = "BULKHEAD_NAMESPACE",
        default_value = "bulkhead-system"
    )]
    pub namespace: String,
    /// `ServiceAccount` of this controller's pods: those of it in --namespace are not cut off by any policy (builtin/control).
    #[arg(
        long,
        value_name = "NAME",
        env = "BULKHEAD_SERVICE_ACCOUNT",
        default_value = "bulkhead-controller"
    )]
    pub service_account: String,
    /// Where /metrics, /livez and /readyz are served, as in 0.0.0.0:9090; absent = nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", env = "BULKHEAD_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Where /debug/state and /debug/log-level are served: a loopback address; absent = nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", env = "BULKHEAD_DEBUG_LISTEN", value_parser = loopback)]
    pub debug_listen: Option<SocketAddr>,
    /// Where nodes and the command line connect.
    #[arg(
        long,
        value_name = "unix:PATH",
        env = "BULKHEAD_LISTEN",
        default_value = "unix:/run/bulkhead/controller.sock"
    )]
    pub listen: Listen,
    /// What no policy of nodes closes: destination ports on which nodes are reached, as tcp:22,udp:67-68; `none` needs
    /// --failsafe-accept-risk.
    #[arg(long, value_name = "PORTS", env = "BULKHEAD_FAILSAFE_INBOUND", default_value = failsafe::INBOUND)]
    pub failsafe_inbound: Openings,
    /// The same for what nodes send.
    #[arg(long, value_name = "PORTS", env = "BULKHEAD_FAILSAFE_OUTBOUND", default_value = failsafe::OUTBOUND)]
    pub failsafe_outbound: Openings,
    /// An empty failsafe set is meant: a policy of nodes may cut a node off from everybody.
    #[arg(long)]
    pub failsafe_accept_risk: bool,
    /// TCP with mutual TLS.
    #[command(flatten)]
    pub tls: crate::tls::options::Options,
    /// The validating webhook.
    #[command(flatten)]
    pub webhook: crate::webhook::Options,
    /// Form of the log on standard error: text or json.
    #[arg(long, value_name = "FORM", env = "BULKHEAD_LOG_FORMAT", default_value_t)]
    pub log_format: log::Format,
    /// What to log: a level, or directives such as `info,bulkhead_controller=debug`.
    #[arg(long, env = "BULKHEAD_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

impl Config {
    /// What no policy of nodes closes.
    ///
    /// # Errors
    /// A set is empty, and nobody said that this is meant.
    pub fn failsafe(&self) -> Result<Failsafe, String> {
        let failsafe = Failsafe {
            inbound: self.failsafe_inbound.0.clone(),
            outbound: self.failsafe_outbound.0.clone(),
            risk_accepted: self.failsafe_accept_risk,
        };
        let emptied = failsafe.emptied().next();
        match emptied {
            Some(direction) => Err(format!(
                "the failsafe set for {direction} is empty, so a policy of nodes could cut a node off for good; give it ports, or \
                 --failsafe-accept-risk"
            )),
            None => Ok(failsafe),
        }
    }
}

/// Ports of an option, separated by commas; `none` for no port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Openings(pub BTreeSet<Opening>);

impl FromStr for Openings {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" | "none" => Ok(Self(BTreeSet::new())),
            text => text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self),
        }
    }
}

/// An address that only this machine reaches.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "expected ADDRESS:PORT, as in 127.0.0.1:9091")?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("what is served there is for this machine only; give a loopback address, as in 127.0.0.1:9091".to_owned())
    }
}

/// An address to listen on. TCP with mutual TLS comes with Kubernetes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            _ => Err("expected unix: and an absolute path, as in unix:/run/bulkhead/controller.sock".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_unix_sockets() {
        assert_eq!("unix:/run/a.sock".parse(), Ok(Listen::Unix("/run/a.sock".into())));
        for wrong in ["unix:a.sock", "tcp:1.2.3.4:5", "/run/a.sock", ""] {
            assert!(wrong.parse::<Listen>().unwrap_err().contains("unix:"), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Config::command().debug_assert();
        let config = Config::parse_from(["bulkhead-controller", "--manifests", "/m"]);
        assert_eq!(config.listen, Listen::Unix("/run/bulkhead/controller.sock".into()));
        let parses = |arguments: &[&str]| Config::try_parse_from([&["bulkhead-controller"], arguments].concat());
        assert!(parses(&["--kube", "--kubeconfig", "/k"]).is_ok_and(|config| config.install_crds));
        assert_eq!(config.failsafe(), Ok(Failsafe::default()));
        let emptied = ["bulkhead-controller", "--manifests", "/m", "--failsafe-inbound", "none"];
        let refused = Config::parse_from(emptied).failsafe().unwrap_err();
        assert!(refused.contains("--failsafe-accept-risk"), "{refused}");
        let meant = Config::parse_from(emptied.iter().chain(&["--failsafe-accept-risk"]));
        assert!(meant.failsafe().is_ok_and(|failsafe| failsafe.inbound.is_empty()));
        for wrong in [
            &[][..],
            &["--manifests", "/m", "--failsafe-inbound", "22"],
            &["--kube", "--manifests", "/m"],
            &["--manifests", "/m", "--kubeconfig", "/k"],
            &["--kube", "--debug-listen", "0.0.0.0:9"],
        ] {
            assert!(parses(wrong).is_err(), "{wrong:?}");
        }
    }
}
