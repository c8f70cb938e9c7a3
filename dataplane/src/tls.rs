//! The node's end of TLS: its certificate, how it gets and renews it, and a channel to a controller that proved who it is.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use bulkhead_proto::{
    spiffe::{self, CONTROLLER_NAME, End, Peer, TrustDomain},
    v1::{IssueRequest, bootstrap_service_client::BootstrapServiceClient},
};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// Time for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// Largest token and certificate file that is read, bytes.
const FILE_MAX: u64 = 1 << 20;

/// What the agent needs to talk over TLS.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "tls")]
pub(crate) struct Options {
    /// SPIFFE trust domain of controller and nodes
    #[arg(long, env = "BULKHEAD_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// Certificate of the authority to trust (PEM); read again for every connection
    #[arg(long, env = "BULKHEAD_CA_FILE", default_value = "/var/run/bulkhead/ca/ca.crt")]
    ca_file: PathBuf,
    /// `ServiceAccount` token that buys the first certificate; read again each time
    #[arg(long, env = "BULKHEAD_TOKEN_FILE", default_value = "/var/run/bulkhead/token/token")]
    token_file: PathBuf,
}

/// A node's side of TLS.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    node: String,
    options: Options,
    /// Folder of `node.key` (PEM) and `node.der`.
    folder: PathBuf,
}

/// A certificate and its key.
struct Credentials {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    not_after: SystemTime,
    /// Two thirds of its time are over.
    renew_at: SystemTime,
}

impl Tls {
    pub(crate) fn new(node: &str, options: &Options, state_dir: &Path) -> Self {
        Self {
            node: node.to_owned(),
            options: options.clone(),
            folder: state_dir.join("tls"),
        }
    }

    /// A channel to the controller at `host:port`, and when to open another one with a newer certificate.
    pub(crate) async fn channel(&self, address: &str) -> Result<(Channel, SystemTime)> {
        let mut credentials = self.kept();
        let now = SystemTime::now();
        if credentials.as_ref().is_none_or(|it| it.renew_at <= now) {
            match self
                .obtain(address, credentials.as_ref().filter(|it| it.not_after > now))
                .await
            {
                Ok(new) => credentials = Some(new),
                // What is left of the old one is still good.
                Err(error) if credentials.as_ref().is_some_and(|it| it.not_after > now) => {
                    tracing::warn!("the node's certificate is not renewed yet: {error:#}");
                }
                Err(error) => return Err(error),
            }
        }
        let credentials = credentials.context("no certificate")?;
        let until = if credentials.renew_at > now {
            credentials.renew_at
        } else {
            credentials.not_after
        };
        Ok((self.open(address, Some(&credentials)).await?, until))
    }

    /// The certificate and key on disk, if they are this node's and not over.
    fn kept(&self) -> Option<Credentials> {
        let read = |name: &str| read(&self.folder.join(name));
        let (certificate, key) = (read("node.der").ok()?, read("node.key").ok()?);
        let certificate = CertificateDer::from(certificate);
        let key = PrivateKeyDer::from_pem_slice(&key).ok()?;
        let named = spiffe::peer(&certificate, &self.options.trust_domain, End::Client, SystemTime::now()).ok()?;
        if named != Peer::Node(self.node.clone()) {
            return None;
        }
        Credentials::new(certificate, key).ok()
    }

    /// A new certificate: for the one we have, or for the token.
    async fn obtain(&self, address: &str, old: Option<&Credentials>) -> Result<Credentials> {
        let token = if old.is_some() {
            String::new()
        } else {
            let path = &self.options.token_file;
            let token = read(path).with_context(|| format!("token {}", path.display()))?;
            String::from_utf8(token)
                .with_context(|| format!("token {} is no text", path.display()))?
                .trim()
                .to_owned()
        };
        let key = KeyPair::generate().context("making a key")?;
        let request = CertificateParams::new(Vec::new())
            .and_then(|params| params.serialize_request(&key))
            .context("making a certificate request")?;
        let mut client = BootstrapServiceClient::new(self.open(address, old).await?);
        let request = IssueRequest {
            node: self.node.clone(),
            token,
            certificate_signing_request: request.der().to_vec(),
        };
        let issued = client.issue(request).await;
        let issued =
            issued.map_err(|status| anyhow::anyhow!("the controller gives no certificate: {}", status.message()))?;
        let leaf = issued
            .into_inner()
            .certificates
            .into_iter()
            .next()
            .context("the controller's answer has no certificate")?;
        let named = spiffe::peer(&leaf, &self.options.trust_domain, End::Client, SystemTime::now())
            .context("the certificate the controller gave")?;
        if named != Peer::Node(self.node.clone()) {
            bail!(
                "the controller gave a certificate of {named:?}, and this is node {}",
                self.node
            );
        }
        let credentials = Credentials::new(leaf.into(), PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        self.keep(&credentials, &key)?;
        tracing::info!(
            node = self.node,
            renewed = old.is_some(),
            "the controller gave a certificate"
        );
        Ok(credentials)
    }

    /// Writes both files; each is whole or the old one. A crash between them leaves a pair that does not fit, which the
    /// next handshake finds out.
    fn keep(&self, credentials: &Credentials, key: &KeyPair) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .and_then(|()| replace(&self.folder.join("node.key"), key.serialize_pem().as_bytes()))
            .and_then(|()| replace(&self.folder.join("node.der"), &credentials.certificate))
            .with_context(|| format!("keeping the certificate in {}", self.folder.display()))
    }

    async fn open(&self, address: &str, credentials: Option<&Credentials>) -> Result<Channel> {
        let connector = TlsConnector::from(Arc::new(self.config(credentials)?));
        let trust_domain = self.options.trust_domain.clone();
        let place = address.to_owned();
        let connect = tower::service_fn(move |_: Uri| {
            let (connector, trust_domain, place) = (connector.clone(), trust_domain.clone(), place.clone());
            async move {
                let connecting = handshake(&connector, &trust_domain, &place);
                let stream = tokio::time::timeout(CONNECT, connecting).await;
                let stream = stream.map_err(|_| {
                    io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no answer within {} s", CONNECT.as_secs()),
                    )
                })?;
                stream.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://controller")
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .connect_with_connector(connect)
            .await
            .map_err(|error| {
                let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                anyhow::anyhow!("connecting to {address}: {cause}")
            })
    }

    fn config(&self, credentials: Option<&Credentials>) -> Result<ClientConfig> {
        let path = &self.options.ca_file;
        let pem = read(path).with_context(|| format!("authority's certificate {}", path.display()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.with_context(|| format!("{} is no PEM certificate", path.display()))?;
            roots
                .add(certificate)
                .with_context(|| format!("a certificate of {}", path.display()))?;
        }
        if roots.is_empty() {
            bail!("{} has no certificate in it", path.display());
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .context("TLS 1.3")?
            .with_root_certificates(roots);
        let mut config = match credentials {
            None => builder.with_no_client_auth(),
            Some(it) => builder
                .with_client_auth_cert(vec![it.certificate.clone()], it.key.clone_key())
                .context("the node's certificate")?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl Credentials {
    fn new(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<Self> {
        let (begin, not_after) = spiffe::validity(&certificate)?;
        let whole = not_after.duration_since(begin).unwrap_or_default();
        Ok(Self {
            certificate,
            key,
            not_after,
            renew_at: begin + whole * 2 / 3,
        })
    }
}

/// Connects, and checks that who answers is a controller of our trust domain.
async fn handshake(
    connector: &TlsConnector,
    trust_domain: &TrustDomain,
    address: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(CONTROLLER_NAME).map_err(io::Error::other)?;
    let stream = connector.connect(name, stream).await?;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let leaf = leaf.ok_or_else(|| io::Error::other("the other end has no certificate"))?;
    match spiffe::peer(leaf, trust_domain, End::Server, SystemTime::now()) {
        Ok(Peer::Controller) => Ok(stream),
        Ok(Peer::Node(node)) => Err(io::Error::other(format!(
            "the other end is node {node}, not a controller"
        ))),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > FILE_MAX {
        bail!("is {size} bytes long; at most {FILE_MAX} are read");
    }
    Ok(fs::read(path)?)
}

/// Replaces a file with one only its owner may read.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
