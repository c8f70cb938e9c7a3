//! Local pods and their devices: which are wanted, which are found, and what stands in the way of the others.

mod devices;
mod find;
mod host;
mod netlink;
mod offload;
mod pods;
pub(crate) mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use bulkhead_policy::{
    model::{Attachment, WorkloadKey},
    plan::{LocalEndpoint, LocalEndpoints},
    state::{Delta, Endpoint, Resource, ResourceName, State},
};

use self::host::Host;
pub(crate) use self::{
    devices::{Devices, Here},
    find::{Device, FindError},
    netlink::{Link, LinkChanges, Netlink, Traffic},
    pods::{Place, Pod, Pods},
};

/// First pause after a failure; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Time between looks at the addresses of devices that are found: a pod gets its link-local ones after it was attached.
const REREAD: Duration = Duration::from_secs(5);
/// A pod that starts misses something for a moment, which is nobody's concern until the pauses are this long.
const LASTS: Duration = Duration::from_secs(1);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What the state says of an endpoint that bears on its device.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Wanted {
    uid: String,
    attachment: Attachment,
}

/// What is known of an endpoint's device.
#[derive(Debug)]
enum Found {
    Device(Device),
    /// Not found, or not attached.
    Missing {
        why: String,
        /// Whether the log has it.
        said: bool,
        pause: Duration,
        retry: Instant,
    },
}

#[derive(Debug)]
struct Entry {
    wanted: Wanted,
    /// Addresses the state says the endpoint has.
    addresses: BTreeSet<IpAddr>,
    found: Found,
    /// Sandbox through which the device was found; `None` when an annotation names it.
    sandbox: Option<String>,
    /// End of the adoption window given to the device.
    adopt_until: u64,
}

/// The endpoints of this node. One that cannot be found holds up none of the others.
pub(crate) struct Endpoints {
    here: Box<dyn Devices>,
    /// Who is here, wanted or not.
    pods: Pods,
    entries: BTreeMap<WorkloadKey, Entry>,
    /// Which endpoint a device is whose.
    owners: HashMap<u32, WorkloadKey>,
    /// Devices whose pod was said to have another one.
    released: Vec<u32>,
    reread: Instant,
    /// Addresses of this node's own devices that others know it by.
    own: BTreeSet<IpAddr>,
    /// All of them but loopback's.
    all_own: BTreeSet<IpAddr>,
    /// The node itself, where it is an endpoint.
    host: Option<Host>,
}

impl Endpoints {
    /// None yet.
    pub(crate) fn new(pods: Pods, here: Box<dyn Devices>) -> Self {
        Self {
            here,
            pods,
            entries: BTreeMap::new(),
            owners: HashMap::new(),
            released: Vec::new(),
            reread: Instant::now(),
            own: BTreeSet::new(),
            all_own: BTreeSet::new(),
            host: None,
        }
    }

    /// Takes over what a state wants; looks for the devices of those that are new or changed.
    pub(crate) fn replace(&mut self, state: &State, now: Instant) {
        let gone: Vec<WorkloadKey> = self
            .entries
            .keys()
            .chain(self.host.as_ref().map(|host| &host.key))
            .filter(|key| !state.endpoints.contains_key(*key))
            .cloned()
            .collect();
        for key in &gone {
            self.remove(key);
        }
        state
            .endpoints
            .iter()
            .for_each(|(key, endpoint)| self.want(key, endpoint, now));
    }

    /// Takes over what a delta changes.
    pub(crate) fn change(&mut self, delta: &Delta, now: Instant) {
        for resource in &delta.upserts {
            if let Resource::Endpoint(key, endpoint) = resource {
                self.want(key, endpoint, now);
            }
        }
        for name in &delta.removes {
            if let ResourceName::Endpoint(key) = name {
                self.remove(key);
            }
        }
    }

    fn want(&mut self, key: &WorkloadKey, endpoint: &Endpoint, now: Instant) {
        if key.is_node() {
            self.want_host(key);
            return;
        }
        let wanted = Wanted {
            uid: endpoint.uid.clone(),
            attachment: endpoint.attachment.clone(),
        };
        if let Some(entry) = self.entries.get_mut(key)
            && entry.wanted == wanted
        {
            let moved = entry.addresses != endpoint.addresses;
            entry.addresses.clone_from(&endpoint.addresses);
            // The address may be what it waited for.
            if moved && matches!(entry.found, Found::Missing { .. }) {
                self.look(key, now);
            }
            return;
        }
        // The same pod, pointed to another device by who wrote its annotation: the old one is let go. Another pod of that
        // name is no reason to: the old one may still run.
        if let Some(Entry {
            wanted: before,
            found: Found::Device(device),
            ..
        }) = self.entries.get(key)
            && before.uid == wanted.uid
        {
            self.released.push(device.ifindex);
        }
        self.remove(key);
        let found = Found::Missing {
            why: String::new(),
            said: false,
            pause: RETRY_FIRST,
            retry: now,
        };
        self.entries.insert(
            key.clone(),
            Entry {
                wanted,
                addresses: endpoint.addresses.clone(),
                found,
                sandbox: None,
                adopt_until: 0,
            },
        );
        self.look(key, now);
    }

    fn remove(&mut self, key: &WorkloadKey) {
        if key.is_node() {
            self.host = None;
            return;
        }
        if let Some(Entry {
            found: Found::Device(device),
            ..
        }) = self.entries.remove(key)
        {
            self.owners.remove(&device.ifindex);
        }
    }

    /// Looks for one endpoint's device; true when it was found.
    fn look(&mut self, key: &WorkloadKey, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key) else {
            return false;
        };
        let why = match find_entry(&mut *self.here, &self.pods, key, entry) {
            Ok((device, sandbox)) => match self.owners.get(&device.ifindex) {
                Some(owner) if owner != key => format!("device {}: is {owner}'s already", device.name),
                _ => {
                    self.owners.insert(device.ifindex, key.clone());
                    entry.found = Found::Device(device);
                    entry.sandbox = sandbox;
                    return true;
                }
            },
            Err(error) => error.to_string(),
        };
        self.miss(key, why, now);
        false
    }

    /// The pods of this node.
    pub(crate) fn pods(&self) -> &Pods {
        &self.pods
    }

    /// Changes what is known of the pods of this node; `change` gives the names it touched. True when a device was found
    /// or is another one now.
    ///
    /// A pod that is not known any more keeps its device until that is gone: a runtime that forgets is no reason to stop
    /// judging.
    pub(crate) fn change_pods(
        &mut self,
        change: impl FnOnce(&mut Pods) -> BTreeSet<WorkloadKey>,
        now: Instant,
    ) -> bool {
        let mut changed = false;
        for key in change(&mut self.pods) {
            let (Some(entry), Some(pod)) = (self.entries.get(&key), self.pods.get(&key)) else {
                continue;
            };
            let by_annotation = entry.wanted.attachment != Attachment::default();
            let same = matches!(entry.found, Found::Device(_)) && entry.sandbox.as_deref() == Some(&pod.sandbox);
            if by_annotation || same || entry.wanted.uid != pod.uid {
                continue;
            }
            if matches!(entry.found, Found::Device(_)) {
                changed = true;
                self.miss(&key, "its sandbox was replaced".to_owned(), now);
            }
            changed |= self.look(&key, now);
        }
        changed
    }

    /// Notes that an endpoint has no usable device, and when to try again.
    fn miss(&mut self, key: &WorkloadKey, why: String, now: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let (pause, said) = match &entry.found {
            Found::Missing {
                pause,
                why: before,
                said,
                ..
            } => (*pause, *said && *before == why),
            Found::Device(device) => {
                self.owners.remove(&device.ifindex);
                (RETRY_FIRST, false)
            }
        };
        let lasts = pause >= LASTS;
        if lasts && !said {
            tracing::warn!(endpoint = %key, "not attached: {why}");
        } else if !said {
            tracing::debug!(endpoint = %key, "not attached yet: {why}");
        }
        entry.found = Found::Missing {
            why,
            said: said || lasts,
            pause: (pause * 2).min(RETRY_MAX),
            retry: now + pause,
        };
    }

    /// The device could not be attached: as if it had not been found.
    pub(crate) fn failed(&mut self, key: &WorkloadKey, why: String, now: Instant) {
        self.miss(key, why, now);
    }

    /// Devices there are.
    pub(crate) fn present(&mut self) -> io::Result<BTreeSet<u32>> {
        Ok(self.here.links()?.into_iter().map(|link| link.index).collect())
    }

    /// Looks at devices again: found ones may be gone, missing ones may have come. `all` = also those whose pause has not
    /// passed. True when anything changed.
    pub(crate) fn refresh(&mut self, all: bool, now: Instant) -> io::Result<bool> {
        let mut changed = false;
        if all {
            let there: HashMap<u32, Option<u32>> = self
                .here
                .links()?
                .into_iter()
                .map(|link| (link.index, link.peer))
                .collect();
            let gone: Vec<(WorkloadKey, String)> = self
                .devices()
                .filter(|(_, device)| there.get(&device.ifindex) != Some(&Some(device.peer)))
                .map(|(key, device)| (key.clone(), device.name.clone()))
                .collect();
            for (key, name) in gone {
                changed = true;
                self.miss(&key, format!("device {name}: gone"), now);
            }
        }
        let reread = now >= self.reread;
        if reread {
            self.reread = now + REREAD;
            changed |= self.read_addresses();
        }
        if all || reread {
            changed |= self.read_own();
            changed |= self.look_host();
        }
        let due = |entry: &Entry| matches!(entry.found, Found::Missing { retry, .. } if all || retry <= now);
        let due: Vec<WorkloadKey> = self
            .entries
            .iter()
            .filter(|(_, entry)| due(entry))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            changed |= self.look(&key, now);
        }
        Ok(changed)
    }

    /// Reads the addresses of this node's own devices; true when any changed.
    fn read_own(&mut self) -> bool {
        match self.here.all_addresses() {
            Ok(addresses) => {
                let routable = |address: &IpAddr| match address {
                    IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
                    IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
                };
                let all: BTreeSet<IpAddr> = addresses.into_iter().filter(|address| !address.is_loopback()).collect();
                let own: BTreeSet<IpAddr> = all.iter().copied().filter(routable).collect();
                let changed = own != self.own || all != self.all_own;
                (self.own, self.all_own) = (own, all);
                changed
            }
            Err(error) => {
                tracing::warn!("addresses of this node's devices: {error}");
                false
            }
        }
    }

    /// What a pod's device has carried; `None` where that is not known.
    pub(crate) fn traffic(&mut self, ifindex: u32) -> io::Result<Option<Traffic>> {
        self.here.traffic(ifindex)
    }

    /// Whether a device merges packets it receives before a program sees them.
    pub(crate) fn merges(&self, name: &str) -> io::Result<bool> {
        self.here.merges(name)
    }

    /// Addresses of this node's own devices.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.own.iter().copied()
    }

    /// Reads the addresses of found devices again; true when any changed. The MAC stays the one the device was found with:
    /// what a pod says later about itself is not news.
    fn read_addresses(&mut self) -> bool {
        let mut changed = false;
        for (key, entry) in &mut self.entries {
            if !matches!(entry.found, Found::Device(_)) {
                continue;
            }
            let now = find_entry(&mut *self.here, &self.pods, key, entry);
            let Found::Device(device) = &mut entry.found else {
                continue;
            };
            if let Ok((now, _)) = now
                && now.ifindex == device.ifindex
                && now.addresses != device.addresses
            {
                changed = true;
                device.addresses = now.addresses;
            }
        }
        changed
    }

    /// Devices that were let go since the last call and that nobody else took.
    pub(crate) fn take_released(&mut self) -> Vec<u32> {
        let mut released = std::mem::take(&mut self.released);
        released.retain(|ifindex| !self.owners.contains_key(ifindex));
        released
    }

    /// When to look again, if nothing happens before.
    pub(crate) fn next_look(&self) -> Instant {
        self.next_retry().map_or(self.reread, |retry| retry.min(self.reread))
    }

    fn next_retry(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter_map(|entry| match &entry.found {
                Found::Missing { retry, .. } => Some(*retry),
                Found::Device(_) => None,
            })
            .min()
    }

    /// Found devices.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (&WorkloadKey, &Device)> {
        self.entries.iter().filter_map(|(key, entry)| match &entry.found {
            Found::Device(device) => Some((key, device)),
            Found::Missing { .. } => None,
        })
    }

    /// An endpoint's device, or why it has none. `None` for an endpoint that is not wanted.
    pub(crate) fn device(&self, key: &WorkloadKey) -> Option<Result<&Device, &str>> {
        Some(match &self.entries.get(key)?.found {
            Found::Device(device) => Ok(device),
            Found::Missing { why, .. } => Err(why),
        })
    }

    /// Opens the adoption window of devices that were at work before us: their connections are older than our flows.
    /// `known` are the devices that are judged already; `all` also opens it where nothing says that the pod is not new.
    pub(crate) fn open_adoption(&mut self, until: u64, known: &BTreeSet<u32>, all: bool) {
        for (key, entry) in &mut self.entries {
            if let Found::Device(device) = &entry.found
                && !known.contains(&device.ifindex)
                && (all || self.pods.ran_unjudged(key))
            {
                entry.adopt_until = until;
            }
        }
    }

    /// The network namespace of an endpoint whose device may have connections that are older than our flows.
    pub(crate) fn adopts(&self, key: &WorkloadKey, now: u64) -> Option<PathBuf> {
        if let Some(host) = self.host.as_ref().filter(|host| host.key == *key) {
            return (host.adopt_until > now).then(|| "/proc/thread-self/ns/net".into());
        }
        let entry = self.entries.get(key).filter(|entry| entry.adopt_until > now)?;
        match &entry.wanted.attachment.netns {
            Some(path) => Some(path.into()),
            None => Some(self.pods.get(key)?.place.netns.clone()),
        }
    }

    /// What the planner is to know.
    pub(crate) fn local(&self) -> LocalEndpoints {
        self.entries
            .iter()
            .filter_map(|(key, entry)| {
                let Found::Device(device) = &entry.found else {
                    return None;
                };
                let local = LocalEndpoint {
                    uid: Some(entry.wanted.uid.clone()),
                    ifindex: device.ifindex,
                    mac: device.mac,
                    addresses: device.addresses.clone(),
                    adopt_until: entry.adopt_until,
                    more: BTreeSet::new(),
                };
                Some((key.clone(), local))
            })
            .chain(self.host.as_ref().and_then(Host::local))
            .collect()
    }
}

/// Finds the device of an endpoint: by annotation, else through the pod of that name and uid on this node.
fn find_entry(
    here: &mut dyn Devices,
    pods: &Pods,
    key: &WorkloadKey,
    entry: &Entry,
) -> Result<(Device, Option<String>), FindError> {
    if entry.wanted.attachment != Attachment::default() {
        return Ok((here.by_attachment(&entry.wanted.attachment)?, None));
    }
    let pod = pods.get(key).ok_or(FindError::NotHere)?;
    if pod.uid.is_empty() || pod.uid != entry.wanted.uid {
        return Err(FindError::OtherPod {
            found: pod.uid.clone(),
            wanted: entry.wanted.uid.clone(),
        });
    }
    // With rules that know the pod by another address, all it sends would be dropped as forged.
    let given = &pod.place.addresses;
    if !given.is_subset(&entry.addresses) {
        return Err(FindError::OtherAddress {
            found: list(given),
            wanted: list(&entry.addresses),
        });
    }
    let device = here.by_namespace(&pod.place.netns, &pod.place.interface)?;
    Ok((device, Some(pod.sandbox.clone())))
}

fn list(addresses: &BTreeSet<IpAddr>) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}
