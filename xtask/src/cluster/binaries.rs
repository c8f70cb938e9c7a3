//! What the cluster is made of, built from Go modules and Debian's packages: once per set of sources, then cached.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result};

use crate::{
    images::{Image, archive},
    paths,
    run::{self, step},
};

/// The oldest Go that builds this Kubernetes.
pub(crate) const GO_VERSION: &str = "1.26";
const KUBERNETES: &str = "1.37.2";
const CONTAINERD: &str = "v2.4.2";
/// Also in `manifests/coredns.yaml`.
const COREDNS: &str = "1.15.0";
const HELM: &str = "v3.22.0";
const KWOK: &str = "v0.8.0";
const REGISTRY: &str = "v3.1.2";
/// Images that upstream's suites ask for by a public name are asked for here instead; no registry serves it.
const REPOSITORIES: &str = "promoterE2eRegistry: localhost\n";

/// A folder with `bin/` and `images/`.
pub(crate) struct Binaries {
    pub(crate) root: PathBuf,
}

impl Binaries {
    /// The folder of programs.
    pub(crate) fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// A program's path.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    /// The file that tells upstream's suites where images come from (environment `KUBE_TEST_REPO_LIST`).
    pub(crate) fn repositories(&self) -> PathBuf {
        self.root.join("repositories.yaml")
    }
}

/// The `go` command, if there is one.
pub(crate) fn go() -> Option<PathBuf> {
    ["go", "/usr/local/go/bin/go"]
        .into_iter()
        .find(|program| run::output(program, &["version"]).is_some())
        .map(PathBuf::from)
}

fn sources() -> PathBuf {
    paths::root().join("testbed/kube")
}

/// Where the binaries of this checkout's sources are, or will be.
fn place() -> Result<Binaries> {
    let binaries = Binaries {
        root: paths::cache()?.join("kube").join(key()?),
    };
    fs::create_dir_all(binaries.bin()).with_context(|| format!("creating {}", binaries.root.display()))?;
    Ok(binaries)
}

/// Builds the test program of a package in a module's own folder, with that module's own dependencies.
pub(crate) fn build_test(binaries: &Binaries, go: &Path, name: &str, module: &Path, package: &str) -> Result<()> {
    let mut command = nice(go, &["test", "-c", "-trimpath", "-ldflags", "-s -w", "-o"]);
    command.arg(binaries.program(name)).arg(package).current_dir(module);
    step(&format!("build {name}"), &mut command)
}

/// Builds a program of ours, or one of a module we depend on.
pub(crate) fn build(binaries: &Binaries, go: &Path, name: &str, package: &str) -> Result<()> {
    let mut command = nice(go, &["build", "-trimpath", "-ldflags", &linker_flags(), "-o"]);
    command.arg(binaries.program(name)).arg(package).current_dir(sources());
    step(&format!("build {name}"), &mut command)
}

/// Installs a program of a module of its own.
fn install(binaries: &Binaries, go: &Path, module: &str) -> Result<()> {
    let last = module.rsplit('/').next().and_then(|last| last.split('@').next());
    let mut command = nice(go, &["install", "-trimpath", "-ldflags", "-s -w", module]);
    command.env("GOBIN", binaries.bin());
    step(&format!("build {}", last.unwrap_or(module)), &mut command)
}

fn helm() -> String {
    format!("helm.sh/helm/v3/cmd/helm@{HELM}")
}

/// The program that is etcd and an API server, and beside it helm, which renders the chart: all that tests of the controller alone
/// need. `None` without Go.
pub(crate) fn api_server() -> Result<Option<PathBuf>> {
    let Some(go) = go() else { return Ok(None) };
    let binaries = place()?;
    let program = binaries.program("kube-testbed");
    if !program.exists() {
        println!("building etcd and Kubernetes {KUBERNETES} (once; some minutes with an empty Go cache)");
        build(&binaries, &go, "kube-testbed", ".")?;
    }
    if !binaries.program("helm").exists() {
        install(&binaries, &go, &helm())?;
    }
    Ok(Some(program))
}

/// The binaries of this checkout's sources, built if they are not there.
pub(crate) fn ensure() -> Result<Binaries> {
    let binaries = place()?;
    let complete = binaries.root.join("complete");
    if complete.exists() {
        return Ok(binaries);
    }
    println!(
        "building Kubernetes {KUBERNETES}, containerd {CONTAINERD}, CoreDNS {COREDNS} and upstream's tests into {}\n\
         (once; about 15 minutes with an empty Go cache, half a minute with a full one)",
        binaries.root.display()
    );
    let go = go().context("Go is not installed")?;
    for (name, package) in [
        ("kube-testbed", "."),
        ("pause", "./pause"),
        ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
        ("e2e-netpol", "./e2e-netpol"),
    ] {
        build(&binaries, &go, name, package)?;
    }
    let containerd = "github.com/containerd/containerd/v2/cmd";
    for module in [
        format!("{containerd}/containerd@{CONTAINERD}"),
        format!("{containerd}/containerd-shim-runc-v2@{CONTAINERD}"),
        format!("{containerd}/ctr@{CONTAINERD}"),
        format!("github.com/coredns/coredns@v{COREDNS}"),
        format!("sigs.k8s.io/kwok/cmd/kwok@{KWOK}"),
        format!("github.com/distribution/distribution/v3/cmd/registry@{REGISTRY}"),
        helm(),
    ] {
        install(&binaries, &go, &module)?;
    }
    make_images(&binaries)?;
    fs::write(&complete, "").context("marking the binaries as complete")?;
    prune(&binaries)?;
    Ok(binaries)
}

/// Removes what other sources were built into, but for the newest: another checkout may be at work with it.
fn prune(binaries: &Binaries) -> Result<()> {
    let Some(folder) = binaries.root.parent() else {
        return Ok(());
    };
    let mut others: Vec<(SystemTime, PathBuf)> = fs::read_dir(folder)
        .with_context(|| format!("listing {}", folder.display()))?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .filter(|(_, path)| *path != binaries.root)
        .collect();
    others.sort();
    others.pop();
    for (_, path) in others {
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// Images of the bed itself, which every node imports when it starts.
fn make_images(binaries: &Binaries) -> Result<()> {
    fs::write(binaries.repositories(), REPOSITORIES).context("writing repositories.yaml")?;
    let images = binaries.root.join("images");
    fs::create_dir_all(&images).with_context(|| format!("creating {}", images.display()))?;
    let mut asked = Command::new(binaries.program("e2e-netpol"));
    asked.arg("-image").env("KUBE_TEST_REPO_LIST", binaries.repositories());
    let agnhost = crate::cluster::process::output_of(&mut asked)?;
    for (name, program, command) in [
        ("localhost/pause:1", "pause", ""),
        (agnhost.trim(), "agnhost", "pause"),
        (&format!("localhost/coredns:{COREDNS}"), "coredns", ""),
    ] {
        let path = format!("/{program}");
        let image = Image {
            name,
            files: &[(&binaries.program(program), &path)],
            entrypoint: &path,
            command: if command.is_empty() { &[] } else { &[command] },
        };
        archive::write(&image, &images.join(format!("{program}.tar")))?;
    }
    Ok(())
}

/// Without a version the components take themselves for an unreleased one, and behave like it.
fn linker_flags() -> String {
    let mut parts = KUBERNETES.split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let base = "k8s.io/component-base/version";
    format!(
        "-s -w -X {base}.gitVersion=v{KUBERNETES} -X {base}.gitMajor={major} -X {base}.gitMinor={minor} \
         -X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES}"
    )
}

/// A long build leaves the machine usable.
fn nice(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "5"])
        .arg(program)
        .args(arguments)
        .env("CGO_ENABLED", "0");
    command
}

/// A digest of all that goes in: modules, sources and the versions in this file.
fn key() -> Result<String> {
    let mut command = Command::new("sh");
    command
        .current_dir(sources())
        .args(["-c", "{ echo \"$1\"; find . -name '*.go' -o -name 'go.*' | LC_ALL=C sort | xargs sha256sum; } | sha256sum | cut -c1-16"])
        .args(["sh", &format!("{KUBERNETES} {CONTAINERD} {COREDNS} {HELM} {KWOK} {REGISTRY} {}", linker_flags())]);
    Ok(crate::cluster::process::output_of(&mut command)?.trim().to_owned())
}
