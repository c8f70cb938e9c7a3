//! TCP with mutual TLS 1.3: where our certificate comes from, the listener, how a node gets its certificate, and how long a
//! stream may go on with it.

pub(crate) mod authority;
mod bootstrap;
pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod listener;
pub mod options;
pub(crate) mod own;
mod review;
mod secret;
pub(crate) mod serve;
pub(crate) mod standing;
