//! `bulkhead install`: controller and agents onto a cluster, without Helm.

pub(crate) mod template;

use std::{
    io::{Write as _, stdout},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::json;

use crate::{
    client::block_on,
    cluster::{
        Access, Cluster, MANAGED_BY, MANAGER,
        object::{self, Applied, Manifest, is_our_definition},
    },
};
use template::Values;

/// Install Bulkhead on a cluster, or bring what is installed to this version and these values.
///
/// Every object is applied on the server by field manager `bulkhead-install`; what is right already stays untouched. Nothing is denied
/// until a policy says so.
#[derive(Clone, PartialEq, Eq, Debug, Args)]
#[command(
    after_help = "Example:\n  bulkhead install --image-repository registry.example/bulkhead --set agent.startGate=strict"
)]
pub struct Arguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group has no help of its own")]
    pub access: Access,
    /// Namespace of controller and agents; it is made when it is not there.
    #[arg(long, short, default_value = "bulkhead-system", value_name = "NAME")]
    pub namespace: String,
    /// Where the images are: <REPOSITORY>/bulkhead-controller and so on.
    #[arg(long, value_name = "REPOSITORY")]
    pub image_repository: Option<String>,
    /// Tag of the images. Default: this program's version.
    #[arg(long, value_name = "TAG")]
    pub image_tag: Option<String>,
    /// A value of the chart (deploy/helm/bulkhead/values.yaml); may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print what would be applied, as YAML, and change nothing. Needs no cluster.
    #[arg(long)]
    pub dry_run: bool,
    /// Take fields over from other managers (Helm, kubectl).
    #[arg(long)]
    pub force: bool,
    /// Longest time to wait for controller and agents; 0 does not wait.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub wait_seconds: u64,
    /// Write what is to be applied to this file as well.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
}

/// Runs the command; the status is 1 when something does not become ready.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut values = Values::default_ones()?;
    if let Some(repository) = &arguments.image_repository {
        values.set("image.repository", repository)?;
    }
    if let Some(tag) = &arguments.image_tag {
        values.set("image.tag", tag)?;
    }
    for pair in &arguments.set {
        values.set_pair(pair)?;
    }
    let manifests = template::manifests(&values, &arguments.namespace)?;
    if let Some(path) = &arguments.save {
        std::fs::write(path, yaml(&arguments.namespace, &manifests)?)
            .map_err(|error| anyhow::anyhow!("writing {}: {error}", path.display()))?;
    }
    if arguments.dry_run {
        stdout()
            .lock()
            .write_all(yaml(&arguments.namespace, &manifests)?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    block_on(async {
        let cluster = arguments.access.connect().await?;
        install(&cluster, arguments, &manifests).await
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn install(cluster: &Cluster, arguments: &Arguments, manifests: &[Manifest]) -> anyhow::Result<()> {
    println!(
        "Kubernetes {}: installing Bulkhead {}",
        cluster.version,
        env!("CARGO_PKG_VERSION")
    );
    let namespace = &arguments.namespace;
    apply_all(cluster, namespace, manifests, arguments.force).await?;
    if arguments.wait_seconds == 0 {
        println!("not waiting; to see how it goes: bulkhead status");
        return Ok(());
    }
    let within = Duration::from_secs(arguments.wait_seconds);
    for manifest in manifests {
        if !matches!(manifest.kind.as_str(), "Deployment" | "DaemonSet") {
            continue;
        }
        let (kind, name) = (manifest.kind.as_str(), manifest.name.as_str());
        cluster
            .rolled_out(kind, &manifest.namespace, name, within, |rollout| {
                println!(
                    "  waiting  {kind} {name}: {} of {} ready",
                    rollout.ready, rollout.wanted
                );
            })
            .await?;
    }
    let nodes = cluster.list(("v1", "Node"), "", "").await?.len();
    let agents = cluster
        .rolled_out("DaemonSet", namespace, AGENT, within, |_| {})
        .await?;
    println!("Bulkhead is installed: {} of {nodes} nodes enforced", agents.ready);
    println!("Next: bulkhead connectivity test");
    Ok(())
}

/// Name of the agents' DaemonSet in the chart.
pub(crate) const AGENT: &str = "bulkhead-agent";

/// Namespace first, then everything in the chart's order.
pub(crate) async fn apply_all(
    cluster: &Cluster,
    namespace: &str,
    manifests: &[Manifest],
    force: bool,
) -> anyhow::Result<()> {
    let of = ("v1", "Namespace");
    if cluster.find(of, "", namespace).await?.is_none() {
        let manifest = namespace_of_ours(namespace)?;
        say(&manifest, cluster.apply(&manifest, force).await?);
    }
    for manifest in manifests {
        if is_anothers(cluster, manifest).await? {
            println!("  kept      {}: it did not come with Bulkhead", manifest.place());
        } else {
            say(manifest, cluster.apply(manifest, force).await?);
        }
    }
    Ok(())
}

/// True for the definition of upstream's kind where somebody else installed it.
async fn is_anothers(cluster: &Cluster, manifest: &Manifest) -> anyhow::Result<bool> {
    if manifest.kind != "CustomResourceDefinition" {
        return Ok(false);
    }
    let of = (manifest.version.as_str(), manifest.kind.as_str());
    let found = cluster.find(of, "", &manifest.name).await?;
    let found = found.map(|found| object::json(&found)).transpose()?;
    Ok(found.is_some_and(|found| !is_our_definition(&found)))
}

fn say(manifest: &Manifest, applied: Applied) {
    let word = match applied {
        Applied::Created => "created  ",
        Applied::Changed => "changed  ",
        Applied::Same => "unchanged",
    };
    println!("  {word} {}", manifest.place());
}

/// The namespace as we make it: marked, so that `uninstall` knows it is ours, and open to the agents, which need the host.
fn namespace_of_ours(name: &str) -> anyhow::Result<Manifest> {
    Manifest::new(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {
        MANAGED_BY: MANAGER, "pod-security.kubernetes.io/enforce": "privileged"}}}),
    )
}

fn yaml(namespace: &str, manifests: &[Manifest]) -> anyhow::Result<String> {
    let mut text = String::new();
    for manifest in std::iter::once(&namespace_of_ours(namespace)?).chain(manifests) {
        text.push_str("---\n");
        text.push_str(&serde_yaml_ng::to_string(&manifest.body)?);
    }
    Ok(text)
}
