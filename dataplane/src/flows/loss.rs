//! Loss, counted: gaps in the per-CPU numbers of events, and denials that found no place in the kernel's table.

use std::collections::BTreeMap;

/// CPUs that are told apart; more than any machine has.
const CPUS: usize = 4_096;

/// The numbers seen last.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    last: BTreeMap<u32, u64>,
}

impl Gaps {
    /// Takes an event's number; gives how many events of that CPU are missing before it. Of the first event of a CPU
    /// nothing is known: the events before it were an earlier agent's to read.
    pub(crate) fn take(&mut self, cpu: u32, sequence: u64) -> u64 {
        if self.last.len() >= CPUS && !self.last.contains_key(&cpu) {
            return 0;
        }
        match self.last.insert(cpu, sequence) {
            Some(last) => sequence.saturating_sub(last).saturating_sub(1),
            None => 0,
        }
    }
}

/// A counter of the kernel that only rises, read again and again.
#[derive(Debug, Default)]
pub(crate) struct Rising {
    last: Option<u64>,
}

impl Rising {
    /// How much it rose since it was read last; 0 at first.
    pub(crate) fn take(&mut self, now: u64) -> u64 {
        self.last.replace(now).map_or(0, |last| now.saturating_sub(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_per_cpu() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.take(0, 7), 0, "the first number is where we begin");
        assert_eq!(gaps.take(0, 8), 0);
        assert_eq!(gaps.take(1, 100), 0);
        assert_eq!(gaps.take(0, 12), 3);
        assert_eq!(gaps.take(1, 101), 0);
    }

    #[test]
    fn rising() {
        let mut rising = Rising::default();
        assert_eq!([rising.take(5), rising.take(5), rising.take(9)], [0, 0, 4]);
    }
}
