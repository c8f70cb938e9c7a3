//! What crosses a process boundary: the node stream, flow records and status, as protobuf, and their conversions to and
//! from the policy core's types. Protobuf types of a state stop here; flow records are used as they are.
//!
//! ```text
//! policy::state (State, Delta) ─► update::encode ─► Update chunks ─► stream ─► update::Assembler ─► Delta
//! ```

pub mod convert;
pub mod filter;
pub mod log;
pub mod reason;
pub mod spiffe;
pub mod state_digest;
pub mod update;

/// Version of the node protocol. A peer with another number is refused with an error that names both.
pub const PROTOCOL_VERSION: u32 = 1;

/// No message of ours is longer than this (gRPC's customary limit), in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Why an announced endpoint is not believed when the API does not have its pod. Every pod comes and goes with a moment of
/// this, so neither end warns of it.
pub const NOT_DECLARED: &str = "no such pod is declared";

/// Generated code of package `bulkhead.v1`.
#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files say what things mean"
)]
pub mod v1 {
    tonic::include_proto!("bulkhead.v1");
}

/// Generated client of package `runtime.v1`: the part of the Container Runtime Interface that the agent asks.
#[expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto file says what things mean"
)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}
