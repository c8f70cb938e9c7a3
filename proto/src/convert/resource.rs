//! Resources and their names on the wire.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use bulkhead_policy::{
    lease::{Claims, Deadline},
    model::{Attachment, WorkloadKey},
    state::{AddressKind, Binding, Endpoint, Identity, Network, PortSet, Resource, ResourceName},
};

use super::{
    Inside as _, Problem, WireError, address_from_bytes, address_to_bytes, digest_from_bytes,
    name::{direction, peer, zone, zoned_address, zoned_address_to_wire, zoned_prefix, zoned_prefix_to_wire},
    required,
    rule::profile,
};
use crate::v1;

/// `port_set` gives the index of a port set in the chunk's table.
pub(crate) fn resource_to_wire(resource: &Resource, port_set: impl FnOnce(&Arc<PortSet>) -> u32) -> v1::Resource {
    use v1::resource::Resource as Wire;
    let wire = match resource {
        Resource::Identity(name, identity) => Wire::Identity(v1::Identity {
            name: name.0.to_vec(),
            atoms: identity.atoms.clone(),
        }),
        Resource::Binding(zone, address, binding) => Wire::Binding(v1::Binding {
            address: Some(zoned_address_to_wire(*zone, *address)),
            peer: Some(binding.peer.into()),
            kind: match binding.kind {
                AddressKind::Pod => v1::AddressKind::Pod,
                AddressKind::Node => v1::AddressKind::Node,
                AddressKind::Service => v1::AddressKind::Service,
            }
            .into(),
            image_class: binding.image_class,
            name: Some((&*binding.name).into()),
            node: binding.node.as_deref().map(str::to_owned),
        }),
        Resource::Network(zone, prefix, network) => Wire::Network(v1::Network {
            prefix: Some(zoned_prefix_to_wire(*zone, *prefix)),
            peer: Some(network.peer.into()),
            pod_range: network.pod_range,
        }),
        Resource::Ruleset(name, direction, policies) => Wire::Ruleset(v1::Ruleset {
            name: name.0.to_vec(),
            direction: v1::Direction::from(*direction).into(),
            policies: policies.clone(),
        }),
        Resource::RulesetEntry(name, peer, ports) => Wire::RulesetEntry(v1::RulesetEntry {
            ruleset: name.0.to_vec(),
            peer: Some((*peer).into()),
            port_set: port_set(ports),
        }),
        Resource::Endpoint(key, endpoint) => Wire::Endpoint(v1::LocalEndpoint {
            workload: Some(key.into()),
            uid: endpoint.uid.clone(),
            node: endpoint.node.clone(),
            identity: Some(endpoint.identity.into()),
            image_class: endpoint.image_class,
            addresses: endpoint.addresses.iter().copied().map(address_to_bytes).collect(),
            zone: u32::from(endpoint.zone.0),
            egress: endpoint.egress.0.to_vec(),
            ingress: endpoint.ingress.0.to_vec(),
            attachment: Some(v1::Attachment {
                netns: endpoint.attachment.netns.clone(),
                device: endpoint.attachment.device.clone(),
            }),
        }),
        Resource::Leases(class, claims) => Wire::Leases(v1::Leases {
            image_class: *class,
            leases: claims
                .iter()
                .map(|(profile, deadline)| v1::leases::Lease {
                    profile: profile.to_string(),
                    deadline: deadline.0,
                })
                .collect(),
        }),
    };
    v1::Resource { resource: Some(wire) }
}

/// Names that were read already: what many bindings say is kept once.
#[derive(Default, Debug)]
pub(crate) struct Shared {
    workloads: HashSet<Arc<WorkloadKey>>,
    nodes: HashSet<Arc<str>>,
}

impl Shared {
    fn workload(&mut self, key: WorkloadKey) -> Arc<WorkloadKey> {
        if let Some(known) = self.workloads.get(&key) {
            return Arc::clone(known);
        }
        let new = Arc::new(key);
        self.workloads.insert(Arc::clone(&new));
        new
    }

    fn node(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.nodes.get(name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = name.into();
        self.nodes.insert(Arc::clone(&new));
        new
    }
}

/// `port_sets` is the chunk's table, `shared` the revision's.
pub(crate) fn resource_from_wire(
    wire: v1::Resource,
    port_sets: &[Arc<PortSet>],
    shared: &mut Shared,
) -> Result<Resource, WireError> {
    use v1::resource::Resource as Wire;
    match required("resource", wire.resource)? {
        Wire::Identity(identity) => {
            let name = digest_from_bytes("name", &identity.name).inside("identity")?;
            Ok(Resource::Identity(name, Arc::new(Identity { atoms: identity.atoms })))
        }
        Wire::Binding(wire) => binding(wire, shared).inside("binding"),
        Wire::Network(wire) => network(wire).inside("network"),
        Wire::Ruleset(ruleset) => {
            let name = digest_from_bytes("name", &ruleset.name).inside("ruleset")?;
            Ok(Resource::Ruleset(
                name,
                direction(ruleset.direction).inside("ruleset")?,
                ruleset.policies,
            ))
        }
        Wire::RulesetEntry(wire) => entry(wire, port_sets).inside("ruleset_entry"),
        Wire::Endpoint(wire) => endpoint(wire).inside("endpoint"),
        Wire::Leases(wire) => leases(wire).inside("leases"),
    }
}

fn binding(wire: v1::Binding, shared: &mut Shared) -> Result<Resource, WireError> {
    let (zone, address) = zoned_address(&required("address", wire.address)?).inside("address")?;
    let kind = match v1::AddressKind::try_from(wire.kind) {
        Ok(v1::AddressKind::Pod) => AddressKind::Pod,
        Ok(v1::AddressKind::Node) => AddressKind::Node,
        Ok(v1::AddressKind::Service) => AddressKind::Service,
        Ok(v1::AddressKind::Unspecified) | Err(_) => {
            return Err(WireError::new("kind", Problem::UnknownEnum(wire.kind)));
        }
    };
    let binding = Binding {
        peer: peer(wire.peer).inside("peer")?,
        kind,
        image_class: wire.image_class,
        name: shared.workload(required("name", wire.name)?.into()),
        node: wire.node.map(|node| shared.node(&node)),
    };
    Ok(Resource::Binding(zone, address, binding))
}

fn network(wire: v1::Network) -> Result<Resource, WireError> {
    let (zone, prefix) = zoned_prefix(&required("prefix", wire.prefix)?).inside("prefix")?;
    let network = Network {
        peer: peer(wire.peer).inside("peer")?,
        pod_range: wire.pod_range,
    };
    Ok(Resource::Network(zone, prefix, network))
}

fn entry(wire: v1::RulesetEntry, port_sets: &[Arc<PortSet>]) -> Result<Resource, WireError> {
    let ruleset = digest_from_bytes("ruleset", &wire.ruleset)?;
    let peer = peer(wire.peer).inside("peer")?;
    let ports = usize::try_from(wire.port_set)
        .ok()
        .and_then(|index| port_sets.get(index))
        .ok_or_else(|| {
            WireError::new(
                "port_set",
                Problem::NoSuchIndex {
                    index: wire.port_set,
                    length: port_sets.len(),
                },
            )
        })?;
    Ok(Resource::RulesetEntry(ruleset, peer, Arc::clone(ports)))
}

fn endpoint(wire: v1::LocalEndpoint) -> Result<Resource, WireError> {
    let addresses: Result<BTreeSet<_>, _> = wire
        .addresses
        .iter()
        .map(|bytes| address_from_bytes("addresses", bytes))
        .collect();
    let attachment = required("attachment", wire.attachment)?;
    let endpoint = Endpoint {
        uid: wire.uid,
        node: wire.node,
        identity: peer(wire.identity).inside("identity")?,
        image_class: wire.image_class,
        addresses: addresses?,
        zone: zone(wire.zone)?,
        egress: digest_from_bytes("egress", &wire.egress)?,
        ingress: digest_from_bytes("ingress", &wire.ingress)?,
        attachment: Attachment {
            netns: attachment.netns,
            device: attachment.device,
        },
    };
    Ok(Resource::Endpoint(
        required("workload", wire.workload)?.into(),
        Arc::new(endpoint),
    ))
}

fn leases(wire: v1::Leases) -> Result<Resource, WireError> {
    let leases = wire.leases.into_iter();
    let claims: Result<Claims, WireError> = leases
        .map(|lease| Ok((profile(lease.profile)?, Deadline(lease.deadline))))
        .collect();
    Ok(Resource::Leases(wire.image_class, Arc::new(claims?)))
}

pub(crate) fn resource_name_to_wire(name: &ResourceName) -> v1::ResourceName {
    use v1::resource_name::{Entry, Name};
    let name = match name {
        ResourceName::Identity(name) => Name::Identity(name.0.to_vec()),
        ResourceName::Binding(zone, address) => Name::Binding(zoned_address_to_wire(*zone, *address)),
        ResourceName::Network(zone, prefix) => Name::Network(zoned_prefix_to_wire(*zone, *prefix)),
        ResourceName::Ruleset(name) => Name::Ruleset(name.0.to_vec()),
        ResourceName::RulesetEntry(name, peer) => Name::RulesetEntry(Entry {
            ruleset: name.0.to_vec(),
            peer: Some((*peer).into()),
        }),
        ResourceName::Endpoint(key) => Name::Endpoint(key.into()),
        ResourceName::Leases(class) => Name::Leases(*class),
    };
    v1::ResourceName { name: Some(name) }
}

pub(crate) fn resource_name_from_wire(wire: v1::ResourceName) -> Result<ResourceName, WireError> {
    use v1::resource_name::Name;
    Ok(match required("name", wire.name)? {
        Name::Identity(name) => ResourceName::Identity(digest_from_bytes("identity", &name)?),
        Name::Binding(wire) => {
            let (zone, address) = zoned_address(&wire).inside("binding")?;
            ResourceName::Binding(zone, address)
        }
        Name::Network(wire) => {
            let (zone, prefix) = zoned_prefix(&wire).inside("network")?;
            ResourceName::Network(zone, prefix)
        }
        Name::Ruleset(name) => ResourceName::Ruleset(digest_from_bytes("ruleset", &name)?),
        Name::RulesetEntry(entry) => ResourceName::RulesetEntry(
            digest_from_bytes("ruleset", &entry.ruleset).inside("ruleset_entry")?,
            peer(entry.peer).inside("peer").inside("ruleset_entry")?,
        ),
        Name::Endpoint(key) => ResourceName::Endpoint(key.into()),
        Name::Leases(class) => ResourceName::Leases(class),
    })
}
