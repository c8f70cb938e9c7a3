//! dataplane: to be written.
