//! `cargo xtask images`: our programs as scratch-based images, made without a registry and loaded into the running nodes.

pub(crate) mod archive;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};

use crate::{
    Arguments,
    cluster::{Cluster, nodes, process, registry},
    paths,
    run::{self, paint, step},
    setup,
};

/// The tag of our images: replaced when they are built again.
pub(crate) const TAG: &str = "dev";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// An image of a few files.
pub(crate) struct Image<'a> {
    /// NAME:TAG. Not `latest`, which kubelet would try to pull.
    pub(crate) name: &'a str,
    /// Where a file is, and where it shall be in the image.
    pub(crate) files: &'a [(&'a Path, &'a str)],
    /// What a container runs.
    pub(crate) entrypoint: &'a str,
    /// Its arguments, unless the pod names others.
    pub(crate) command: &'a [&'a str],
}

/// What we ship: image and programs. The container files in `deploy/images/` say the same.
const SHIPPED: [(&str, &[&str]); 3] = [
    ("bulkhead-controller", &["bulkhead-controller", "bulkhead"]),
    ("bulkhead-agent", &["bulkhead-agent", "bulkhead-cni", "bulkhead"]),
    ("bulkhead", &["bulkhead"]),
];

pub(crate) fn images(arguments: &mut Arguments) -> Result<ExitCode> {
    let release = arguments.flag("--release");
    let push_too = arguments.flag("--push");
    arguments.done()?;
    let archives = build(release)?;
    for (name, path) in &archives {
        let size = fs::metadata(path)
            .with_context(|| format!("reading {}", path.display()))?
            .len();
        println!("{name:<36} {:>4} MB  {}", size >> 20, path.display());
    }
    match Cluster::running()? {
        Some(cluster) => {
            load(&cluster, &archives)?;
            if push_too {
                push(&cluster, &archives)?;
            }
        }
        None if push_too => bail!("no cluster is up, and its registry neither: cargo xtask cluster up"),
        None => println!("no cluster is up, so they were not loaded anywhere"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds programs and archives; returns names and files.
pub(crate) fn build(release: bool) -> Result<Vec<(String, PathBuf)>> {
    pack(&SHIPPED, &["controller", "dataplane", "cli"], release)
}

/// The image of what tests run in pods.
pub(crate) fn build_peer() -> Result<Vec<(String, PathBuf)>> {
    pack(&[("testbed-peer", &["testbed-peer"])], &["testbed"], false)
}

fn pack(images: &[(&str, &[&str])], packages: &[&str], release: bool) -> Result<Vec<(String, PathBuf)>> {
    setup::ensure()?;
    let target = paths::target().join("images");
    let mut command = run::cargo(&["build", "--target", TARGET, "--bins"]);
    for package in packages {
        command.arg("--package").arg(format!("bulkhead-{package}"));
    }
    command
        .env("CARGO_TARGET_DIR", &target)
        // Only for the target's own programs: build scripts and procedural macros must stay dynamic.
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        );
    if release {
        command.arg("--release");
    }
    step("build static programs", &mut command)?;
    let programs = target.join(TARGET).join(if release { "release" } else { "debug" });
    let mut archives = Vec::new();
    for (image, names) in images {
        let built: Vec<(PathBuf, String)> = names
            .iter()
            .map(|name| (programs.join(name), format!("/usr/bin/{name}")))
            .filter(|(path, _)| path.exists())
            .collect();
        let files: Vec<(&Path, &str)> = built.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect();
        let name = format!("localhost/{image}:{TAG}");
        let path = target.join(format!("{image}.tar"));
        let entrypoint = format!("/usr/bin/{image}");
        archive::write(
            &Image {
                name: &name,
                files: &files,
                entrypoint: &entrypoint,
                command: &[],
            },
            &path,
        )?;
        archives.push((name, path));
    }
    Ok(archives)
}

/// Puts images that were loaded into the cluster's registry as well; pods may then pull them.
fn push(cluster: &Cluster, archives: &[(String, PathBuf)]) -> Result<()> {
    let ctr = |arguments: &[&str]| {
        let mut command = nodes::inside(cluster, 1, &cluster.binaries.program("ctr"))?;
        process::output_of(command.args(["--namespace", "k8s.io", "images"]).args(arguments))
    };
    for (name, _) in archives {
        let there = name.replacen("localhost", &registry::host(), 1);
        ctr(&["tag", "--force", name, &there])?;
        ctr(&["push", "--plain-http", &there])?;
        println!("{} pushed {there}", paint(run::GREEN, "✓"));
    }
    Ok(())
}

/// Imports images on every node.
pub(crate) fn load(cluster: &Cluster, archives: &[(String, PathBuf)]) -> Result<()> {
    for number in 1..=cluster.nodes {
        for (_, path) in archives {
            let mut command = nodes::inside(cluster, number, &cluster.binaries.program("ctr"))?;
            command
                .args([
                    "--namespace",
                    "k8s.io",
                    "images",
                    "import",
                    "--snapshotter",
                    "overlayfs",
                ])
                .arg(path);
            process::output_of(&mut command)?;
        }
        println!("{} loaded on n{number}", paint(run::GREEN, "✓"));
    }
    Ok(())
}
