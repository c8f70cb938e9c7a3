//! Our end of a connection to another replica.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use bulkhead_identity::{Identity, dial};
use bulkhead_proto::spiffe::Peer;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use super::serve::From;

/// HTTP/2 pings: a replica that vanished without a word is noticed after about this long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A channel to the replica at `address`, with the certificate we have now.
pub(crate) async fn channel(from: &From, address: SocketAddr) -> Result<Channel> {
    let identity = identity(from)?;
    let config = dial::config(identity.trust(), Some(&identity))?;
    let address = address.to_string();
    let place = address.clone();
    let connect = tower::service_fn(move |_: Uri| {
        let (config, place) = (config.clone(), place.clone());
        async move {
            dial::dial(config, &place)
                .await
                .map(TokioIo::new)
                .map_err(io::Error::other)
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

/// What we show: the newest of our source, or one made for the connection.
fn identity(from: &From) -> Result<Identity> {
    match from {
        From::Authority(authority) => {
            let (issued, key) = authority.controller()?;
            Identity::new(vec![issued.certificate], key, authority.trust()?, &Peer::Controller)
                .context("our own certificate")
        }
        From::Source { newest, name } => {
            let newest = newest.borrow().clone();
            newest.with_context(|| format!("no certificate from {name} yet"))
        }
    }
}
