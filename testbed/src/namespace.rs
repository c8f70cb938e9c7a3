//! A network namespace with a name, as `ip netns` makes them: other tools (and the agent) find it under /run/netns.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};

use crate::sys;

const FOLDER: &str = "/run/netns";
const PREFIX: &str = "bh-";

/// A namespace that is removed when the value is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback device up.
    ///
    /// # Errors
    /// When not root, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for setns and for the agent.
    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Runs commands of ip(8) inside, one a line.
    ///
    /// # Errors
    /// Names the line that failed and why.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting ip (Debian package iproute2)")?;
        child
            .stdin
            .take()
            .context("ip has no standard input")?
            .write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "ip -n {} -batch:\n{lines}\n{}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// What an `ip` command prints inside.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip_output(&self, arguments: &[&str]) -> Result<String> {
        let arguments: Vec<&str> = ["-n", &self.name]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        run("ip", &arguments)
    }

    /// Sets kernel parameters below `/proc/sys/net`, as `ipv4/ip_forward`.
    ///
    /// # Errors
    /// Names the parameter that could not be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.inside(|| {
            settings.iter().try_for_each(|(name, value)| {
                fs::write(Path::new("/proc/sys/net").join(name), value)
                    .with_context(|| format!("setting {name} = {value}"))
            })
        })?
    }

    /// Runs a closure in a thread of its own that is inside the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.file()?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || sys::enter(&file).map(|()| work()));
            match thread.join() {
                Ok(result) => result.with_context(|| format!("entering {}", self.name)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that will run inside and die with us.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        sys::start_inside(&mut command, self.file()?);
        Ok(command)
    }

    fn file(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("opening {}", self.path().display()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Nothing to do about a failure here; the next run's sweep tries again.
        drop(run("ip", &["netns", "del", &self.name]));
    }
}

/// A name for a namespace of this run of this process.
pub fn name_of(run: &str, part: &str) -> String {
    format!("{PREFIX}{run}-{part}")
}

/// The process a run's name belongs to.
pub fn process_of(run: &str) -> Option<u32> {
    run.split('-').next()?.parse().ok()
}

/// Removes namespaces of runs whose process is gone (killed before it could clean up).
pub fn sweep() {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(PREFIX).and_then(process_of) else {
            continue;
        };
        if !Path::new(&format!("/proc/{process}")).exists() {
            drop(Namespace { name });
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
