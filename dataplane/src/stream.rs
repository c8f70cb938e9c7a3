//! The node's end of the controller's stream: says what is held, takes revisions one at a time, acknowledges when the kernel
//! holds them, and comes back when the controller does.

use std::{
    path::{Path, PathBuf},
    sync::mpsc::SyncSender,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bulkhead_proto::{
    MESSAGE_BYTES_MAX, NOT_DECLARED, PROTOCOL_VERSION,
    convert::address_to_bytes,
    update::{Assembler, Revision},
    v1::{
        Ack, Announcement, ControllerMessage, Held, Hello, NodeMessage, announcement_result::Rejection,
        controller_message, node_message, node_service_client::NodeServiceClient,
    },
};
use bulkhead_verdict::layout::LAYOUT;
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    clock,
    sync::{Holding, Input},
    tls::{Opened, Tls},
};

/// First pause before another try; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause: a controller that comes back finds its nodes within this time.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long the controller may take to close its end when we leave.
const FAREWELL: Duration = Duration::from_millis(500);
/// Messages on their way to the controller.
const OUTBOX: usize = 64;

/// Where the controller is.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `https://HOST:PORT`: TCP with mutual TLS.
    Tls(String),
}

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Self::Unix(path.into()));
        }
        let place = text.strip_prefix("https://");
        match place.filter(|place| {
            place
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        }) {
            Some(place) => Ok(Self::Tls(place.to_owned())),
            None => Err(format!("{text}: neither unix:/ABSOLUTE/PATH nor https://HOST:PORT")),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tls(place) => write!(f, "https://{place}"),
        }
    }
}

/// Whether the controller is there, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Connection {
    pub(crate) connected: bool,
    pub(crate) error: String,
}

/// The stream's state from one connection to the next.
pub(crate) struct Stream {
    pub(crate) node: String,
    pub(crate) address: Address,
    pub(crate) tls: Tls,
    pub(crate) sync: SyncSender<Input>,
    pub(crate) holding: watch::Receiver<Holding>,
    pub(crate) connection: watch::Sender<Connection>,
    /// The next Hello says that nothing is held, so that a snapshot comes.
    pub(crate) from_scratch: bool,
}

fn warn_of(rejected: Rejection) {
    let name = rejected.workload.unwrap_or_default();
    let endpoint = format!("{}/{}", name.namespace, name.name);
    if rejected.reason == NOT_DECLARED {
        tracing::debug!(
            endpoint,
            "the controller does not know this endpoint (any more, or yet)"
        );
    } else {
        tracing::warn!(
            endpoint,
            "the controller does not believe this endpoint: {}",
            rejected.reason
        );
    }
}

impl Stream {
    /// Connects again and again.
    pub(crate) async fn run(mut self) {
        let mut pause = RETRY_FIRST;
        loop {
            let error = match self.connect().await {
                Ok(()) => "the controller closed the stream".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            let was_connected = self.connection.borrow().connected;
            let now = Connection {
                connected: false,
                error,
            };
            if *self.connection.borrow() != now {
                tracing::warn!(controller = %self.address, "{}; what is in force stays", now.error);
            }
            self.connection.send_replace(now);
            pause = if was_connected {
                RETRY_FIRST
            } else {
                (pause * 2).min(RETRY_MAX)
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// One connection, until it ends.
    async fn connect(&mut self) -> Result<()> {
        let (channel, opened) = channel(&self.address, &self.tls).await?;
        let mut client = NodeServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX * 2)
            .max_encoding_message_size(MESSAGE_BYTES_MAX * 2);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let hello = self.hello();
        send(&outbox, node_message::Message::Hello(hello)).await?;
        let mut inbox = client
            .connect(ReceiverStream::new(messages))
            .await
            .with_context(|| format!("opening the node stream to {}", self.address))?
            .into_inner();
        let takes_certificates = match message(&mut inbox).await? {
            Some(controller_message::Message::Welcome(welcome)) if welcome.protocol == PROTOCOL_VERSION => {
                tracing::info!(controller = %self.address, version = welcome.controller_version, "connected");
                welcome.takes_certificates
            }
            Some(controller_message::Message::Welcome(welcome)) => bail!(
                "the controller {} speaks protocol {}, this agent {PROTOCOL_VERSION}: upgrade the older one",
                welcome.controller_version,
                welcome.protocol
            ),
            _ => bail!("the controller's first message is no Welcome"),
        };
        self.connection.send_replace(Connection {
            connected: true,
            error: String::new(),
        });
        let served = tokio::select! {
            served = self.serve(&mut inbox, &outbox) => served,
            left = renew(opened, takes_certificates, &outbox) => left,
        };
        // Letting go of the stream at once would reset it, and with it what was said last, which is why we leave.
        drop(outbox);
        let farewell = async { while let Ok(Some(_)) = inbox.message().await {} };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::debug!(controller = %self.address, "the controller did not close its end of the stream");
        }
        served
    }

    fn hello(&self) -> Hello {
        let holding = self.holding.borrow();
        let held = holding.digest.filter(|_| !self.from_scratch).map(|digest| Held {
            revision: holding.revision,
            state_digest: digest.0.to_vec(),
        });
        Hello {
            node: self.node.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT.to_owned(),
            protocol: PROTOCOL_VERSION,
            held,
        }
    }

    /// Says who is here, unless the controller was told just that on this connection.
    async fn announce(
        &self,
        holding: &Holding,
        told: &mut Option<Announcement>,
        outbox: &mpsc::Sender<NodeMessage>,
    ) -> Result<()> {
        let now = announcement(holding);
        if told.as_ref() == Some(&now) {
            return Ok(());
        }
        *told = Some(now.clone());
        send(outbox, node_message::Message::Announcement(now)).await
    }

    async fn serve(
        &mut self,
        inbox: &mut Streaming<ControllerMessage>,
        outbox: &mpsc::Sender<NodeMessage>,
    ) -> Result<()> {
        let mut assembler = Assembler::default();
        let mut told = None;
        // What is known now is news to this controller.
        self.holding.mark_changed();
        loop {
            tokio::select! {
                changed = self.holding.changed() => {
                    changed.context("the sync thread has ended")?;
                    self.tell(&mut told, outbox).await?;
                }
                message = message(inbox) => match message? {
                    None => return Ok(()),
                    Some(controller_message::Message::Welcome(_)) => bail!("the controller sent a second Welcome"),
                    Some(controller_message::Message::AnnouncementResult(result)) => {
                        result.rejected.into_iter().for_each(warn_of);
                    }
                    Some(controller_message::Message::Update(update)) => {
                        if let Some(revision) = assembler.push(update)? {
                            self.apply(revision, &mut told, outbox).await?;
                        }
                    }
                },
            }
        }
    }

    /// Hands a revision to the sync thread and acknowledges its answer.
    async fn apply(
        &mut self,
        revision: Revision,
        told: &mut Option<Announcement>,
        outbox: &mpsc::Sender<NodeMessage>,
    ) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let number = revision.revision;
        let snapshot = revision.snapshot;
        let input = Input::Revision {
            revision: Box::new(revision),
            reply,
        };
        // The thread's queue has room: we are the only one who waits, and for one revision at a time.
        self.sync
            .try_send(input)
            .context("the sync thread takes no more work")?;
        let result = answer.await.context("the sync thread has ended")?;
        let holding = self.holding.borrow_and_update().clone();
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        self.from_scratch &= !(snapshot && error.is_empty());
        send(outbox, ack(&holding, number, error)).await?;
        self.announce(&holding, told, outbox).await?;
        match result {
            Err(error) if error.needs_snapshot() && !snapshot => {
                self.from_scratch = true;
                bail!("{error}")
            }
            _ => Ok(()),
        }
    }

    /// Endpoints have changed since the last acknowledgement.
    async fn tell(&mut self, told: &mut Option<Announcement>, outbox: &mpsc::Sender<NodeMessage>) -> Result<()> {
        let holding = self.holding.borrow_and_update().clone();
        self.announce(&holding, told, outbox).await?;
        if holding.digest.is_some() && !self.from_scratch {
            let error = holding.error.clone();
            send(outbox, ack(&holding, holding.revision, error)).await?;
        }
        Ok(())
    }
}

fn ack(holding: &Holding, revision: u64, error: String) -> node_message::Message {
    node_message::Message::Ack(Ack {
        revision,
        error,
        endpoints: holding.generations.clone(),
        held_at: clock::timestamp(holding.held_at),
        apply_micros: holding.apply_micros,
        host_reverted: holding.reverted.clone(),
    })
}

fn announcement(holding: &Holding) -> Announcement {
    Announcement {
        endpoints: holding.announced.clone(),
        node_addresses: holding.own.iter().map(|address| address_to_bytes(*address)).collect(),
    }
}

async fn send(outbox: &mpsc::Sender<NodeMessage>, message: node_message::Message) -> Result<()> {
    outbox
        .send(NodeMessage { message: Some(message) })
        .await
        .context("the stream has ended")
}

async fn message(inbox: &mut Streaming<ControllerMessage>) -> Result<Option<controller_message::Message>> {
    let Some(message) = inbox.message().await.context("the stream broke")? else {
        return Ok(None);
    };
    message
        .message
        .map(Some)
        .context("the controller sent a message this agent does not know: upgrade the agent")
}

/// Shows the controller every newer certificate on the stream that is open; ends when the stream has to.
async fn renew(opened: Option<Opened>, takes_certificates: bool, outbox: &mpsc::Sender<NodeMessage>) -> Result<()> {
    let Some(mut opened) = opened else {
        return std::future::pending().await;
    };
    loop {
        let Some(newer) = opened.newer().await? else {
            continue;
        };
        if !takes_certificates {
            tracing::info!("coming back with a newer certificate");
            return Ok(());
        }
        send(outbox, node_message::Message::Certificates(newer)).await?;
        tracing::info!("showed the controller a newer certificate");
    }
}

/// A channel, and what it was opened with over TLS.
async fn channel(address: &Address, tls: &Tls) -> Result<(Channel, Option<Opened>)> {
    match address {
        Address::Unix(path) => {
            let channel = unix_channel(path, None)
                .await
                .with_context(|| format!("connecting to {address}; is the controller running?"))?;
            Ok((channel, None))
        }
        Address::Tls(place) => {
            let (channel, opened) = tls.channel(place).await?;
            Ok((channel, Some(opened)))
        }
    }
}

/// A channel over a unix socket; `answer_max` bounds the time of each call.
pub(crate) async fn unix_channel(
    path: &Path,
    answer_max: Option<Duration>,
) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The URI is for HTTP's sake; the connector does not look at it.
    let mut endpoint = Endpoint::from_static("http://bulkhead.invalid");
    if let Some(limit) = answer_max {
        endpoint = endpoint.timeout(limit);
    }
    endpoint.connect_with_connector(connector).await
}
