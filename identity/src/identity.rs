//! A certificate with its key and whom its owner trusts, at one moment; immutable, replaced as a whole.

use std::{sync::Arc, time::SystemTime};

use bulkhead_proto::spiffe::{self, End, Peer, SpiffeError};
use rustls::{
    Error as TlsError,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};

use crate::trust::{CHAIN_MAX, Trust, TrustError, provider};

/// Why a certificate is not used as our own.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No certificate, or far too many.
    #[error("the chain has {0} certificates; 1 to {CHAIN_MAX} are accepted")]
    Length(usize),
    /// Not what one of ours must be.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
    /// Somebody else's.
    #[error("the certificate is {is}'s, and this is {wanted}")]
    Another {
        /// Whom it names.
        is: String,
        /// Who we are.
        wanted: String,
    },
    /// Not the certificate's key, or none that we can use.
    #[error("the private key cannot be used with the certificate: {0}; were they copied from different places?")]
    Key(TlsError),
    /// Nobody to trust.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Who we are and whom we trust.
#[derive(Clone, Debug)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    trust: Trust,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Identity {
    /// A chain (leaf first) and its key, if they are what `me` must have.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        trust: Trust,
        me: &Peer,
    ) -> Result<Self, IdentityError> {
        let leaf = match chain.first() {
            Some(leaf) if chain.len() <= CHAIN_MAX => leaf,
            _ => return Err(IdentityError::Length(chain.len())),
        };
        let end = match me {
            Peer::Node(_) => End::Client,
            Peer::Controller => End::Server,
        };
        let domain = trust.trust_domain();
        let named = spiffe::peer(leaf, domain, end, SystemTime::now())?;
        if named != *me {
            return Err(IdentityError::Another {
                is: domain.id(&named),
                wanted: domain.id(me),
            });
        }
        let (not_before, not_after) = spiffe::validity(leaf)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(IdentityError::Key)?;
        Ok(Self {
            certified: Arc::new(certified),
            trust,
            not_before,
            not_after,
        })
    }

    /// The same certificate with other authorities to trust.
    #[must_use]
    pub fn trusting(&self, trust: Trust) -> Self {
        Self { trust, ..self.clone() }
    }

    /// Certificates, leaf first, and the key.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Whom we trust.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Last second of the leaf.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Two thirds of the leaf's time are over: time to ask for another, where we do the asking.
    pub fn renew_at(&self) -> SystemTime {
        let whole = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + whole * 2 / 3
    }

    /// True when both show the same certificates.
    pub fn shows_the_same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.shows_the_same(other) && self.trust == other.trust
    }
}
