//! What the sync thread writes to: this machine's kernel, or maps in memory where only the thread itself is looked at.

use std::{collections::BTreeSet, net::IpAddr};

use bulkhead_policy::{
    fqdn::{NameTables, Pattern},
    plan::{MapDump, MapKind, MapOp, MapWriter as _},
};
use bulkhead_verdict::{
    address::Address,
    layout::{Flow, FlowKey, LeaseKey},
    maps::Hook,
    reason::Reason,
};

use crate::kernel::{Fuse, Kernel, KernelError, Leads, Learning, Place, Standing, Writer};

/// Maps, and devices that can carry programs.
pub(crate) trait Ground: Send {
    /// The maps were there before this process.
    fn found(&self) -> bool;
    /// Raises the global epoch: every flow is judged again on its next packet.
    fn raise_epoch(&mut self) -> Result<(), KernelError>;
    /// Carries out writes in order, and stops at the first that fails.
    fn apply(&mut self, ops: &[MapOp]) -> Result<(), KernelError>;
    /// What the maps hold.
    fn dump(&self) -> Result<MapDump, KernelError>;
    /// Devices that carry our programs.
    fn attached(&self) -> Result<Vec<u32>, KernelError>;
    /// Puts our programs on a device.
    fn attach(&mut self, ifindex: u32) -> Result<(), KernelError>;
    /// Takes our programs off a device, or forgets one that is gone.
    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError>;
    /// Devices that lead out of the node and carry our programs.
    fn attached_out(&self) -> Result<Vec<u32>, KernelError> {
        Ok(Vec::new())
    }
    /// Puts our programs on a device that leads out of the node.
    fn attach_out(&mut self, _ifindex: u32) -> Result<(), KernelError> {
        Ok(())
    }
    /// Takes our programs off such a device, or forgets one that is gone.
    fn detach_out(&mut self, _ifindex: u32) -> Result<(), KernelError> {
        Ok(())
    }
    /// Makes these the node's own addresses.
    fn set_own(&mut self, _addresses: &BTreeSet<IpAddr>) -> Result<(), KernelError> {
        Ok(())
    }
    /// Adds a flow that is older than its judge, unless there is one.
    fn add_flow(&mut self, key: &FlowKey, flow: Flow) -> Result<(), KernelError>;
    /// What the maps hold where a write writes; see `kernel::elements`.
    fn element(&self, like: &MapOp) -> Result<Option<MapOp>, KernelError>;
    /// The next elements of a map, and whether they are the last.
    fn scan(&self, kind: MapKind, place: &mut Place, count: usize) -> Result<(Vec<MapOp>, bool), KernelError>;
    /// Whether our programs are where they were put on a device.
    fn standing(&self, ifindex: u32, leads: Leads) -> Result<Standing, KernelError>;
    /// Packets judged at a hook, those apart that the other hook sent there as answers.
    fn judged(&self, _hook: Hook) -> Result<u64, KernelError> {
        Ok(0)
    }
    /// Puts epochs right that are not what was written last; what was found, as text.
    fn put_epochs_right(&mut self) -> Result<Vec<String>, KernelError> {
        Ok(Vec::new())
    }
    /// What the maps hold beside or instead of these names, as text.
    fn name_differences(&self, _tables: &NameTables) -> Result<Vec<String>, KernelError> {
        Ok(Vec::new())
    }
    /// The deadlines of leases that the maps hold.
    fn leases(&self) -> Result<Vec<(LeaseKey, u64)>, KernelError> {
        Ok(Vec::new())
    }
    /// Writes deadlines of leases, `CLOCK_BOOTTIME`.
    fn set_leases(&mut self, _leases: &[(LeaseKey, u64)]) -> Result<(), KernelError> {
        Ok(())
    }
    /// Takes leases away.
    fn remove_leases(&mut self, _leases: &[LeaseKey]) -> Result<(), KernelError> {
        Ok(())
    }
    /// Adds names that rules are about to ask for.
    fn widen_names(&mut self, _tables: &NameTables) -> Result<(), KernelError> {
        Ok(())
    }
    /// Takes away names that no rule asks for any more.
    fn narrow_names(&mut self, _tables: &NameTables) -> Result<(), KernelError> {
        Ok(())
    }
    /// Patterns that the maps hold.
    fn former_names(&self) -> Result<BTreeSet<Pattern>, KernelError> {
        Ok(BTreeSet::new())
    }
    /// Devices whose endpoints learned something.
    fn learned_devices(&self) -> Result<BTreeSet<u32>, KernelError> {
        Ok(BTreeSet::new())
    }
    /// Forgets what the endpoints of these devices learned.
    fn forget_learned(&mut self, _devices: &BTreeSet<u32>) -> Result<(), KernelError> {
        Ok(())
    }
}

/// This machine's kernel.
pub(crate) struct Machine {
    kernel: Kernel,
    writer: Writer,
    learning: Learning,
}

impl Machine {
    /// Takes over the maps.
    pub(crate) fn new(kernel: Kernel, fuse: Fuse, learning: Learning) -> Result<Self, KernelError> {
        Ok(Self {
            writer: kernel.writer(fuse)?,
            kernel,
            learning,
        })
    }
}

impl Ground for Machine {
    fn found(&self) -> bool {
        self.kernel.found_pins()
    }

    fn raise_epoch(&mut self) -> Result<(), KernelError> {
        self.writer.raise_epoch()
    }

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), KernelError> {
        self.writer.apply(ops)
    }

    fn dump(&self) -> Result<MapDump, KernelError> {
        self.kernel.dump()
    }

    fn attached(&self) -> Result<Vec<u32>, KernelError> {
        self.kernel.attached()
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.kernel.attach(ifindex)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.kernel.detach(ifindex)
    }

    fn add_flow(&mut self, key: &FlowKey, flow: Flow) -> Result<(), KernelError> {
        self.kernel.maps.confirmed.add(key, flow)
    }

    fn element(&self, like: &MapOp) -> Result<Option<MapOp>, KernelError> {
        self.kernel.maps.element(like)
    }

    fn scan(&self, kind: MapKind, place: &mut Place, count: usize) -> Result<(Vec<MapOp>, bool), KernelError> {
        self.kernel.maps.scan(kind, place, count)
    }

    fn standing(&self, ifindex: u32, leads: Leads) -> Result<Standing, KernelError> {
        self.kernel.standing(ifindex, leads)
    }

    fn attached_out(&self) -> Result<Vec<u32>, KernelError> {
        self.kernel.attached_out()
    }

    fn attach_out(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.kernel.attach_out(ifindex)
    }

    fn detach_out(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.kernel.detach_out(ifindex)
    }

    fn set_own(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), KernelError> {
        let own = &self.kernel.maps.own;
        let mut there = Vec::new();
        own.for_each(|address, _| there.push(address))?;
        let wanted: Vec<Address> = addresses.iter().map(|address| Address::from(*address)).collect();
        for address in wanted.iter().filter(|address| !there.contains(address)) {
            own.set(address, &1)?;
        }
        there.retain(|address| !wanted.contains(address));
        own.remove_all(&there)
    }

    fn judged(&self, hook: Hook) -> Result<u64, KernelError> {
        let counters = self.kernel.maps.stats.sums()?;
        let of = |reason: &Reason| {
            let index = usize::from(hook as u8) << 8 | usize::from(*reason as u8);
            counters.get(index).map_or(0, |counter| counter.packets)
        };
        let judged = Reason::ALL.iter().filter(|reason| **reason != Reason::Answer);
        Ok(judged.map(of).fold(0, u64::wrapping_add))
    }

    fn put_epochs_right(&mut self) -> Result<Vec<String>, KernelError> {
        self.writer.put_epochs_right()
    }

    fn name_differences(&self, tables: &NameTables) -> Result<Vec<String>, KernelError> {
        self.kernel.maps.names.differences(tables, self.learning)
    }

    fn leases(&self) -> Result<Vec<(LeaseKey, u64)>, KernelError> {
        let mut all = Vec::new();
        self.kernel
            .maps
            .leases
            .for_each(|key, deadline| all.push((key, deadline)))?;
        Ok(all)
    }

    fn set_leases(&mut self, leases: &[(LeaseKey, u64)]) -> Result<(), KernelError> {
        self.kernel.maps.leases.set_all(leases)
    }

    fn remove_leases(&mut self, leases: &[LeaseKey]) -> Result<(), KernelError> {
        self.kernel.maps.leases.remove_all(leases)
    }

    fn widen_names(&mut self, tables: &NameTables) -> Result<(), KernelError> {
        self.kernel.maps.names.widen(tables, self.learning)
    }

    fn narrow_names(&mut self, tables: &NameTables) -> Result<(), KernelError> {
        self.kernel.maps.names.narrow(tables)
    }

    fn former_names(&self) -> Result<BTreeSet<Pattern>, KernelError> {
        self.kernel.maps.names.former()
    }

    fn learned_devices(&self) -> Result<BTreeSet<u32>, KernelError> {
        self.kernel.maps.names.devices()
    }

    fn forget_learned(&mut self, devices: &BTreeSet<u32>) -> Result<(), KernelError> {
        self.kernel.maps.names.forget(devices)
    }
}
