//! testbed: to be written.
