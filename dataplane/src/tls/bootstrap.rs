//! The node's certificate from the controller's own authority: for its token, then for the certificate it has; kept on disk.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use bulkhead_identity::{Identity, Trust};
use bulkhead_proto::{
    spiffe::{Peer, TrustDomain},
    v1::{IssueRequest, bootstrap_service_client::BootstrapServiceClient},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

use super::{open, reached};

/// Largest token and certificate file that is read, bytes.
const FILE_MAX: u64 = 1 << 20;
/// Between tries to renew a certificate that is still good.
const RETRY: Duration = Duration::from_secs(30);

/// What is needed to ask the controller.
#[derive(Clone, Debug)]
pub(crate) struct Bootstrap {
    pub(super) node: String,
    pub(super) trust_domain: TrustDomain,
    /// Certificate of the authority to trust.
    pub(super) ca_file: PathBuf,
    pub(super) token_file: PathBuf,
    /// Folder of `node.key` (PEM) and `node.der`.
    pub(super) folder: PathBuf,
}

impl Bootstrap {
    /// The certificate to connect with: the one on disk, or a newer one when two thirds of its time are over.
    pub(super) async fn identity(&self, address: &str) -> Result<Identity> {
        let now = SystemTime::now();
        match self.kept() {
            Ok(kept) if kept.renew_at() > now => Ok(kept),
            Ok(kept) => match self.obtain(address, Some(&kept)).await {
                Ok(new) => Ok(new),
                // What is left of the old one is still good.
                Err(error) => {
                    tracing::warn!("the node's certificate is not renewed yet: {error:#}");
                    Ok(kept)
                }
            },
            Err(reason) => {
                tracing::debug!("no certificate is kept: {reason:#}");
                self.obtain(address, None).await
            }
        }
    }

    /// A newer certificate than this, when it is time for one.
    pub(super) async fn newer(&self, address: &str, old: &Identity) -> Identity {
        reached(old.renew_at()).await;
        loop {
            match self.obtain(address, Some(old)).await {
                Ok(new) => return new,
                Err(error) => tracing::warn!("the node's certificate is not renewed yet: {error:#}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The certificate and key on disk, if they are this node's and not over.
    fn kept(&self) -> Result<Identity> {
        let read = |name: &str| read(&self.folder.join(name)).with_context(|| name.to_owned());
        let certificate = CertificateDer::from(read("node.der")?);
        let key = PrivateKeyDer::from_pem_slice(&read("node.key")?).context("node.key")?;
        self.checked(certificate, key)
    }

    fn checked(&self, certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Result<Identity> {
        let me = Peer::Node(self.node.clone());
        Ok(Identity::new(vec![certificate], key, self.trust()?, &me)?)
    }

    fn trust(&self) -> Result<Trust> {
        let path = &self.ca_file;
        let pem = read(path).with_context(|| format!("authority's certificate {} (--ca-file)", path.display()))?;
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} is no PEM certificate", path.display()))?;
        Trust::new(self.trust_domain.clone(), authorities).with_context(|| path.display().to_string())
    }

    /// A new certificate: for the one we have, or for the token.
    async fn obtain(&self, address: &str, old: Option<&Identity>) -> Result<Identity> {
        let token = if old.is_some() {
            String::new()
        } else {
            let path = &self.token_file;
            let token = read(path).with_context(|| format!("token {}", path.display()))?;
            String::from_utf8(token)
                .with_context(|| format!("token {} is no text", path.display()))?
                .trim()
                .to_owned()
        };
        let key = KeyPair::generate().context("making a key")?;
        let request = CertificateParams::new(Vec::new())
            .and_then(|params| params.serialize_request(&key))
            .context("making a certificate request")?;
        let (channel, _) = open(address, &self.trust()?, old).await?;
        let request = IssueRequest {
            node: self.node.clone(),
            token,
            certificate_signing_request: request.der().to_vec(),
        };
        let issued = BootstrapServiceClient::new(channel).issue(request).await;
        let issued =
            issued.map_err(|status| anyhow::anyhow!("the controller gives no certificate: {}", status.message()))?;
        let leaf = issued
            .into_inner()
            .certificates
            .into_iter()
            .next()
            .context("the controller's answer has no certificate")?;
        let certificate = CertificateDer::from(leaf);
        let identity = self
            .checked(
                certificate.clone(),
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .context("the certificate the controller gave")?;
        self.keep(&certificate, &key)?;
        tracing::info!(
            node = self.node,
            renewed = old.is_some(),
            "the controller gave a certificate"
        );
        Ok(identity)
    }

    /// Writes both files; each is whole or the old one. A crash between them leaves a pair that does not fit, which is not
    /// taken when it is read.
    fn keep(&self, certificate: &[u8], key: &KeyPair) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .and_then(|()| replace(&self.folder.join("node.key"), key.serialize_pem().as_bytes()))
            .and_then(|()| replace(&self.folder.join("node.der"), certificate))
            .with_context(|| format!("keeping the certificate in {}", self.folder.display()))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > FILE_MAX {
        anyhow::bail!("is {size} bytes long; at most {FILE_MAX} are read");
    }
    Ok(fs::read(path)?)
}

/// Replaces a file with one only its owner may read.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
