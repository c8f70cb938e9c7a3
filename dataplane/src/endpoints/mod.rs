//! Local pods.
pub(crate) mod netlink;
