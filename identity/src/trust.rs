//! Whom we believe: the authorities of our trust domain, and the checks of a chain of certificates against them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bulkhead_proto::spiffe::{self, End, Peer, SpiffeError, TrustDomain};
use rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use webpki::{EndEntityCert, KeyUsage};

/// Longest chain of certificates that is looked at.
pub(crate) const CHAIN_MAX: usize = 10;

/// Why a chain of certificates, or what is to be trusted, is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// Nobody would be believed.
    #[error("there is no certificate of an authority")]
    Empty,
    /// One of the authorities cannot be used.
    #[error("an authority's certificate cannot be used: {0}")]
    Authority(TlsError),
    /// No certificate, or far too many.
    #[error("the chain has {0} certificates; 1 to {CHAIN_MAX} are accepted")]
    Length(usize),
    /// None of our authorities has signed it, or not for this use and time.
    #[error("no authority of trust domain {trust_domain} stands for the certificate: {reason}")]
    Chain {
        /// Ours.
        trust_domain: String,
        /// What the path builder says.
        reason: webpki::Error,
    },
    /// The certificate is not what one of ours must be.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
}

/// The authorities of a trust domain.
#[derive(Clone, Debug)]
pub struct Trust {
    trust_domain: TrustDomain,
    roots: Arc<RootCertStore>,
}

/// What all of our TLS is made with.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

impl Trust {
    /// Trust in these authorities, and only for certificates of this trust domain.
    ///
    /// # Errors
    /// When there are none, or one of them is no authority's certificate.
    pub fn new<'a>(
        trust_domain: TrustDomain,
        authorities: impl IntoIterator<Item = CertificateDer<'a>>,
    ) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.into_owned()).map_err(TrustError::Authority)?;
        }
        if roots.is_empty() {
            return Err(TrustError::Empty);
        }
        Ok(Self {
            trust_domain,
            roots: Arc::new(roots),
        })
    }

    /// Whose identities are believed.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The authorities.
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// Whom a chain (leaf first) names, if one of the authorities stands for it and the leaf is what one of that end must be.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn verify(&self, chain: &[CertificateDer<'_>], end: End, now: SystemTime) -> Result<Peer, TrustError> {
        let (leaf, rest) = match chain {
            [leaf, rest @ ..] if chain.len() <= CHAIN_MAX => (leaf, rest),
            other => return Err(TrustError::Length(other.len())),
        };
        let usage = match end {
            End::Client => KeyUsage::client_auth(),
            End::Server => KeyUsage::server_auth(),
        };
        let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        EndEntityCert::try_from(leaf)
            .and_then(|leaf| {
                leaf.verify_for_usage(algorithms().all, &self.roots.roots, rest, time, usage, None, None)
                    .map(|_| ())
            })
            .map_err(|reason| TrustError::Chain {
                trust_domain: self.trust_domain.to_string(),
                reason,
            })?;
        Ok(spiffe::peer(leaf, &self.trust_domain, end, now)?)
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.roots.roots == other.roots.roots
    }
}

/// The agent's check of who answers: a controller of the trust domain, by its SPIFFE ID. No DNS name is looked at: where a
/// controller listens says nothing, and who registers a SPIFFE ID need not register a name too.
#[derive(Debug)]
pub(crate) struct Controllers(pub(crate) Trust);

impl ServerCertVerifier for Controllers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let chain: Vec<CertificateDer<'_>> = [end_entity].into_iter().chain(intermediates).cloned().collect();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let refused = |reason: String| {
            TlsError::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(
                std::io::Error::other(reason),
            ))))
        };
        match self.0.verify(&chain, End::Server, now) {
            Ok(Peer::Controller) => Ok(ServerCertVerified::assertion()),
            Ok(Peer::Node(node)) => Err(refused(format!("the other end is node {node}, not a controller"))),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
