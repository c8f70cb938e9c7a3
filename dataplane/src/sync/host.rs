//! The node itself as an endpoint: its own addresses in the kernel, and programs on the devices that lead out of it.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_policy::{model::Zone, state::AddressKind};

use super::{Sync, SyncError, mirror::Live};
use crate::kernel::{KernelError, Leads, Standing};

impl Sync {
    /// Devices an earlier agent judged the node at get this build's programs in place.
    pub(super) fn adopt_host(&mut self) -> Result<(), KernelError> {
        self.attached_out = self.ground.attached_out()?.into_iter().collect();
        for ifindex in &self.attached_out {
            if let Err(error) = self.ground.attach_out(*ifindex) {
                tracing::warn!("keeping the former programs on a device: {}", crate::chain(&error));
            }
        }
        Ok(())
    }

    /// Takes programs off devices that are not to be judged any more. The node's configuration is gone by then, so until now they
    /// let everything pass.
    pub(super) fn release_host(&mut self) -> Result<(), KernelError> {
        let wanted: BTreeSet<u32> = self.endpoints.leading_out().map(|(ifindex, _)| *ifindex).collect();
        for ifindex in self.attached_out.clone() {
            if !wanted.contains(&ifindex) {
                tracing::info!(
                    ifindex,
                    "programs taken off a device: the node is not judged there any more"
                );
                self.ground.detach_out(ifindex)?;
                self.attached_out.remove(&ifindex);
            }
        }
        Ok(())
    }

    /// Writes the node's own addresses, then puts programs on the devices that lack them.
    pub(super) fn attach_host(&mut self) -> Result<(), SyncError> {
        self.write_own()?;
        let Some(key) = self.endpoints.host().cloned() else {
            return Ok(());
        };
        let missing: Vec<(u32, String)> = self
            .endpoints
            .leading_out()
            .filter(|(ifindex, _)| !self.attached_out.contains(ifindex))
            .map(|(ifindex, name)| (*ifindex, name.clone()))
            .collect();
        for (ifindex, name) in missing {
            self.shared.devices.learn(ifindex, &name);
            if let Err(error) = self.ground.attach_out(ifindex) {
                tracing::warn!(device = name, "the node is not judged here: {}", crate::chain(&error));
                continue;
            }
            self.attached_out.insert(ifindex);
            tracing::info!(device = name, "the node is judged here");
            self.inherit(&key, ifindex);
        }
        Ok(())
    }

    /// Tells the kernel which addresses are the node's own. Not those that it has on its devices for a Service or a pod: what comes
    /// for them goes on, to where it is judged.
    fn write_own(&mut self) -> Result<(), KernelError> {
        let bindings = &self.planner.state().bindings;
        let others = |address: &IpAddr| {
            let binding = bindings.get(&(Zone::default(), *address));
            binding.is_some_and(|binding| binding.kind != AddressKind::Node)
        };
        let own: BTreeSet<IpAddr> = self.endpoints.host_addresses().filter(|it| !others(it)).collect();
        if self.own_written.as_ref() != Some(&own) {
            self.ground.set_own(&own)?;
            self.own_written = Some(own);
        }
        Ok(())
    }

    /// The node's place in the kernel when it is enforced on every device that leads out, else why it is not.
    pub(super) fn live_host(&self) -> (Option<Live>, String) {
        let mut devices = self.endpoints.leading_out();
        let Some((first, _)) = devices.next() else {
            return (
                None,
                "no device leads out of this node: none has a default route (option --uplink)".to_owned(),
            );
        };
        let unattached = self
            .endpoints
            .leading_out()
            .find(|(ifindex, _)| !self.attached_out.contains(ifindex));
        if let Some((_, name)) = unattached {
            return (None, format!("device {name}: programs are not attached"));
        }
        match self.mirror.of_device(*first) {
            Some(live) => (Some(live), String::new()),
            None => (None, "the node has no configuration in the kernel".to_owned()),
        }
    }

    /// Whether the devices that lead out still have our programs; how many do not. Others' programs before ours go into `ahead`.
    pub(super) fn compare_host(&mut self, ahead_of_us: &mut BTreeSet<(u32, Vec<u32>)>) -> Result<usize, KernelError> {
        let mut lost = 0_usize;
        for ifindex in self.attached_out.clone() {
            match self.ground.standing(ifindex, Leads::Out)? {
                Standing::NoDevice => {}
                Standing::There { ahead } if ahead.is_empty() => {}
                Standing::There { ahead } => drop(ahead_of_us.insert((ifindex, ahead))),
                Standing::Missing { program } => {
                    tracing::warn!(
                        ifindex,
                        program,
                        "DRIFT: a device that leads out has lost its program, and the node was not judged; it is attached again"
                    );
                    self.attached_out.remove(&ifindex);
                    lost = lost.saturating_add(1);
                }
            }
        }
        Ok(lost)
    }
}
