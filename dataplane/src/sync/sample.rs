//! Sampled verdicts: a connection of an endpoint, judged by the kernel's function over what the kernel's maps hold, must come out
//! as the compiled state says.
//!
//! The shipped program itself is not run for that: a test run opens flows, counts packets and sends events like any packet, in
//! maps that are pinned and in use. The function is the same (`verdict::decide`, compared with the program vector by vector);
//! what it reads is copied from the kernel, and what it writes stays here.

use std::net::IpAddr;

use bulkhead_policy::{
    model::{Mode, WorkloadKey, Zone},
    plan::{MapOp, MapWriter as _},
    probe::{End, Outcome, Probe},
    state::{AddressKind, Decision, State},
    state_lookup::evaluate,
};
use bulkhead_verdict::{
    host::{self, MemMaps},
    layout::{
        AddressEntry, AddressKey, Alternative, Config, EndpointWord, MAX_ALTERNATIVES, NetworkEntry, NetworkKey,
        PortSet, Range, RuleKey, identity,
    },
    maps::Hook,
    port::{Position, protocol},
};

use super::{Sync, SyncError, mirror::Live};
use crate::{ground::Ground, kernel::KernelError};

/// Ranges of the largest port set that is sampled: all of them are read.
const RANGES_MAX: u32 = 512;
/// Bits of a whole NETWORKS key.
const WHOLE_KEY: u32 = 160;

/// A connection to judge at one end.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sample {
    endpoint: WorkloadKey,
    zone: Zone,
    hook: Hook,
    own: IpAddr,
    peer: IpAddr,
    protocol: u8,
    port: u16,
}

impl Sample {
    /// The sample of a number: endpoints, peers and ports in turn, so that in time all are taken. `None` when this number's do
    /// not fit together.
    fn of(state: &State, number: u64) -> Option<Self> {
        let turn = |count: usize, number: u64| {
            let count = u64::try_from(count).ok().filter(|count| *count > 0)?;
            usize::try_from(number.checked_rem(count)?).ok()
        };
        let (endpoint, found) = state.endpoints.iter().nth(turn(state.endpoints.len(), number)?)?;
        // Multiplied by an odd number, so that endpoints and peers do not go round in step.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        let ((zone, peer), binding) = state.bindings.iter().nth(turn(state.bindings.len(), mixed)?)?;
        let hook = if mixed & 1 == 0 { Hook::FromPod } else { Hook::ToPod };
        let fits = *zone == found.zone
            && *binding.name != *endpoint
            // What a node or a frontend sends is its own affair: a socket's, or translated.
            && (hook == Hook::FromPod || binding.kind == AddressKind::Pod);
        let own = found.addresses.iter().find(|own| own.is_ipv4() == peer.is_ipv4())?;
        let name = match hook {
            Hook::FromPod => found.egress,
            Hook::ToPod => found.ingress,
        };
        let ruleset = state.rulesets.get(&name)?;
        let ports = bulkhead_policy::state_lookup::entry(state, ruleset, *zone, *peer)?;
        let range = ports.ranges.get(turn(ports.ranges.len(), mixed >> 8)?)?;
        let [_, class, high, low] = range.low.to_be_bytes();
        let protocol = match class {
            0 => protocol::TCP,
            1 => protocol::UDP,
            _ => protocol::SCTP,
        };
        fits.then(|| Self {
            endpoint: endpoint.clone(),
            zone: *zone,
            hook,
            own: *own,
            peer: *peer,
            protocol,
            port: u16::from_be_bytes([high, low]),
        })
    }

    /// What the compiled state says; `None` where that depends on what the moment holds (leases, times, learned names).
    fn wanted(&self, state: &State) -> Option<Decision> {
        let own = End::workload(self.endpoint.clone(), self.own);
        let peer = End::address(self.peer);
        let (from, to) = match self.hook {
            Hook::FromPod => (own, peer),
            Hook::ToPod => (peer, own),
        };
        let probe = Probe {
            zone: self.zone,
            from,
            to,
            protocol: self.protocol,
            port: self.port,
            mode: Mode::Enforce,
        };
        let decision = |outcome: Outcome| match self.hook {
            Hook::FromPod => outcome.egress,
            Hook::ToPod => outcome.ingress,
        };
        let (held, (lapsed, _)) = (
            decision(evaluate(state, &probe, &|_, _| true))?,
            decision(evaluate(state, &probe, &|_, _| false))?,
        );
        (held.0 == lapsed).then_some(lapsed)
    }

    /// The connection at the device, as the kernel's function is asked.
    fn packet(&self) -> host::Probe {
        let (source, destination) = match self.hook {
            Hook::FromPod => (self.own, self.peer),
            Hook::ToPod => (self.peer, self.own),
        };
        host::Probe {
            source,
            destination,
            protocol: self.protocol,
            port: self.port,
            socket: false,
        }
    }
}

/// Copies of the elements that a verdict reads.
struct Copied<'a> {
    ground: &'a dyn Ground,
    maps: MemMaps,
}

impl Copied<'_> {
    /// Copies an element, if there is one.
    fn take(&mut self, like: &MapOp) -> Result<Option<MapOp>, KernelError> {
        let found = self.ground.element(like)?;
        if let Some(op) = &found {
            match self.maps.apply(std::slice::from_ref(op)) {
                Ok(()) => {}
                Err(never) => match never {},
            }
        }
        Ok(found)
    }

    /// Everything a packet of a sample meets; `None` when that is too much for a sample.
    fn read(&mut self, sample: &Sample, live: Live, ifindex: u32) -> Result<Option<()>, KernelError> {
        self.take(&MapOp::Device(ifindex, 0))?;
        let word = self.take(&MapOp::Endpoint(live.slot, EndpointWord::default()))?;
        let Some(MapOp::Endpoint(_, word)) = word else {
            return Ok(Some(()));
        };
        let config = self.take(&MapOp::Config(word.config, Box::default()))?;
        let Some(MapOp::Config(_, config)) = config else {
            return Ok(Some(()));
        };
        let Config { egress, ingress, .. } = *config;
        let mut peers = vec![
            identity::UNKNOWN_POD,
            identity::ANY_POD,
            identity::ANY_NODE,
            identity::ANY_ADDRESS,
        ];
        for address in [sample.own, sample.peer] {
            peers.extend(self.identities(sample.zone, address)?);
        }
        let position = Position::new(sample.protocol, sample.port);
        let ruleset = match sample.hook {
            Hook::FromPod => egress,
            Hook::ToPod => ingress,
        };
        for peer in peers {
            let found = self.take(&MapOp::Rule(RuleKey { ruleset, peer }, PortSet::default()))?;
            let Some(MapOp::Rule(_, set)) = found else { continue };
            if set.count > RANGES_MAX {
                return Ok(None);
            }
            self.ports(set, position)?;
        }
        Ok(Some(()))
    }

    /// Who an address is.
    fn identities(&mut self, zone: Zone, address: IpAddr) -> Result<Vec<u32>, KernelError> {
        let zone = u32::from(zone.0);
        let key = AddressKey {
            address: address.into(),
            zone,
        };
        let bound = self.take(&MapOp::Address(key, AddressEntry::default()))?;
        let key = NetworkKey {
            zone_be: zone.to_be(),
            address: address.into(),
        };
        let covered = self.take(&MapOp::Network(WHOLE_KEY, key, NetworkEntry::default()))?;
        let identity = |op| match op {
            MapOp::Address(_, entry) => Some(entry.identity),
            MapOp::Network(_, _, entry) => Some(entry.identity),
            _ => None,
        };
        Ok([bound, covered].into_iter().flatten().filter_map(identity).collect())
    }

    /// A port set, and the alternatives of the range that a position lies in.
    fn ports(&mut self, set: PortSet, position: Position) -> Result<(), KernelError> {
        for index in (set.first..).take(usize::try_from(set.count).unwrap_or(0)) {
            let found = self.take(&MapOp::Range(index, Range::default()))?;
            let Some(MapOp::Range(_, range)) = found else { continue };
            if !(range.low..=range.high).contains(&position.0) {
                continue;
            }
            for mut index in [range.enforce, range.shadow] {
                for _ in 0..MAX_ALTERNATIVES {
                    let found = self.take(&MapOp::Alternative(index, Alternative::default()))?;
                    let Some(MapOp::Alternative(_, cell)) = found else {
                        break;
                    };
                    index = cell.next;
                    if index == 0 {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Sync {
    /// Judges a sample, and says how many elements that was worth.
    pub(super) fn compare_verdict(&mut self) -> Result<usize, SyncError> {
        self.drift.sample = self.drift.sample.wrapping_add(1);
        let result = self.judge_sample()?;
        self.shared.metrics.drift.verdict(result);
        Ok(1)
    }

    fn judge_sample(&self) -> Result<&'static str, SyncError> {
        let state = self.planner.state();
        let Some(sample) = Sample::of(state, self.drift.sample) else {
            return Ok("skipped");
        };
        let (live, _) = self.live(&sample.endpoint);
        let device = self.endpoints.device(&sample.endpoint).and_then(Result::ok);
        let (Some(live), Some(device), Some(wanted)) = (live, device, sample.wanted(state)) else {
            return Ok("skipped");
        };
        let mut maps = MemMaps::default();
        maps.zone = u32::from(sample.zone.0);
        let mut copied = Copied {
            ground: &*self.ground,
            maps,
        };
        if copied.read(&sample, live, device.ifindex)?.is_none() {
            return Ok("skipped");
        }
        let verdict = copied.maps.probe(sample.hook, device.ifindex, &sample.packet());
        if verdict.reason.passes() == (wanted == Decision::Allow) {
            return Ok("same");
        }
        tracing::warn!(
            endpoint = %sample.endpoint,
            hook = ?sample.hook,
            peer = %sample.peer,
            protocol = sample.protocol,
            port = sample.port,
            "DRIFT: by what the kernel's maps hold a connection is judged as {}, and the policies say {wanted:?}",
            verdict.reason.name()
        );
        Ok("different")
    }
}
