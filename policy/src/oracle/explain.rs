//! The whole ladder of one connection: every tier, every policy that selects the end, every rule, and what decided.

use std::fmt;

use super::{Direction, Guards, Judge, Matches, Subject, World};
use crate::{
    model::{Action, Guard, Mode, Object, PolicyKey, RuleName, Tier, WorkloadKey},
    probe::{Holding, Probe},
    state::Decision,
};

/// What one end says of a connection, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The workload whose rules these are.
    pub subject: WorkloadKey,
    /// Egress at the sender, ingress at the receiver.
    pub direction: Direction,
    /// Every tier, in order of evaluation.
    pub tiers: Vec<TierReport>,
    /// What was decided.
    pub decision: Decision,
    /// By which rule.
    pub rule: RuleName,
}

/// A tier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TierReport {
    /// Which.
    pub tier: Tier,
    /// The policies of the tier that select the subject and have a say in the direction, in order.
    pub policies: Vec<PolicyReport>,
}

/// A policy that selects the subject.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyReport {
    /// Its name.
    pub policy: PolicyKey,
    /// Its priority; 0 in the NetworkPolicy tier.
    pub priority: u32,
    /// Enforced or shadow.
    pub mode: Mode,
    /// Its default-deny decided.
    pub isolation_decided: bool,
    /// Its rules in order.
    pub rules: Vec<RuleReport>,
}

/// A rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleReport {
    /// Its name.
    pub rule: RuleName,
    /// What it does with what it matches.
    pub action: Action,
    /// Does it match this connection?
    pub matches: Matches,
    /// Its guard, and whether that holds.
    pub guard: Option<(Guard, bool)>,
    /// Enforced or shadow.
    pub mode: Mode,
    /// It decided.
    pub decided: bool,
}

/// Explains a connection: the sender's egress and the receiver's ingress, as far as they are workloads. A connection of
/// a workload to itself has nothing to explain.
pub fn explain(objects: &[Object], probe: &Probe, holding: Holding<'_>) -> Vec<Explanation> {
    let world = World::new(objects);
    let from = world.subject(probe.zone, &probe.from);
    let to = world.subject(probe.zone, &probe.to);
    if from.is_some() && from.map(Subject::key) == to.map(Subject::key) {
        return Vec::new();
    }
    [(from, Direction::Egress), (to, Direction::Ingress)]
        .into_iter()
        .filter_map(|(subject, direction)| Some((subject?, direction)))
        .map(|(subject, direction)| Judge::new(&world, probe, direction, subject))
        .filter(|judge| !judge.stays_inside())
        .map(|judge| {
            let direction = judge.direction;
            let (decision, rule) = judge.judge(Guards::As(holding, direction));
            let tier = |tier| judge.report(tier, holding, &rule);
            let tiers = [Tier::Admin, Tier::NetworkPolicy, Tier::Baseline].map(tier).to_vec();
            Explanation {
                subject: judge.subject.key(),
                direction,
                tiers,
                decision,
                rule,
            }
        })
        .collect()
}

impl Judge<'_> {
    fn report(&self, tier: Tier, holding: Holding<'_>, decided: &RuleName) -> TierReport {
        let has_say = |policy: &crate::model::Policy| match tier {
            Tier::NetworkPolicy => policy.isolates.contains(&self.direction),
            Tier::Admin | Tier::Baseline => !self.rules(policy).is_empty(),
        };
        let of_tier = self
            .selecting
            .iter()
            .filter(|policy| policy.tier == tier && has_say(policy));
        let policies = of_tier.map(|policy| PolicyReport {
            policy: policy.key.clone(),
            priority: policy.priority,
            mode: policy.mode,
            isolation_decided: matches!(decided, RuleName::DefaultDeny { policy: by, .. } if *by == policy.key),
            rules: self
                .rules(policy)
                .iter()
                .map(|rule| {
                    let name = self.name(policy, rule);
                    RuleReport {
                        decided: name == *decided,
                        rule: name,
                        action: rule.action,
                        matches: self.world.matches(rule, self),
                        guard: rule
                            .guard
                            .as_ref()
                            .map(|guard| (guard.clone(), holding(self.direction, guard))),
                        mode: if policy.mode == Mode::Shadow {
                            Mode::Shadow
                        } else {
                            rule.mode
                        },
                    }
                })
                .collect(),
        });
        TierReport {
            tier,
            policies: policies.collect(),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = |decision| match decision {
            Decision::Allow => "allowed",
            Decision::Deny => "denied",
        };
        writeln!(
            f,
            "{} of {}: {} by {}",
            self.direction,
            self.subject,
            verdict(self.decision),
            self.rule
        )?;
        for TierReport { tier, policies } in &self.tiers {
            let tier = match tier {
                Tier::Admin => "admin tier",
                Tier::NetworkPolicy => "networkpolicy tier",
                Tier::Baseline => "baseline tier",
            };
            let none = if policies.is_empty() {
                ": no policy has a say"
            } else {
                ""
            };
            writeln!(f, "  {tier}{none}")?;
            policies.iter().try_for_each(|policy| policy.fmt(f))?;
        }
        Ok(())
    }
}

impl fmt::Display for PolicyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shadow = if self.mode == Mode::Shadow { " (shadow)" } else { "" };
        let deny = if self.isolation_decided {
            "  ◄ its default-deny decided"
        } else {
            ""
        };
        writeln!(f, "    {}{shadow}{deny}", self.policy)?;
        for rule in &self.rules {
            let action = match rule.action {
                Action::Allow => "allow",
                Action::Deny => "deny",
                Action::Pass => "pass",
            };
            let matches = match rule.matches {
                Matches::No => "does not match",
                Matches::Perhaps => "matches some pods this address may be",
                Matches::Yes => "matches",
            };
            let guard = match &rule.guard {
                None => String::new(),
                Some((Guard::Name(names), true)) => format!(", the address is learned for one of {names}"),
                Some((Guard::Name(names), false)) => {
                    format!(", if the address is learned for one of {names}, which it is not")
                }
                Some((Guard::Lease { profile, side, negated }, holds)) => {
                    let runs = if holds == negated { "does not run" } else { "runs" };
                    format!(", the lease of profile {profile} for the {side}'s images {runs}")
                }
                Some((_, true)) => ", its guard holds".to_owned(),
                Some((_, false)) => ", its guard does not hold".to_owned(),
            };
            let shadow = if rule.mode == Mode::Shadow { " (shadow)" } else { "" };
            let decided = if rule.decided { "  ◄ decided" } else { "" };
            writeln!(f, "      {action} {}{shadow}: {matches}{guard}{decided}", rule.rule)?;
        }
        Ok(())
    }
}
