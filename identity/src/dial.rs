//! A TLS 1.3 connection to a controller that proved who it is.

use std::{io, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bulkhead_proto::spiffe::CONTROLLER_NAME;
use rustls::{
    ClientConfig,
    client::{Resumption, danger::ServerCertVerifier},
    pki_types::ServerName,
    sign::SingleCertAndKey,
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    Identity, Trust,
    trust::{Controllers, provider},
};

/// Time for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// TLS towards a controller: with our certificate, or without one to ask for the first.
///
/// # Errors
/// Never with the provider we use.
pub fn config(trust: &Trust, identity: Option<&Identity>) -> Result<Arc<ClientConfig>> {
    let verifier: Arc<dyn ServerCertVerifier> = Arc::new(Controllers(trust.clone()));
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .context("TLS 1.3")?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(it) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(it.certified())))),
    };
    // Every connection shows its certificates anew.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Connects to `host:port`.
///
/// # Errors
/// When nobody answers in time, or who answers is not a controller of the trust domain.
pub async fn dial(config: Arc<ClientConfig>, address: &str) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(CONTROLLER_NAME).map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT.as_secs()),
        )),
    }
}
