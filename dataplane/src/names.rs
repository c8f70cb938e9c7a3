//! What numbers and addresses in the kernel's records stand for. Bindings are remembered for a while after they change, so
//! that a record gets the name that was true at its time.

use std::{collections::VecDeque, sync::Arc};

use bulkhead_policy::{
    intern::Name,
    model::{Builtin, RuleName, WorkloadKey, Zone},
    plan::{MapDump, MapOp},
    state::{AddressKind, Delta, PeerId, Resource, ResourceName, State},
};
use bulkhead_verdict::{
    address::Address,
    layout::{AddressKey, InternKey, identity, intern_kind, rule},
};
use dashmap::DashMap;

/// Bindings of one address that are kept, the one in force included.
const HISTORY: usize = 4;
/// How long the name of a removed binding or number can be asked for, nanoseconds. Events are read within milliseconds;
/// flows that end are named within the time of a table scan.
const REMEMBERED: u64 = 60_000_000_000;

/// Whose address it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Party {
    /// Namespace and pod, or Service; an empty namespace and the node's name for a node.
    pub(crate) name: Option<WorkloadKey>,
    /// What the name is a name of; `None` of an address that is bound to nothing.
    pub(crate) kind: Option<AddressKind>,
    /// Node it is on, or that it is.
    pub(crate) node: Option<String>,
}

/// An interned number's meaning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Meaning {
    /// Short digest, or `reserved:…`, or the rule's text.
    pub(crate) name: Arc<str>,
    /// Text for people.
    pub(crate) text: Arc<str>,
    /// `key=value` for every label an identity is known by with one value.
    pub(crate) labels: Arc<[String]>,
    /// `CLOCK_BOOTTIME` at which the number was given up; records of before may still be on their way.
    gone: Option<u64>,
}

#[derive(Clone, Debug)]
struct Since {
    /// `CLOCK_BOOTTIME` nanoseconds from which it was so.
    time: u64,
    party: Option<Arc<Party>>,
}

/// Shared by the writer of the maps and the readers of their records.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Oldest first.
    addresses: DashMap<AddressKey, Vec<Since>>,
    numbers: DashMap<InternKey, Meaning>,
}

fn key(zone: Zone, address: std::net::IpAddr) -> AddressKey {
    AddressKey {
        address: Address::from(address),
        zone: u32::from(zone.0),
    }
}

impl Names {
    /// What the kernel held when it was adopted.
    pub(crate) fn adopt(&self, dump: &MapDump) {
        for (key, entry) in &dump.interned {
            if let Some(name) = Name::read(entry) {
                self.number(*key, &name);
            }
        }
    }

    /// Numbers that a plan gives out and gives up.
    pub(crate) fn learn(&self, ops: &[MapOp], now: u64) {
        for op in ops {
            match op {
                MapOp::Intern(key, entry) => {
                    if let Some(name) = Name::read(entry) {
                        self.number(*key, &name);
                    }
                }
                MapOp::RemoveIntern(key) => {
                    if let Some(mut meaning) = self.numbers.get_mut(key) {
                        meaning.gone = Some(now);
                    }
                }
                _ => {}
            }
        }
    }

    fn number(&self, key: InternKey, name: &Name) {
        let text: Arc<str> = name.text.as_str().into();
        let short = match key.kind {
            intern_kind::IDENTITY | intern_kind::RULESET => name.digest.short().into(),
            _ => text.clone(),
        };
        self.numbers.insert(
            key,
            Meaning {
                labels: labels(&name.text).into(),
                name: short,
                text,
                gone: None,
            },
        );
    }

    /// The state that was in force before this agent began: true since ever.
    pub(crate) fn load(&self, state: &State) {
        self.addresses.clear();
        for ((zone, address), binding) in &state.bindings {
            self.bind(key(*zone, *address), Some(party(binding)), 0);
        }
    }

    /// What a delta rebinds, from `time` (`CLOCK_BOOTTIME`) on: taken before the kernel is told. Between the two an event may
    /// be judged by the old binding and named by the new one; that is the time of one plan.
    pub(crate) fn change(&self, delta: &Delta, time: u64) {
        for resource in &delta.upserts {
            if let Resource::Binding(zone, address, binding) = resource {
                self.bind(key(*zone, *address), Some(party(binding)), time);
            }
        }
        for name in &delta.removes {
            if let ResourceName::Binding(zone, address) = name {
                self.bind(key(*zone, *address), None, time);
            }
        }
    }

    fn bind(&self, key: AddressKey, party: Option<Party>, time: u64) {
        let mut history = self.addresses.entry(key).or_default();
        if history
            .last()
            .is_some_and(|last| last.party.as_deref() == party.as_ref())
        {
            return;
        }
        if history.len() >= HISTORY {
            history.remove(0);
        }
        history.push(Since {
            time,
            party: party.map(Arc::new),
        });
    }

    /// Forgets addresses whose last binding went long ago, and numbers given up long ago.
    pub(crate) fn sweep(&self, now: u64) {
        self.numbers
            .retain(|_, meaning| meaning.gone.is_none_or(|gone| now.saturating_sub(gone) < REMEMBERED));
        self.addresses.retain(|_, history| {
            history
                .last()
                .is_some_and(|last| last.party.is_some() || now.saturating_sub(last.time) < REMEMBERED)
        });
    }

    /// Whose address it was at a time (`CLOCK_BOOTTIME`).
    pub(crate) fn party(&self, zone: u32, address: &Address, time: u64) -> Option<Arc<Party>> {
        let history = self.addresses.get(&AddressKey {
            address: *address,
            zone,
        })?;
        history.iter().rev().find(|since| since.time <= time)?.party.clone()
    }

    /// The meaning of an interned or reserved identity.
    pub(crate) fn identity(&self, number: u32) -> Option<Meaning> {
        let reserved = |peer: PeerId| {
            let text: Arc<str> = peer.to_string().into();
            Some(Meaning {
                name: text.clone(),
                text,
                labels: [].into(),
                gone: None,
            })
        };
        match number {
            identity::NONE => None,
            identity::UNKNOWN_POD => reserved(PeerId::UnknownPod),
            identity::ANY_POD => reserved(PeerId::AnyPod),
            identity::ANY_NODE => reserved(PeerId::AnyNode),
            identity::ANY_ADDRESS => reserved(PeerId::AnyAddress),
            number => self.meaning(intern_kind::IDENTITY, number),
        }
    }

    /// The text of a rule; empty when none was reached.
    pub(crate) fn rule(&self, number: u32) -> Arc<str> {
        let builtin = |builtin| RuleName::Builtin(builtin).to_string().into();
        match number {
            rule::NONE => "".into(),
            rule::SELF => builtin(Builtin::SelfTraffic),
            rule::NODE => builtin(Builtin::Node),
            rule::DEFAULT_ALLOW => builtin(Builtin::DefaultAllow),
            rule::CONTROL => builtin(Builtin::Control),
            rule::UNMANAGED => builtin(Builtin::Unmanaged),
            rule::MIXED_BACKENDS => builtin(Builtin::MixedBackends),
            number => match self.meaning(intern_kind::RULE, number) {
                Some(meaning) => meaning.text,
                None => format!("unknown rule {number}").into(),
            },
        }
    }

    fn meaning(&self, kind: u32, number: u32) -> Option<Meaning> {
        self.numbers
            .get(&InternKey { kind, number })
            .map(|meaning| meaning.clone())
    }
}

/// The pod's labels among an identity's atoms: `label app in (web)` is `app=web`. Atoms with several values say less than a
/// label does and are left out; so are labels of namespaces and nodes.
fn labels(atoms: &str) -> Vec<String> {
    const ATOM: &str = "label ";
    let one = |(start, _): (usize, &str)| {
        let before = atoms.get(..start)?;
        if !before.is_empty() && !before.ends_with(", ") {
            return None;
        }
        let (key, values) = atoms.get(start + ATOM.len()..)?.split_once(" in (")?;
        let value = values.split(')').next().filter(|values| !values.contains(", "))?;
        Some(format!("{key}={value}"))
    };
    atoms.match_indices(ATOM).filter_map(one).collect()
}

fn party(binding: &bulkhead_policy::state::Binding) -> Party {
    Party {
        name: Some(binding.name.clone()),
        kind: Some(binding.kind),
        node: binding.node.clone(),
    }
}

/// Devices by index, for records: names of devices that are gone stay known for a while.
#[derive(Debug, Default)]
pub(crate) struct DeviceNames {
    names: DashMap<u32, Arc<str>>,
    order: std::sync::Mutex<VecDeque<u32>>,
}

/// Devices remembered at most.
const DEVICES: usize = 8_192;

impl DeviceNames {
    /// Notes a device.
    pub(crate) fn learn(&self, ifindex: u32, name: &str) {
        if self.names.insert(ifindex, name.into()).is_some() {
            return;
        }
        let Ok(mut order) = self.order.lock() else { return };
        order.push_back(ifindex);
        if order.len() > DEVICES
            && let Some(oldest) = order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    /// Its name; empty when not known.
    pub(crate) fn get(&self, ifindex: u32) -> Arc<str> {
        self.names.get(&ifindex).map_or_else(|| "".into(), |name| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Party {
        let name = WorkloadKey {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        Party {
            name: Some(name),
            ..Party::default()
        }
    }

    #[test]
    fn a_record_gets_the_name_of_its_time() {
        let names = Names::default();
        let address = Address([1, 2, 3, 4]);
        let key = AddressKey { address, zone: 0 };
        names.bind(key, Some(pod("old")), 100);
        names.bind(key, None, 200);
        names.bind(key, Some(pod("new")), 300);
        let at = |time| {
            names
                .party(0, &address, time)
                .and_then(|party| Some(party.name.clone()?.name))
        };
        assert_eq!(at(99), None);
        assert_eq!(at(199).as_deref(), Some("old"));
        assert_eq!(at(250), None);
        assert_eq!(at(300).as_deref(), Some("new"));
    }

    #[test]
    fn labels_of_an_identity() {
        let text = "namespace=shop, label app in (web), label tier in (back, front), namespace label team in (a)";
        assert_eq!(labels(text), ["app=web"]);
        assert!(labels("cidr 10.0.0.0/8").is_empty());
    }

    #[test]
    fn history_is_bounded_and_swept() {
        let names = Names::default();
        let address = Address([1, 2, 3, 4]);
        let key = AddressKey { address, zone: 0 };
        for time in 1..100 {
            names.bind(key, if time % 2 == 0 { None } else { Some(pod("a")) }, time);
        }
        assert_eq!(names.addresses.get(&key).map(|history| history.len()), Some(HISTORY));
        names.bind(key, None, 100);
        names.sweep(100 + REMEMBERED - 1);
        assert_eq!(names.addresses.len(), 1);
        names.sweep(100 + REMEMBERED);
        assert_eq!(names.addresses.len(), 0);
    }
}
