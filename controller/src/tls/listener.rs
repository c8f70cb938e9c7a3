//! The TCP listener: TLS 1.3, our own certificate renewed while it runs, a client's certificate checked where it has one.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use bulkhead_proto::spiffe::{self, End, Peer, TrustDomain};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{
    Request, Status,
    transport::server::{TcpConnectInfo, TlsConnectInfo},
};

use super::authority::Shared;

/// Time a client has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; who comes later waits in the kernel's queue.
const HANDSHAKES: usize = 128;
/// Connections that have shaken hands and wait for the server.
const READY: usize = 64;

/// The certificate we show; replaced before it ends.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Who connects.
#[derive(Clone, Debug)]
pub(crate) enum Callers {
    /// Nodes: HTTP/2, and they show certificates, unless they ask for their first.
    Nodes,
    /// The API server: HTTP/1.1, checks that we have one of these names, and shows nothing.
    ApiServer(Vec<String>),
}

/// Connections on which TLS is set up.
pub(crate) type Connections = mpsc::Receiver<Result<TlsStream<TcpStream>, std::io::Error>>;

/// Listens; what is received are connections with TLS set up. Ends when nobody takes them any more.
pub(crate) async fn listen(address: SocketAddr, authority: Shared, callers: Callers) -> Result<Connections> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    let (key, renew_at) = certified(&authority, &callers)?;
    let current = Arc::new(Current(RwLock::new(Arc::new(key))));
    let acceptor = TlsAcceptor::from(Arc::new(config(&authority, current.clone(), &callers)?));
    let (ready, connections) = mpsc::channel(READY);
    drop(tokio::spawn(renew(
        (authority, callers),
        current,
        renew_at,
        ready.clone(),
    )));
    drop(tokio::spawn(accept(listener, acceptor, ready)));
    Ok(connections)
}

fn config(authority: &Shared, current: Arc<Current>, callers: &Callers) -> Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    if let Callers::ApiServer(_) = callers {
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .context("TLS 1.3")?
            .with_no_client_auth()
            .with_cert_resolver(current);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        return Ok(config);
    }
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.certificate().clone())
        .context("the authority's certificate")?;
    // A node that has no certificate yet may ask for one, and nothing else: each service checks who is asking.
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("checking of client certificates")?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .context("TLS 1.3")?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(current);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A new certificate for us, and when to make the next: after two thirds of its time.
fn certified(authority: &Shared, callers: &Callers) -> Result<(CertifiedKey, SystemTime)> {
    let (issued, key) = match callers {
        Callers::Nodes => authority.server()?,
        Callers::ApiServer(names) => authority.webhook(names)?,
    };
    let key = ring::sign::any_supported_type(&key).context("our own key")?;
    let now = SystemTime::now();
    let left = issued.not_after.duration_since(now).unwrap_or_default();
    Ok((CertifiedKey::new(vec![issued.certificate], key), now + left * 2 / 3))
}

async fn renew(
    (authority, callers): (Shared, Callers),
    current: Arc<Current>,
    mut at: SystemTime,
    ready: mpsc::Sender<Result<TlsStream<TcpStream>, std::io::Error>>,
) {
    /// The wall clock may jump: it is looked at again this often.
    const LOOK: Duration = Duration::from_secs(30);
    while !ready.is_closed() {
        tokio::time::sleep(LOOK).await;
        if SystemTime::now() < at {
            continue;
        }
        match certified(&authority, &callers) {
            Ok((key, next)) => {
                *current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
                at = next;
                tracing::info!("the controller's certificate was renewed");
            }
            Err(error) => tracing::error!("the controller's certificate is not renewed: {error:#}"),
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<Result<TlsStream<TcpStream>, std::io::Error>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        drop(stream.set_nodelay(true));
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        drop(tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                Ok(Err(error)) => tracing::warn!(%remote, "refused in the TLS handshake: {error}"),
                Err(_) => tracing::warn!(%remote, "refused: no TLS handshake within {} s", HANDSHAKE.as_secs()),
            }
            drop(permit);
        }));
    }
}

/// Who sent a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Caller {
    /// Over the unix socket, which only its owner can open.
    Local,
    /// Over TLS, with a certificate that is what a node's must be, and when that ends.
    Node(String, SystemTime),
    /// Over TLS, with the certificate of another replica.
    Controller(Option<SocketAddr>),
    /// Over TLS, without a certificate.
    Unknown(Option<SocketAddr>),
}

/// Who sent a request, by the connection it came on.
///
/// # Errors
/// `UNAUTHENTICATED` for a certificate that is not what a node's or a controller's must be; the reason is logged as well.
pub(crate) fn caller<T>(request: &Request<T>, trust_domain: Option<&TrustDomain>) -> Result<Caller, Status> {
    let Some(tls) = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>() else {
        return Ok(Caller::Local);
    };
    let remote = tls.get_ref().remote_addr();
    let certificates = tls.peer_certs();
    let Some(leaf) = certificates.as_ref().and_then(|chain| chain.first()) else {
        return Ok(Caller::Unknown(remote));
    };
    let Some(trust_domain) = trust_domain else {
        return Err(Status::unauthenticated("this controller has no trust domain"));
    };
    match spiffe::peer(leaf, trust_domain, End::Client, SystemTime::now()) {
        Ok(Peer::Node(node)) => match spiffe::validity(leaf) {
            Ok((_, not_after)) => Ok(Caller::Node(node, not_after)),
            Err(error) => Err(refused(remote, &error.to_string())),
        },
        Ok(Peer::Controller) => Ok(Caller::Controller(remote)),
        Err(error) => Err(refused(remote, &error.to_string())),
    }
}

/// The refusal of a caller, logged with where it came from.
pub(crate) fn refused(remote: Option<SocketAddr>, reason: &str) -> Status {
    let remote = remote.map_or_else(|| "?".to_owned(), |remote| remote.to_string());
    tracing::warn!(%remote, "refused: {reason}");
    Status::unauthenticated(reason.to_owned())
}
