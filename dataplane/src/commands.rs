//! The agent's subcommands.

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use bulkhead_proto::{
    convert::address_to_bytes,
    v1::{GetUplinksRequest, SetBypassRequest, UplinkStatus, agent_service_client::AgentServiceClient},
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tonic::transport::Channel;

use crate::{
    cleanup::{self, Cleanup},
    cni::install,
    options::{CniFolders, Command},
    stream::unix_channel,
    uplink,
};

/// Longest time the agent may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Carries one out.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::CniUninstall(CniFolders {
            cni_bin_dir,
            cni_conf_dir,
        }) => {
            for path in install::uninstall(&cni_bin_dir, &cni_conf_dir)? {
                tracing::info!(path = %path.display(), "taken out");
            }
            Ok(())
        }
        Command::Cleanup(options) => cleanup(&options),
        Command::Uplinks { address, socket } => {
            let status = runtime()?.block_on(uplinks(&socket, address))?;
            uplink::show::write(&mut std::io::stdout().lock(), address, &status).context("writing to standard output")
        }
        Command::Bypass { time, reason, socket } => {
            let devices = runtime()?.block_on(bypass(&socket, time, reason))?;
            if time.is_zero() {
                tracing::info!("every device of this node is judged again");
            } else {
                tracing::warn!(
                    devices,
                    seconds = time.as_secs(),
                    "not judged until then, or until the agent restarts"
                );
            }
            Ok(())
        }
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
}

fn cleanup(options: &Cleanup) -> Result<()> {
    let removed = cleanup::clean(options)?;
    for path in removed.cni.iter().chain(&removed.files) {
        tracing::info!(path = %path.display(), "taken out");
    }
    let (devices, pins) = (removed.devices, removed.pins);
    if removed.is_nothing() {
        tracing::info!("nothing of ours is on this node");
    } else {
        tracing::info!(
            devices,
            pins,
            "programs are off the devices, maps are gone: this node is clean"
        );
    }
    if options.then_wait {
        runtime()?.block_on(async {
            let mut terminate = signal(SignalKind::terminate()).context("waiting for signals")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("waiting for signals")?;
            tokio::select! {
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => anyhow::Ok(()),
            }
        })?;
    }
    Ok(())
}

async fn uplinks(socket: &Path, address: Option<IpAddr>) -> Result<UplinkStatus> {
    let address = address.map_or_else(Vec::new, address_to_bytes);
    match connect(socket).await?.get_uplinks(GetUplinksRequest { address }).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => bail!("the agent says: {}", status.message()),
    }
}

async fn connect(socket: &Path) -> Result<AgentServiceClient<Channel>> {
    let channel = unix_channel(socket, Some(ANSWER_MAX)).await.with_context(|| {
        format!(
            "connecting to the agent at {}; is it running, and are you root?",
            socket.display()
        )
    })?;
    Ok(AgentServiceClient::new(channel))
}

async fn bypass(socket: &Path, time: Duration, reason: String) -> Result<u32> {
    let seconds = u32::try_from(time.as_secs()).context("--for is too long")?;
    let request = SetBypassRequest { seconds, reason };
    match connect(socket).await?.set_bypass(request).await {
        Ok(answer) => Ok(answer.into_inner().devices),
        Err(status) => bail!("the agent refuses: {}", status.message()),
    }
}
