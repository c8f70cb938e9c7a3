//! The agent comes and goes; enforcement stays.

use std::{net::TcpStream, time::Duration};

use bulkhead_dataplane::kernel::Kernel;
use bulkhead_policy::{
    model::WorkloadKey,
    plan::{Limits, LocalEndpoint, LocalEndpoints, MapOp, Planner},
    state::State,
};
use bulkhead_proto::v1::{FlowEvent, Verdict};
use bulkhead_testbed::process::until;

use crate::{
    can_run,
    controller::PATIENCE,
    world::{World, allow},
};

#[test]
fn enforces_reports_and_survives_sigkill() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web", "intruder"]);
    world.start_agent(&[]);
    world.enforce(&world.state(&[allow(&["client"], "web")]));
    world.assert_allowed("client", "web");
    world.assert_denied("intruder", "web");
    world.assert_allowed("intruder", "client");

    let flow = |source: &str, verdict: Verdict| {
        let flows = world.client().flows(Vec::new()).unwrap_or_default();
        flows.into_iter().find(|flow| {
            flow.verdict() == verdict
                && flow.source.as_ref().is_some_and(|end| end.pod_name == source)
                && flow.destination.as_ref().is_some_and(|end| end.pod_name == "web")
        })
    };
    let denied = until(PATIENCE, || flow("intruder", Verdict::Dropped)).expect("no record of the intruder");
    assert_eq!(denied.event(), FlowEvent::Deny);
    assert_eq!(denied.rule, "NetworkPolicy/shop/to-web ingress default-deny");
    assert_eq!(denied.reason, "policy-denied");
    let allowed = until(PATIENCE, || flow("client", Verdict::Forwarded)).expect("no record of the client");
    assert_eq!(allowed.event(), FlowEvent::Open);

    let endpoints = world.client().endpoints().unwrap();
    assert_eq!(endpoints.len(), 3);
    assert!(
        endpoints
            .iter()
            .all(|endpoint| endpoint.enforced && endpoint.generation > 0),
        "{endpoints:?}"
    );
    let status = world.client().agent_status().unwrap();
    assert!(status.controller_connected && status.error.is_empty(), "{status:?}");
    assert_eq!((status.endpoints, status.endpoints_enforced), (3, 3));
    assert!(
        status
            .verdicts
            .iter()
            .any(|count| count.reason == "policy-denied" && count.packets > 0)
    );

    world.kill_agent();
    world.assert_allowed("client", "web");
    world.assert_denied("intruder", "web");
}

#[test]
fn a_state_that_changed_while_the_agent_was_away_is_in_force_and_connections_live() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web", "intruder"]);
    world.start_agent(&[]);
    world.enforce(&world.state(&[allow(&["client"], "web")]));
    let to = std::net::SocketAddr::new(world.net.pod("web").address(false), crate::world::PORT);
    let mut live = world
        .net
        .pod("client")
        .netns
        .inside(|| TcpStream::connect(to))
        .unwrap()
        .unwrap();
    world.kill_agent();
    let revision = world
        .controller
        .want(&world.state(&[allow(&["client", "intruder"], "web")]));
    world.assert_denied("intruder", "web");
    world.start_agent(&[]);
    world.controller.ack(revision, "no error", |ack| ack.error.is_empty());
    world.assert_allowed("intruder", "web");
    // It came back with what it held, so the difference was enough.
    let held = world.controller.said().hellos.last().unwrap().held.clone();
    assert_eq!(held.map(|held| held.revision), Some(revision - 1));
    {
        use std::io::Write;
        live.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        live.write_all(b"still here").unwrap();
    }
    let acked = || {
        let info = world
            .net
            .pod("client")
            .netns
            .inside(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))
            .unwrap();
        // Column 5 is tx_queue:rx_queue; an empty send queue means that the other end acknowledged.
        let table = info.unwrap();
        let port = format!(":{:04X} ", live.local_addr().unwrap().port());
        table
            .lines()
            .find(|line| line.contains(&port))
            .filter(|line| line.contains(" 00000000:"))
            .map(drop)
    };
    until(PATIENCE, acked).expect("the connection is stuck");
}

#[test]
fn the_last_state_is_in_force_without_a_controller() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web", "intruder"]);
    world.start_agent(&[]);
    world.enforce(&world.state(&[allow(&["client"], "web")]));
    world.kill_agent();
    // As after a reboot: no pins, no controller; only the state folder.
    bulkhead_testbed::sys::unmount(&world.bpffs()).unwrap();
    until(PATIENCE, || {
        world
            .connects("intruder", "web", false, Duration::from_millis(200))
            .then_some(())
    })
    .expect("links outlive their bpffs");
    let path = world.net.directory().join("controller.sock");
    std::fs::remove_file(path).unwrap();
    world.start_agent(&[]);
    until(PATIENCE, || {
        world
            .client()
            .agent_status()
            .ok()
            .filter(|status| status.endpoints_enforced == 3)
    })
    .expect("the state on disk is not in force");
    world.assert_allowed("client", "web");
    world.assert_denied("intruder", "web");
}

/// What the agent of a world would tell the planner, read back from the kernel's own configurations.
fn local_of(kernel: &Kernel, state: &State) -> LocalEndpoints {
    let dump = kernel.dump().unwrap();
    let mut local = LocalEndpoints::new();
    for (ifindex, slot) in &dump.devices {
        let word = dump.endpoints[usize::try_from(*slot).unwrap()];
        let config = &dump.configs[usize::try_from(word.config).unwrap()];
        let count = usize::try_from(config.address_count).unwrap();
        let addresses = config.addresses[..count]
            .iter()
            .map(|address| std::net::IpAddr::from(*address));
        let key: WorkloadKey = state
            .endpoints
            .iter()
            .find(|(_, endpoint)| addresses.clone().any(|address| endpoint.addresses.contains(&address)))
            .map(|(key, _)| key.clone())
            .unwrap();
        let uid = Some(state.endpoints[&key].uid.clone());
        let local_endpoint = LocalEndpoint {
            uid,
            ifindex: *ifindex,
            mac: config.mac,
            addresses: addresses.collect(),
            adopt_until: config.adopt_until,
            more: std::collections::BTreeSet::new(),
        };
        local.insert(key, local_endpoint);
    }
    local
}

/// Nothing is left to do in the kernel for a state.
#[track_caller]
pub fn assert_whole(world: &World, state: &State, when: &str) {
    let kernel = Kernel::open(&world.bpffs()).unwrap();
    let local = local_of(&kernel, state);
    assert_eq!(local.len(), state.endpoints.len(), "{when}");
    let (mut planner, problems) = Planner::adopt("one", Limits::default(), &kernel.dump().unwrap());
    assert!(problems.is_empty(), "{when}: {problems:?}");
    let ops = planner.plan(state, &local).unwrap();
    let left: Vec<&MapOp> = ops
        .iter()
        .filter(|op| !matches!(op, MapOp::Epoch | MapOp::Barrier))
        .collect();
    assert!(left.is_empty(), "{when}: still to do: {left:?}");
}

#[test]
fn killed_after_any_write_it_adopts_and_completes() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web", "intruder"]);
    let before = world.state(&[allow(&["client"], "web")]);
    // Who may reach what changes for web and intruder; client may reach web and intruder may not, before and after.
    let after = world.state(&[allow(&["client", "web"], "web"), allow(&["client"], "intruder")]);
    let mut deaths = 0_u32;
    for writes in 1.. {
        world.start_agent(&[]);
        world.enforce(&before);
        world.kill_agent();
        let revision = world.controller.want(&after);
        let fuse = writes.to_string();
        world.start_agent(&["--fail-after-writes", &fuse]);
        let in_force = |world: &World| {
            let said = world.controller.said();
            said.acks
                .iter()
                .any(|ack| ack.revision == revision && ack.error.is_empty())
        };
        let mut agent = world.agent.take().unwrap();
        until(PATIENCE, || (!agent.is_alive() || in_force(&world)).then_some(())).expect("neither dead nor done");
        if agent.is_alive() {
            agent.kill().unwrap();
            break;
        }
        deaths += 1;
        drop(agent);
        let when = format!("killed after {writes} writes");
        world.assert_denied("intruder", "web");
        assert!(world.connects("client", "web", writes % 2 == 0, PATIENCE), "{when}");

        world.start_agent(&[]);
        world.controller.ack(revision, "no error", |ack| ack.error.is_empty());
        world.kill_agent();
        assert_whole(&world, &after, &when);
    }
    println!("killed after each of {deaths} writes");
    assert!(deaths > 10, "only {deaths} writes: the fuse does not burn");
}
