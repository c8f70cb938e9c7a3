//! The cluster's part: what the chart made, what controller and agents made while they ran, and the definitions of our kinds.

use std::time::Duration;

use serde_json::Value;

use crate::{
    cluster::{
        Cluster, MANAGED_BY, MANAGER,
        object::{self, list, place, text},
    },
    install::template::{Values, manifests},
};

const DEFINITION: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
/// The group of our own kinds.
const GROUP: &str = "bulkhead.dev";
/// What runs, beside the chart, makes in its own namespace.
const MADE: [(&str, &str, &str); 4] = [
    ("v1", "Secret", "bulkhead-"),
    ("v1", "ConfigMap", "bulkhead-"),
    ("coordination.k8s.io/v1", "Lease", "bulkhead"),
    ("batch/v1", "Job", "bulkhead-"),
];
/// Webhook configurations are no one's in particular: the API server asks them whether they answer or not.
const WEBHOOKS: [&str; 2] = ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"];
/// Policies that are named in the warning.
const NAMED_MAX: usize = 20;

/// Names of the definitions of our kinds that this cluster has.
pub(super) async fn definitions(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let all = cluster.list(DEFINITION, "", "").await?;
    let ours = all.iter().filter_map(|definition| {
        let body = object::json(definition).ok()?;
        is_ours(&body).then(|| text(&body, "/metadata/name").to_owned())
    });
    Ok(ours.collect())
}

/// Our own kinds, and upstream's where it was our controller that installed them: others may use those too.
fn is_ours(definition: &Value) -> bool {
    let managers = list(definition, "/metadata/managedFields");
    // The API server itself manages the status of every definition.
    text(definition, "/spec/group") == GROUP
        || managers
            .iter()
            .any(|entry| text(entry, "/manager").starts_with("bulkhead") && text(entry, "/subresource").is_empty())
}

/// Says which policies go with their definitions.
pub(super) async fn warn_of_loss(cluster: &Cluster, names: &[String]) -> anyhow::Result<()> {
    let mut lost = Vec::new();
    for name in names {
        let Some(definition) = cluster.find(DEFINITION, "", name).await? else {
            continue;
        };
        let body = object::json(&definition)?;
        let (group, kind) = (text(&body, "/spec/group"), text(&body, "/spec/names/kind"));
        let stored = list(&body, "/spec/versions")
            .iter()
            .find(|version| version["storage"] == true);
        let version = format!("{group}/{}", stored.map_or("", |version| text(version, "/name")));
        for policy in cluster.list((&version, kind), "", "").await? {
            let meta = policy.metadata;
            lost.push(place(
                kind,
                &meta.namespace.unwrap_or_default(),
                &meta.name.unwrap_or_default(),
            ));
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    println!(
        "warning: with their definitions these {} objects are deleted (--keep-crds keeps them):",
        lost.len()
    );
    for policy in lost.iter().take(NAMED_MAX) {
        println!("  {policy}");
    }
    if lost.len() > NAMED_MAX {
        println!("  … and {} more", lost.len() - NAMED_MAX);
    }
    Ok(())
}

/// Removes everything but definitions. Nothing may be left that refuses or grants anything in our name.
pub(super) async fn remove(cluster: &Cluster, namespace: &str, within: Duration) -> anyhow::Result<()> {
    let of_chart = manifests(&Values::default_ones()?, namespace)?;
    // Webhooks before what answers them: otherwise whoever writes a policy meanwhile is refused.
    for kind in WEBHOOKS {
        let of = ("admissionregistration.k8s.io/v1", kind);
        for webhook in cluster.list(of, "", "").await? {
            let name = webhook.metadata.name.unwrap_or_default();
            if name.starts_with("bulkhead") {
                delete(cluster, of, "", &name).await?;
            }
        }
    }
    // In the reverse of the order they were applied in.
    for manifest in of_chart.iter().rev().filter(|manifest| manifest.kind != DEFINITION.1) {
        let of = (manifest.version.as_str(), manifest.kind.as_str());
        delete(cluster, of, &manifest.namespace, &manifest.name).await?;
    }
    for manifest in of_chart.iter().filter(|manifest| manifest.kind == "Deployment") {
        let of = (manifest.version.as_str(), manifest.kind.as_str());
        cluster.gone(of, namespace, &manifest.name, within).await?;
    }
    for (version, kind, prefix) in MADE {
        for made in cluster.list((version, kind), namespace, "").await? {
            let name = made.metadata.name.unwrap_or_default();
            if name.starts_with(prefix) {
                delete(cluster, (version, kind), namespace, &name).await?;
            }
        }
    }
    remove_namespace(cluster, namespace).await
}

/// Only one that `install` made; one that was there before may hold other things.
async fn remove_namespace(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    let of = ("v1", "Namespace");
    let Some(found) = cluster.find(of, "", namespace).await? else {
        return Ok(());
    };
    let ours = found
        .metadata
        .labels
        .unwrap_or_default()
        .get(MANAGED_BY)
        .is_some_and(|by| by == MANAGER);
    if ours {
        delete(cluster, of, "", namespace).await
    } else {
        println!("  kept     Namespace {namespace}: bulkhead install did not make it");
        Ok(())
    }
}

/// Removes definitions, and with them every object of their kinds.
pub(super) async fn remove_definitions(cluster: &Cluster, names: &[String], within: Duration) -> anyhow::Result<()> {
    for name in names {
        delete(cluster, DEFINITION, "", name).await?;
    }
    for name in names {
        cluster.gone(DEFINITION, "", name, within).await?;
    }
    Ok(())
}

async fn delete(cluster: &Cluster, of: (&str, &str), namespace: &str, name: &str) -> anyhow::Result<()> {
    if cluster.remove(of, namespace, name).await? {
        println!("  deleted  {}", place(of.1, namespace, name));
    }
    Ok(())
}
