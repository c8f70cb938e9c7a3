//! What each endpoint has of CONFIRMED: tells the kernel after each look at the table, and people when it gets full.

use std::{cmp::Reverse, collections::BTreeMap};

use bulkhead_verdict::{
    layout::{CONFIRMED, InternKey, intern_kind},
    quota,
};

use super::table::Scan;
use crate::{
    kernel::{KernelError, Maps},
    names::Names,
};

/// Endpoints that a warning names.
const NAMED: usize = 3;

/// What the kernel was told last.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// `None` before the first time: what a predecessor told it is there still.
    told: Option<BTreeMap<u32, u32>>,
    /// A warning was given and not taken back.
    warned: bool,
}

impl Shares {
    /// Sets the kernel's counts to what was seen.
    pub(crate) fn publish(&mut self, maps: &Maps, names: &Names, scan: &Scan) -> Result<(), KernelError> {
        self.warn(names, scan);
        let before = match self.told.take() {
            Some(told) => told,
            None => (0..quota::ALL).map(|slot| (slot, 0)).collect(),
        };
        let gone = before.keys().map(|slot| (*slot, 0));
        let mut wanted: BTreeMap<u32, u32> = gone.chain(scan.shares.clone()).collect();
        wanted.insert(quota::ALL, scan.shares.values().sum());
        for (slot, count) in wanted {
            set(maps, slot, u64::from(count))?;
        }
        self.told = Some(scan.shares.clone());
        Ok(())
    }

    fn warn(&mut self, names: &Names, scan: &Scan) {
        let used = scan.confirmed;
        if used < CONFIRMED / 2 {
            self.warned = false;
        } else if used >= CONFIRMED / 4 * 3 && !self.warned {
            self.warned = true;
            tracing::warn!(
                flows = used,
                room = CONFIRMED,
                most = %most(names, &scan.shares),
                "the flow table is three quarters full; no endpoint gets more of it than there is room left, and live flows stay"
            );
        }
    }
}

/// Corrects a count, if it is wrong. Openings that are taken in this very moment may be lost: the budget gets larger by these few.
fn set(maps: &Maps, slot: u32, count: u64) -> Result<(), KernelError> {
    match maps.quotas.get(&slot)? {
        Some([openings, confirmed]) if confirmed != count => maps.quotas.set(&slot, &[openings, count]),
        _ => Ok(()),
    }
}

/// Who has most, as `namespace/name=flows`.
fn most(names: &Names, shares: &BTreeMap<u32, u32>) -> String {
    let mut shares: Vec<(u32, u32)> = shares.iter().map(|(slot, count)| (*slot, *count)).collect();
    shares.sort_unstable_by_key(|(_, count)| Reverse(*count));
    let named = shares.into_iter().take(NAMED).map(|(slot, count)| {
        let key = InternKey {
            kind: intern_kind::ENDPOINT,
            number: slot,
        };
        let name = names.text(key).unwrap_or_else(|| "an endpoint that is gone".into());
        format!("{name}={count}")
    });
    named.collect::<Vec<_>>().join(" ")
}
