//! The authority in the cluster: its key in a Secret, its certificate in a `ConfigMap` that agents mount.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use bulkhead_proto::spiffe::TrustDomain;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};

use super::authority::Material;

/// Name of the Secret and of the `ConfigMap`.
const NAME: &str = "bulkhead-ca";
/// Who we are to server-side apply.
const MANAGER: &str = "bulkhead-controller";

/// The authority of this cluster; made by whichever replica comes first.
pub(crate) async fn authority(client: &Client, namespace: &str, trust_domain: &TrustDomain) -> Result<Material> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let place = || format!("Secret {namespace}/{NAME}");
    if let Some(secret) = api.get_opt(NAME).await.with_context(place)? {
        return material(&secret).with_context(place);
    }
    let made = Material::generate(trust_domain)?;
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            ("tls.crt".to_owned(), bytes(&made.certificate_pem)),
            ("tls.key".to_owned(), bytes(&made.key_pem)),
        ])),
        type_: Some("kubernetes.io/tls".to_owned()),
        ..Secret::default()
    };
    match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            tracing::info!(namespace, secret = NAME, "made a certificate authority");
            Ok(made)
        }
        // Another replica was quicker; its authority is the one.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            material(&api.get(NAME).await.with_context(place)?).with_context(place)
        }
        Err(error) => Err(error).with_context(place),
    }
}

fn material(secret: &Secret) -> Result<Material> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        let bytes = bytes.with_context(|| format!("key {key} is missing"))?;
        String::from_utf8(bytes.0.clone()).with_context(|| format!("key {key} is no text"))
    };
    let material = Material {
        certificate_pem: text("tls.crt")?,
        key_pem: text("tls.key")?,
    };
    if material.certificate_pem.is_empty() {
        bail!("key tls.crt is empty");
    }
    Ok(material)
}

/// Publishes what agents are to trust.
pub(crate) async fn publish(client: &Client, namespace: &str, certificate_pem: &str) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME},
        "data": {"ca.crt": certificate_pem},
    });
    api.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map))
        .await
        .with_context(|| format!("ConfigMap {namespace}/{NAME}"))?;
    Ok(())
}
