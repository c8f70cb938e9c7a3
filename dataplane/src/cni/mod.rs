//! The CNI side: the plugin that asks the agent before a pod starts, and how it gets into the node's network configuration.
//!
//! The plugin is chained behind the one that makes the pod's network. It changes nothing about that network and passes the
//! result on as it got it.

pub mod call;
pub mod conflist;
pub mod install;
pub mod plugin;

/// Name of the plugin's binary, and the `type` of its entry in a configuration.
pub const PLUGIN: &str = "bulkhead-cni";
