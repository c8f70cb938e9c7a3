//! Where an identity comes from, and a task that follows it.

use std::{fmt, path::PathBuf, sync::Arc, time::SystemTime};

use bulkhead_proto::spiffe::{Peer, TrustDomain};
use tokio::sync::watch;

use crate::{Identity, files, workload};

/// Where certificates come from when we do not make them ourselves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Three PEM files that somebody else replaces.
    Files {
        /// Certificates, leaf first.
        certificate: PathBuf,
        /// Private key.
        key: PathBuf,
        /// Certificates of the authorities to trust.
        authorities: PathBuf,
    },
    /// A SPIFFE Workload API at this unix socket.
    Workload(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files { certificate, .. } => write!(f, "file {}", certificate.display()),
            Self::Workload(socket) => write!(f, "the SPIFFE Workload API at {}", socket.display()),
        }
    }
}

/// Follows a source for as long as somebody listens: what is received is the newest identity that is good, `None` until the
/// first. Troubles are logged; what was good stays until it ends. To be called inside a tokio runtime.
pub fn follow(source: Source, me: Peer, trust_domain: TrustDomain) -> watch::Receiver<Option<Identity>> {
    let (newest, receiver) = watch::channel(None);
    let follower = Follower {
        me,
        trust_domain,
        newest: Arc::new(newest),
        complaint: String::new(),
    };
    drop(tokio::spawn(async move {
        match source {
            Source::Files {
                certificate,
                key,
                authorities,
            } => files::follow([certificate, key, authorities], follower).await,
            Source::Workload(socket) => workload::follow(&socket, follower).await,
        }
    }));
    receiver
}

/// What both sources do with what they find.
pub(crate) struct Follower {
    pub(crate) me: Peer,
    pub(crate) trust_domain: TrustDomain,
    newest: Arc<watch::Sender<Option<Identity>>>,
    /// What was logged last; said once until it is another thing.
    complaint: String,
}

impl Follower {
    /// Publishes what is new.
    pub(crate) fn publish(&mut self, identity: Identity) {
        self.complaint.clear();
        if self.newest.borrow().as_ref() == Some(&identity) {
            return;
        }
        let left = identity
            .not_after()
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        tracing::info!(
            id = self.id(),
            seconds = left.as_secs(),
            authorities = identity.trust().roots().len(),
            "took a certificate"
        );
        self.newest.send_replace(Some(identity));
    }

    /// What was published last.
    pub(crate) fn newest(&self) -> Option<Identity> {
        self.newest.borrow().clone()
    }

    /// Logs a trouble, once.
    pub(crate) fn complain(&mut self, trouble: String) {
        if self.complaint == trouble {
            return;
        }
        let held = self.newest.borrow().as_ref().map(Identity::not_after);
        match held.map(|end| end.duration_since(SystemTime::now())) {
            Some(Ok(left)) => tracing::warn!(
                "{trouble}; the certificate we have stays in use, for {} s more",
                left.as_secs()
            ),
            Some(Err(_)) => tracing::error!("{trouble}; the certificate we had has ended"),
            None => tracing::error!("{trouble}; there is no certificate until then"),
        }
        self.complaint = trouble;
    }

    /// Done when nobody listens any more.
    pub(crate) fn unheard(&self) -> impl Future<Output = ()> + use<> {
        let newest = Arc::clone(&self.newest);
        async move { newest.closed().await }
    }

    /// The SPIFFE ID we are to have.
    pub(crate) fn id(&self) -> String {
        self.trust_domain.id(&self.me)
    }
}
