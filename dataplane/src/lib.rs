//! The node agent: loads the kernel programs, keeps their maps in step with the controller, reads what they saw.
pub mod endpoints;
pub mod kernel;
