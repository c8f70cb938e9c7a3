//! A real API server with its etcd, of its own folder and ports, and requests to it.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Requests at once while objects are created.
const AT_ONCE: usize = 32;

/// One request that changes an object.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: Value,
}

impl Write {
    /// Creates an object of a collection.
    pub(crate) fn create(collection: &str, body: Value) -> Self {
        Self {
            method: "POST",
            path: collection.to_owned(),
            body,
        }
    }

    /// Changes an object by a merge patch.
    pub(crate) fn patch(path: String, body: Value) -> Self {
        Self {
            method: "PATCH",
            path,
            body,
        }
    }
}

/// The running API server. Both processes end when it is dropped.
pub(crate) struct Api {
    up: Child,
    directory: TempDir,
    client: Client,
}

/// The multi-call binary, or what to do to have one.
fn binary() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("BULKHEAD_CACHE").or_else(|| Some(variable("HOME")?.join(".cache/bulkhead")));
    let path = variable("BULKHEAD_KUBE_TESTBED").or_else(|| Some(cache?.join("kube-bin/kube-testbed")));
    let path = path.context("neither BULKHEAD_KUBE_TESTBED nor BULKHEAD_CACHE nor HOME is set")?;
    if !path.is_file() {
        bail!("{}: no API server; `cargo xtask cluster up` builds one", path.display());
    }
    Ok(path)
}

/// One free port alone, and the first of two in a row.
fn ports() -> Result<(u16, u16)> {
    loop {
        let (alone, first) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let port = first.local_addr()?.port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return Ok((alone.local_addr()?.port(), port));
        }
    }
}

impl Api {
    /// Starts both and waits until the API server says that it is ready.
    pub(crate) async fn start() -> Result<Self> {
        let (port, etcd) = ports()?;
        let directory = tempfile::tempdir().context("a folder for etcd")?;
        let mut up = Command::new(binary()?)
            .arg("up")
            .arg("-dir")
            .arg(directory.path())
            .args(["-port", &port.to_string(), "-etcd-port", &etcd.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the API server")?;
        let mut lines = BufReader::new(up.stdout.take().context("its output")?).lines();
        if !lines.any(|line| line.is_ok_and(|line| line.contains("ready in"))) {
            bail!("the API server ended before it was ready");
        }
        let kubeconfig = directory.path().join("pki/admin.kubeconfig");
        let config = Kubeconfig::read_from(&kubeconfig).context("reading its kubeconfig")?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        Ok(Self {
            up,
            directory,
            client: Client::try_from(config)?,
        })
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder().join("pki/admin.kubeconfig")
    }

    /// Everything of this run may lie here.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Process of the API server itself.
    pub(crate) fn pid(&self) -> Result<u32> {
        let text = std::fs::read_to_string(self.folder().join("kube-apiserver.pid"))?;
        text.trim().parse().context("the API server's process id")
    }

    pub(crate) async fn write(&self, write: &Write) -> Result<()> {
        let kind = match write.method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = axum::http::Request::builder()
            .method(write.method)
            .uri(&write.path)
            .header("content-type", kind)
            .body(serde_json::to_vec(&write.body)?)?;
        let _answer: Value = self
            .client
            .request(request)
            .await
            .with_context(|| format!("{} {}", write.method, write.path))?;
        Ok(())
    }

    /// Writes many, some at once, in no order.
    pub(crate) async fn write_all(&self, writes: impl IntoIterator<Item = Write>) -> Result<()> {
        stream::iter(writes.into_iter().map(Ok))
            .map(|write: Result<Write>| async move { self.write(&write?).await })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.up.id()).ok().and_then(Pid::from_raw)
            && kill_process(pid, Signal::TERM).is_ok()
        {
            drop(self.up.wait());
        }
    }
}
