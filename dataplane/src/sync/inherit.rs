//! Connections that are older than their judge: a device that is attached while its pod is at work gets flows for what the
//! pod's sockets have open, so that the next packet is judged by the rules, however much later it comes.
//!
//! The adoption window alone is not enough: a connection that says nothing while it is open (a watch, a database's pool)
//! would be a stranger's afterwards. The flow says who began and nothing else: no side of it is approved, so the rules
//! decide at its next packet as for any other.

use super::Sync;
use crate::{
    clock,
    endpoints::sockets::{Connection, connections},
};
use bulkhead_policy::model::WorkloadKey;
use bulkhead_verdict::{
    address::Address,
    flow,
    layout::{Flow, FlowKey, Word},
    maps::Hook,
    packet::Headers,
    port::protocol,
};

/// Ids of flows that no CPU opened: above any CPU's number.
pub(crate) const NO_CPU: u16 = 0xffff;

impl Sync {
    /// Gives a device that was just attached the flows of its pod. A failure leaves the adoption window, so it is a warning.
    pub(super) fn inherit(&mut self, key: &WorkloadKey, ifindex: u32) {
        let Some(place) = self.endpoints.adopts(key, clock::monotonic()) else {
            return;
        };
        let zone = self
            .planner
            .state()
            .endpoints
            .get(key)
            .map_or(0, |endpoint| u32::from(endpoint.zone.0));
        let result = connections(&place).map_err(anyhow::Error::from).and_then(|found| {
            for connection in &found {
                self.inherited = self.inherited.wrapping_add(1);
                let (key, flow) = element(connection, zone, ifindex, self.inherited);
                self.ground.add_flow(&key, flow)?;
            }
            Ok(found.len())
        });
        match result {
            Ok(0) => {}
            Ok(connections) => {
                self.shared
                    .metrics
                    .inherited
                    .inc_by(u64::try_from(connections).unwrap_or(0));
                tracing::info!(endpoint = %key, connections, "took over the connections the pod has open");
            }
            Err(error) => tracing::warn!(
                endpoint = %key,
                "cannot ask for the pod's open connections: {error:#}; those that are silent for the next 60 s will be cut"
            ),
        }
    }
}

/// Where the ids of this process' flows begin: behind those of an agent before it, which had a microsecond for each.
pub(super) fn first_id() -> u64 {
    clock::boot() / 1_000
}

fn element(connection: &Connection, zone: u32, ifindex: u32, number: u64) -> (FlowKey, Flow) {
    let headers = Headers {
        source: Address::from(connection.local.ip()),
        destination: Address::from(connection.remote.ip()),
        source_port: connection.local.port().to_be(),
        destination_port: connection.remote.port().to_be(),
        protocol: protocol::TCP,
        ..Headers::default()
    };
    let mut key = FlowKey::default();
    let local_is_low = flow::key_of(&headers, zone, &mut key);
    let value = Flow {
        first_seen: Word::new(clock::boot()),
        last_seen: Word::new(clock::monotonic()),
        id: Word::new(u64::from(NO_CPU) << 48 | number & 0xffff_ffff_ffff),
        cpu: Word::new(NO_CPU),
        initiator_is_low: Word::new(u8::from(local_is_low != connection.accepted)),
        ..Flow::default()
    };
    let index = flow::side_index(Hook::FromPod, !connection.accepted);
    flow::side(&value, index).ifindex.set(ifindex);
    (key, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel finds an element by the packet's own key, and takes the right end for the one who began.
    #[test]
    fn a_packet_of_either_end_finds_its_flow() {
        for (local, remote) in [
            ("10.0.0.1:40000", "10.0.0.2:443"),
            ("10.0.0.2:443", "10.0.0.1:40000"),
            ("[fd00::2]:443", "[fd00::1]:40000"),
        ] {
            let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
            for accepted in [false, true] {
                let (key, found) = element(
                    &Connection {
                        local,
                        remote,
                        accepted,
                    },
                    3,
                    7,
                    1,
                );
                let (initiator, responder) = if accepted { (remote, local) } else { (local, remote) };
                let headers = Headers {
                    source: Address::from(initiator.ip()),
                    destination: Address::from(responder.ip()),
                    source_port: initiator.port().to_be(),
                    destination_port: responder.port().to_be(),
                    protocol: protocol::TCP,
                    ..Headers::default()
                };
                let mut wanted = FlowKey::default();
                let initiator_is_low = flow::key_of(&headers, 3, &mut wanted);
                assert!(key == wanted);
                assert_eq!(found.initiator_is_low.get() == 1, initiator_is_low);
                assert_eq!(found.sides[usize::from(accepted)].ifindex.get(), 7);
                assert_eq!(found.sides[usize::from(accepted)].approval.get(), 0);
            }
        }
    }
}
