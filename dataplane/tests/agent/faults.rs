//! What can go wrong around an endpoint, and around the agent itself.

use std::sync::Arc;

use bulkhead_policy::model::{Attachment, WorkloadKey};
use bulkhead_testbed::{Running, process::until};

use crate::{
    can_run,
    controller::PATIENCE,
    world::{World, allow},
};

fn key(name: &str) -> WorkloadKey {
    WorkloadKey {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    }
}

#[test]
fn a_missing_namespace_is_that_endpoints_trouble_only() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web", "intruder"]);
    let good = world.state(&[allow(&["client"], "web")]);
    let mut broken = good.clone();
    let netns = Some("/run/netns/bh-there-is-none".to_owned());
    Arc::make_mut(broken.endpoints.get_mut(&key("intruder")).unwrap()).attachment = Attachment { netns, device: None };
    world.start_agent(&[]);
    let revision = world.controller.want(&broken);
    let ack = world.controller.ack(revision, "two enforced", |ack| {
        ack.endpoints.iter().filter(|e| e.enforced).count() == 2
    });
    assert!(ack.error.is_empty(), "{}", ack.error);
    let why = &ack.endpoints.iter().find(|endpoint| !endpoint.enforced).unwrap().why;
    assert!(
        why.contains("bh-there-is-none") && why.contains("No such file"),
        "{why}"
    );
    world.assert_allowed("client", "web");
    world.assert_denied("intruder", "web");
    let listed = world.client().endpoints().unwrap();
    assert!(
        listed
            .iter()
            .any(|endpoint| !endpoint.enforced && endpoint.error.contains("bh-there-is-none"))
    );

    // The path is put right: a new revision that changes only that.
    world.enforce(&good);
}

#[test]
fn a_device_can_be_named_and_come_late() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web"]);
    let mut state = world.state(&[allow(&["client"], "web")]);
    let device = world.net.pod("web").device.clone();
    Arc::make_mut(state.endpoints.get_mut(&key("web")).unwrap()).attachment = Attachment {
        netns: None,
        device: Some(device.clone()),
    };
    // Another name for now: the device is there under a name nobody asked for.
    let node = &world.net.nodes[0].netns;
    node.ip(&format!("link set {device} down\nlink set {device} name hidden\n"))
        .unwrap();
    world.start_agent(&[]);
    let revision = world.controller.want(&state);
    let ack = world
        .controller
        .ack(revision, "one enforced", |ack| ack.endpoints.iter().any(|e| e.enforced));
    let why = &ack.endpoints.iter().find(|endpoint| !endpoint.enforced).unwrap().why;
    assert!(why.contains(&device), "{why}");
    world.net.nodes[0]
        .netns
        .ip(&format!("link set hidden name {device}\nlink set {device} up\n"))
        .unwrap();
    world.controller.ack(revision, "all enforced", |ack| {
        ack.endpoints.iter().all(|endpoint| endpoint.enforced)
    });
}

#[test]
fn a_device_that_goes_is_cleaned_up_and_the_others_stay() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web", "intruder"]);
    let state = world.state(&[allow(&["client"], "web")]);
    world.start_agent(&[]);
    let revision = world.enforce(&state);
    let device = world.net.pod("intruder").device.clone();
    world.net.nodes[0].netns.ip(&format!("link del {device}\n")).unwrap();
    let ack = world
        .controller
        .ack(revision, "one missing", |ack| ack.endpoints.iter().any(|e| !e.enforced));
    let why = &ack.endpoints.iter().find(|endpoint| !endpoint.enforced).unwrap().why;
    assert!(why.contains(&device) || why.contains("eth0"), "{why}");
    world.assert_allowed("client", "web");
    let announced = || {
        let said = world.controller.said();
        said.announcements
            .last()
            .filter(|last| last.endpoints.len() == 2)
            .map(drop)
    };
    until(PATIENCE, announced).expect("the gone device is still announced");
    world.kill_agent();
    let kernel = bulkhead_dataplane::kernel::Kernel::open(&world.bpffs()).unwrap();
    assert_eq!(kernel.attached().unwrap().len(), 2);
    assert_eq!(kernel.dump().unwrap().devices.len(), 2);
}

#[test]
fn a_second_agent_on_the_same_pins_refuses() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client"]);
    world.start_agent(&[]);
    world.enforce(&world.state(&[]));
    let mut second = Running::start("second", world.agent_command(&[]), &world.net.logs()).unwrap();
    let status = second.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(
        second.log_tail().contains("another agent is using these pins"),
        "{}",
        second.log_tail()
    );
    assert!(world.agent.as_mut().unwrap().is_alive());
    assert!(
        world.client().agent_status().is_ok(),
        "the first one's socket was taken away"
    );
}

#[test]
fn a_difference_that_does_not_add_up_is_refused_and_a_snapshot_is_asked_for() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web"]);
    world.start_agent(&[]);
    world.enforce(&world.state(&[allow(&["client"], "web")]));
    let revision = world.controller.want_and_err(&world.state(&[allow(&[], "web")]));
    // It says why and hangs up; whether that still arrives is luck, but it comes back with empty hands.
    let helds = || {
        let said = world.controller.said();
        let helds: Vec<_> = said.hellos.iter().map(|hello| hello.held.clone()).collect();
        (helds.len() > 1).then_some(helds)
    };
    let helds = until(PATIENCE, helds).expect("the agent takes what does not add up");
    assert_eq!(helds, [None, None], "what it holds is not what the controller thinks");
    world.controller.ack(revision, "no error", |ack| ack.error.is_empty());
    world.assert_denied("client", "web");
}

#[test]
fn an_update_that_leads_elsewhere_is_refused_and_what_was_in_force_stays() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web"]);
    world.start_agent(&[]);
    world.enforce(&world.state(&[allow(&["client"], "web")]));
    // An endpoint without its ruleset: what a controller with a bug could send.
    let mut broken = world.state(&[]);
    broken.rulesets = bulkhead_policy::table::Table::default();
    let revision = world.controller.want(&broken);
    let ack = world.controller.ack(revision, "an error", |ack| !ack.error.is_empty());
    assert!(ack.error.contains("ruleset"), "{}", ack.error);
    world.assert_allowed("client", "web");
    world.enforce(&world.state(&[allow(&[], "web")]));
    world.assert_denied("client", "web");
}

#[test]
fn a_refused_write_is_made_up_for() {
    if !can_run() {
        return;
    }
    let mut world = World::new(&["client", "web", "intruder"]);
    world.start_agent(&[]);
    let before = world.state(&[allow(&["client"], "web")]);
    let after = world.state(&[allow(&["client", "web"], "web"), allow(&["client"], "intruder")]);
    // The first plan of a restart is a few writes; these ranges lie in the next. One failure is healed at once; as many as
    // there are attempts are reported, and healed later.
    for (range, reported) in [("12-12", false), ("12-14", true)] {
        world.enforce(&before);
        world.kill_agent();
        world.start_agent(&["--refuse-writes", range]);
        let agent_is_up = || {
            world
                .client()
                .agent_status()
                .ok()
                .filter(|status| status.controller_connected)
        };
        until(PATIENCE, agent_is_up).expect("the agent does not come up");
        let revision = world.enforce(&after);
        let said = world.controller.said();
        let failed = said
            .acks
            .iter()
            .any(|ack| ack.revision == revision && ack.error.contains("refused"));
        drop(said);
        assert_eq!(failed, reported, "{range}: {}", world.log());
        assert!(
            world.log().contains("refused by --refuse-writes"),
            "{range}: nothing was refused"
        );
        world.assert_allowed("client", "web");
        world.assert_denied("intruder", "web");
        world.kill_agent();
        crate::restart::assert_whole(&world, &after, range);
        world.start_agent(&[]);
    }
}
