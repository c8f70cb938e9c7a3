//! The scene of a node that is switched off and on: its pods come back, and nobody gets in who may not, at no time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Options,
    pods::{Bed, wait_until},
};
use crate::cluster::{Cluster, nodes};

/// The node that is rebooted.
const NODE: usize = 2;
/// Longest time until the pod serves again.
const BACK_WITHIN: Duration = Duration::from_mins(4);

/// A server that only one client may reach is on a node that loses its power. From then on a stranger tries every address that the
/// server has, until the client has long got through again.
pub(super) fn reboot(cluster: &Cluster, _: &Options) -> Result<String> {
    let bed = Bed::new(cluster, "reboot")?;
    let mut server = bed.server("server", "server", NODE);
    server["spec"]["restartPolicy"] = json!("Always");
    bed.apply(&[
        server,
        bed.server("client", "client", 1),
        bed.server("stranger", "stranger", 1),
        bed.only("server", Some("client")),
    ])?;
    bed.ready(&["server", "client", "stranger"])?;
    let before = bed.address("server")?;
    wait_until("the policy", || {
        bed.reaches("stranger", &before).is_ok_and(|reached| !reached)
    })?;
    ensure!(bed.reaches("client", &before)?, "no connection of the client before");

    nodes::reboot(cluster, NODE)?;
    let started = Instant::now();
    let (mut attempts, mut back) = (0, None);
    // The client's success is not the end: so long after it again, the stranger goes on trying.
    while back.is_none_or(|back: Duration| started.elapsed() < back + Duration::from_secs(10)) {
        ensure!(
            started.elapsed() < BACK_WITHIN,
            "the server did not come back; {attempts} attempts of a stranger failed until now"
        );
        let address = bed.address("server")?;
        if address.is_empty() {
            // Its kubelet has just found the sandbox gone.
            continue;
        }
        attempts += 1;
        ensure!(
            !bed.reaches("stranger", &address)?,
            "a stranger reached {address} {} ms after the node was on again",
            started.elapsed().as_millis()
        );
        if back.is_none() && bed.reaches("client", &address)? {
            back = Some(started.elapsed());
        }
    }
    Ok(format!(
        "served again after {:.1} s; {attempts} attempts of a stranger, none passed",
        back.unwrap_or_default().as_secs_f64()
    ))
}
