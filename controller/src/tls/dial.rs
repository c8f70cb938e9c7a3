//! Our end of a connection to another replica.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow};
use bulkhead_proto::spiffe::{self, CONTROLLER_NAME, End, Peer, TrustDomain};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName, version::TLS13};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

use super::authority::Shared;

/// Time for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// HTTP/2 pings: a replica that vanished without a word is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A channel to the replica at `address`, with a certificate made for it.
pub(crate) async fn channel(authority: &Shared, address: SocketAddr) -> Result<Channel> {
    let connector = TlsConnector::from(Arc::new(config(authority)?));
    let trust_domain = authority.trust_domain().clone();
    let connect = tower::service_fn(move |_: Uri| {
        let (connector, trust_domain) = (connector.clone(), trust_domain.clone());
        async move {
            let stream = tokio::time::timeout(CONNECT, handshake(&connector, &trust_domain, address)).await;
            let late = || {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} s", CONNECT.as_secs()),
                )
            };
            stream.map_err(|_| late())?.map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://controller")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connect)
        .await
        .map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            anyhow!("connecting to {address}: {cause}")
        })
}

fn config(authority: &Shared) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.certificate().clone())
        .context("the authority's certificate")?;
    let (issued, key) = authority.client()?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .context("TLS 1.3")?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![issued.certificate], key)
        .context("our own certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Connects, and checks that who answers is a controller of our trust domain.
async fn handshake(
    connector: &TlsConnector,
    trust_domain: &TrustDomain,
    address: SocketAddr,
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
