//! Who is at the other end of a TLS connection: the SPIFFE ID of its certificate, and the constraints such a certificate is
//! under. That the certificate is signed by the authority we trust is checked before, by the TLS library.
//!
//! Source: SPIFFE X.509-SVID specification, sections 2 (SPIFFE ID), 4 (constraints), 5 (validation).

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
    time::ASN1Time,
};

/// The DNS name that every controller's certificate has beside its SPIFFE ID, wherever it listens: TLS libraries ask for one.
pub const CONTROLLER_NAME: &str = "bulkhead-controller";
/// Longest name of a node: that of a DNS name.
const NODE_NAME_MAX: usize = 253;
/// Longest trust domain (SPIFFE ID specification, section 2.1).
const TRUST_DOMAIN_MAX: usize = 255;

/// A SPIFFE trust domain, as in `spiffe://cluster.local/…`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrustDomain(String);

/// Who a certificate of our trust domain names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// `spiffe://<trust domain>/node/<name>`.
    Node(String),
    /// `spiffe://<trust domain>/controller`.
    Controller,
}

/// Why a certificate is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpiffeError {
    /// Not a certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// Not yet, or not any more.
    #[error("the certificate is valid from {from} to {to}, and it is {now} now; is a clock wrong?")]
    NotValid {
        /// First second.
        from: String,
        /// Last second.
        to: String,
        /// Our clock.
        now: String,
    },
    /// A leaf certificate may not sign others.
    #[error("the certificate is one of an authority (CA: TRUE), not of a workload")]
    Authority,
    /// The key's usages are missing or wrong.
    #[error("the certificate's key usage is not right: {0}")]
    KeyUsage(&'static str),
    /// The extended usage is missing or wrong.
    #[error("the certificate may not be used for this end of a connection: {0} is not among its extended key usages")]
    ExtendedKeyUsage(&'static str),
    /// There must be exactly one URI.
    #[error("the certificate has {0} URI names; a SPIFFE certificate has exactly one")]
    UriNames(usize),
    /// The URI is no SPIFFE ID of ours.
    #[error("{id:?} is not an identity of trust domain {trust_domain}: {reason}")]
    Foreign {
        /// The URI, as it is in the certificate.
        id: String,
        /// What we trust.
        trust_domain: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The end of a connection a certificate is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Who opened it.
    Client,
    /// Who accepted it.
    Server,
}

impl TrustDomain {
    /// The SPIFFE ID of somebody in this trust domain.
    pub fn id(&self, peer: &Peer) -> String {
        match peer {
            Peer::Node(name) => format!("spiffe://{self}/node/{name}"),
            Peer::Controller => format!("spiffe://{self}/controller"),
        }
    }

    fn parse(&self, id: &str) -> Result<Peer, &'static str> {
        let rest = id.strip_prefix("spiffe://").ok_or("it does not begin with spiffe://")?;
        let (trust_domain, path) = rest.split_once('/').ok_or("it has no path")?;
        if trust_domain != self.0 {
            return Err("the trust domain is another");
        }
        if path == "controller" {
            return Ok(Peer::Controller);
        }
        let node = path
            .strip_prefix("node/")
            .ok_or("the path is neither node/NAME nor controller")?;
        if is_node_name(node) {
            Ok(Peer::Node(node.to_owned()))
        } else {
            Err("what follows node/ is not the name of a node")
        }
    }
}

impl FromStr for TrustDomain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if text.is_empty() || text.len() > TRUST_DOMAIN_MAX || !text.chars().all(letters) {
            return Err(format!(
                "{text:?} is not a trust domain: write up to {TRUST_DOMAIN_MAX} lower-case letters, digits, '.', '-' and '_', as in cluster.local"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// True for what the API server accepts as the name of a node: a DNS subdomain.
pub fn is_node_name(name: &str) -> bool {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        label.starts_with(letters) && label.ends_with(letters) && label.chars().all(|c| letters(c) || c == '-')
    };
    name.len() <= NODE_NAME_MAX && name.split('.').all(label)
}

/// Who a certificate (DER) names, if it is what a certificate of that end must be.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn peer(der: &[u8], trust_domain: &TrustDomain, end: End, now: SystemTime) -> Result<Peer, SpiffeError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| SpiffeError::Unreadable(error.to_string()))?;
    valid(&certificate, now)?;
    constraints(&certificate, end)?;
    let id = uri(&certificate)?;
    trust_domain.parse(&id).map_err(|reason| SpiffeError::Foreign {
        id,
        trust_domain: trust_domain.to_string(),
        reason,
    })
}

/// From when and until when a certificate (DER) is valid.
///
/// # Errors
/// When it cannot be read.
pub fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), SpiffeError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|error| SpiffeError::Unreadable(error.to_string()))?;
    let moment = |time: ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let validity = certificate.validity();
    Ok((moment(validity.not_before), moment(validity.not_after)))
}

fn valid(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), SpiffeError> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = ASN1Time::from_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX))
        .map_err(|error| SpiffeError::Unreadable(error.to_string()))?;
    let validity = certificate.validity();
    if validity.is_valid_at(now) {
        return Ok(());
    }
    Err(SpiffeError::NotValid {
        from: validity.not_before.to_string(),
        to: validity.not_after.to_string(),
        now: now.to_string(),
    })
}

fn constraints(certificate: &X509Certificate<'_>, end: End) -> Result<(), SpiffeError> {
    let unreadable = |error: x509_parser::error::X509Error| SpiffeError::Unreadable(error.to_string());
    if certificate
        .basic_constraints()
        .map_err(unreadable)?
        .is_some_and(|it| it.value.ca)
    {
        return Err(SpiffeError::Authority);
    }
    let usage = certificate.key_usage().map_err(unreadable)?;
    let usage = usage
        .ok_or(SpiffeError::KeyUsage("it names none; digitalSignature is needed"))?
        .value;
    if !usage.digital_signature() {
        return Err(SpiffeError::KeyUsage("digitalSignature is not among them"));
    }
    if usage.key_cert_sign() || usage.crl_sign() {
        return Err(SpiffeError::KeyUsage("it may sign certificates or revocation lists"));
    }
    let extended = certificate.extended_key_usage().map_err(unreadable)?.map(|it| it.value);
    let (named, word) = match end {
        End::Client => (extended.is_some_and(|it| it.client_auth), "clientAuth"),
        End::Server => (extended.is_some_and(|it| it.server_auth), "serverAuth"),
    };
    if named {
        Ok(())
    } else {
        Err(SpiffeError::ExtendedKeyUsage(word))
    }
}

/// The one URI among the certificate's names.
fn uri(certificate: &X509Certificate<'_>) -> Result<String, SpiffeError> {
    let names = certificate
        .extensions()
        .iter()
        .flat_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => names.general_names.as_slice(),
            _ => &[],
        });
    let uris: Vec<&str> = names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [one] => Ok((*one).to_owned()),
        other => Err(SpiffeError::UriNames(other.len())),
    }
}
