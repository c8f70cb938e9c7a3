//! `bulkhead support-bundle`: one file with what somebody needs who cannot look at the cluster.

mod archive;
mod collect;
mod scrub;

use std::{path::PathBuf, process::ExitCode, time::SystemTime};

use clap::Args;
use prost_types::Timestamp;

use crate::{client::block_on, cluster::Access};
use archive::Archive;
use collect::Collection;

/// Write one archive with the state of controller, agents and policies, their logs and events.
///
/// Secrets are never read, and what looks like a key or a token is blacked out wherever it stands. Names, labels and addresses of pods and
/// all policies are in it. What could not be had is listed in missing.txt. Needs the right to read these objects, and pods/exec and
/// pods/portforward in the namespace of controller and agents.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
#[command(after_help = "Example:\n  bulkhead support-bundle --file bundle.tar.gz && tar tzf bundle.tar.gz")]
pub struct Arguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub access: Access,
    /// Namespace of controller and agents.
    #[arg(long, short, default_value = "bulkhead-system", value_name = "NAME")]
    pub namespace: String,
    /// The archive [default: bulkhead-support-<TIME>.tar.gz]; it must not exist yet.
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Lines of each log, the newest.
    #[arg(long, default_value_t = 5_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub log_lines: u32,
    /// Flow records of each node, the newest.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub flows: u32,
    /// Leave flow records out: who talked to whom.
    #[arg(long)]
    pub without_flows: bool,
}

/// Runs the command; the status is 1 only when there is no archive.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut time = Timestamp::from(SystemTime::now());
    time.nanos = 0;
    let stamp = time.to_string().replace(['-', ':'], "");
    let name = format!("bulkhead-support-{stamp}");
    let path = arguments
        .file
        .clone()
        .unwrap_or_else(|| format!("{name}.tar.gz").into());
    // Before anybody waits for the collecting.
    let mut archive = Archive::create(&path, &name)?;
    let missing = block_on(async {
        let cluster = arguments.access.connect().await?;
        Collection::new(&cluster, arguments, &mut archive).everything().await
    });
    let missing = match missing {
        Ok(missing) => missing,
        Err(error) => {
            archive.discard(&path);
            return Err(error);
        }
    };
    let size = archive.finish()?;
    println!("{} ({} KiB)", path.display(), size.div_ceil(1_024));
    if missing > 0 {
        println!("{missing} parts could not be had; missing.txt in it says why");
    }
    Ok(ExitCode::SUCCESS)
}
