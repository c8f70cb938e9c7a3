//! `bench-feed [--json]`: what looking a source up in a feed costs, by the feed's size, beside a longest-prefix trie in the
//! same run; what loading it takes, and what a change of one line. See README.md.

#[path = "../place.rs"]
#[allow(dead_code, reason = "shared with bench-verdict, which also needs the devices")]
mod place;

use std::{fmt::Write as _, net::Ipv4Addr, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use bulkhead_dataplane::kernel::uplink_lab::{Program, UplinkLab};
use serde_json::{Value, json};

use crate::place::Place;

/// Prefixes of the feeds that are measured.
const SIZES: [u32; 4] = [10, 1_000, 100_000, 1_000_000];
/// Room in the tables, for the largest of them.
const ROOM: u32 = 1 << 20;
/// Runs of every row, and packets of a run.
const RUNS: usize = 5;
const REPEAT: u32 = 200_000;
/// As the kernel's benchmark programs have it.
const SPREAD: u32 = 2_654_435_761;
/// Of a real feed some lines are wider than an address: one in so many is a /24.
const WIDE: u32 = 10;

fn main() -> ExitCode {
    let json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(other) => {
            eprintln!("bench-feed takes --json and nothing else, not {other:?}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(why) = place::obstacle() {
        eprintln!("SKIPPED: {why}");
        return ExitCode::FAILURE;
    }
    let measured = Place::new().and_then(|place| {
        let sizes = SIZES.map(|size| Measured::of(&place, size));
        sizes.into_iter().collect::<Result<Vec<_>>>()
    });
    match measured {
        Ok(sizes) if json => println!("{:#}", Value::Array(sizes.iter().map(Measured::json).collect())),
        Ok(sizes) => print!("{}", table(&sizes)),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A feed of so many prefixes, scattered over all addresses: the text, and what it says.
fn feed(size: u32) -> (String, Vec<(u32, u8)>) {
    let (mut text, mut prefixes) = (String::new(), Vec::new());
    for number in 0..size {
        let address = number.wrapping_mul(SPREAD);
        let (address, length) = if number % WIDE == 0 {
            (address & !0xff, 24)
        } else {
            (address, 32)
        };
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{}/{length}", Ipv4Addr::from(address));
        prefixes.push((address, length));
    }
    (text, prefixes)
}

/// A frame whose source the programs replace: Ethernet, IPv4, UDP, then the numbers of the sources.
fn frame(first: u32, count: u32) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([0x08, 0x00, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([192, 0, 2, 1, 203, 0, 113, 5]);
    frame.extend([0, 7, 0, 8, 0, 40, 0, 0]);
    for number in [0, first, count] {
        frame.extend(number.to_ne_bytes());
    }
    frame.resize(74, 0);
    frame
}

/// What one size costs.
struct Measured {
    size: u32,
    /// Nanoseconds over the program that only changes the source: ours and the trie, sources that are listed and others.
    rows: Vec<(&'static str, u64, u64, u64)>,
    read: Duration,
    load: Duration,
    trie_load: Duration,
    line: Duration,
    line_writes: u64,
    memory: (u64, u64),
}

impl Measured {
    fn of(place: &Place, size: u32) -> Result<Self> {
        let mut lab =
            UplinkLab::open(&place.bpffs.join(format!("feed{size}")), ROOM).context("loading the programs")?;
        let (text, prefixes) = feed(size);
        let (read, load, _) = lab.feed(&text).context("loading the feed")?;
        let trie_load = lab.trie(&prefixes).context("loading the trie")?;
        let memory = lab.memory()?;
        let mut rows = Vec::new();
        for (name, program, listed) in [
            ("feed, a listed source", Program::Uplink, true),
            ("feed, another source", Program::Uplink, false),
            ("trie, a listed source", Program::Trie, true),
            ("trie, another source", Program::Trie, false),
        ] {
            let runs = (0..RUNS)
                .map(|_| over(&lab, program, size, listed))
                .collect::<Result<Vec<_>>>();
            let mut runs = runs.with_context(|| format!("{name}, {size} prefixes"))?;
            runs.sort_unstable();
            let at = |index: usize| runs.get(index).copied().unwrap_or(0);
            rows.push((name, at(0), at(RUNS / 2), at(RUNS - 1)));
        }
        let (_, line, line_writes) = lab.feed(&format!("{text}203.0.113.77\n")).context("one line more")?;
        Ok(Self {
            size,
            rows,
            read,
            load,
            trie_load,
            line,
            line_writes,
            memory,
        })
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(name, min, median, max)| {
            json!({"row": name, "ns_over_empty": {"min": min, "median": median, "max": max}})
        });
        json!({
            "prefixes": self.size,
            "rows": rows.collect::<Vec<_>>(),
            "read_us": micros(self.read),
            "load_us": micros(self.load),
            "trie_load_us": micros(self.trie_load),
            "one_line_us": micros(self.line),
            "one_line_writes": self.line_writes,
            "memory_bytes": self.memory.0,
            "trie_memory_bytes": self.memory.1,
        })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What a program takes over the one that only changes the source.
fn over(lab: &UplinkLab, program: Program, size: u32, listed: bool) -> Result<u64> {
    // Sources that are not listed are as many as a large node meets, whatever the feed's size.
    let (first, count) = if listed {
        (0, size)
    } else {
        (SIZES.iter().copied().max().unwrap_or(0), 1_000_000)
    };
    let frame = frame(first, count);
    let (_, floor) = lab.run(Program::Source, &frame, REPEAT)?;
    let (returned, time) = lab.run(program, &frame, REPEAT)?;
    // A row whose verdict is wrong measures nothing. Single sources beside the list may be in one of its /24s.
    let wanted = if listed { 1 } else { 2 };
    if returned != wanted && (listed || size < 100_000) {
        bail!("the program returned {returned}, wanted {wanted}");
    }
    u64::try_from(time.saturating_sub(floor).as_nanos()).context("a run of centuries")
}

fn table(sizes: &[Measured]) -> String {
    let mut text = String::from("nanoseconds over an empty XDP program, min / median / max\n\n");
    let mut line = |name: &str, cells: Vec<String>| {
        // Writing to a string cannot fail.
        let _written = write!(text, "{name:<32}");
        for cell in cells {
            let _written = write!(text, "{cell:>20}");
        }
        text.push('\n');
    };
    line("prefixes", sizes.iter().map(|size| size.size.to_string()).collect());
    for row in 0..4 {
        let found = sizes.iter().filter_map(|size| size.rows.get(row));
        let name = found.clone().next().map_or("", |row| row.0);
        line(
            name,
            found
                .map(|(_, min, median, max)| format!("{min} / {median} / {max}"))
                .collect(),
        );
    }
    let milliseconds = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
    let mebibytes = |bytes: u64| {
        format!(
            "{:.1} MiB",
            f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
        )
    };
    line(
        "reading the text",
        sizes.iter().map(|size| milliseconds(size.read)).collect(),
    );
    line(
        "writing the tables",
        sizes.iter().map(|size| milliseconds(size.load)).collect(),
    );
    line(
        "writing the trie",
        sizes.iter().map(|size| milliseconds(size.trie_load)).collect(),
    );
    line(
        "one line more",
        sizes.iter().map(|size| milliseconds(size.line)).collect(),
    );
    line(
        "map writes for it",
        sizes.iter().map(|size| size.line_writes.to_string()).collect(),
    );
    line(
        "memory of all uplink maps",
        sizes.iter().map(|size| mebibytes(size.memory.0)).collect(),
    );
    line(
        "memory of the trie",
        sizes.iter().map(|size| mebibytes(size.memory.1)).collect(),
    );
    text
}
