//! TCP with mutual TLS 1.3: the authority behind it, the listener, and how a node gets its certificate.

pub(crate) mod authority;
mod bootstrap;
pub(crate) mod dial;
pub(crate) mod listener;
pub mod options;
mod review;
mod secret;
pub(crate) mod serve;
