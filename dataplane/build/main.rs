//! Build script: builds the kernel programs, which the agent embeds (`OUT_DIR/programs`).

mod recipe;

use std::{env, error::Error, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    // Asked at run time, and inputs named relative to it: checkouts that share a target directory share this binary.
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("run by cargo only")?);
    let root = manifest.parent().ok_or("the crate has no parent folder")?;
    for input in recipe::INPUTS {
        println!("cargo:rerun-if-changed=../{input}");
    }
    for variable in recipe::VARIABLES {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run by cargo only")?);
    // OUT_DIR is <target>/<profile>/build/<package>/out. One stable folder beside the profiles: `cargo test`, `clippy`
    // and release builds share it, and a second build costs a second.
    let target_dir = out_dir.ancestors().nth(4).unwrap_or(&out_dir).join("bpf");
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let object = recipe::build(recipe::Request {
        root,
        target_dir: &target_dir,
        arch: &arch,
    })
    .inspect_err(|error| println!("cargo::error={error}"))?;
    recipe::install(&object, &out_dir.join("programs"))?;
    println!("cargo:rustc-env=BULKHEAD_BPF_TOOLCHAIN={}", object.toolchain);
    Ok(())
}
