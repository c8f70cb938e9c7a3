//! Rules and port sets on the wire. Alternatives name their rule by index into the chunk's table of rules.

use std::collections::{BTreeSet, HashMap};

use bulkhead_policy::{
    fqdn::{Names, Pattern},
    lease::Profile,
    model::{Answer, Builtin, Direction, Guard, Manner, OnChange, RuleName, Side},
    state::{Alternative, Decision, PortSet, Range},
};
use bulkhead_verdict::port::Position;
use prost::Message as _;

use super::{
    Inside as _, Problem, WireError,
    name::{direction, policy},
    required,
};
use crate::v1;

/// The rules of a chunk, each once.
#[derive(Default, Debug)]
pub struct RuleTable {
    indices: HashMap<RuleName, u32>,
    rules: Vec<v1::RuleName>,
    bytes: usize,
}

impl RuleTable {
    /// Index of a rule, which is added if it is new.
    pub(crate) fn index(&mut self, name: &RuleName) -> u32 {
        if let Some(index) = self.indices.get(name) {
            return *index;
        }
        let index = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        let rule = v1::RuleName::from(name);
        self.bytes += rule.encoded_len() + 4;
        self.rules.push(rule);
        self.indices.insert(name.clone(), index);
        index
    }

    /// Bytes of the table on the wire, at most.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn into_rules(self) -> Vec<v1::RuleName> {
        self.rules
    }
}

impl From<&RuleName> for v1::RuleName {
    fn from(name: &RuleName) -> Self {
        use v1::rule_name::{IsolationRule, PolicyRule, Rule};
        let wire = |direction: &Direction| v1::Direction::from(*direction).into();
        let rule = match name {
            RuleName::Builtin(builtin) => Rule::Builtin(builtin_to_wire(*builtin).into()),
            RuleName::Rule {
                policy,
                generation,
                direction,
                index,
                name,
            } => Rule::PolicyRule(PolicyRule {
                policy: Some(policy.into()),
                generation: *generation,
                direction: wire(direction),
                index: *index,
                name: name.clone(),
            }),
            RuleName::DefaultDeny {
                policy,
                generation,
                direction,
            } => Rule::DefaultDeny(IsolationRule {
                policy: Some(policy.into()),
                generation: *generation,
                direction: wire(direction),
            }),
        };
        Self { rule: Some(rule) }
    }
}

pub(crate) fn rule_name_from_wire(wire: v1::RuleName) -> Result<RuleName, WireError> {
    use v1::rule_name::Rule;
    Ok(match required("rule", wire.rule)? {
        Rule::Builtin(number) => RuleName::Builtin(builtin(number)?),
        Rule::PolicyRule(rule) => RuleName::Rule {
            policy: policy(rule.policy).inside("policy_rule")?,
            generation: rule.generation,
            direction: direction(rule.direction).inside("policy_rule")?,
            index: rule.index,
            name: rule.name,
        },
        Rule::DefaultDeny(rule) => RuleName::DefaultDeny {
            policy: policy(rule.policy).inside("default_deny")?,
            generation: rule.generation,
            direction: direction(rule.direction).inside("default_deny")?,
        },
    })
}

fn builtin_to_wire(builtin: Builtin) -> v1::BuiltinRule {
    match builtin {
        Builtin::SelfTraffic => v1::BuiltinRule::Self_,
        Builtin::Node => v1::BuiltinRule::Node,
        Builtin::DefaultAllow => v1::BuiltinRule::DefaultAllow,
        Builtin::Control => v1::BuiltinRule::Control,
        Builtin::Unmanaged => v1::BuiltinRule::Unmanaged,
        Builtin::MixedBackends => v1::BuiltinRule::MixedBackends,
        Builtin::Forwarded => v1::BuiltinRule::Forwarded,
        Builtin::Failsafe => v1::BuiltinRule::Failsafe,
        Builtin::NodePort => v1::BuiltinRule::NodePort,
    }
}

fn builtin(number: i32) -> Result<Builtin, WireError> {
    match v1::BuiltinRule::try_from(number) {
        Ok(v1::BuiltinRule::Self_) => Ok(Builtin::SelfTraffic),
        Ok(v1::BuiltinRule::Node) => Ok(Builtin::Node),
        Ok(v1::BuiltinRule::DefaultAllow) => Ok(Builtin::DefaultAllow),
        Ok(v1::BuiltinRule::Control) => Ok(Builtin::Control),
        Ok(v1::BuiltinRule::Unmanaged) => Ok(Builtin::Unmanaged),
        Ok(v1::BuiltinRule::MixedBackends) => Ok(Builtin::MixedBackends),
        Ok(v1::BuiltinRule::Forwarded) => Ok(Builtin::Forwarded),
        Ok(v1::BuiltinRule::Failsafe) => Ok(Builtin::Failsafe),
        Ok(v1::BuiltinRule::NodePort) => Ok(Builtin::NodePort),
        Ok(v1::BuiltinRule::Unspecified) | Err(_) => Err(WireError::new("builtin", Problem::UnknownEnum(number))),
    }
}

fn guard_to_wire(guard: &Guard) -> v1::Guard {
    use v1::guard::{Guard as Wire, Lease, Names as WireNames};
    let guard = match guard {
        Guard::Lease { profile, side, negated } => {
            let side = match side {
                Side::Subject => v1::Side::Subject,
                Side::Peer => v1::Side::Peer,
            };
            Wire::Lease(Lease {
                profile: profile.to_string(),
                side: side.into(),
                negated: *negated,
            })
        }
        Guard::Until(number) => Wire::Until(*number),
        Guard::Name(names) => Wire::Names(WireNames {
            patterns: names.patterns().iter().map(ToString::to_string).collect(),
        }),
    };
    v1::Guard { guard: Some(guard) }
}

fn guard(wire: v1::Guard) -> Result<Guard, WireError> {
    use v1::guard::Guard as Wire;
    Ok(match required("guard", wire.guard)? {
        Wire::Lease(lease) => {
            let side = match v1::Side::try_from(lease.side) {
                Ok(v1::Side::Subject) => Side::Subject,
                Ok(v1::Side::Peer) => Side::Peer,
                Ok(v1::Side::Unspecified) | Err(_) => {
                    return Err(WireError::new("lease.side", Problem::UnknownEnum(lease.side)));
                }
            };
            Guard::Lease {
                profile: profile(lease.profile).inside("lease")?,
                side,
                negated: lease.negated,
            }
        }
        Wire::Until(number) => Guard::Until(number),
        Wire::Names(names) => Guard::Name(names_of(&names.patterns)?),
    })
}

pub(super) fn profile(text: String) -> Result<Profile, WireError> {
    let problem = |text| WireError::new("profile", Problem::NotAProfile(text));
    Profile::try_from(text.clone()).map_err(|_| problem(text))
}

fn answer_to_wire(answer: Answer) -> v1::Answer {
    match answer {
        Answer::Drop => v1::Answer::Drop,
        Answer::Reject => v1::Answer::Reject,
    }
}

fn on_change_to_wire(on_change: OnChange) -> v1::OnChange {
    match on_change {
        OnChange::Reevaluate => v1::OnChange::Reevaluate,
        OnChange::Drain => v1::OnChange::Drain,
        OnChange::Keep => v1::OnChange::Keep,
    }
}

fn manner(wire: &v1::Alternative) -> Result<Manner, WireError> {
    let answer = match v1::Answer::try_from(wire.answer) {
        Ok(v1::Answer::Drop) => Answer::Drop,
        Ok(v1::Answer::Reject) => Answer::Reject,
        Err(_) => return Err(WireError::new("answer", Problem::UnknownEnum(wire.answer))),
    };
    let on_change = match v1::OnChange::try_from(wire.on_change) {
        Ok(v1::OnChange::Reevaluate) => OnChange::Reevaluate,
        Ok(v1::OnChange::Drain) => OnChange::Drain,
        Ok(v1::OnChange::Keep) => OnChange::Keep,
        Err(_) => return Err(WireError::new("on_change", Problem::UnknownEnum(wire.on_change))),
    };
    Ok(Manner { answer, on_change })
}

/// The patterns of a name guard.
fn names_of(patterns: &[String]) -> Result<Names, WireError> {
    let read = |text: &String| {
        text.parse()
            .map_err(|_| WireError::new("patterns", Problem::NoName(text.clone())))
    };
    let set = patterns.iter().map(read).collect::<Result<BTreeSet<Pattern>, _>>()?;
    if set.is_empty() {
        return Err(WireError::new("patterns", Problem::Missing));
    }
    Ok(Names::new(set))
}

pub(crate) fn port_set_to_wire(set: &PortSet, rules: &mut RuleTable) -> v1::PortSet {
    let mut list = |alternatives: &[Alternative]| {
        let wire = |alternative: &Alternative| {
            let decision = match alternative.decision {
                Decision::Allow => v1::Decision::Allow,
                Decision::Deny => v1::Decision::Deny,
            };
            v1::Alternative {
                guard: alternative.guard.as_ref().map(guard_to_wire),
                decision: decision.into(),
                rule: rules.index(&alternative.rule),
                answer: answer_to_wire(alternative.manner.answer).into(),
                on_change: on_change_to_wire(alternative.manner.on_change).into(),
            }
        };
        alternatives.iter().map(wire).collect()
    };
    let range = |range: &Range| v1::Range {
        low: range.low,
        high: range.high,
        enforce: list(&range.enforce),
        shadow: list(&range.shadow),
    };
    v1::PortSet {
        ranges: set.ranges.iter().map(range).collect(),
    }
}

fn alternatives(wire: Vec<v1::Alternative>, rules: &[RuleName]) -> Result<Vec<Alternative>, WireError> {
    let last = wire.len().saturating_sub(1);
    let one = |(at, wire): (usize, v1::Alternative)| {
        let decision = match v1::Decision::try_from(wire.decision) {
            Ok(v1::Decision::Allow) => Decision::Allow,
            Ok(v1::Decision::Deny) => Decision::Deny,
            Ok(v1::Decision::Unspecified) | Err(_) => {
                return Err(WireError::new("decision", Problem::UnknownEnum(wire.decision)).inside(at));
            }
        };
        let missing = || Problem::NoSuchIndex {
            index: wire.rule,
            length: rules.len(),
        };
        let rule = usize::try_from(wire.rule).ok().and_then(|index| rules.get(index));
        let rule = rule
            .ok_or_else(|| WireError::new("rule", missing()).inside(at))?
            .clone();
        let manner = manner(&wire).inside(at)?;
        let guard = wire.guard.map(guard).transpose().inside(at)?;
        match (&guard, at == last) {
            (None, false) => Err(Problem::Shape("an alternative without a guard hides those after it")),
            (Some(_), true) => Err(Problem::Shape(
                "the last alternative has a guard, so nothing may decide",
            )),
            _ => Ok(Alternative {
                guard,
                decision,
                manner,
                rule,
            }),
        }
        .map_err(|problem| WireError::new("guard", problem).inside(at))
    };
    wire.into_iter().enumerate().map(one).collect()
}

/// Checks the shape too, so that no packet can meet a position nothing decides.
pub(crate) fn port_set_from_wire(wire: v1::PortSet, rules: &[RuleName]) -> Result<PortSet, WireError> {
    let mut ranges = Vec::with_capacity(wire.ranges.len());
    let mut next = Some(Position::FIRST.0);
    for (at, range) in wire.ranges.into_iter().enumerate() {
        let field = format!("ranges[{at}]");
        if next != Some(range.low) || range.high < range.low || range.high > Position::LAST.0 {
            let problem = Problem::Shape("ranges are not sorted and disjoint, or leave a position out");
            return Err(WireError::new(field, problem));
        }
        next = range.high.checked_add(1);
        if range.enforce.is_empty() {
            return Err(WireError::new(format!("{field}.enforce"), Problem::Missing));
        }
        let enforce = alternatives(range.enforce, rules).inside("enforce").inside(&field)?;
        let shadow = alternatives(range.shadow, rules).inside("shadow").inside(&field)?;
        ranges.push(Range {
            low: range.low,
            high: range.high,
            enforce,
            shadow,
        });
    }
    if next != Position::LAST.0.checked_add(1) {
        return Err(WireError::new(
            "ranges",
            Problem::Shape("the ranges end before the last position"),
        ));
    }
    Ok(PortSet { ranges })
}
