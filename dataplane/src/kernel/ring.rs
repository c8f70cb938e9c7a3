//! The event ring, read by polling: programs never wake us, which would cost more than a verdict.

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use bulkhead_verdict::layout::Event;
use zerocopy::FromBytes;

use super::KernelError;

/// The consuming end of `BK_EVENT`. There is one per machine; its position is in the kernel, so a successor goes on
/// where we stopped.
pub(crate) struct EventRing {
    ring: RingBuf<MapData>,
}

impl EventRing {
    pub(crate) fn open(folder: &Path) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Ring {
            source: Box::new(source),
        };
        let map = MapData::from_pin(folder.join("BK_EVENT")).map_err(failed)?;
        Ok(Self {
            ring: RingBuf::try_from(Map::RingBuf(map)).map_err(failed)?,
        })
    }

    /// The oldest event not taken yet, copied out (its place in the ring is free at once).
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            if let Ok((event, _)) = Event::read_from_prefix(&item) {
                return Some(event);
            }
        }
    }
}
