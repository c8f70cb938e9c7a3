//! The real kube-proxy on every node of a testnet, and the API server that tells it of Services.

use std::{
    io::{BufRead as _, BufReader},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bulkhead_testbed::{Running, Testnet, sys, testnet::Node};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use serde_json::{Value, json};

const END_MAX: Duration = Duration::from_secs(10);

/// etcd and an API server; with the value they end.
pub(crate) struct ApiServer {
    program: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    child: Child,
    runtime: tokio::runtime::Runtime,
    client: Client,
}

/// A node's kube-proxy, and its way to the API server.
pub(crate) struct Proxy {
    pub(crate) process: Running,
    port: u16,
    node: String,
    stop: Arc<AtomicBool>,
    forwarding: Option<JoinHandle<()>>,
    netns: PathBuf,
}

/// The program that holds etcd, the API server and kube-proxy; the reason is printed when there is none.
fn program() -> Option<PathBuf> {
    let found = std::env::var_os("BULKHEAD_KUBE_TESTBED").map(PathBuf::from);
    match found {
        Some(path) if path.is_file() => Some(path),
        Some(path) => {
            println!("SKIPPED: no kube-proxy: {} does not exist", path.display());
            None
        }
        None => {
            println!("SKIPPED: no kube-proxy: BULKHEAD_KUBE_TESTBED is not set (it is built with Go)");
            None
        }
    }
}

/// Two ports in a row and one alone that nobody listens on now.
fn ports() -> (u16, u16) {
    loop {
        let one = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (alone, pair) = (one(), one());
        let first = pair.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.1", first.saturating_add(1))).is_ok() {
            return (alone.local_addr().unwrap().port(), first);
        }
    }
}

impl ApiServer {
    /// One that serves both families; `None`, and the reason printed, when it cannot be run here.
    pub(crate) fn start() -> Option<Self> {
        let program = program()?;
        let (port, etcd) = ports();
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(&program);
        command.arg("up").arg("-dir").arg(folder.path());
        command.args(["-port", &port.to_string(), "-etcd-port", &etcd.to_string()]);
        command.args(["-service-cidr", "10.96.0.0/16,fd96::/112"]);
        sys::die_with_parent(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready in") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended before it was ready");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let read = Kubeconfig::read_from(folder.path().join("pki/admin.kubeconfig")).unwrap();
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
            Client::try_from(config.unwrap()).unwrap()
        });
        Some(Self {
            program,
            folder,
            port,
            child,
            runtime,
            client,
        })
    }

    fn api(&self, object: &Value) -> Api<DynamicObject> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let (group, version) = text("/apiVersion").unwrap().split_once('/').unwrap_or(("", "v1"));
        let kind = GroupVersionKind::gvk(group, version, text("/kind").unwrap());
        let resource = ApiResource::from_gvk(&kind);
        match text("/metadata/namespace") {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Creates an object, with its status.
    pub(crate) fn create(&self, object: &Value) {
        let api = self.api(object);
        let whole: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let name = whole.metadata.name.clone().unwrap();
        self.runtime.block_on(async {
            api.create(&PostParams::default(), &whole)
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            if let Some(status) = object.get("status") {
                let status = Patch::Merge(json!({ "status": status }));
                api.patch_status(&name, &PatchParams::default(), &status).await.unwrap();
            }
        });
    }

    /// Makes an object what it is to be now.
    pub(crate) fn change(&self, object: &Value) {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap();
        let change = self.api(object);
        let change = async { change.patch(name, &PatchParams::default(), &Patch::Merge(object)).await };
        self.runtime.block_on(change).unwrap();
    }

    /// Starts a node's kube-proxy inside the node's namespace.
    pub(crate) fn proxy(&self, net: &Testnet, node: &Node, mode: &str) -> Proxy {
        let address = ("127.0.0.1", self.port);
        let listener = node.netns.inside(|| TcpListener::bind(address)).unwrap().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let forwarding = {
            let (stop, port) = (Arc::clone(&stop), self.port);
            thread::spawn(move || forward(&listener, port, &stop))
        };
        let mut command = node.netns.command(&self.program).unwrap();
        command.args(["kube-proxy", "--proxy-mode", mode, "--hostname-override", &node.name]);
        let kubeconfig = self.folder.path().join("pki/kube-proxy.kubeconfig");
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        command.args(["--cluster-cidr=10.77.0.0/16,fd77::/48", "--iptables-min-sync-period=0s"]);
        // What is not of the namespace but of the machine stays as it is.
        command.args([
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ]);
        command.args([
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
        ]);
        Proxy {
            process: Running::start(&format!("kube-proxy-{}", node.name), command, &net.logs()).unwrap(),
            port: self.port,
            node: node.name.clone(),
            stop,
            forwarding: Some(forwarding),
            netns: node.netns.path(),
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Its parts end when it is asked to end.
        let asked = Command::new("kill").arg(self.child.id().to_string()).status();
        drop(asked);
        drop(self.child.wait());
    }
}

impl Proxy {
    /// The end of its log, under its node's name.
    pub(crate) fn log_tail(&self) -> String {
        format!("kube-proxy of {}:\n{}", self.node, self.process.log_tail())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.process.terminate(END_MAX));
        self.stop.store(true, Ordering::Release);
        // It waits in accept, which a last connection from inside ends.
        let (netns, port) = (self.netns.clone(), self.port);
        let woken = thread::spawn(move || {
            let file = std::fs::File::open(netns)?;
            sys::enter(&file)?;
            TcpStream::connect(("127.0.0.1", port)).map(drop)
        });
        let woken = woken.join().is_ok_and(|woken| woken.is_ok());
        if let (true, Some(forwarding)) = (woken, self.forwarding.take()) {
            drop(forwarding.join());
        }
    }
}

/// Carries connections made in a node's namespace to the API server, which listens in the one of the test.
fn forward(listener: &TcpListener, port: u16, stop: &AtomicBool) {
    for near in listener.incoming().flatten() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else {
            continue;
        };
        let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
            continue;
        };
        thread::spawn(move || carry(&near, &far));
        thread::spawn(move || carry(&far_too, &near_too));
    }
}

fn carry(mut from: &TcpStream, mut to: &TcpStream) {
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}
