//! `BootstrapService`: a node's certificate for its token, or for the certificate it has.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::{
    spiffe::is_node_name,
    v1::{self, bootstrap_service_server::BootstrapService},
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::{
    authority::Shared,
    connection::{Caller, caller, refused},
    review::Reviewer,
};

/// Requests at once: each costs a signature, and most a question to the API server.
const AT_ONCE: usize = 16;
/// Time the API server has for an answer about a token.
const REVIEW: Duration = Duration::from_secs(10);
/// Longest token and longest request, bytes.
const FIELD_MAX: usize = 16 << 10;

/// The service.
#[derive(Clone)]
pub(crate) struct Bootstrap {
    authority: Shared,
    /// `None` without an API server: then certificates are only renewed.
    reviewer: Option<Reviewer>,
    places: Arc<Semaphore>,
}

impl Bootstrap {
    pub(crate) fn new(authority: Shared, reviewer: Option<Reviewer>) -> Self {
        Self {
            authority,
            reviewer,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    async fn by_token(&self, token: &str) -> Result<String, String> {
        let Some(reviewer) = &self.reviewer else {
            return Err("this controller has no API server to ask about tokens".to_owned());
        };
        if token.is_empty() {
            return Err("neither a certificate nor a token".to_owned());
        }
        match tokio::time::timeout(REVIEW, reviewer.node(token)).await {
            Ok(answer) => answer.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("the API server did not answer within {} s", REVIEW.as_secs())),
        }
    }
}

#[tonic::async_trait]
impl BootstrapService for Bootstrap {
    async fn issue(&self, request: Request<v1::IssueRequest>) -> Result<Response<v1::IssueResponse>, Status> {
        let caller = caller(&request, Some(self.authority.trust_domain()))?;
        let v1::IssueRequest {
            node,
            token,
            certificate_signing_request,
        } = request.into_inner();
        if !is_node_name(&node) {
            return Err(Status::invalid_argument(format!(
                "field node: {node:?} is not the name of a node"
            )));
        }
        if token.len() > FIELD_MAX || certificate_signing_request.len() > FIELD_MAX {
            return Err(Status::invalid_argument(format!(
                "a field is longer than {FIELD_MAX} bytes"
            )));
        }
        let _place = self.places.try_acquire().map_err(|_| {
            Status::resource_exhausted("too many nodes ask for certificates at once; ask again in a second")
        })?;
        let (known, remote) = match caller {
            Caller::Node(known) => (Ok(known.name), None),
            Caller::Unknown(remote) => (self.by_token(&token).await, remote),
            Caller::Controller(replica) => {
                return Err(refused(
                    replica.remote,
                    "the certificate is a controller's, not a node's",
                ));
            }
            Caller::Local => {
                return Err(Status::failed_precondition(
                    "certificates are for TCP; the unix socket needs none",
                ));
            }
        };
        let known = known.map_err(|reason| refused(remote, &format!("certificate for node {node}: {reason}")))?;
        if known != node {
            return Err(refused(
                remote,
                &format!("node {known} asks for a certificate of node {node}"),
            ));
        }
        let issued = self
            .authority
            .node(&node, &certificate_signing_request)
            .map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        tracing::info!(node, "issued a certificate");
        Ok(Response::new(v1::IssueResponse {
            certificates: vec![issued.certificate.to_vec()],
            not_after: Some(issued.not_after.into()),
        }))
    }
}
