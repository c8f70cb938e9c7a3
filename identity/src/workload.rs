//! Certificates from a SPIFFE Workload API: one stream of everything it has for this process, opened again when it ends.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use futures::StreamExt as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::{WorkloadApiClient, WorkloadApiError, X509Context, transport::Endpoint};

use crate::{Identity, Trust, source::Follower};

/// First pause before another try; doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Identities that are named when ours is not among them.
const NAMED: usize = 5;

/// Time until the first answer on a stream.
const ANSWER: Duration = Duration::from_secs(10);

/// Follows the Workload API at a unix socket until nobody listens.
pub(crate) async fn follow(socket: &Path, mut follower: Follower) {
    let unheard = follower.unheard();
    let following = async {
        let mut pause = RETRY;
        loop {
            let answered = listen(socket, &mut follower).await;
            pause = if answered { RETRY } else { (pause * 2).min(RETRY_MAX) };
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = following => {}
        () = unheard => {}
    }
}

/// One connection, until it ends; true when certificates came over it.
async fn listen(socket: &Path, follower: &mut Follower) -> bool {
    let mut answered = false;
    let Err(error) = contexts(socket, follower, &mut answered).await else {
        return answered;
    };
    follower.complain(format!(
        "the SPIFFE Workload API at {} (--spiffe-endpoint-socket): {error:#}",
        socket.display()
    ));
    answered
}

async fn contexts(socket: &Path, follower: &mut Follower, answered: &mut bool) -> Result<()> {
    let client = WorkloadApiClient::connect(Endpoint::Unix(socket.to_owned())).await;
    let client = client.map_err(|error| {
        anyhow!("{error}; does the SPIFFE agent run on this node, and is the folder of its socket mounted here?")
    })?;
    let silent = || format!("no answer within {} s", ANSWER.as_secs());
    let first = async {
        let mut contexts = client.stream_x509_contexts().await?;
        Ok((contexts.next().await, contexts))
    };
    let (mut next, mut contexts) = tokio::time::timeout(ANSWER, first)
        .await
        .with_context(silent)?
        .map_err(|error| explained(&error, follower))?;
    while let Some(context) = next {
        let context = context.map_err(|error| explained(&error, follower))?;
        match take(&context, follower) {
            Ok(()) => *answered = true,
            Err(error) => follower.complain(format!(
                "what the SPIFFE Workload API at {} gives is not used: {error:#}",
                socket.display()
            )),
        }
        next = contexts.next().await;
    }
    bail!("the stream ended")
}

/// The error, and what to do when the reason is that nobody registered us.
fn explained(error: &WorkloadApiError, follower: &Follower) -> anyhow::Error {
    match error {
        WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_) => anyhow!(
            "{error}: create a registration entry of {} whose selectors fit this process, under the SPIFFE agent of this node",
            follower.id()
        ),
        other => anyhow!("{other}"),
    }
}

/// Publishes our part of what the Workload API has; a bundle that changed is taken even when our certificate is gone.
fn take(context: &X509Context, follower: &mut Follower) -> Result<()> {
    let trust_domain = spiffe::TrustDomain::new(follower.trust_domain.to_string()).context("--trust-domain")?;
    let bundle = context.bundle_set().get(&trust_domain).with_context(|| {
        format!("there is no bundle of {trust_domain}; --trust-domain must name the trust domain of the SPIFFE server")
    })?;
    let authorities = bundle
        .authorities()
        .iter()
        .map(|it| CertificateDer::from(it.as_bytes()));
    let trust = Trust::new(follower.trust_domain.clone(), authorities).context("the bundle")?;
    let id = follower.id();
    let Some(svid) = context.svids().iter().find(|svid| svid.spiffe_id().to_string() == id) else {
        if let Some(held) = follower.newest() {
            follower.publish(held.trusting(trust));
        }
        let given: Vec<String> = context
            .svids()
            .iter()
            .take(NAMED)
            .map(|svid| svid.spiffe_id().to_string())
            .collect();
        bail!(
            "it has {} for us and not {id}; create a registration entry of that name",
            given.join(", ")
        );
    };
    let chain = svid
        .cert_chain()
        .iter()
        .map(|it| CertificateDer::from(it.as_bytes().to_vec()))
        .collect();
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
    let identity = Identity::new(chain, key.into(), trust, &follower.me).context(id)?;
    follower.publish(identity);
    Ok(())
}
