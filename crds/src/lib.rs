//! crds: to be written.
