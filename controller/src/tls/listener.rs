//! The TCP listener: TLS 1.3 with the configuration of the moment.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};
use tokio_rustls::TlsAcceptor;

use super::{connection::Connection, own::Configurations};

/// Time a client has for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; who comes later waits in the kernel's queue.
const HANDSHAKES: usize = 128;
/// Connections that have shaken hands and wait for the server.
const READY: usize = 64;

/// Connections on which TLS is set up.
pub(crate) type Connections = mpsc::Receiver<io::Result<Connection>>;

/// Listens; what is received are connections with TLS set up. Ends when nobody takes them any more.
pub(crate) async fn listen(address: SocketAddr, configurations: Configurations) -> Result<Connections> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    let (ready, connections) = mpsc::channel(READY);
    drop(tokio::spawn(accept(listener, configurations, ready)));
    Ok(connections)
}

async fn accept(listener: TcpListener, configurations: Configurations, ready: mpsc::Sender<io::Result<Connection>>) {
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
        let acceptor = TlsAcceptor::from(Arc::clone(&configurations.borrow()));
        let ready = ready.clone();
        drop(tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(ready.send(Ok(Connection(stream))).await),
                Ok(Err(error)) => tracing::warn!(%remote, "refused in the TLS handshake: {error}"),
                Err(_) => tracing::warn!(%remote, "refused: no TLS handshake within {} s", HANDSHAKE.as_secs()),
            }
            drop(permit);
        }));
    }
}
