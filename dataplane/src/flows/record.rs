//! One line of the flow history: small while it is kept, a `Flow` message when somebody asks for it.

use std::{net::IpAddr, sync::Arc};

use bulkhead_policy::state::AddressKind;
use bulkhead_proto::v1::{self, CloseReason, FlowEvent};
use bulkhead_verdict::{address::Address, layout::guard, maps::Hook, packet::tcp, port::protocol, reason::Reason};

use crate::{clock, names::Party};

/// One end.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) address: Address,
    /// Host byte order.
    pub(crate) port: u16,
    /// Whose address it was then.
    pub(crate) party: Option<Party>,
    /// The node's number for the identity; 0 = not known.
    pub(crate) identity: u32,
    pub(crate) identity_name: Arc<str>,
    /// `key=value`, as far as the identity knows them.
    pub(crate) labels: Arc<[String]>,
}

/// A record. Times are wall nanoseconds, 0 = not set.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) event: FlowEvent,
    pub(crate) time: u64,
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) protocol: u8,
    pub(crate) reason: u8,
    pub(crate) hook: u8,
    pub(crate) guard: u8,
    pub(crate) zone: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) reply: bool,
    pub(crate) rule: Arc<str>,
    /// Rule and "drops" of the shadow verdict, where it is not the enforced one.
    pub(crate) shadow: Option<(Arc<str>, bool)>,
    pub(crate) device: Arc<str>,
    pub(crate) ifindex: u32,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) cpu: u32,
    pub(crate) sequence: u64,
    pub(crate) flow: u64,
    pub(crate) count: u64,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Packets, then bytes, initiator's direction first; `None` on records that have none.
    pub(crate) counters: Option<[u64; 4]>,
    pub(crate) close: CloseReason,
    /// Patterns of names the destination was learned under.
    pub(crate) names: Vec<Arc<str>>,
}

impl Record {
    /// True when the source is the end at the hook's device.
    fn source_is_local(&self) -> bool {
        (self.hook == Hook::FromPod as u8) != self.reply
    }

    /// The message.
    pub(crate) fn message(&self, node: &str) -> v1::Flow {
        let source_is_local = self.source_is_local();
        let slot = |local: bool| if local && self.slot != u32::MAX { self.slot } else { 0 };
        let mut flow = v1::Flow {
            time: clock::timestamp(self.time),
            ip: Some(addresses(&self.source.address, &self.destination.address)),
            l4: layer4(self),
            source: Some(self.source.message(slot(source_is_local))),
            destination: Some(self.destination.message(slot(!source_is_local))),
            r#type: v1::FlowType::L3L4.into(),
            node_name: node.to_owned(),
            is_reply: Some(self.reply),
            interface: Some(v1::NetworkInterface {
                index: self.ifindex,
                name: self.device.to_string(),
            }),
            event: self.event.into(),
            rule: self.rule.to_string(),
            generation: self.generation,
            count: self.count,
            first: clock::timestamp(self.first),
            last: clock::timestamp(self.last),
            cpu: self.cpu,
            sequence: self.sequence,
            flow_id: self.flow,
            flow_cpu: u32::try_from(self.flow >> 48).unwrap_or(0),
            guard: guard_kind(self.guard).into(),
            destination_names: self.names.iter().map(ToString::to_string).collect(),
            close_reason: self.close.into(),
            zone: u32::from(self.zone),
            protocol: u32::from(self.protocol),
            ..v1::Flow::default()
        };
        match Reason::from_number(self.reason) {
            Some(reason) => flow.set_judgement(reason),
            None => flow.reason_number = u32::from(self.reason),
        }
        flow.set_traffic_direction(if self.hook == Hook::FromPod as u8 {
            v1::TrafficDirection::Egress
        } else {
            v1::TrafficDirection::Ingress
        });
        if let Some((rule, drops)) = &self.shadow {
            flow.shadow_rule = rule.to_string();
            flow.set_shadow_verdict(if *drops {
                v1::Verdict::Dropped
            } else {
                v1::Verdict::Forwarded
            });
        }
        if let Some([packets, back_packets, bytes, back_bytes]) = self.counters {
            flow.forward = Some(v1::Counters { packets, bytes });
            flow.backward = Some(v1::Counters {
                packets: back_packets,
                bytes: back_bytes,
            });
        }
        flow
    }
}

impl End {
    fn message(&self, slot: u32) -> v1::Endpoint {
        let party = self.party.as_ref();
        let named = |wanted| {
            party
                .filter(|party| party.kind == wanted)
                .map(|party| party.name.name.clone())
        };
        let service = named(AddressKind::Service).map(|name| v1::Workload {
            name,
            kind: "Service".to_owned(),
        });
        v1::Endpoint {
            id: slot,
            identity: self.identity,
            namespace: party.map_or_else(String::new, |party| party.name.namespace.clone()),
            labels: self.labels.to_vec(),
            // A node is no pod: its name is in node_name.
            pod_name: named(AddressKind::Pod).unwrap_or_default(),
            workloads: service.into_iter().collect(),
            node_name: party
                .and_then(|party| party.node.as_deref())
                .unwrap_or_default()
                .to_owned(),
            identity_name: self.identity_name.to_string(),
        }
    }
}

fn addresses(source: &Address, destination: &Address) -> v1::Ip {
    let version = if source.is_v4() {
        v1::IpVersion::IPv4
    } else {
        v1::IpVersion::IPv6
    };
    v1::Ip {
        source: IpAddr::from(*source).to_string(),
        destination: IpAddr::from(*destination).to_string(),
        ip_version: version.into(),
    }
}

fn guard_kind(number: u8) -> v1::GuardKind {
    match number {
        guard::LEASE => v1::GuardKind::Lease,
        guard::UNTIL => v1::GuardKind::Until,
        guard::NAME => v1::GuardKind::Name,
        _ => v1::GuardKind::None,
    }
}

fn layer4(record: &Record) -> Option<v1::Layer4> {
    use v1::layer4::Protocol;
    let (source_port, destination_port) = (u32::from(record.source.port), u32::from(record.destination.port));
    // An ICMP record has type << 8 | code in the place of the destination port.
    let (r#type, code) = (destination_port >> 8, destination_port & 0xff);
    let protocol = match record.protocol {
        protocol::TCP => Protocol::Tcp(v1::Tcp {
            source_port,
            destination_port,
            flags: Some(flags(record.tcp_flags)),
        }),
        protocol::UDP => Protocol::Udp(v1::Udp {
            source_port,
            destination_port,
        }),
        protocol::SCTP => Protocol::Sctp(v1::Sctp {
            source_port,
            destination_port,
        }),
        protocol::ICMP => Protocol::IcmPv4(v1::IcmPv4 { r#type, code }),
        protocol::ICMPV6 => Protocol::IcmPv6(v1::IcmPv6 { r#type, code }),
        _ => return None,
    };
    Some(v1::Layer4 {
        protocol: Some(protocol),
    })
}

fn flags(seen: u8) -> v1::TcpFlags {
    let has = |flag: u8| seen & flag != 0;
    v1::TcpFlags {
        fin: has(tcp::FIN),
        syn: has(tcp::SYN),
        rst: has(tcp::RST),
        psh: has(0x08),
        ack: has(tcp::ACK),
        urg: has(0x20),
        ece: has(0x40),
        cwr: has(0x80),
    }
}
