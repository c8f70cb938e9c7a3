//! What users write: the types of policies, their custom resource definitions, and the lowering of Kubernetes objects to the facts and
//! policies that the compiler takes. Kubernetes types stop here.
//!
//! ```text
//! text ─► value (YAML, JSON) ─► documents ─► document (facts, policies, address groups) ─► manifests (duplicates, what is left out)
//! ```
//!
//! Nothing here fails: what is wrong with the input is a [`Diagnostic`](bulkhead_policy::diagnostic::Diagnostic) beside the result,
//! and what cannot be read has a closed meaning, said in the module that reads it.

pub mod address_group;
mod cidr;
pub mod cluster_network_policy;
mod document;
mod documents;
mod facts;
mod manifests;
mod manner;
pub mod network_policy;
mod read;
mod report;
mod schema;
pub mod segment_policy;
mod selector;
mod value;

pub use document::{Meaning, lower_document};
pub use facts::HostPod;
pub use manifests::{Lowered, Manifests, lower};
pub use report::Report;
pub use schema::{Definition, definitions};
