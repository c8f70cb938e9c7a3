//! A second opinion: evaluates one connection straight from the text of the NetworkPolicy v1 and ClusterNetworkPolicy
//! v1alpha2 specifications, by walking all objects. Slow and plain on purpose: no atoms, no index, no flattening, and
//! nothing in common with the compiler but the model. The property tests compare the two; `explain` shows its steps.

mod explain;
mod world;

pub use explain::{Explanation, PolicyReport, RuleReport, TierReport, explain};
pub use world::Matches;

use world::{Who, World};

use crate::{
    failsafe::Failsafe,
    lease::{Deadline, Profile, asked_end},
    model::{
        Action, Builtin, Direction, Guard, Mode, Node, Object, Policy, Protocol, Rule, RuleName, Side, Tier, Workload,
        WorkloadKey,
    },
    probe::{Holding, Outcome, Probe},
    state::Decision,
};

type Verdict = (Decision, RuleName);

/// Judges a new connection at both ends.
pub fn oracle(objects: &[Object], probe: &Probe, holding: Holding<'_>) -> Outcome {
    let world = World::new(objects);
    let from = world.subject(probe.zone, &probe.from);
    let to = world.subject(probe.zone, &probe.to);
    if let (Some(Subject::Pod(from)), Some(Subject::Pod(to))) = (from, to)
        && from.key == to.key
    {
        let own = Some((Decision::Allow, RuleName::Builtin(Builtin::SelfTraffic)));
        return Outcome {
            egress: own.clone(),
            ingress: own,
        };
    }
    let judge = |subject: Option<Subject<'_>>, direction| {
        let judge = Judge::new(&world, probe, direction, subject?);
        (!judge.stays_inside()).then(|| judge.judge(Guards::As(holding, direction)))
    };
    Outcome {
        egress: judge(from, Direction::Egress),
        ingress: judge(to, Direction::Ingress),
    }
}

/// Whose rules are asked.
#[derive(Clone, Copy, Debug)]
enum Subject<'a> {
    Pod(&'a Workload),
    /// A node that a policy selects.
    Node(&'a Node),
}

impl Subject<'_> {
    fn key(self) -> WorkloadKey {
        match self {
            Self::Pod(workload) => workload.key.clone(),
            Self::Node(node) => WorkloadKey::of_node(&node.name),
        }
    }
}

/// Until when the images of one end of a connection satisfy a profile, as the rules of a direction ask for it; `None` = they do not.
/// Two workloads of one class that claim different things have two classes of one number: neither is believed.
pub fn lease(
    objects: &[Object],
    probe: &Probe,
    direction: Direction,
    profile: &Profile,
    side: Side,
) -> Option<Deadline> {
    let world = World::new(objects);
    let end = asked_end(probe, direction, side);
    let workload = match side {
        Side::Subject => match world.subject(probe.zone, end)? {
            Subject::Pod(workload) => workload,
            Subject::Node(_) => return None,
        },
        Side::Peer => match world.who(probe.zone, end.address) {
            Who::Pod(workload, _) => workload,
            _ => return None,
        },
    };
    let alike = world.workloads().filter(|it| it.image_class == workload.image_class);
    let agreed = workload.image_class != 0 && { alike }.all(|it| it.claims == workload.claims);
    workload.claims.get(profile).copied().filter(|_| agreed)
}

/// How guards are answered.
#[derive(Clone, Copy)]
enum Guards<'a> {
    /// As the asker says.
    As(Holding<'a>, Direction),
    /// Against the connection: none that allows, all that deny.
    Worst,
}

impl Guards<'_> {
    fn hold(self, rule: &Rule) -> bool {
        match (&rule.guard, self) {
            (None, _) => true,
            (Some(guard), Guards::As(holding, direction)) => holding(direction, guard),
            (Some(_), Guards::Worst) => rule.action == Action::Deny,
        }
    }
}

/// One end's rules for one connection.
struct Judge<'a> {
    world: &'a World<'a>,
    probe: &'a Probe,
    direction: Direction,
    subject: Subject<'a>,
    peer: Who<'a>,
    /// The policies that select the subject, by tier, priority and name.
    selecting: Vec<&'a Policy>,
}

impl<'a> Judge<'a> {
    fn new(world: &'a World<'a>, probe: &'a Probe, direction: Direction, subject: Subject<'a>) -> Self {
        let peer = match direction {
            Direction::Egress => probe.to.address,
            Direction::Ingress => probe.from.address,
        };
        let mut selecting: Vec<&Policy> = world
            .policies()
            .filter(|policy| world.selects(policy, subject))
            .collect();
        selecting.sort_by_key(|policy| (policy.tier, policy.priority, &policy.key));
        Self {
            world,
            probe,
            direction,
            subject,
            peer: world.who(probe.zone, peer),
            selecting,
        }
    }

    fn rules(&self, policy: &'a Policy) -> &'a [Rule] {
        match self.direction {
            Direction::Egress => &policy.egress,
            Direction::Ingress => &policy.ingress,
        }
    }

    /// Shadow policies and rules count for the shadow verdict alone.
    fn counts(&self, mode: Mode) -> bool {
        mode == Mode::Enforce || self.probe.mode == Mode::Shadow
    }

    /// The rules of a tier that match, in order.
    fn matching(&self, tier: Tier) -> Vec<(&'a Policy, &'a Rule, Matches)> {
        let policies = self
            .selecting
            .iter()
            .filter(|policy| policy.tier == tier && self.counts(policy.mode));
        let rules = policies.flat_map(|policy| self.rules(policy).iter().map(move |rule| (*policy, rule)));
        let counting = rules.filter(|(_, rule)| self.counts(rule.mode));
        counting
            .map(|(policy, rule)| (policy, rule, self.world.matches(rule, self)))
            .filter(|(.., matches)| *matches != Matches::No)
            .collect()
    }

    /// A node's rules are asked where packets enter and leave the node: not by its own pods, nor by itself.
    fn stays_inside(&self) -> bool {
        match (self.subject, self.peer) {
            (Subject::Node(node), Who::Pod(workload, _)) => workload.node.as_ref() == Some(&node.name),
            (Subject::Node(node), Who::Node(other, _)) => node.name == other.name,
            _ => false,
        }
    }

    /// Before all rules, what a node is not to lose and what is judged elsewhere; then the tiers.
    fn judge(&self, guards: Guards<'_>) -> Verdict {
        let allowed = |builtin| (Decision::Allow, RuleName::Builtin(builtin));
        let (protocol, port) = (self.probe.protocol, self.probe.port);
        if let Subject::Node(_) = self.subject {
            if Failsafe::default().keeps(self.direction, protocol, port) {
                return allowed(Builtin::Failsafe);
            }
            let number = |protocol| match protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
                Protocol::Sctp => 132,
            };
            let of_a_service = self
                .world
                .services()
                .flat_map(crate::model::Service::node_ports)
                .any(|(wanted, node_port)| number(wanted) == protocol && node_port == port);
            if self.direction == Direction::Ingress && of_a_service {
                return allowed(Builtin::NodePort);
            }
        }
        self.admin(guards)
    }

    /// Before all others: the first rule that matches decides, or passes on.
    fn admin(&self, guards: Guards<'_>) -> Verdict {
        self.first_match(&self.matching(Tier::Admin), guards, &|guards| {
            self.network_policy(guards)
        })
    }

    /// A pod no policy isolates in the direction is left to the baseline; of others, what any of them allows is allowed.
    fn network_policy(&self, guards: Guards<'_>) -> Verdict {
        let isolating = self.selecting.iter().find(|policy| {
            policy.tier == Tier::NetworkPolicy && policy.isolates.contains(&self.direction) && self.counts(policy.mode)
        });
        let Some(isolating) = isolating else {
            return self.baseline(guards);
        };
        let mut rules = self.matching(Tier::NetworkPolicy);
        rules.retain(|(policy, ..)| policy.isolates.contains(&self.direction));
        let denying = rules
            .iter()
            .find(|(_, rule, _)| self.world.action(rule) == Action::Deny && guards.hold(rule));
        if let Some((policy, rule, _)) = denying {
            return (Decision::Deny, self.name(policy, rule));
        }
        rules.retain(|(_, rule, matches)| rule.action == Action::Allow && *matches == Matches::Yes);
        let always = rules.iter().find(|(_, rule, _)| rule.guard.is_none());
        if let Some((policy, rule, _)) = always.or_else(|| rules.iter().find(|(_, rule, _)| guards.hold(rule))) {
            return (Decision::Allow, self.name(policy, rule));
        }
        let default_deny = RuleName::DefaultDeny {
            policy: isolating.key.clone(),
            generation: isolating.generation,
            direction: self.direction,
        };
        (Decision::Deny, default_deny)
    }

    /// After all others, for pods that no NetworkPolicy isolates.
    fn baseline(&self, guards: Guards<'_>) -> Verdict {
        self.first_match(&self.matching(Tier::Baseline), guards, &|_| {
            (Decision::Allow, RuleName::Builtin(Builtin::DefaultAllow))
        })
    }

    fn first_match(
        &self,
        rules: &[(&Policy, &Rule, Matches)],
        guards: Guards<'_>,
        below: &dyn Fn(Guards<'_>) -> Verdict,
    ) -> Verdict {
        let Some(((policy, rule, matches), rest)) = rules.split_first() else {
            return below(guards);
        };
        let next = |guards| self.first_match(rest, guards, below);
        match self.world.action(rule) {
            Action::Allow if *matches == Matches::Perhaps || !guards.hold(rule) => next(guards),
            Action::Allow => (Decision::Allow, self.name(policy, rule)),
            Action::Deny if !guards.hold(rule) => next(guards),
            Action::Deny => (Decision::Deny, self.name(policy, rule)),
            Action::Pass if *matches == Matches::Yes && rule.guard.is_none() => below(guards),
            // It may pass or not: what is allowed either way, whatever the guards say, is allowed.
            Action::Pass => match (next(Guards::Worst), below(Guards::Worst)) {
                (stays, _) if stays.0 == Decision::Deny => stays,
                (_, leaves) if leaves.0 == Decision::Deny => leaves,
                (stays, _) => stays,
            },
        }
    }

    fn name(&self, policy: &Policy, rule: &Rule) -> RuleName {
        RuleName::Rule {
            policy: policy.key.clone(),
            generation: policy.generation,
            direction: self.direction,
            index: rule.index,
            name: rule.name.clone(),
        }
    }
}

/// Every guard that the rules of these objects carry, each once.
pub fn guards(objects: &[Object]) -> Vec<Guard> {
    let policies = objects.iter().filter_map(|object| match object {
        Object::Policy(policy) => Some(policy),
        _ => None,
    });
    let mut guards: Vec<Guard> = policies
        .flat_map(|policy| policy.ingress.iter().chain(&policy.egress))
        .filter_map(|rule| rule.guard.clone())
        .collect();
    guards.sort_unstable();
    guards.dedup();
    guards
}
