//! The built-in certificate authority: signs for nodes and for this controller, and nothing else.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use bulkhead_identity::Trust;
use bulkhead_proto::spiffe::{CONTROLLER_NAME, Peer, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _,
};

/// How long the authority itself is valid.
const AUTHORITY_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Certificates begin a little before they are made: clocks differ.
const BACKDATE: Duration = Duration::from_mins(5);

/// An authority: its certificate and its key.
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    lifetime: Duration,
}

/// A certificate that was just made, and until when it is good.
pub(crate) struct Issued {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) not_after: SystemTime,
}

/// An authority as text, the way it is kept.
#[derive(Clone)]
pub(crate) struct Material {
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Material {
    /// A new one.
    pub(crate) fn generate(trust_domain: &TrustDomain) -> Result<Self> {
        let key = KeyPair::generate().context("making the authority's key")?;
        let mut params = lasting(AUTHORITY_LIFETIME)?;
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Bulkhead authority of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params
            .self_signed(&key)
            .context("signing the authority's certificate")?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// That of a folder (`ca.crt`, `ca.key`); made on first use.
    pub(crate) fn of_folder(folder: &Path, trust_domain: &TrustDomain) -> Result<Self> {
        let (certificate, key) = (folder.join("ca.crt"), folder.join("ca.key"));
        match (fs::read_to_string(&certificate), fs::read_to_string(&key)) {
            (Ok(certificate_pem), Ok(key_pem)) => Ok(Self {
                certificate_pem,
                key_pem,
            }),
            (Err(first), Err(second)) if [&first, &second].iter().all(|it| it.kind() == io::ErrorKind::NotFound) => {
                let made = Self::generate(trust_domain)?;
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)
                    .with_context(|| format!("making folder {}", folder.display()))?;
                // The key first: a certificate without a key would be mended by nobody.
                write_private(&key, &made.key_pem)?;
                write_private(&certificate, &made.certificate_pem)?;
                tracing::info!(folder = %folder.display(), %trust_domain, "made a certificate authority");
                Ok(made)
            }
            (Err(error), _) => Err(error).with_context(|| format!("reading {}", certificate.display())),
            (_, Err(error)) => Err(error).with_context(|| format!("reading {}", key.display())),
        }
    }
}

/// Writes a file only its owner may read; never over another.
fn write_private(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("making {}", path.display()))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("writing {}", path.display()))
}

/// Parameters of a certificate without any name, valid from a little before now.
fn lasting(lifetime: Duration) -> Result<CertificateParams> {
    let now = SystemTime::now();
    let mut params = CertificateParams::new(Vec::new()).context("certificate parameters")?;
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

impl Authority {
    /// Of what was kept. `lifetime` is that of the certificates it signs.
    pub(crate) fn new(material: &Material, trust_domain: TrustDomain, lifetime: Duration) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(material.certificate_pem.as_bytes())
            .context("the authority's certificate is no PEM certificate")?;
        let key = KeyPair::from_pem(&material.key_pem).context("the authority's key is no PEM private key")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).context("the authority's certificate")?;
        if parsed.public_key().raw != key.subject_public_key_info().as_slice() {
            bail!("the authority's key is not that of its certificate; were they copied from different places?");
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).context("the authority's certificate")?;
        Ok(Self {
            trust_domain,
            certificate,
            certificate_pem: material.certificate_pem.clone(),
            issuer,
            lifetime,
        })
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Trust in what it signs.
    pub(crate) fn trust(&self) -> Result<Trust> {
        Trust::new(self.trust_domain.clone(), [self.certificate.clone()]).context("the authority's certificate")
    }

    /// What nodes are given to trust.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for a node. Of the request, nothing but the public key is used; that its sender has the private one is
    /// checked by its signature.
    pub(crate) fn node(&self, node: &str, request: &[u8]) -> Result<Issued> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .context("field certificate_signing_request: not a PKCS #10 request signed by its own key")?;
        self.sign(
            &Peer::Node(node.to_owned()),
            &request.public_key,
            vec![ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    /// A key and certificate for this controller, which is asked by nodes and asks other replicas.
    pub(crate) fn controller(&self) -> Result<(Issued, PrivateKeyDer<'static>)> {
        let key = KeyPair::generate().context("making a key")?;
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issued = self.sign(&Peer::Controller, &key, usages)?;
        Ok((issued, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    /// A key and certificate for the API server to check under these names (DNS names or addresses); no node takes it for the
    /// controller's, because it has no SPIFFE ID.
    pub(crate) fn webhook(&self, names: &[String]) -> Result<(Issued, PrivateKeyDer<'static>)> {
        let key = KeyPair::generate().context("making a key")?;
        let mut params = lasting(self.lifetime)?;
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().with_context(|| format!("name {name:?}"))?),
            });
        }
        let issued = self.finish(params, &key, vec![ExtendedKeyUsagePurpose::ServerAuth], "the webhook")?;
        Ok((issued, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }

    fn sign(&self, peer: &Peer, key: &impl PublicKeyData, usages: Vec<ExtendedKeyUsagePurpose>) -> Result<Issued> {
        let mut params = lasting(self.lifetime)?;
        let id = self.trust_domain.id(peer);
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().context("SPIFFE ID")?)];
        if *peer == Peer::Controller {
            params
                .subject_alt_names
                .push(SanType::DnsName(CONTROLLER_NAME.try_into().context("server name")?));
        }
        self.finish(params, key, usages, id.as_str())
    }

    fn finish(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        usages: Vec<ExtendedKeyUsagePurpose>,
        whom: &str,
    ) -> Result<Issued> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let not_after = params.not_after.into();
        let certificate = params
            .signed_by(key, &self.issuer)
            .with_context(|| format!("signing for {whom}"))?;
        Ok(Issued {
            certificate: certificate.der().clone(),
            not_after,
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

/// An authority several tasks use.
pub(crate) type Shared = Arc<Authority>;
