//! A question about one new connection, and its answer: the words that the evaluator, the oracle and the tools share.

use std::{fmt, net::IpAddr};

use crate::{
    model::{Direction, Guard, Mode, RuleName, WorkloadKey, Zone},
    state::Decision,
};

/// An end of a connection: an address, and the workload whose device it passes when that is known.
///
/// An end given by its address alone is the workload that has the address, unless several claim it. As a *peer* an end
/// is always judged by its address: that is all the other side sees.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct End {
    /// The workload, when the asker knows it.
    pub workload: Option<WorkloadKey>,
    /// The address.
    pub address: IpAddr,
}

impl End {
    /// An address.
    pub fn address(address: IpAddr) -> Self {
        Self {
            workload: None,
            address,
        }
    }

    /// A workload, by one of its addresses.
    pub fn workload(workload: WorkloadKey, address: IpAddr) -> Self {
        Self {
            workload: Some(workload),
            address,
        }
    }
}

/// A new connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Network of both ends.
    pub zone: Zone,
    /// Who opens it.
    pub from: End,
    /// To whom.
    pub to: End,
    /// IP protocol number (6 = TCP).
    pub protocol: u8,
    /// Destination port; type << 8 | code for ICMP; ignored for protocols without ports.
    pub port: u16,
    /// The enforced verdict or the one in shadow.
    pub mode: Mode,
}

/// Which guards hold, for the end whose rules of a direction ask.
pub type Holding<'a> = &'a dyn Fn(Direction, &Guard) -> bool;

/// What the two ends say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The sender's egress rules; `None` when the sender is no workload.
    pub egress: Option<(Decision, RuleName)>,
    /// The receiver's ingress rules; `None` when the receiver is no workload.
    pub ingress: Option<(Decision, RuleName)>,
}

impl Outcome {
    /// Allowed at both ends.
    pub fn is_allowed(&self) -> bool {
        [&self.egress, &self.ingress]
            .into_iter()
            .flatten()
            .all(|(decision, _)| *decision == Decision::Allow)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_allowed() { "allowed" } else { "denied" };
        write!(f, "{verdict}")?;
        for (direction, end) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            match end {
                None => write!(f, ", {direction} none")?,
                Some((Decision::Allow, rule)) => write!(f, ", {direction} allowed by {rule}")?,
                Some((Decision::Deny, rule)) => write!(f, ", {direction} denied by {rule}")?,
            }
        }
        Ok(())
    }
}
