//! One image as a file that `ctr images import` reads: a single layer, made by tar(1), equal for equal files.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use super::Image;
use crate::{cluster::process::output_of, run::step};

const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\n";

/// Writes the archive.
pub(crate) fn write(image: &Image, archive: &Path) -> Result<()> {
    let work = archive.with_extension("work");
    // What an interrupted run left.
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    }
    let root = work.join("root");
    for folder in ["etc", "tmp", "run"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("creating {}", root.display()))?;
    }
    fs::write(root.join("etc/passwd"), PASSWD).context("writing etc/passwd of the image")?;
    fs::write(root.join("etc/group"), GROUP).context("writing etc/group of the image")?;
    for (from, to) in image.files {
        let to = root.join(to.trim_start_matches('/'));
        let folder = to.parent().context("a file of the image has no folder")?;
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        // Debug information is most of a program's size, and every node would hold it.
        output_of(Command::new("strip").arg("-o").arg(&to).arg(from))?;
    }
    // Owner, order and times must not depend on who builds it when.
    let same = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"];
    let layer = work.join("layer.tar");
    let mut command = Command::new("tar");
    command
        .args(same)
        .arg("--mode=u+rwX,go+rX,go-w")
        .arg("-cf")
        .arg(&layer)
        .arg("-C")
        .arg(&root)
        .arg(".");
    step(&format!("layer of {}", image.name), &mut command)?;
    let layer_digest = digest(&layer)?;
    let config = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [image.entrypoint], "Cmd": image.command, "Env": ["PATH=/usr/bin:/"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        "history": [{"created_by": "cargo xtask images"}],
    });
    fs::write(work.join("config.json"), config.to_string()).context("writing the image's configuration")?;
    let config_name = format!("{}.json", digest(&work.join("config.json"))?);
    fs::rename(work.join("config.json"), work.join(&config_name)).context("naming the image's configuration")?;
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": [image.name], "Layers": ["layer.tar"]}]);
    fs::write(work.join("manifest.json"), manifest.to_string()).context("writing the image's manifest")?;
    let mut command = Command::new("tar");
    command
        .args(same)
        .arg("-cf")
        .arg(archive)
        .arg("-C")
        .arg(&work)
        .args([&config_name, "layer.tar", "manifest.json"]);
    step(&format!("archive of {}", image.name), &mut command)?;
    fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))
}

fn digest(path: &Path) -> Result<String> {
    let text = output_of(Command::new("sha256sum").arg(path))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}
