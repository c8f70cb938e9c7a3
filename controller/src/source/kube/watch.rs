//! One watch of one kind: lists in pages, follows, lists again when it must, and says when a kind is not installed.

use std::{pin::pin, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client, api::PostParams};
use kube_runtime::{
    WatchStreamExt as _,
    utils::Backoff,
    watcher::{self, DefaultBackoff, Event, watcher},
};
use tokio::sync::mpsc;

use super::{
    known::{News, kind_of},
    raw::{Kind, Raw},
};
use crate::metrics::Metrics;

/// Between looks for a kind that is not installed.
const ABSENT: Duration = Duration::from_secs(2);

/// Longest pause after a failure: so long after the API server is back nothing new may be known. There are two controllers, not
/// a thousand kubelets, to come back at once.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pauses between tries, with jitter until they are long.
#[derive(Default)]
struct Pauses(DefaultBackoff);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(PAUSE_MAX))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0.reset();
    }
}

/// What a watch needs.
#[derive(Clone)]
pub(super) struct Watch {
    pub(super) client: Client,
    pub(super) number: usize,
    pub(super) news: mpsc::Sender<News>,
    pub(super) metrics: Metrics,
    /// Name and text of the definition, for a kind that may be absent; installed from the text where that is set.
    pub(super) definition: Option<Definition>,
}

/// A custom resource definition.
#[derive(Clone)]
pub(super) struct Definition {
    pub(super) name: &'static str,
    /// `Some` = install it when it is absent.
    pub(super) install: Option<serde_json::Value>,
}

/// Why a watch is over.
enum End {
    /// Nobody listens any more.
    Closed,
    /// The kind is not installed.
    Absent,
}

impl Watch {
    /// Watches until nobody listens any more.
    pub(super) async fn run<K: Kind>(self) {
        let mut told_absent = false;
        loop {
            match self.follow::<K>(&mut told_absent).await {
                End::Closed => return,
                End::Absent => tokio::time::sleep(ABSENT).await,
            }
        }
    }

    async fn follow<K: Kind>(&self, told_absent: &mut bool) -> End {
        let api: Api<Raw<K>> = Api::all(self.client.clone());
        let mut events = pin!(watcher(api, watcher::Config::default()).backoff(Pauses::default()));
        let mut failed = false;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    self.metrics.watch_error(K::KIND);
                    if is_absent(&error)
                        && let Some(definition) = &self.definition
                        && self.absent::<K>(definition, told_absent).await
                    {
                        return if self.absent_is_empty::<K>().await {
                            End::Absent
                        } else {
                            End::Closed
                        };
                    }
                    if !std::mem::replace(&mut failed, true) {
                        tracing::warn!(kind = K::KIND, %error, "watch interrupted; what is enforced stays; trying again");
                    }
                    continue;
                }
            };
            if failed && matches!(event, Event::InitDone | Event::Apply(_) | Event::Delete(_)) {
                failed = false;
                tracing::info!(kind = K::KIND, "watch resumed");
            }
            if matches!(event, Event::InitDone) {
                *told_absent = false;
            }
            if !self.tell(event).await {
                return End::Closed;
            }
        }
        End::Closed
    }

    async fn tell<K: Kind>(&self, event: Event<Raw<K>>) -> bool {
        let watch = self.number;
        let item = |raw: Raw<K>| Box::new(raw.item);
        let news = match event {
            Event::Init => News::Listing { watch },
            Event::InitApply(raw) => News::Listed { watch, item: item(raw) },
            Event::InitDone => self.list_done::<K>(),
            Event::Apply(raw) => News::Applied { item: item(raw) },
            Event::Delete(raw) => News::Deleted { key: raw.item.key },
        };
        self.news.send(news).await.is_ok()
    }

    fn list_done<K: Kind>(&self) -> News {
        News::ListDone {
            watch: self.number,
            kind: kind_of(&K::key(String::new(), String::new())),
        }
    }

    /// A kind that is not installed has no objects.
    async fn absent_is_empty<K: Kind>(&self) -> bool {
        let listing = News::Listing { watch: self.number };
        self.news.send(listing).await.is_ok() && self.news.send(self.list_done::<K>()).await.is_ok()
    }

    /// True when the kind is known not to be installed: an API server that starts may say "not found" of what it has. Installs it
    /// when allowed, and then it is not absent.
    async fn absent<K: Kind>(&self, definition: &Definition, told: &mut bool) -> bool {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        match api.get_metadata_opt(definition.name).await {
            Ok(None) => {}
            // Who may not look takes the list's word for it.
            Err(kube::Error::Api(status)) if status.is_forbidden() => {}
            Ok(Some(_)) | Err(_) => return false,
        }
        let Some(text) = &definition.install else {
            if !std::mem::replace(told, true) {
                tracing::warn!(
                    definition = definition.name,
                    "{} is not installed, and is not ours to install; going on without it until it appears",
                    K::KIND
                );
            }
            return true;
        };
        let installed = match serde_json::from_value::<CustomResourceDefinition>(text.clone()) {
            Ok(wanted) => api.create(&PostParams::default(), &wanted).await.map(|_| ()),
            Err(error) => Err(kube::Error::SerdeError(error)),
        };
        match installed {
            Ok(()) => {
                tracing::info!(definition = definition.name, "installed");
                false
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => false,
            Err(error) => {
                if !std::mem::replace(told, true) {
                    tracing::warn!(
                        definition = definition.name, %error,
                        "{} is not installed and cannot be; going on without it until it appears", K::KIND
                    );
                }
                true
            }
        }
    }
}

/// The API server knows no such kind.
fn is_absent(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
