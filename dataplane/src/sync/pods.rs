//! Pods that come and go on this node, and who waits for their first packet to be judged.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use bulkhead_policy::model::WorkloadKey;
use tokio::sync::oneshot;

use super::Sync;
use crate::endpoints::{Pod, Pods};

/// Why a pod beyond the limit is not waited for.
pub(crate) const TOO_MANY: &str = "this node has as many pods as an agent can keep (4096)";

/// Somebody who waits until a pod is judged.
#[derive(Debug)]
pub(super) struct Waiter {
    key: WorkloadKey,
    uid: String,
    addresses: BTreeSet<IpAddr>,
    reply: oneshot::Sender<()>,
}

impl Sync {
    /// Changes what is known of this node's pods, and takes the consequences.
    pub(super) fn change_pods(&mut self, change: impl FnOnce(&mut Pods) -> BTreeSet<WorkloadKey>) {
        let mut touched = false;
        let change = |pods: &mut Pods| {
            let keys = change(pods);
            touched = !keys.is_empty();
            keys
        };
        let found = self.endpoints.change_pods(change, Instant::now());
        if touched {
            self.save_pods();
        }
        if found && let Err(error) = self.replan() {
            tracing::warn!("attaching pods: {error}");
        }
        self.publish();
    }

    fn save_pods(&self) {
        let path = self.store.pods_path();
        if let Err(error) = self.endpoints.pods().save(&path) {
            tracing::warn!(
                "{}: {error}; a restarted agent will look for pods only when the container runtime answers",
                path.display()
            );
        }
    }

    /// A pod waits to start.
    pub(super) fn attach_pod(&mut self, pod: Pod, reply: oneshot::Sender<()>) {
        let waiter = Waiter {
            key: pod.key.clone(),
            uid: pod.uid.clone(),
            addresses: pod.place.addresses.clone(),
            reply,
        };
        let mut room = false;
        self.change_pods(|pods| {
            let key = pod.key.clone();
            room = pods.add(pod);
            room.then_some(key).into_iter().collect()
        });
        if room {
            self.waiters.push(waiter);
            self.answer_waiters();
        } else {
            tracing::warn!(endpoint = %waiter.key, "{TOO_MANY}");
        }
    }

    /// A pod starts although nothing judges it.
    pub(super) fn starts_unjudged(&mut self, key: &WorkloadKey) {
        self.change_pods(|pods| {
            pods.runs_unjudged(key);
            BTreeSet::from([key.clone()])
        });
    }

    /// Tells those whose pod is judged now; forgets those who wait no more.
    pub(super) fn answer_waiters(&mut self) {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if waiter.reply.is_closed() {
                continue;
            }
            if self.is_judged(&waiter) {
                // Whoever asked may have gone this moment.
                waiter.reply.send(()).ok();
            } else {
                self.waiters.push(waiter);
            }
        }
    }

    /// The pod's device has our programs, its slot has its rules, and these know its addresses.
    fn is_judged(&self, waiter: &Waiter) -> bool {
        let endpoint = self.planner.state().endpoints.get(&waiter.key);
        self.bypass.is_none()
            && endpoint
                .is_some_and(|endpoint| endpoint.uid == waiter.uid && waiter.addresses.is_subset(&endpoint.addresses))
            && self.live(&waiter.key).0.is_some()
    }

    /// Pods that run here and are not judged.
    pub(super) fn unmanaged(&self) -> u32 {
        let judged = |pod: &&Pod| {
            let endpoint = self.planner.state().endpoints.get(&pod.key);
            endpoint.is_some_and(|endpoint| endpoint.uid == pod.uid) && self.live(&pod.key).0.is_some()
        };
        let pods = self.endpoints.pods();
        let count = pods
            .iter()
            .filter(|pod| pods.ran_unjudged(&pod.key) && !judged(pod))
            .count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}
