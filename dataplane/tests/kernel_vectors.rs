//! The vectors of `verdict` in the kernel: the object the agent embeds, judged packets through `BPF_PROG_TEST_RUN`,
//! compared with the host packet by packet.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod support;

use bulkhead_verdict::{
    Verdict,
    vectors::{self, Coverage, HOST_ONLY_REASONS, Step, Vector, generated},
};

use crate::support::Machine;

#[test]
fn the_kernel_judges_as_the_host() {
    let mut machine = match Machine::new() {
        Ok(machine) => machine,
        Err(why) => {
            println!("SKIPPED: {why}");
            return;
        }
    };
    let (mut coverage, mut packets, mut told) = (Coverage::default(), 0, 0);
    let mut on_host_only = Coverage::default();
    for vector in vectors::all() {
        if let Some(why) = vector.host_only {
            println!("host only: {}: {why}", vector.name);
            for judged in vectors::run(&vector, None) {
                on_host_only.note(&vector.world, &judged.sent, judged.verdict);
            }
            told += 1;
            continue;
        }
        packets += run(&mut machine, &vector, &mut coverage);
    }
    for (name, count) in &coverage.0 {
        match HOST_ONLY_REASONS
            .iter()
            .find(|(reason, _)| *name == format!("reason {}", reason.name()))
        {
            Some((_, why)) => println!("{:6}  {name} (on the host only: {why})", on_host_only.0[name]),
            None => println!("{count:6}  {name}"),
        }
    }
    println!("{packets} packets; {told} vectors on the host only");
    assert_eq!(
        coverage.holes(HOST_ONLY_REASONS),
        Vec::<String>::new(),
        "not reached in the kernel"
    );
    for (reason, _) in HOST_ONLY_REASONS {
        assert_ne!(
            on_host_only.0[&format!("reason {}", reason.name())],
            0,
            "{}",
            reason.name()
        );
    }
}

/// Thousands of broken packets each time; millions with `BULKHEAD_GENERATED=50000`, the number of seeds, and from
/// `BULKHEAD_FIRST_SEED` on.
#[test]
fn the_kernel_judges_broken_packets_as_the_host() {
    let mut machine = match Machine::new() {
        Ok(machine) => machine,
        Err(why) => {
            println!("SKIPPED: {why}");
            return;
        }
    };
    let number = |name, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse::<u64>().unwrap());
    let (first, count) = (number("BULKHEAD_FIRST_SEED", 0), number("BULKHEAD_GENERATED", 200));
    let (mut coverage, mut packets) = (Coverage::default(), 0);
    for seed in first..first + count {
        let vector = generated::vector(seed);
        if generated::is_closed(seed) {
            let judged = vectors::run(&vector, Some(true));
            let passed = generated::passes_by_accident(&judged);
            assert!(passed.is_none(), "{}: {passed:02x?}", vector.name);
        }
        packets += run(&mut machine, &vector, &mut coverage);
    }
    println!("NOTE: {packets} generated packets, kernel and host of one mind");
}

/// Runs one vector; the number of packets judged.
fn run(machine: &mut Machine, vector: &Vector, coverage: &mut Coverage) -> u64 {
    machine.fill(&vector.world);
    let on_host = vectors::run(vector, Some(true));
    let mut expected = on_host.into_iter();
    let (mut packets, mut drops) = (0, 0);
    for step in &vector.steps {
        match step {
            Step::Change(change) => machine.change(change),
            Step::Packet(sent) => {
                let (verdict, answer) = machine.judge(sent);
                let place = format!("{}, packet {packets}", vector.name);
                let on_host = expected.next().unwrap();
                assert_eq!(verdict, on_host.verdict, "{place}: kernel (left), host (right)");
                assert_eq!(
                    answer, on_host.answer,
                    "{place}: what the kernel (left) and the host (right) answer"
                );
                assert_eq!(verdict, sent.expected, "{place}: kernel (left), expected (right)");
                coverage.note(&vector.world, sent, verdict);
                packets += 1;
                drops += u64::from(!verdict.reason.passes());
            }
        }
    }
    assert_eq!(
        machine.counted_denials(),
        drops,
        "{}: every drop is in a record of BK_DENY",
        vector.name
    );
    packets
}

#[test]
fn scratch_of_another_build_is_no_verdict() {
    assert_eq!(bulkhead_verdict::Scratch::verdict_in(&[0; 8]), None::<Verdict>);
}
