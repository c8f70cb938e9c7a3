//! The controller as a process of its own (this binary again), and what any process costs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use bulkhead_controller::{config::Config, run::run};
use bulkhead_proto::v1::{self, controller_service_client::ControllerServiceClient};
use clap::Parser as _;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};
use tonic::transport::{Channel, Endpoint};

/// First argument of this binary when it is to be the controller.
pub(crate) const ROLE: &str = "controller";

/// The controller, ended when it is dropped.
pub(crate) struct Controller {
    child: Child,
    socket: PathBuf,
    metrics: u16,
}

/// Is the controller: the rest of the command line is its own.
pub(crate) async fn be_controller() -> Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    let config = Config::parse_from(std::env::args_os().skip(1));
    Box::pin(run(config, None, std::future::pending())).await
}

impl Controller {
    /// Starts it against the API server of a kubeconfig.
    pub(crate) fn start(kubeconfig: &Path, folder: &Path) -> Result<Self> {
        let socket = folder.join("controller.sock");
        let metrics = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(std::env::current_exe()?)
            .args([ROLE, "--kube", "--kubeconfig"])
            .arg(kubeconfig)
            .arg("--listen")
            .arg(format!("unix:{}", socket.display()))
            .args(["--metrics-listen", &format!("127.0.0.1:{metrics}")])
            .args(["--namespace", "team-0"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("controller.log"))?)
            .spawn()
            .context("starting the controller")?;
        Ok(Self { child, socket, metrics })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    async fn channel(&self) -> Result<Channel> {
        let path = self.socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://controller");
        Ok(endpoint.connect_with_connector(connector).await?)
    }

    /// What it says of itself.
    pub(crate) async fn status(&mut self) -> Result<v1::ControllerStatus> {
        if let Some(ended) = self.child.try_wait()? {
            bail!("the controller ended: {ended}");
        }
        let mut client = ControllerServiceClient::new(self.channel().await?).max_decoding_message_size(1 << 28);
        Ok(client.get_status(v1::GetControllerStatusRequest {}).await?.into_inner())
    }

    /// The sum of a counter over its labels.
    pub(crate) async fn counter(&self, name: &str) -> Result<f64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).await?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: controller\r\nConnection: close\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let lines = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then(|| rest.rsplit(' ').next())?
        });
        Ok(lines.filter_map(|value| value.parse::<f64>().ok()).sum())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && kill_process(pid, Signal::KILL).is_ok()
        {
            drop(self.child.wait());
        }
    }
}

/// Time a process has been on a CPU.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that ends meanwhile takes its time along; the processes here keep theirs.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            nanoseconds += text
                .split(' ')
                .next()
                .and_then(|it| it.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Resident memory of a process, MiB: now, and the most it ever was.
pub(crate) fn resident(pid: u32) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let now = of("VmRSS:").context("VmRSS")?;
    let most = of("VmHWM:").context("VmHWM")?;
    Ok((now / 1024, most / 1024))
}

/// Processes that ran or waited on this machine, averaged over the last minute.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
