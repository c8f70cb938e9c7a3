//! The node's end of TLS: its certificate, whatever its source, a channel to a controller that proved who it is, and the newer
//! certificate shown on the stream that is open.

mod bootstrap;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail};
use bulkhead_identity::{
    Identity, Source, Trust, dial,
    options::{self, OptionsError},
    proof::{self, Binding},
};
use bulkhead_proto::{
    spiffe::{End, Peer, TrustDomain},
    v1,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};

use self::bootstrap::Bootstrap;

/// What the agent needs to talk over TLS.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "tls")]
pub(crate) struct Options {
    /// SPIFFE trust domain of controller and nodes
    #[arg(long, env = "BULKHEAD_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    #[command(flatten)]
    source: options::Options,
    /// With --certificates builtin: certificate of the authority to trust (PEM); read again for every connection. Default:
    /// /var/run/bulkhead/ca/ca.crt
    #[arg(long, env = "BULKHEAD_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// With --certificates builtin: `ServiceAccount` token that buys the first certificate; read again each time. Default:
    /// /var/run/bulkhead/token/token
    #[arg(long, env = "BULKHEAD_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

const CA_FILE: &str = "/var/run/bulkhead/ca/ca.crt";
const TOKEN_FILE: &str = "/var/run/bulkhead/token/token";

impl Options {
    /// Where the node's certificate comes from; `None` = the controller's own authority.
    ///
    /// # Errors
    /// When the options make no sense together.
    pub(crate) fn source(&self) -> Result<Option<Source>, OptionsError> {
        self.source.source(&[
            ("--ca-file", self.ca_file.is_some()),
            ("--token-file", self.token_file.is_some()),
        ])
    }
}

/// A node's side of TLS.
#[derive(Clone, Debug)]
pub(crate) enum Tls {
    /// The controller makes our certificates.
    Controller(Box<Bootstrap>),
    /// Somebody else does; its name for people.
    Followed(watch::Receiver<Option<Identity>>, String),
}

/// What a connection was opened with.
#[derive(Debug)]
pub(crate) struct Opened {
    tls: Tls,
    address: String,
    identity: Identity,
    connection: Handshake,
}

/// What is known of the newest handshake of a channel: what binds to it, and the controller's chain.
type Handshake = Arc<Mutex<Option<(Binding, Vec<CertificateDer<'static>>)>>>;

impl Tls {
    /// As the options say; follows their source. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the options make no sense together.
    pub(crate) fn new(node: &str, options: &Options, state_dir: &Path) -> Result<Self, OptionsError> {
        let trust_domain = options.trust_domain.clone();
        let Some(source) = options.source()? else {
            let or = |path: &Option<PathBuf>, default: &str| path.clone().unwrap_or_else(|| default.into());
            return Ok(Self::Controller(Box::new(Bootstrap {
                node: node.to_owned(),
                trust_domain,
                ca_file: or(&options.ca_file, CA_FILE),
                token_file: or(&options.token_file, TOKEN_FILE),
                folder: state_dir.join("tls"),
            })));
        };
        let name = source.to_string();
        let me = Peer::Node(node.to_owned());
        Ok(Self::Followed(
            bulkhead_identity::follow(source, me, trust_domain),
            name,
        ))
    }

    /// A channel to the controller at `host:port`, and what it was opened with.
    pub(crate) async fn channel(&self, address: &str) -> Result<(Channel, Opened)> {
        let identity = match self {
            Self::Controller(bootstrap) => bootstrap.identity(address).await?,
            Self::Followed(newest, source) => {
                let newest = newest.borrow().clone();
                let identity = newest.with_context(|| format!("no certificate from {source} yet"))?;
                if identity.not_after() <= SystemTime::now() {
                    bail!("the certificate has ended, and {source} gave no newer one");
                }
                identity
            }
        };
        let (channel, connection) = open(address, identity.trust(), Some(&identity)).await?;
        let opened = Opened {
            tls: self.clone(),
            address: address.to_owned(),
            identity,
            connection,
        };
        Ok((channel, opened))
    }
}

impl Opened {
    /// Waits for a newer certificate; what to show of it on the stream, `None` when only whom we trust has changed.
    ///
    /// # Errors
    /// When the controller at the other end is not trusted any more, or the newer key cannot sign.
    pub(crate) async fn newer(&mut self) -> Result<Option<v1::Certificates>> {
        let newer = match &mut self.tls {
            Tls::Controller(bootstrap) => bootstrap.newer(&self.address, &self.identity).await,
            Tls::Followed(newest, _) => {
                let held = &self.identity;
                let newer = newest.wait_for(|newest| newest.as_ref().is_some_and(|newest| newest != held));
                match newer.await.ok().and_then(|newer| newer.clone()) {
                    Some(newer) => newer,
                    // The source lives as long as the process.
                    None => std::future::pending().await,
                }
            }
        };
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (binding, controller) = connection.context("the connection's handshake is not known")?;
        if newer.trust() != self.identity.trust() {
            let trusted = newer.trust().verify(&controller, End::Server, SystemTime::now());
            trusted.context("the authorities have changed, and the controller's certificate")?;
        }
        let shown = if newer.shows_the_same(&self.identity) {
            None
        } else {
            Some(proof::show(&newer, &binding)?)
        };
        self.identity = newer;
        Ok(shown)
    }
}

async fn open(address: &str, trust: &Trust, identity: Option<&Identity>) -> Result<(Channel, Handshake)> {
    let config = dial::config(trust, identity)?;
    let connection = Handshake::default();
    let (place, done) = (address.to_owned(), connection.clone());
    let connect = tower::service_fn(move |_: Uri| {
        let (config, place, done) = (config.clone(), place.clone(), done.clone());
        async move {
            let stream = dial::dial(config, &place).await?;
            let (_, session) = stream.get_ref();
            let binding = Binding::of(session).map_err(io::Error::other)?;
            let chain = session.peer_certificates().unwrap_or_default();
            let chain = chain
                .iter()
                .map(|certificate| certificate.clone().into_owned())
                .collect();
            *done.lock().unwrap_or_else(PoisonError::into_inner) = Some((binding, chain));
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://controller")
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_with_connector(connect)
        .await
        .map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            anyhow!("connecting to {address}: {cause}")
        })?;
    Ok((channel, connection))
}

/// Waits until a moment of the wall clock, which may be set meanwhile.
async fn reached(moment: SystemTime) {
    /// Between looks at the clock.
    const LOOK: Duration = Duration::from_secs(30);
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}
