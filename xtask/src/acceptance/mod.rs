//! `cargo xtask acceptance`: what a cluster's owner relies on, tried on a new cluster with the chart installed: cold start,
//! policies applied and awaited, a deny-all and its end, pods that start while their peers do, an upgrade under traffic, a node
//! that is switched off and on, the connectivity test, and an uninstallation that leaves nothing.

mod leaving;
mod pods;
mod reboot;
mod scenes;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};

use crate::{
    Arguments,
    cluster::{self, Cluster, Wanted},
    conformance, images,
    run::{self, paint, seconds},
};

/// One scene: its name, and what happens; it says what it saw, or what was wrong.
type Scene = (&'static str, fn(&Cluster, &Options) -> Result<String>);

const SCENES: [Scene; 8] = [
    ("cold start", scenes::cold_start),
    ("apply and wait", scenes::apply_and_wait),
    ("deny all, and back", scenes::deny_all),
    ("pods that start together", scenes::starts),
    ("upgrade under traffic", scenes::upgrade),
    ("node reboot", reboot::reboot),
    ("connectivity test", leaving::connectivity),
    // The last: nothing of ours is left after it.
    ("uninstall", leaving::uninstall),
];

/// What the command line says.
struct Options {
    /// Pairs of pods that start together.
    starts: usize,
}

pub(crate) fn acceptance(arguments: &mut Arguments) -> Result<ExitCode> {
    let starts = arguments.value("--starts")?.map_or(Ok(100), |text| text.parse())?;
    let only = arguments.value("--only")?;
    let keep = arguments.flag("--keep");
    arguments.done()?;
    if !cluster::can_run()? {
        return Ok(ExitCode::SUCCESS);
    }
    if Cluster::running()?.is_some() && only.is_none() {
        bail!("a cluster is up, and this wants a new one: cargo xtask cluster down");
    }
    let options = Options { starts };
    let cluster = match Cluster::running()? {
        Some(cluster) => cluster,
        None => cluster::up(&Wanted::default())?,
    };
    images::load(&cluster, &images::build_peer()?)?;
    // A scene alone is tried again and again on a cluster that is kept: it has Bulkhead by then.
    let installed = [
        "--namespace",
        conformance::NAMESPACE,
        "get",
        "deployment/bulkhead-controller",
    ];
    if only.is_none() || cluster.kubectl_ok(&installed).is_err() {
        conformance::deploy(&cluster)?;
    }
    let mut failed = 0;
    for (name, scene) in &SCENES {
        if only.as_deref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let started = Instant::now();
        match scene(&cluster, &options) {
            Ok(saw) => println!(
                "{} {name:<26} {:>8}  {saw}",
                paint(run::GREEN, "passed"),
                seconds(started.elapsed())
            ),
            Err(error) => {
                failed += 1;
                println!(
                    "{} {name:<26} {:>8}  {error:#}",
                    paint(run::RED, "FAILED"),
                    seconds(started.elapsed())
                );
            }
        }
    }
    if !keep && only.is_none() && failed == 0 {
        cluster::down()?;
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
