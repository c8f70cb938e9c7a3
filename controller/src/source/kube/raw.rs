//! An object of an API server, lowered while it is decoded: of a pod's 10 KiB the facts stay and nothing else, and no object,
//! however wrong, fails the list it is in.

use std::{borrow::Cow, fmt, marker::PhantomData};

use bulkhead_crds::{Meaning, lower_document};
use bulkhead_policy::{
    diagnostic::Diagnostic,
    model::{ObjectKey, PolicyKey, PolicyKind, WorkloadKey},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Findings one object may have.
const DIAGNOSTICS_MAX: usize = 20;

/// A kind that is watched.
pub(crate) trait Kind: Send + Sync + 'static {
    /// `kind`.
    const KIND: &'static str;
    /// Group; empty for the core one.
    const GROUP: &'static str;
    const VERSION: &'static str;
    /// As in paths.
    const PLURAL: &'static str;

    /// The name under which facts and policies of the kind are kept.
    fn key(namespace: String, name: String) -> ObjectKey;
}

macro_rules! kinds {
    ($($kind:ident = $group:literal / $version:literal / $plural:literal, |$namespace:ident, $name:ident| $key:expr;)*) => {$(
        #[doc = concat!("`", $plural, "`.")]
        pub(crate) enum $kind {}

        impl Kind for $kind {
            const KIND: &'static str = stringify!($kind);
            const GROUP: &'static str = $group;
            const VERSION: &'static str = $version;
            const PLURAL: &'static str = $plural;

            fn key($namespace: String, $name: String) -> ObjectKey {
                $key
            }
        }
    )*};
}

kinds! {
    Namespace = "" / "v1" / "namespaces", |_namespace, name| ObjectKey::Namespace(name);
    Node = "" / "v1" / "nodes", |_namespace, name| ObjectKey::Node(name);
    Pod = "" / "v1" / "pods", |namespace, name| ObjectKey::Workload(WorkloadKey { namespace, name });
    Service = "" / "v1" / "services", |namespace, name| ObjectKey::Service(WorkloadKey { namespace, name });
    EndpointSlice = "discovery.k8s.io" / "v1" / "endpointslices",
        |namespace, name| ObjectKey::EndpointSlice(WorkloadKey { namespace, name });
    NetworkPolicy = "networking.k8s.io" / "v1" / "networkpolicies",
        |namespace, name| policy_key(PolicyKind::NetworkPolicy, namespace, name);
    ClusterNetworkPolicy = "policy.networking.k8s.io" / "v1alpha2" / "clusternetworkpolicies",
        |namespace, name| policy_key(PolicyKind::ClusterNetworkPolicy, namespace, name);
    SegmentPolicy = "bulkhead.dev" / "v1alpha1" / "segmentpolicies",
        |namespace, name| policy_key(PolicyKind::SegmentPolicy, namespace, name);
    ClusterSegmentPolicy = "bulkhead.dev" / "v1alpha1" / "clustersegmentpolicies",
        |namespace, name| policy_key(PolicyKind::ClusterSegmentPolicy, namespace, name);
    AddressGroup = "bulkhead.dev" / "v1alpha1" / "addressgroups", |_namespace, name| ObjectKey::AddressGroup(name);
}

fn policy_key(kind: PolicyKind, namespace: String, name: String) -> ObjectKey {
    ObjectKey::Policy(PolicyKey { kind, namespace, name })
}

/// `apiVersion` of a kind.
pub(crate) fn api_version<K: Kind>() -> String {
    if K::GROUP.is_empty() {
        K::VERSION.to_owned()
    } else {
        format!("{}/{}", K::GROUP, K::VERSION)
    }
}

/// What is kept of an object.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Item {
    pub(crate) key: ObjectKey,
    pub(crate) meaning: Meaning,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// An object as the watcher handles it: a resource version, and what was lowered.
pub(crate) struct Raw<K> {
    /// Only name, namespace and resource version.
    meta: ObjectMeta,
    /// Lowered.
    pub(crate) item: Item,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Raw<K> {
    fn clone(&self) -> Self {
        Self {
            meta: self.meta.clone(),
            item: self.item.clone(),
            kind: PhantomData,
        }
    }
}

impl<K> fmt::Debug for Raw<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Raw").field(&self.item).finish()
    }
}

impl<K: Kind> Raw<K> {
    fn of(value: &Value) -> Self {
        let word = |path: &str| value.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let meta = ObjectMeta {
            name: word("/metadata/name"),
            namespace: word("/metadata/namespace"),
            resource_version: word("/metadata/resourceVersion"),
            ..ObjectMeta::default()
        };
        let mut diagnostics = Vec::new();
        let meaning = lower_document(&api_version::<K>(), K::KIND, value, "", &mut diagnostics);
        diagnostics.truncate(DIAGNOSTICS_MAX);
        let key = K::key(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        );
        Self {
            meta,
            item: Item {
                key,
                meaning,
                diagnostics,
            },
            kind: PhantomData,
        }
    }
}

impl<'de, K: Kind> Deserialize<'de> for Raw<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self::of(&value))
    }
}

impl<K: Kind> kube::Resource for Raw<K> {
    type DynamicType = ();
    /// Everything is watched in all namespaces at once, which has the path of a cluster-wide kind.
    type Scope = k8s_openapi::ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        K::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        K::GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        K::VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests;
