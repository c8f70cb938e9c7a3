//! Where things are: the checkout, and the cache that outlives it.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};

/// The version of bpf-linker that links the kernel programs. It must know the LLVM of the compiler (see `setup`).
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";

/// The checkout. Asked from cargo at run time: two checkouts may share a target directory, and so this very binary.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let mut path = PathBuf::from(manifest);
    path.pop();
    path
}

/// `$BULKHEAD_CACHE`, or `~/.cache/bulkhead`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(path) = env::var_os("BULKHEAD_CACHE") {
        return Ok(path.into());
    }
    let home = env::var_os("HOME").context("neither BULKHEAD_CACHE nor HOME is set: nowhere to keep tools")?;
    Ok(PathBuf::from(home).join(".cache/bulkhead"))
}

/// Where bpf-linker is kept.
pub(crate) fn bpf_linker() -> Result<PathBuf> {
    Ok(cache()?.join(format!("tools/bpf-linker-{BPF_LINKER_VERSION}/bin/bpf-linker")))
}

/// Cargo's target directory of this checkout.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        // A relative one is relative to where the person stands, as cargo reads it.
        Some(path) => env::current_dir().unwrap_or_else(|_| root()).join(path),
        None => root().join("target"),
    }
}

/// The cargo that runs us.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}
