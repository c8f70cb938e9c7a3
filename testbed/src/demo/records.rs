//! Finds the flow record that tells what became of a connection, and puts it into words.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use bulkhead_proto::v1::{Flow, FlowEvent, Verdict, layer4::Protocol};

use crate::{client::Flows, process};

/// Records as they come in.
pub(super) struct Records {
    incoming: Flows,
    seen: Vec<Flow>,
}

/// A connection to find the record of.
pub(super) struct Wanted {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) port: Option<u16>,
    pub(super) passed: bool,
}

impl Records {
    pub(super) fn new(incoming: Flows) -> Self {
        Self {
            incoming,
            seen: Vec::new(),
        }
    }

    /// Forgets what has come so far.
    pub(super) fn clear(&mut self) {
        self.incoming.waiting().for_each(drop);
        self.seen.clear();
    }

    /// Waits for a record that a condition picks.
    pub(super) fn find(&mut self, within: Duration, pick: impl Fn(&Flow) -> bool) -> Option<Flow> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(flow) = self.seen.iter().find(|flow| pick(flow)) {
                return Some(flow.clone());
            }
            let left = deadline
                .saturating_duration_since(Instant::now())
                .min(Duration::from_millis(100));
            match self.incoming.next(left) {
                Some(flow) => self.seen.push(flow),
                None if Instant::now() >= deadline || process::stopped() => return None,
                None => {}
            }
        }
    }

    /// The rules that decided, as text: of the end that denied, or of both ends that allowed.
    pub(super) fn why(&mut self, wanted: &Wanted, within: Duration) -> Option<String> {
        let verdict = if wanted.passed {
            Verdict::Forwarded
        } else {
            Verdict::Dropped
        };
        let mine = |flow: &Flow| flow.verdict() == verdict && joins(flow, wanted);
        let first = self.find(within, mine)?;
        if !wanted.passed {
            return Some(words(&first));
        }
        // An allowed connection was judged twice on this node: where it left and where it arrived.
        let second = self.find(Duration::from_millis(500), |flow| {
            mine(flow) && flow.traffic_direction != first.traffic_direction
        });
        let mut rules = vec![first.rule];
        rules.extend(second.map(|flow| flow.rule));
        rules.dedup();
        let default = |rule: &String| rule == "builtin/default-allow";
        if rules.len() > 1 {
            rules.retain(|rule| !default(rule));
        }
        Some(rules.join(" + "))
    }
}

/// True when a record is about a new connection between these ends.
fn joins(flow: &Flow, wanted: &Wanted) -> bool {
    let Some(ip) = &flow.ip else { return false };
    let ends = ip.source.parse() == Ok(wanted.from) && ip.destination.parse() == Ok(wanted.to);
    let events = [FlowEvent::Open, FlowEvent::Deny, FlowEvent::Cut];
    ends && events.contains(&flow.event())
        && wanted
            .port
            .is_none_or(|port| destination_port(flow) == Some(port.into()))
}

fn destination_port(flow: &Flow) -> Option<u32> {
    match flow.l4.as_ref()?.protocol.as_ref()? {
        Protocol::Tcp(tcp) => Some(tcp.destination_port),
        Protocol::Udp(udp) => Some(udp.destination_port),
        Protocol::Sctp(sctp) => Some(sctp.destination_port),
        _ => None,
    }
}

/// `rule (reason)`, the reason only where it says more than the verdict.
pub(super) fn words(flow: &Flow) -> String {
    match (flow.rule.as_str(), flow.reason.as_str()) {
        ("", reason) => reason.to_owned(),
        (rule, "policy-denied" | "policy-allowed") => rule.to_owned(),
        (rule, reason) => format!("{rule} ({reason})"),
    }
}
