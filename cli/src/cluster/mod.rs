//! The way to a cluster's API server, for every command that talks to one.

pub(crate) mod inside;
pub(crate) mod object;
pub(crate) mod rollout;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use kube::{
    Client, Config,
    api::{Api, ApiResource, DynamicObject, ListParams, LogParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Request,
};

pub(crate) use object::kind_of;

/// Who we are to the API server's field management.
pub(crate) const MANAGER: &str = "bulkhead-install";
/// The label of a namespace that we made, and of what we applied.
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Between looks at something that is waited for.
pub(crate) const LOOK: Duration = Duration::from_millis(500);
/// Objects of a kind that are read at once.
const PAGE: u32 = 500;

/// Which cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args)]
pub struct Access {
    /// The cluster's kubeconfig. Default: $KUBECONFIG, ~/.kube/config, or in a pod its service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// A cluster that answered.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Version of the API server.
    pub(crate) version: String,
}

impl Access {
    /// Connects, and asks for the version so that a wrong address is told of at once.
    pub(crate) async fn connect(&self) -> anyhow::Result<Cluster> {
        let config = self.config().await?;
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).with_context(|| format!("preparing TLS to {server}"))?;
        let version = client.apiserver_version().await.with_context(|| {
            format!("API server {server} does not answer; is the address in the kubeconfig right, and may you use it?")
        })?;
        Ok(Cluster {
            client,
            version: version.git_version,
        })
    }

    async fn config(&self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .with_context(|| format!("kubeconfig {}", path.display()))
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .context("kubeconfig of the environment"),
            None => Config::infer()
                .await
                .context("no cluster: give --kubeconfig FILE, set KUBECONFIG, or run this in a pod"),
        }
    }
}

impl Cluster {
    /// The way to objects of a kind in a namespace, or of the whole cluster where that is empty.
    pub(crate) fn api(&self, resource: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, resource)
        }
    }

    /// An object, or nothing when neither it nor its kind exists.
    pub(crate) async fn find(
        &self,
        (version, kind): (&str, &str),
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Option<DynamicObject>> {
        let found = self.api(&kind_of(version, kind), namespace).get_opt(name).await;
        found.map_err(|error| object::explain(&object::place(kind, namespace, name), "reading", error))
    }

    /// Objects with these labels (`a=b,c=d`; empty: all); nothing when the kind does not exist.
    pub(crate) async fn list(
        &self,
        (version, kind): (&str, &str),
        namespace: &str,
        labels: &str,
    ) -> anyhow::Result<Vec<DynamicObject>> {
        let api = self.api(&kind_of(version, kind), namespace);
        let mut params = ListParams::default().labels(labels).limit(PAGE);
        let mut found = Vec::new();
        loop {
            let page = match api.list(&params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => return Ok(found),
                page => page.map_err(|error| object::explain(&format!("{kind} objects"), "listing", error))?,
            };
            found.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(found),
            }
        }
    }

    /// The last lines of a pod's log.
    pub(crate) async fn log(&self, namespace: &str, pod: &str, params: &LogParams) -> anyhow::Result<String> {
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"))
            .logs(pod, params)
            .with_context(|| format!("asking for the log of pod {namespace}/{pod}"))?;
        let text = self.client.request_text(request).await;
        text.map_err(|error| object::explain(&format!("the log of pod {namespace}/{pod}"), "reading", error))
    }

    /// Looks until something is there, or the time is over: then `late` says what was seen last.
    pub(crate) async fn wait<T>(
        &self,
        within: Duration,
        mut look: impl AsyncFnMut() -> anyhow::Result<Result<T, String>>,
    ) -> anyhow::Result<T> {
        let begin = tokio::time::Instant::now();
        loop {
            let seen = look().await;
            match seen {
                Ok(Ok(found)) => return Ok(found),
                seen if begin.elapsed() >= within => match seen {
                    Ok(Err(last)) => bail!("{last} (after {} s)", within.as_secs()),
                    Err(error) => return Err(error),
                    Ok(Ok(found)) => return Ok(found),
                },
                _ => tokio::time::sleep(LOOK).await,
            }
        }
    }
}
