//! How long a stream may go on: as long as the certificate it began with, or a newer one shown on it, is good.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bulkhead_identity::{
    Trust,
    proof::{self, Binding},
};
use bulkhead_proto::{
    spiffe::{self, End, Peer},
    v1,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::Status;

use super::connection::{Node, Replica};

/// Whom the controller trusts now; `None` until that is known.
pub(crate) type Trusted = watch::Receiver<Option<Trust>>;

/// What was shown last on a stream.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    chain: Arc<[CertificateDer<'static>]>,
    until: SystemTime,
}

/// A node's standing on its stream.
#[derive(Debug)]
pub(crate) struct Standing {
    node: String,
    binding: Option<Binding>,
    trusted: Trusted,
    shown: watch::Sender<Shown>,
}

impl Standing {
    /// That of a node that just connected.
    pub(crate) fn new(node: Node, trusted: Trusted) -> Self {
        let shown = Shown {
            chain: node.chain,
            until: node.until,
        };
        Self {
            node: node.name,
            binding: node.binding,
            trusted,
            shown: watch::channel(shown).0,
        }
    }

    /// Takes a newer certificate.
    pub(crate) fn take(&self, certificates: v1::Certificates) -> Result<(), Status> {
        let refused = |reason: String| Status::unauthenticated(format!("the newer certificate is refused: {reason}"));
        let trust = self.trusted.borrow().clone();
        let (Some(trust), Some(binding)) = (trust, &self.binding) else {
            return Err(refused("this controller has nothing to check it with".to_owned()));
        };
        let (peer, chain) = proof::seen(certificates, binding, &trust, End::Client, SystemTime::now())
            .map_err(|error| refused(error.to_string()))?;
        if peer != Peer::Node(self.node.clone()) {
            let id = trust.trust_domain().id(&peer);
            return Err(refused(format!(
                "it is {id}'s, and this is the stream of node {}",
                self.node
            )));
        }
        let leaf = chain.first().ok_or_else(|| refused("it is missing".to_owned()))?;
        let (_, until) = spiffe::validity(leaf).map_err(|error| refused(error.to_string()))?;
        tracing::info!(node = self.node, "the node showed a newer certificate on its stream");
        self.shown.send_replace(Shown {
            chain: chain.into(),
            until,
        });
        Ok(())
    }

    /// Done, with the reason, when the stream must end.
    pub(crate) fn lapsed(&self) -> impl Future<Output = String> + use<> {
        lapsed(self.shown.subscribe(), self.trusted.clone())
    }
}

/// Done, with the reason, when the stream of another replica must end; it opens another one then.
pub(crate) async fn replica_lapsed(replica: Replica, trusted: Trusted) -> String {
    let Replica { chain, until, .. } = replica;
    let (_only, shown) = watch::channel(Shown { chain, until });
    lapsed(shown, trusted).await
}

async fn lapsed(mut shown: watch::Receiver<Shown>, mut trusted: Trusted) -> String {
    // Nobody changes the authorities any more once their sender is gone; certificates end all the same.
    let mut settled = false;
    loop {
        let now = shown.borrow_and_update().clone();
        tokio::select! {
            () = passed(now.until) => return "the certificate has ended, and no newer one was shown".to_owned(),
            changed = shown.changed() => if changed.is_err() {
                // The session is over.
                return std::future::pending().await;
            },
            changed = trusted.changed(), if !settled => {
                settled = changed.is_err();
                let trust = trusted.borrow_and_update().clone();
                let end = trust.map(|trust| trust.verify(&now.chain, End::Client, SystemTime::now()));
                if let Some(Err(error)) = end {
                    return format!("the authorities have changed: {error}");
                }
            }
        }
    }
}

/// Waits until a moment of the wall clock, which may be set meanwhile.
async fn passed(moment: SystemTime) {
    /// Between looks at the clock.
    const LOOK: Duration = Duration::from_secs(30);
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}
