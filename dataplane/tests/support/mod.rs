//! A kernel to judge packets in: a network namespace of its own with devices for a vector's numbers, the programs loaded
//! with maps of their own, nothing pinned and nothing attached. All of it goes with the test's thread.

use std::{
    collections::BTreeMap,
    fs, io,
    process::{Command, Stdio},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use bulkhead_dataplane::kernel::OBJECT;
use bulkhead_verdict::{
    Scratch, Verdict,
    address::Address,
    dns::stream::Stream,
    dns::table::{BucketKey, KEY_BYTES, LearnedBucket, MemberKey, Naming, PatternEntry, PendingBucket},
    layout::{
        AddressEntry, AddressKey, Alternative, Config, DenyEntry, DenyKey, EndpointWord, Flow, FlowKey, FragmentEntry,
        FragmentKey, LeaseKey, NameKey, NetworkEntry, NetworkKey, PortSet, Range, RuleKey,
    },
    maps::Hook,
    vectors::{Change, Sent, world, world::World},
};
use zerocopy::IntoBytes;

/// Devices a vector may name, from 1.
const DEVICES: u32 = 7;
/// The CPU everything runs on, so that its scratch memory can be read.
const CPU: usize = 0;
/// Offset of `ifindex` in `struct __sk_buff`.
const IFINDEX_AT: usize = 40;
/// Offset of `mark`.
const MARK_AT: usize = 8;
/// The mark under which answers travel.
const ANSWER_MARK: u32 = 0x0ddb_a11e;
/// `TC_ACT_REDIRECT`.
const REDIRECT: i32 = 7;

/// The kernel of one test.
pub(crate) struct Machine {
    object: Ebpf,
    devices: BTreeMap<u32, u32>,
    /// Elements of arrays that are not zero.
    dirty: Vec<(&'static str, u32)>,
}

macro_rules! hash {
    ($self:expr, $name:literal, $key:ty, $value:ty) => {
        HashMap::<&mut MapData, [u8; size_of::<$key>()], [u8; size_of::<$value>()]>::try_from(
            $self.object.map_mut($name).unwrap(),
        )
        .unwrap()
    };
}

macro_rules! array {
    ($self:expr, $name:expr, $value:ty) => {
        Array::<&mut MapData, [u8; size_of::<$value>()]>::try_from($self.object.map_mut($name).unwrap()).unwrap()
    };
}

/// The bytes of a key or value.
fn bytes<T: IntoBytes + zerocopy::Immutable, const N: usize>(value: &T) -> [u8; N] {
    value.as_bytes().try_into().unwrap()
}

impl Machine {
    /// A machine, or why there can be none here.
    pub(crate) fn new() -> Result<Self, String> {
        // SAFETY: no arguments, cannot fail.
        #[expect(unsafe_code, reason = "asking for the user id")]
        let root = unsafe { libc::geteuid() } == 0;
        if !root {
            return Err("not root, and loading programs needs CAP_BPF".to_owned());
        }
        own_namespace_and_cpu().map_err(|error| format!("no network namespace of our own: {error}"))?;
        let mut devices = BTreeMap::new();
        for device in 1..=DEVICES {
            devices.insert(device, create_device(device)?);
        }
        let mut object = match std::env::var_os("BULKHEAD_BPF_OBJECT") {
            Some(path) => EbpfLoader::new().load(&fs::read(path).map_err(|error| error.to_string())?),
            None => EbpfLoader::new().load(OBJECT),
        }
        .expect("the object's maps are created");
        for name in ["from_pod", "to_pod", "from_host", "to_host"] {
            let program: &mut SchedClassifier = object.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{name}: {error}"));
            let count = program.info().ok().and_then(|info| info.verified_instruction_count());
            println!("{name}: {} instructions verified", count.unwrap_or(0));
        }
        Ok(Self {
            object,
            devices,
            dirty: Vec::new(),
        })
    }

    /// The real index of a vector's device.
    fn ifindex(&self, device: u32) -> u32 {
        self.devices.get(&device).copied().unwrap()
    }

    /// Empties every map, then writes a world.
    pub(crate) fn fill(&mut self, world: &World) {
        self.empty();
        for (device, slot) in &world.devices {
            let ifindex = self.ifindex(*device);
            hash!(self, "BK_DEVICE", u32, u32)
                .insert(bytes(&ifindex), bytes::<_, 4>(slot), 0)
                .unwrap();
        }
        for (address, entry) in &world.addresses {
            self.change(&Change::Address(*address, Some(*entry)));
        }
        for address in &world.own {
            hash!(self, "BK_OWN", Address, u32)
                .insert(bytes(address), bytes::<_, 4>(&1_u32), 0)
                .unwrap();
        }
        for (prefix, entry) in &world.networks {
            let mut networks =
                LpmTrie::<&mut MapData, [u8; size_of::<NetworkKey>()], [u8; size_of::<NetworkEntry>()]>::try_from(
                    self.object.map_mut("BK_NETWORK").unwrap(),
                )
                .unwrap();
            networks
                .insert(&Key::new(prefix.length, bytes(&prefix.key)), bytes::<_, 8>(entry), 0)
                .unwrap();
        }
        for (key, set) in &world.rules {
            self.change(&Change::Rule(*key, *set));
        }
        for (index, range) in &world.ranges {
            self.dirty.push(("BK_RANGE", *index));
            array!(self, "BK_RANGE", Range)
                .set(*index, bytes::<_, 16>(range), 0)
                .unwrap();
        }
        for (index, alternative) in &world.alternatives {
            self.dirty.push(("BK_ALT", *index));
            array!(self, "BK_ALT", Alternative)
                .set(*index, bytes::<_, 16>(alternative), 0)
                .unwrap();
        }
        for (key, deadline) in &world.leases {
            self.change(&Change::Lease(*key, *deadline));
        }
        for (number, deadline) in &world.expiries {
            self.change(&Change::Expiry(*number, *deadline));
        }
        for (key, deadline) in &world.names {
            self.change(&Change::Name(*key, *deadline));
        }
        self.write_patterns(world);
        for (index, config) in &world.configs {
            self.change(&Change::Config(*index, *config));
        }
        for (slot, word) in &world.endpoints {
            self.change(&Change::Endpoint(*slot, *word));
        }
    }

    /// What answers are looked up in.
    fn write_patterns(&mut self, world: &World) {
        array!(self, "BK_NAMING", Naming)
            .set(0, bytes::<_, 16>(&world.naming), 0)
            .unwrap();
        for (name, entry) in &world.patterns {
            let mut key = [0; KEY_BYTES];
            key[..name.len()].copy_from_slice(name);
            let mut map = LpmTrie::<&mut MapData, [u8; KEY_BYTES], [u8; size_of::<PatternEntry>()]>::try_from(
                self.object.map_mut("BK_PATTERN").unwrap(),
            )
            .unwrap();
            let bits = u32::try_from(name.len() * 8).unwrap();
            map.insert(&Key::new(bits, key), bytes::<_, 16>(entry), 0).unwrap();
        }
        for member in &world.members {
            hash!(self, "BK_MEMBER", MemberKey, u32)
                .insert(bytes(member), bytes::<_, 4>(&1_u32), 0)
                .unwrap();
        }
    }

    /// Carries out one write of a vector.
    pub(crate) fn change(&mut self, change: &Change) {
        match *change {
            Change::Endpoint(slot, word) => {
                self.dirty.push(("BK_ENDPOINT", slot));
                array!(self, "BK_ENDPOINT", EndpointWord)
                    .set(slot, bytes::<_, 8>(&word), 0)
                    .unwrap();
            }
            Change::Config(index, config) => {
                self.dirty.push(("BK_CONFIG", index));
                let config = Config {
                    ifindex: self.ifindex(config.ifindex),
                    ..config
                };
                array!(self, "BK_CONFIG", Config)
                    .set(index, bytes::<_, 128>(&config), 0)
                    .unwrap();
            }
            Change::Address(key, Some(entry)) => {
                hash!(self, "BK_ADDRESS", AddressKey, AddressEntry)
                    .insert(bytes(&key), bytes::<_, 16>(&entry), 0)
                    .unwrap();
            }
            Change::Address(key, None) => {
                hash!(self, "BK_ADDRESS", AddressKey, AddressEntry)
                    .remove(&bytes(&key))
                    .unwrap();
            }
            Change::Rule(key, set) => {
                hash!(self, "BK_RULE", RuleKey, PortSet)
                    .insert(bytes(&key), bytes::<_, 8>(&set), 0)
                    .unwrap();
            }
            Change::Lease(key, deadline) => {
                let deadline = deadline.at(boot_time());
                hash!(self, "BK_LEASE", LeaseKey, u64)
                    .insert(bytes(&key), bytes::<_, 8>(&deadline), 0)
                    .unwrap();
            }
            Change::Expiry(number, deadline) => {
                self.dirty.push(("BK_EXPIRY", number));
                array!(self, "BK_EXPIRY", u64)
                    .set(number, bytes::<_, 8>(&deadline.at(boot_time())), 0)
                    .unwrap();
            }
            Change::Name(key, deadline) => {
                let deadline = deadline.at(boot_time());
                hash!(self, "BK_NAME", NameKey, u64)
                    .insert(bytes(&key), bytes::<_, 8>(&deadline), 0)
                    .unwrap();
            }
            Change::Openings(slot, until) => {
                let quota = [until.at(boot_time()), 0];
                array!(self, "BK_QUOTA", [u64; 2])
                    .set(slot, bytes::<_, 16>(&quota), 0)
                    .unwrap();
            }
            Change::Epoch(epoch) => array!(self, "BK_EPOCH", u32).set(0, bytes::<_, 4>(&epoch), 0).unwrap(),
            Change::PeerEpoch(address, epoch) => {
                self.dirty.push(("BK_PEER_EPOCH", address.epoch_slot()));
                array!(self, "BK_PEER_EPOCH", u32)
                    .set(address.epoch_slot(), bytes::<_, 4>(&epoch), 0)
                    .unwrap();
            }
            Change::Wait(_) | Change::FullFlows => panic!("a vector with this step is for the host only"),
        }
    }

    /// Back to the maps as they were after loading.
    fn empty(&mut self) {
        macro_rules! clear {
            ($($name:literal: $key:ty, $value:ty;)*) => {$(
                let mut map = hash!(self, $name, $key, $value);
                for key in map.keys().collect::<Result<Vec<_>, _>>().unwrap() {
                    map.remove(&key).unwrap();
                }
            )*};
        }
        clear! {
            "BK_DEVICE": u32, u32;
            "BK_ADDRESS": AddressKey, AddressEntry;
            "BK_OWN": Address, u32;
            "BK_RULE": RuleKey, PortSet;
            "BK_LEASE": LeaseKey, u64;
            "BK_NAME": NameKey, u64;
            "BK_MEMBER": MemberKey, u32;
            "BK_LEARNED": BucketKey, LearnedBucket;
            "BK_PENDING": BucketKey, PendingBucket;
            "BK_STREAM": BucketKey, Stream;
            "BK_CONFIRMED": FlowKey, Flow;
            "BK_TENTATIVE": FlowKey, Flow;
            "BK_FRAGMENT": FragmentKey, FragmentEntry;
            "BK_DENY": DenyKey, DenyEntry;
        }
        let mut networks =
            LpmTrie::<&mut MapData, [u8; size_of::<NetworkKey>()], [u8; size_of::<NetworkEntry>()]>::try_from(
                self.object.map_mut("BK_NETWORK").unwrap(),
            )
            .unwrap();
        for key in networks.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            networks.remove(&key).unwrap();
        }
        let mut patterns = LpmTrie::<&mut MapData, [u8; KEY_BYTES], [u8; size_of::<PatternEntry>()]>::try_from(
            self.object.map_mut("BK_PATTERN").unwrap(),
        )
        .unwrap();
        for key in patterns.keys().collect::<Result<Vec<_>, _>>().unwrap() {
            patterns.remove(&key).unwrap();
        }
        for (name, index) in std::mem::take(&mut self.dirty) {
            match name {
                "BK_CONFIG" => array!(self, name, Config).set(index, [0; 128], 0),
                "BK_RANGE" | "BK_ALT" => array!(self, name, Range).set(index, [0; 16], 0),
                "BK_PEER_EPOCH" => array!(self, name, u32).set(index, [0; 4], 0),
                _ => array!(self, name, u64).set(index, [0; 8], 0),
            }
            .unwrap();
        }
        for pod in [world::A, world::B, world::UPLINK] {
            for budget in [pod * 2, pod * 2 + 1] {
                array!(self, "BK_ANSWER", u64).set(budget, [0; 8], 0).unwrap();
            }
            array!(self, "BK_QUOTA", [u64; 2]).set(pod, [0; 16], 0).unwrap();
        }
        self.change(&Change::Epoch(0));
        array!(self, "BK_EPOCH", u32)
            .set(1, bytes::<_, 4>(&ANSWER_MARK), 0)
            .unwrap();
    }

    /// Has the kernel judge a frame at a device; what its scratch memory says afterwards, checked against what the
    /// program returned.
    pub(crate) fn judge(&mut self, sent: &Sent) -> (Verdict, Vec<u8>) {
        let mut context = [0; 192];
        context[IFINDEX_AT..IFINDEX_AT + 4].copy_from_slice(&self.ifindex(sent.device).to_ne_bytes());
        if sent.answer {
            context[MARK_AT..MARK_AT + 4].copy_from_slice(&ANSWER_MARK.to_ne_bytes());
        }
        let mut options = TestRunOptions::new();
        let mut frame = [0; 4096];
        options.data_in = Some(&sent.frame);
        options.data_out = Some(&mut frame);
        options.ctx_in = Some(&context);
        let name = match (sent.hook, sent.at_uplink()) {
            (Hook::FromPod, false) => "from_pod",
            (Hook::ToPod, false) => "to_pod",
            (Hook::FromPod, true) => "from_host",
            (Hook::ToPod, true) => "to_host",
        };
        let program: &mut SchedClassifier = self.object.program_mut(name).unwrap().try_into().unwrap();
        let result = program
            .test_run(options)
            .unwrap_or_else(|error| panic!("{} bytes {:02x?}: {error}", sent.frame.len(), sent.frame));
        let returned = result.return_value.cast_signed();
        let length = usize::try_from(result.data_size_out).unwrap();
        let scratch = PerCpuArray::<&mut MapData, [u8; size_of::<Scratch>()]>::try_from(
            self.object.map_mut("BK_SCRATCH").unwrap(),
        )
        .unwrap();
        let verdict = Scratch::verdict_in(&scratch.get(&0, 0).unwrap()[CPU]).unwrap();
        let answer = if returned == REDIRECT {
            frame[..length].to_vec()
        } else {
            Vec::new()
        };
        if answer.is_empty() {
            let wanted = if verdict.reason.passes() { -1 } else { 2 };
            assert_eq!(returned, wanted, "what the program returned for {verdict:?}");
        }
        assert!(
            answer.is_empty() || !verdict.reason.passes(),
            "{verdict:?} was answered"
        );
        (verdict, answer)
    }

    /// Packets that the records of `BK_DENY` count.
    pub(crate) fn counted_denials(&mut self) -> u64 {
        let map = hash!(self, "BK_DENY", DenyKey, DenyEntry);
        map.iter()
            .map(|entry| u64::from_ne_bytes(entry.unwrap().1[..8].try_into().unwrap()))
            .sum()
    }
}

/// `CLOCK_BOOTTIME`, nanoseconds.
#[expect(unsafe_code, reason = "reading a clock")]
fn boot_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) }, 0);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// Gives this thread a network namespace of its own and ties it to one CPU.
#[expect(unsafe_code, reason = "system calls about this thread only")]
fn own_namespace_and_cpu() -> io::Result<()> {
    // SAFETY: an all-zero set is an empty one; the calls get pointers to it and its size.
    let (unshared, tied) = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(CPU, &mut set);
        (
            libc::unshare(libc::CLONE_NEWNET),
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set),
        )
    };
    if unshared != 0 || tied != 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes a pair of devices in the namespace; the index of one end.
fn create_device(device: u32) -> Result<u32, String> {
    let (name, peer) = (format!("bk{device}"), format!("bk{device}p"));
    let status = Command::new("ip")
        .args(["link", "add", &name, "type", "veth", "peer", "name", &peer])
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("ip (iproute2) cannot be run: {error}"))?;
    if !status.success() {
        return Err(format!("no device {name}: {status}"));
    }
    let name = std::ffi::CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: a valid C string.
    #[expect(unsafe_code, reason = "asking for a device's index")]
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error().to_string()),
        index => Ok(index),
    }
}
