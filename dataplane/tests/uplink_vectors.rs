//! The uplink's stories in the kernel: the object the agent embeds, run on frames through `BPF_PROG_TEST_RUN`, compared
//! with the host frame by frame, the challenges byte by byte.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::{TestRun, TestRunOptions, Xdp},
};
use bulkhead_dataplane::kernel::OBJECT;
use bulkhead_verdict::{
    address::Address,
    layout::{AddressEntry, AddressKey, Counter, NetworkEntry, NetworkKey},
    reason::Reason,
    uplink::{
        Answer, CHALLENGE_MAX, Headers, challenge,
        layout::{DropEntry, DropKey, HANDED_ON, Hosts, Prefix, PrefixKey, Settings},
        vectors::{self, Expected, Step, Vector, World, bound, sequence_at},
    },
};
use zerocopy::{Immutable, IntoBytes};

/// Maps with programs of their own, anew for each story.
struct Machine(Ebpf);

fn bytes<T: IntoBytes + Immutable, const N: usize>(value: &T) -> [u8; N] {
    value.as_bytes().try_into().unwrap()
}

macro_rules! map {
    ($self:expr, $kind:ident, $name:literal, $key:ty, $value:ty) => {
        $kind::<&mut MapData, [u8; size_of::<$key>()], [u8; size_of::<$value>()]>::try_from(
            $self.0.map_mut($name).unwrap(),
        )
        .unwrap()
    };
}

macro_rules! array {
    ($self:expr, $name:literal, $value:ty) => {
        Array::<&mut MapData, [u8; size_of::<$value>()]>::try_from($self.0.map_mut($name).unwrap()).unwrap()
    };
}

fn bits(ip: IpAddr, length: u8) -> u32 {
    u32::from(length) + if ip.is_ipv4() { 96 } else { 0 }
}

impl Machine {
    fn new(world: &World) -> Self {
        let mut loader = EbpfLoader::new();
        // As small as the stories need, because each has maps of its own.
        for name in [
            "BK_UP_HOSTS",
            "BK_UP_PREFIX",
            "BK_CONFIRMED",
            "BK_TENTATIVE",
            "BK_INTERN",
            "BK_RULE",
        ] {
            loader.map_max_entries(name, 64);
        }
        let mut machine = Self(loader.load(OBJECT).expect("the object's maps are created"));
        let program: &mut Xdp = machine.0.program_mut("uplink").unwrap().try_into().unwrap();
        program.load().unwrap_or_else(|error| panic!("uplink: {error}"));
        machine.fill(world);
        machine
    }

    fn fill(&mut self, world: &World) {
        array!(self, "BK_UP_SETTINGS", Settings)
            .set(0, bytes::<_, 80>(&world.settings), 0)
            .unwrap();
        for (network, cell) in &world.cells {
            let cells = array!(self, "BK_UP_CELL", [u8; 256]);
            let mut element = cells.get(&(network >> 8), 0).unwrap();
            element[(network & 0xff) as usize] = *cell;
            let mut marks = array!(self, "BK_UP_MARK", [u8; 32]);
            let mut marked = marks.get(&(network >> 8), 0).unwrap();
            marked[((network & 0xff) >> 3) as usize] |= 1 << (network & 7);
            marks.set(network >> 8, marked, 0).unwrap();
            let mut wide = array!(self, "BK_UP_WIDE", [u8; 8192]);
            let mut marked = wide.get(&0, 0).unwrap();
            marked[(network >> 11) as usize] |= 1 << (network >> 8 & 7);
            wide.set(0, marked, 0).unwrap();
            let mut cells = array!(self, "BK_UP_CELL", [u8; 256]);
            cells.set(network >> 8, element, 0).unwrap();
        }
        for (network, hosts) in &world.hosts {
            map!(self, HashMap, "BK_UP_HOSTS", u32, Hosts)
                .insert(network.to_ne_bytes(), bytes::<_, 36>(hosts), 0)
                .unwrap();
        }
        for (index, root) in &world.roots {
            array!(self, "BK_UP_ROOT", Prefix)
                .set(*index, bytes::<_, 8>(root), 0)
                .unwrap();
        }
        for (key, prefix) in &world.prefixes {
            map!(self, HashMap, "BK_UP_PREFIX", PrefixKey, Prefix)
                .insert(bytes::<_, 20>(key), bytes::<_, 8>(prefix), 0)
                .unwrap();
        }
        for (ip, length) in &world.exceptions {
            map!(self, LpmTrie, "BK_UP_EXCEPT", Address, u32)
                .insert(
                    &Key::new(bits(*ip, *length), bytes(&Address::from(*ip))),
                    [1, 0, 0, 0],
                    0,
                )
                .unwrap();
        }
        for (ip, identity) in &world.addresses {
            let key = AddressKey {
                address: Address::from(*ip),
                zone: 0,
            };
            map!(self, HashMap, "BK_ADDRESS", AddressKey, AddressEntry)
                .insert(bytes::<_, 20>(&key), bytes::<_, 16>(&bound(*identity)), 0)
                .unwrap();
        }
        for (ip, length, identity) in &world.networks {
            let key = NetworkKey {
                zone_be: 0,
                address: Address::from(*ip),
            };
            let entry = NetworkEntry {
                identity: *identity,
                flags: 0,
            };
            map!(self, LpmTrie, "BK_NETWORK", NetworkKey, NetworkEntry)
                .insert(
                    &Key::new(32 + bits(*ip, *length), bytes(&key)),
                    bytes::<_, 8>(&entry),
                    0,
                )
                .unwrap();
        }
    }

    /// What the program makes of a frame, and the frame afterwards.
    fn judge(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; frame.len()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let program: &mut Xdp = self.0.program_mut("uplink").unwrap().try_into().unwrap();
        let result = program.test_run(options).unwrap();
        let length = usize::try_from(result.data_size_out).unwrap();
        out.truncate(length);
        (result.return_value, out)
    }

    /// Packets that were counted, by reason.
    fn counted(&mut self) -> BTreeMap<u8, u64> {
        let stats =
            PerCpuArray::<&mut MapData, [u8; size_of::<Counter>()]>::try_from(self.0.map_mut("BK_UP_STATS").unwrap())
                .unwrap();
        let packets = |number: u8| {
            let values = stats.get(&number.into(), 0).unwrap();
            values
                .iter()
                .map(|value| u64::from_ne_bytes(value[..8].try_into().unwrap()))
                .sum::<u64>()
        };
        (0..=255)
            .map(|number| (number, packets(number)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Packets that were counted under their sources.
    fn noted(&mut self) -> u64 {
        let map = map!(self, HashMap, "BK_UP_DROP", DropKey, DropEntry);
        map.iter()
            .map(|entry| u64::from_ne_bytes(entry.unwrap().1[..8].try_into().unwrap()))
            .sum()
    }
}

#[test]
fn the_kernel_judges_uplinks_as_the_host() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: not root, and loading programs needs CAP_BPF");
        return;
    }
    let (mut met, mut frames, mut shorter) = (BTreeMap::<u8, u64>::new(), 0, 0);
    for vector in vectors::all() {
        run(&vector, &mut met, &mut frames, &mut shorter);
    }
    println!("{frames} frames; {shorter} too short for the kernel's test runs, on the host only");
    for reason in Reason::ALL.iter().filter(|reason| reason.is_uplink()) {
        println!("{:6}  {}", met.get(&(*reason as u8)).unwrap_or(&0), reason.name());
        assert!(
            met.contains_key(&(*reason as u8)),
            "not reached in the kernel: {reason:?}"
        );
    }
}

fn run(vector: &Vector, met: &mut BTreeMap<u8, u64>, frames: &mut u64, shorter: &mut u64) {
    let (host, mut machine) = (vector.world.tables(), Machine::new(&vector.world));
    let (mut on_host, mut in_kernel) = (0_u32, [0; 4]);
    let mut expected_counts = BTreeMap::<u8, u64>::new();
    for (index, step) in vector.steps.iter().enumerate() {
        let place = format!("{}, step {index}", vector.name);
        let (frame, expected, proof) = match step {
            Step::Frame(frame, expected) => (frame.clone(), *expected, false),
            Step::Proof(frame, expected) => (frame.clone(), *expected, true),
        };
        let with = |number: [u8; 4]| {
            let mut frame = frame.clone();
            if proof {
                let at = sequence_at(&frame);
                frame[at..at + 4].copy_from_slice(&number);
            }
            frame
        };
        let mut headers = Headers::default();
        let answer = host.judge(&with(on_host.to_be_bytes()), &mut headers);
        // `BPF_PROG_TEST_RUN` wants an Ethernet header.
        if frame.len() < 14 {
            *shorter += 1;
            continue;
        }
        let (returned, out) = machine.judge(&with(in_kernel));
        let found = match answer {
            Answer::Next => (Expected::Next, 2, HANDED_ON),
            Answer::Drop(reason) => (Expected::Drop(reason), 1, reason as u8),
            Answer::Challenge(number) => {
                on_host = number;
                let at = sequence_at(&out) + 4;
                in_kernel = out[at..at + 4].try_into().unwrap();
                // The clocks differ, so the numbers do; with the kernel's number the host writes the same packet.
                let mut bytes = [0; CHALLENGE_MAX];
                let length = challenge(&headers, u32::from_be_bytes(in_kernel), &mut bytes);
                assert_eq!(out, bytes[..length], "{place}: challenge, kernel (left), host (right)");
                (Expected::Challenge, 3, Reason::SynChallenged as u8)
            }
        };
        assert_eq!(found.0, expected, "{place}: host (left), expected (right)");
        assert_eq!(returned, found.1, "{place}: kernel (left), host (right)");
        *expected_counts.entry(found.2).or_default() += 1;
        *frames += 1;
    }
    let counted = machine.counted();
    assert_eq!(
        counted, expected_counts,
        "{}: counters, kernel (left), host (right)",
        vector.name
    );
    let dropped: u64 = counted
        .iter()
        .filter(|(number, _)| ![HANDED_ON, Reason::SynChallenged as u8].contains(number))
        .map(|(_, count)| count)
        .sum();
    assert_eq!(
        machine.noted(),
        dropped,
        "{}: every drop is counted under its source",
        vector.name
    );
    for (number, count) in counted {
        *met.entry(number).or_default() += count;
    }
}
