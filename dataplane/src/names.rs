//! What numbers and addresses in the kernel's records stand for. Bindings are remembered for a while after they change, so
//! that a record gets the name that was true at its time.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use bulkhead_policy::{
    intern::Name,
    model::{Builtin, RuleName, WorkloadKey, Zone},
    plan::{MapDump, MapOp},
    state::{AddressKind, Binding, PeerId, State},
    table::Table,
};
use bulkhead_verdict::{
    address::Address,
    layout::{InternKey, identity, intern_kind, rule},
};
use dashmap::DashMap;

/// Earlier bindings of one address that are kept.
const HISTORY: usize = 4;
/// How long the name of a removed binding or number can be asked for, nanoseconds. Events are read within milliseconds;
/// flows that end are named within the time of a table scan.
const REMEMBERED: u64 = 60_000_000_000;

/// Whose address it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Party {
    /// Namespace and pod, or Service; an empty namespace and the node's name for a node.
    pub(crate) name: Arc<WorkloadKey>,
    /// What the name is a name of.
    pub(crate) kind: AddressKind,
    /// Node it is on, or that it is.
    pub(crate) node: Option<Arc<str>>,
}

impl From<&Binding> for Party {
    fn from(binding: &Binding) -> Self {
        Self {
            name: Arc::clone(&binding.name),
            kind: binding.kind,
            node: binding.node.clone(),
        }
    }
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

/// Who bound addresses are.
type Bindings = Table<(Zone, IpAddr), Binding>;

/// Whose an address was.
#[derive(Clone, Debug)]
struct Was {
    /// `CLOCK_BOOTTIME` nanoseconds from which it was so; 0 = since ever.
    from: u64,
    /// And until which it was.
    until: u64,
    party: Option<Party>,
}

/// Shared by the writer of the maps and the readers of their records.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// What is bound now: the table of the state in force, which this shares with the planner.
    bindings: RwLock<Bindings>,
    /// Of addresses that went from hand to hand of late: whose they were, oldest first.
    past: DashMap<(Zone, IpAddr), Vec<Was>>,
    numbers: DashMap<InternKey, Meaning>,
    /// Patterns of DNS names by class.
    patterns: RwLock<BTreeMap<u32, Arc<str>>>,
}

impl Names {
    /// The patterns that rules ask for.
    pub(crate) fn set_patterns(&self, patterns: BTreeMap<u32, Arc<str>>) {
        *self.patterns.write().unwrap_or_else(PoisonError::into_inner) = patterns;
    }

    /// The pattern of a class.
    pub(crate) fn pattern(&self, class: u32) -> Option<Arc<str>> {
        let patterns = self.patterns.read().unwrap_or_else(PoisonError::into_inner);
        patterns.get(&class).cloned()
    }

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

    /// What a number stands for, as people read it.
    pub(crate) fn text(&self, key: InternKey) -> Option<Arc<str>> {
        self.numbers.get(&key).map(|meaning| meaning.text.clone())
    }

    /// The state that was in force before this agent began: true since ever.
    pub(crate) fn load(&self, state: &State) {
        self.past.clear();
        self.bind(&state.bindings);
    }

    /// The bindings from `time` (`CLOCK_BOOTTIME`; 0 = since ever) on: taken before the kernel is told. Between the two an event
    /// may be judged by the old binding and named by the new one; that is the time of one plan.
    pub(crate) fn change(&self, now: &Bindings, time: u64) {
        if time != 0 {
            let old = self.bindings().clone();
            old.compare(now, |place, binding| {
                let before = old.get(place).map(Party::from);
                if before != binding.map(Party::from) {
                    self.note(*place, before, time);
                }
            });
        }
        self.bind(now);
    }

    fn bindings(&self) -> RwLockReadGuard<'_, Bindings> {
        self.bindings.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bind(&self, now: &Bindings) {
        *self.bindings.write().unwrap_or_else(PoisonError::into_inner) = now.clone();
    }

    fn note(&self, place: (Zone, IpAddr), party: Option<Party>, until: u64) {
        let mut history = self.past.entry(place).or_default();
        if history.len() >= HISTORY {
            history.remove(0);
        }
        let from = history.last().map_or(0, |last| last.until);
        history.push(Was { from, until, party });
    }

    /// Forgets whose addresses were long ago, and numbers given up long ago.
    pub(crate) fn sweep(&self, now: u64) {
        let remembered = |gone: u64| now.saturating_sub(gone) < REMEMBERED;
        self.numbers.retain(|_, meaning| meaning.gone.is_none_or(remembered));
        self.past
            .retain(|_, history| history.last().is_some_and(|last| remembered(last.until)));
    }

    /// Whose address it was at a time (`CLOCK_BOOTTIME`).
    pub(crate) fn party(&self, zone: u32, address: &Address, time: u64) -> Option<Party> {
        let place = (Zone(u8::try_from(zone).ok()?), IpAddr::from(*address));
        if let Some(history) = self.past.get(&place)
            && history.last().is_some_and(|last| time < last.until)
        {
            let was = history.iter().find(|was| was.from <= time && time < was.until)?;
            return was.party.clone();
        }
        self.bindings().get(&place).map(Party::from)
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
            rule::FORWARDED => builtin(Builtin::Forwarded),
            rule::FAILSAFE => builtin(Builtin::Failsafe),
            rule::NODE_PORT => builtin(Builtin::NodePort),
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
    use std::net::Ipv4Addr;

    use super::*;

    const PLACE: (Zone, IpAddr) = (Zone(0), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));

    fn bound(name: &str) -> Bindings {
        let name = WorkloadKey {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        let binding = Binding {
            peer: PeerId::AnyPod,
            kind: AddressKind::Pod,
            image_class: 0,
            name: Arc::new(name),
            node: None,
        };
        [(PLACE, binding)].into()
    }

    fn name_at(names: &Names, time: u64) -> Option<String> {
        let party = names.party(0, &Address::from(PLACE.1), time)?;
        Some(party.name.name.clone())
    }

    #[test]
    fn a_record_gets_the_name_of_its_time() {
        let names = Names::default();
        names.change(&bound("old"), 100);
        names.change(&Bindings::default(), 200);
        names.change(&bound("new"), 300);
        assert_eq!(name_at(&names, 99), None);
        assert_eq!(name_at(&names, 199).as_deref(), Some("old"));
        assert_eq!(name_at(&names, 250), None);
        assert_eq!(name_at(&names, 300).as_deref(), Some("new"));
    }

    #[test]
    fn the_first_state_is_true_since_ever() {
        let names = Names::default();
        names.change(&bound("old"), 0);
        assert_eq!(name_at(&names, 1).as_deref(), Some("old"));
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
        for time in 1..=100 {
            names.change(&if time % 2 == 0 { Bindings::default() } else { bound("a") }, time);
        }
        assert_eq!(names.past.get(&PLACE).map(|history| history.len()), Some(HISTORY));
        assert_eq!(name_at(&names, 97).as_deref(), Some("a"));
        assert_eq!(name_at(&names, 95), None, "forgotten, not given to whoever came next");
        names.sweep(100 + REMEMBERED - 1);
        assert_eq!(names.past.len(), 1);
        names.sweep(100 + REMEMBERED);
        assert_eq!(names.past.len(), 0);
    }
}
