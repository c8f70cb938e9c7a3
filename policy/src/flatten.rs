//! From rules in tiers to one port set: at every position, the alternatives in the order in which they decide.

use bulkhead_verdict::{layout::MAX_ALTERNATIVES, port::Position};

use crate::{
    model::{Action, Builtin, Guard, Manner, Mode, RuleName, Tier},
    state::{Alternative, Decision, PortSet, Range},
};

/// An interval of positions a rule matches. Of an unknown pod it may be that only some pods' ports lie in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span {
    pub(crate) low: u32,
    pub(crate) high: u32,
    /// The rule matches here for certain.
    pub(crate) certain: bool,
}

/// A rule that matches a peer, certainly or perhaps.
#[derive(Clone, Debug)]
pub(crate) struct LiveRule<'a> {
    pub(crate) tier: Tier,
    pub(crate) action: Action,
    pub(crate) guard: Option<Guard>,
    pub(crate) mode: Mode,
    pub(crate) manner: Manner,
    pub(crate) name: &'a RuleName,
    pub(crate) spans: Vec<Span>,
}

/// The default-deny of the NetworkPolicy tier: of all policies, and of the enforced ones alone.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Isolation<'a> {
    pub(crate) enforce: Option<(&'a RuleName, Manner)>,
    pub(crate) shadow: Option<(&'a RuleName, Manner)>,
}

/// A port set, and the rules that did not fit in it.
#[derive(Debug)]
pub(crate) struct Flattened {
    pub(crate) ports: PortSet,
    /// Per list that was too long, the first rule that was cut off (and denies instead).
    pub(crate) cut: Vec<RuleName>,
}

/// Flattens rules, given in their total order (tier, priority, policy, place).
pub(crate) fn flatten(rules: &[LiveRule<'_>], isolation: Isolation<'_>) -> Flattened {
    let mut ranges: Vec<Range> = Vec::new();
    let mut cut = Vec::new();
    for (low, high) in intervals(rules) {
        let here: Vec<Hit<'_>> = rules.iter().filter_map(|rule| Hit::of(rule, low)).collect();
        let enforced: Vec<Hit<'_>> = here
            .iter()
            .filter(|hit| hit.rule.mode == Mode::Enforce)
            .copied()
            .collect();
        let enforce = bounded(ladder(&enforced, isolation.enforce), &mut cut);
        let mut shadow = bounded(ladder(&here, isolation.shadow), &mut cut);
        if shadow == enforce {
            shadow.clear();
        }
        match ranges.last_mut() {
            Some(last) if last.enforce == enforce && last.shadow == shadow => last.high = high,
            _ => ranges.push(Range {
                low,
                high,
                enforce,
                shadow,
            }),
        }
    }
    Flattened {
        ports: PortSet { ranges },
        cut,
    }
}

/// The port set that says the same everywhere.
pub(crate) fn uniform(decision: Decision, rule: RuleName) -> PortSet {
    PortSet {
        ranges: vec![Range {
            low: Position::FIRST.0,
            high: Position::LAST.0,
            enforce: vec![terminal(decision, Manner::default(), rule)],
            shadow: Vec::new(),
        }],
    }
}

/// Cuts the space of positions wherever a rule begins or ends.
fn intervals(rules: &[LiveRule<'_>]) -> Vec<(u32, u32)> {
    let spans = rules.iter().flat_map(|rule| &rule.spans);
    let ends = spans.flat_map(|span| [span.low, span.high.saturating_add(1)]);
    let inner = ends.filter(|start| (Position::FIRST.0 + 1..=Position::LAST.0).contains(start));
    let mut starts: Vec<u32> = inner.chain([Position::FIRST.0]).collect();
    starts.sort_unstable();
    starts.dedup();
    let highs = starts.iter().skip(1).map(|next| next - 1).chain([Position::LAST.0]);
    starts.iter().copied().zip(highs).collect()
}

/// A rule at one position.
#[derive(Clone, Copy)]
struct Hit<'a> {
    rule: &'a LiveRule<'a>,
    certain: bool,
}

impl<'a> Hit<'a> {
    fn of(rule: &'a LiveRule<'a>, position: u32) -> Option<Self> {
        let mut here = rule
            .spans
            .iter()
            .filter(|span| (span.low..=span.high).contains(&position))
            .peekable();
        here.peek()?;
        Some(Self {
            rule,
            certain: here.any(|span| span.certain),
        })
    }

    fn alternative(&self, decision: Decision) -> Alternative {
        Alternative {
            guard: self.rule.guard.clone(),
            decision,
            manner: self.rule.manner,
            rule: self.rule.name.clone(),
        }
    }
}

/// All tiers in order.
fn ladder(hits: &[Hit<'_>], isolation: Option<(&RuleName, Manner)>) -> Vec<Alternative> {
    let tier = |tier: Tier| {
        hits.iter()
            .copied()
            .filter(|hit| hit.rule.tier == tier)
            .collect::<Vec<_>>()
    };
    let below_admin = || match isolation {
        Some(default_deny) => union_of_allows(&tier(Tier::NetworkPolicy), default_deny),
        None => ordered(&tier(Tier::Baseline), &|| {
            vec![terminal(Decision::Allow, Manner::default(), default_allow())]
        }),
    };
    ordered(&tier(Tier::Admin), &below_admin)
}

/// A tier in which the first rule that matches decides, or leaves the tier for what is below.
fn ordered(hits: &[Hit<'_>], below: &dyn Fn() -> Vec<Alternative>) -> Vec<Alternative> {
    let mut list = Vec::new();
    let mut hits = hits.iter();
    while let Some(hit) = hits.next() {
        let decision = match (hit.rule.action, hit.certain) {
            // Not every pod this may be is allowed by it, so it allows none.
            (Action::Allow, false) => continue,
            (Action::Allow, true) => Decision::Allow,
            (Action::Deny, _) => Decision::Deny,
            (Action::Pass, certain) => {
                if certain && hit.rule.guard.is_none() {
                    list.extend(below());
                } else {
                    list.push(both(&ordered(hits.as_slice(), below), &below()));
                }
                return list;
            }
        };
        list.push(hit.alternative(decision));
        if hit.rule.guard.is_none() {
            return list;
        }
    }
    list.extend(below());
    list
}

/// The NetworkPolicy tier of an isolated pod. Deny rules, which no Kubernetes kind has there, go before the union.
fn union_of_allows(hits: &[Hit<'_>], (default_deny, manner): (&RuleName, Manner)) -> Vec<Alternative> {
    let mut list = Vec::new();
    for hit in hits.iter().filter(|hit| hit.rule.action == Action::Deny) {
        list.push(hit.alternative(Decision::Deny));
        if hit.rule.guard.is_none() {
            return list;
        }
    }
    let allows = || {
        hits.iter()
            .filter(|hit| hit.rule.action == Action::Allow && hit.certain)
    };
    if let Some(always) = allows().find(|hit| hit.rule.guard.is_none()) {
        list.push(always.alternative(Decision::Allow));
    } else {
        list.extend(allows().map(|hit| hit.alternative(Decision::Allow)));
        list.push(terminal(Decision::Deny, manner, default_deny.clone()));
    }
    list
}

/// What is certain when either list may be the one that decides: allowed only if both allow, whatever their guards say.
/// Guards of two lists cannot be combined, so an allow that depends on one does not count.
fn both(first: &[Alternative], second: &[Alternative]) -> Alternative {
    match (certain(first), certain(second)) {
        (Some(first), _) if first.decision == Decision::Deny => first,
        (_, Some(second)) if second.decision == Decision::Deny => second,
        (Some(first), Some(_)) => first,
        // Lists are never empty; were one, nothing would be known to allow.
        _ => terminal(Decision::Deny, Manner::default(), default_allow()),
    }
}

/// What a list decides at worst, whatever guards hold; `None` of an empty one.
pub(crate) fn certain(list: &[Alternative]) -> Option<Alternative> {
    let deny = list.iter().find(|alternative| alternative.decision == Decision::Deny);
    deny.or(list.last())
        .map(|alternative| terminal(alternative.decision, alternative.manner, alternative.rule.clone()))
}

fn terminal(decision: Decision, manner: Manner, rule: RuleName) -> Alternative {
    Alternative {
        guard: None,
        decision,
        manner,
        rule,
    }
}

fn default_allow() -> RuleName {
    RuleName::Builtin(Builtin::DefaultAllow)
}

/// Cuts a list that is longer than the kernel follows. What is cut off denies, in the name of its first rule.
fn bounded(mut list: Vec<Alternative>, cut: &mut Vec<RuleName>) -> Vec<Alternative> {
    let limit = usize::try_from(MAX_ALTERNATIVES).unwrap_or(usize::MAX);
    if list.len() > limit {
        list.truncate(limit);
        if let Some(last) = list.last_mut() {
            cut.push(last.rule.clone());
            *last = terminal(Decision::Deny, last.manner, last.rule.clone());
        }
    }
    list
}
