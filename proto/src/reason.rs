//! Our reasons in Hubble's words.

use bulkhead_verdict::reason::Reason;

use crate::v1::{DropReason, Flow, Verdict};

/// The nearest of Hubble's drop reasons; unknown for a reason that passes.
#[must_use]
pub fn drop_reason(reason: Reason) -> DropReason {
    match reason {
        Reason::PolicyDenied | Reason::Revoked => DropReason::PolicyDenied,
        Reason::MidStream => DropReason::CtMissingTcpAckFlag,
        Reason::FragmentOrphan | Reason::NameEarly => DropReason::FirstLogicalDatagramFragmentNotFound,
        Reason::SpoofedAddress | Reason::SpoofedArp | Reason::SpoofedNeighbour => DropReason::InvalidSourceIp,
        Reason::SpoofedMac => DropReason::InvalidSourceMac,
        Reason::WrongDestination => DropReason::StaleOrUnroutableIp,
        Reason::MalformedTransport | Reason::UnrelatedError => DropReason::CtTruncatedOrInvalidHeader,
        Reason::ExtensionHeaders => DropReason::InvalidIpv6ExtensionHeader,
        Reason::UnknownEthertype => DropReason::UnsupportedL3Protocol,
        Reason::FlowTableFull | Reason::FlowQuota => DropReason::CtMapInsertionFailed,
        Reason::MalformedEthernet | Reason::MalformedIpv4 | Reason::MalformedIpv6 | Reason::MalformedArp => {
            DropReason::InvalidPacketDropped
        }
        Reason::UnknownEndpoint | Reason::MissingConfig | Reason::MissingRuleset => {
            DropReason::NoConfigurationAvailableToPerformPolicyDecision
        }
        // A list says so, or a limit: the nearest is an explicit deny.
        reason if reason.is_uplink() => DropReason::PolicyDeny,
        // What is dropped for a reason this table does not name is our own broken or missing state.
        other if !other.passes() => DropReason::NoConfigurationAvailableToPerformPolicyDecision,
        _ => DropReason::Unknown,
    }
}

impl Flow {
    /// Sets verdict, reason, its number and Hubble's drop reason, which always belong together.
    pub fn set_judgement(&mut self, reason: Reason) {
        let verdict = if reason.passes() {
            Verdict::Forwarded
        } else {
            Verdict::Dropped
        };
        self.set_verdict(verdict);
        self.set_drop_reason_desc(drop_reason(reason));
        reason.name().clone_into(&mut self.reason);
        self.reason_number = u32::from(reason as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_drops_have_a_drop_reason() {
        for reason in Reason::ALL {
            let mut flow = Flow::default();
            flow.set_judgement(*reason);
            assert_eq!(flow.verdict() == Verdict::Dropped, !reason.passes(), "{reason:?}");
            assert_eq!(
                flow.drop_reason_desc() != DropReason::Unknown,
                !reason.passes(),
                "{reason:?}"
            );
            assert_eq!(flow.reason, reason.name());
        }
    }
}
