//! What it takes to load addresses and to change a policy: our writer beside nft and ipset, in CPU time.

use std::{fmt::Write as _, fs, net::IpAddr, thread};

use anyhow::{Context, Result, ensure};
use bulkhead_dataplane::kernel::lab::Lab;
use bulkhead_policy::plan::MapOp;
use bulkhead_testbed::{Plan, Testnet, namespace::Namespace, sys};
use bulkhead_verdict::layout::{AddressEntry, AddressKey, PortSet, RuleKey, address_flag, identity};

use crate::{
    bed::tool,
    cpu,
    report::{Bar, Table},
    rules::{self, peers},
};

/// Addresses that are loaded, and entries of a policy that change.
const ADDRESSES: u32 = 100_000;
const ENTRIES: u32 = 10_000;
/// What ours may take for each, milliseconds.
const BARS: [f64; 2] = [100.0, 20.0];
/// Writes handed over at once, as the agent does.
const CHUNK: usize = 4_096;
/// Clock ticks of /proc per second.
const TICKS: f64 = 100.0;

const OURS: &str = "bulkhead";

/// Both tables.
pub(crate) fn bench(rounds: u16) -> Result<[Table; 2]> {
    let net = Testnet::create(Plan {
        nodes: vec!["node-1".to_owned()],
        ..Plan::default()
    })?;
    let node = &net.nodes.first().context("no node")?.netns;
    let bpffs = net.directory().join("bpf-lab");
    fs::create_dir_all(&bpffs)?;
    sys::mount_bpffs(&bpffs).context("mounting a bpf file system")?;
    thread::scope(|scope| {
        let work = || {
            cpu::stay()?;
            let mut lab = Lab::open(&bpffs)?;
            Ok(measure(&mut lab, node, rounds))
        };
        scope.spawn(work).join().map_err(|_| anyhow::anyhow!("panicked"))?
    })
}

fn measure(lab: &mut Lab, node: &Namespace, rounds: u16) -> [Table; 2] {
    let title = format!("load: {ADDRESSES} addresses into an empty table");
    let mut load = Table::new("maps", &title, "ms of CPU");
    let title = format!("change: {ENTRIES} entries of a policy, and its coming into force");
    let mut change = Table::new("maps", &title, "ms of CPU");
    let (nft, ipset) = (tool("nft"), tool("ipset"));
    for (name, here) in [("nft", nft), ("ipset", ipset)] {
        if !here {
            eprintln!("SKIPPED: {name}: it is not here");
        }
    }
    for _ in 0..rounds {
        both(&mut load, &mut change, OURS, ours(lab));
        if nft {
            both(&mut load, &mut change, "nft set", nft_set(node));
        }
        if ipset {
            both(&mut load, &mut change, "ipset hash:ip", ip_set(node));
        }
    }
    for (table, bar) in [&mut load, &mut change].into_iter().zip(BARS) {
        table.bar(OURS, Some(Bar::most(bar)));
    }
    [load, change]
}

fn both(load: &mut Table, change: &mut Table, name: &str, times: Result<[f64; 2]>) {
    match times {
        Ok([loaded, changed]) => {
            load.add(name, Ok(vec![loaded]));
            change.add(name, Ok(vec![changed]));
        }
        Err(error) => {
            change.add(name, Err(anyhow::anyhow!("{error:#}")));
            load.add(name, Err(error));
        }
    }
}

/// What our agent would write, written as it writes. Taken away again at the end.
fn ours(lab: &mut Lab) -> Result<[f64; 2]> {
    let keys: Vec<AddressKey> = peers(ADDRESSES)
        .map(|peer| AddressKey {
            address: IpAddr::V4(peer).into(),
            zone: 0,
        })
        .collect();
    let entry = |number: u32| AddressEntry {
        identity: identity::FIRST_INTERNED + number % 1_000,
        image_class: 1,
        slot: u32::MAX,
        flags: address_flag::POD,
    };
    let addresses = keys
        .iter()
        .zip(0..)
        .map(|(key, number)| MapOp::Address(*key, entry(number)));
    let loaded = timed(lab, &addresses.collect::<Vec<_>>())?;
    let found = lab.addresses()?;
    ensure!(found == usize::try_from(ADDRESSES)?, "{found} addresses are there");
    let rules: Vec<RuleKey> = (0..ENTRIES)
        .map(|peer| RuleKey {
            ruleset: identity::FIRST_INTERNED,
            peer: identity::FIRST_INTERNED + peer,
        })
        .collect();
    let mut ops: Vec<MapOp> = rules
        .iter()
        .map(|key| MapOp::Rule(*key, PortSet { first: 0, count: 1 }))
        .collect();
    // Every flow is judged again.
    ops.push(MapOp::Epoch);
    let changed = timed(lab, &ops)?;
    let found = lab.rules()?;
    ensure!(found == usize::try_from(ENTRIES)?, "{found} entries are there");
    let gone = keys.into_iter().map(MapOp::RemoveAddress);
    let gone = gone.chain(rules.into_iter().map(MapOp::RemoveRule));
    timed(lab, &gone.collect::<Vec<_>>())?;
    Ok([loaded, changed])
}

fn timed(lab: &mut Lab, ops: &[MapOp]) -> Result<f64> {
    let begin = cpu::of_thread();
    for chunk in ops.chunks(CHUNK) {
        lab.write(chunk)?;
    }
    Ok(cpu::of_thread().saturating_sub(begin).as_secs_f64() * 1_000.0)
}

fn nft_set(node: &Namespace) -> Result<[f64; 2]> {
    let elements = |first, count| {
        let list = peers(first + count).skip(usize::try_from(first).unwrap_or(0));
        list.map(|peer| peer.to_string()).collect::<Vec<_>>().join(", ")
    };
    rules::run(node, &["nft", "flush", "ruleset"], "")?;
    let text = format!(
        "table inet bench {{ set addresses {{ type ipv4_addr; elements = {{ {} }}; }}; }}",
        elements(0, ADDRESSES)
    );
    let loaded = spent(node, &["nft", "-f", "-"], &text)?;
    let text = format!(
        "add element inet bench addresses {{ {} }}",
        elements(ADDRESSES, ENTRIES)
    );
    let changed = spent(node, &["nft", "-f", "-"], &text)?;
    let last = peers(ADDRESSES + ENTRIES).last().context("no address")?.to_string();
    rules::run(
        node,
        &[
            "nft",
            "get",
            "element",
            "inet",
            "bench",
            "addresses",
            &format!("{{ {last} }}"),
        ],
        "",
    )?;
    rules::run(node, &["nft", "flush", "ruleset"], "")?;
    Ok([loaded, changed])
}

fn ip_set(node: &Namespace) -> Result<[f64; 2]> {
    rules::run(node, &["ipset", "destroy"], "")?;
    let mut text = "create addresses hash:ip family inet maxelem 1048576\n".to_owned();
    let add = |text: &mut String, first: u32, count: u32| {
        for peer in peers(first + count).skip(usize::try_from(first).unwrap_or(0)) {
            let _never = writeln!(text, "add addresses {peer}");
        }
    };
    add(&mut text, 0, ADDRESSES);
    let loaded = spent(node, &["ipset", "restore"], &text)?;
    let mut text = String::new();
    add(&mut text, ADDRESSES, ENTRIES);
    let changed = spent(node, &["ipset", "restore"], &text)?;
    let last = peers(ADDRESSES + ENTRIES).last().context("no address")?.to_string();
    rules::run(node, &["ipset", "test", "addresses", &last], "")?;
    rules::run(node, &["ipset", "destroy"], "")?;
    Ok([loaded, changed])
}

/// Milliseconds of CPU that a command takes, starting it included.
fn spent(node: &Namespace, words: &[&str], input: &str) -> Result<f64> {
    let before = of_children()?;
    rules::run(node, words, input)?;
    Ok((of_children()? - before) * 1_000.0 / TICKS)
}

/// Clock ticks that ended children of this process were on a CPU.
fn of_children() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    // The name, in brackets, may hold anything; children's times are the 14th and 15th field behind it.
    let (_, fields) = text.rsplit_once(')').context("/proc/self/stat has no name")?;
    let times = fields.split_whitespace().skip(13).take(2);
    Ok(times.filter_map(|field| field.parse::<f64>().ok()).sum())
}
