//! The kernel module by itself: load, attach, default deny, one owner, and what the verifier had to walk.

use std::{fs, path::Path};

use bulkhead_dataplane::kernel::{Kernel, KernelError, Tuning};
use bulkhead_verdict::maps::Hook;

use crate::{can_run, world::World};

#[test]
fn a_device_without_an_endpoint_drops_everything() {
    if !can_run() {
        return;
    }
    let world = World::new(&["client", "web"]);
    world.assert_allowed("client", "web");
    let device = &world.net.pod("web").device;
    let list = world.net.nodes[0]
        .netns
        .ip_output(&["-o", "link", "show", device])
        .unwrap();
    let ifindex: u32 = list.split(':').next().unwrap().parse().unwrap();

    let kernel = Kernel::open(&world.bpffs()).unwrap();
    assert!(!kernel.found_pins());
    world.net.nodes[0]
        .netns
        .inside(|| kernel.attach(ifindex).unwrap())
        .unwrap();
    assert_eq!(kernel.attached().unwrap(), [ifindex]);
    world.assert_denied("client", "web");
    world.assert_denied("web", "client");

    // One owner at a time; a successor finds everything as it was.
    let second = Kernel::open(&world.bpffs());
    assert!(matches!(second, Err(KernelError::Locked { .. })), "{second:?}");
    drop(kernel);
    let kernel = Kernel::open(&world.bpffs()).unwrap();
    assert!(kernel.found_pins());
    assert_eq!(kernel.attached().unwrap(), [ifindex]);
    world.assert_denied("client", "web");
    world.net.nodes[0]
        .netns
        .inside(|| kernel.attach(ifindex).unwrap())
        .unwrap();
    world.assert_denied("client", "web");

    kernel.detach(ifindex).unwrap();
    world.assert_allowed("client", "web");
    let missing = world.net.nodes[0].netns.inside(|| kernel.attach(9_999)).unwrap();
    assert!(
        matches!(missing, Err(KernelError::Attach { ifindex: 9_999, .. })),
        "{missing:?}"
    );
}

#[test]
fn maps_of_another_shape_are_refused() {
    if !can_run() {
        return;
    }
    let world = World::new(&[]);
    drop(Kernel::open(&world.bpffs()).unwrap());
    // Two maps change places: what a build with another layout under the same version would have left.
    let folder = fs::read_dir(world.bpffs())
        .unwrap()
        .flatten()
        .find(|entry| entry.path().is_dir())
        .unwrap()
        .path();
    fs::remove_file(folder.join("BK_RULE")).unwrap();
    fs::rename(folder.join("BK_CONFIG"), folder.join("BK_RULE")).unwrap();
    let error = Kernel::open(&world.bpffs()).unwrap_err();
    assert!(matches!(error, KernelError::WrongMap { map: "BK_RULE", .. }), "{error}");
}

#[test]
fn what_the_verifier_walks_is_known() {
    const FILE: &str = "tests/golden/verified_instructions.txt";
    if !can_run() {
        return;
    }
    let world = World::new(&[]);
    let kernel = Kernel::with_uplinks(&world.bpffs(), Tuning::default(), Some(64)).unwrap();
    let count = |hook| kernel.programs().verified_instructions(hook).unwrap();
    let found = [
        ("from_pod", count(Hook::FromPod)),
        ("to_pod", count(Hook::ToPod)),
        ("uplink", kernel.programs().uplink_verified_instructions().unwrap()),
    ];
    let path = Path::new(FILE);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let lines: Vec<String> = found
            .iter()
            .map(|(program, count)| format!("{program} {count}\n"))
            .collect();
        fs::write(path, lines.concat()).unwrap();
    }
    let golden = fs::read_to_string(path).unwrap();
    for (program, count) in found {
        let line = golden
            .lines()
            .find_map(|line| line.strip_prefix(program))
            .unwrap_or_else(|| panic!("{FILE}: no {program}"));
        let wanted: u32 = line.trim().parse().unwrap();
        let tolerance = wanted / 20;
        assert!(
            count.abs_diff(wanted) <= tolerance,
            "{program}: the verifier walked {count} instructions, {FILE} says {wanted} ± 5 %. If that is intended, run the \
             test with UPDATE_EXPECT=1 and say why in the commit"
        );
    }
}
