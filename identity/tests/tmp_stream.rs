#![allow(dead_code, unused_imports, missing_docs, clippy::all)]
mod tls {
    #[path = "../../../controller/src/tls/authority.rs"] pub mod authority;
    #[path = "../../../controller/src/tls/connection.rs"] pub mod connection;
    #[path = "../../../controller/src/tls/listener.rs"] pub mod listener;
    #[path = "../../../controller/src/tls/own.rs"] pub mod own;
    #[path = "../../../controller/src/tls/standing.rs"] pub mod standing;
}
use std::{sync::{Arc, Mutex}, time::{Duration, SystemTime}, path::Path, fs};
use bulkhead_identity::{Identity, Source, Trust, dial, follow, proof::{self, Binding}};
use bulkhead_proto::{PROTOCOL_VERSION, spiffe::Peer, v1::{self, Announcement, Certificates, ControllerMessage, Hello, NodeMessage, controller_message, node_message::Message, node_service_client::NodeServiceClient, node_service_server::{NodeService, NodeServiceServer}}};
use bulkhead_testbed::workload_api::{Authority, Svid, WorkloadApi};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::{sync::{mpsc, watch}, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::{Endpoint, Server, Uri}};
use tls::{connection::{Caller, caller}, standing::{Standing, Trusted}};
const DEADLINE: Duration = Duration::from_secs(60);
const DOMAIN: &str = "test.example";
const CONTROLLER: &str = "spiffe://test.example/controller";
const N1: &str = "spiffe://test.example/node/n1";
const HOUR: Duration = Duration::from_hours(1);

struct Mini { trusted: Trusted, log: Arc<Mutex<String>> }
#[tonic::async_trait]
impl NodeService for Mini {
    type ConnectStream = ReceiverStream<Result<ControllerMessage, Status>>;
    async fn connect(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Self::ConnectStream>, Status> {
        let td = self.trusted.borrow().as_ref().map(|t| t.trust_domain().clone());
        let Caller::Node(node) = caller(&request, td.as_ref())? else { return Err(Status::unauthenticated("no")) };
        let standing = Standing::new(node, self.trusted.clone());
        let lapsed = standing.lapsed();
        let (out, stream) = mpsc::channel(4);
        let mut inbound = request.into_inner();
        let log = self.log.clone();
        tokio::spawn(async move {
            let serve = async {
                while let Ok(Some(m)) = inbound.message().await {
                    match m.message.unwrap() {
                        Message::Hello(_) => { let w = v1::Welcome { takes_certificates: true, ..Default::default() }; out.send(Ok(ControllerMessage { message: Some(controller_message::Message::Welcome(w)) })).await.ok(); }
                        Message::Certificates(c) => match standing.take(c) { Ok(()) => log.lock().unwrap().push_str("TOOK\n"), Err(e) => { log.lock().unwrap().push_str(&format!("{}\n", e.message())); out.send(Err(e)).await.ok(); return } },
                        _ => { out.send(Ok(ControllerMessage { message: Some(controller_message::Message::AnnouncementResult(Default::default())) })).await.ok(); }
                    }
                }
            };
            tokio::select! { () = serve => {} r = lapsed => log.lock().unwrap().push_str(&format!("{r}\n")) }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
struct Bed { address: String, log: Arc<Mutex<String>>, api: WorkloadApi, dir: tempfile::TempDir }
impl Bed {
    async fn new(svid: Svid) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("w.sock");
        let api = WorkloadApi::serve(&socket).unwrap();
        api.give(vec![svid]);
        let rx = follow(Source::Workload(socket), Peer::Controller, DOMAIN.parse().unwrap());
        let (trust, trusted) = watch::channel(None);
        let configs = tls::own::followed(rx, trust).await.unwrap();
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); let a = l.local_addr().unwrap(); drop(l);
        let connections = tls::listener::listen(a, configs).await.unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mini = Mini { trusted, log: log.clone() };
        tokio::spawn(async move { Server::builder().add_service(NodeServiceServer::new(mini)).serve_with_incoming(ReceiverStream::new(connections)).await.unwrap(); });
        Self { address: a.to_string(), log, api, dir }
    }
    async fn logs(&self, text: &str) { let t = async { while !self.log.lock().unwrap().contains(text) { tokio::time::sleep(Duration::from_millis(10)).await } }; assert!(timeout(DEADLINE, t).await.is_ok(), "{text}: {}", self.log.lock().unwrap()); }
    fn forget(&self) { self.log.lock().unwrap().clear() }
}
/// The node's identity as its source has it.
fn identity(svid: &Svid, id: &Peer) -> Identity {
    let trust = Trust::new(DOMAIN.parse().unwrap(), [CertificateDer::from(svid.bundle.as_slice())]).unwrap();
    let key = PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone());
    Identity::new(vec![svid.x509_svid.clone().into()], key.into(), trust, id).unwrap()
}

fn node(name: &str) -> Peer {
    Peer::Node(name.to_owned())
}

/// A node's open stream.
struct Open {
    messages: mpsc::Sender<NodeMessage>,
    answers: Streaming<ControllerMessage>,
    binding: Binding,
}

impl Open {
    /// Opens the stream of node n1 over its own connection.
    async fn new(address: &str, identity: &Identity) -> Result<Self, String> {
        let config = dial::config(identity.trust(), Some(identity)).unwrap();
        let binding = Arc::new(Mutex::new(None));
        let (address, done) = (address.to_owned(), binding.clone());
        let connect = tower::service_fn(move |_: Uri| {
            let (config, address, done) = (config.clone(), address.clone(), done.clone());
            async move {
                let stream = dial::dial(config, &address).await?;
                *done.lock().unwrap() = Some(Binding::of(stream.get_ref().1).unwrap());
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://controller")
            .connect_with_connector(connect)
            .await;
        let (messages, stream) = mpsc::channel(4);
        let hello = Hello {
            node: "n1".into(),
            protocol: PROTOCOL_VERSION,
            ..Hello::default()
        };
        messages.send(message(Message::Hello(hello))).await.unwrap();
        let mut client = NodeServiceClient::new(channel.map_err(|error| format!("{error:?}"))?);
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let mut answers = client
            .connect(stream)
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        let welcome = answers.message().await.map_err(|status| status.to_string())?;
        let Some(controller_message::Message::Welcome(welcome)) = welcome.and_then(|welcome| welcome.message) else {
            return Err("no welcome".to_owned());
        };
        assert!(welcome.takes_certificates);
        let binding = binding.lock().unwrap().clone().unwrap();
        Ok(Self {
            messages,
            answers,
            binding,
        })
    }

    async fn show(&self, certificates: Certificates) {
        self.messages
            .send(message(Message::Certificates(certificates)))
            .await
            .unwrap();
    }

    /// Asks something, and waits for the answer: the stream is at work.
    async fn answers(&mut self) {
        let announcement = Announcement::default();
        self.messages
            .send(message(Message::Announcement(announcement)))
            .await
            .unwrap();
        let asked = async {
            loop {
                let answer = self.answers.message().await.unwrap().unwrap().message;
                if let Some(controller_message::Message::AnnouncementResult(_)) = answer {
                    return;
                }
            }
        };
        timeout(DEADLINE, asked).await.unwrap();
    }

    /// Waits until the controller ends the stream.
    async fn ends(mut self) {
        let ended = async { while let Ok(Some(_)) = self.answers.message().await {} };
        timeout(DEADLINE, ended).await.unwrap();
    }
}

fn message(message: Message) -> NodeMessage {
    NodeMessage { message: Some(message) }
}

/// Makes what is shown on a connection.
type Worse<'a> = Box<dyn Fn(&Binding) -> Certificates + 'a>;

/// Waits for a moment of the clock.
async fn passed(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left).await;
    }
}

/// Waits for the source's next identity.
async fn next(newest: &mut watch::Receiver<Option<Identity>>) -> Identity {
    timeout(DEADLINE, newest.changed()).await.unwrap().unwrap();
    newest.borrow_and_update().clone().unwrap()
}


#[tokio::test(flavor = "multi_thread")]
async fn outlives() {
    const SHORT: Duration = Duration::from_secs(15);
    let authority = Authority::new(DOMAIN).unwrap();
    let bed = Bed::new(authority.svid(CONTROLLER, SHORT).unwrap()).await;
    let socket = bed.dir.path().join("n.sock");
    let nodes = WorkloadApi::serve(&socket).unwrap();
    let mut newest = follow(Source::Workload(socket), node("n1"), DOMAIN.parse().unwrap());
    nodes.give(vec![authority.svid(N1, SHORT).unwrap()]);
    let first = next(&mut newest).await;
    let mut stream = Open::new(&bed.address, &first).await.unwrap();
    let mut last = first.clone();
    let mut n = 0;
    while n < 3 || SystemTime::now() <= first.not_after() + Duration::from_secs(1) {
        bed.forget();
        bed.api.give(vec![authority.svid(CONTROLLER, SHORT).unwrap()]);
        nodes.give(vec![authority.svid(N1, SHORT).unwrap()]);
        last = next(&mut newest).await;
        stream.show(proof::show(&last, &stream.binding).unwrap()).await;
        bed.logs("TOOK").await;
        stream.answers().await;
        n += 1;
        passed(last.not_after() - SHORT / 2).await;
    }
    stream.answers().await;
    println!("{n} rotations, one stream");
    assert!(Open::new(&bed.address, &last).await.is_ok());
    assert!(Open::new(&bed.address, &first).await.is_err());
    stream.ends().await;
    bed.logs("has ended, and it showed no newer one").await;
}
#[tokio::test(flavor = "multi_thread")]
async fn hostile() {
    let authority = Authority::new(DOMAIN).unwrap();
    let bed = Bed::new(authority.svid(CONTROLLER, HOUR).unwrap()).await;
    let good = identity(&authority.svid(N1, HOUR).unwrap(), &node("n1"));
    let elsewhere = Open::new(&bed.address, &good).await.unwrap().binding;
    let other = identity(&authority.svid("spiffe://test.example/node/n2", HOUR).unwrap(), &node("n2"));
    let s = Open::new(&bed.address, &good).await.unwrap();
    s.show(proof::show(&good, &elsewhere).unwrap()).await; s.ends().await; bed.logs("not made by the newer certificate's key").await;
    let s = Open::new(&bed.address, &good).await.unwrap();
    let shown = proof::show(&other, &s.binding).unwrap();
    s.show(shown).await; s.ends().await; bed.logs("this is the stream of node n1").await;
}
#[tokio::test(flavor = "multi_thread")]
async fn authorities() {
    let (old, new) = (Authority::new(DOMAIN).unwrap(), Authority::new(DOMAIN).unwrap());
    let bed = Bed::new(old.svid(CONTROLLER, HOUR).unwrap()).await;
    let before = identity(&old.svid(N1, HOUR).unwrap(), &node("n1"));
    let after = identity(&new.svid(N1, HOUR).unwrap(), &node("n1"));
    let mut stream = Open::new(&bed.address, &before).await.unwrap();
    assert!(Open::new(&bed.address, &after.trusting(before.trust().clone())).await.is_err());
    let mut both = old.svid(CONTROLLER, HOUR).unwrap(); both.bundle = [old.certificate(), new.certificate()].concat();
    bed.api.give(vec![both]);
    let t = async { while Open::new(&bed.address, &after.trusting(before.trust().clone())).await.is_err() {} };
    timeout(DEADLINE, t).await.unwrap();
    stream.answers().await;
    bed.api.give(vec![new.svid(CONTROLLER, HOUR).unwrap()]);
    stream.ends().await;
    bed.logs("the authorities have changed").await;
    assert!(Open::new(&bed.address, &before.trusting(after.trust().clone())).await.is_err());
    assert!(Open::new(&bed.address, &after).await.is_ok());
}
