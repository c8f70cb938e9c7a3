//! Churn under traffic: policies and labels change at random and agents are killed at random moments, and every connection that is tried,
//! in the middle of it and after it, ends as the oracle says. Twenty seconds here; `cargo xtask test --soak 600` for longer.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    env,
    time::{Duration, Instant},
};

use bulkhead_policy::model::Object;
use bulkhead_testbed::{
    Stack, Testnet,
    client::Flows,
    manifests,
    traffic::{Outcome, Probe},
};

use common::{
    cases::{Case, check_record, examples, objects, opinion, probes, records_of, try_these},
    places, probe, serve_everywhere, shop, skipped,
};

/// Connections tried from each place in each round, in the middle of the change and after it.
const TRIED: usize = 12;

/// Numbers that a seed stands for (xorshift; Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % bound
    }
}

/// What was counted.
#[derive(Debug, Default)]
struct Sums {
    rounds: u32,
    kills: u32,
    relabelled: u32,
    during: usize,
    after: usize,
    denied: usize,
}

struct Soak {
    net: Testnet,
    stack: Stack,
    flows: Vec<Flows>,
    dice: Dice,
    /// What is in force.
    objects: Vec<Object>,
    rejects: bool,
    sums: Sums,
}

#[test]
fn churn_under_traffic_gives_no_wrong_verdict() {
    if skipped() {
        return;
    }
    let number = |name, otherwise| env::var(name).map_or(otherwise, |text| text.parse::<u64>().unwrap());
    let (seconds, seed) = (number("BULKHEAD_SOAK", 20), number("BULKHEAD_SEED", 7).max(1));
    println!("seed {seed}; the same churn again: BULKHEAD_SEED={seed}");
    let net = Testnet::create(shop()).unwrap();
    let _servers = serve_everywhere(&net);
    let mut stack = Stack::start(&net).unwrap();
    stack.apply("policies.yaml", &examples()[0].1).unwrap();
    let flows = (0..net.nodes.len()).map(|node| stack.agent(node).unwrap().follow().unwrap());
    let mut soak = Soak {
        flows: flows.collect(),
        objects: objects(&stack),
        rejects: false,
        dice: Dice(seed),
        sums: Sums::default(),
        net,
        stack,
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        soak.round();
    }
    let sums = &soak.sums;
    println!(
        "NOTE: {} rounds, {} agents killed, {} pods relabelled; {} connections during a change and {} after it, {} of them denied: none wrong, each \
         denial recorded by its rule",
        sums.rounds, sums.kills, sums.relabelled, sums.during, sums.after, sums.denied
    );
    assert!(
        sums.rounds > 1 && sums.after > sums.denied && sums.denied > 0,
        "{sums:?}"
    );
}

impl Soak {
    fn round(&mut self) {
        self.sums.rounds += 1;
        let examples = examples();
        let (name, policies) = &examples[self.dice.below(examples.len())];
        let killed = (self.dice.below(3) == 0).then(|| self.dice.below(self.net.nodes.len()));
        if self.dice.below(2) == 0 {
            self.relabel();
        }
        // Where old and new agree, nothing in between may say anything else.
        let next = self.next(policies);
        let rejects = policies.contains("deny: Reject");
        let constant = self.chosen(|soak, from, probe| {
            let all = places(&soak.net);
            let (before, after) = (
                opinion(&soak.objects, &all[from], probe),
                opinion(&next, &all[from], probe),
            );
            before.0 == after.0
        });
        let all = places(&self.net);
        let running: Vec<_> = all
            .iter()
            .zip(&constant)
            .map(|(from, asked)| probe(&self.net, from, asked.clone(), 3000))
            .collect();
        if let Some(node) = killed {
            self.sums.kills += 1;
            self.stack.kill_agent(node).unwrap();
        }
        manifests::write(
            &self.stack.manifests(),
            "cluster.yaml",
            &manifests::cluster(&self.net).unwrap(),
        )
        .unwrap();
        self.stack.write("policies.yaml", policies).unwrap();
        if let Some(node) = killed {
            self.stack.start_agent(&self.net, node, &[]).unwrap();
        }
        self.stack.settle().unwrap();
        for (from, running) in running.into_iter().enumerate() {
            for (probe, real) in running.outcomes() {
                let (expected, denied_by) = opinion(&next, &all[from], &probe);
                let what = format!(
                    "round {} towards {name}, in the middle of it: {} to {probe:?}",
                    self.sums.rounds, all[from].name
                );
                agrees(real, expected, rejects || self.rejects, &what, denied_by.as_deref());
                self.sums.during += 1;
            }
        }
        if let Some(node) = killed {
            self.flows[node] = self.stack.agent(node).unwrap().follow().unwrap();
        }
        // As they were written: with their generations.
        (self.objects, self.rejects) = (objects(&self.stack), rejects);
        self.check_after(name);
    }

    /// The objects of the folder as it is about to be.
    fn next(&mut self, policies: &str) -> Vec<Object> {
        let mut manifests = bulkhead_crds::Manifests::default();
        manifests.add(&manifests::cluster(&self.net).unwrap(), "cluster.yaml");
        manifests.add(policies, "policies.yaml");
        manifests.finish().objects
    }

    /// Gives a pod the application label of another.
    fn relabel(&mut self) {
        self.sums.relabelled += 1;
        let count = self.net.pods.len();
        let (one, other) = (self.dice.below(count), self.dice.below(count));
        let app = self.net.pods[other].plan.labels.get("app").cloned();
        self.net.pods[one]
            .plan
            .labels
            .insert("app".to_owned(), app.unwrap_or_else(|| "none".to_owned()));
    }

    /// Some connections from each place.
    fn chosen(&mut self, wanted: impl Fn(&Self, usize, &Probe) -> bool) -> Vec<Vec<Probe>> {
        let all = places(&self.net);
        let mut chosen = Vec::new();
        for (at, from) in all.iter().enumerate() {
            let mut possible = probes(&all, from);
            possible.retain(|probe| wanted(self, at, probe));
            let mut some = Vec::new();
            while some.len() < TRIED && !possible.is_empty() {
                let which = self.dice.below(possible.len());
                some.push(possible.swap_remove(which));
            }
            chosen.push(some);
        }
        chosen
    }

    /// What is in force now, tried and compared, with its records.
    fn check_after(&mut self, name: &str) {
        let asked = self.chosen(|_, _, _| true);
        let cases: Vec<Case> = try_these(&self.net, &self.objects, asked);
        let records = records_of(&self.net, &self.flows, &cases);
        for case in &cases {
            let place = &places(&self.net)[case.from].name;
            let what = format!("round {}, {name}: {place} to {:?}", self.sums.rounds, case.probe);
            agrees(case.real, case.expected, self.rejects, &what, case.denied_by.as_deref());
            check_record(&self.net, case, &records, &what);
            self.sums.denied += usize::from(!case.expected);
        }
        self.sums.after += cases.len();
    }
}

/// Where rules reject, a refusal is theirs; elsewhere every port that is asked for is served.
fn agrees(real: Outcome, expected: bool, rejects: bool, what: &str, denied_by: Option<&str>) {
    let reached = real == Outcome::Open || real.reached() && !rejects;
    assert_eq!(
        reached, expected,
        "{what}: really {real:?}, the oracle denies by {denied_by:?}"
    );
}
