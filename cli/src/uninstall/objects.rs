//! The cluster's part: what the chart made, what controller and agents made while they ran, and the definitions of our kinds.

use std::time::Duration;

use crate::{
    cluster::{
        Cluster, MANAGED_BY, MANAGER,
        object::{self, is_our_definition, list, place, text},
    },
    install::template::{Values, manifests},
};

const DEFINITION: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
/// The definition of upstream's kind.
const UPSTREAM: &str = "clusternetworkpolicies.policy.networking.k8s.io";
/// What the controller makes in its own namespace.
const MADE: [(&str, &str, &str); 3] = [
    ("v1", "Secret", "bulkhead-ca"),
    ("v1", "ConfigMap", "bulkhead-ca"),
    ("coordination.k8s.io/v1", "Lease", "bulkhead-controller"),
];
/// A webhook's configuration, which belongs to no namespace.
const WEBHOOK: (&str, &str, &str) = (
    "admissionregistration.k8s.io/v1",
    "ValidatingWebhookConfiguration",
    "bulkhead",
);
/// Policies that are named in the warning.
const NAMED_MAX: usize = 20;

/// Names of the definitions of our kinds that this cluster has.
pub(super) async fn definitions(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let all = cluster.list(DEFINITION, "", "").await?;
    let ours = all.iter().filter_map(|definition| {
        let body = object::json(definition).ok()?;
        is_our_definition(&body).then(|| text(&body, "/metadata/name").to_owned())
    });
    Ok(ours.collect())
}

/// Removes upstream's kind when it came with us: Helm installs it and never deletes it.
pub(super) async fn remove_upstream(cluster: &Cluster, within: Duration) -> anyhow::Result<()> {
    let Some(found) = cluster.find(DEFINITION, "", UPSTREAM).await? else {
        return Ok(());
    };
    if is_our_definition(&object::json(&found)?) {
        remove_definitions(cluster, &[UPSTREAM.to_owned()], within).await
    } else {
        println!("  kept     CustomResourceDefinition {UPSTREAM}: it did not come with Bulkhead");
        Ok(())
    }
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

/// Removes what makes the API server ask us about policies.
pub(super) async fn remove_webhook(cluster: &Cluster) -> anyhow::Result<()> {
    let (version, kind, name) = WEBHOOK;
    delete(cluster, (version, kind), "", name).await
}

/// Removes everything but definitions. Nothing may be left that refuses or grants anything in our name.
pub(super) async fn remove(cluster: &Cluster, namespace: &str, within: Duration) -> anyhow::Result<()> {
    let of_chart = manifests(&Values::default_ones()?, namespace)?;
    // In the reverse of the order they were applied in.
    for manifest in of_chart.iter().rev().filter(|manifest| manifest.kind != DEFINITION.1) {
        let of = (manifest.version.as_str(), manifest.kind.as_str());
        delete(cluster, of, &manifest.namespace, &manifest.name).await?;
    }
    controllers_ended(cluster, namespace, within).await?;
    remove_made(cluster, namespace).await?;
    remove_namespace(cluster, namespace, within).await
}

/// Waits until no controller runs any more.
pub(super) async fn controllers_ended(cluster: &Cluster, namespace: &str, within: Duration) -> anyhow::Result<()> {
    let labels = "app.kubernetes.io/name=bulkhead,app.kubernetes.io/component=controller";
    cluster
        .wait(within, async || {
            let pods = cluster.list(("v1", "Pod"), namespace, labels).await?;
            let names: Vec<String> = pods.into_iter().filter_map(|pod| pod.metadata.name).collect();
            Ok(if names.is_empty() {
                Ok(())
            } else {
                Err(format!("controllers have not ended: {}", names.join(", ")))
            })
        })
        .await
}

/// Removes what the controller made beside its statuses.
pub(super) async fn remove_made(cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
    for (version, kind, name) in MADE {
        delete(cluster, (version, kind), namespace, name).await?;
    }
    Ok(())
}

/// Only one that `install` made; one that was there before may hold other things.
async fn remove_namespace(cluster: &Cluster, namespace: &str, within: Duration) -> anyhow::Result<()> {
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
        delete(cluster, of, "", namespace).await?;
        cluster.gone(of, "", namespace, within).await
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
