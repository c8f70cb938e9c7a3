//! Tells the API server whom to trust: our authority's certificate, in every webhook of the configuration.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

/// Between looks; whoever installs the configuration anew installs it without the certificate.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps the certificate in the configuration, for as long as the process runs.
pub(super) async fn keep(client: Client, name: String, certificate_pem: String) {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let mut complained = false;
    loop {
        match bring(&api, &name, &certificate_pem).await {
            Ok(false) => complained = false,
            Ok(true) => {
                complained = false;
                tracing::info!(configuration = name, "the API server trusts our webhook");
            }
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(
                        configuration = name, %error,
                        "our authority cannot be written into the ValidatingWebhookConfiguration; policies are stored without being \
                         asked about; trying again"
                    );
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Writes the certificate where it is not; true when something was written.
async fn bring(api: &Api<ValidatingWebhookConfiguration>, name: &str, certificate_pem: &str) -> kube::Result<bool> {
    let configuration = api.get(name).await?;
    let webhooks = configuration.webhooks.unwrap_or_default();
    let lacks = |webhook: &&k8s_openapi::api::admissionregistration::v1::ValidatingWebhook| {
        let trusted = webhook.client_config.ca_bundle.as_ref();
        trusted.is_none_or(|trusted| trusted.0 != certificate_pem.as_bytes())
    };
    let bundle = k8s_openapi::ByteString(certificate_pem.as_bytes().to_vec());
    let lacking: Vec<_> = webhooks
        .iter()
        .filter(lacks)
        .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    if lacking.is_empty() {
        return Ok(false);
    }
    let patch = json!({"webhooks": lacking});
    api.patch(name, &PatchParams::default(), &Patch::Strategic(&patch))
        .await?;
    Ok(true)
}
