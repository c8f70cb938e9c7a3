//! Which replica writes: the one that holds the Lease, which says where the others reach it. A holder that is not heard of for
//! [`HELD`] has lost it, by each candidate's own clock, so that clocks need not agree; one that ends gives it back.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::{oneshot, watch};

use super::MANAGER;
use crate::session::raised;

/// How long a Lease is held without being renewed; what the Lease says, in seconds.
const HELD: Duration = Duration::from_secs(15);
const HELD_SECONDS: i32 = 15;
/// A holder that could not renew for so long stops writing, before another one begins.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Between renewals.
const RENEW: Duration = Duration::from_secs(2);
/// Between looks of who does not hold it: without a leader, replicas do not know at once what each other's nodes announce.
const LOOK: Duration = Duration::from_millis(500);

/// Annotation of the Lease: where the holder takes reports of other replicas, ADDRESS:PORT.
const ADDRESS: &str = "bulkhead.dev/address";

/// Who we are to other replicas, and where who leads is noted.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) instance: String,
    /// Where other replicas reach us.
    pub(crate) address: Option<SocketAddr>,
    /// Where the replica that writes is reached; `None` while that is us, or nobody, or it does not say.
    pub(crate) leader: watch::Sender<Option<SocketAddr>>,
    /// The process ends.
    pub(crate) stop: watch::Receiver<bool>,
    /// Told when the Lease is given back, or was not held.
    pub(crate) given_back: oneshot::Sender<()>,
}

/// What a candidate knows of the Lease.
struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// Where other replicas reach us.
    address: Option<SocketAddr>,
    /// Where the holder is reached, when it is another one and says so.
    holder: Option<SocketAddr>,
    /// The version of another one's Lease, and since when it has been that.
    seen: Option<(String, Instant)>,
}

/// Tries to hold the Lease until the process ends, and gives it back; `lead` says whether this process holds it.
pub(super) async fn run(client: Client, namespace: String, mut who: Identity, lead: watch::Sender<bool>) {
    let mut candidate = Candidate {
        api: Api::namespaced(client, &namespace),
        identity: who.instance,
        address: who.address,
        holder: None,
        seen: None,
    };
    let mut renewed = Instant::now();
    let mut complained = false;
    loop {
        let begin = Instant::now();
        let held = match tokio::time::timeout(GIVE_UP, candidate.look()).await {
            Ok(Ok(held)) => {
                complained = false;
                renewed = if held { begin } else { renewed };
                held
            }
            Ok(Err(error)) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(
                        namespace, %error,
                        "the Lease {MANAGER} cannot be read or written, so no status is written; does the namespace of --namespace exist?"
                    );
                }
                *lead.borrow() && renewed.elapsed() < GIVE_UP
            }
            Err(_) => false,
        };
        let holder = candidate.holder.filter(|_| !held);
        who.leader
            .send_if_modified(|known| std::mem::replace(known, holder) != holder);
        if lead.send_replace(held) != held {
            let said = if held {
                "writes status from now on"
            } else {
                "writes status no more"
            };
            tracing::info!(identity = candidate.identity, "{said}");
        }
        tokio::select! {
            () = tokio::time::sleep(if held { RENEW } else { LOOK }) => {}
            () = raised(&mut who.stop) => break,
        }
    }
    if lead.send_replace(false)
        && let Err(error) = candidate.give_back().await
    {
        tracing::warn!(%error, "the Lease {MANAGER} was not given back: another replica has it in {} s", HELD.as_secs());
    }
    // Nobody waits for it when the process ends for another reason.
    who.given_back.send(()).ok();
}

impl Candidate {
    /// Looks at the Lease, and takes or renews it when that may be; true when it is held.
    async fn look(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.api.get_opt(MANAGER).await? else {
            let mut lease = Lease {
                metadata: ObjectMeta {
                    name: Some(MANAGER.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            self.sign(&mut lease);
            return taken(self.api.create(&PostParams::default(), &lease).await);
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        let holder = holder.filter(|holder| !holder.is_empty());
        if holder.as_ref().is_some_and(|holder| *holder != self.identity) && !self.expired(&lease) {
            let address = lease.metadata.annotations.as_ref().and_then(|all| all.get(ADDRESS));
            self.holder = address.and_then(|address| address.parse().ok());
            return Ok(false);
        }
        lease.spec = Some(self.spec(lease.spec));
        self.sign(&mut lease);
        // The version that was read goes with it: of two candidates one is refused.
        taken(self.api.replace(MANAGER, &PostParams::default(), &lease).await)
    }

    /// Leaves the Lease to whoever looks next.
    async fn give_back(&self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(MANAGER).await? else {
            return Ok(());
        };
        let Some(spec) = lease
            .spec
            .as_mut()
            .filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
        else {
            return Ok(());
        };
        spec.holder_identity = None;
        lease.metadata.annotations.get_or_insert_default().remove(ADDRESS);
        taken(self.api.replace(MANAGER, &PostParams::default(), &lease).await).map(drop)
    }

    /// Says where we are reached.
    fn sign(&mut self, lease: &mut Lease) {
        self.holder = None;
        let annotations = lease.metadata.annotations.get_or_insert_default();
        match self.address {
            Some(address) => drop(annotations.insert(ADDRESS.to_owned(), address.to_string())),
            None => drop(annotations.remove(ADDRESS)),
        }
    }

    /// Another one's Lease that has not changed for long enough.
    fn expired(&mut self, lease: &Lease) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.seen {
            Some((seen, since)) if *seen == version => since.elapsed() >= HELD,
            _ => {
                self.seen = Some((version, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, old: Option<LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let old = old.unwrap_or_default();
        let same = old.holder_identity.as_ref() == Some(&self.identity);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(HELD_SECONDS),
            acquire_time: if same { old.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(old.lease_transitions.unwrap_or_default() + i32::from(!same)),
            ..LeaseSpec::default()
        }
    }
}

/// Refused because another candidate was faster is no error.
fn taken(answer: kube::Result<Lease>) -> kube::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}
