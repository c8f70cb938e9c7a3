//! Certificates from files, looked at again and again: whoever renews them replaces them in place, or swaps a link above them
//! as kubelet does, and a look at three small files costs less than being told of every way to do so.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{Identity, Trust, source::Follower};

/// Between looks.
const LOOK: Duration = Duration::from_secs(1);
/// Largest file that is read, bytes.
const FILE_MAX: u64 = 1 << 20;

type Texts = [Vec<u8>; 3];

/// Follows certificate, key and authorities until nobody listens.
pub(crate) async fn follow(paths: [PathBuf; 3], mut follower: Follower) {
    let mut taken: Option<Texts> = None;
    loop {
        match read(&paths) {
            Ok(texts) if taken.as_ref() == Some(&texts) => {}
            // A pair that does not fit is one that is being replaced; the next look finds the rest.
            Ok(texts) => match load(&paths, &texts, &follower) {
                Ok(identity) => {
                    taken = Some(texts);
                    follower.publish(identity);
                }
                Err(error) => follower.complain(format!("{error:#}")),
            },
            Err(error) => follower.complain(format!("{error:#}")),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = follower.unheard() => return,
        }
    }
}

const OPTIONS: [&str; 3] = ["--tls-cert", "--tls-key", "--tls-ca"];

fn read(paths: &[PathBuf; 3]) -> Result<Texts> {
    let mut texts = Texts::default();
    for ((path, option), text) in paths.iter().zip(OPTIONS).zip(&mut texts) {
        let named = || format!("{option} {}", path.display());
        let size = fs::metadata(path).with_context(named)?.len();
        if size > FILE_MAX {
            bail!("{} is {size} bytes long; at most {FILE_MAX} are read", named());
        }
        *text = fs::read(path).with_context(named)?;
    }
    Ok(texts)
}

fn load(paths: &[PathBuf; 3], [chain, key, authorities]: &Texts, follower: &Follower) -> Result<Identity> {
    let [chain_path, key_path, authorities_path] = paths.each_ref().map(|path| path.display());
    let key = PrivateKeyDer::from_pem_slice(key).with_context(|| format!("--tls-key {key_path} is no PEM key"))?;
    let authorities = certificates(authorities).with_context(|| format!("--tls-ca {authorities_path}"))?;
    let trust = Trust::new(follower.trust_domain.clone(), authorities)
        .with_context(|| format!("--tls-ca {authorities_path}"))?;
    let chain = certificates(chain).with_context(|| format!("--tls-cert {chain_path}"))?;
    Identity::new(chain, key, trust, &follower.me).with_context(|| format!("--tls-cert {chain_path}"))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .context("not PEM certificates")
}
