//! Who controller and agent are to each other: certificates from files or from the SPIFFE Workload API, followed while they
//! change, and the checks that apply to every certificate, whatever its source.
//!
//! ```text
//! options ─► source ─► files | workload ─► Identity (certificate, key, Trust) ─► TLS of new connections
//!                                                    └─► proof: the newer certificate, shown on a stream that is open
//! ```

pub mod dial;
mod files;
mod identity;
pub mod options;
pub mod proof;
mod source;
mod trust;
mod workload;

pub use identity::{Identity, IdentityError};
pub use source::{Source, follow};
pub use trust::{Trust, TrustError};
