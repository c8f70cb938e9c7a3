//! `cargo xtask setup`: what a machine with only Rust and a C compiler lacks. Pinned, says what it does and why, and does
//! nothing (in well under a second) when all is there.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::{
    paths,
    run::{self, output, paint, step},
};

/// The LLVM that bpf-linker is built with. It reads the compiler's bitcode, so it must be at least as new.
const LLVM_MAJOR: u32 = 22;

/// A Debian package that provides something the checkout needs.
#[derive(Clone, Copy)]
struct Package {
    name: &'static str,
    why: &'static str,
}

const PROTOC: Package = Package {
    name: "protobuf-compiler",
    why: "protoc compiles the wire contracts in proto/",
};
/// Only recommended by protobuf-compiler's package, so it is asked for by name.
const PROTOS: Package = Package {
    name: "libprotobuf-dev",
    why: "google/protobuf/timestamp.proto, which the wire contracts import",
};
const IPROUTE: Package = Package {
    name: "iproute2",
    why: "`ip` makes the namespaces of the tests and the demo",
};
const COMPILER: Package = Package {
    name: "rustc-web",
    why: "a compiler whose library sources match, for the kernel programs",
};
const SOURCES: Package = Package {
    name: "rust-web-src",
    why: "`core` is built for the kernel's target from source",
};
const LIBLLVM: Package = Package {
    name: "libllvm22",
    why: "bpf-linker links against it",
};
const LLVM_DEV: Package = Package {
    name: "llvm-22-dev",
    why: "only to build bpf-linker, once",
};

/// What only a cluster needs: a program that proves that the package is there, and the package.
const CLUSTER: [(&str, Package); 7] = [
    (
        "/usr/sbin/runc",
        Package {
            name: "runc",
            why: "containerd starts containers with it",
        },
    ),
    (
        "/usr/lib/cni/bridge",
        Package {
            name: "containernetworking-plugins",
            why: "pods' networks",
        },
    ),
    (
        "/usr/sbin/iptables",
        Package {
            name: "iptables",
            why: "kube-proxy in mode iptables, and host ports",
        },
    ),
    (
        "/usr/sbin/nft",
        Package {
            name: "nftables",
            why: "kube-proxy in mode nftables",
        },
    ),
    (
        "/usr/sbin/ipset",
        Package {
            name: "ipset",
            why: "kube-proxy in mode iptables",
        },
    ),
    (
        "/usr/sbin/conntrack",
        Package {
            name: "conntrack",
            why: "kube-proxy forgets connections to gone endpoints",
        },
    ),
    (
        "/usr/sbin/sysctl",
        Package {
            name: "procps",
            why: "nodes forward packets",
        },
    ),
];

/// What benchmarks measure beside us.
const PEERS: [(&str, Package); 3] = [
    (
        "/usr/sbin/iptables",
        Package {
            name: "iptables",
            why: "rule sets in the shape of iptables-based products",
        },
    ),
    (
        "/usr/sbin/nft",
        Package {
            name: "nftables",
            why: "the same policy as a verdict map",
        },
    ),
    (
        "/usr/sbin/ipset",
        Package {
            name: "ipset",
            why: "the sets of those rule sets",
        },
    ),
];

/// What is not there.
struct Missing {
    packages: Vec<Package>,
    linker: bool,
}

pub(crate) fn setup() -> Result<ExitCode> {
    let started = Instant::now();
    if ensure()? {
        println!(
            "{} set up in {}",
            paint(run::GREEN, "✓"),
            run::seconds(started.elapsed())
        );
    } else {
        println!("all is there, nothing to do ({} ms)", started.elapsed().as_millis());
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing; true when something was.
pub(crate) fn ensure() -> Result<bool> {
    let missing = look()?;
    if missing.packages.is_empty() && !missing.linker {
        return Ok(false);
    }
    if !missing.packages.is_empty() {
        install(&missing.packages)?;
    }
    if missing.linker {
        build_linker()?;
    }
    let left = look()?;
    if let Some(package) = left.packages.first() {
        bail!(
            "{} was installed but still is not usable: {}",
            package.name,
            package.why
        );
    }
    if left.linker {
        bail!(
            "bpf-linker was built but does not start: try {}",
            paths::bpf_linker()?.display()
        );
    }
    Ok(true)
}

/// Installs what a cluster needs beside what `ensure` installs.
pub(crate) fn ensure_cluster() -> Result<()> {
    ensure_programs(&CLUSTER)
}

/// Installs what benchmarks measure beside us.
pub(crate) fn ensure_peers() -> Result<()> {
    ensure_programs(&PEERS)
}

/// Installs the packages whose programs are not where they should be.
fn ensure_programs(wanted: &[(&str, Package)]) -> Result<()> {
    let missing = || {
        wanted
            .iter()
            .filter(|(program, _)| !Path::new(program).exists())
            .map(|(_, package)| *package)
            .collect::<Vec<_>>()
    };
    let packages = missing();
    if !packages.is_empty() {
        install(&packages)?;
    }
    match missing().first() {
        Some(package) => bail!(
            "{} was installed but its program is not where it should be",
            package.name
        ),
        None => Ok(()),
    }
}

fn look() -> Result<Missing> {
    let mut packages = Vec::new();
    if output("protoc", &["--version"]).is_none() {
        packages.push(PROTOC);
    }
    // It looks beside itself for the files every installation brings.
    let timestamp = ["--descriptor_set_out=/dev/null", "google/protobuf/timestamp.proto"];
    if output("protoc", &timestamp).is_none() {
        packages.push(PROTOS);
    }
    if output("ip", &["-V"]).is_none() {
        packages.push(IPROUTE);
    }
    if !nightly_has_sources() {
        let debian = sysroot("/usr/bin/rustc", &[]);
        if debian.is_none() {
            packages.push(COMPILER);
        }
        if debian.is_none_or(|path| !has_sources(&path)) {
            packages.push(SOURCES);
        }
        check_llvm()?;
    }
    // Starting it proves that the shared library it needs is there too.
    let path = paths::bpf_linker()?;
    let linker = output(&path.to_string_lossy(), &["--version"]).is_none();
    if linker {
        if path.exists() {
            packages.push(LIBLLVM);
        }
        if !Path::new(&llvm_prefix()).join("bin/llvm-config").exists() {
            packages.push(LLVM_DEV);
        }
    }
    Ok(Missing { packages, linker })
}

fn llvm_prefix() -> String {
    format!("/usr/lib/llvm-{LLVM_MAJOR}")
}

/// A compiler with a newer LLVM than the linker's writes bitcode that the linker cannot read: say it here, not there.
fn check_llvm() -> Result<()> {
    let Some(version) = output("/usr/bin/rustc", &["-vV"]) else {
        return Ok(());
    };
    let major = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|text| text.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(major) if major > LLVM_MAJOR => bail!(
            "/usr/bin/rustc uses LLVM {major}, but bpf-linker {} is built with LLVM {LLVM_MAJOR} and cannot read its output.\n\
             Install an older rustc-web, or a rustup nightly with rust-src: rustup toolchain install nightly -c rust-src",
            paths::BPF_LINKER_VERSION
        ),
        _ => Ok(()),
    }
}

fn sysroot(program: &str, arguments: &[&str]) -> Option<PathBuf> {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--print", "sysroot"]).collect();
    output(program, &arguments).map(PathBuf::from)
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

fn nightly_has_sources() -> bool {
    sysroot("rustup", &["run", "nightly", "rustc"]).is_some_and(|path| has_sources(&path))
}

fn install(packages: &[Package]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    println!("to install with apt-get:");
    for package in packages {
        println!("  {:<20} {}", package.name, package.why);
    }
    if output("dpkg-query", &["--version"]).is_none() {
        bail!(
            "this is not a Debian system, so I cannot install them. Provide by hand: protoc with its google/protobuf/*.proto, ip (iproute2), LLVM {LLVM_MAJOR} with \
             headers under {}, and a compiler with library sources: rustup toolchain install nightly -c rust-src",
            llvm_prefix()
        );
    }
    let command = format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        names.join(" ")
    );
    if !run::is_root() {
        bail!("that needs root. Run this, then `cargo xtask setup` again:\n  sudo sh -c '{command}'");
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        command
    };
    step("apt-get update", &mut apt(&["update"]))?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(&names);
    step(&format!("apt-get install {}", names.join(" ")), &mut apt(&arguments)).context(
        "if rustc-web conflicts with an installed rustc or rustup package, use rustup's nightly with rust-src instead",
    )
}

fn build_linker() -> Result<()> {
    let version = paths::BPF_LINKER_VERSION;
    let root = paths::cache()?.join(format!("tools/bpf-linker-{version}"));
    println!(
        "building bpf-linker {version} into {} (links the kernel programs; about 3 minutes, once)",
        root.display()
    );
    let feature = format!("llvm-{LLVM_MAJOR}");
    let mut command = run::cargo(&["install", "bpf-linker", "--version", version, "--locked", "--force"]);
    command
        .args(["--no-default-features", "--features", &feature, "--root"])
        .arg(&root)
        .env("LLVM_PREFIX", llvm_prefix())
        .env(format!("LLVM_SYS_{LLVM_MAJOR}1_PREFIX"), llvm_prefix())
        .env("CARGO_TARGET_DIR", root.join("target"));
    step("build bpf-linker", &mut command)?;
    // The binary is all we need of it; the objects are 300 MB.
    std::fs::remove_dir_all(root.join("target")).context("removing bpf-linker's build directory")
}
