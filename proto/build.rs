//! Generates the protobuf and gRPC code from proto/: our own contracts, and what we ask of container runtimes.

use std::{env, io, path::PathBuf, process::Command};

const FILES: [&str; 7] = [
    "resource",
    "node",
    "bootstrap",
    "replica",
    "flow",
    "agent",
    "controller",
];

fn main() -> io::Result<()> {
    let protoc = env::var_os("PROTOC").map_or_else(|| PathBuf::from("protoc"), PathBuf::from);
    println!("cargo::rerun-if-env-changed=PROTOC");
    println!("cargo::rerun-if-changed=proto");
    if let Err(error) = Command::new(&protoc).arg("--version").output() {
        println!(
            "cargo::error=the protobuf compiler `{}` does not run ({error}); `cargo xtask setup` installs it \
             (Debian packages protobuf-compiler and libprotobuf-dev), or set PROTOC to its path",
            protoc.display()
        );
        return Ok(());
    }
    let files = FILES.map(|name| format!("proto/bulkhead/v1/{name}.proto"));
    let mut files: Vec<&str> = files.iter().map(String::as_str).collect();
    files.push("proto/runtime/v1/runtime.proto");
    // No transport: callers make a channel over their unix socket and wrap it.
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_protos(&files, &["proto"])
}
