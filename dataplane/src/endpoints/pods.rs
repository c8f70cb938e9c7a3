//! The pods that this node itself knows of: what the CNI plugin said when they got their network, and what the container
//! runtime says of all that run. It names namespace and uid; the state says who is wanted, by the same uid.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use bulkhead_policy::model::WorkloadKey;
use serde::{Deserialize, Serialize};

/// Most pods of a node, as many as a controller believes of one announcement.
pub(crate) const PODS_MAX: usize = 4096;

/// Where a pod is on this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Path of its network namespace.
    pub(crate) netns: PathBuf,
    /// Name of its device inside.
    pub(crate) interface: String,
    /// Addresses that the CNI gave it; never read from the device, where a pod can add some.
    pub(crate) addresses: BTreeSet<IpAddr>,
}

/// A pod of this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Pod {
    /// Name.
    pub(crate) key: WorkloadKey,
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// Id of its sandbox at the runtime.
    pub(crate) sandbox: String,
    /// Where it is.
    pub(crate) place: Place,
    /// `sha256:…` of the images of its containers that run.
    pub(crate) images: BTreeSet<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    pod: Pod,
    /// The runtime has listed its sandbox as running. Until then its absence from a list says nothing.
    listed: bool,
    /// Something may run in it that was not judged: its connections are older than our programs.
    ran_unjudged: bool,
}

/// The pods of this node by name; of two sandboxes of one pod, the newer one.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    known: BTreeMap<WorkloadKey, Known>,
}

impl Pods {
    /// What an earlier agent knew: a restart must find every device at once, not when the runtime answers.
    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text?,
        };
        let all: Vec<Known> = serde_json::from_slice(&text).map_err(io::Error::other)?;
        let known = all.into_iter().take(PODS_MAX);
        Ok(Self {
            known: known.map(|known| (known.pod.key.clone(), known)).collect(),
        })
    }

    /// Keeps what is known now.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let all: Vec<&Known> = self.known.values().collect();
        let fresh = path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&all)?)?;
        fs::rename(&fresh, path)
    }

    /// A pod got its network and does not run yet. False: there are too many.
    pub(crate) fn add(&mut self, pod: Pod) -> bool {
        if self.known.len() >= PODS_MAX && !self.known.contains_key(&pod.key) {
            return false;
        }
        let known = Known {
            pod,
            listed: false,
            ran_unjudged: false,
        };
        self.known.insert(known.pod.key.clone(), known);
        true
    }

    /// The pod starts without being judged.
    pub(crate) fn runs_unjudged(&mut self, key: &WorkloadKey) {
        if let Some(known) = self.known.get_mut(key) {
            known.ran_unjudged = true;
        }
    }

    /// A sandbox loses its network; gives whose it was.
    pub(crate) fn remove(&mut self, sandbox: &str) -> Option<WorkloadKey> {
        let key = self
            .known
            .iter()
            .find(|(_, known)| known.pod.sandbox == sandbox)
            .map(|(key, _)| key.clone())?;
        self.known.remove(&key);
        Some(key)
    }

    /// Takes everything the runtime says runs; gives the names of pods that are new, changed or gone.
    ///
    /// A sandbox that the plugin named and the runtime has not listed yet stays: it is being made.
    pub(crate) fn list(&mut self, running: Vec<Pod>) -> BTreeSet<WorkloadKey> {
        let mut changed = BTreeSet::new();
        let mut names = BTreeSet::new();
        for pod in running.into_iter().take(PODS_MAX) {
            names.insert(pod.key.clone());
            match self.known.get_mut(&pod.key) {
                Some(known) if known.pod.sandbox == pod.sandbox => {
                    known.listed = true;
                    // The plugin's word on place and addresses is the runtime's own.
                    if known.pod.images != pod.images {
                        known.pod.images = pod.images;
                        changed.insert(pod.key);
                    }
                }
                // A newer sandbox is being made: the one listed is the one it replaces.
                Some(known) if !known.listed => {}
                _ => {
                    changed.insert(pod.key.clone());
                    let known = Known {
                        pod,
                        listed: true,
                        ran_unjudged: true,
                    };
                    self.known.insert(known.pod.key.clone(), known);
                }
            }
        }
        let gone: Vec<WorkloadKey> = self
            .known
            .iter()
            .filter(|(key, known)| known.listed && !names.contains(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.known.remove(&key);
            changed.insert(key);
        }
        changed
    }

    /// A pod by name.
    pub(crate) fn get(&self, key: &WorkloadKey) -> Option<&Pod> {
        Some(&self.known.get(key)?.pod)
    }

    /// True when the pod may have connections that nobody judged.
    pub(crate) fn ran_unjudged(&self, key: &WorkloadKey) -> bool {
        self.known.get(key).is_some_and(|known| known.ran_unjudged)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Pod> {
        self.known.values().map(|known| &known.pod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, sandbox: &str) -> Pod {
        Pod {
            key: WorkloadKey {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
            },
            uid: format!("uid-{name}"),
            sandbox: sandbox.to_owned(),
            place: Place {
                netns: format!("/run/netns/{sandbox}").into(),
                interface: "eth0".to_owned(),
                addresses: BTreeSet::new(),
            },
            images: BTreeSet::new(),
        }
    }

    fn sandboxes(pods: &Pods) -> Vec<&str> {
        pods.iter().map(|pod| pod.sandbox.as_str()).collect()
    }

    #[test]
    fn a_pod_that_is_being_made_is_not_taken_away_by_a_list_without_it() {
        let mut pods = Pods::default();
        assert!(pods.add(pod("web", "new")));
        assert!(pods.list(vec![pod("db", "old")]).contains(&pod("db", "").key));
        assert_eq!(sandboxes(&pods), ["old", "new"]);
        // Once listed, its absence means its end.
        pods.list(vec![pod("web", "new")]);
        assert_eq!(sandboxes(&pods), ["new"]);
        assert_eq!(pods.list(Vec::new()), [pod("web", "").key].into());
        assert_eq!(sandboxes(&pods), Vec::<&str>::new());
    }

    #[test]
    fn a_restarted_sandbox_replaces_the_former_one_and_not_the_other_way_round() {
        let mut pods = Pods::default();
        pods.list(vec![pod("web", "first")]);
        assert!(pods.ran_unjudged(&pod("web", "").key));
        assert!(pods.add(pod("web", "second")));
        assert!(!pods.ran_unjudged(&pod("web", "").key));
        // The runtime still lists the first.
        assert!(pods.list(vec![pod("web", "first")]).is_empty());
        assert_eq!(sandboxes(&pods), ["second"]);
        // The plugin's late DEL of the first is not about the second.
        assert_eq!(pods.remove("first"), None);
        assert_eq!(pods.remove("second"), Some(pod("web", "").key));
        // A restart that only the runtime told of.
        pods.list(vec![pod("web", "third")]);
        assert_eq!(pods.list(vec![pod("web", "fourth")]), [pod("web", "").key].into());
        assert_eq!(sandboxes(&pods), ["fourth"]);
    }

    #[test]
    fn what_is_known_outlives_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pods.json");
        assert_eq!(sandboxes(&Pods::load(&path).unwrap()), Vec::<&str>::new());
        let mut pods = Pods::default();
        pods.list(vec![pod("db", "s1")]);
        assert!(pods.add(pod("web", "s2")));
        pods.save(&path).unwrap();
        let mut again = Pods::load(&path).unwrap();
        assert_eq!(sandboxes(&again), ["s1", "s2"]);
        // What was being made still is.
        again.list(Vec::new());
        assert_eq!(sandboxes(&again), ["s2"]);
        fs::write(&path, "[{").unwrap();
        assert!(Pods::load(&path).is_err());
    }

    #[test]
    fn there_is_a_limit() {
        let mut pods = Pods::default();
        for number in 0..PODS_MAX {
            assert!(pods.add(pod(&format!("p{number}"), &format!("s{number}"))));
        }
        assert!(!pods.add(pod("more", "more")));
        assert!(pods.add(pod("p1", "again")));
    }
}
