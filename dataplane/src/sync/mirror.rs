//! Which slot, generation and identity a device has in the kernel, followed write by write.

use std::collections::HashMap;

use bulkhead_policy::plan::{MapDump, MapOp};
use bulkhead_verdict::layout::EndpointWord;

/// An endpoint's place in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Live {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    pub(crate) identity: u32,
}

/// The three maps that say it.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    devices: HashMap<u32, u32>,
    words: HashMap<u32, EndpointWord>,
    /// Device and identity by configuration.
    configs: HashMap<u32, (u32, u32)>,
}

impl Mirror {
    /// What a dump says.
    pub(crate) fn of(dump: &MapDump) -> Self {
        let words = (0..).zip(&dump.endpoints).filter(|(_, word)| word.config != 0);
        let configs = (0..).zip(&dump.configs).filter(|(_, config)| config.ifindex != 0);
        Self {
            devices: dump.devices.iter().map(|(ifindex, slot)| (*ifindex, *slot)).collect(),
            words: words.map(|(slot, word)| (slot, *word)).collect(),
            configs: configs
                .map(|(index, config)| (index, (config.ifindex, config.identity)))
                .collect(),
        }
    }

    /// Takes writes into account.
    pub(crate) fn follow(&mut self, ops: &[MapOp]) {
        for op in ops {
            match op {
                MapOp::Device(ifindex, slot) => drop(self.devices.insert(*ifindex, *slot)),
                MapOp::RemoveDevice(ifindex) => drop(self.devices.remove(ifindex)),
                MapOp::Endpoint(slot, word) => drop(self.words.insert(*slot, *word)),
                MapOp::Config(index, config) => {
                    self.configs.insert(*index, (config.ifindex, config.identity));
                }
                _ => {}
            }
        }
    }

    /// The endpoint behind a device; `None` when the kernel would drop everything there.
    pub(crate) fn of_device(&self, ifindex: u32) -> Option<Live> {
        let slot = *self.devices.get(&ifindex)?;
        let word = self.words.get(&slot).filter(|word| word.config != 0)?;
        let (device, identity) = *self.configs.get(&word.config)?;
        (device == ifindex).then_some(Live {
            slot,
            generation: word.generation,
            identity,
        })
    }
}
