//! Whose token it is: the API server says.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::{Api, Client, api::PostParams};

/// The claim of a pod-bound token that names the pod's node.
const NODE_CLAIM: &str = "authentication.kubernetes.io/node-name";

/// Asks the API server about tokens of agents.
#[derive(Clone)]
pub(crate) struct Reviewer {
    pub(crate) client: Client,
    /// What the token must be made for.
    pub(crate) audience: String,
    /// `namespace:name` of the agents' `ServiceAccount`.
    pub(crate) service_account: String,
}

impl Reviewer {
    /// The node a token was given to an agent's pod on.
    ///
    /// # Errors
    /// When the token is not an agent's, or the API server does not answer; never with the token in the text.
    pub(crate) async fn node(&self, token: &str) -> Result<String> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.audience.clone()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = api
            .create(&PostParams::default(), &review)
            .await
            .context("asking the API server about the token")?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            bail!(
                "the API server does not accept the token: {}",
                status.error.unwrap_or_else(|| "no reason given".to_owned())
            );
        }
        if !status
            .audiences
            .iter()
            .flatten()
            .any(|audience| *audience == self.audience)
        {
            bail!("the token is not made for audience {:?}", self.audience);
        }
        let user = status.user.unwrap_or_default();
        let wanted = format!("system:serviceaccount:{}", self.service_account);
        let name = user.username.unwrap_or_default();
        if name != wanted {
            bail!("the token is {name:?}'s, and only {wanted:?} are agents");
        }
        let claim = user.extra.unwrap_or_default().remove(NODE_CLAIM).unwrap_or_default();
        match <[String; 1]>::try_from(claim) {
            Ok([node]) => Ok(node),
            Err(claims) => bail!(
                "the token names {} nodes ({NODE_CLAIM}); a token bound to a pod names one",
                claims.len()
            ),
        }
    }
}
