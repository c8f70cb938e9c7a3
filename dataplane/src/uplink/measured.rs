//! One feed and its tables for benchmarks: the agent's own code, without anything around it.

use std::sync::Arc;

use super::{
    lines::{self, Lines},
    tables,
};
use crate::kernel::{KernelError, UplinkMaps};

/// What tables hold.
#[derive(Default)]
pub(crate) struct Held(Vec<Arc<Lines>>);

impl Held {
    /// Brings tables from what they hold to another feed; the number of writes.
    pub(crate) fn change(&mut self, mut maps: &UplinkMaps, feed: Arc<Lines>) -> Result<u64, KernelError> {
        let wanted = vec![feed];
        let writes = tables::change(&mut maps, &self.0, &wanted)?;
        self.0 = wanted;
        Ok(writes)
    }
}

/// The lines of a text.
pub(crate) fn lines_of(text: &str) -> Lines {
    lines::read(text).lines
}
