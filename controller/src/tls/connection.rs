//! A connection on which TLS is set up, and who is at its other end.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use bulkhead_identity::proof::Binding;
use bulkhead_proto::spiffe::{self, End, Peer, TrustDomain};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use tonic::{Request, Status, transport::server::Connected};

/// A TLS stream whose requests are told who sent them.
#[derive(Debug)]
pub(crate) struct Connection(pub(crate) TlsStream<TcpStream>);

/// What every request of a connection is told.
#[derive(Clone, Debug)]
pub(crate) struct Far {
    remote: Option<SocketAddr>,
    /// Leaf first; empty when none was shown.
    chain: Arc<[CertificateDer<'static>]>,
    binding: Option<Binding>,
}

impl Connection {
    /// Where it comes from.
    pub(crate) fn remote(&self) -> Option<SocketAddr> {
        self.0.get_ref().0.peer_addr().ok()
    }
}

impl Connected for Connection {
    type ConnectInfo = Far;

    fn connect_info(&self) -> Far {
        let (_, session) = self.0.get_ref();
        let chain = session.peer_certificates().unwrap_or_default();
        Far {
            remote: self.remote(),
            chain: chain
                .iter()
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
            binding: Binding::of(session).ok(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Over the unix socket, which only its owner can open.
    Local,
    /// Over TLS, with a certificate that is what a node's must be.
    Node(Node),
    /// Over TLS, with the certificate of another replica.
    Controller(Replica),
    /// Over TLS, without a certificate.
    Unknown(Option<SocketAddr>),
}

/// A node that showed its certificate.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its name, by the certificate.
    pub(crate) name: String,
    /// Leaf first.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// When the leaf ends.
    pub(crate) until: SystemTime,
    /// What the two ends of the connection know.
    pub(crate) binding: Option<Binding>,
}

/// A controller that showed its certificate.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// Where it comes from.
    pub(crate) remote: Option<SocketAddr>,
    /// Leaf first.
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// When the leaf ends.
    pub(crate) until: SystemTime,
}

/// Who sent a request, by the connection it came on.
///
/// # Errors
/// `UNAUTHENTICATED` for a certificate that is not what a node's or a controller's must be; the reason is logged as well.
pub(crate) fn caller<T>(request: &Request<T>, trust_domain: Option<&TrustDomain>) -> Result<Caller, Status> {
    let Some(far) = request.extensions().get::<Far>() else {
        return Ok(Caller::Local);
    };
    let remote = far.remote;
    let Some(leaf) = far.chain.first() else {
        return Ok(Caller::Unknown(remote));
    };
    let Some(trust_domain) = trust_domain else {
        return Err(Status::unauthenticated("this controller has no trust domain"));
    };
    let peer = spiffe::peer(leaf, trust_domain, End::Client, SystemTime::now());
    let (peer, (_, until)) = peer
        .and_then(|peer| Ok((peer, spiffe::validity(leaf)?)))
        .map_err(|error| refused(remote, &error.to_string()))?;
    let chain = Arc::clone(&far.chain);
    Ok(match peer {
        Peer::Node(name) => Caller::Node(Node {
            name,
            chain,
            until,
            binding: far.binding.clone(),
        }),
        Peer::Controller => Caller::Controller(Replica { remote, chain, until }),
    })
}

/// The refusal of a caller, logged with where it came from.
pub(crate) fn refused(remote: Option<SocketAddr>, reason: &str) -> Status {
    let remote = remote.map_or_else(|| "?".to_owned(), |remote| remote.to_string());
    tracing::warn!(%remote, "refused: {reason}");
    Status::unauthenticated(reason.to_owned())
}
