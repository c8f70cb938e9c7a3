//! The start gate: whether a pod that has just got its network may start, asked by the CNI plugin.
//!
//! ```text
//! judged in time                                          → ENFORCED
//! the node never had a state, and no controller is there  → UNMANAGED at once    (`strict`: REFUSED)
//! it never had one, and none came in time                 → UNMANAGED            (`strict`: REFUSED)
//! a pod of a control namespace was not judged in time     → UNMANAGED, also when strict: it may be the controller
//! a bypass is in force                                    → UNMANAGED at once
//! any other pod was not judged in time                    → REFUSED, and the runtime tries again
//! ```

use std::{
    collections::BTreeSet,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::SyncSender,
    },
    time::Duration,
};

use bulkhead_policy::model::WorkloadKey;
use bulkhead_proto::{
    convert::address_from_bytes,
    v1::{Admission, AttachPodRequest, AttachPodResponse, CheckPodRequest},
};
use clap::ValueEnum;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};
use tonic::Status;

use crate::{
    endpoints::{Place, Pod},
    stream::Connection,
    sync::{Holding, Input, TOO_MANY},
};

/// Longest time a pod is waited for; runtimes give a CNI plugin far more.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Pause before a full queue is tried again.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// What happens to a pod on a node that never had a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum StartGate {
    /// It starts unmanaged, is counted, and is judged when the controller arrives.
    #[default]
    Open,
    /// It does not start.
    Strict,
}

/// How often pods were let through, and how.
#[derive(Debug, Default)]
pub(crate) struct Admissions {
    pub(crate) enforced: AtomicU64,
    pub(crate) unmanaged: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) start: StartGate,
    /// Namespaces whose pods may start while the controller is away: it runs in one of them.
    pub(crate) control: BTreeSet<String>,
    pub(crate) sync: SyncSender<Input>,
    pub(crate) holding: watch::Receiver<Holding>,
    pub(crate) connection: watch::Receiver<Connection>,
    pub(crate) admissions: Admissions,
}

impl Gate {
    /// Waits until the pod is judged, or says what else is to happen to it.
    pub(crate) async fn attach(&self, request: AttachPodRequest) -> Result<AttachPodResponse, Status> {
        let wait = Duration::from_millis(request.wait_ms.into()).min(WAIT_MAX);
        let end = Instant::now() + wait;
        let pod = pod(request)?;
        let (key, uid) = (pod.key.clone(), pod.uid.clone());
        let (reply, judged) = oneshot::channel();
        let pod = Box::new(pod);
        self.tell(Input::Attach { pod, reply }, end).await?;
        let judged = tokio::select! {
            result = timeout_at(end, judged) => match result {
                Ok(Ok(())) => true,
                Ok(Err(_)) => return Ok(self.refuse(TOO_MANY.to_owned())),
                Err(_) => false,
            },
            () = self.pointless() => false,
        };
        if judged {
            self.admissions.enforced.fetch_add(1, Ordering::Relaxed);
            return Ok(answer(Admission::Enforced, String::new()));
        }
        let why = self.why(&key, &uid);
        if let Some(exception) = self.exception(&key.namespace) {
            let input = Input::StartsUnjudged(key.clone());
            self.tell(input, Instant::now() + WAIT_MAX).await?;
            self.admissions.unmanaged.fetch_add(1, Ordering::Relaxed);
            let reason = format!("{exception}; {why}");
            tracing::warn!(endpoint = %key, "starts without rules: {reason}");
            Ok(answer(Admission::Unmanaged, reason))
        } else {
            tracing::warn!(endpoint = %key, "does not start yet: {why}");
            Ok(self.refuse(why))
        }
    }

    /// What is so of a pod now.
    pub(crate) fn check(&self, request: CheckPodRequest) -> AttachPodResponse {
        let key: WorkloadKey = request.workload.unwrap_or_default().into();
        let why = self.why(&key, &request.pod_uid);
        if why.is_empty() {
            return answer(Admission::Enforced, why);
        }
        match self.exception(&key.namespace) {
            Some(exception) => answer(Admission::Unmanaged, format!("{exception}; {why}")),
            None => answer(Admission::Refused, why),
        }
    }

    /// Done when there is nothing to wait for.
    async fn pointless(&self) {
        let (mut holding, mut connection) = (self.holding.clone(), self.connection.clone());
        loop {
            let (ever, bypassed) = {
                let holding = holding.borrow_and_update();
                (holding.ever, holding.bypass.is_some())
            };
            let connected = connection.borrow_and_update().connected;
            if bypassed || (!ever && !connected) {
                return;
            }
            let gone = tokio::select! {
                changed = holding.changed() => changed.is_err(),
                changed = connection.changed() => changed.is_err(),
            };
            if gone {
                return;
            }
        }
    }

    /// Why a pod that is not judged may start all the same.
    fn exception(&self, namespace: &str) -> Option<&'static str> {
        let holding = self.holding.borrow();
        if holding.bypass.is_some() {
            return Some("nothing on this node is judged: a bypass is in force");
        }
        if self.control.contains(namespace) {
            return Some("pods of its namespace may start without rules (option --control-namespace)");
        }
        (!holding.ever && self.start == StartGate::Open)
            .then_some("this node has never had rules (option --start-gate open)")
    }

    /// Why a pod is not judged; empty when it is.
    fn why(&self, key: &WorkloadKey, uid: &str) -> String {
        let holding = self.holding.borrow();
        let of_key = |workload: &bulkhead_proto::v1::WorkloadName| {
            workload.namespace == key.namespace && workload.name == key.name
        };
        let known = holding
            .generations
            .iter()
            .find(|known| known.workload.as_ref().is_some_and(of_key));
        match known {
            Some(known) if known.pod_uid == uid && known.enforced => String::new(),
            Some(known) if known.pod_uid == uid => known.why.clone(),
            Some(known) => format!(
                "the controller knows a pod of that name with uid {}, not {uid}",
                known.pod_uid
            ),
            None => {
                let connection = self.connection.borrow();
                if connection.connected {
                    "the controller has not sent its rules (yet); does it see the pod, and are its addresses in the node's pod ranges?"
                        .to_owned()
                } else {
                    format!(
                        "its rules are not here and the controller is away: {}",
                        connection.error
                    )
                }
            }
        }
    }

    fn refuse(&self, reason: String) -> AttachPodResponse {
        self.admissions.refused.fetch_add(1, Ordering::Relaxed);
        answer(Admission::Refused, reason)
    }

    /// Hands something to the sync thread, when it has room.
    pub(crate) async fn tell(&self, input: Input, until: Instant) -> Result<(), Status> {
        let mut input = input;
        loop {
            match self.sync.try_send(input) {
                Ok(()) => return Ok(()),
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => {
                    return Err(Status::unavailable("the agent is stopping"));
                }
                Err(std::sync::mpsc::TrySendError::Full(back)) if Instant::now() < until => input = back,
                Err(std::sync::mpsc::TrySendError::Full(_)) => {
                    return Err(Status::resource_exhausted(
                        "the agent is busy with an update; try again",
                    ));
                }
            }
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
    }
}

fn answer(admission: Admission, reason: String) -> AttachPodResponse {
    AttachPodResponse {
        admission: admission.into(),
        reason,
    }
}

fn pod(request: AttachPodRequest) -> Result<Pod, Status> {
    let missing = |field: &str| Status::invalid_argument(format!("field {field}: is empty"));
    let key: WorkloadKey = request.workload.unwrap_or_default().into();
    let fields = [
        ("workload.name", &key.name),
        ("workload.namespace", &key.namespace),
        ("pod_uid", &request.pod_uid),
        ("sandbox", &request.sandbox),
        ("netns", &request.netns),
        ("interface", &request.interface),
    ];
    if let Some((field, _)) = fields.into_iter().find(|(_, value)| value.is_empty()) {
        return Err(missing(field));
    }
    let addresses = request
        .addresses
        .iter()
        .map(|bytes| address_from_bytes("addresses", bytes))
        .collect::<Result<BTreeSet<_>, _>>()
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Pod {
        key,
        uid: request.pod_uid,
        sandbox: request.sandbox,
        place: Place {
            netns: request.netns.into(),
            interface: request.interface,
            addresses,
        },
        images: BTreeSet::new(),
    })
}
