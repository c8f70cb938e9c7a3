//! What can be told about TCP and TLS.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use bulkhead_identity::{
    Source,
    options::{self, OptionsError},
};
use bulkhead_proto::spiffe::TrustDomain;

/// TCP with mutual TLS, for nodes.
#[derive(Clone, PartialEq, Eq, Debug, clap::Args)]
#[group(id = "tls")]
pub struct Options {
    /// Where nodes connect over TCP with TLS 1.3, as in 0.0.0.0:4433; absent = only over the unix socket.
    #[arg(long, value_name = "ADDRESS:PORT", env = "BULKHEAD_LISTEN_TLS")]
    pub listen_tls: Option<SocketAddr>,
    /// Address at which other replicas reach --listen-tls, such as the pod's; absent = they do not, and what their nodes hold is not
    /// in any status this one writes.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "BULKHEAD_ADVERTISE_ADDRESS",
        requires = "listen_tls"
    )]
    pub advertise_address: Option<IpAddr>,
    /// SPIFFE trust domain of nodes and controller.
    #[arg(
        long,
        value_name = "NAME",
        env = "BULKHEAD_TRUST_DOMAIN",
        default_value = "cluster.local"
    )]
    pub trust_domain: TrustDomain,
    /// Folder of the certificate authority (ca.crt, ca.key), made on first use. With --kube the authority is kept in the Secret
    /// bulkhead-ca instead, unless this is given.
    #[arg(long, value_name = "DIR", env = "BULKHEAD_CA_DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Audience that agents' tokens must be made for.
    #[arg(
        long,
        value_name = "NAME",
        env = "BULKHEAD_TOKEN_AUDIENCE",
        default_value = "bulkhead-controller"
    )]
    pub token_audience: String,
    /// `ServiceAccount` of the agents: only their tokens buy certificates.
    #[arg(
        long,
        value_name = "NAMESPACE:NAME",
        env = "BULKHEAD_AGENT_SERVICE_ACCOUNT",
        default_value = "bulkhead-system:bulkhead-agent"
    )]
    pub agent_service_account: String,
    /// Hours a certificate is good for; agents renew theirs after two thirds of them.
    #[arg(long, value_name = "HOURS", env = "BULKHEAD_CERTIFICATE_HOURS", default_value_t = 24,
          value_parser = clap::value_parser!(u64).range(1..=24 * 365))]
    pub certificate_hours: u64,
    /// The source of our certificate.
    #[command(flatten)]
    pub source: options::Options,
}

impl Options {
    /// Where our certificate comes from; `None` = our own authority.
    ///
    /// # Errors
    /// When the options make no sense together.
    pub fn source(&self) -> Result<Option<Source>, OptionsError> {
        self.source.source(&[("--ca-dir", self.ca_dir.is_some())])
    }
}

impl Options {
    /// Where other replicas reach us.
    pub(crate) fn advertised(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.advertise_address?, self.listen_tls?.port()))
    }
}
