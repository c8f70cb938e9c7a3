//! Agents for measurements at scale: stream, sync thread, planner and store are those of a node; the maps are in memory, and
//! a pod's device is whatever its annotation `bulkhead.dev/device` names. Nothing is judged here.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use anyhow::{Context as _, Result};
use bulkhead_policy::{
    model::Attachment,
    plan::{MapDump, MapKind, MapOp, MapWriter as _},
};
use bulkhead_verdict::layout::{Flow, FlowKey};
use clap::{Args as _, Command, FromArgMatches as _};
use tokio::sync::watch;

use crate::{
    endpoints::{Device, Devices, FindError, Link},
    ground::Ground,
    kernel::{KernelError, Leads, Place, Standing},
    metrics::Metrics,
    names::{DeviceNames, Names},
    store::Store,
    stream::{Address, Connection, Stream},
    sync::{self, Holding, Input, Sync},
    tls,
};

/// Things the sync thread has not taken yet, as on a node.
const QUEUE: usize = 64;

/// What a simulated node holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Revision; 0 = none.
    pub revision: u64,
    /// Nanoseconds since 1970 of its last map write.
    pub at: u64,
    /// Endpoints that are in force.
    pub enforced: usize,
    /// What is wrong; empty = nothing.
    pub error: String,
}

/// One agent. Its tasks and its thread end when it is dropped.
pub struct Simulated {
    sync: SyncSender<Input>,
    holding: watch::Receiver<Holding>,
    stream: tokio::task::JoinHandle<()>,
    thread: Option<thread::JoinHandle<()>>,
    metrics: Arc<Metrics>,
    maps: Arc<Mutex<MapDump>>,
}

impl Simulated {
    /// Starts an agent of `node` that follows the controller at a unix socket and keeps its state in a folder of its own.
    /// To be called inside a tokio runtime.
    pub fn start(node: &str, controller: PathBuf, folder: &Path) -> Result<Self> {
        let metrics = Arc::new(Metrics::default());
        let (sender, holding) = watch::channel(Holding::default());
        let shared = sync::Shared {
            names: Arc::new(Names::default()),
            devices: Arc::new(DeviceNames::default()),
            holding: sender,
            usage: Arc::default(),
            metrics: metrics.clone(),
        };
        let maps = Arc::new(Mutex::new(MapDump::default()));
        let ground = Box::new(Memory {
            maps: Arc::clone(&maps),
            attached: Vec::new(),
        });
        let store = Store::open(folder, node)?;
        let state = Sync::start(
            node,
            ground,
            Box::new(Named::default()),
            store,
            shared,
            std::time::Duration::ZERO,
        )?;
        let (sync, inputs) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || state.run(&inputs))
            .context("starting the sync thread")?;
        let no_arguments = tls::Options::augment_args(Command::new("simulated")).try_get_matches_from(["simulated"])?;
        let stream = Stream {
            tls: tls::Tls::new(node, &tls::Options::from_arg_matches(&no_arguments)?, folder)?,
            node: node.to_owned(),
            address: Address::Unix(controller),
            sync: sync.clone(),
            holding: holding.clone(),
            connection: watch::channel(Connection::default()).0,
            from_scratch: false,
        };
        Ok(Self {
            sync,
            holding,
            stream: tokio::spawn(stream.run()),
            thread: Some(thread),
            metrics,
            maps,
        })
    }

    /// Revision it holds; 0 = none.
    pub fn revision(&self) -> u64 {
        self.holding.borrow().revision
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        let holding = self.holding.borrow();
        Held {
            revision: holding.revision,
            at: holding.held_at,
            enforced: holding.generations.iter().filter(|one| one.enforced).count(),
            error: holding.error.clone(),
        }
    }

    /// Map writes since it began.
    pub fn map_writes(&self) -> u64 {
        self.metrics.map_writes.get()
    }

    /// Addresses the maps know.
    pub fn addresses(&self) -> usize {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner).addresses.len()
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.stream.abort();
        drop(self.sync.send(Input::Stop));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a sync thread panicked");
        }
    }
}

/// Maps in memory. They begin empty, and no write fails.
struct Memory {
    maps: Arc<Mutex<MapDump>>,
    attached: Vec<u32>,
}

impl Ground for Memory {
    fn found(&self) -> bool {
        false
    }

    fn raise_epoch(&mut self) -> Result<(), KernelError> {
        self.apply(&[MapOp::Epoch])
    }

    fn apply(&mut self, ops: &[MapOp]) -> Result<(), KernelError> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        match maps.apply(ops) {
            Ok(()) => Ok(()),
            Err(never) => match never {},
        }
    }

    fn dump(&self) -> Result<MapDump, KernelError> {
        Ok(self.maps.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn attached(&self) -> Result<Vec<u32>, KernelError> {
        Ok(self.attached.clone())
    }

    fn attach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.attached.push(ifindex);
        Ok(())
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.attached.retain(|attached| *attached != ifindex);
        Ok(())
    }

    /// Nobody but the sync thread writes here, so nothing is compared.
    fn element(&self, _like: &MapOp) -> Result<Option<MapOp>, KernelError> {
        Ok(None)
    }

    fn scan(&self, _kind: MapKind, _place: &mut Place, _count: usize) -> Result<(Vec<MapOp>, bool), KernelError> {
        Ok((Vec::new(), true))
    }

    fn standing(&self, _ifindex: u32, _leads: Leads) -> Result<Standing, KernelError> {
        Ok(Standing::NoDevice)
    }

    /// Nothing is judged here, so no flow is asked for.
    fn add_flow(&mut self, _key: &FlowKey, _flow: Flow) -> Result<(), KernelError> {
        Ok(())
    }
}

/// Devices that exist as soon as somebody names them.
#[derive(Default)]
struct Named(BTreeMap<String, u32>);

impl Devices for Named {
    fn links(&mut self) -> io::Result<Vec<Link>> {
        let link = |(name, index): (&String, &u32)| Link {
            index: *index,
            name: name.clone(),
            peer: Some(*index),
            ..Link::default()
        };
        Ok(self.0.iter().map(link).collect())
    }

    fn all_addresses(&mut self) -> io::Result<Vec<IpAddr>> {
        Ok(Vec::new())
    }

    fn by_attachment(&mut self, attachment: &Attachment) -> Result<Device, FindError> {
        let name = attachment.device.as_ref().ok_or(FindError::NotHere)?;
        let next = u32::try_from(self.0.len()).unwrap_or(u32::MAX).saturating_add(1);
        let ifindex = *self.0.entry(name.clone()).or_insert(next);
        let [_, high, middle, low] = ifindex.to_be_bytes();
        Ok(Device {
            ifindex,
            name: name.clone(),
            peer: ifindex,
            mac: [2, 0, 0, high, middle, low],
            addresses: std::collections::BTreeSet::new(),
        })
    }

    fn by_namespace(&mut self, _path: &Path, _interface: &str) -> Result<Device, FindError> {
        Err(FindError::NotHere)
    }
}
