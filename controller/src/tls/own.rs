//! What we show and whom we ask for what, at one moment: a configuration for new connections, replaced when our certificate or
//! the authorities do. Connections that are open keep theirs; `standing` says for how long.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use bulkhead_identity::{Identity, Trust};
use rustls::{
    ServerConfig,
    crypto::ring,
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use tokio::sync::watch;

use super::authority::Shared;

/// The wall clock may jump: it is looked at again this often.
const LOOK: Duration = Duration::from_secs(30);

/// Configurations of new connections.
pub(crate) type Configurations = watch::Receiver<Arc<ServerConfig>>;

/// Who connects to a listener that shows certificates of our own authority.
#[derive(Clone, Debug)]
pub(crate) enum Callers {
    /// Nodes: HTTP/2, and they show certificates, unless they ask for their first.
    Nodes,
    /// The API server: HTTP/1.1, checks that we have one of these names, and shows nothing.
    ApiServer(Vec<String>),
}

/// Certificates of our own authority, renewed for as long as somebody takes them.
pub(crate) fn certified(authority: Shared, callers: Callers) -> Result<Configurations> {
    let (config, mut at) = made(&authority, &callers)?;
    let (configs, receiver) = watch::channel(config);
    let renew = async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = configs.closed() => return,
            }
            if SystemTime::now() < at {
                continue;
            }
            match made(&authority, &callers) {
                Ok((config, next)) => {
                    configs.send_replace(config);
                    at = next;
                    tracing::info!("the controller's certificate was renewed");
                }
                Err(error) => tracing::error!("the controller's certificate is not renewed: {error:#}"),
            }
        }
    };
    drop(tokio::spawn(renew));
    Ok(receiver)
}

/// A new certificate for us, and when to make the next: after two thirds of its time.
fn made(authority: &Shared, callers: &Callers) -> Result<(Arc<ServerConfig>, SystemTime)> {
    let (issued, key) = match callers {
        Callers::Nodes => authority.controller()?,
        Callers::ApiServer(names) => authority.webhook(names)?,
    };
    let key = ring::sign::any_supported_type(&key).context("our own key")?;
    let now = SystemTime::now();
    let left = issued.not_after.duration_since(now).unwrap_or_default();
    let own = Arc::new(CertifiedKey::new(vec![issued.certificate], key));
    let config = match callers {
        Callers::Nodes => for_nodes(own, &authority.trust()?, true)?,
        Callers::ApiServer(_) => for_api_server(own)?,
    };
    Ok((config, now + left * 2 / 3))
}

/// What `identities` has, from the first on; whom it trusts goes to `trust`.
pub(crate) async fn followed(
    mut identities: watch::Receiver<Option<Identity>>,
    trust: watch::Sender<Option<Trust>>,
) -> Result<Configurations> {
    let of = |identity: &Identity| for_nodes(Arc::clone(identity.certified()), identity.trust(), false);
    let first = identities
        .wait_for(Option::is_some)
        .await
        .context("certificates")?
        .clone();
    let first = first.context("certificates")?;
    let (configs, receiver) = watch::channel(of(&first)?);
    trust.send_replace(Some(first.trust().clone()));
    let follow = async move {
        while identities.changed().await.is_ok() {
            let Some(identity) = identities.borrow_and_update().clone() else {
                continue;
            };
            match of(&identity) {
                Ok(config) => {
                    configs.send_replace(config);
                    trust.send_if_modified(|before| {
                        let changed = before.as_ref() != Some(identity.trust());
                        *before = Some(identity.trust().clone());
                        changed
                    });
                }
                Err(error) => tracing::error!("the newer certificate is not used: {error:#}"),
            }
        }
    };
    drop(tokio::spawn(follow));
    Ok(receiver)
}

/// `first` = who has no certificate may ask for one, and nothing else: each service checks who is asking.
fn for_nodes(own: Arc<CertifiedKey>, trust: &Trust, first: bool) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(trust.roots(), provider.clone());
    let clients = if first {
        clients.allow_unauthenticated()
    } else {
        clients
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .context("TLS 1.3")?
        .with_client_cert_verifier(clients.build().context("checking of client certificates")?)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn for_api_server(own: Arc<CertifiedKey>) -> Result<Arc<ServerConfig>> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .context("TLS 1.3")?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
