//! A newer certificate shown on a connection that is open already, so that a stream outlives the certificate it began with.
//!
//! TLS 1.3 asks for a client's certificate once, in the handshake. A node that has a newer one sends it on its stream, with a
//! signature by the newer key over keying material of this very connection (RFC 5705). So it is worth nothing on another
//! connection, and who only has the old key cannot make one. The form is that of TLS's own `CertificateVerify`: spaces, what
//! it is for, a zero, what is signed.

use std::time::SystemTime;

use bulkhead_proto::{
    spiffe::{End, Peer},
    v1,
};
use rustls::{ConnectionCommon, Error as TlsError, SignatureScheme, pki_types::CertificateDer};
use webpki::EndEntityCert;

use crate::{
    Identity,
    trust::{Trust, TrustError, algorithms},
};

/// Label of the keying material.
const LABEL: &[u8] = b"EXPORTER-bulkhead-newer-certificate";
/// What the signature is for; nothing else that a certificate's key signs begins like this.
const PURPOSE: &[u8] = b"Bulkhead, newer certificate for an open stream";
/// Longest chain, bytes.
const CHAIN_BYTES_MAX: usize = 64 << 10;
/// The schemes of TLS 1.3, the quickest first.
const SCHEMES: [SignatureScheme; 7] = [
    SignatureScheme::ED25519,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// Why what was shown is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// More than any chain needs.
    #[error("field certificates: {0} bytes; at most {CHAIN_BYTES_MAX} are accepted")]
    Long(usize),
    /// Not one of ours, or not any more.
    #[error(transparent)]
    Certificate(#[from] TrustError),
    /// A scheme that TLS 1.3 does not have.
    #[error("field scheme: {0:#06x} is none of TLS 1.3")]
    Scheme(u32),
    /// Not signed by the newer certificate's key, or for another connection.
    #[error("field signature: not made by the newer certificate's key for this connection")]
    Signature,
    /// Our own key cannot sign.
    #[error("the newer certificate's key cannot sign: {0}")]
    Sign(TlsError),
    /// Our own key is of a kind that TLS 1.3 has not.
    #[error("the newer certificate's key is of no kind that TLS 1.3 knows")]
    Kind,
}

/// What only the two ends of one connection know.
#[derive(Clone, PartialEq, Eq)]
pub struct Binding([u8; 32]);

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Binding(…)")
    }
}

impl Binding {
    /// That of a connection whose handshake is done.
    ///
    /// # Errors
    /// When it is not done.
    pub fn of<T>(connection: &ConnectionCommon<T>) -> Result<Self, TlsError> {
        connection.export_keying_material([0; 32], LABEL, None).map(Self)
    }

    fn message(&self, leaf: &[u8]) -> Vec<u8> {
        [&[b' '; 64], PURPOSE, &[0], self.0.as_slice(), leaf].concat()
    }
}

/// Our certificates, to be shown on the connection of this binding.
///
/// # Errors
/// When our key cannot sign.
pub fn show(identity: &Identity, binding: &Binding) -> Result<v1::Certificates, ProofError> {
    let certified = identity.certified();
    let signer = certified.key.choose_scheme(&SCHEMES).ok_or(ProofError::Kind)?;
    let leaf = certified.end_entity_cert().map_err(ProofError::Sign)?;
    let signature = signer.sign(&binding.message(leaf)).map_err(ProofError::Sign)?;
    Ok(v1::Certificates {
        certificates: certified.cert.iter().map(|certificate| certificate.to_vec()).collect(),
        scheme: u32::from(u16::from(signer.scheme())),
        signature,
    })
}

/// Whom the other end's newer certificates name, and the chain, if it is trusted and its key is at the other end.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn seen(
    shown: v1::Certificates,
    binding: &Binding,
    trust: &Trust,
    end: End,
    now: SystemTime,
) -> Result<(Peer, Vec<CertificateDer<'static>>), ProofError> {
    let bytes = shown.certificates.iter().map(Vec::len).sum();
    if bytes > CHAIN_BYTES_MAX {
        return Err(ProofError::Long(bytes));
    }
    let chain: Vec<CertificateDer<'static>> = shown.certificates.into_iter().map(Into::into).collect();
    let peer = trust.verify(&chain, end, now)?;
    let scheme = u16::try_from(shown.scheme).map(SignatureScheme::from);
    let scheme = scheme.ok().filter(|scheme| SCHEMES.contains(scheme));
    let scheme = scheme.ok_or(ProofError::Scheme(shown.scheme))?;
    let algorithms = algorithms();
    let known = algorithms.mapping.iter().find(|(known, _)| *known == scheme);
    let algorithm = known.and_then(|(_, algorithms)| algorithms.first());
    let algorithm = algorithm.ok_or(ProofError::Scheme(shown.scheme))?;
    let leaf = chain.first().ok_or(TrustError::Length(0))?;
    EndEntityCert::try_from(leaf)
        .and_then(|key| key.verify_signature(*algorithm, &binding.message(leaf), &shown.signature))
        .map_err(|_| ProofError::Signature)?;
    Ok((peer, chain))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bulkhead_testbed::workload_api::{Authority, Svid};
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;
    use crate::IdentityError;

    const HERE: Binding = Binding([1; 32]);
    const HOUR: Duration = Duration::from_hours(1);

    fn trust(svid: &Svid) -> Trust {
        Trust::new("test.example".parse().unwrap(), [svid.bundle.as_slice().into()]).unwrap()
    }

    fn identity(svid: &Svid, me: &Peer) -> Result<Identity, IdentityError> {
        let key = PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone());
        Identity::new(vec![svid.x509_svid.clone().into()], key.into(), trust(svid), me)
    }

    fn check(shown: v1::Certificates, binding: &Binding, trust: &Trust, end: End) -> Result<Peer, String> {
        let seen = seen(shown, binding, trust, end, SystemTime::now());
        seen.map(|(peer, _)| peer).map_err(|error| error.to_string())
    }

    #[test]
    fn a_proof_holds_for_its_key_connection_and_authority_only() {
        let authority = Authority::new("test.example").unwrap();
        let node = Peer::Node("n1".to_owned());
        let svid = authority.svid("spiffe://test.example/node/n1", HOUR).unwrap();
        let ours = identity(&svid, &node).unwrap();
        let shown = || show(&ours, &HERE).unwrap();
        let trusted = trust(&svid);
        assert_eq!(check(shown(), &HERE, &trusted, End::Client), Ok(node.clone()));
        let refused = |shown, binding: &Binding, trust: &Trust, reason: &str| {
            let answer = check(shown, binding, trust, End::Client);
            assert!(
                answer.as_ref().is_err_and(|error| error.contains(reason)),
                "{reason}: {answer:?}"
            );
        };
        refused(shown(), &Binding([2; 32]), &trusted, "field signature");
        let foreign = Authority::new("test.example")
            .unwrap()
            .svid(&svid.spiffe_id, HOUR)
            .unwrap();
        refused(
            shown(),
            &HERE,
            &trust(&foreign),
            "no authority of trust domain test.example",
        );
        let mut broken = shown();
        broken.signature.truncate(8);
        refused(broken, &HERE, &trusted, "field signature");
        let mut old = shown();
        // SHA-1 with RSA.
        old.scheme = 0x0201;
        refused(old, &HERE, &trusted, "field scheme: 0x0201");
        refused(
            v1::Certificates::default(),
            &HERE,
            &trusted,
            "the chain has 0 certificates",
        );
        let long = v1::Certificates {
            certificates: vec![svid.x509_svid.clone(); 11],
            ..shown()
        };
        refused(long, &HERE, &trusted, "the chain has 11 certificates");
    }

    #[test]
    fn an_identity_is_ours_with_its_key() {
        let authority = Authority::new("test.example").unwrap();
        let svid = authority.svid("spiffe://test.example/node/n1", HOUR).unwrap();
        let error = |svid: &Svid, me: &Peer| identity(svid, me).map(drop).unwrap_err().to_string();
        let text = error(&svid, &Peer::Node("n2".to_owned()));
        assert!(
            text.contains("/node/n1's, and this is spiffe://test.example/node/n2"),
            "{text}"
        );
        let text = error(&svid, &Peer::Controller);
        assert!(text.contains("and this is spiffe://test.example/controller"), "{text}");
        let node = Peer::Node("n1".to_owned());
        let another = authority.svid(&svid.spiffe_id, HOUR).unwrap();
        let mixed = Svid {
            x509_svid_key: another.x509_svid_key.clone(),
            ..svid.clone()
        };
        assert!(error(&mixed, &node).contains("copied from different places"));
        let over = authority.svid(&svid.spiffe_id, Duration::ZERO).unwrap();
        // Until its last second is over.
        std::thread::sleep(Duration::from_millis(1_100));
        assert!(error(&over, &node).contains("is a clock wrong?"));
        let (one, other) = (identity(&svid, &node).unwrap(), identity(&another, &node).unwrap());
        assert!(one != other && one == one.clone() && !one.shows_the_same(&other));
    }
}
